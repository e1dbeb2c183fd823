//! Migrations: compiled in, numbered, each run once.
//!
//! Owner of the table `migrations`. MySQL commits each statement that changes tables, so a migration may stop half-way:
//! every statement may run again. An advisory lock (SQLite: the write lock) keeps two nodes from running them at once.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::dialect::Dialect;
use super::error::{Error, Fault, Result};
use super::pools::Purpose;
use super::session::{Attempts, Session};
use super::{Store, now};

/// In order.
const MIGRATIONS: [(i64, &str); 3] = [
    (1, include_str!("../../migrations/0001_start.sql")),
    (2, include_str!("../../migrations/0002_public_ip.sql")),
    (
        3,
        include_str!("../../migrations/0003_previous_address.sql"),
    ),
];

/// A statement on a large table takes its time.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(4 * 3600);
/// Another node may be at it.
const LOCK_WAIT_S: u32 = 600;
/// Named after the database, because MySQL's locks are the server's.
const LOCK_NAME: &str = "CONCAT('fleet.', SHA1(DATABASE()))";

impl Store {
    /// Migrations that have not run; works on an empty database.
    pub(crate) async fn missing_migrations(&self) -> Result<usize> {
        let mut session = self.session(Purpose::Read).await?;
        Ok(missing(&mut session).await?.len())
    }

    /// `NotPrepared` when migrations are missing. Unknown newer ones are only warned of: an older binary may serve
    /// while a fleet of nodes is upgraded.
    pub(crate) async fn require_prepared(&self) -> Result<()> {
        match self.missing_migrations().await? {
            0 => Ok(()),
            missing => Err(Error::NotPrepared { missing }),
        }
    }

    /// Runs what is missing of the migrations; several nodes may do so at once. Returns how many ran.
    pub(crate) async fn prepare(&self) -> Result<usize> {
        match self.dialect {
            Dialect::Sqlite => {
                let mut session = Attempts::new(self).begin().await?;
                session.allow(STATEMENT_DEADLINE);
                let outcome = run_missing(&mut session).await;
                Ok(session.end(outcome).await?)
            }
            Dialect::Mysql => {
                let mut session = self.session(Purpose::Write).await?;
                session.allow(STATEMENT_DEADLINE);
                let sql = format!("SELECT GET_LOCK({LOCK_NAME}, {LOCK_WAIT_S})");
                let taken = session.row("migrate_lock", sql, &[]).await?;
                if taken.map_or(Ok(0), |row| row.int(0))? != 1 {
                    let text = "another node has been running migrations for ten minutes";
                    return Err(Error::Unavailable(text.into()));
                }
                let outcome = run_missing(&mut session).await;
                let sql = format!("SELECT RELEASE_LOCK({LOCK_NAME})");
                session.rows("migrate_unlock", sql, &[]).await?;
                Ok(outcome?)
            }
        }
    }
}

async fn missing(
    session: &mut Session<'_>,
) -> std::result::Result<Vec<(i64, &'static str)>, Fault> {
    let sql = session.dialect().table_exists();
    let exists = session
        .row("migrations_exist", sql, &["migrations".into()])
        .await?;
    let mut applied = BTreeSet::new();
    if exists.map_or(Ok(0), |row| row.int(0))? > 0 {
        let sql = "SELECT version FROM migrations";
        for row in session.rows("migrations_list", sql, &[]).await? {
            applied.insert(row.int(0)?);
        }
    }
    let newest = MIGRATIONS.last().map_or(0, |(version, _)| *version);
    if let Some(unknown) = applied.range(newest + 1..).next_back() {
        tracing::warn!(
            database = unknown,
            binary = newest,
            "the database was prepared by a newer version"
        );
    }
    Ok(MIGRATIONS
        .into_iter()
        .filter(|(version, _)| !applied.contains(version))
        .collect())
}

async fn run_missing(session: &mut Session<'_>) -> std::result::Result<usize, Fault> {
    let table = "CREATE TABLE IF NOT EXISTS migrations \
        (version BIGINT NOT NULL PRIMARY KEY, applied_at BIGINT NOT NULL) $TABLE";
    let table = session.dialect().migration(table);
    session.command("migrate", table).await?;
    let missing = missing(session).await?;
    for (version, text) in &missing {
        let started = SystemTime::now();
        let text = session.dialect().migration(text);
        for statement in statements(&text) {
            match session.command("migrate", statement).await {
                Err(fault) if is_done_already(fault.number) => {}
                other => other?,
            }
        }
        let sql = "INSERT INTO migrations (version, applied_at) VALUES (?, ?)";
        let args = [(*version).into(), now().into()];
        session.execute("migrate", sql, &args).await?;
        let took_ms = started.elapsed().unwrap_or_default().as_millis();
        tracing::info!(version, took_ms, "ran a migration");
    }
    Ok(missing.len())
}

/// Table, column or key exists already (MySQL 1050, 1060, 1061), or is gone already (1091).
fn is_done_already(number: u16) -> bool {
    matches!(number, 1050 | 1060 | 1061 | 1091)
}

fn statements(text: &str) -> impl Iterator<Item = String> {
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("--"));
    let text = lines.collect::<Vec<_>>().join("\n");
    let statements: Vec<String> = text
        .split(";\n")
        .map(|statement| statement.trim().trim_end_matches(';').to_owned())
        .filter(|statement| !statement.is_empty())
        .collect();
    statements.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_numbered_from_one() {
        for (index, (version, text)) in MIGRATIONS.into_iter().enumerate() {
            assert_eq!(version, i64::try_from(index).unwrap() + 1);
            for dialect in [Dialect::Sqlite, Dialect::Mysql] {
                let text = dialect.migration(text);
                assert!(statements(&text).count() > 0);
                assert!(statements(&text).all(|statement| !statement.contains('$')));
            }
        }
    }
}
