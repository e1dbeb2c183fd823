//! What can go wrong, told apart by what the caller can do about it.
//!
//! Invariant: texts hold no values of rows or parameters, because those may be secrets.

use sqlx::mysql::MySqlDatabaseError;

/// Why a call failed. Texts hold no secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The engine is not there, does not answer in time, or takes no writes now. Come again later.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// The server is there and does not let us in, or not do what we must: user, password, privileges, database. Only
    /// an operator can mend that, and agents come again meanwhile.
    #[error(
        "store denies access (check mysql.username, its password and privileges, mysql.database): {0}"
    )]
    Denied(String),
    /// The caller asked for something that makes no sense; the text is for people.
    #[error("{0}")]
    Invalid(String),
    /// Migrations are missing; `prepare db` runs them.
    #[error(
        "the database is not prepared (migrations missing: {missing}); run: fleet-supervisor prepare db"
    )]
    NotPrepared {
        /// How many.
        missing: usize,
    },
    /// The engine refused a statement: a bug, or a database that somebody else changed.
    #[error("store failed: {0}")]
    Failed(String),
}

impl Error {
    /// Whether the same call may succeed later without a change on our side.
    pub(crate) fn is_away(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Denied(_))
    }

    /// The same of somebody who was not let in at all: whatever the reason, no statement is to blame, and no row.
    pub(super) fn on_the_way(self) -> Self {
        match self {
            Self::Unavailable(_) | Self::Denied(_) => self,
            Self::Invalid(text) | Self::Failed(text) => Self::Unavailable(text),
            Self::NotPrepared { .. } => Self::Unavailable(self.to_string()),
        }
    }
}

/// Result of every call.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// An error inside an operation, with what to do about the operation.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) error: Error,
    /// Nothing was done and the same may succeed at once: deadlock, lock wait, busy.
    pub(super) may_retry: bool,
    /// MySQL's number of the error, else zero.
    pub(super) number: u16,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self {
            error,
            may_retry: false,
            number: 0,
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        fault.error
    }
}

impl Fault {
    /// What a statement's error means.
    pub(super) fn of(statement: &str, error: &sqlx::Error) -> Self {
        if let sqlx::Error::Database(database) = error {
            let text = database.message();
            return match database.try_downcast_ref::<MySqlDatabaseError>() {
                Some(mysql) => Self::of_mysql(statement, mysql.number(), text),
                None => {
                    let code = database.code().and_then(|code| code.parse().ok());
                    Self::of_sqlite(statement, code.unwrap_or(0), text)
                }
            };
        }
        let error = match error {
            sqlx::Error::Io(error) => Error::Unavailable(format!("{statement}: {error}")),
            sqlx::Error::Tls(error) => Error::Unavailable(format!("TLS: {error}")),
            sqlx::Error::PoolTimedOut => Error::Unavailable("no connection in time".into()),
            sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
                Error::Unavailable("closed".into())
            }
            sqlx::Error::Protocol(_) => {
                Error::Unavailable(format!("{statement}: the connection is out of step"))
            }
            sqlx::Error::Configuration(error) => Error::Invalid(error.to_string()),
            // Decoding errors quote values.
            _ => Error::Failed(format!("{statement}: a value has an unexpected type")),
        };
        error.into()
    }

    /// What the error of a connection means that could not be made, or does not live any more.
    pub(super) fn of_connecting(error: &sqlx::Error) -> Self {
        let mut fault = Self::of("connect", error);
        fault.error = fault.error.on_the_way();
        fault
    }

    fn of_mysql(statement: &str, number: u16, text: &str) -> Self {
        // Numbers are the servers', see https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html.
        let text = match number {
            // These quote names of columns, tables, users, never values of rows.
            1021 | 1040 | 1044 | 1045 | 1047 | 1049 | 1054 | 1064 | 1114 | 1129 | 1130 | 1142
            | 1146 | 1193 | 1205 | 1213 | 1226 | 1227 | 1290 | 1406 | 1461 | 1698 | 1792 | 1836
            | 1862 | 1874 | 3032 | 3118 => text,
            _ => "no text, because it may quote values",
        };
        let text = format!("{statement}: error {number} of the server: {text}");
        let error = match number {
            // Deadlock, lock wait, changed since read.
            1020 | 1205 | 1213 => Error::Unavailable(text),
            // No access: database, user, no such database, table, privilege, user's plugin.
            1044 | 1045 | 1049 | 1142 | 1227 | 1698 => Error::Denied(text),
            _ if is_servers_trouble(number) => Error::Unavailable(text),
            _ => Error::Failed(text),
        };
        Self {
            error,
            may_retry: matches!(number, 1020 | 1205 | 1213),
            number,
        }
    }

    /// The server was demoted, or never was a primary.
    pub(super) fn is_read_only(&self) -> bool {
        matches!(self.number, 1290 | 1792 | 1836 | 1874)
    }

    /// The server, or a proxy before it, does not know a variable that was asked for.
    pub(super) fn is_unknown_variable(&self) -> bool {
        self.number == 1193
    }

    fn of_sqlite(statement: &str, code: u32, text: &str) -> Self {
        // The low byte is the primary code, see https://sqlite.org/rescode.html.
        let primary = code & 0xff;
        let text = format!("{statement}: SQLite error {code}: {text}");
        let error = match primary {
            // No permission, busy, locked, no memory, read-only, interrupted, IO error, full, cannot open, no lock.
            3 | 5 | 6 | 7 | 8 | 9 | 10 | 13 | 14 | 15 => Error::Unavailable(text),
            _ => Error::Failed(text),
        };
        Self {
            error,
            may_retry: matches!(primary, 5 | 6),
            number: 0,
        }
    }
}

/// Whether an error of this number lies with the server or the way to it, so that the same statement may succeed
/// later. A packet that is too large (1153) is not among them: it would be too large for ever.
fn is_servers_trouble(number: u16) -> bool {
    matches!(
        number,
        // Disk: full, writing, the engine's own error, table full, table read-only.
        1021 | 1026 | 1030 | 1036 | 1114
        // Memory, threads, locks: used up.
        | 1037 | 1038 | 1041 | 1135 | 1206 | 1637
        // Too many connections, of all or of a user; a user's other limits; too many prepared statements.
        | 1040 | 1203 | 1226 | 1461
        // Shutting down, offline, a cluster's node that is not ready.
        | 1047 | 1053 | 1077..=1080 | 3032 | 3168
        // The connection: aborted, killed, out of step, idle for too long.
        | 1152 | 1154..=1161 | 1184 | 1927 | 3169 | 4031
        // The statement: interrupted, out of time, its preparation lost.
        | 1243 | 1317 | 1615 | 1969 | 3024
        // The end of a transaction: not committed, not undone, stopped by the cluster.
        | 1180 | 1181 | 3100 | 3101
        // Read-only.
        | 1290 | 1792 | 1836 | 1874
        // What proxies say of the server behind them.
        | 2002 | 2003 | 2005 | 2006 | 2013 | 2055 | 9001
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_only_and_full_are_unavailable() {
        for number in [1290, 1792, 1836, 1114] {
            let fault = Fault::of_mysql("x", number, "text");
            assert!(matches!(fault.error, Error::Unavailable(_)), "{number}");
            assert!(!fault.may_retry);
        }
        for code in [13, 10, 10 | 3 << 8, 8] {
            assert!(matches!(
                Fault::of_sqlite("x", code, "").error,
                Error::Unavailable(_)
            ));
        }
    }

    #[test]
    fn the_servers_trouble_is_not_taken_for_a_bad_row() {
        for number in [
            1026, 1030, 1040, 1041, 1053, 1077, 1078, 1079, 1080, 1152, 1156, 1158, 1161, 1180,
            1205, 1213, 1226, 1969, 2006, 2013, 3032, 3100, 3101,
        ] {
            let error = Fault::of_mysql("x", number, "text").error;
            assert!(matches!(error, Error::Unavailable(_)), "{number}");
        }
        for code in [7, 10, 15] {
            let error = Fault::of_sqlite("x", code, "").error;
            assert!(matches!(error, Error::Unavailable(_)), "{code}");
        }
        // Duplicate, too long, too large a packet, no such variable: the same for ever.
        for number in [1062, 1406, 1153, 1193] {
            let error = Fault::of_mysql("x", number, "text").error;
            assert!(matches!(error, Error::Failed(_)), "{number}");
        }
        assert!(matches!(
            Fault::of_sqlite("x", 19, "").error,
            Error::Failed(_)
        ));
    }

    #[test]
    fn who_is_not_let_in_blames_no_row() {
        let wrong = sqlx::Error::Configuration("no such file".into());
        assert!(matches!(
            Fault::of_connecting(&wrong).error,
            Error::Unavailable(_)
        ));
        for number in [1129, 1130, 1862, 3118] {
            let error = Fault::of_mysql("connect", number, "blocked").error;
            let error = error.on_the_way();
            assert!(matches!(&error, Error::Unavailable(text) if text.contains("blocked")));
        }
        let denied = Fault::of_mysql("connect", 1045, "").error.on_the_way();
        assert!(matches!(denied, Error::Denied(_)));
    }

    #[test]
    fn who_is_denied_is_not_told_that_the_server_is_away() {
        for number in [1044, 1045, 1049, 1142, 1227, 1698] {
            let error = Fault::of_mysql("connect", number, "Access denied").error;
            assert!(matches!(error, Error::Denied(_)), "{number}");
            assert!(error.is_away());
            assert!(error.to_string().contains("mysql.username"), "{error}");
        }
    }

    #[test]
    fn deadlocks_may_be_retried() {
        assert!(Fault::of_mysql("x", 1213, "").may_retry);
        assert!(Fault::of_mysql("x", 1205, "").may_retry);
        assert!(Fault::of_sqlite("x", 517, "").may_retry);
        assert!(!Fault::of_mysql("x", 1062, "").may_retry);
    }

    #[test]
    fn values_are_not_quoted() {
        let fault = Fault::of_mysql("x", 1062, "Duplicate entry 'hunter2' for key 'PRIMARY'");
        assert!(!fault.error.to_string().contains("hunter2"));
    }
}
