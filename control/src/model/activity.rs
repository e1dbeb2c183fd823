//! What somebody did.

use fleet_protocol::ids::UnixSeconds;
use serde_json::Value;

use super::user::UserId;

/// An entry of the audit log before it has a number.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NewActivity {
    pub(crate) at: UnixSeconds,
    /// Zero for the local operator and for whom nobody knows.
    pub(crate) actor: UserId,
    pub(crate) actor_name: String,
    pub(crate) actor_email: String,
    /// Empty for the operator socket.
    pub(crate) address: String,
    /// Such as `deleted_host`.
    pub(crate) kind: &'static str,
    pub(crate) subject_kind: &'static str,
    pub(crate) subject_name: String,
    /// Zero when the subject has no number.
    pub(crate) subject_id: u32,
    /// An object; no secrets.
    pub(crate) details: Value,
}

/// An entry of the audit log.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Activity {
    pub(crate) id: u64,
    pub(crate) at: UnixSeconds,
    pub(crate) actor: UserId,
    pub(crate) actor_name: String,
    pub(crate) actor_email: String,
    pub(crate) address: String,
    pub(crate) kind: String,
    pub(crate) subject_kind: String,
    pub(crate) subject_name: String,
    pub(crate) subject_id: u32,
    pub(crate) details: Value,
}

/// Which entries to list.
#[derive(Clone, Debug, Default)]
pub(crate) struct ActivityFilter {
    pub(crate) page: u32,
    pub(crate) per_page: u32,
    pub(crate) is_ascending: bool,
    /// Only of this kind.
    pub(crate) kind: Option<String>,
    /// In the actor's name or address.
    pub(crate) text: Option<String>,
}
