//! What preparing a database tells people while it goes on.
//!
//! Pure: values and their texts.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use fleet_protocol::grouped::Grouped;

/// How far preparing a database is. Its text is one line, without an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another node runs migrations.
    Queued {
        /// Since the first try.
        waited: Duration,
    },
    /// A statement that changes tables runs; told again every few seconds.
    Changing {
        /// Its number.
        migration: i64,
        /// The beginning of the statement.
        statement: String,
        /// Since it was first tried.
        elapsed: Duration,
    },
    /// A transaction holds what the migration needs. Others are let through before it is tried again.
    Blocked {
        /// Its number.
        migration: i64,
        /// The beginning of the statement.
        statement: String,
        /// Since it was first tried.
        elapsed: Duration,
        /// The pause that begins now.
        again_in: Duration,
    },
    /// The tables are as the migration wants them.
    Changed {
        /// Its number.
        migration: i64,
        /// All of its statements.
        took: Duration,
    },
    /// Rows are being filled in; told after each chunk.
    Filling(Filling),
    /// All rows are filled in.
    Filled(Filling),
}

/// How far the backfill of a migration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filling {
    /// Its number.
    pub migration: i64,
    /// What a row is, in the plural.
    pub rows: &'static str,
    /// Rows that were looked at, by whichever node.
    pub done: u64,
    /// All rows that have to be looked at.
    pub total: u64,
    /// Rows that this process has changed.
    pub changed: u64,
    /// Since this process began with it.
    pub elapsed: Duration,
    /// What is left at the pace so far; `None` before there is a pace.
    pub left: Option<Duration>,
    /// Another node does it, and this one looks on.
    pub is_elsewhere: bool,
}

impl Filling {
    /// Rows that have to be looked at yet.
    pub fn rows_left(&self) -> u64 {
        self.total.saturating_sub(self.done)
    }
}

impl Display for Progress {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queued { waited } => write!(
                f,
                "another node runs migrations; waiting for it, {} so far",
                Span(*waited)
            ),
            Self::Changing {
                migration,
                statement,
                elapsed,
            } => write!(
                f,
                "migration {migration}: {statement} …, {}",
                Span(*elapsed)
            ),
            Self::Blocked {
                migration,
                statement,
                elapsed,
                again_in,
            } => write!(
                f,
                "migration {migration}: {statement} … waits for a transaction that uses the table, {} so far; \
                 again in {}",
                Span(*elapsed),
                Span(*again_in)
            ),
            Self::Changed { migration, took } => {
                write!(f, "migration {migration}: tables changed, {}", Span(*took))
            }
            Self::Filling(filling) => filling.fmt(f),
            Self::Filled(filling) => write!(
                f,
                "migration {}: all {} {} looked at, {} filled in here, {}",
                filling.migration,
                Grouped(filling.total),
                filling.rows,
                Grouped(filling.changed),
                Span(filling.elapsed)
            ),
        }
    }
}

impl Display for Filling {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "migration {}: {} of {} {}, {}",
            self.migration,
            Grouped(self.done),
            Grouped(self.total),
            self.rows,
            Span(self.elapsed)
        )?;
        if let Some(left) = self.left {
            write!(f, ", {} left", Span(left))?;
        }
        if self.is_elsewhere {
            f.write_str(" (by another node)")?;
        }
        Ok(())
    }
}

/// A span of time in the one or two units that matter.
struct Span(Duration);

impl Display for Span {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            s @ 0..60 => write!(f, "{s} s"),
            s @ 60..3600 => write!(f, "{} min {} s", s / 60, s % 60),
            s => write!(f, "{} h {} min", s / 3600, s % 3600 / 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_for_people() {
        let mut filling = Filling {
            migration: 4,
            rows: "hosts",
            done: 120_000,
            total: 1_000_000,
            changed: 7,
            elapsed: Duration::from_secs(14),
            left: Some(Duration::from_secs(98)),
            is_elsewhere: false,
        };
        let text = |progress: Progress| progress.to_string();
        assert_eq!(
            text(Progress::Filling(filling.clone())),
            "migration 4: 120,000 of 1,000,000 hosts, 14 s, 1 min 38 s left"
        );
        assert_eq!(
            text(Progress::Filled(filling.clone())),
            "migration 4: all 1,000,000 hosts looked at, 7 filled in here, 14 s"
        );
        (filling.left, filling.is_elsewhere) = (None, true);
        assert_eq!(
            text(Progress::Filling(filling)),
            "migration 4: 120,000 of 1,000,000 hosts, 14 s (by another node)"
        );
        let blocked = Progress::Blocked {
            migration: 3,
            statement: "ALTER TABLE hosts".into(),
            elapsed: Duration::from_secs(7_500),
            again_in: Duration::from_secs(30),
        };
        assert_eq!(
            text(blocked),
            "migration 3: ALTER TABLE hosts … waits for a transaction that uses the table, 2 h 5 min so far; \
             again in 30 s"
        );
    }
}
