//! Files of documents: `{apiVersion: v1, kind, spec}`, several in one YAML file or one JSON object a line. Pure.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Failure, yaml};

/// Documents of all files, as the server takes them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Documents {
    pub(super) queries: Vec<Value>,
    pub(super) labels: Vec<Value>,
    pub(super) packs: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) config: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) enroll_secret: Option<Value>,
}

impl Documents {
    /// Adds every document of a file; `source` names the file in problems.
    pub(super) fn add(&mut self, source: &str, text: &str) -> Result<(), Failure> {
        let documents =
            parse(text).map_err(|error| Failure::Usage(format!("{source}: {error}")))?;
        for (index, document) in documents.into_iter().enumerate() {
            self.add_one(document).map_err(|reason| {
                Failure::Usage(format!("{source}, document {}: {reason}", index + 1))
            })?;
        }
        Ok(())
    }

    /// Whether there is nothing to apply.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn add_one(&mut self, document: Value) -> Result<(), String> {
        let Value::Object(mut members) = document else {
            return Err("must be an object with apiVersion, kind and spec".into());
        };
        if members.contains_key("queries") && !members.contains_key("kind") {
            return Err("looks like an osquery pack file; such files end in .conf".into());
        }
        let kind = match members.shift_remove("kind") {
            Some(Value::String(kind)) => kind,
            _ => return Err("lacks its kind".into()),
        };
        match members.shift_remove("apiVersion") {
            None => {}
            Some(Value::String(version)) if version == "v1" => {}
            Some(other) => return Err(format!("apiVersion must be v1, not {other}")),
        }
        let spec = members
            .shift_remove("spec")
            .filter(|spec| !spec.is_null())
            .ok_or_else(|| format!("kind {kind} lacks its spec"))?;
        if let Some(name) = members.keys().next() {
            return Err(format!(
                "unknown member {name:?} beside apiVersion, kind and spec"
            ));
        }
        match kind.as_str() {
            "query" | "report" => self.queries.push(spec),
            "label" => self.labels.push(spec),
            "pack" => self.packs.push(spec),
            "config" => set(&mut self.config, "config", spec)?,
            "options" => set(&mut self.config, "config", json!({ "agent_options": spec }))?,
            "enroll_secret" => set(&mut self.enroll_secret, "enroll_secret", spec)?,
            "policy" | "team" | "fleet" | "user_roles" | "user" => {
                return Err(format!("kind {kind} is not supported by this server"));
            }
            "host" => return Err("hosts enroll by themselves and cannot be applied".into()),
            _ => {
                return Err(format!(
                    "kind {kind:?} is unknown; use query, label, pack, config or enroll_secret"
                ));
            }
        }
        Ok(())
    }
}

fn set(place: &mut Option<Value>, kind: &str, spec: Value) -> Result<(), String> {
    if place.is_some() {
        return Err(format!(
            "kind {kind} (or options) stands there already, and can be applied once"
        ));
    }
    *place = Some(spec);
    Ok(())
}

fn parse(text: &str) -> Result<Vec<Value>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let is_json = text.trim_start().starts_with(['{', '[']);
    if !is_json {
        return yaml::parse(text);
    }
    let values: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(text)
        .into_iter()
        .collect();
    match values {
        Ok(values) => Ok(values
            .into_iter()
            .flat_map(|value| match value {
                Value::Array(items) => items,
                other => vec![other],
            })
            .collect()),
        // YAML too may begin with a brace.
        Err(error) => yaml::parse(text).map_err(|_| error.to_string()),
    }
}

/// A spec as a document, without the texts and sections that say nothing because they are empty.
pub(super) fn tidy(kind: &str, mut spec: Value) -> Value {
    if let Some(members) = spec.as_object_mut() {
        for name in ["org_info", "server_settings"] {
            if let Some(texts) = members.get_mut(name).and_then(Value::as_object_mut) {
                texts.retain(|_, text| text.as_str() != Some(""));
            }
        }
        members.retain(|name, value| {
            let is_bare_section =
                kind == "config" && name != "agent_options" && *value == Value::Object(Map::new());
            value.as_str() != Some("") && !is_bare_section
        });
    }
    wrap(kind, spec)
}

/// A spec as a document.
pub(super) fn wrap(kind: &str, spec: Value) -> Value {
    let mut document = Map::new();
    document.insert("apiVersion".into(), "v1".into());
    document.insert("kind".into(), kind.into());
    document.insert("spec".into(), spec);
    Value::Object(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Documents, String> {
        let mut documents = Documents::default();
        let outcome = documents.add("f.yml", text);
        outcome
            .map(|()| documents)
            .map_err(|failure| failure.text().to_owned())
    }

    #[test]
    fn every_kind_finds_its_place() {
        let documents = read(
            "apiVersion: v1\nkind: query\nspec: {name: a}\n---\nkind: report\nspec: {name: b}\n---\n\
             kind: pack\nspec: {name: p}\n---\nkind: label\nspec: {name: l}\n---\n\
             kind: config\nspec: {agent_options: {}}\n---\nkind: enroll_secret\nspec: {secrets: []}\n",
        )
        .unwrap();
        assert_eq!(documents.queries.len(), 2);
        assert_eq!(documents.packs.len(), 1);
        assert_eq!(documents.labels.len(), 1);
        assert!(documents.config.is_some() && documents.enroll_secret.is_some());
    }

    #[test]
    fn old_options_become_agent_options() {
        let documents = read("kind: options\nspec:\n  config:\n    options: {a: 1}\n").unwrap();
        assert_eq!(
            documents.config,
            Some(json!({"agent_options": {"config": {"options": {"a": 1}}}}))
        );
        assert!(read("kind: options\nspec: {a: 1}\n---\nkind: config\nspec: {b: 1}\n").is_err());
    }

    #[test]
    fn json_lines_and_lists_are_taken() {
        let line = r#"{"kind":"query","spec":{"name":"a"}}"#;
        assert_eq!(read(&format!("{line}\n{line}\n")).unwrap().queries.len(), 2);
        assert_eq!(read(&format!("[{line},{line}]")).unwrap().queries.len(), 2);
        assert_eq!(
            read("{kind: query, spec: {name: a}}")
                .unwrap()
                .queries
                .len(),
            1
        );
    }

    #[test]
    fn mistakes_are_explained() {
        for (text, part) in [
            ("kind: policy\nspec: {a: 1}", "not supported"),
            ("kind: team\nspec: {a: 1}", "not supported"),
            ("kind: user_roles\nspec: {a: 1}", "not supported"),
            ("kind: qeury\nspec: {a: 1}", "unknown"),
            ("kind: query", "lacks its spec"),
            ("spec: {a: 1}", "lacks its kind"),
            ("kind: query\nspecs: {a: 1}", "lacks its spec"),
            ("kind: query\nspec: {a: 1}\nname: x", "\"name\""),
            ("apiVersion: v2\nkind: query\nspec: {a: 1}", "apiVersion"),
            ("- 1", "must be an object"),
            ("queries: {a: {query: x}}", ".conf"),
            ("a: [", "f.yml"),
            ("{\"kind\": ", "f.yml"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
