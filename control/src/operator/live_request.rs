//! What operators send to begin a live query, read with every mistake named. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

use super::check;
use super::fault::{Fault, Reason};
use super::members::Members;
use crate::model::query::QueryId;

/// Hosts, or labels, that one request names; labels are for more.
const NAMED_MAX: usize = 10_000;

/// What is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    Saved(QueryId),
    Sql(String),
}

/// A live query as it was asked for; `T` is how hosts and labels are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LiveRequest<T> {
    pub(super) choice: Choice,
    pub(super) hosts: BTreeSet<T>,
    pub(super) labels: BTreeSet<T>,
}

/// `{query, query_id?, selected: {hosts: [ids], labels: [ids]}}`
pub(super) fn by_ids(body: Value) -> Result<LiveRequest<u32>, Fault> {
    read(body, |item| match item {
        Value::Number(number) => {
            let number = number
                .as_u64()
                .and_then(|number| u32::try_from(number).ok());
            number.map(Some).ok_or("must be numbers")
        }
        Value::String(text) if text.trim().is_empty() => Ok(None),
        Value::String(text) => text.trim().parse().map(Some).map_err(|_| "must be numbers"),
        _ => Err("must be numbers"),
    })
}

/// The same with names. Clients send `[""]` for "none".
pub(super) fn by_names(body: Value) -> Result<LiveRequest<String>, Fault> {
    read(body, |item| match item {
        Value::String(text) => {
            let text = text.trim();
            Ok((!text.is_empty()).then(|| text.to_owned()))
        }
        _ => Err("must be texts"),
    })
}

/// `{query}`, for one host.
pub(super) fn of_one_host(body: Value) -> Result<String, Fault> {
    let mut problems = Vec::new();
    let mut members = Members::of("live query".into(), body, &mut problems);
    let sql = members.text("query");
    members.check(check::sql(&sql));
    members.finish();
    fine(problems)?;
    Ok(sql)
}

/// `{host_ids}`, and `{query_ids}` when several are run at once.
pub(super) fn of_saved(body: Value) -> Result<(BTreeSet<u32>, BTreeSet<u32>), Fault> {
    let mut problems = Vec::new();
    let mut members = Members::of("live query".into(), body, &mut problems);
    let mut numbers = |name| -> BTreeSet<u32> {
        let items = members.list(name);
        let read: Option<BTreeSet<u32>> = items.iter().map(number).collect();
        if read.is_none() {
            members.problem(format!("{name} must be a list of numbers"));
        }
        read.unwrap_or_default()
    };
    let (hosts, queries) = (numbers("host_ids"), numbers("query_ids"));
    members.finish();
    fine(problems)?;
    Ok((hosts, queries))
}

/// `1,2,3`
pub(super) fn numbers(name: &str, text: &str) -> Result<BTreeSet<u32>, Fault> {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    parts
        .map(|part| part.parse().map_err(|_| ()))
        .collect::<Result<_, ()>>()
        .map_err(|()| Fault::parameter(name, "must be whole numbers separated by commas"))
}

fn number(item: &Value) -> Option<u32> {
    item.as_u64().and_then(|number| u32::try_from(number).ok())
}

fn read<T: Ord>(
    body: Value,
    item: impl Fn(&Value) -> Result<Option<T>, &'static str>,
) -> Result<LiveRequest<T>, Fault> {
    let mut problems = Vec::new();
    let mut members = Members::of("live query".into(), body, &mut problems);
    let sql = members.text("query");
    let query_id = members.count("query_id").filter(|id| *id > 0);
    let selected = members
        .value("selected")
        .unwrap_or_else(|| Value::Object(Default::default()));
    let choice = match query_id {
        Some(id) => Choice::Saved(QueryId(id)),
        None => {
            members.check(check::sql(&sql));
            Choice::Sql(sql)
        }
    };
    let mut selected = Members::of("selected".into(), selected, members.problems());
    let mut names = |name: &'static str| -> BTreeSet<T> {
        let items = selected.list(name);
        if items.len() > NAMED_MAX {
            selected.problem(format!("{name}: at most {NAMED_MAX}; use a label for more"));
        }
        let read: Result<Vec<Option<T>>, _> = items.iter().take(NAMED_MAX).map(&item).collect();
        match read {
            Ok(read) => read.into_iter().flatten().collect(),
            Err(reason) => {
                selected.problem(format!("{name} {reason}"));
                BTreeSet::new()
            }
        }
    };
    let (hosts, labels) = (names("hosts"), names("labels"));
    selected.unsupported(&["teams", "team_ids", "fleets", "fleet_ids"]);
    selected.finish();
    members.unsupported(&["team_id", "fleet_id"]);
    members.finish();
    fine(problems)?;
    Ok(LiveRequest {
        choice,
        hosts,
        labels,
    })
}

fn fine(problems: Vec<Reason>) -> Result<(), Fault> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(Fault::invalid(problems))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn empty_texts_are_nobody() {
        let body = json!({
            "query": "SELECT 1", "query_id": null,
            "selected": {"hosts": [""], "labels": ["All Hosts", " "]},
        });
        let request = by_names(body).unwrap();
        assert_eq!(request.choice, Choice::Sql("SELECT 1".into()));
        assert_eq!(request.hosts, BTreeSet::new());
        assert_eq!(request.labels, ["All Hosts".to_owned()].into());
    }

    #[test]
    fn a_saved_query_needs_no_text() {
        let body = json!({"query_id": 4, "selected": {"hosts": [1, "2"], "labels": null}});
        let request = by_ids(body).unwrap();
        assert_eq!(request.choice, Choice::Saved(QueryId(4)));
        assert_eq!(request.hosts, [1, 2].into());
        assert!(
            by_ids(json!({"query": "SELECT 1", "query_id": 0})).is_ok(),
            "0 is none"
        );
    }

    #[test]
    fn mistakes_are_named() {
        let body = json!({
            "query": " ; ", "select": {}, "selected": {"hosts": ["x"], "labels": 1, "teams": [2]},
        });
        let text = format!("{:?}", by_ids(body).unwrap_err());
        for part in [
            "query must not be empty",
            "hosts must be numbers",
            "labels must be a list",
            "teams is not supported",
            "did you mean",
        ] {
            assert!(text.contains(part), "{part:?} not in {text}");
        }
        assert!(by_names(json!([])).is_err());
        assert!(of_one_host(json!({"query": ""})).is_err());
        assert!(of_saved(json!({"host_ids": ["1"]})).is_err());
        let many: Vec<u32> = (0..=10_000).collect();
        assert!(by_ids(json!({"query": "SELECT 1", "selected": {"hosts": many}})).is_err());
    }

    #[test]
    fn numbers_are_separated_by_commas() {
        assert_eq!(numbers("x", "1, 2,,2").unwrap(), [1, 2].into());
        assert!(numbers("x", "1;2").is_err());
        let (hosts, queries) = of_saved(json!({"host_ids": [3], "query_ids": [4, 5]})).unwrap();
        assert_eq!((hosts, queries), ([3].into(), [4, 5].into()));
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            let name = prop_oneof![
                Just("query".to_owned()),
                Just("query_id".to_owned()),
                Just("selected".to_owned()),
                Just("hosts".to_owned()),
                Just("labels".to_owned()),
                "[a-z]{1,5}",
            ];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((name, inner), 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn nothing_panics_and_what_is_taken_is_sound(body in json_value()) {
            if let Ok(request) = by_names(body.clone()) {
                prop_assert!(request.hosts.iter().all(|name| !name.is_empty()));
                if let Choice::Sql(sql) = request.choice {
                    prop_assert!(check::sql(&sql).is_ok());
                }
            }
            let _ = by_ids(body);
        }
    }
}
