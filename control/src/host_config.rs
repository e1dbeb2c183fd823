//! Composes what agents are told: options, packs, scheduled queries. Pure.
//!
//! Invariants: the same specs give the same bytes, whatever the order in which the store returns them, because an agent
//! that sees other bytes tears its schedule down and builds it again. So members are sorted, and nothing that changes
//! by itself (a time, a counter) goes in. A config depends on a host only through its [`ConfigKey`].

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest;
use bytes::Bytes;
use fleet_protocol::ids::AnswerId;
use fleet_protocol::limits::{CONFIG_BYTES_MAX, CONFIG_DEPTH_MAX};
use serde_json::{Map, Value, json};

use crate::labels::{PlatformClass, platform_may_match};
use crate::model::label::{Label, LabelId, LabelMembership, LabelType};
use crate::model::pack::{Pack, PackQuery};
use crate::model::query::{Query, QueryLogging};

/// Longest interval that osquery takes, seconds.
const INTERVAL_S_MAX: u32 = 604_800;
/// The pack that holds the scheduled queries.
const GLOBAL_PACK: &str = "Global";

/// Everything that decides what agents are told, as the store has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Specs {
    /// `{config, overrides: {platforms: {name: config}}}`
    pub(crate) agent_options: Value,
    /// With their labels resolved.
    pub(crate) packs: Vec<Pack>,
    /// Scheduled or referenced by packs.
    pub(crate) queries: Vec<Query>,
    /// What packs may target.
    pub(crate) labels: Vec<Label>,
}

/// What a config depends on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConfigKey {
    /// The platform override that applies; empty for none.
    pub(crate) class: Box<str>,
    /// Labels of the host that some enabled pack targets; sorted.
    pub(crate) labels: Box<[LabelId]>,
}

impl ConfigKey {
    /// The first eight bytes, big-endian, of the SHA-256 of the class, a zero byte and the label ids (big-endian, four
    /// bytes each). The same on every node and after every restart.
    pub(crate) fn answer_id(&self) -> AnswerId {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(self.class.as_bytes());
        context.update(&[0]);
        for label in &self.labels {
            context.update(&label.0.to_be_bytes());
        }
        let hash = context.finish();
        AnswerId(
            hash.as_ref()
                .iter()
                .take(8)
                .fold(0, |id, byte| (id << 8) | u64::from(*byte)),
        )
    }
}

/// A pack, ready to go into configs.
#[derive(Debug)]
struct ReadyPack {
    name: String,
    labels: BTreeSet<LabelId>,
    body: Value,
    bytes: usize,
}

/// Compiled specs.
#[derive(Debug, Default)]
pub(crate) struct Composer {
    default: Map<String, Value>,
    overrides: BTreeMap<Box<str>, Map<String, Value>>,
    /// By name; enabled ones with targets.
    packs: Vec<ReadyPack>,
    scheduled: Option<Value>,
    targeted: BTreeSet<LabelId>,
}

impl Composer {
    /// Compiles. Never fails: what cannot be used is left out; [`check`] says so to operators beforehand.
    pub(crate) fn of(specs: &Specs) -> Self {
        let queries: BTreeMap<&str, &Query> = specs
            .queries
            .iter()
            .map(|query| (query.spec.name.as_str(), query))
            .collect();
        let mut packs: Vec<ReadyPack> = specs
            .packs
            .iter()
            .filter(|pack| !pack.spec.disabled && !pack.labels.is_empty())
            .map(|pack| ready_pack(pack, &queries))
            .collect();
        packs.sort_by(|left, right| left.name.cmp(&right.name));
        packs.dedup_by(|left, right| left.name == right.name);
        let overrides = platform_overrides(&specs.agent_options)
            .map(|(platform, options)| (platform.as_str().into(), base(options)))
            .collect();
        Self {
            default: specs
                .agent_options
                .get("config")
                .map(base)
                .unwrap_or_default(),
            overrides,
            targeted: packs
                .iter()
                .flat_map(|pack| pack.labels.iter().copied())
                .collect(),
            packs,
            scheduled: scheduled_pack(&queries),
        }
    }

    /// What decides the config of a host.
    pub(crate) fn key(&self, platform: &str, labels: &[LabelId]) -> ConfigKey {
        ConfigKey {
            class: self.class(platform).into(),
            labels: labels
                .iter()
                .filter(|label| self.targeted.contains(label))
                .copied()
                .collect(),
        }
    }

    /// Whether a key could still be a host's under these specs.
    pub(crate) fn is_current(&self, key: &ConfigKey) -> bool {
        (key.class.is_empty() || self.overrides.contains_key(&key.class))
            && key.labels.iter().all(|label| self.targeted.contains(label))
    }

    /// The exact platform's override, else its class's.
    fn class(&self, platform: &str) -> &str {
        [platform, PlatformClass::of(platform).word()]
            .into_iter()
            .find_map(|word| self.overrides.get_key_value(word))
            .map_or("", |(word, _)| word)
    }

    /// The config's bytes. Packs that would make it larger than agents take are left out, largest first; [`check`]
    /// refuses such specs, so that this only happens when somebody writes to the database.
    pub(crate) fn compose(&self, key: &ConfigKey) -> Bytes {
        let mut packs: Vec<&ReadyPack> = self
            .packs
            .iter()
            .filter(|pack| key.labels.iter().any(|label| pack.labels.contains(label)))
            .collect();
        loop {
            let config = self.config(&key.class, &packs);
            let text = config.to_string();
            if text.len() <= CONFIG_BYTES_MAX && depth(&config) <= CONFIG_DEPTH_MAX {
                return text.into();
            }
            let Some(largest) = packs.iter().enumerate().max_by_key(|(_, pack)| pack.bytes) else {
                tracing::error!(
                    platform = %key.class,
                    bytes = text.len(),
                    "agents will refuse the configuration: agent options or scheduled queries are too large or too deep"
                );
                return text.into();
            };
            let (index, pack) = (largest.0, largest.1.name.clone());
            tracing::error!(%pack, platform = %key.class, "pack left out: the configuration is too large or too deep");
            packs.remove(index);
        }
    }

    fn config(&self, class: &str, packs: &[&ReadyPack]) -> Value {
        let mut config = match self.overrides.get(class) {
            Some(options) => options.clone(),
            None => self.default.clone(),
        };
        let mut all = match config.remove("packs") {
            Some(Value::Object(own)) => own,
            _ => Map::new(),
        };
        for pack in packs {
            all.insert(pack.name.clone(), pack.body.clone());
        }
        if let Some(scheduled) = &self.scheduled {
            all.insert(GLOBAL_PACK.to_owned(), scheduled.clone());
        }
        if !all.is_empty() {
            config.insert("packs".to_owned(), Value::Object(all));
        }
        sorted(Value::Object(config))
    }
}

/// Whether agents will take what these specs give, on every platform and with every label that a host may have. The
/// text names what breaks it.
pub(crate) fn check(specs: &Specs) -> Result<(), String> {
    let default = specs
        .agent_options
        .get("config")
        .map(|options| ("config", options));
    let overrides = platform_overrides(&specs.agent_options)
        .map(|(platform, options)| (platform.as_str(), options));
    for (name, options) in default.into_iter().chain(overrides) {
        check_options(name, options)?;
    }
    let composer = Composer::of(specs);
    if composer.scheduled.is_some() && composer.packs.iter().any(|pack| pack.name == GLOBAL_PACK) {
        return Err(format!(
            "pack {GLOBAL_PACK:?}: scheduled queries use this name; choose another one"
        ));
    }
    let names: BTreeMap<LabelId, &Label> =
        specs.labels.iter().map(|label| (label.id, label)).collect();
    let mut words: BTreeSet<&str> = PlatformClass::ALL.map(PlatformClass::word).into();
    words.extend(composer.overrides.keys().map(AsRef::as_ref));
    for word in words {
        let class = PlatformClass::of(word);
        let labels: Vec<LabelId> = composer
            .targeted
            .iter()
            .filter(|id| names.get(id).is_none_or(|label| may_hold(label, class)))
            .copied()
            .collect();
        composer.check(&composer.key(word, &labels), word, &names)?;
    }
    Ok(())
}

impl Composer {
    fn check(
        &self,
        key: &ConfigKey,
        platform: &str,
        names: &BTreeMap<LabelId, &Label>,
    ) -> Result<(), String> {
        let packs: Vec<&ReadyPack> = self
            .packs
            .iter()
            .filter(|pack| key.labels.iter().any(|label| pack.labels.contains(label)))
            .collect();
        let config = self.config(&key.class, &packs);
        let platform = if platform.is_empty() { "any" } else { platform };
        let levels = depth(&config);
        if levels > CONFIG_DEPTH_MAX {
            return Err(format!(
                "configuration for platform {platform}: {levels} nesting levels; osquery takes {CONFIG_DEPTH_MAX}"
            ));
        }
        let bytes = config.to_string().len();
        if bytes <= CONFIG_BYTES_MAX {
            return Ok(());
        }
        let largest = packs.iter().max_by_key(|pack| pack.bytes).map(|pack| {
            let labels: Vec<&str> = pack
                .labels
                .iter()
                .filter_map(|id| names.get(id))
                .map(|label| label.spec.name.as_str())
                .collect();
            format!(
                "; the largest of {} packs is {:?} ({} bytes, label {})",
                packs.len(),
                pack.name,
                pack.bytes,
                labels.join(", ")
            )
        });
        Err(format!(
            "configuration for platform {platform}: up to {bytes} bytes; osquery takes {CONFIG_BYTES_MAX}{}",
            largest.unwrap_or_default()
        ))
    }
}

/// Whether a host of the class may be in the label. Labels of different operating systems never meet on a host.
fn may_hold(label: &Label, class: PlatformClass) -> bool {
    if label.spec.label_type == LabelType::Builtin {
        let own = match label.spec.name.as_str() {
            "macOS" => Some(PlatformClass::Darwin),
            "MS Windows" => Some(PlatformClass::Windows),
            name if name.contains("Linux") => Some(PlatformClass::Linux),
            _ => None,
        };
        if let Some(own) = own {
            return own == class;
        }
    }
    label.spec.label_membership_type == LabelMembership::Manual
        || platform_may_match(&label.spec.platform, class)
}

fn check_options(name: &str, options: &Value) -> Result<(), String> {
    let Some(options) = options.as_object() else {
        return Err(format!("agent options {name:?}: must be an object"));
    };
    let intervals = options
        .get("decorators")
        .and_then(|decorators| decorators.get("interval"))
        .and_then(Value::as_object);
    match intervals.and_then(|keys| keys.keys().find(|key| !is_interval_key(key))) {
        Some(key) => Err(format!(
            "agent options {name:?}: decorators.interval key {key:?} must be a number of seconds above 0"
        )),
        None => Ok(()),
    }
}

/// Key 0, or one that is no number, passes osquery's check and is a divisor later.
fn is_interval_key(key: &str) -> bool {
    key.bytes().all(|byte| byte.is_ascii_digit())
        && key.parse::<u32>().is_ok_and(|seconds| seconds > 0)
}

fn platform_overrides(options: &Value) -> impl Iterator<Item = (&String, &Value)> {
    options
        .get("overrides")
        .and_then(|overrides| overrides.get("platforms"))
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(platform, _)| !platform.is_empty())
}

/// Agent options without what agents must never see.
fn base(options: &Value) -> Map<String, Value> {
    let mut options = options.as_object().cloned().unwrap_or_default();
    let intervals = options
        .get_mut("decorators")
        .and_then(|decorators| decorators.get_mut("interval"))
        .and_then(Value::as_object_mut);
    if let Some(intervals) = intervals {
        intervals.retain(|key, _| is_interval_key(key));
    }
    // Either of them would make agents take the config for a refusal.
    options.remove("node_invalid");
    options.remove("error");
    options
}

fn ready_pack(pack: &Pack, queries: &BTreeMap<&str, &Query>) -> ReadyPack {
    let spec = &pack.spec;
    let mut ready = Map::new();
    for query in &spec.queries {
        let saved = queries.get(query.query.as_str());
        let Some(sql) = query
            .sql
            .as_deref()
            .or(saved.map(|saved| saved.spec.query.as_str()))
        else {
            continue;
        };
        if sql.trim().is_empty() || !is_interval(query.interval) {
            continue;
        }
        let name = if query.name.is_empty() {
            &query.query
        } else {
            &query.name
        };
        if !name.is_empty() {
            ready.insert(name.clone(), pack_query(query, sql));
        }
    }
    let mut body = Map::new();
    insert_text(&mut body, "platform", &spec.platform);
    insert_text(&mut body, "version", &spec.version);
    insert_some(&mut body, "shard", spec.shard);
    if !spec.discovery.is_empty() {
        body.insert("discovery".to_owned(), json!(spec.discovery));
    }
    body.insert("queries".to_owned(), Value::Object(ready));
    let body = sorted(Value::Object(body));
    ReadyPack {
        name: spec.name.clone(),
        labels: pack.labels.iter().copied().collect(),
        bytes: body.to_string().len(),
        body,
    }
}

fn pack_query(query: &PackQuery, sql: &str) -> Value {
    let mut body = Map::new();
    body.insert("query".to_owned(), json!(sql));
    body.insert("interval".to_owned(), json!(query.interval));
    insert_text(
        &mut body,
        "platform",
        query.platform.as_deref().unwrap_or_default(),
    );
    insert_text(
        &mut body,
        "version",
        query.version.as_deref().unwrap_or_default(),
    );
    insert_some(&mut body, "snapshot", query.snapshot);
    insert_some(&mut body, "removed", query.removed);
    insert_some(&mut body, "shard", query.shard);
    insert_some(&mut body, "denylist", query.denylist);
    Value::Object(body)
}

fn scheduled_pack(queries: &BTreeMap<&str, &Query>) -> Option<Value> {
    let mut ready = Map::new();
    for (name, query) in queries {
        let spec = &query.spec;
        if !is_interval(spec.interval) || spec.query.trim().is_empty() || name.is_empty() {
            continue;
        }
        let mut body = Map::new();
        body.insert("query".to_owned(), json!(spec.query));
        body.insert("interval".to_owned(), json!(spec.interval));
        insert_text(&mut body, "platform", &spec.platform);
        insert_text(&mut body, "version", &spec.min_osquery_version);
        let (flag, value) = match spec.logging {
            QueryLogging::Snapshot => ("snapshot", true),
            QueryLogging::Differential => ("removed", true),
            QueryLogging::DifferentialIgnoreRemovals => ("removed", false),
        };
        body.insert(flag.to_owned(), json!(value));
        ready.insert((*name).to_owned(), Value::Object(body));
    }
    (!ready.is_empty()).then(|| sorted(json!({ "queries": ready })))
}

fn is_interval(seconds: u32) -> bool {
    (1..=INTERVAL_S_MAX).contains(&seconds)
}

fn insert_text(body: &mut Map<String, Value>, name: &str, text: &str) {
    if !text.is_empty() {
        body.insert(name.to_owned(), json!(text));
    }
}

fn insert_some<T: Into<Value>>(body: &mut Map<String, Value>, name: &str, value: Option<T>) {
    if let Some(value) = value {
        body.insert(name.to_owned(), value.into());
    }
}

/// Object members in order, at every level; array elements where they are.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let members: BTreeMap<String, Value> = members.into_iter().collect();
            members
                .into_iter()
                .map(|(name, value)| (name, sorted(value)))
                .collect()
        }
        Value::Array(elements) => elements.into_iter().map(sorted).collect(),
        scalar => scalar,
    }
}

/// Nesting levels as osquery counts them: the root is the first, scalars count.
fn depth(value: &Value) -> usize {
    let below = match value {
        Value::Object(members) => members.values().map(depth).max(),
        Value::Array(elements) => elements.iter().map(depth).max(),
        _ => None,
    };
    1 + below.unwrap_or(0)
}

#[cfg(test)]
#[path = "host_config_tests.rs"]
mod tests;
