//! osquery's own pack files: JSON with comments, continued lines and trailing commas. Pure.
//!
//! A file becomes one pack that brings its own SQL, so deleting the pack deletes everything that came with it, and its
//! log names (`pack/NAME/QUERY`) are those of osquery reading the file itself.

use serde_json::{Map, Value, json};

/// Reads a file as packs for hosts in `labels`. `name` is the file's, without its ending.
pub(super) fn read(name: &str, text: &str, labels: &[String]) -> Result<Vec<Value>, String> {
    let file: Value = serde_json::from_str(&plain(text)).map_err(|error| error.to_string())?;
    let Value::Object(mut members) = file else {
        return Err("must be an object".into());
    };
    if members.contains_key("queries") {
        return Ok(vec![pack(name, members, labels)?]);
    }
    match members.shift_remove("packs") {
        Some(Value::Object(packs)) if members.is_empty() => packs
            .into_iter()
            .map(|(name, body)| match body {
                Value::Object(body) => pack(&name, body, labels),
                _ => Err(format!("pack {name:?} must be an object; apply its file by itself")),
            })
            .collect(),
        Some(_) => Err(
            "is a whole osquery configuration; put its packs into files of their own and the rest under agent_options \
             of a document of kind config"
                .into(),
        ),
        None => Err("has no queries; osquery pack files hold an object \"queries\"".into()),
    }
}

fn pack(name: &str, mut members: Map<String, Value>, labels: &[String]) -> Result<Value, String> {
    let queries = match members.shift_remove("queries") {
        Some(Value::Object(queries)) => queries,
        _ => return Err(format!("pack {name:?}: queries must be an object")),
    };
    let queries: Result<Vec<Value>, String> = queries
        .into_iter()
        .map(|(query, body)| {
            pack_query(&query, body)
                .map_err(|reason| format!("pack {name:?}, query {query:?}: {reason}"))
        })
        .collect();
    let mut pack = Map::new();
    pack.insert("name".into(), name.into());
    for member in ["description", "platform", "version", "discovery"] {
        if let Some(value) = members.shift_remove(member) {
            pack.insert(member.into(), value);
        }
    }
    if let Some(shard) = members.shift_remove("shard") {
        pack.insert("shard".into(), number(shard));
    }
    // Whom to call; osquery reads it for its own tables only.
    members.shift_remove("oncall");
    if let Some(other) = members.keys().next() {
        return Err(format!("pack {name:?}: {other} is not supported in packs"));
    }
    pack.insert("targets".into(), json!({ "labels": labels }));
    pack.insert("queries".into(), queries?.into());
    Ok(Value::Object(pack))
}

fn pack_query(name: &str, body: Value) -> Result<Value, String> {
    let Value::Object(mut members) = body else {
        return Err("must be an object".into());
    };
    let mut query = Map::new();
    query.insert("name".into(), name.into());
    // What the query is good for; osquery ignores it, and a description may stand beside it.
    let value = members.shift_remove("value");
    if let Some(description) = members.shift_remove("description").or(value) {
        query.insert("description".into(), description);
    }
    query.insert(
        "sql".into(),
        members.shift_remove("query").ok_or("query is missing")?,
    );
    let interval = members.shift_remove("interval").map(number);
    // osquery's own default.
    query.insert("interval".into(), interval.unwrap_or_else(|| 3600.into()));
    if let Some(shard) = members.shift_remove("shard") {
        query.insert("shard".into(), number(shard));
    }
    for member in ["snapshot", "removed"] {
        if let Some(value) = members.shift_remove(member) {
            query.insert(member.into(), flag(value));
        }
    }
    let blacklist = members.shift_remove("blacklist");
    if let Some(value) = members.shift_remove("denylist").or(blacklist) {
        query.insert("denylist".into(), flag(value));
    }
    for member in ["platform", "version"] {
        if let Some(value) = members.shift_remove(member) {
            query.insert(member.into(), value);
        }
    }
    match members.keys().next() {
        None => Ok(Value::Object(query)),
        Some(other) => Err(format!("unknown member {other:?}")),
    }
}

/// A number that may be written as a text; the server judges what is neither.
fn number(value: Value) -> Value {
    match value
        .as_str()
        .and_then(|text| text.trim().parse::<u64>().ok())
    {
        Some(number) => number.into(),
        None => value,
    }
}

/// True or false as osquery takes them: also as number or text.
fn flag(value: Value) -> Value {
    let word = match &value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.to_lowercase(),
        _ => return value,
    };
    match word.as_str() {
        "1" | "true" | "yes" | "t" | "y" => true.into(),
        "0" | "false" | "no" | "f" | "n" => false.into(),
        _ => value,
    }
}

/// The text as plain JSON: comments (`//`, `#`, `/* */`) and trailing commas dropped, lines that end in a backslash
/// joined.
fn plain(text: &str) -> String {
    let text = text.replace("\\\r\n", "").replace("\\\n", "");
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(next) = rest.chars().next() {
        let length = match next {
            '"' => string_bytes(rest),
            '#' => line_bytes(rest),
            '/' if rest.starts_with("//") => line_bytes(rest),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |at| at + 2),
            other => other.len_utf8(),
        };
        let (token, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
        rest = after;
        match next {
            '#' | '/' => plain.push(' '),
            ']' | '}' => {
                let kept = plain.trim_end();
                if let Some(kept) = kept.strip_suffix(',') {
                    plain.truncate(kept.len());
                }
                plain.push_str(token);
            }
            _ => plain.push_str(token),
        }
    }
    plain
}

/// Up to, not including, the line's end.
fn line_bytes(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

/// A string with its quotes.
fn string_bytes(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all_hosts() -> Vec<String> {
        vec!["All Hosts".into()]
    }

    #[test]
    fn a_file_of_osquery_becomes_a_pack() {
        let text = r#"
            // Things to look at
            {
              "platform": "linux", # not elsewhere
              "version": "1.4.5",
              "shard": "50",
              "discovery": ["SELECT pid FROM processes WHERE name = 'x'"],
              "queries": {
                "a": {
                  "query": "SELECT * FROM a WHERE url LIKE 'http://%' \
                    AND name != '# no comment, /* really */';",
                  "interval": "3600", /* hourly */
                  "value": "why",
                  "removed": "false",
                  "blacklist": false,
                },
                "b": {"query": "SELECT \"x\"", "interval": 60, "snapshot": true, "description": "what", "value": "why"},
                "c": {"query": "SELECT 1"}
              },
            }"#;
        let packs = read("mine", text, &all_hosts()).unwrap();
        assert_eq!(
            packs,
            [json!({
                "name": "mine", "platform": "linux", "version": "1.4.5", "shard": 50,
                "discovery": ["SELECT pid FROM processes WHERE name = 'x'"],
                "targets": {"labels": ["All Hosts"]},
                "queries": [
                    {
                        "name": "a", "description": "why", "interval": 3600, "removed": false, "denylist": false,
                        "sql": "SELECT * FROM a WHERE url LIKE 'http://%'                     AND name != '# no comment, /* really */';",
                    },
                    {"name": "b", "description": "what", "sql": "SELECT \"x\"", "interval": 60, "snapshot": true},
                    {"name": "c", "sql": "SELECT 1", "interval": 3600},
                ],
            })]
        );
    }

    #[test]
    fn several_packs_may_stand_in_one_file() {
        let text =
            r#"{"packs": {"a": {"queries": {"x": {"query": "SELECT 1"}}}, "b": {"queries": {}}}}"#;
        let packs = read("file", text, &all_hosts()).unwrap();
        assert_eq!(packs[0]["name"], "a");
        assert_eq!(packs[1]["queries"], json!([]));
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        for (text, part) in [
            (r#"{"queries": {"a": {"interval": 5}}}"#, "query is missing"),
            (
                r#"{"queries": {"a": {"query": "SELECT 1", "intervall": 5}}}"#,
                "intervall",
            ),
            (r#"{"queries": {}, "file_paths": {}}"#, "file_paths"),
            (r#"{"packs": {"a": "/etc/a.conf"}}"#, "by itself"),
            (
                r#"{"options": {}, "packs": {}}"#,
                "whole osquery configuration",
            ),
            (r#"{"schedule": {}}"#, "no queries"),
            ("[]", "object"),
            ("{", "EOF"),
        ] {
            let error = read("p", text, &all_hosts()).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn plain_json_stays_what_it_is(texts in prop::collection::vec("\\PC{0,30}", 0..4)) {
            let value = json!({"a": texts, "b": [{}, []]});
            for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
                prop_assert_eq!(serde_json::from_str::<Value>(&plain(&text)).unwrap(), value.clone());
            }
        }

        #[test]
        fn garbage_never_panics(text in "[\\\\\"/*#\n,{}\\[\\]aé ]{0,60}") {
            let _ = plain(&text);
        }
    }
}
