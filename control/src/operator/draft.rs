//! Documents that nobody sent: what is copied from another product's database passes the checks of operators' documents.
//! Pure.

use fleet_protocol::secret::Secret;
use serde_json::{Value, json};

use super::fault::Reason;
use super::spec::{self, Documents, Specs};
use crate::model::label::LabelSpec;
use crate::model::pack::PackSpec;
use crate::model::query::QuerySpec;

/// What is wrong with a document, a sentence each.
type Checked<T> = Result<T, Vec<String>>;

/// One query.
pub(crate) fn query(document: Value) -> Checked<QuerySpec> {
    let documents = Documents {
        queries: vec![document],
        ..Documents::default()
    };
    one(read(documents)?.queries)
}

/// One label.
pub(crate) fn label(document: Value) -> Checked<LabelSpec> {
    let documents = Documents {
        labels: vec![document],
        ..Documents::default()
    };
    one(read(documents)?.labels)
}

/// One pack.
pub(crate) fn pack(document: Value) -> Checked<PackSpec> {
    let documents = Documents {
        packs: vec![document],
        ..Documents::default()
    };
    one(read(documents)?.packs)
}

/// `{"agent_options": …}`; with what is taken all the same.
pub(crate) fn agent_options(document: Value) -> Checked<(Value, Vec<String>)> {
    let documents = Documents {
        config: Some(document),
        ..Documents::default()
    };
    let specs = read(documents)?;
    let options = specs.config.and_then(|config| config.agent_options);
    Ok((options.unwrap_or_else(|| json!({})), specs.warnings))
}

/// One enroll secret. No sentence repeats it.
pub(crate) fn secret(secret: &Secret) -> Checked<Secret> {
    let documents = Documents {
        enroll_secret: Some(json!({ "secrets": [{ "secret": secret.reveal() }] })),
        ..Documents::default()
    };
    one(read(documents)?.secrets.unwrap_or_default())
}

fn read(documents: Documents) -> Checked<Specs> {
    spec::read(documents).map_err(|reasons| reasons.into_iter().map(sentence).collect())
}

fn sentence(Reason { name, reason }: Reason) -> String {
    format!("{name}: {reason}")
}

fn one<T>(specs: Vec<T>) -> Checked<T> {
    let mut specs = specs.into_iter();
    specs
        .next()
        .ok_or_else(|| vec!["the document is empty".to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_checked_one_by_one() {
        let good = query(json!({"name": "up", "query": "SELECT 1", "interval": 60})).unwrap();
        assert_eq!((good.name.as_str(), good.interval), ("up", 60));
        let bad = query(json!({"name": "up", "query": " "})).unwrap_err();
        assert_eq!(bad, ["query \"up\": query must not be empty"]);
        let bad = label(json!({"name": "", "query": "SELECT 1"})).unwrap_err();
        assert_eq!(bad.len(), 1, "{bad:?}");
        let bad = pack(json!({"name": "p", "queries": [{"query": "a"}]})).unwrap_err();
        assert!(bad[0].contains("interval is missing"), "{bad:?}");
        let (options, _) = agent_options(json!({"agent_options": {"config": {}}})).unwrap();
        assert_eq!(options, json!({"config": {}}));
        assert!(agent_options(json!({"agent_options": {"typo": {}}})).is_err());
    }

    #[test]
    fn a_bad_secret_is_not_repeated() {
        let good = Secret::new("a good secret of some length");
        assert_eq!(secret(&good), Ok(good.clone()));
        let bad = secret(&Secret::new(" hunter2 ")).unwrap_err();
        assert!(!bad.join("").contains("hunter2"), "{bad:?}");
    }
}
