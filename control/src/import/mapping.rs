//! From a source's rows to what we keep: hosts, and documents as operators write them. Pure.
//!
//! Documents go through the same checks as those that operators apply, so nothing gets into the store by this way that
//! could not get there by the other.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest;
use fleet_protocol::ids::{NodeKeyHash, UnixSeconds};
use serde_json::{Map, Value, json};

use crate::model::host::HostColumns;
use crate::store::ImportedHost;

/// Fleet writes 2000-01-01 or an earlier day for "never".
const NEVER_UNTIL: i64 = 946_771_200;
/// Of a label, as Fleet numbers them.
const BUILTIN: i64 = 1;
const MANUAL: i64 = 1;
/// Of a pack's target.
const TARGET_LABEL: i64 = 0;
/// Types of packs that hold a schedule of all hosts, or of a team.
const GLOBAL_PACK: &str = "global";
/// Members of agent options that have a meaning for osquery.
const OPTIONS: [&str; 2] = ["config", "overrides"];

/// A row of `hosts`, with what belongs to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HostRow {
    pub(super) id: i64,
    pub(super) node_key: String,
    pub(super) identifier: String,
    pub(super) public_ip: String,
    pub(super) enrolled_at: i64,
    pub(super) seen_at: i64,
    pub(super) detail_updated_at: i64,
    pub(super) label_updated_at: i64,
    pub(super) refetch_requested: i64,
    pub(super) team: Option<i64>,
    /// Empty texts and zeros are values that Fleet does not know.
    pub(super) columns: HostColumns,
}

/// A row of `labels`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LabelRow {
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) description: String,
    pub(super) query: String,
    pub(super) platform: String,
    pub(super) label_type: i64,
    pub(super) membership_type: i64,
    pub(super) team: Option<i64>,
}

/// A row of `queries`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct QueryRow {
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) description: String,
    pub(super) query: String,
    /// Zero: somebody ran it once and did not keep it.
    pub(super) saved: Option<i64>,
    pub(super) team: Option<i64>,
    pub(super) interval: i64,
    pub(super) platform: String,
    pub(super) min_osquery_version: String,
    pub(super) automations_enabled: i64,
    pub(super) logging: String,
    pub(super) observer_can_run: i64,
}

/// A row of `packs`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PackRow {
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) description: String,
    pub(super) platform: String,
    pub(super) disabled: i64,
    pub(super) pack_type: String,
}

/// A row of `pack_targets`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TargetRow {
    pub(super) pack: i64,
    pub(super) kind: i64,
    pub(super) target: i64,
}

/// A row of `scheduled_queries`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ScheduledRow {
    pub(super) pack: i64,
    pub(super) query_id: Option<i64>,
    pub(super) query_name: String,
    pub(super) name: String,
    pub(super) description: String,
    pub(super) interval: i64,
    pub(super) snapshot: Option<i64>,
    pub(super) removed: Option<i64>,
    pub(super) shard: Option<i64>,
    pub(super) platform: String,
    pub(super) version: String,
    pub(super) denylist: Option<i64>,
}

/// Everything of a source but its hosts.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    pub(super) labels: Vec<LabelRow>,
    pub(super) queries: Vec<QueryRow>,
    pub(super) packs: Vec<PackRow>,
    pub(super) targets: Vec<TargetRow>,
    pub(super) scheduled: Vec<ScheduledRow>,
    /// Whether the schedule of all hosts stands in `queries`.
    pub(super) has_query_schedule: bool,
    pub(super) agent_options: Option<Value>,
}

/// The same as documents, in the order of the source.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Drafts {
    pub(super) labels: Vec<Value>,
    pub(super) queries: Vec<Value>,
    pub(super) packs: Vec<Value>,
    pub(super) config: Option<Value>,
    /// Names of labels by the source's ids, those that we have of our own included.
    pub(super) label_names: BTreeMap<i64, String>,
    /// What was left out or changed, for people.
    pub(super) notes: Vec<String>,
}

impl HostRow {
    /// The host as it is stored; `None` when no agent has a key of it.
    pub(super) fn host(mut self) -> Option<ImportedHost> {
        if self.node_key.is_empty() {
            return None;
        }
        let known = |text: Option<String>| text.filter(|text| !text.is_empty());
        let more_than_none = |number: Option<i64>| number.filter(|number| *number > 0);
        let columns = &mut self.columns;
        for text in [
            &mut columns.platform,
            &mut columns.platform_like,
            &mut columns.os_version,
            &mut columns.osquery_version,
            &mut columns.hostname,
            &mut columns.computer_name,
            &mut columns.hardware_uuid,
            &mut columns.hardware_serial,
            &mut columns.hardware_model,
            &mut columns.hardware_vendor,
            &mut columns.cpu_brand,
            &mut columns.cpu_type,
            &mut columns.primary_ip,
            &mut columns.primary_mac,
        ] {
            *text = known(text.take());
        }
        for number in [
            &mut columns.cpu_physical_cores,
            &mut columns.cpu_logical_cores,
            &mut columns.memory,
            &mut columns.disk_total,
            &mut columns.disk_free,
            &mut columns.distributed_interval,
            &mut columns.config_refresh,
            &mut columns.logger_tls_period,
        ] {
            *number = more_than_none(number.take());
        }
        columns.public_ip = known(Some(self.public_ip.clone()));
        let fallback = format!("imported-{}", self.id);
        let identifier = [
            Some(self.identifier.as_str()),
            columns.hardware_uuid.as_deref(),
            columns.hostname.as_deref(),
            Some(fallback.as_str()),
        ];
        let identifier = identifier
            .into_iter()
            .flatten()
            .map(str::trim)
            .find(|text| !text.is_empty())
            .unwrap_or_default()
            .to_owned();
        let address = columns.public_ip.clone().or(columns.primary_ip.clone());
        let enrolled_at = time(self.enrolled_at);
        Some(ImportedHost {
            key: hash(&self.node_key),
            identifier,
            address: address.unwrap_or_default(),
            enrolled_at,
            seen_at: time(self.seen_at).max(enrolled_at),
            detail_updated_at: time(self.detail_updated_at),
            label_updated_at: time(self.label_updated_at),
            refetch_requested: self.refetch_requested != 0,
            columns: self.columns,
            labels: Vec::new(),
        })
    }
}

/// What stands for a key in our store.
fn hash(node_key: &str) -> NodeKeyHash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, node_key.as_bytes()).as_ref());
    NodeKeyHash(hash)
}

fn time(seconds: i64) -> UnixSeconds {
    match u32::try_from(seconds) {
        Ok(at) if seconds > NEVER_UNTIL => UnixSeconds(at),
        _ => UnixSeconds(0),
    }
}

/// Documents from rows. `own_builtins` are the names of the labels that are built in here.
pub(super) fn draft(settings: &Settings, own_builtins: &BTreeSet<String>) -> Drafts {
    let mut drafts = Drafts::default();
    for label in &settings.labels {
        drafts.label(label, own_builtins);
    }
    let schedule = old_schedule(settings);
    let mut known = BTreeSet::new();
    for query in &settings.queries {
        drafts.query(
            query,
            schedule.get(query.name.as_str()).copied(),
            &mut known,
        );
    }
    for pack in &settings.packs {
        drafts.pack(pack, settings, &known);
    }
    if let Some(options) = &settings.agent_options {
        drafts.options(options);
    }
    drafts
}

/// The schedule of all hosts, where it was a pack: by the query's name.
fn old_schedule(settings: &Settings) -> BTreeMap<&str, &ScheduledRow> {
    if settings.has_query_schedule {
        return BTreeMap::new();
    }
    let is_global = |pack: &&PackRow| pack.pack_type == GLOBAL_PACK && pack.disabled == 0;
    let global: BTreeSet<i64> = settings
        .packs
        .iter()
        .filter(is_global)
        .map(|pack| pack.id)
        .collect();
    let mut schedule = BTreeMap::new();
    for row in settings
        .scheduled
        .iter()
        .filter(|row| global.contains(&row.pack))
    {
        if let Some(name) = query_name(row, settings) {
            schedule.entry(name).or_insert(row);
        }
    }
    schedule
}

/// The query that a pack's entry runs. Before it had the name, it had the id.
fn query_name<'s>(row: &'s ScheduledRow, settings: &'s Settings) -> Option<&'s str> {
    if !row.query_name.is_empty() {
        return Some(&row.query_name);
    }
    let id = row.query_id?;
    let query = settings.queries.iter().find(|query| query.id == id)?;
    Some(&query.name)
}

impl Drafts {
    fn label(&mut self, label: &LabelRow, own_builtins: &BTreeSet<String>) {
        let name = label.name.trim();
        self.label_names.insert(label.id, name.to_owned());
        if label.label_type == BUILTIN && own_builtins.contains(name) {
            return;
        }
        let is_manual = label.membership_type == MANUAL;
        if !is_manual && label.query.trim().is_empty() {
            self.label_names.remove(&label.id);
            self.notes.push(format!(
                "label {name:?} has no query and is not manual; left out"
            ));
            return;
        }
        if label.team.is_some() {
            self.notes.push(format!(
                "label {name:?} was a team's and is for all hosts now"
            ));
        }
        self.labels.push(json!({
            "name": name,
            "description": label.description,
            "query": if is_manual { "" } else { label.query.as_str() },
            "platform": label.platform,
            "label_type": "regular",
            "label_membership_type": if is_manual { "manual" } else { "dynamic" },
        }));
    }

    fn query(
        &mut self,
        query: &QueryRow,
        scheduled: Option<&ScheduledRow>,
        known: &mut BTreeSet<String>,
    ) {
        let name = query.name.trim();
        if query.team.is_some_and(|team| team > 0) {
            self.notes
                .push(format!("query {name:?} is a team's; left out"));
            return;
        }
        if query.saved == Some(0) {
            return;
        }
        if !known.insert(name.to_owned()) {
            self.notes.push(format!(
                "query {name:?} is there twice; the second is left out"
            ));
            return;
        }
        let mut document = json!({
            "name": name,
            "description": query.description,
            "query": query.query,
            "interval": query.interval,
            "platform": query.platform,
            "min_osquery_version": query.min_osquery_version,
            "automations_enabled": query.automations_enabled != 0,
            "observer_can_run": query.observer_can_run != 0,
            "logging": if query.logging.is_empty() { "snapshot" } else { query.logging.as_str() },
        });
        if let (Some(row), Some(members)) = (scheduled, document.as_object_mut()) {
            let logging = match (row.snapshot, row.removed) {
                (Some(1..), _) => "snapshot",
                (_, Some(0)) => "differential_ignore_removals",
                _ => "differential",
            };
            members.insert("interval".into(), row.interval.into());
            members.insert("platform".into(), row.platform.clone().into());
            members.insert("min_osquery_version".into(), row.version.clone().into());
            members.insert("automations_enabled".into(), true.into());
            members.insert("logging".into(), logging.into());
        }
        self.queries.push(document);
    }

    fn pack(&mut self, pack: &PackRow, settings: &Settings, known: &BTreeSet<String>) {
        let name = pack.name.trim();
        if !pack.pack_type.is_empty() {
            if pack.pack_type != GLOBAL_PACK {
                self.notes
                    .push(format!("pack {name:?} is a team's schedule; left out"));
            }
            return;
        }
        let targets: Vec<&TargetRow> = settings
            .targets
            .iter()
            .filter(|target| target.pack == pack.id)
            .collect();
        let labels: Vec<&String> = targets
            .iter()
            .filter(|target| target.kind == TARGET_LABEL)
            .filter_map(|target| self.label_names.get(&target.target))
            .collect();
        let lost = targets.len() - labels.len();
        let mut queries = Vec::new();
        for row in settings.scheduled.iter().filter(|row| row.pack == pack.id) {
            match query_name(row, settings).map(str::trim) {
                Some(query) if known.contains(query) => queries.push(scheduled(row, query)),
                query => self.notes.push(format!(
                    "pack {name:?}: its query {:?} is not there; left out",
                    query.unwrap_or(&row.name)
                )),
            }
        }
        let document = json!({
            "name": name,
            "description": pack.description,
            "platform": pack.platform,
            "disabled": pack.disabled != 0,
            "targets": { "labels": labels },
            "queries": queries,
        });
        if lost > 0 {
            self.notes.push(format!(
                "pack {name:?}: {lost} of its targets are hosts, teams or labels that are not there; left out"
            ));
        }
        self.packs.push(document);
    }

    /// Without what only Fleet's own agent reads.
    fn options(&mut self, options: &Value) {
        let Some(members) = options.as_object() else {
            return;
        };
        let mut kept = Map::new();
        for (name, value) in members {
            if OPTIONS.contains(&name.as_str()) {
                kept.insert(name.clone(), value.clone());
            } else if !value.is_null() {
                self.notes
                    .push(format!("agent options: {name} is not osquery's; left out"));
            }
        }
        if !kept.is_empty() {
            self.config = Some(json!({ "agent_options": kept }));
        }
    }
}

fn scheduled(row: &ScheduledRow, query: &str) -> Value {
    let mut document = Map::new();
    document.insert("query".into(), query.into());
    document.insert("name".into(), row.name.trim().into());
    document.insert("description".into(), row.description.clone().into());
    document.insert("interval".into(), row.interval.into());
    for (name, flag) in [
        ("snapshot", row.snapshot),
        ("removed", row.removed),
        ("denylist", row.denylist),
    ] {
        if let Some(flag) = flag {
            document.insert(name.into(), (flag != 0).into());
        }
    }
    if let Some(shard) = row.shard.filter(|percent| *percent > 0) {
        document.insert("shard".into(), shard.into());
    }
    for (name, text) in [("platform", &row.platform), ("version", &row.version)] {
        if !text.is_empty() {
            document.insert(name.into(), text.as_str().into());
        }
    }
    document.into()
}

/// Agent options of Kolide Fleet: a row for everybody, and one for each platform that has its own.
pub(super) fn kolide_options(rows: &[(i64, String, Value)]) -> Option<Value> {
    let mut config = None;
    let mut platforms = Map::new();
    for (kind, platform, options) in rows {
        if *kind == 0 {
            config.get_or_insert_with(|| options.clone());
        } else if !platform.is_empty() {
            platforms.insert(platform.clone(), options.clone());
        }
    }
    let config = config?;
    let mut document = json!({ "config": config });
    if !platforms.is_empty()
        && let Some(members) = document.as_object_mut()
    {
        members.insert("overrides".into(), json!({ "platforms": platforms }));
    }
    Some(document)
}

#[cfg(test)]
#[path = "mapping_tests.rs"]
mod tests;
