//! Identifiers as newtypes, so that swapping two of them does not compile.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[doc = $doc:literal])+ $name:ident($inner:ty)) => {
        $(#[doc = $doc])+
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A numbered place for a worker; stable over the worker's restarts.
    SlotIndex(u16)
);
id!(
    /// Counts one supervisor's life in a chain of upgrades.
    Generation(u32)
);
id!(
    /// Names a batch within one worker's life; control deduplicates by ([`BootNonce`], `BatchId`).
    BatchId(u64)
);
id!(
    /// Names one waiting request within one worker's life.
    RequestId(u64)
);
id!(
    /// A host's row in the store. 32 bits, because target sets are roaring bitmaps of host ids.
    HostId(u32)
);
id!(
    /// Names ready-made config bytes. Derived from what decides them (platform and pack labels), so it is the same
    /// on every node and after every restart.
    AnswerId(u64)
);
id!(
    /// Position in the feed; the durable source is the store's `changes` table.
    FeedSeq(u64)
);
id!(
    /// Random number of one process life, chosen at start.
    BootNonce(u64)
);
id!(
    /// Seconds since 1970-01-01 UTC. 32 bits reach the year 2106 and keep a known host small.
    UnixSeconds(u32)
);

/// SHA-256 of a node key. The key itself is never stored, nor kept in a table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeKeyHash(pub [u8; 32]);

impl fmt::Debug for NodeKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "NodeKeyHash({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}
