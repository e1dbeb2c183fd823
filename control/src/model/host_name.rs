//! What people call a host.

use fleet_protocol::ids::HostId;

/// Names of a host; either may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostName {
    pub(crate) hostname: Box<str>,
    /// The computer's name, else the host name, else the identifier.
    pub(crate) display_name: Box<str>,
}

impl HostName {
    /// Of a host that has told nothing, or does not exist any more.
    pub(crate) fn unknown(host: HostId) -> Self {
        Self {
            hostname: "".into(),
            display_name: format!("host {host}").into(),
        }
    }
}
