//! Which tables and columns a source has, and the SQL that reads what is there. Pure.
//!
//! Schemas of Kolide Fleet 3.x and of Fleet 4.0 to 4.92 differ in tables and in names of columns, so nothing is taken for
//! granted: what a source lacks is read as NULL and named in the report.

use std::collections::{BTreeMap, BTreeSet};

/// Reads `table_name, column_name` of everything that may be of use.
pub(super) const COLUMNS: &str = "SELECT CAST(table_name AS CHAR), CAST(column_name AS CHAR) \
    FROM information_schema.columns WHERE table_schema = DATABASE()";

/// Tables whose rows are counted because they are left behind, and what a row is.
const LEFT_BEHIND: [(&str, &str); 3] = [
    ("teams", "teams"),
    ("policies", "policies"),
    ("invites", "invitations of users"),
];

/// Columns by table, in lower case.
#[derive(Clone, Debug, Default)]
pub(super) struct Shape {
    tables: BTreeMap<String, BTreeSet<String>>,
}

/// A statement that reads rows by a growing id: parameters are the id to begin after and the number of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) sql: String,
    /// `table.column` of what is read as NULL.
    pub(super) missing: Vec<String>,
}

/// What a value is read as.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Int,
    /// Seconds since 1970.
    Time,
    /// Billions of bytes, read as bytes.
    Gigabytes,
}

/// A value, the tables that may hold it, and its names there, newest first.
type Wanted = (Kind, &'static [(&'static str, &'static str)]);

/// In the order in which `source.rs` reads them; the id comes first.
const HOST: [Wanted; 31] = [
    (Kind::Text, &[("hosts", "node_key")]),
    (Kind::Text, &[("hosts", "osquery_host_id")]),
    (Kind::Text, &[("hosts", "public_ip")]),
    (
        Kind::Time,
        &[
            ("hosts", "last_enrolled_at"),
            ("hosts", "last_enroll_time"),
            ("hosts", "created_at"),
        ],
    ),
    (
        Kind::Time,
        &[("host_seen_times", "seen_time"), ("hosts", "seen_time")],
    ),
    (
        Kind::Time,
        &[
            ("hosts", "detail_updated_at"),
            ("hosts", "detail_update_time"),
        ],
    ),
    (
        Kind::Time,
        &[
            ("hosts", "label_updated_at"),
            ("hosts", "label_update_time"),
        ],
    ),
    (Kind::Int, &[("hosts", "refetch_requested")]),
    (Kind::Int, &[("hosts", "team_id")]),
    (Kind::Text, &[("hosts", "platform")]),
    (Kind::Text, &[("hosts", "platform_like")]),
    (Kind::Text, &[("hosts", "os_version")]),
    (Kind::Text, &[("hosts", "osquery_version")]),
    (Kind::Text, &[("hosts", "hostname"), ("hosts", "host_name")]),
    (Kind::Text, &[("hosts", "computer_name")]),
    (Kind::Text, &[("hosts", "uuid")]),
    (Kind::Text, &[("hosts", "hardware_serial")]),
    (Kind::Text, &[("hosts", "hardware_model")]),
    (Kind::Text, &[("hosts", "hardware_vendor")]),
    (Kind::Text, &[("hosts", "cpu_brand")]),
    (Kind::Text, &[("hosts", "cpu_type")]),
    (Kind::Int, &[("hosts", "cpu_physical_cores")]),
    (Kind::Int, &[("hosts", "cpu_logical_cores")]),
    (
        Kind::Int,
        &[("hosts", "memory"), ("hosts", "physical_memory")],
    ),
    (Kind::Text, &[("hosts", "primary_ip")]),
    (Kind::Text, &[("hosts", "primary_mac")]),
    (Kind::Gigabytes, &[("host_disks", "gigs_total_disk_space")]),
    (
        Kind::Gigabytes,
        &[
            ("host_disks", "gigs_disk_space_available"),
            ("hosts", "gigs_disk_space_available"),
        ],
    ),
    (Kind::Int, &[("hosts", "distributed_interval")]),
    (Kind::Int, &[("hosts", "config_tls_refresh")]),
    (Kind::Int, &[("hosts", "logger_tls_period")]),
];

const LABEL: [Wanted; 7] = [
    (Kind::Text, &[("labels", "name")]),
    (Kind::Text, &[("labels", "description")]),
    (Kind::Text, &[("labels", "query")]),
    (Kind::Text, &[("labels", "platform")]),
    (Kind::Int, &[("labels", "label_type")]),
    (Kind::Int, &[("labels", "label_membership_type")]),
    (Kind::Int, &[("labels", "team_id")]),
];

const QUERY: [Wanted; 11] = [
    (Kind::Text, &[("queries", "name")]),
    (Kind::Text, &[("queries", "description")]),
    (Kind::Text, &[("queries", "query")]),
    (Kind::Int, &[("queries", "saved")]),
    (Kind::Int, &[("queries", "team_id")]),
    (Kind::Int, &[("queries", "schedule_interval")]),
    (Kind::Text, &[("queries", "platform")]),
    (Kind::Text, &[("queries", "min_osquery_version")]),
    (Kind::Int, &[("queries", "automations_enabled")]),
    (Kind::Text, &[("queries", "logging_type")]),
    (Kind::Int, &[("queries", "observer_can_run")]),
];

const PACK: [Wanted; 5] = [
    (Kind::Text, &[("packs", "name")]),
    (Kind::Text, &[("packs", "description")]),
    (Kind::Text, &[("packs", "platform")]),
    (Kind::Int, &[("packs", "disabled")]),
    (Kind::Text, &[("packs", "pack_type")]),
];

const PACK_TARGET: [Wanted; 3] = [
    (Kind::Int, &[("pack_targets", "pack_id")]),
    (Kind::Int, &[("pack_targets", "type")]),
    (Kind::Int, &[("pack_targets", "target_id")]),
];

const PACK_QUERY: [Wanted; 12] = [
    (Kind::Int, &[("scheduled_queries", "pack_id")]),
    (Kind::Int, &[("scheduled_queries", "query_id")]),
    (Kind::Text, &[("scheduled_queries", "query_name")]),
    (Kind::Text, &[("scheduled_queries", "name")]),
    (Kind::Text, &[("scheduled_queries", "description")]),
    (Kind::Int, &[("scheduled_queries", "interval")]),
    (Kind::Int, &[("scheduled_queries", "snapshot")]),
    (Kind::Int, &[("scheduled_queries", "removed")]),
    (Kind::Int, &[("scheduled_queries", "shard")]),
    (Kind::Text, &[("scheduled_queries", "platform")]),
    (Kind::Text, &[("scheduled_queries", "version")]),
    (Kind::Int, &[("scheduled_queries", "denylist")]),
];

const USER: [Wanted; 6] = [
    (Kind::Text, &[("users", "name"), ("users", "username")]),
    (Kind::Text, &[("users", "email")]),
    (Kind::Text, &[("users", "global_role")]),
    (Kind::Int, &[("users", "admin")]),
    (Kind::Int, &[("users", "enabled")]),
    (Kind::Int, &[("users", "api_only")]),
];

impl Shape {
    pub(super) fn new(columns: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut tables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (table, column) in columns {
            let columns = tables.entry(table.to_lowercase()).or_default();
            columns.insert(column.to_lowercase());
        }
        Self { tables }
    }

    pub(super) fn has(&self, table: &str, column: &str) -> bool {
        let columns = self.tables.get(table);
        columns.is_some_and(|columns| columns.contains(column))
    }

    /// Whether this looks like Fleet's or Kolide's database at all.
    pub(super) fn is_known(&self) -> bool {
        self.has("hosts", "node_key") && self.has("hosts", "id")
    }

    /// Which product made it, as far as its tables tell.
    pub(super) fn product(&self) -> &'static str {
        if self.tables.contains_key("app_config_json") {
            "Fleet 4"
        } else if self.has("app_configs", "agent_options") {
            "Fleet 4, an early one"
        } else {
            "Kolide Fleet 3 or older"
        }
    }

    /// Whether the schedule of all hosts stands in `queries`; before, it was a pack.
    pub(super) fn has_query_schedule(&self) -> bool {
        self.has("queries", "schedule_interval")
    }

    pub(super) fn hosts(&self) -> Reading {
        self.reading(
            "hosts",
            &HOST,
            &[("host_seen_times", "host_id"), ("host_disks", "host_id")],
        )
    }

    /// How many hosts there are in all, and with a higher id than the parameter.
    pub(super) fn host_counts(&self) -> String {
        let is_live = self.is_live("hosts", "t");
        format!(
            "SELECT COUNT(*), CAST(COALESCE(SUM(t.id > ?), 0) AS SIGNED) FROM hosts t WHERE {is_live}"
        )
    }

    /// `host_id, label_id`; parameters are the host to begin after and the last one.
    pub(super) fn members(&self) -> Option<String> {
        let (table, condition) = if self.has("label_membership", "label_id") {
            ("label_membership", "")
        } else if self.has("label_query_executions", "matches") {
            ("label_query_executions", " AND m.matches = 1")
        } else {
            return None;
        };
        Some(format!(
            "SELECT CAST(m.host_id AS SIGNED), CAST(m.label_id AS SIGNED) FROM {table} m \
             WHERE m.host_id > ? AND m.host_id <= ?{condition}"
        ))
    }

    pub(super) fn labels(&self) -> Option<Reading> {
        self.reading_of("labels", &LABEL)
    }

    pub(super) fn queries(&self) -> Option<Reading> {
        self.reading_of("queries", &QUERY)
    }

    pub(super) fn packs(&self) -> Option<Reading> {
        self.reading_of("packs", &PACK)
    }

    pub(super) fn pack_targets(&self) -> Option<Reading> {
        self.reading_of("pack_targets", &PACK_TARGET)
    }

    pub(super) fn pack_queries(&self) -> Option<Reading> {
        self.reading_of("scheduled_queries", &PACK_QUERY)
    }

    pub(super) fn users(&self) -> Option<Reading> {
        self.reading_of("users", &USER)
    }

    /// Enroll secrets as one column.
    pub(super) fn secrets(&self) -> Option<String> {
        if self.has("enroll_secrets", "secret") {
            let active = if self.has("enroll_secrets", "active") {
                " WHERE active <> 0"
            } else {
                ""
            };
            return Some(format!(
                "SELECT DISTINCT secret FROM enroll_secrets{active}"
            ));
        }
        self.has("app_configs", "osquery_enroll_secret").then(|| {
            "SELECT osquery_enroll_secret FROM app_configs \
             WHERE osquery_enroll_secret <> '' LIMIT 1"
                .to_owned()
        })
    }

    /// The settings as one JSON text.
    pub(super) fn app_config(&self) -> Option<&'static str> {
        if self.has("app_config_json", "json_value") {
            Some("SELECT json_value FROM app_config_json ORDER BY id LIMIT 1")
        } else {
            None
        }
    }

    /// Agent options as one JSON text, of the first Fleet 4.
    pub(super) fn agent_options(&self) -> Option<&'static str> {
        self.has("app_configs", "agent_options")
            .then_some("SELECT agent_options FROM app_configs ORDER BY id LIMIT 1")
    }

    /// `override_type, override_identifier, options` of Kolide Fleet.
    pub(super) fn osquery_options(&self) -> Option<&'static str> {
        self.has("osquery_options", "options").then_some(
            "SELECT CAST(override_type AS SIGNED), override_identifier, options \
             FROM osquery_options ORDER BY id LIMIT 1000",
        )
    }

    /// Statements that count what is not copied, and what a row is.
    pub(super) fn left_behind(&self) -> Vec<(String, &'static str)> {
        LEFT_BEHIND
            .into_iter()
            .filter(|(table, _)| self.tables.contains_key(*table))
            .map(|(table, what)| (format!("SELECT COUNT(*) FROM {table}"), what))
            .collect()
    }

    fn reading_of(&self, table: &str, wanted: &[Wanted]) -> Option<Reading> {
        let is_there = self.has(table, "id");
        is_there.then(|| self.reading(table, wanted, &[]))
    }

    /// Rows that an old Kolide Fleet marked as deleted are none.
    fn is_live(&self, table: &str, alias: &str) -> String {
        if self.has(table, "deleted") {
            format!("{alias}.deleted = 0")
        } else {
            "1 = 1".to_owned()
        }
    }

    fn reading(&self, table: &str, wanted: &[Wanted], joined: &[(&str, &str)]) -> Reading {
        let mut items = vec!["CAST(t.id AS SIGNED)".to_owned()];
        let mut missing = Vec::new();
        let joined: Vec<&(&str, &str)> = joined
            .iter()
            .filter(|(other, key)| self.has(other, key))
            .collect();
        for (kind, places) in wanted {
            let found = places.iter().find(|(place, column)| {
                let is_joined = joined.iter().any(|(other, _)| other == place);
                (*place == table || is_joined) && self.has(place, column)
            });
            items.push(match found {
                Some((place, column)) if *place == table => kind.expression("t", column),
                Some((place, column)) => kind.expression(place, column),
                None => {
                    let first = places.first();
                    missing.extend(first.map(|(place, column)| format!("{place}.{column}")));
                    "NULL".to_owned()
                }
            });
        }
        let joins: String = joined
            .iter()
            .map(|(other, key)| format!(" LEFT JOIN {other} ON {other}.{key} = t.id"))
            .collect();
        let is_live = self.is_live(table, "t");
        let sql = format!(
            "SELECT {} FROM {table} t{joins} WHERE t.id > ? AND {is_live} ORDER BY t.id LIMIT ?",
            items.join(", ")
        );
        Reading { sql, missing }
    }
}

impl Kind {
    /// Numbers are cast, because a driver reads a number by the type that the server declares.
    fn expression(self, table: &str, column: &str) -> String {
        match self {
            Self::Text => format!("{table}.`{column}`"),
            Self::Int => format!("CAST({table}.`{column}` AS SIGNED)"),
            Self::Time => format!("CAST(UNIX_TIMESTAMP({table}.`{column}`) AS SIGNED)"),
            Self::Gigabytes => format!("CAST({table}.`{column}` * 1000000000 AS SIGNED)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(tables: &[(&str, &str)]) -> Shape {
        Shape::new(tables.iter().flat_map(|(table, columns)| {
            columns
                .split(' ')
                .map(|column| ((*table).to_owned(), column.to_owned()))
        }))
    }

    #[test]
    fn old_and_new_names_are_found() {
        let new = shape(&[
            (
                "hosts",
                "id node_key hostname memory last_enrolled_at created_at",
            ),
            ("HOST_SEEN_TIMES", "host_id SEEN_TIME"),
        ]);
        let reading = new.hosts();
        for part in [
            "t.`hostname`",
            "CAST(t.`memory` AS SIGNED)",
            "UNIX_TIMESTAMP(t.`last_enrolled_at`)",
            "UNIX_TIMESTAMP(host_seen_times.`seen_time`)",
            "LEFT JOIN host_seen_times ON host_seen_times.host_id = t.id",
            "WHERE t.id > ? AND 1 = 1 ORDER BY t.id LIMIT ?",
        ] {
            assert!(reading.sql.contains(part), "{part}: {}", reading.sql);
        }
        assert!(reading.missing.contains(&"hosts.public_ip".to_owned()));
        assert!(!reading.sql.contains("host_disks"), "{}", reading.sql);

        let old = shape(&[(
            "hosts",
            "id node_key host_name physical_memory seen_time created_at deleted",
        )]);
        let reading = old.hosts();
        for part in [
            "t.`host_name`",
            "CAST(t.`physical_memory` AS SIGNED)",
            "UNIX_TIMESTAMP(t.`created_at`)",
            "UNIX_TIMESTAMP(t.`seen_time`)",
            "t.deleted = 0",
        ] {
            assert!(reading.sql.contains(part), "{part}: {}", reading.sql);
        }
        assert_eq!(old.product(), "Kolide Fleet 3 or older");
    }

    #[test]
    fn every_wanted_value_has_its_place_in_the_row() {
        let empty = Shape::default();
        for (table, wanted) in [("hosts", &HOST[..]), ("queries", &QUERY), ("packs", &PACK)] {
            let reading = empty.reading(table, wanted, &[]);
            assert_eq!(reading.missing.len(), wanted.len());
            assert_eq!(reading.sql.matches("NULL").count(), wanted.len());
        }
        assert!(!empty.is_known());
        assert_eq!(empty.labels(), None);
        assert_eq!(empty.members(), None);
        assert_eq!(empty.secrets(), None);
    }

    #[test]
    fn secrets_stood_in_three_places() {
        let of = |tables: &[(&str, &str)]| shape(tables).secrets().unwrap();
        assert!(!of(&[("enroll_secrets", "secret team_id")]).contains("active"));
        assert!(of(&[("enroll_secrets", "name secret active")]).contains("active <> 0"));
        assert!(of(&[("app_configs", "osquery_enroll_secret")]).contains("FROM app_configs"));
    }
}
