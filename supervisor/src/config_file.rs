//! The YAML file as a list of options and texts, so that it goes the same way as flags and variables.
//!
//! The option decides how its value is read: where text is wanted, `password: 0123` stays `0123`. Invariant: no error
//! repeats a value or a line of the file, because it may be a secret.

use std::fmt;
use std::path::Path;

use fleet_protocol::config::{Config, Key, KeyKind};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::fleet_keys;

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a file says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Contents {
    /// Options and their texts, in the file's order.
    pub(crate) options: Vec<(Key, String)>,
    /// Names of Fleet's options that are not used here.
    pub(crate) ignored: Vec<String>,
    /// Names that nobody knows, each with the option that was probably meant.
    pub(crate) unknown: Vec<(String, Option<String>)>,
}

/// Reads a file; the error is a sentence without the file's name.
pub(crate) fn read(path: &Path) -> Result<Contents, String> {
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if metadata.len() > FILE_BYTES_MAX {
        return Err(format!("larger than {FILE_BYTES_MAX} bytes"));
    }
    parse(&std::fs::read_to_string(path).map_err(|error| error.to_string())?)
}

/// Reads a file's text.
pub(crate) fn parse(text: &str) -> Result<Contents, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    let tree: Tree = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| error.without_snippet().to_string())?;
    Ok(tree.0)
}

struct Tree(Contents);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let keys = Config::keys();
        let mut contents = Contents::default();
        let level = Level {
            path: Vec::new(),
            keys: &keys,
            contents: &mut contents,
        };
        level.deserialize(deserializer)?;
        Ok(Self(contents))
    }
}

/// A mapping on the way to the options.
struct Level<'a> {
    path: Vec<String>,
    keys: &'a [Key],
    contents: &'a mut Contents,
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_slice() {
            [] => f.write_str("sections such as `server:`"),
            path => write!(f, "options under `{}:`", path.join(".")),
        }
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            let mut path = self.path.clone();
            path.push(name);
            if let Some(key) = self.keys.iter().find(|key| key.path == path) {
                if let Some(text) = map.next_value_seed(Scalar { kind: key.kind })? {
                    self.contents.options.push((key.clone(), text));
                }
            } else if self.keys.iter().any(|key| is_below(&key.path, &path)) {
                map.next_value_seed(Level {
                    path,
                    keys: self.keys,
                    contents: self.contents,
                })?;
            } else {
                map.next_value::<IgnoredAny>()?;
                note_unknown(path, self.keys, self.contents);
            }
        }
        Ok(())
    }
}

fn is_below(key: &[&'static str], path: &[String]) -> bool {
    key.len() > path.len() && key.iter().zip(path).all(|(a, b)| a == b)
}

fn note_unknown(path: Vec<String>, keys: &[Key], contents: &mut Contents) {
    let dotted = path.join(".");
    if fleet_keys::is_fleets(&path) {
        contents.ignored.push(dotted);
        return;
    }
    // Sections are compared with sections, options with options.
    let known: Vec<String> = keys
        .iter()
        .filter_map(|key| key.path.get(..path.len()))
        .map(|parts| parts.join("."))
        .collect();
    let meant = fleet_keys::nearest(&dotted, known.iter().map(String::as_str));
    contents.unknown.push((dotted, meant.map(str::to_owned)));
}

/// A value, as the text that a flag would hold. `None` for an empty value.
struct Scalar {
    kind: KeyKind,
}

impl<'de> DeserializeSeed<'de> for Scalar {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Scalar {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            KeyKind::Bool => "true or false",
            KeyKind::List => "a list of texts",
            KeyKind::Number => "a whole number",
            KeyKind::Text => "a text",
        })
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        match self.kind {
            KeyKind::List => deserializer.deserialize_any(self),
            _ => deserializer.deserialize_string(self),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(match (self.kind, text) {
            // As YAML 1.1 has it, which is what Fleet's own reader takes.
            (KeyKind::Bool, "yes" | "Yes" | "YES" | "on" | "On" | "ON") => "true".into(),
            (KeyKind::Bool, "no" | "No" | "NO" | "off" | "Off" | "OFF") => "false".into(),
            (KeyKind::Bool, text) => text.to_lowercase(),
            (_, text) => text.to_owned(),
        }))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Some(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Some(value.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<String>()? {
            items.push(item);
        }
        Ok(Some(items.join(",")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Vec<(String, String)> {
        parse(text)
            .unwrap()
            .options
            .into_iter()
            .map(|(key, text)| (key.dotted(), text))
            .collect()
    }

    #[test]
    fn the_option_decides_how_its_value_is_read() {
        let text = "
server:
  address: [127.0.0.1:1, '[::1]:2']
  tls: yes
  backlog: \"128\"
mysql:
  password: 0123
  username: true
  database:
filesystem:
  enable_log_compression: true
prometheus:
  basic_auth: {username: 1e3}
redis:
";
        let expected = [
            ("server.address", "127.0.0.1:1,[::1]:2"),
            ("server.tls", "true"),
            ("server.backlog", "128"),
            ("mysql.password", "0123"),
            ("mysql.username", "true"),
            ("filesystem.enable_log_compression", "true"),
            ("prometheus.basic_auth.username", "1e3"),
        ];
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(key, text)| (key.to_owned(), text.to_owned()))
            .collect();
        assert_eq!(options(text), expected);
        assert_eq!(
            options("server: {address: '0.0.0.0:8080'}"),
            [("server.address".to_owned(), "0.0.0.0:8080".to_owned())]
        );
        assert_eq!(options(""), []);
        assert_eq!(options("# nothing\n"), []);
    }

    #[test]
    fn unknown_options_are_told_from_fleets() {
        let contents = parse(
            "server: {adress: x}\nmysq: {}\nvulnerabilities: {a: 1}\nmysql: {protocol: tcp}\nzzz: 1\n",
        )
        .unwrap();
        assert_eq!(contents.ignored, ["vulnerabilities", "mysql.protocol"]);
        let meant: Vec<_> = contents
            .unknown
            .iter()
            .map(|(name, meant)| (name.as_str(), meant.as_deref()))
            .collect();
        assert_eq!(
            meant,
            [
                ("server.adress", Some("server.address")),
                ("mysq", Some("mysql")),
                ("zzz", None)
            ]
        );
    }

    #[test]
    fn errors_name_the_line_and_no_value() {
        for text in [
            "mysql:\n  password: [hunter2]\n",
            "mysql:\n  password: \"hunter2\n",
            "mysql: hunter2\n",
            "mysql:\n  password: hunter2\n  password: hunter2\n",
            "server:\n  address: {hunter2: 1}\n",
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains("line"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
