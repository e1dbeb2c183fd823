//! The configuration and the enroll secrets as operators write them. Pure.

use fleet_protocol::secret::Secret;
use serde_json::{Map, Value};

use super::agent_options;
use super::check;
use super::fault::Reason;
use super::members::Members;

/// Enroll secrets at once.
const SECRETS_MAX: usize = 50;

/// The members of the configuration that a document sets.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ConfigPatch {
    pub(super) agent_options: Option<Value>,
    /// `org_info` and `server_settings`; an empty one takes away what was set.
    pub(super) sections: Map<String, Value>,
}

/// Reads a configuration.
pub(super) fn read(
    value: Value,
    problems: &mut Vec<Reason>,
    warnings: &mut Vec<String>,
) -> ConfigPatch {
    let mut members = Members::of("config".into(), value, problems);
    let mut patch = ConfigPatch {
        agent_options: members.value("agent_options"),
        sections: Map::new(),
    };
    for (section, known) in [
        ("org_info", &["org_name", "org_logo_url"][..]),
        ("server_settings", &["server_url"]),
    ] {
        let Some(value) = members.value(section) else {
            continue;
        };
        let subject = format!("config, {section}");
        let mut inner = Members::of(subject, value, members.problems());
        let texts: Map<_, _> = known
            .iter()
            .filter_map(|name| Some((String::from(*name), inner.text_if_any(name)?)))
            .filter(|(_, text)| !text.is_empty())
            .map(|(name, text)| (name, text.into()))
            .collect();
        inner.finish();
        patch.sections.insert(section.into(), texts.into());
    }
    // What `GET config` shows beside the settings.
    members.ignore(&["license", "logging", "update_interval"]);
    members.unsupported(&[
        "activity_expiry_settings",
        "certificate_authorities",
        "features",
        "gitops",
        "host_expiry_settings",
        "host_settings",
        "integrations",
        "mdm",
        "scripts",
        "smtp_settings",
        "sso_settings",
        "vulnerability_settings",
        "webhook_settings",
        "yara_rules",
    ]);
    if let Some(options) = &patch.agent_options {
        let findings = agent_options::inspect(options);
        members.problems().extend(findings.problems);
        warnings.extend(findings.warnings);
    }
    members.finish();
    patch
}

/// Reads the set of enroll secrets.
pub(super) fn read_secrets(value: Value, problems: &mut Vec<Reason>) -> Vec<Secret> {
    let mut members = Members::of("enroll_secret".into(), value, problems);
    let mut secrets: Vec<Secret> = Vec::new();
    for (index, value) in members.list("secrets").into_iter().enumerate() {
        let subject = format!("enroll_secret, secret {}", index + 1);
        let mut inner = Members::of(subject, value, members.problems());
        let text = inner.text("secret");
        inner.ignore(&["created_at"]);
        inner.unsupported(&["team_id", "fleet_id"]);
        inner.check(check::enroll_secret(&text));
        let secret = Secret::new(text);
        if secrets.contains(&secret) {
            inner.problem("stands in this document more than once");
        }
        inner.finish();
        secrets.push(secret);
    }
    if secrets.is_empty() {
        members.problem("secrets is empty: no new host could enroll");
    }
    if secrets.len() > SECRETS_MAX {
        members.problem(format!("more than {SECRETS_MAX} secrets"));
    }
    members.finish();
    secrets
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::operator::spec::{self, Documents};

    fn reasons(documents: Documents) -> Vec<String> {
        let problems = spec::read(documents).unwrap_err();
        let text = |problem: Reason| format!("{}: {}", problem.name, problem.reason);
        problems.into_iter().map(text).collect()
    }

    #[test]
    fn secrets_are_never_repeated_in_problems() {
        let of = |secrets: Value| Documents {
            enroll_secret: Some(json!({"secrets": secrets})),
            ..Documents::default()
        };
        let all = reasons(of(json!([
            {"secret": "hunter2"}, {"secret": "hunter2"}, {"secret": " hunter2"}, {"secret": ["hunter2"]}
        ])));
        assert_eq!(all.len(), 4, "{all:?}");
        assert!(!all.concat().contains("hunter2"), "{all:?}");
        assert_eq!(reasons(of(json!([]))).len(), 1);
    }

    #[test]
    fn config_takes_what_it_has() {
        let of = |config| Documents {
            config: Some(config),
            ..Documents::default()
        };
        let specs = spec::read(of(json!({
            "agent_options": {"config": {"options": {"config_refresh": 60}}},
            "org_info": {"org_name": "Example"}, "sso_settings": {},
        })))
        .unwrap();
        assert_eq!(specs.warnings.len(), 1);
        assert_eq!(
            specs.config.unwrap().sections["org_info"]["org_name"],
            "Example"
        );
        assert_eq!(
            reasons(of(
                json!({"agent_option": {}, "sso_settings": {"enable_sso": true}})
            )),
            [
                "config: sso_settings is not supported by this server; leave it out",
                "config: unknown member \"agent_option\"; did you mean \"agent_options\"?",
            ]
        );
    }
}
