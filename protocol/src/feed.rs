//! What control pushes to workers, so that they can answer alone.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{AnswerId, FeedSeq, HostId, NodeKeyHash, UnixSeconds};

/// Most hosts or changes in one feed message, so that a full load never blocks a link for long.
pub const CHANGES_PER_FEED_MAX: usize = 8192;

/// Most hosts of one call, so that it never blocks a worker's loop for long.
pub const CALLED_PER_CHANGE_MAX: u64 = 8192;
/// Since this version of the link a [`Change::Called`] is understood.
pub const CALLED_SINCE: u16 = 4;

/// A numbered piece of the feed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Feed {
    /// Where this piece stands in a load.
    pub load: Load,
    /// Position after these changes are applied.
    pub seq: FeedSeq,
    /// Applied in order.
    pub changes: Vec<Change>,
}

/// Whether a piece adds to what the worker has or replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Load {
    /// First piece of a full load: the worker starts an empty table beside the one it serves from.
    Begin,
    /// A further piece of it.
    Continue,
    /// Last piece: the new table takes the old one's place, and what it lacks is forgotten.
    End,
    /// The whole load in one piece.
    Whole,
    /// Adds to what is there.
    Changes,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// A host is new or changed. Its previous key, if it had another one, is told by a `Forget` of its own.
    Host(Host),
    /// A key is no longer valid.
    Forget(NodeKeyHash),
    /// Ready-made config bytes, new or changed.
    Answer {
        /// Its name.
        id: AnswerId,
        /// A JSON object.
        config: Bytes,
    },
    /// No host uses this answer any more.
    DropAnswer(AnswerId),
    /// A known host's next due work.
    WorkDue {
        /// Which host.
        host: HostId,
        /// From when on a read must go through control.
        at: UnixSeconds,
    },
    /// The next due work of known hosts, all at the same time. Since version 4; older ones are told of each host.
    Called {
        /// Ids as a roaring bitmap, in its portable format; at most [`CALLED_PER_CHANGE_MAX`] of them.
        hosts: Bytes,
        /// From when on a read must go through control.
        at: UnixSeconds,
    },
}

/// What a worker knows of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its row.
    pub id: HostId,
    /// Its credential.
    pub key: NodeKeyHash,
    /// Its configuration: stands for team, platform and the labels that packs target.
    pub answer: AnswerId,
    /// From when on a read must go through control.
    pub work_due_at: UnixSeconds,
}
