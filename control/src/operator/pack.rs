//! Packs as operators write them, and as the store keeps them. Pure.

use serde_json::Value;

use super::check;
use super::fault::Reason;
use super::members::Members;
use super::spec::{platform_words, subject};
use crate::model::pack::{PackQuery, PackSpec, PackTargets};

/// Reads one pack.
pub(super) fn read(
    value: Value,
    problems: &mut Vec<Reason>,
    warnings: &mut Vec<String>,
) -> PackSpec {
    let mut members = Members::of(subject("pack", &value), value, problems);
    let mut spec = PackSpec {
        name: members.text("name"),
        description: members.text("description"),
        platform: platform_words(&members.text("platform")),
        version: members.text("version"),
        shard: members.count("shard").filter(|percent| *percent > 0),
        discovery: members.texts("discovery").unwrap_or_default(),
        disabled: members.flag("disabled").unwrap_or_default(),
        targets: PackTargets::default(),
        queries: Vec::new(),
    };
    if let Some(targets) = members.value("targets") {
        let subject = format!("{}, targets", members.subject());
        let mut targets = Members::of(subject, targets, members.problems());
        spec.targets.labels = targets.texts("labels").unwrap_or_default();
        targets.unsupported(&["teams", "hosts", "fleets"]);
        targets.finish();
    }
    for query in members.list("queries") {
        let within = members.subject().to_owned();
        let query = read_query(&within, query, members.problems(), warnings);
        spec.queries.push(query);
    }
    members.ignore(&[
        "created_at",
        "host_ids",
        "id",
        "label_ids",
        "type",
        "updated_at",
    ]);
    members.unsupported(&["team", "team_id", "team_ids"]);
    members.check(check::name(&spec.name));
    if spec.name == "*" {
        members.problem("name \"*\" has a meaning of its own for osquery");
    }
    members.check(check::platform(&spec.platform));
    members.check(check::version(&spec.version));
    members.check(check::shard(spec.shard.unwrap_or_default()));
    for sql in &spec.discovery {
        members.check(check::sql(sql).map_err(|reason| format!("discovery: {reason}")));
    }
    let mut names: Vec<_> = spec.queries.iter().map(query_name).collect();
    names.sort_unstable();
    for pair in names.windows(2) {
        if let [first, second] = pair
            && first == second
        {
            members.problem(format!("query {first:?} stands in it more than once"));
        }
    }
    members.finish();
    spec
}

/// The name under which osquery logs a pack's query.
pub(super) fn query_name(query: &PackQuery) -> &str {
    if query.name.is_empty() {
        &query.query
    } else {
        &query.name
    }
}

/// Members that the store adds and that a spec which was got from here still has.
const STORED_MEMBERS: [&str; 6] = [
    "created_at",
    "id",
    "pack_id",
    "query_id",
    "query_name",
    "updated_at",
];

fn read_query(
    within: &str,
    value: Value,
    problems: &mut Vec<Reason>,
    warnings: &mut Vec<String>,
) -> PackQuery {
    let text = |name| {
        value
            .get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    let subject = match text("name").or(text("query")) {
        Some(name) => format!("{within}, query {name:?}"),
        None => format!("{within}, query without a name"),
    };
    let mut members = Members::of(subject, value, problems);
    let mut query = PackQuery {
        query: members.text("query"),
        name: members.text("name"),
        description: members.text("description"),
        interval: 0,
        snapshot: members.flag("snapshot"),
        removed: members.flag("removed"),
        shard: members.count("shard"),
        platform: members
            .text_if_any("platform")
            .map(|text| platform_words(&text))
            .filter(|text| !text.is_empty()),
        version: members
            .text_if_any("version")
            .filter(|text| !text.is_empty()),
        denylist: members.flag("denylist"),
        sql: members.text_if_any("sql"),
    };
    match members.count("interval") {
        Some(seconds) => query.interval = seconds,
        None => members.problem("interval is missing"),
    }
    if query.name == query.query {
        query.name.clear();
    }
    members.ignore(&STORED_MEMBERS);
    match &query.sql {
        Some(sql) => {
            members.check(check::sql(sql));
            if !query.query.is_empty() {
                members.problem("query names another query while sql is given; use name");
            }
        }
        None if query.query.is_empty() => {
            members.problem("query must name the query that runs");
        }
        None => {}
    }
    members.check(check::name(query_name(&query)));
    members.check(check::interval(query.interval));
    members.check(check::shard(query.shard.unwrap_or_default()));
    members.check(check::platform(
        query.platform.as_deref().unwrap_or_default(),
    ));
    members.check(check::version(query.version.as_deref().unwrap_or_default()));
    if query.interval == 0 {
        let subject = members.subject();
        warnings.push(format!(
            "{subject} never runs: osquery drops a query with interval 0"
        ));
    }
    members.finish();
    query
}

/// A spec as a document; what is not set is left out of its queries.
pub(super) fn document(spec: &PackSpec) -> Value {
    let mut document = serde_json::to_value(spec).unwrap_or_default();
    if spec.version.is_empty()
        && let Some(members) = document.as_object_mut()
    {
        members.shift_remove("version");
    }
    let queries = document.get_mut("queries").and_then(Value::as_array_mut);
    for query in queries
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        query.retain(|_, value| value.as_str() != Some(""));
    }
    document
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::operator::spec::{self, Documents};

    fn of_pack(pack: Value) -> Documents {
        Documents {
            packs: vec![pack],
            ..Documents::default()
        }
    }

    fn reasons(documents: Documents) -> Vec<String> {
        let problems = spec::read(documents).unwrap_err();
        let text = |problem: Reason| format!("{}: {}", problem.name, problem.reason);
        problems.into_iter().map(text).collect()
    }

    #[test]
    fn packs_are_read_whole() {
        let written = json!({
            "name": "p", "targets": {"labels": ["All Hosts"], "teams": null},
            "queries": [
                {"query": "q", "name": "q", "interval": "60", "removed": false},
                {"name": "own", "sql": "SELECT 1", "interval": 0},
            ],
        });
        let specs = spec::read(of_pack(written)).unwrap();
        assert_eq!(specs.packs[0].queries[0].name, "");
        assert_eq!(specs.packs[0].queries[0].interval, 60);
        assert_eq!(
            specs.warnings,
            ["pack \"p\", query \"own\" never runs: osquery drops a query with interval 0"]
        );
        let again = spec::read(of_pack(document(&specs.packs[0]))).unwrap();
        assert_eq!(again, specs);
    }

    #[test]
    fn mistakes_in_packs_are_named() {
        assert_eq!(
            reasons(of_pack(json!({
                "name": "p", "target": {"labels": ["x"]},
                "targets": {"label": ["x"], "teams": ["red"]},
                "queries": [{"interval": 5}, {"query": "q", "shard": 101}],
            }))),
            [
                "pack \"p\", targets: teams is not supported by this server; leave it out",
                "pack \"p\", targets: unknown member \"label\"; did you mean \"labels\"?",
                "pack \"p\", query without a name: query must name the query that runs",
                "pack \"p\", query without a name: name must not be empty",
                "pack \"p\", query \"q\": interval is missing",
                "pack \"p\", query \"q\": shard must be between 0 and 100, not 101",
                "pack \"p\": unknown member \"target\"; did you mean \"targets\"?",
            ]
        );
    }
}
