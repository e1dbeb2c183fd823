//! Turns answers to detail queries, and the tables of an enrolment, into a host's columns. Pure.
//!
//! Invariants: nothing an agent sends is an error here: what is missing or odd leaves the old value. Texts are cut at
//! [`TEXT_CHARS_MAX`], so a host's record stays small whatever it sends.

use std::collections::BTreeMap;

use fleet_protocol::agent::{Enroll, QueryResult};
use serde_json::{Map, Value};

use crate::detail_queries::DetailQuery;
use crate::model::host::HostColumns;

/// Characters of one text.
const TEXT_CHARS_MAX: usize = 255;
/// Members of one table's row.
const COLUMNS_MAX: usize = 64;
/// Tables of one enrolment.
const TABLES_MAX: usize = 16;

/// What answers say about a host.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Facts {
    /// For lists.
    pub(crate) columns: HostColumns,
    /// Table name → row, for display.
    pub(crate) details: Map<String, Value>,
}

impl Facts {
    /// Takes one answer. `false` when it holds nothing that can be used.
    pub(crate) fn take(&mut self, query: DetailQuery, result: &QueryResult) -> bool {
        if result.status != 0 {
            return false;
        }
        let Ok(rows) = serde_json::from_str::<Vec<Map<String, Value>>>(&result.rows) else {
            return false;
        };
        if query == DetailQuery::OsqueryFlags {
            return self.take_flags(&rows);
        }
        let Some(row) = rows.into_iter().next().map(Row::of) else {
            return false;
        };
        match query {
            DetailQuery::OsVersion => self.take_os(&row),
            DetailQuery::OsVersionWindows => self.take_os_windows(&row),
            DetailQuery::OsqueryInfo => self.take_agent(&row),
            DetailQuery::OsqueryFlags => {}
            DetailQuery::SystemInfo => self.take_system(&row),
            DetailQuery::Uptime => set_number(&mut self.columns.uptime, &row, "total_seconds"),
            DetailQuery::NetworkInterfaceUnix | DetailQuery::NetworkInterfaceWindows => {
                set_text(&mut self.columns.primary_ip, &row, "address");
                set_text(&mut self.columns.primary_mac, &row, "mac");
            }
            DetailQuery::DiskSpaceUnix | DetailQuery::DiskSpaceWindows => {
                set_number(&mut self.columns.disk_free, &row, "free_bytes");
                set_number(&mut self.columns.disk_total, &row, "total_bytes");
            }
        }
        self.details.insert(table(query).to_owned(), row.0.into());
        true
    }

    /// Takes the tables of an enrolment.
    pub(crate) fn of_enrollment(enroll: &Enroll) -> Self {
        let mut facts = Self::default();
        for (name, columns) in enroll.details.iter().take(TABLES_MAX) {
            let row = Row::of(texts(columns));
            match name.as_str() {
                "os_version" if row.text("platform").as_deref() == Some("windows") => {
                    facts.take_os_windows(&row);
                }
                "os_version" => facts.take_os(&row),
                "osquery_info" => facts.take_agent(&row),
                "system_info" => facts.take_system(&row),
                _ => {}
            }
            facts.details.insert(cut(name), row.0.into());
        }
        facts.columns.public_ip = Some(enroll.address.to_string());
        if facts.columns.platform.is_none() {
            facts.columns.platform = platform_of_mask(&enroll.platform_type).map(str::to_owned);
        }
        facts
    }

    fn take_os(&mut self, row: &Row) {
        self.take_platform(row);
        if let (Some(name), Some(version)) = (row.text("name"), row.text("version")) {
            // "22.04.4 LTS (Jammy Jellyfish)": the code name has a column of its own.
            let version = version
                .split_once(" (")
                .map_or(version.as_str(), |(version, _)| version);
            self.columns.os_version = Some(cut(&format!("{name} {version}")));
        }
    }

    fn take_os_windows(&mut self, row: &Row) {
        self.take_platform(row);
        let mut words: Vec<String> = ["name", "display_version"]
            .into_iter()
            .filter_map(|column| row.text(column))
            .collect();
        if let Some(version) = row.text("version") {
            let revision = row.text("update_revision");
            let parts = version.split('.').count();
            words.push(match revision {
                Some(revision) if parts == 3 => format!("{version}.{revision}"),
                _ => version,
            });
        }
        if !words.is_empty() {
            self.columns.os_version = Some(cut(&words.join(" ")));
        }
    }

    fn take_platform(&mut self, row: &Row) {
        if let Some(platform) = row.text("platform") {
            self.columns.platform = Some(platform.to_ascii_lowercase());
        }
        set_text(&mut self.columns.platform_like, row, "platform_like");
    }

    fn take_agent(&mut self, row: &Row) {
        set_text(&mut self.columns.osquery_version, row, "version");
    }

    fn take_system(&mut self, row: &Row) {
        let columns = &mut self.columns;
        for (column, name) in [
            (&mut columns.hostname, "hostname"),
            (&mut columns.computer_name, "computer_name"),
            (&mut columns.hardware_uuid, "uuid"),
            (&mut columns.hardware_serial, "hardware_serial"),
            (&mut columns.hardware_model, "hardware_model"),
            (&mut columns.hardware_vendor, "hardware_vendor"),
            (&mut columns.cpu_brand, "cpu_brand"),
            (&mut columns.cpu_type, "cpu_type"),
        ] {
            set_text(column, row, name);
        }
        for (column, name) in [
            (&mut columns.cpu_physical_cores, "cpu_physical_cores"),
            (&mut columns.cpu_logical_cores, "cpu_logical_cores"),
            (&mut columns.memory, "physical_memory"),
        ] {
            set_number(column, row, name);
        }
    }

    fn take_flags(&mut self, rows: &[Map<String, Value>]) -> bool {
        let mut flags = Map::new();
        for row in rows.iter().take(COLUMNS_MAX).cloned().map(Row::of) {
            if let (Some(name), Some(value)) = (row.text("name"), row.text("value")) {
                flags.insert(name, value.into());
            }
        }
        let flags = Row(flags);
        let columns = &mut self.columns;
        set_number(
            &mut columns.distributed_interval,
            &flags,
            "distributed_interval",
        );
        set_number(&mut columns.logger_tls_period, &flags, "logger_tls_period");
        // The flag had another name before osquery 4; the new one wins.
        set_number(&mut columns.config_refresh, &flags, "config_tls_refresh");
        set_number(&mut columns.config_refresh, &flags, "config_refresh");
        let is_used = !flags.0.is_empty();
        if is_used {
            let name = table(DetailQuery::OsqueryFlags).to_owned();
            self.details.insert(name, flags.0.into());
        }
        is_used
    }
}

/// Where a query's row stands among a host's details.
fn table(query: DetailQuery) -> &'static str {
    match query {
        DetailQuery::OsVersion | DetailQuery::OsVersionWindows => "os_version",
        DetailQuery::OsqueryInfo => "osquery_info",
        DetailQuery::OsqueryFlags => "osquery_flags",
        DetailQuery::SystemInfo => "system_info",
        DetailQuery::Uptime => "uptime",
        DetailQuery::NetworkInterfaceUnix | DetailQuery::NetworkInterfaceWindows => {
            "network_interface"
        }
        DetailQuery::DiskSpaceUnix | DetailQuery::DiskSpaceWindows => "disk_space",
    }
}

/// The platform that an agent's `platform_type` mask tells, when its `os_version` is missing. Windows 2, BSD 4,
/// Linux 8, macOS 16 (which has the BSD bit too), FreeBSD 32.
pub(crate) fn platform_of_mask(mask: &str) -> Option<&'static str> {
    let mask: u32 = mask.trim().parse().ok()?;
    let has = |bit: u32| mask & bit != 0;
    if has(16) {
        Some("darwin")
    } else if has(2) {
        Some("windows")
    } else if has(8) {
        Some("linux")
    } else if has(32) {
        Some("freebsd")
    } else {
        None
    }
}

/// A row with short scalar values only.
struct Row(Map<String, Value>);

impl Row {
    fn of(row: Map<String, Value>) -> Self {
        let scalars = row
            .into_iter()
            .filter_map(|(name, value)| match value {
                Value::String(text) => Some((cut(&name), Value::String(cut(&text)))),
                Value::Number(_) | Value::Bool(_) => Some((cut(&name), value)),
                Value::Null | Value::Array(_) | Value::Object(_) => None,
            })
            .take(COLUMNS_MAX);
        Self(scalars.collect())
    }

    /// Text that says something, without blanks around it.
    fn text(&self, column: &str) -> Option<String> {
        let text = match self.0.get(column)? {
            Value::String(text) => text.trim().to_owned(),
            other => other.to_string(),
        };
        (!text.is_empty()).then_some(text)
    }

    fn number(&self, column: &str) -> Option<i64> {
        let text = self.text(column)?;
        if let Ok(number) = text.parse::<i64>() {
            return Some(number);
        }
        // Numerics may be doubles, and products of columns may be written like `1.5e+11`.
        let number: f64 = text.parse().ok()?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "`as` saturates, and the value is only shown"
        )]
        number.is_finite().then_some(number as i64)
    }
}

fn set_text(column: &mut Option<String>, row: &Row, name: &str) {
    if let Some(text) = row.text(name) {
        *column = Some(text);
    }
}

fn set_number(column: &mut Option<i64>, row: &Row, name: &str) {
    if let Some(number) = row.number(name).filter(|number| *number >= 0) {
        *column = Some(number);
    }
}

fn texts(columns: &BTreeMap<String, String>) -> Map<String, Value> {
    columns
        .iter()
        .map(|(name, text)| (name.clone(), Value::String(text.clone())))
        .collect()
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        Some((end, _)) => text.get(..end).unwrap_or_default().to_owned(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use fleet_protocol::secret::Secret;
    use proptest::prelude::*;

    use super::*;

    fn result(rows: &str) -> QueryResult {
        QueryResult {
            name: String::new(),
            status: 0,
            message: String::new(),
            rows: rows.into(),
            stats: String::new(),
        }
    }

    fn facts(query: DetailQuery, rows: &str) -> (bool, Facts) {
        let mut facts = Facts::default();
        let is_used = facts.take(query, &result(rows));
        (is_used, facts)
    }

    fn enroll(platform_type: &str, tables: &[(&str, &[(&str, &str)])]) -> Enroll {
        Enroll {
            secret: Secret::new("s"),
            identifier: "x".into(),
            platform_type: platform_type.into(),
            details: tables
                .iter()
                .map(|(table, columns)| {
                    let columns = columns
                        .iter()
                        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
                        .collect();
                    ((*table).to_owned(), columns)
                })
                .collect(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }

    #[test]
    fn linux_and_windows_versions_read_well() {
        let rows = r#"[{"name":"Ubuntu","version":"22.04.4 LTS (Jammy Jellyfish)","platform":"ubuntu","platform_like":"debian"}]"#;
        let (is_used, linux) = facts(DetailQuery::OsVersion, rows);
        assert!(is_used);
        assert_eq!(
            linux.columns.os_version.as_deref(),
            Some("Ubuntu 22.04.4 LTS")
        );
        assert_eq!(linux.columns.platform.as_deref(), Some("ubuntu"));
        assert_eq!(linux.details["os_version"]["name"], "Ubuntu");
        let rows = r#"[{"name":"Microsoft Windows 11 Pro","version":"10.0.22621","platform":"windows","display_version":"22H2","update_revision":3007}]"#;
        let (_, windows) = facts(DetailQuery::OsVersionWindows, rows);
        assert_eq!(
            windows.columns.os_version.as_deref(),
            Some("Microsoft Windows 11 Pro 22H2 10.0.22621.3007")
        );
    }

    #[test]
    fn numbers_come_as_text_number_or_double() {
        for value in ["\"41\"", "41", "41.0", "\"41.7\"", "4.1e1"] {
            let rows = format!(r#"[{{"total_seconds":{value}}}]"#);
            assert_eq!(
                facts(DetailQuery::Uptime, &rows).1.columns.uptime,
                Some(41),
                "{value}"
            );
        }
        for value in ["\"\"", "null", "\"x\"", "-1", "[1]"] {
            let rows = format!(r#"[{{"total_seconds":{value}}}]"#);
            assert_eq!(
                facts(DetailQuery::Uptime, &rows).1.columns.uptime,
                None,
                "{value}"
            );
        }
    }

    #[test]
    fn flags_fill_the_intervals() {
        let rows = r#"[{"name":"config_tls_refresh","value":"300"},{"name":"config_refresh","value":"60"},{"name":"distributed_interval","value":10},{}]"#;
        let (is_used, facts) = facts(DetailQuery::OsqueryFlags, rows);
        assert!(is_used);
        assert_eq!(facts.columns.config_refresh, Some(60));
        assert_eq!(facts.columns.distributed_interval, Some(10));
        assert_eq!(facts.columns.logger_tls_period, None);
    }

    #[test]
    fn failures_and_empty_rows_change_nothing() {
        let mut failed = result(r#"[{"total_seconds":"5"}]"#);
        failed.status = 1;
        let mut facts = Facts::default();
        assert!(!facts.take(DetailQuery::Uptime, &failed));
        for query in DetailQuery::ALL {
            for rows in ["[]", "", "{}", "[1]", "null", "[[]]"] {
                assert!(!facts.take(query, &result(rows)), "{query:?} {rows}");
            }
        }
        assert_eq!(facts, Facts::default());
    }

    #[test]
    fn enrolments_bring_platform_and_names() {
        let full = enroll(
            "9",
            &[
                (
                    "os_version",
                    &[("platform", "centos"), ("name", "CentOS"), ("version", "7")],
                ),
                (
                    "system_info",
                    &[
                        ("hostname", "web-1"),
                        ("uuid", "U"),
                        ("physical_memory", "1024"),
                    ],
                ),
                (
                    "osquery_info",
                    &[("version", "5.23.1"), ("instance_id", "i")],
                ),
                ("platform_info", &[("vendor", "Dell")]),
            ],
        );
        let facts = Facts::of_enrollment(&full);
        assert_eq!(facts.columns.platform.as_deref(), Some("centos"));
        assert_eq!(facts.columns.hostname.as_deref(), Some("web-1"));
        assert_eq!(facts.columns.memory, Some(1024));
        assert_eq!(facts.details["platform_info"]["vendor"], "Dell");
        for (mask, platform) in [
            ("9", Some("linux")),
            ("2", Some("windows")),
            ("21", Some("darwin")),
            ("37", Some("freebsd")),
            ("", None),
            ("x", None),
        ] {
            let facts = Facts::of_enrollment(&enroll(mask, &[]));
            assert_eq!(facts.columns.platform.as_deref(), platform, "{mask}");
        }
    }

    proptest! {
        #[test]
        fn anything_is_taken_without_panic_and_stays_short(
            rows in ".{0,200}",
            text in ".{0,600}",
            name in "(hostname|uuid|cpu_brand|[a-z]{1,9})",
        ) {
            for query in DetailQuery::ALL {
                facts(query, &rows);
            }
            let rows = serde_json::json!([{ name: text }]).to_string();
            let (_, facts) = facts(DetailQuery::SystemInfo, &rows);
            for value in [&facts.columns.hostname, &facts.columns.hardware_uuid, &facts.columns.cpu_brand] {
                prop_assert!(value.as_ref().is_none_or(|text| text.chars().count() <= TEXT_CHARS_MAX));
            }
        }
    }
}
