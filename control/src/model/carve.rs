//! A carve and how far it is.

use fleet_protocol::ids::{HostId, UnixSeconds};
use serde::{Deserialize, Serialize};

row_id!(
    /// A carve's row.
    CarveId
);

/// A carve that begins.
#[derive(Clone, Debug)]
pub(crate) struct NewCarve {
    pub(crate) host: HostId,
    /// SHA-256 of the session id; the id itself is not stored.
    pub(crate) session_hash: [u8; 32],
    pub(crate) carve_id: String,
    pub(crate) request_id: String,
    pub(crate) block_count: u64,
    pub(crate) block_size: u64,
    pub(crate) carve_size: u64,
    pub(crate) at: UnixSeconds,
}

/// A carve and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Carve {
    pub(crate) id: CarveId,
    pub(crate) host: HostId,
    pub(crate) session_hash: [u8; 32],
    pub(crate) carve_id: String,
    pub(crate) request_id: String,
    pub(crate) block_count: u64,
    pub(crate) block_size: u64,
    pub(crate) carve_size: u64,
    /// The block that must come next; `block_count` when all are there.
    pub(crate) next_block: u64,
    /// Bytes that are there.
    pub(crate) bytes: u64,
    pub(crate) error: Option<String>,
    pub(crate) created_at: UnixSeconds,
    pub(crate) updated_at: UnixSeconds,
}

impl Carve {
    /// Every block is there.
    pub(crate) fn is_complete(&self) -> bool {
        self.error.is_none() && self.next_block >= self.block_count
    }
}

/// Which carves to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CarveFilter {
    /// Only this host's.
    pub(crate) host: Option<HostId>,
    /// Only with a higher id.
    pub(crate) after: Option<CarveId>,
    /// Zero: 100; at most 10,000.
    pub(crate) limit: u32,
}
