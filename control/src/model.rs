//! What the store keeps, as plain data: no SQL, no wire format of agents, no behaviour beyond conversions.
//!
//! Owner of state: nobody; these are values. Times are [`UnixSeconds`], zero meaning "never".

use std::net::IpAddr;

use fleet_protocol::agent::IdentityKind;
use fleet_protocol::ids::{FeedSeq, HostId, NodeKeyHash, UnixSeconds};
use fleet_protocol::secret::Secret;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

macro_rules! row_id {
    ($(#[doc = $doc:literal])+ $name:ident) => {
        $(#[doc = $doc])+
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub(crate) struct $name(pub(crate) u32);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

row_id!(
    /// A label's row.
    LabelId
);
row_id!(
    /// A query's row.
    QueryId
);
row_id!(
    /// A pack's row.
    PackId
);
row_id!(
    /// A carve's row.
    CarveId
);

impl LabelId {
    /// The built-in label `All Hosts`. Every host is in it without a membership row.
    pub(crate) const ALL_HOSTS: Self = Self(1);
}

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
}

/// The shortest of a host's intervals in seconds; 0 when none is known.
pub(crate) fn shortest_interval_s(intervals: [Option<i64>; 2]) -> u16 {
    let shortest = intervals.into_iter().flatten().filter(|s| *s > 0).min();
    shortest.map_or(0, |seconds| u16::try_from(seconds).unwrap_or(u16::MAX))
}

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

/// One host's answers to the label queries. Labels that are not named keep their membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LabelResult {
    pub(crate) host: HostId,
    pub(crate) at: UnixSeconds,
    pub(crate) memberships: Vec<(LabelId, bool)>,
}

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

/// Rows of one name among queries, packs or labels.
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
    /// Name of a [`QuerySpec`], which must exist unless `sql` is given.
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

/// What agents may enroll with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EnrollSecret {
    pub(crate) secret: Secret,
    pub(crate) created_at: UnixSeconds,
}

/// Which hosts to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostFilter {
    /// Only hosts with a higher id; for walking through all of them.
    pub(crate) after: Option<HostId>,
    /// Zero is the first page.
    pub(crate) page: u32,
    /// Zero: 100; at most 10,000.
    pub(crate) per_page: u32,
    pub(crate) order: HostOrder,
    pub(crate) is_descending: bool,
    /// Part of host name, identifier, hardware UUID, serial number or address; case does not matter.
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
