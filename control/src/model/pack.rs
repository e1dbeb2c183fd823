//! A pack, its queries and whom it is for.

use fleet_protocol::ids::UnixSeconds;
use serde::{Deserialize, Serialize};

use super::label::LabelId;

row_id!(
    /// A pack's row.
    PackId
);

/// A stored pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pack {
    pub(crate) id: PackId,
    pub(crate) spec: PackSpec,
    /// `spec.targets.labels`, resolved.
    pub(crate) labels: Vec<LabelId>,
    pub(crate) updated_at: UnixSeconds,
}

/// A pack, with Fleet's member names. Without targets no host gets it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PackSpec {
    pub(crate) name: String,
    pub(crate) description: String,
    /// Comma-separated; empty: all.
    pub(crate) platform: String,
    /// Smallest osquery version; empty: any.
    pub(crate) version: String,
    /// Percentage of hosts, if not all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) shard: Option<u32>,
    /// SQL texts; the pack runs where one returns rows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) discovery: Vec<String>,
    pub(crate) disabled: bool,
    pub(crate) targets: PackTargets,
    pub(crate) queries: Vec<PackQuery>,
}

/// Whom a pack is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PackTargets {
    /// Label names, each of an existing label.
    pub(crate) labels: Vec<String>,
}

/// A query within a pack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PackQuery {
    /// Name of a [`QuerySpec`](super::query::QuerySpec), which must exist unless `sql` is given.
    pub(crate) query: String,
    /// Name within the pack; empty: that of the query.
    pub(crate) name: String,
    pub(crate) description: String,
    /// Seconds.
    pub(crate) interval: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) removed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) shard: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) denylist: Option<bool>,
    /// The SQL itself, for packs that bring their own, such as osquery's pack files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sql: Option<String>,
}
