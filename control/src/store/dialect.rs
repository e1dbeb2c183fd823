//! Where SQL differs between the engines. Everything else is one text for both.
//!
//! Pure: builds texts, touches nothing.

/// Which SQL is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    /// MySQL and MariaDB.
    Mysql,
}

/// What an upsert does to a column of a row that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Takes the new value.
    Replace,
    /// Takes the new value unless it is null.
    Coalesce,
    /// Takes the higher one.
    Max,
    /// Merges JSON objects (RFC 7396).
    Merge,
    /// Stays: part of the key, or written once.
    Keep,
}

/// A multi-row insert that updates the rows that exist. `columns` begin with the key's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Upsert<'a> {
    pub(super) table: &'a str,
    pub(super) key: &'a [&'a str],
    pub(super) columns: &'a [(&'a str, Rule)],
}

impl Dialect {
    /// The text for `rows` rows.
    pub(super) fn upsert(self, upsert: &Upsert<'_>, rows: usize) -> String {
        let names: Vec<&str> = upsert.columns.iter().map(|(name, _)| *name).collect();
        let updates: Vec<String> = upsert
            .columns
            .iter()
            .filter_map(|(name, rule)| self.update(upsert.table, name, *rule))
            .collect();
        let key = upsert.key.join(", ");
        let conflict = match (self, updates.is_empty()) {
            (_, true) => self.keep(&key),
            (Self::Sqlite, false) => {
                format!("ON CONFLICT ({key}) DO UPDATE SET {}", updates.join(", "))
            }
            (Self::Mysql, false) => format!("ON DUPLICATE KEY UPDATE {}", updates.join(", ")),
        };
        format!(
            "INSERT INTO {} ({}) VALUES {} {conflict}",
            upsert.table,
            names.join(", "),
            tuples(rows, names.len()),
        )
    }

    fn update(self, table: &str, name: &str, rule: Rule) -> Option<String> {
        // VALUES() is deprecated in MySQL 8.0.20, but its successor is unknown to MariaDB.
        let new = match self {
            Self::Sqlite => format!("excluded.{name}"),
            Self::Mysql => format!("VALUES({name})"),
        };
        let old = format!("{table}.{name}");
        let value = match (rule, self) {
            (Rule::Keep, _) => return None,
            (Rule::Replace, _) => new,
            (Rule::Coalesce, _) => format!("COALESCE({new}, {old})"),
            (Rule::Max, Self::Sqlite) => format!("MAX({new}, {old})"),
            (Rule::Max, Self::Mysql) => format!("GREATEST({new}, {old})"),
            (Rule::Merge, Self::Sqlite) => {
                format!("json_patch(COALESCE({old}, '{{}}'), COALESCE({new}, '{{}}'))")
            }
            (Rule::Merge, Self::Mysql) => {
                format!("JSON_MERGE_PATCH(COALESCE({old}, '{{}}'), COALESCE({new}, '{{}}'))")
            }
        };
        Some(format!("{name} = {value}"))
    }

    /// The end of an insert that leaves rows that exist. Not INSERT IGNORE, which hides other errors as well.
    fn keep(self, key: &str) -> String {
        match self {
            Self::Sqlite => "ON CONFLICT DO NOTHING".to_owned(),
            Self::Mysql => {
                let first = key.split(',').next().unwrap_or(key);
                format!("ON DUPLICATE KEY UPDATE {first} = {first}")
            }
        }
    }

    /// Adds to a counter, takes its row's lock until the end of the transaction, and gives the new value: as a row in
    /// SQLite, as the last insert id in MySQL.
    pub(super) fn advance(self) -> &'static str {
        match self {
            Self::Sqlite => "UPDATE counters SET value = value + ? WHERE name = ? RETURNING value",
            Self::Mysql => "UPDATE counters SET value = LAST_INSERT_ID(value + ?) WHERE name = ?",
        }
    }

    /// Starts a writing transaction. SQLite takes its write lock at once, so that it can be waited for.
    pub(super) fn begin(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Mysql => "START TRANSACTION",
        }
    }

    /// The end of a read whose rows must not change before the transaction ends. SQLite's writer is alone anyway.
    pub(super) fn lock_rows(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Mysql => "FOR UPDATE",
        }
    }

    /// Whether a table exists; its name is the parameter.
    pub(super) fn table_exists(self) -> &'static str {
        match self {
            Self::Sqlite => "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = ?",
            Self::Mysql => {
                "SELECT COUNT(*) FROM information_schema.tables \
                 WHERE table_schema = DATABASE() AND table_name = ?"
            }
        }
    }

    /// A migration's text with its tokens replaced.
    pub(super) fn migration(self, text: &str) -> String {
        let pairs: [(&str, &str, &str); 7] = [
            ("$NAME", "TEXT", "VARCHAR(255)"),
            ("$TEXT", "TEXT", "MEDIUMTEXT"),
            ("$HASH", "BLOB", "BINARY(32)"),
            ("$BYTES", "BLOB", "MEDIUMBLOB"),
            ("$PAIRS", "WITHOUT ROWID", TABLE_MYSQL),
            ("$TABLE", "", TABLE_MYSQL),
            // MySQL knows no IF NOT EXISTS here; its error for an index that exists is taken as success.
            ("$GUARD", "IF NOT EXISTS", ""),
        ];
        let mut text = text.to_owned();
        for (token, sqlite, mysql) in pairs {
            let value = match self {
                Self::Sqlite => sqlite,
                Self::Mysql => mysql,
            };
            text = text.replace(token, value);
        }
        for key in ["name", "id"] {
            text = text.replace(&format!("$KEEP({key})"), &self.keep(key));
        }
        text
    }
}

/// Binary collation: identifiers compare as bytes, in both engines.
const TABLE_MYSQL: &str =
    "ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin ROW_FORMAT=DYNAMIC";

/// `(?, ?), (?, ?)`: `rows` tuples of `columns` parameters.
pub(super) fn tuples(rows: usize, columns: usize) -> String {
    let tuple = format!("({})", parameters(columns));
    vec![tuple.as_str(); rows].join(", ")
}

/// `?, ?, ?`.
pub(super) fn parameters(count: usize) -> String {
    vec!["?"; count].join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upserts_speak_both_dialects() {
        let upsert = Upsert {
            table: "t",
            key: &["id"],
            columns: &[("id", Rule::Keep), ("a", Rule::Replace), ("b", Rule::Max)],
        };
        assert_eq!(
            Dialect::Sqlite.upsert(&upsert, 2),
            "INSERT INTO t (id, a, b) VALUES (?, ?, ?), (?, ?, ?) \
             ON CONFLICT (id) DO UPDATE SET a = excluded.a, b = MAX(excluded.b, t.b)"
        );
        assert_eq!(
            Dialect::Mysql.upsert(&upsert, 1),
            "INSERT INTO t (id, a, b) VALUES (?, ?, ?) \
             ON DUPLICATE KEY UPDATE a = VALUES(a), b = GREATEST(VALUES(b), t.b)"
        );
        let keep = Upsert {
            columns: &[("id", Rule::Keep)],
            ..upsert
        };
        assert_eq!(
            Dialect::Mysql.upsert(&keep, 1),
            "INSERT INTO t (id) VALUES (?) ON DUPLICATE KEY UPDATE id = id"
        );
    }
}
