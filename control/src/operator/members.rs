//! Reads a document member by member, so that every mistake is named and none is passed over in silence. Pure.

use serde_json::{Map, Value};

use super::fault::Reason;

/// A document that is being read. [`Members::finish`] refuses what nobody has asked for.
pub(super) struct Members<'p> {
    subject: String,
    rest: Map<String, Value>,
    known: Vec<&'static str>,
    problems: &'p mut Vec<Reason>,
}

impl<'p> Members<'p> {
    /// Begins with `value`; `subject` names the document in problems, such as `query "processes"`.
    pub(super) fn of(subject: String, value: Value, problems: &'p mut Vec<Reason>) -> Self {
        let rest = match value {
            Value::Object(members) => members,
            _ => {
                problems.push(Reason::new(&subject, "must be an object"));
                Map::new()
            }
        };
        Self {
            subject,
            rest,
            known: Vec::new(),
            problems,
        }
    }

    /// What the document is called in problems.
    pub(super) fn subject(&self) -> &str {
        &self.subject
    }

    /// Notes a problem.
    pub(super) fn problem(&mut self, reason: impl Into<String>) {
        self.problems.push(Reason::new(&self.subject, reason));
    }

    /// Notes a problem, if there is one.
    pub(super) fn check(&mut self, outcome: Result<(), String>) {
        if let Err(reason) = outcome {
            self.problem(reason);
        }
    }

    /// Where the problems of a document within this one go.
    pub(super) fn problems(&mut self) -> &mut Vec<Reason> {
        self.problems
    }

    /// Any value; `None` when absent or null.
    pub(super) fn value(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.rest
            .shift_remove(name)
            .filter(|value| !value.is_null())
    }

    /// A text; `""` when absent.
    pub(super) fn text(&mut self, name: &'static str) -> String {
        self.text_if_any(name).unwrap_or_default()
    }

    /// A text.
    pub(super) fn text_if_any(&mut self, name: &'static str) -> Option<String> {
        match self.value(name)? {
            Value::String(text) => Some(text),
            _ => {
                self.problem(format!("{name} must be a text"));
                None
            }
        }
    }

    /// A whole number, or a text that holds one.
    pub(super) fn count(&mut self, name: &'static str) -> Option<u32> {
        let number = match self.value(name)? {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        let count = number.and_then(|number| u32::try_from(number).ok());
        if count.is_none() {
            self.problem(format!("{name} must be a whole number"));
        }
        count
    }

    /// True or false.
    pub(super) fn flag(&mut self, name: &'static str) -> Option<bool> {
        match self.value(name)? {
            Value::Bool(flag) => Some(flag),
            _ => {
                self.problem(format!("{name} must be true or false"));
                None
            }
        }
    }

    /// One of some words; `None` when absent or empty.
    pub(super) fn word<T: Copy>(
        &mut self,
        name: &'static str,
        words: &[(&'static str, T)],
    ) -> Option<T> {
        let text = self.text_if_any(name).filter(|text| !text.is_empty())?;
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            self.problem(format!(
                "{name} must be {}, not {text:?}",
                known.join(" or ")
            ));
        }
        found.map(|(_, meaning)| *meaning)
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, name: &'static str) -> Option<Vec<String>> {
        let value = self.value(name)?;
        let texts: Option<Vec<String>> = value.as_array().and_then(|items| {
            items
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect()
        });
        if texts.is_none() {
            self.problem(format!("{name} must be a list of texts"));
        }
        texts
    }

    /// A list of anything; empty when absent.
    pub(super) fn list(&mut self, name: &'static str) -> Vec<Value> {
        match self.value(name) {
            None => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => {
                self.problem(format!("{name} must be a list"));
                Vec::new()
            }
        }
    }

    /// Members that Fleet writes into such documents and that say nothing here.
    pub(super) fn ignore(&mut self, names: &[&'static str]) {
        for name in names {
            self.rest.shift_remove(*name);
        }
    }

    /// Members that would change what the document does, and that this server does not have: taken while empty.
    pub(super) fn unsupported(&mut self, names: &[&'static str]) {
        for name in names {
            if self
                .rest
                .shift_remove(*name)
                .is_some_and(|value| !is_empty(&value))
            {
                self.problem(format!(
                    "{name} is not supported by this server; leave it out"
                ));
            }
        }
    }

    /// Refuses every member that is left.
    pub(super) fn finish(mut self) {
        for name in std::mem::take(&mut self.rest).keys() {
            let near = similar::get_close_matches(name.as_str(), &self.known, 1, 0.7);
            let hint = near
                .first()
                .map(|near| format!("; did you mean {near:?}?"))
                .unwrap_or_default();
            self.problem(format!("unknown member {name:?}{hint}"));
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_mistake_is_named() {
        let mut problems = Vec::new();
        let document = json!({
            "name": 1, "intervall": 5, "shard": "x", "snapshot": "yes", "labels": [1], "zzz": 0,
            "logging": "all", "team": "red", "id": 7,
        });
        let mut members = Members::of("query \"a\"".into(), document, &mut problems);
        assert_eq!(members.text("name"), "");
        assert_eq!(members.count("interval"), None);
        assert_eq!(members.count("shard"), None);
        assert_eq!(members.flag("snapshot"), None);
        assert_eq!(members.texts("labels"), None);
        assert_eq!(
            members.word("logging", &[("snapshot", 1), ("differential", 2)]),
            None
        );
        members.ignore(&["id"]);
        members.unsupported(&["team"]);
        members.finish();
        assert!(problems.iter().all(|problem| problem.name == "query \"a\""));
        let reasons: Vec<_> = problems
            .iter()
            .map(|problem| problem.reason.as_str())
            .collect();
        assert_eq!(
            reasons,
            [
                "name must be a text",
                "shard must be a whole number",
                "snapshot must be true or false",
                "labels must be a list of texts",
                "logging must be snapshot or differential, not \"all\"",
                "team is not supported by this server; leave it out",
                "unknown member \"intervall\"; did you mean \"interval\"?",
                "unknown member \"zzz\"",
            ]
        );
    }

    #[test]
    fn null_is_absent() {
        let mut problems = Vec::new();
        let mut members = Members::of(
            "x".into(),
            json!({"a": null, "b": "60", "c": ""}),
            &mut problems,
        );
        assert_eq!(members.text_if_any("a"), None);
        assert_eq!(members.count("b"), Some(60));
        members.unsupported(&["c"]);
        members.finish();
        assert_eq!(problems, []);
    }
}
