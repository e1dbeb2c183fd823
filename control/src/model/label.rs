//! A label, who is in it, and what a host says about that.

use fleet_protocol::ids::{HostId, UnixSeconds};
use serde::{Deserialize, Serialize};

row_id!(
    /// A label's row.
    LabelId
);

impl LabelId {
    /// The built-in label `All Hosts`. Every host is in it without a membership row.
    pub(crate) const ALL_HOSTS: Self = Self(1);
}

/// One host's answers to the label queries. Labels that are not named keep their membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LabelResult {
    pub(crate) host: HostId,
    pub(crate) at: UnixSeconds,
    pub(crate) memberships: Vec<(LabelId, bool)>,
}

/// A stored label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Label {
    pub(crate) id: LabelId,
    /// Without `hosts`.
    pub(crate) spec: LabelSpec,
    /// Members.
    pub(crate) host_count: u64,
    pub(crate) updated_at: UnixSeconds,
}

/// A label, with Fleet's member names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LabelSpec {
    pub(crate) name: String,
    pub(crate) description: String,
    /// Of dynamic labels: a host is a member while this returns rows.
    pub(crate) query: String,
    /// Comma-separated platforms on which the query is run; empty: all.
    pub(crate) platform: String,
    pub(crate) label_type: LabelType,
    pub(crate) label_membership_type: LabelMembership,
    /// Of manual labels: identifier, host name or hardware UUID of each member. `None` leaves the members.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hosts: Option<Vec<String>>,
}

/// Who made a label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LabelType {
    /// An operator.
    #[default]
    Regular,
    /// Ours; cannot be changed or deleted.
    Builtin,
}

/// Who decides who is a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LabelMembership {
    /// The label's query.
    #[default]
    Dynamic,
    /// An operator.
    Manual,
}
