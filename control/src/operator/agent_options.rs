//! Rules that agent options must keep: `{config: {…}, overrides: {platforms: {…}}}`. Pure.
//!
//! osquery ignores what it does not understand with a warning that nobody reads, and some mistakes cost it its
//! schedule; so they are refused here, each with its place in the document.

use serde_json::{Map, Value};

use super::check;
use super::fault::Reason;

/// Members of an osquery configuration that a host may be sent.
const MEMBERS: [(&str, Shape); 16] = [
    ("auto_table_construction", Shape::Object),
    ("decorators", Shape::Decorators),
    ("events", Shape::Object),
    ("exclude_paths", Shape::Lists),
    ("feature_vectors", Shape::Object),
    ("file_accesses", Shape::List),
    ("file_paths", Shape::Lists),
    ("file_paths_query", Shape::Lists),
    ("kafka_topics", Shape::Object),
    ("logger", Shape::Object),
    ("options", Shape::Options),
    ("packs", Shape::Packs),
    ("prometheus_targets", Shape::Object),
    ("schedule", Shape::Schedule),
    ("views", Shape::Views),
    ("yara", Shape::Object),
];

/// Members of agent options that only Fleet's own agent reads.
const FLEETD_ONLY: [&str; 4] = [
    "command_line_flags",
    "extensions",
    "script_execution_timeout",
    "update_channels",
];

/// Flags that osquery takes on its command line only; in a configuration it ignores them.
const COMMAND_LINE_ONLY: [&str; 13] = [
    "carver_block_size",
    "carver_continue_endpoint",
    "carver_start_endpoint",
    "config_accelerated_refresh",
    "config_plugin",
    "config_refresh",
    "config_tls_max_attempts",
    "enroll_secret_path",
    "host_identifier",
    "logger_plugin",
    "tls_accept_gzip",
    "tls_hostname",
    "tls_server_certs",
];

/// Members of a pack within options.
const PACK: [&str; 9] = [
    "description",
    "discovery",
    "exclude_paths",
    "file_paths",
    "oncall",
    "platform",
    "queries",
    "shard",
    "version",
];

/// Members of a scheduled query.
const SCHEDULED: [&str; 12] = [
    "blacklist",
    "denylist",
    "description",
    "interval",
    "platform",
    "query",
    "removed",
    "shard",
    "snapshot",
    "startup_priority",
    "value",
    "version",
];

#[derive(Clone, Copy)]
enum Shape {
    Decorators,
    List,
    Lists,
    Object,
    Options,
    Packs,
    Schedule,
    Views,
}

/// What is wrong, and what is only useless.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Findings {
    /// Refused.
    pub(super) problems: Vec<Reason>,
    /// Told, and taken.
    pub(super) warnings: Vec<String>,
}

/// Looks at whole agent options.
pub(super) fn inspect(options: &Value) -> Findings {
    let mut findings = Findings::default();
    let Some(members) = findings.object("agent_options", options) else {
        return findings;
    };
    for (name, value) in members {
        let place = format!("agent_options.{name}");
        match name.as_str() {
            "config" => findings.config(&place, value),
            "overrides" => findings.overrides(&place, value),
            name if FLEETD_ONLY.contains(&name) => {
                if !is_nothing(value) {
                    findings.problem(&place, "only Fleet's own agent reads this; leave it out");
                }
            }
            _ => findings.problem(&place, "unknown member; known are config and overrides"),
        }
    }
    findings
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(members) => members.is_empty(),
        _ => false,
    }
}

impl Findings {
    fn problem(&mut self, place: &str, reason: impl Into<String>) {
        self.problems.push(Reason::new(place, reason));
    }

    fn object<'v>(&mut self, place: &str, value: &'v Value) -> Option<&'v Map<String, Value>> {
        if let Value::Object(members) = value {
            return Some(members);
        }
        self.problem(place, "must be an object");
        None
    }

    fn overrides(&mut self, place: &str, value: &Value) {
        if value.is_null() {
            return;
        }
        let Some(members) = self.object(place, value) else {
            return;
        };
        for (name, value) in members {
            let place = format!("{place}.{name}");
            if name != "platforms" {
                self.problem(&place, "unknown member; known is platforms");
                continue;
            }
            if value.is_null() {
                continue;
            }
            for (platform, config) in self.object(&place, value).into_iter().flatten() {
                let place = format!("{place}.{platform}");
                if let Err(reason) = check::platform(platform) {
                    self.problem(&place, reason);
                }
                self.config(&place, config);
            }
        }
    }

    fn config(&mut self, place: &str, value: &Value) {
        if value.is_null() {
            return;
        }
        for (name, value) in self.object(place, value).into_iter().flatten() {
            let place = format!("{place}.{name}");
            match MEMBERS.iter().find(|(member, _)| member == name) {
                Some((_, shape)) => self.member(&place, *shape, value),
                None => self.problem(&place, "osquery's configuration has no such member"),
            }
        }
    }

    fn member(&mut self, place: &str, shape: Shape, value: &Value) {
        if value.is_null() {
            return;
        }
        match shape {
            Shape::Decorators => self.decorators(place, value),
            Shape::List => self.texts(place, value),
            Shape::Lists => {
                for (name, list) in self.object(place, value).into_iter().flatten() {
                    self.texts(&format!("{place}.{name}"), list);
                }
            }
            Shape::Object => {
                self.object(place, value);
            }
            Shape::Options => self.flags(place, value),
            Shape::Packs => {
                for (name, pack) in self.object(place, value).into_iter().flatten() {
                    self.inline_pack(&format!("{place}.{name}"), pack);
                }
            }
            Shape::Schedule => self.schedule(place, value),
            Shape::Views => {
                for (name, sql) in self.object(place, value).into_iter().flatten() {
                    self.sql(&format!("{place}.{name}"), sql);
                }
            }
        }
    }

    fn schedule(&mut self, place: &str, value: &Value) {
        for (name, query) in self.object(place, value).into_iter().flatten() {
            self.scheduled(&format!("{place}.{name}"), query);
        }
    }

    /// A pack for every host that gets these options. A path, as osquery takes it from files, leads nowhere here.
    fn inline_pack(&mut self, place: &str, value: &Value) {
        let Some(members) = self.object(place, value) else {
            return;
        };
        for name in members.keys().filter(|name| !PACK.contains(&name.as_str())) {
            self.problem(&format!("{place}.{name}"), "unknown member of a pack");
        }
        let queries = members.get("queries").unwrap_or(&Value::Null);
        self.schedule(&format!("{place}.queries"), queries);
    }

    fn texts(&mut self, place: &str, value: &Value) {
        let is_list = value
            .as_array()
            .is_some_and(|items| items.iter().all(Value::is_string));
        if !is_list {
            self.problem(place, "must be a list of texts");
        }
    }

    fn sql(&mut self, place: &str, value: &Value) {
        match value.as_str().map(check::sql) {
            None => self.problem(place, "must be a text"),
            Some(Err(reason)) => self.problem(place, reason),
            Some(Ok(())) => {}
        }
    }

    fn flags(&mut self, place: &str, value: &Value) {
        for (flag, value) in self.object(place, value).into_iter().flatten() {
            let place = format!("{place}.{flag}");
            let is_flag = !flag.is_empty()
                && flag
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
            if !is_flag && !flag.starts_with("custom_") {
                self.problem(&place, "is not the name of an osquery flag");
            }
            if !(value.is_string() || value.is_number() || value.is_boolean()) {
                self.problem(&place, "must be a text, a number, true or false");
            }
            if COMMAND_LINE_ONLY.contains(&flag.as_str()) {
                self.warnings.push(format!(
                    "{place} has no effect: osquery takes this flag on its command line only"
                ));
            }
        }
    }

    fn decorators(&mut self, place: &str, value: &Value) {
        for (name, value) in self.object(place, value).into_iter().flatten() {
            let place = format!("{place}.{name}");
            match name.as_str() {
                "load" | "always" => self.sql_list(&place, value),
                "interval" => {
                    for (seconds, list) in self.object(&place, value).into_iter().flatten() {
                        let place = format!("{place}.{seconds}");
                        if !is_decorator_interval(seconds) {
                            self.problem(&place, "must be seconds: 60 or a multiple of it");
                        }
                        self.sql_list(&place, list);
                    }
                }
                _ => self.problem(&place, "unknown member; known are load, always, interval"),
            }
        }
    }

    fn sql_list(&mut self, place: &str, value: &Value) {
        let Some(items) = value.as_array() else {
            self.problem(place, "must be a list of queries");
            return;
        };
        for (index, sql) in items.iter().enumerate() {
            self.sql(&format!("{place}[{index}]"), sql);
        }
    }

    fn scheduled(&mut self, place: &str, value: &Value) {
        let Some(members) = self.object(place, value) else {
            return;
        };
        for name in members
            .keys()
            .filter(|name| !SCHEDULED.contains(&name.as_str()))
        {
            self.problem(
                &format!("{place}.{name}"),
                "unknown member of a scheduled query",
            );
        }
        self.sql(
            &format!("{place}.query"),
            members.get("query").unwrap_or(&Value::Null),
        );
        let number = |name: &str| members.get(name).and_then(whole_number);
        for (name, check) in [
            ("interval", check::interval as fn(u32) -> check::Check),
            ("shard", check::shard),
        ] {
            let place = format!("{place}.{name}");
            match (members.get(name), number(name)) {
                (None, _) => {}
                (Some(_), None) => self.problem(&place, "must be a whole number"),
                (Some(_), Some(number)) => {
                    if let Err(reason) = check(number) {
                        self.problem(&place, reason);
                    }
                }
            }
        }
        if number("interval") == Some(0) {
            self.warnings.push(format!(
                "{place} never runs: osquery drops a query with interval 0"
            ));
        }
        if let Some(platform) = members.get("platform").and_then(Value::as_str)
            && let Err(reason) = check::platform(platform)
        {
            self.problem(&format!("{place}.platform"), reason);
        }
    }
}

/// A number, or a text that holds one, as osquery takes them.
fn whole_number(value: &Value) -> Option<u32> {
    match value {
        Value::Number(number) => number.as_u64()?.try_into().ok(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// osquery divides by it: zero, or a text that it reads as zero, would end the agent.
fn is_decorator_interval(text: &str) -> bool {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number
        && text
            .parse::<u32>()
            .is_ok_and(|seconds| seconds > 0 && seconds.is_multiple_of(60))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn places(options: &Value) -> Vec<String> {
        let findings = inspect(options);
        findings
            .problems
            .into_iter()
            .map(|problem| problem.name)
            .collect()
    }

    #[test]
    fn ordinary_options_are_taken() {
        let options = json!({
            "config": {
                "options": {"logger_tls_period": 10, "pack_delimiter": "/", "disable_distributed": false},
                "decorators": {
                    "load": ["SELECT uuid FROM system_info"],
                    "interval": {"3600": ["SELECT total_seconds FROM uptime"]},
                },
                "file_paths": {"etc": ["/etc/%%"]},
                "schedule": {"up": {"query": "SELECT 1", "interval": "60"}},
            },
            "overrides": {"platforms": {"darwin": {"options": {"logger_tls_period": 20}}}},
            "command_line_flags": {},
        });
        assert_eq!(inspect(&options), Findings::default());
        assert_eq!(
            inspect(&json!({"config": null, "overrides": null})),
            Findings::default()
        );
    }

    #[test]
    fn mistakes_are_named_by_their_place() {
        for (options, place) in [
            (json!([]), "agent_options"),
            (json!({"confg": {}}), "agent_options.confg"),
            (json!({"config": []}), "agent_options.config"),
            (
                json!({"config": {"optoins": {}}}),
                "agent_options.config.optoins",
            ),
            (
                json!({"config": {"packs": {"p": "/etc/p.conf"}}}),
                "agent_options.config.packs.p",
            ),
            (
                json!({"config": {"options": {"x": []}}}),
                "agent_options.config.options.x",
            ),
            (
                json!({"config": {"options": {"X-y": 1}}}),
                "agent_options.config.options.X-y",
            ),
            (
                json!({"config": {"decorators": {"interval": {"0": []}}}}),
                "agent_options.config.decorators.interval.0",
            ),
            (
                json!({"config": {"decorators": {"interval": {"90": []}}}}),
                "agent_options.config.decorators.interval.90",
            ),
            (
                json!({"config": {"decorators": {"interval": {"1h": []}}}}),
                "agent_options.config.decorators.interval.1h",
            ),
            (
                json!({"config": {"decorators": {"load": ["SELECT 1", ""]}}}),
                "agent_options.config.decorators.load[1]",
            ),
            (
                json!({"config": {"schedule": {"a": {"query": "SELECT 1", "intervall": 1}}}}),
                "agent_options.config.schedule.a.intervall",
            ),
            (
                json!({"config": {"schedule": {"a": {"interval": 60}}}}),
                "agent_options.config.schedule.a.query",
            ),
            (
                json!({"config": {"schedule": {"a": {"query": "SELECT 1", "interval": 700_000}}}}),
                "agent_options.config.schedule.a.interval",
            ),
            (
                json!({"overrides": {"platforms": {"osx": {}}}}),
                "agent_options.overrides.platforms.osx",
            ),
            (
                json!({"overrides": {"platform": {}}}),
                "agent_options.overrides.platform",
            ),
            (
                json!({"command_line_flags": {"verbose": true}}),
                "agent_options.command_line_flags",
            ),
        ] {
            assert_eq!(places(&options), [place], "{options}");
        }
    }

    #[test]
    fn useless_flags_are_told() {
        let findings = inspect(&json!({"config": {"options": {"config_refresh": 60}}}));
        assert!(findings.problems.is_empty());
        assert!(findings.warnings[0].contains("config_refresh"));
    }
}
