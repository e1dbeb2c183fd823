//! The file of contexts (`~/.fleet/config`): which servers there are, and who we are there. Shape and names are
//! fleetctl's, so both programs share one file. Pure.

use fleet_protocol::secret::Secret;
use serde_json::{Map, Value};

use super::yaml;

/// The context that is meant when none is named.
pub(super) const DEFAULT: &str = "default";
/// What a context holds, as the file names it.
pub(super) const MEMBERS: [&str; 7] = [
    "address",
    "email",
    "token",
    "tls-skip-verify",
    "rootca",
    "url-prefix",
    "custom-headers",
];

/// A whole file. Members that are not known here stay what they are.
#[derive(Clone, Default)]
pub(super) struct Contexts {
    tree: Map<String, Value>,
}

/// One server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Context {
    /// `https://host[:port]`.
    pub(super) address: String,
    /// Who signed in last.
    pub(super) email: String,
    /// Of the session.
    pub(super) token: Secret,
    /// Whoever answers at the address is believed.
    pub(super) tls_skip_verify: bool,
    /// File of certificates to trust in place of the system's.
    pub(super) rootca: String,
    /// In front of every path.
    pub(super) url_prefix: String,
    /// Sent with every request; values may be secrets.
    pub(super) headers: Vec<(String, Secret)>,
}

impl Contexts {
    /// The error never holds the text itself, which holds tokens.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let documents = yaml::parse(text)?;
        match <[Value; 1]>::try_from(documents) {
            Ok([Value::Object(tree)]) => match tree.get("contexts") {
                None | Some(Value::Null | Value::Object(_)) => Ok(Self { tree }),
                Some(_) => Err("contexts must be an object of names".into()),
            },
            Err(none) if none.is_empty() => Ok(Self::default()),
            _ => Err("must be one document that holds `contexts:`".into()),
        }
    }

    pub(super) fn text(&self) -> String {
        yaml::print(&Value::Object(self.tree.clone()))
    }

    /// Names of all contexts, as the file orders them.
    pub(super) fn names(&self) -> Vec<String> {
        let contexts = self.tree.get("contexts").and_then(Value::as_object);
        contexts
            .map(|contexts| contexts.keys().cloned().collect())
            .unwrap_or_default()
    }

    /// One context; members that are absent are empty.
    pub(super) fn get(&self, name: &str) -> Option<Context> {
        let members = self.members(name)?;
        let text = |member: &str| members.get(member).map(plain).unwrap_or_default();
        let headers = members.get("custom-headers").and_then(Value::as_object);
        let headers = headers.into_iter().flatten();
        Some(Context {
            address: text("address"),
            email: text("email"),
            token: Secret::new(text("token")),
            tls_skip_verify: text("tls-skip-verify") == "true",
            rootca: text("rootca"),
            url_prefix: text("url-prefix"),
            headers: headers
                .map(|(name, value)| (name.clone(), Secret::new(plain(value))))
                .collect(),
        })
    }

    /// A member as a text.
    pub(super) fn value(&self, name: &str, member: &str) -> Option<String> {
        self.members(name)?.get(member).map(plain)
    }

    /// Sets a member, and makes the context if it is new.
    pub(super) fn set(&mut self, name: &str, member: &str, value: Value) {
        edit(
            self.tree.entry("contexts").or_insert(Value::Null),
            |contexts| {
                edit(contexts.entry(name).or_insert(Value::Null), |members| {
                    members.insert(member.to_owned(), value);
                });
            },
        );
    }

    fn members(&self, name: &str) -> Option<&Map<String, Value>> {
        self.tree.get("contexts")?.get(name)?.as_object()
    }
}

/// Changes the object at a place, which becomes one if it is none.
fn edit(place: &mut Value, edit: impl FnOnce(&mut Map<String, Value>)) {
    let mut members = match place.take() {
        Value::Object(members) => members,
        _ => Map::new(),
    };
    edit(&mut members);
    *place = Value::Object(members);
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `Name: value` or `Name=value`, as a header for every request.
pub(super) fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once([':', '='])
        .ok_or("must be NAME:VALUE, such as X-Route:blue")?;
    let (name, value) = (name.trim(), value.trim());
    let is_good = hyper::header::HeaderName::from_bytes(name.as_bytes()).is_ok()
        && hyper::header::HeaderValue::from_str(value).is_ok();
    if !is_good {
        return Err(format!(
            "{name:?} is no header name, or its value cannot be sent"
        ));
    }
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// As fleetctl writes it.
    const FILE: &str = "contexts:\n  default:\n    address: https://fleet.example.com\n    email: a@example.com\n    \
                        token: c2VjcmV0\n    tls-skip-verify: false\n    rootca: \"\"\n    url-prefix: /x\n    \
                        custom-headers:\n      X-Route: blue\n  second:\n    address: https://b:8080\n    later: [1, 2]\nother: kept\n";

    #[test]
    fn fleetctls_file_is_read() {
        let contexts = Contexts::parse(FILE).unwrap();
        assert_eq!(contexts.names(), ["default", "second"]);
        assert_eq!(
            contexts.get(DEFAULT),
            Some(Context {
                address: "https://fleet.example.com".into(),
                email: "a@example.com".into(),
                token: Secret::new("c2VjcmV0"),
                tls_skip_verify: false,
                rootca: String::new(),
                url_prefix: "/x".into(),
                headers: vec![("X-Route".into(), Secret::new("blue"))],
            })
        );
        assert_eq!(contexts.get("third"), None);
        assert_eq!(
            contexts.value("second", "address").as_deref(),
            Some("https://b:8080")
        );
    }

    #[test]
    fn what_is_not_known_is_kept() {
        let mut contexts = Contexts::parse(FILE).unwrap();
        contexts.set("second", "token", json!("t"));
        contexts.set("third", "address", json!("https://c"));
        let tree: Value = yaml::parse(&contexts.text()).unwrap().remove(0);
        assert_eq!(tree["other"], "kept");
        assert_eq!(
            tree["contexts"]["second"],
            json!({"address": "https://b:8080", "later": [1, 2], "token": "t"})
        );
        assert_eq!(tree["contexts"]["third"], json!({"address": "https://c"}));
        assert_eq!(tree["contexts"]["default"]["token"], "c2VjcmV0");
    }

    #[test]
    fn an_empty_file_is_taken_and_wrong_ones_are_explained() {
        for empty in ["", "---\n", "contexts:\n", "contexts: {}\n", "{}"] {
            let mut contexts = Contexts::parse(empty).unwrap();
            assert_eq!(contexts.names(), Vec::<String>::new(), "{empty:?}");
            contexts.set(DEFAULT, "email", json!("a"));
            assert_eq!(
                Contexts::parse(&contexts.text())
                    .unwrap()
                    .get(DEFAULT)
                    .unwrap()
                    .email,
                "a"
            );
        }
        for wrong in ["- a", "contexts: [a]", "a: [", "a: 1\n---\nb: 2\n"] {
            assert!(Contexts::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_secret_is_printed() {
        let contexts = Contexts::parse(FILE).unwrap();
        let shown = format!("{:?}", contexts.get(DEFAULT));
        assert!(
            !shown.contains("c2VjcmV0") && !shown.contains("blue"),
            "{shown}"
        );
    }

    #[test]
    fn headers_are_checked() {
        assert_eq!(header("X-A: b:c"), Ok(("X-A".into(), "b:c".into())));
        assert_eq!(header("X-A=b"), Ok(("X-A".into(), "b".into())));
        for wrong in ["X-A", ":b", "X A:b", "X-A:b\nX-C:d"] {
            assert!(header(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_set_is_read_again(name in "\\PC{1,10}", text in "\\PC{0,20}") {
            let mut contexts = Contexts::parse(FILE).unwrap();
            contexts.set(&name, "email", json!(text));
            let again = Contexts::parse(&contexts.text()).unwrap();
            prop_assert_eq!(again.get(&name).unwrap().email, text);
            prop_assert_eq!(again.get("default").unwrap().address, "https://fleet.example.com".to_owned());
        }
    }
}
