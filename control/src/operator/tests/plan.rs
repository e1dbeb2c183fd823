//! Plans: what applying would change.

use std::collections::BTreeMap;

use fleet_protocol::ids::UnixSeconds;
use fleet_protocol::secret::Secret;
use serde_json::json;

use crate::model::enrollment::EnrollSecret;
use crate::model::label::{LabelMembership, LabelSpec, LabelType};
use crate::model::pack::{PackQuery, PackSpec, PackTargets};
use crate::model::query::QuerySpec;
use crate::operator::fault::Reason;
use crate::operator::plan::{Action, Current, Kind, culprit, plan};
use crate::operator::settings::ConfigPatch;
use crate::operator::spec::Specs;

fn query(name: &str) -> QuerySpec {
    QuerySpec {
        name: name.into(),
        query: "SELECT 1".into(),
        ..QuerySpec::default()
    }
}

fn pack(name: &str, query: &str, label: &str) -> PackSpec {
    PackSpec {
        name: name.into(),
        targets: PackTargets {
            labels: vec![label.into()],
        },
        queries: vec![PackQuery {
            query: query.into(),
            interval: 60,
            ..PackQuery::default()
        }],
        ..PackSpec::default()
    }
}

fn current() -> Current {
    let all = LabelSpec {
        name: "All Hosts".into(),
        label_type: LabelType::Builtin,
        ..LabelSpec::default()
    };
    Current {
        labels: BTreeMap::from([("All Hosts".into(), all)]),
        agent_options: json!({}),
        secrets: vec![EnrollSecret {
            secret: Secret::new("hunter2"),
            created_at: UnixSeconds(1),
        }],
        ..Current::default()
    }
}

#[test]
fn packs_may_use_what_comes_with_them() {
    let specs = Specs {
        queries: vec![query("q")],
        packs: vec![pack("p", "q", "All Hosts")],
        ..Specs::default()
    };
    let plan = plan(specs, &current()).unwrap();
    let kinds: Vec<_> = plan
        .changes
        .iter()
        .map(|change| (change.kind, change.action))
        .collect();
    assert_eq!(
        kinds,
        [(Kind::Query, Action::Create), (Kind::Pack, Action::Create)]
    );
}

#[test]
fn packs_name_what_exists() {
    let specs = Specs {
        packs: vec![pack("p", "q", "l")],
        ..Specs::default()
    };
    let problems = plan(specs, &current()).unwrap_err();
    assert_eq!(
        problems,
        [
            Reason::new("pack \"p\"", "query \"q\" does not exist"),
            Reason::new("pack \"p\"", "label \"l\" does not exist"),
        ]
    );
}

#[test]
fn the_same_again_is_no_change() {
    let specs = || Specs {
        queries: vec![query("q")],
        packs: vec![pack("p", "q", "All Hosts")],
        config: Some(ConfigPatch {
            agent_options: Some(json!({"config": {}})),
            ..ConfigPatch::default()
        }),
        secrets: Some(vec![Secret::new("hunter2")]),
        ..Specs::default()
    };
    let first = plan(specs(), &current()).unwrap();
    assert!(!first.is_empty());
    assert!(first.secrets.is_none());
    assert!(plan(specs(), &first.after).unwrap().is_empty());
}

#[test]
fn builtin_labels_stay() {
    let changed = LabelSpec {
        description: "other".into(),
        ..current().labels["All Hosts"].clone()
    };
    let regular = LabelSpec {
        label_type: LabelType::Regular,
        ..current().labels["All Hosts"].clone()
    };
    for label in [changed, regular] {
        let specs = Specs {
            labels: vec![label],
            ..Specs::default()
        };
        assert_eq!(plan(specs, &current()).unwrap_err().len(), 1);
    }
    let same = Specs {
        labels: current().labels.into_values().collect(),
        ..Specs::default()
    };
    assert!(plan(same, &current()).unwrap().is_empty());
}

#[test]
fn manual_labels_keep_their_members_unless_told() {
    let mut current = current();
    let manual = LabelSpec {
        name: "m".into(),
        label_membership_type: LabelMembership::Manual,
        hosts: Some(vec!["a".into(), "b".into()]),
        ..LabelSpec::default()
    };
    current.labels.insert("m".into(), manual.clone());
    for hosts in [None, Some(vec!["b".into(), "a".into(), "a".into()])] {
        let specs = Specs {
            labels: vec![LabelSpec {
                hosts,
                ..manual.clone()
            }],
            ..Specs::default()
        };
        assert!(plan(specs, &current).unwrap().is_empty());
    }
}

#[test]
fn secrets_are_masked_in_changes() {
    let specs = Specs {
        secrets: Some(vec![Secret::new("swordfish")]),
        ..Specs::default()
    };
    let plan = plan(specs, &current()).unwrap();
    assert_eq!(plan.changes[0].action, Action::Replace);
    let shown = serde_json::to_string(&plan.changes).unwrap();
    assert!(
        !shown.contains("hunter2") && !shown.contains("swordfish"),
        "{shown}"
    );
}

#[test]
fn the_culprit_is_the_first_change_that_does_not_fit() {
    let specs = Specs {
        queries: (0..40)
            .map(|index| query(&format!("q{index:02}")))
            .collect(),
        ..Specs::default()
    };
    let plan = plan(specs, &current()).unwrap();
    let check = |limit: usize| {
        move |state: &Current| {
            if state.queries.len() > limit {
                Err(format!("more than {limit}"))
            } else {
                Ok(())
            }
        }
    };
    assert_eq!(culprit(&current(), &plan, check(40)), None);
    for limit in [0, 1, 17, 39] {
        let found = culprit(&current(), &plan, check(limit)).unwrap();
        assert_eq!(found.name, format!("query \"q{limit:02}\""));
    }
}
