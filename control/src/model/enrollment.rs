//! An enrolment: what it brings, what became of it, and the secrets that let hosts enroll.

use std::net::IpAddr;

use fleet_protocol::agent::IdentityKind;
use fleet_protocol::ids::{NodeKeyHash, UnixSeconds};
use fleet_protocol::secret::Secret;
use serde_json::{Map, Value};

use super::host::{HostColumns, HostState};

/// What one enrolment brings.
#[derive(Clone, Debug)]
pub(crate) struct NewEnrollment {
    /// Of the fresh key that the agent is about to get.
    pub(crate) key: NodeKeyHash,
    /// Already chosen by `osquery.host_identifier`; not empty.
    pub(crate) identifier: String,
    /// `osquery_info.instance_id`; may be empty.
    pub(crate) instance_id: String,
    pub(crate) address: IpAddr,
    pub(crate) at: UnixSeconds,
    /// From `host_details`.
    pub(crate) columns: HostColumns,
    /// Table name → row or rows, kept for display.
    pub(crate) details: Map<String, Value>,
}

/// Begins the instance id of hosts that are known by a certificate. Those of agents are trimmed, so that none begins so.
pub(crate) const CERTIFIED_INSTANCE: &str = " client certificate, ";

/// Instance id of hosts that are known by what names them in a certificate.
pub(crate) fn certified_instance(kind: IdentityKind) -> String {
    format!("{CERTIFIED_INSTANCE}{}", kind.label())
}

/// Whether an instance id is one of those.
pub(crate) fn is_certified_instance(instance_id: &str) -> bool {
    instance_id.starts_with(CERTIFIED_INSTANCE)
}

/// What became of one enrolment.
#[derive(Clone, Debug)]
pub(crate) struct EnrollOutcome {
    pub(crate) host: HostState,
    /// The key that this enrolment made invalid.
    pub(crate) previous_key: Option<NodeKeyHash>,
    /// Why the row is what it is.
    pub(crate) identity: Identity,
}

/// How an enrolment found its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// No row had this identifier.
    New,
    /// Same identifier, and same instance or no instance known on either side.
    Same,
    /// Same identifier, other instance, and the row's owner was silent: the agent's database was wiped.
    TakenOver,
    /// Same identifier, other instance, and the row's owner is alive: a clone, which got a row of its own.
    Clone,
}

/// What agents may enroll with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EnrollSecret {
    pub(crate) secret: Secret,
    pub(crate) created_at: UnixSeconds,
}
