//! Bounds and deadlines that are not options. Those that are options live in [`crate::config`].

use std::time::Duration;

use crate::link::BatchKind;

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

/// An agent gives up after this time, from connect to the last byte; so do we, from accept.
pub const EXCHANGE_DEADLINE: Duration = Duration::from_secs(16);
/// When a worker stops waiting for an answer: early enough that the agent still hears the refusal.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(15);
/// From accept until a held read is answered at the latest: work that falls due at its end still has the time to come
/// from control within [`ANSWER_DEADLINE`].
pub const HELD_READ_DEADLINE: Duration = Duration::from_secs(12);

/// Highest `osquery.due_per_second`: far above what any store takes.
pub const DUE_PER_SECOND_MAX: u32 = 100_000;
/// From accept to the end of the PROXY header, where one is due.
pub const PROXY_HEADER_DEADLINE: Duration = Duration::from_secs(3);
/// From accept to the end of the TLS handshake.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// From the first byte of a head (or the end of the handshake) to its last.
pub const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// From the end of the answer to the peer's close.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// The keys of session tickets change this often. Clients are told to keep a ticket for as long; by when in its key's period
/// it was sealed, it is opened for one period to two.
pub const TICKET_PERIOD: Duration = Duration::from_secs(6 * 3600);

/// Tunnels that one worker holds open; operators are few and must not take the agents' place.
pub const TUNNELS_PER_WORKER_MAX: u32 = 256;

/// First message on a local socket.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// Time between pings on a link.
pub const PING_INTERVAL: Duration = Duration::from_secs(1);
/// A control process remembers the ids of answered batches this long.
pub const DEDUPE_WINDOW: Duration = Duration::from_secs(120);
/// Drain gives agents this long.
pub const DRAIN_DEADLINE: Duration = EXCHANGE_DEADLINE;
/// A key that the store does not know is not looked up again for this long.
pub const NEGATIVE_CACHE_TTL: Duration = Duration::from_secs(5);
/// Keys in the negative cache of one worker.
pub const NEGATIVE_CACHE_KEYS_MAX: usize = 65_536;
/// A worker takes what waits for a slot that is given up, this long: the kernel holds a connection back for three seconds
/// when its first bytes do not come.
pub const SWEEP_TIME: Duration = Duration::from_secs(5);
/// Worker and control report their counters to the supervisor this often.
pub const STATS_INTERVAL: Duration = Duration::from_secs(1);

/// A config answer that osquery takes: bytes after rewriting, in every release up to 5.23.1.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;
/// Nesting levels of a config that osquery takes; the root is level 1, scalars count.
pub const CONFIG_DEPTH_MAX: usize = 32;

/// When a batch is sent, and how many wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Sent when this many requests wait.
    pub requests_max: usize,
    /// Sent when about this many bytes wait.
    pub bytes_max: usize,
    /// Sent when the oldest waits this long, even while others are in flight.
    pub age_max: Duration,
    /// Batches in flight on one link.
    pub credit: u16,
    /// Requests that wait for credit; beyond, a new one is refused.
    pub waiting_requests_max: usize,
    /// Bytes that wait for credit; beyond, a new one is refused.
    pub waiting_bytes_max: usize,
}

impl BatchLimits {
    /// The limits of a kind. One list, so that worker and control agree.
    pub const fn of(kind: BatchKind) -> Self {
        let small = Self {
            requests_max: 512,
            bytes_max: 256 << 10,
            age_max: Duration::from_millis(5),
            credit: 2,
            waiting_requests_max: 8192,
            waiting_bytes_max: 16 << 20,
        };
        match kind {
            BatchKind::Lookup => Self {
                waiting_requests_max: 65_536,
                ..small
            },
            BatchKind::Enroll => Self {
                requests_max: 256,
                bytes_max: 2 << 20,
                ..small
            },
            BatchKind::Read => small,
            BatchKind::Write => Self {
                bytes_max: 2 << 20,
                waiting_bytes_max: 64 << 20,
                credit: 4,
                ..small
            },
            BatchKind::Log => Self {
                bytes_max: 2 << 20,
                waiting_bytes_max: 128 << 20,
                waiting_requests_max: 4096,
                credit: 4,
                ..small
            },
            BatchKind::Carve => Self {
                requests_max: 16,
                waiting_bytes_max: 128 << 20,
                ..small
            },
            // One request holds a whole interval's hosts; nobody waits for the answer.
            BatchKind::Seen => Self {
                requests_max: 1,
                waiting_requests_max: 16,
                ..small
            },
        }
    }
}

/// Bytes of the results that control keeps on disk while the store is away: some 50,000 hosts' details and labels. Beyond,
/// agents are told to come again.
pub const SPOOL_BYTES_MAX: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_can_move() {
        for kind in BatchKind::ALL {
            let limits = BatchLimits::of(kind);
            assert!(limits.credit > 0, "{kind:?}");
            assert!(
                limits.requests_max <= limits.waiting_requests_max,
                "{kind:?}"
            );
            assert!(limits.bytes_max <= limits.waiting_bytes_max, "{kind:?}");
            assert!(limits.age_max < EXCHANGE_DEADLINE, "{kind:?}");
        }
    }

    #[test]
    fn phases_fit_into_the_exchange() {
        assert!(PROXY_HEADER_DEADLINE < HANDSHAKE_DEADLINE);
        assert!(HANDSHAKE_DEADLINE + HEAD_DEADLINE < EXCHANGE_DEADLINE);
        assert!(ANSWER_DEADLINE < EXCHANGE_DEADLINE);
        assert!(HELD_READ_DEADLINE < ANSWER_DEADLINE);
    }
}
