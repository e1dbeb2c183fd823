//! A named query.

use fleet_protocol::ids::UnixSeconds;
use serde::{Deserialize, Serialize};

row_id!(
    /// A query's row.
    QueryId
);

/// A stored query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Query {
    pub(crate) id: QueryId,
    pub(crate) spec: QuerySpec,
    pub(crate) updated_at: UnixSeconds,
}

/// A named query, with Fleet's member names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct QuerySpec {
    pub(crate) name: String,
    pub(crate) description: String,
    /// The SQL.
    pub(crate) query: String,
    /// Seconds; zero: not scheduled.
    pub(crate) interval: u32,
    /// Comma-separated; empty: all.
    pub(crate) platform: String,
    pub(crate) min_osquery_version: String,
    pub(crate) automations_enabled: bool,
    pub(crate) logging: QueryLogging,
    /// Observers may run it as a live query.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) observer_can_run: bool,
}

/// What a scheduled query logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum QueryLogging {
    /// All rows each time.
    #[default]
    Snapshot,
    /// Added and removed rows.
    Differential,
    /// Added rows.
    DifferentialIgnoreRemovals,
}
