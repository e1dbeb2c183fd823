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

    fn of_mysql(statement: &str, number: u16, text: &str) -> Self {
        // Numbers are the servers', see https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html.
        let text = match number {
            // These quote names of columns, tables, users, never values of rows.
            1021 | 1040 | 1044 | 1045 | 1047 | 1049 | 1054 | 1064 | 1114 | 1142 | 1146 | 1205
            | 1213 | 1227 | 1290 | 1406 | 1461 | 1698 | 1792 | 1836 => text,
            _ => "no text, because it may quote values",
        };
        let text = format!("{statement}: error {number} of the server: {text}");
        let error = match number {
            // Deadlock, lock wait, changed since read.
            1020 | 1205 | 1213 => Error::Unavailable(text),
            // No access: database, user, no such database, table, privilege, user's plugin.
            1044 | 1045 | 1049 | 1142 | 1227 | 1698 => Error::Denied(text),
            // Full, too many connections, shutting down, killed, cluster not ready, read-only, statement lost.
            1021 | 1040 | 1047 | 1053 | 1114 | 1203 | 1243 | 1290 | 1317 | 1461 | 1792 | 1836
            | 1927 | 3024 => Error::Unavailable(text),
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
        matches!(self.number, 1290 | 1792 | 1836)
    }

    fn of_sqlite(statement: &str, code: u32, text: &str) -> Self {
        // The low byte is the primary code, see https://sqlite.org/rescode.html.
        let primary = code & 0xff;
        let text = format!("{statement}: SQLite error {code}: {text}");
        let error = match primary {
            // Busy, locked, read-only, IO error, full, cannot open.
            5 | 6 | 8 | 10 | 13 | 14 => Error::Unavailable(text),
            _ => Error::Failed(text),
        };
        Self {
            error,
            may_retry: matches!(primary, 5 | 6),
            number: 0,
        }
    }
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
