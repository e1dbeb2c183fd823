//! Options as flat names, so that flags, environment and file are one mechanism.

use std::str::FromStr;

use serde_json::Value;

use super::sections::{
    AgentCheck, BasicAuth, Carver, Claim, Dns, Filesystem, Logging, Mysql, MysqlReadReplica,
    Osquery, Redis, Server, Session, State, Tls, Tune, Workers,
};
use super::{Config, Limits, Problem};
use crate::secret::MASK;

/// Names and helps of a section's fields.
type Help = &'static [(&'static str, &'static str)];

/// One option.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// Where it stands: `["server", "address"]`.
    pub path: Vec<&'static str>,
    /// One sentence.
    pub help: &'static str,
    /// How its text is read.
    pub kind: KeyKind,
    /// Its default as JSON.
    pub default: Value,
}

/// How an option's text becomes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// `true` or `false`.
    Bool,
    /// Comma-separated texts.
    List,
    /// A whole number.
    Number,
    /// Anything; durations such as `90s` and `1h30m` are texts too.
    Text,
}

impl Key {
    /// `server_address`: the flag without its dashes.
    pub fn flag(&self) -> String {
        self.path.join("_")
    }

    /// `FLEET_SERVER_ADDRESS`.
    pub fn variable(&self) -> String {
        format!("FLEET_{}", self.flag().to_uppercase())
    }

    /// `server.address`.
    pub fn dotted(&self) -> String {
        self.path.join(".")
    }

    /// Whether its value must not be shown.
    pub fn is_secret(&self) -> bool {
        self.path.last() == Some(&"password")
    }

    fn parse(&self, text: &str) -> Result<Value, OverlayError> {
        let bad = |wanted| OverlayError {
            key: self.dotted(),
            wanted,
        };
        match self.kind {
            KeyKind::Bool => bool::from_str(text.trim())
                .map(Value::from)
                .map_err(|_| bad("true or false")),
            KeyKind::List => Ok(text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .collect()),
            KeyKind::Number => u64::from_str(text.trim())
                .map(Value::from)
                .map_err(|_| bad("a whole number")),
            KeyKind::Text => Ok(Value::from(text)),
        }
    }
}

/// A text that an option does not take. The text itself is not repeated: it may be a secret in the wrong place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: not {wanted}")]
pub struct OverlayError {
    /// The option.
    pub key: String,
    /// What it takes.
    pub wanted: &'static str,
}

/// Sets one option in a JSON tree (as read from the file) from the text of a flag or variable.
pub fn overlay(tree: &mut Value, key: &Key, text: &str) -> Result<(), OverlayError> {
    let value = key.parse(text)?;
    let mut at = tree;
    for part in &key.path {
        if !at.is_object() {
            *at = Value::Object(serde_json::Map::new());
        }
        let Value::Object(members) = at else {
            return Ok(());
        };
        at = members.entry(*part).or_insert(Value::Null);
    }
    *at = value;
    Ok(())
}

impl Config {
    /// Every option, in the order of the documentation.
    pub fn keys() -> Vec<Key> {
        let defaults = serde_json::to_value(Self::default()).unwrap_or_default();
        let sections: [(&[&str], Help); 18] = [
            (&["server"], Server::HELP),
            (&["tls"], Tls::HELP),
            (&["addresses", "claim"], Claim::HELP),
            (&["addresses", "dns"], Dns::HELP),
            (&["addresses", "agent_check"], AgentCheck::HELP),
            (&["limits"], Limits::HELP),
            (&["tune"], Tune::HELP),
            (&["state"], State::HELP),
            (&["workers"], Workers::HELP),
            (&["mysql"], Mysql::HELP),
            (&["mysql_read_replica"], MysqlReadReplica::HELP),
            (&["redis"], Redis::HELP),
            (&["osquery"], Osquery::HELP),
            (&["logging"], Logging::HELP),
            (&["filesystem"], Filesystem::HELP),
            (&["carver"], Carver::HELP),
            (&["session"], Session::HELP),
            (&["prometheus", "basic_auth"], BasicAuth::HELP),
        ];
        let mut keys = Vec::new();
        for (section, help) in sections {
            for (name, help) in help {
                let path: Vec<_> = section.iter().copied().chain([*name]).collect();
                let pointer = format!("/{}", path.join("/"));
                let default = defaults.pointer(&pointer).cloned().unwrap_or_default();
                let kind = match default {
                    Value::Bool(_) => KeyKind::Bool,
                    Value::Array(_) => KeyKind::List,
                    Value::Number(_) => KeyKind::Number,
                    _ => KeyKind::Text,
                };
                keys.push(Key {
                    path,
                    help: help.trim(),
                    kind,
                    default,
                });
            }
        }
        keys
    }

    /// The configuration as JSON, secrets masked.
    pub fn masked(&self) -> Value {
        let mut tree = serde_json::to_value(self).unwrap_or_default();
        for key in Self::keys().iter().filter(|key| key.is_secret()) {
            let pointer = format!("/{}", key.path.join("/"));
            if let Some(value) = tree.pointer_mut(&pointer)
                && value.as_str().is_some_and(|text| !text.is_empty())
            {
                *value = Value::from(MASK);
            }
        }
        tree
    }

    /// The configuration from a JSON tree, unknown options refused. `tree` may be null.
    pub fn from_tree(tree: Value) -> Result<Self, Problem> {
        if tree.is_null() {
            return Ok(Self::default());
        }
        serde_json::from_value(tree).map_err(|error| Problem(error.to_string()))
    }
}

/// Durations as texts such as `90s` and `1h30m`, as Fleet writes them.
pub(super) mod span {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        span: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let text = humantime::format_duration(*span)
            .to_string()
            .replace(' ', "");
        serializer.serialize_str(&text)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.trim() == "0" {
            return Ok(Duration::ZERO);
        }
        humantime::parse_duration(text.trim()).map_err(|_| {
            serde::de::Error::custom(format!("{text:?} is not a duration such as 90s or 1h30m"))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(dotted: &str) -> Key {
        Config::keys()
            .into_iter()
            .find(|key| key.dotted() == dotted)
            .unwrap()
    }

    #[test]
    fn every_option_is_listed_with_help_and_default() {
        fn leaves(value: &Value) -> usize {
            value
                .as_object()
                .map_or(1, |members| members.values().map(leaves).sum())
        }
        let keys = Config::keys();
        assert_eq!(
            keys.len(),
            leaves(&serde_json::to_value(Config::default()).unwrap())
        );
        for key in keys {
            assert!(
                !key.help.is_empty() && !key.default.is_null(),
                "{}",
                key.dotted()
            );
        }
    }

    #[test]
    fn texts_overlay_the_file() {
        let mut tree = json!({"server": {"tls": false}});
        overlay(&mut tree, &key("server.address"), "127.0.0.1:1, [::1]:2").unwrap();
        overlay(&mut tree, &key("workers.count"), "3").unwrap();
        overlay(&mut tree, &key("osquery.detail_update_interval"), "1h30m").unwrap();
        overlay(&mut tree, &key("prometheus.basic_auth.username"), "p").unwrap();
        let config = Config::from_tree(tree).unwrap();
        assert_eq!(config.server.address, ["127.0.0.1:1", "[::1]:2"]);
        assert!(!config.server.tls);
        assert_eq!(config.workers.count, 3);
        assert_eq!(config.osquery.detail_update_interval.as_secs(), 5400);
        assert_eq!(config.prometheus.basic_auth.username, "p");
    }

    #[test]
    fn wrong_texts_are_named_without_being_repeated() {
        let error = overlay(&mut Value::Null, &key("workers.count"), "hunter2").unwrap_err();
        assert_eq!(error.to_string(), "workers.count: not a whole number");
    }

    #[test]
    fn unknown_options_are_refused() {
        let problem = Config::from_tree(json!({"server": {"adress": "x"}})).unwrap_err();
        assert!(problem.0.contains("adress"), "{problem}");
    }

    #[test]
    fn secrets_are_masked() {
        let mut config = Config::default();
        config.mysql.password = crate::secret::Secret::new("hunter2");
        let shown = config.masked().to_string() + &format!("{config:?}");
        assert!(!shown.contains("hunter2"));
        assert_eq!(config.masked()["redis"]["password"], "");
    }
}
