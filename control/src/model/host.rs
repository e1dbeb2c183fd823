//! A host: what is known of it, how hosts are listed and how their silence is called.

use fleet_protocol::ids::{HostId, NodeKeyHash, UnixSeconds};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::label::LabelId;

/// What the directory keeps of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostState {
    pub(crate) id: HostId,
    pub(crate) key: NodeKeyHash,
    /// `ubuntu`, `darwin`, `windows` …; empty while unknown.
    pub(crate) platform: Box<str>,
    /// Sorted; [`LabelId::ALL_HOSTS`] is always the first.
    pub(crate) labels: Vec<LabelId>,
    /// Zero after each enrolment.
    pub(crate) detail_updated_at: UnixSeconds,
    /// Zero after each enrolment.
    pub(crate) label_updated_at: UnixSeconds,
    pub(crate) refetch_requested: bool,
    pub(crate) enrolled_at: UnixSeconds,
    /// Seconds between two polls, as far as the host told; 0: unknown.
    pub(crate) interval_s: u16,
    /// `None` leaves what is known.
    pub(crate) names: Option<Box<HostNames>>,
}

/// What a host is called and runs, for lists: searched and sorted by. Empty: unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostNames {
    pub(crate) hostname: String,
    pub(crate) computer_name: String,
    pub(crate) identifier: String,
    pub(crate) hardware_uuid: String,
    pub(crate) hardware_serial: String,
    pub(crate) primary_ip: String,
    pub(crate) public_ip: String,
    pub(crate) os_version: String,
    pub(crate) osquery_version: String,
}

impl HostNames {
    /// What a search looks at; the host name first.
    pub(crate) fn searched(&self) -> [&str; 7] {
        [
            &self.hostname,
            &self.computer_name,
            &self.identifier,
            &self.hardware_uuid,
            &self.hardware_serial,
            &self.primary_ip,
            &self.public_ip,
        ]
    }
}

/// The shortest of a host's intervals in seconds; 0 when none is known.
pub(crate) fn shortest_interval_s(intervals: [Option<i64>; 2]) -> u16 {
    let shortest = intervals.into_iter().flatten().filter(|s| *s > 0).min();
    shortest.map_or(0, |seconds| u16::try_from(seconds).unwrap_or(u16::MAX))
}

/// The columns by which hosts are listed. `None` leaves what is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostColumns {
    pub(crate) platform: Option<String>,
    pub(crate) platform_like: Option<String>,
    /// Such as `Ubuntu 22.04.4 LTS`.
    pub(crate) os_version: Option<String>,
    pub(crate) osquery_version: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) computer_name: Option<String>,
    /// `system_info.uuid`.
    pub(crate) hardware_uuid: Option<String>,
    pub(crate) hardware_serial: Option<String>,
    pub(crate) hardware_model: Option<String>,
    pub(crate) hardware_vendor: Option<String>,
    pub(crate) cpu_brand: Option<String>,
    pub(crate) cpu_type: Option<String>,
    pub(crate) cpu_physical_cores: Option<i64>,
    pub(crate) cpu_logical_cores: Option<i64>,
    /// Bytes.
    pub(crate) memory: Option<i64>,
    pub(crate) primary_ip: Option<String>,
    pub(crate) primary_mac: Option<String>,
    /// Bytes.
    pub(crate) disk_total: Option<i64>,
    /// Bytes.
    pub(crate) disk_free: Option<i64>,
    /// Seconds.
    pub(crate) uptime: Option<i64>,
    /// Seconds, from `osquery_flags`.
    pub(crate) distributed_interval: Option<i64>,
    /// Seconds, from `osquery_flags`.
    pub(crate) config_refresh: Option<i64>,
    /// Seconds, from `osquery_flags`.
    pub(crate) logger_tls_period: Option<i64>,
    /// Where its enrolment or its latest details came from; behind a balancer, the balancer's client.
    pub(crate) public_ip: Option<String>,
}

/// One host's answers to the detail queries. Clears `refetch_requested`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct HostDetails {
    pub(crate) host: HostId,
    pub(crate) at: UnixSeconds,
    pub(crate) columns: HostColumns,
    /// Merged into what is stored, member by member; null removes a member.
    pub(crate) details: Map<String, Value>,
}

/// Which hosts to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostFilter {
    /// Only hosts with a higher id; for walking through all of them.
    pub(crate) after: Option<HostId>,
    /// Only hosts that come after this value of what the list is sorted by.
    pub(crate) beyond: Option<SortValue>,
    /// Zero is the first page.
    pub(crate) page: u32,
    /// Zero: 100; at most 10,000.
    pub(crate) per_page: u32,
    pub(crate) order: HostOrder,
    pub(crate) is_descending: bool,
    /// Part of host name, computer name, identifier, hardware UUID, serial number or address; case does not matter.
    pub(crate) text: Option<String>,
    pub(crate) label: Option<LabelId>,
    pub(crate) platform: Option<String>,
    /// Only hosts that share their identifier with others.
    pub(crate) is_clone: bool,
    /// As of `now`.
    pub(crate) status: Option<HostStatus>,
    /// Needed with `status`.
    pub(crate) now: UnixSeconds,
}

/// What a list of hosts is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum HostOrder {
    #[default]
    Id,
    Hostname,
    SeenAt,
    EnrolledAt,
    OsVersion,
    OsqueryVersion,
}

/// A value of what a list of hosts is sorted by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SortValue {
    /// Of ids and times.
    Number(u32),
    /// Of names and versions.
    Text(String),
}

/// How a host's silence is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HostStatus {
    /// Heard of within its shortest interval and a minute.
    Online,
    /// Not online.
    Offline,
    /// Silent for 30 days.
    Mia,
    /// Enrolled within 24 hours.
    New,
}

/// Added to a host's interval before it counts as offline, seconds.
pub(crate) const ONLINE_BUFFER_S: u32 = 60;
/// Interval of a host that has not told its own, seconds.
pub(crate) const INTERVAL_UNKNOWN_S: u32 = 60;
/// Silence after which a host counts as missing, seconds.
pub(crate) const MIA_AFTER_S: u32 = 30 * 24 * 3600;
/// Age up to which a host counts as new, seconds.
pub(crate) const NEW_FOR_S: u32 = 24 * 3600;

/// One host in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostRow {
    pub(crate) id: HostId,
    pub(crate) identifier: String,
    pub(crate) instance_id: String,
    /// From where it enrolled.
    pub(crate) address: String,
    pub(crate) enrolled_at: UnixSeconds,
    /// As last written to the store; younger marks may wait in memory. Not before `enrolled_at`.
    pub(crate) seen_at: UnixSeconds,
    pub(crate) detail_updated_at: UnixSeconds,
    pub(crate) label_updated_at: UnixSeconds,
    pub(crate) refetch_requested: bool,
    pub(crate) columns: HostColumns,
}

impl HostRow {
    /// Seconds of silence up to which this host is online.
    pub(crate) fn online_window_s(&self) -> u32 {
        let interval = [
            self.columns.distributed_interval,
            self.columns.config_refresh,
        ]
        .into_iter()
        .flatten()
        .filter_map(|seconds| u32::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0)
        .min();
        interval
            .unwrap_or(INTERVAL_UNKNOWN_S)
            .saturating_add(ONLINE_BUFFER_S)
    }

    /// Online, missing or offline at `now`, when last heard of at `seen_at`.
    pub(crate) fn status(&self, seen_at: UnixSeconds, now: UnixSeconds) -> HostStatus {
        let silence = now.0.saturating_sub(seen_at.0);
        if silence <= self.online_window_s() {
            HostStatus::Online
        } else if silence >= MIA_AFTER_S {
            HostStatus::Mia
        } else {
            HostStatus::Offline
        }
    }
}

/// Everything about one host.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HostDetail {
    pub(crate) row: HostRow,
    pub(crate) details: Map<String, Value>,
    /// With names, [`LabelId::ALL_HOSTS`] included.
    pub(crate) labels: Vec<(LabelId, String)>,
    /// The other hosts that have the same identifier, by id; at most [`CLONES_SHOWN_MAX`].
    pub(crate) clones: Vec<HostId>,
}

/// Clones that are told of one host.
pub(crate) const CLONES_SHOWN_MAX: usize = 100;
