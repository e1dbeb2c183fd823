//! Documents that operators write, in Fleet's shapes, and the specs that the store keeps. Pure.
//!
//! Reading is strict: a member that is not known is refused, because a misspelt one would be a setting that silently
//! does nothing. Members of Fleet's own exports that have no meaning here are passed over while they are harmless.

use fleet_protocol::secret::Secret;
use serde::Deserialize;
use serde_json::Value;

use super::check;
use super::fault::Reason;
use super::members::Members;
use super::pack;
use super::settings::{self, ConfigPatch};
use crate::model::label::{LabelMembership, LabelSpec, LabelType};
use crate::model::pack::PackSpec;
use crate::model::query::{QueryLogging, QuerySpec};

/// Host names in one manual label.
const LABEL_HOSTS_MAX: usize = 10_000;

/// Documents that are applied together.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Documents {
    pub(super) queries: Vec<Value>,
    pub(super) labels: Vec<Value>,
    pub(super) packs: Vec<Value>,
    pub(super) config: Option<Value>,
    pub(super) enroll_secret: Option<Value>,
}

/// The same, read and each checked alone.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Specs {
    pub(super) queries: Vec<QuerySpec>,
    pub(super) labels: Vec<LabelSpec>,
    pub(super) packs: Vec<PackSpec>,
    pub(super) config: Option<ConfigPatch>,
    pub(super) secrets: Option<Vec<Secret>>,
    pub(super) warnings: Vec<String>,
}

/// Reads all documents, or names everything that is wrong with them.
pub(super) fn read(documents: Documents) -> Result<Specs, Vec<Reason>> {
    let mut problems = Vec::new();
    let mut specs = Specs::default();
    for value in documents.queries {
        specs.queries.push(query(value, &mut problems));
    }
    for value in documents.labels {
        specs.labels.push(label(value, &mut problems));
    }
    for value in documents.packs {
        let pack = pack::read(value, &mut problems, &mut specs.warnings);
        specs.packs.push(pack);
    }
    specs.config = documents
        .config
        .map(|value| settings::read(value, &mut problems, &mut specs.warnings));
    specs.secrets = documents
        .enroll_secret
        .map(|value| settings::read_secrets(value, &mut problems));
    twins(
        "query",
        specs.queries.iter().map(|spec| &spec.name),
        &mut problems,
    );
    twins(
        "label",
        specs.labels.iter().map(|spec| &spec.name),
        &mut problems,
    );
    twins(
        "pack",
        specs.packs.iter().map(|spec| &spec.name),
        &mut problems,
    );
    if problems.is_empty() {
        Ok(specs)
    } else {
        Err(problems)
    }
}

fn twins<'s>(kind: &str, names: impl Iterator<Item = &'s String>, problems: &mut Vec<Reason>) {
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    for pair in names.windows(2) {
        if let [first, second] = pair
            && first == second
            && !first.is_empty()
        {
            problems.push(Reason::new(
                format!("{kind} {first:?}"),
                "stands in these documents more than once",
            ));
        }
    }
}

/// The name that a document gives itself; empty without one.
pub(super) fn name_of(document: &Value) -> String {
    let name = document.get("name").and_then(Value::as_str);
    name.unwrap_or_default().to_owned()
}

/// A document with the members of another one; null leaves what is there.
pub(super) fn patched(mut document: Value, patch: Value) -> Value {
    if let (Value::Object(members), Value::Object(patch)) = (&mut document, patch) {
        members.extend(patch.into_iter().filter(|(_, value)| !value.is_null()));
    }
    document
}

/// How problems call a document.
pub(super) fn subject(kind: &str, value: &Value) -> String {
    match value.get("name").and_then(Value::as_str) {
        Some(name) => format!("{kind} {name:?}"),
        None => format!("{kind} without a name"),
    }
}

fn query(value: Value, problems: &mut Vec<Reason>) -> QuerySpec {
    let mut members = Members::of(subject("query", &value), value, problems);
    let spec = QuerySpec {
        name: members.text("name"),
        description: members.text("description"),
        query: members.text("query"),
        interval: members.count("interval").unwrap_or_default(),
        platform: platform_words(&members.text("platform")),
        min_osquery_version: members.text("min_osquery_version"),
        automations_enabled: members.flag("automations_enabled").unwrap_or_default(),
        logging: members
            .word(
                "logging",
                &[
                    ("snapshot", QueryLogging::Snapshot),
                    ("differential", QueryLogging::Differential),
                    (
                        "differential_ignore_removals",
                        QueryLogging::DifferentialIgnoreRemovals,
                    ),
                ],
            )
            .unwrap_or_default(),
        observer_can_run: members.flag("observer_can_run").unwrap_or_default(),
    };
    members.ignore(&[
        "author_email",
        "author_id",
        "author_name",
        "created_at",
        "discard_data",
        "editable",
        "id",
        "packs",
        "saved",
        "stats",
        "support",
        "updated_at",
    ]);
    members.unsupported(&["team", "team_id", "fleet", "fleet_id", "labels_include_any"]);
    members.check(check::name(&spec.name));
    members.check(check::sql(&spec.query));
    members.check(check::interval(spec.interval));
    members.check(check::platform(&spec.platform));
    members.check(check::version(&spec.min_osquery_version));
    members.finish();
    spec
}

/// Without spaces and empty words, so that equal lists compare equal.
pub(super) fn platform_words(text: &str) -> String {
    let words: Vec<_> = text
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .collect();
    words.join(",")
}

fn label(value: Value, problems: &mut Vec<Reason>) -> LabelSpec {
    let mut members = Members::of(subject("label", &value), value, problems);
    let mut spec = LabelSpec {
        name: members.text("name"),
        description: members.text("description"),
        query: members.text("query"),
        platform: platform_words(&members.text("platform")),
        label_type: members
            .word(
                "label_type",
                &[
                    ("regular", LabelType::Regular),
                    ("builtin", LabelType::Builtin),
                ],
            )
            .unwrap_or_default(),
        label_membership_type: members
            .word(
                "label_membership_type",
                &[
                    ("dynamic", LabelMembership::Dynamic),
                    ("manual", LabelMembership::Manual),
                ],
            )
            .unwrap_or_default(),
        hosts: members.texts("hosts"),
    };
    members.ignore(&[
        "author_id",
        "count",
        "created_at",
        "display_text",
        "host_count",
        "id",
        "updated_at",
    ]);
    members.unsupported(&["criteria", "host_ids", "team", "team_id", "fleet_id"]);
    members.check(check::name(&spec.name));
    members.check(check::platform(&spec.platform));
    match spec.label_membership_type {
        LabelMembership::Dynamic => {
            if spec.hosts.take().is_some_and(|hosts| !hosts.is_empty()) {
                members.problem("only a manual label lists hosts");
            }
            if spec.label_type == LabelType::Regular {
                members.check(check::sql(&spec.query));
            }
        }
        LabelMembership::Manual => {
            if !spec.query.is_empty() {
                members.problem("a manual label has no query");
            }
            let count = spec.hosts.as_ref().map_or(0, Vec::len);
            if count > LABEL_HOSTS_MAX {
                members.problem(format!(
                    "hosts lists {count}; at most {LABEL_HOSTS_MAX} fit"
                ));
            }
        }
    }
    members.finish();
    spec
}

/// A spec as a document, in the order of its members.
pub(super) fn query_document(spec: &QuerySpec) -> Value {
    serde_json::to_value(spec).unwrap_or_default()
}

/// A spec as a document; `hosts` are its members, for manual labels.
pub(super) fn label_document(spec: &LabelSpec) -> Value {
    serde_json::to_value(spec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reasons(documents: Documents) -> Vec<String> {
        let problems = read(documents).unwrap_err();
        problems
            .into_iter()
            .map(|problem| format!("{}: {}", problem.name, problem.reason))
            .collect()
    }

    fn of_query(query: Value) -> Documents {
        Documents {
            queries: vec![query],
            ..Documents::default()
        }
    }

    #[test]
    fn a_document_of_fleet_is_taken() {
        let specs = read(of_query(json!({
            "name": "processes", "query": "SELECT * FROM processes", "description": null,
            "interval": 3600, "platform": "darwin, linux", "min_osquery_version": "5.1.0",
            "automations_enabled": true, "logging": "differential", "observer_can_run": true,
            "discard_data": false, "team": "", "labels_include_any": null,
        })))
        .unwrap();
        assert_eq!(
            specs.queries,
            [QuerySpec {
                name: "processes".into(),
                query: "SELECT * FROM processes".into(),
                interval: 3600,
                platform: "darwin,linux".into(),
                min_osquery_version: "5.1.0".into(),
                automations_enabled: true,
                logging: QueryLogging::Differential,
                observer_can_run: true,
                ..QuerySpec::default()
            }]
        );
    }

    #[test]
    fn mistakes_in_queries_are_named() {
        assert_eq!(
            reasons(of_query(json!({"name": "a", "qeury": "SELECT 1"}))),
            [
                "query \"a\": query must not be empty",
                "query \"a\": unknown member \"qeury\"; did you mean \"query\"?",
            ]
        );
        assert_eq!(
            reasons(of_query(json!({"query": "SELECT 1", "interval": 604_801}))),
            [
                "query without a name: name must not be empty",
                "query without a name: interval must be between 0 and 604800 seconds, not 604801",
            ]
        );
        assert_eq!(
            reasons(Documents {
                queries: vec![
                    json!({"name": "a", "query": "SELECT 1"}),
                    json!({"name": "a", "query": "SELECT 2"})
                ],
                ..Documents::default()
            }),
            ["query \"a\": stands in these documents more than once"]
        );
    }

    #[test]
    fn labels_are_dynamic_or_manual() {
        let of = |label| Documents {
            labels: vec![label],
            ..Documents::default()
        };
        assert_eq!(
            reasons(of(json!({"name": "l", "hosts": ["a"]}))),
            [
                "label \"l\": only a manual label lists hosts",
                "label \"l\": query must not be empty",
            ]
        );
        let manual = json!({"name": "l", "label_membership_type": "manual", "hosts": ["a"]});
        assert_eq!(
            read(of(manual)).unwrap().labels[0].hosts.as_deref(),
            Some(&["a".to_owned()][..])
        );
        let vitals =
            json!({"name": "l", "query": "SELECT 1", "label_membership_type": "host_vitals"});
        assert!(reasons(of(vitals))[0].contains("host_vitals"));
    }
}
