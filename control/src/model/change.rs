//! A row of the `changes` table.

use fleet_protocol::ids::{FeedSeq, NodeKeyHash, UnixSeconds};

/// What a row of the `changes` table is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ChangeKind {
    /// Subject: host id. `key` is the one that became invalid, if any.
    Host,
    /// Subject: host id. `key` is the one that it had.
    HostDeleted,
    /// Queries, packs, labels (not their members) or agent options.
    Specs,
    /// The set of enroll secrets.
    EnrollSecrets,
    /// Subject: campaign id. It began or ended.
    Campaign,
    /// Something that a newer build wrote; its number.
    Unknown(i64),
}

/// One change. Numbers become visible in their order, so reading after the last one seen misses nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChangeRow {
    pub(crate) seq: FeedSeq,
    pub(crate) kind: ChangeKind,
    /// What it is about; zero when the kind says it all.
    pub(crate) subject: i64,
    pub(crate) key: Option<NodeKeyHash>,
    pub(crate) at: UnixSeconds,
    /// Written by this process, which knows already.
    pub(crate) is_own: bool,
}
