//! Bounds and deadlines. Those that are options live in [`crate::config`]; what their zeros stand for is in [`Allowed`].

mod batches;
mod deadlines;
mod live;
mod tiers;

pub use batches::{BatchLimits, WAITING_AGE_MAX};
pub use deadlines::*;
pub use live::*;
pub use tiers::{Allowed, Rate};

/// Bytes of a request head.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
/// Bytes of an enroll body.
pub const ENROLL_BODY_BYTES_MAX: usize = 512 << 10;
/// Bytes of a config or read body.
pub const SMALL_BODY_BYTES_MAX: usize = 64 << 10;
/// Bytes of a carve begin body.
pub const CARVE_BEGIN_BODY_BYTES_MAX: usize = 64 << 10;
/// A body that is refused for its size is read and dropped up to here, so that the agent hears the answer; beyond
/// it the connection is cut.
pub const DISCARDED_BODY_BYTES_MAX: u64 = 64 << 20;
/// A gzip body may inflate to this many times its route's bound on the wire.
pub const INFLATED_RATIO_MAX: usize = 4;

/// Tunnels that one worker holds open; operators are few and must not take the agents' place. Hundreds of live queries have
/// a viewer each, and all of them may come to the same worker. An idle tunnel takes a worker about as much memory as a
/// held read, one whose client does not read up to 100 KiB: 100 MiB in all.
pub const TUNNELS_PER_WORKER_MAX: u32 = 1024;
/// Viewers of live queries at once, whichever way they look; what one takes of control is a message of one host's rows.
pub const VIEWERS_MAX: usize = 768;

/// Keys in the negative cache of one worker.
pub const NEGATIVE_CACHE_KEYS_MAX: usize = 65_536;
/// Highest `osquery.due_per_second`: far above what any store takes.
pub const DUE_PER_SECOND_MAX: u32 = 100_000;
/// Bytes of the results that control keeps on disk while the store is away: some 50,000 hosts' details and labels. Beyond,
/// agents are told to come again.
pub const SPOOL_BYTES_MAX: u64 = 256 << 20;

/// A config answer that osquery takes: bytes after rewriting, in every release up to 5.23.1.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;
/// Nesting levels of a config that osquery takes; the root is level 1, scalars count.
pub const CONFIG_DEPTH_MAX: usize = 32;
