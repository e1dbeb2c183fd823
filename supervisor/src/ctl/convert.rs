//! `ctl convert`: osquery's pack files as documents that `apply` takes, here and at Fleet.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::apply::{self, ALL_HOSTS};
use super::{Failure, Output, document, yaml};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ctl convert -f incident-response.conf > incident-response.yml")]
pub(super) struct Convert {
    /// Pack file of osquery (*.conf); may be repeated.
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Label whose hosts get the packs; may be repeated.
    #[arg(long = "label", value_name = "NAME", default_value = ALL_HOSTS)]
    labels: Vec<String>,
}

impl Convert {
    pub(super) fn run(self) -> Result<Output, Failure> {
        let packs = apply::packs(&self.files, &self.labels)?;
        let print = |document: Value| format!("---\n{}", yaml::print(&document));
        Ok(Output::of(
            documents(packs).into_iter().map(print).collect(),
        ))
    }
}

/// Queries first, each under a name of its own, then packs that refer to them.
fn documents(packs: Vec<Value>) -> Vec<Value> {
    let mut taken = BTreeSet::new();
    let (mut queries, mut referring) = (Vec::new(), Vec::new());
    for pack in packs {
        let Value::Object(mut pack) = pack else {
            continue;
        };
        let pack_name = pack
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let own = match pack.get_mut("queries").map(Value::take) {
            Some(Value::Array(own)) => own,
            _ => Vec::new(),
        };
        let mut references = Vec::new();
        for query in own {
            let Value::Object(mut query) = query else {
                continue;
            };
            let name = query
                .get("name")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let stored = free_name(&mut taken, &pack_name, name);
            let mut spec = Map::new();
            spec.insert("name".into(), stored.clone().into());
            for (member, of) in [("description", "description"), ("query", "sql")] {
                if let Some(value) = query.shift_remove(of) {
                    spec.insert(member.into(), value);
                }
            }
            queries.push(document::wrap("query", Value::Object(spec)));
            query.insert("query".into(), stored.into());
            references.push(Value::Object(query));
        }
        pack.insert("queries".into(), references.into());
        referring.push(document::wrap("pack", Value::Object(pack)));
    }
    queries.append(&mut referring);
    queries
}

/// The query's own name if it is the only one; else with the pack's, and then with a number.
fn free_name(taken: &mut BTreeSet<String>, pack: &str, query: &str) -> String {
    let plain = std::iter::once(query.to_owned());
    let packed = std::iter::once(format!("{pack}/{query}"));
    let counted = (2_u32..).map(|number| format!("{pack}/{query} {number}"));
    let mut names = plain.chain(packed).chain(counted);
    let name = names.find(|name| !taken.contains(name)).unwrap_or_default();
    taken.insert(name.clone());
    name
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::document::Documents;
    use super::super::pack_file;
    use super::*;

    #[test]
    fn a_pack_becomes_queries_and_a_pack_that_apply_takes() {
        let text = r#"{"packs": {
            "a": {"platform": "linux", "queries": {"up": {"query": "SELECT 1", "interval": 60, "description": "why"}}},
            "b": {"queries": {"up": {"query": "SELECT 2", "interval": "60", "snapshot": true}}}
        }}"#;
        let packs = pack_file::read("x", text, &["All Hosts".to_owned()]).unwrap();
        let printed: String = documents(packs)
            .iter()
            .map(|one| format!("---\n{}", yaml::print(one)))
            .collect();
        let mut read = Documents::default();
        read.add("x.yml", &printed).unwrap();
        assert_eq!(
            json!(read.queries),
            json!([{"name": "up", "description": "why", "query": "SELECT 1"}, {"name": "b/up", "query": "SELECT 2"}])
        );
        assert_eq!(
            json!(read.packs),
            json!([
                {"name": "a", "platform": "linux", "targets": {"labels": ["All Hosts"]},
                 "queries": [{"name": "up", "interval": 60, "query": "up"}]},
                {"name": "b", "targets": {"labels": ["All Hosts"]},
                 "queries": [{"name": "up", "interval": 60, "snapshot": true, "query": "b/up"}]},
            ])
        );
    }
}
