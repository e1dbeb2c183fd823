//! Migrations: compiled in, numbered, each run once, beside servers of this and of the previous build.
//!
//! Owner of the table `migrations`. Statements here only add to the tables, so that a build that does not know of them
//! works on; what has to be written into rows that exist is a backfill (`backfill.rs`), which no server waits for. MySQL
//! commits each statement that changes tables, so a migration may stop half-way: every statement may run again. An
//! advisory lock (SQLite: the write lock) keeps two nodes from running them at once.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::result::Result as StdResult;
use std::time::Duration;

use tokio::time::Instant;

use super::dialect::Dialect;
use super::error::{Error, Fault, Result};
use super::pools::Purpose;
use super::progress::Progress;
use super::session::{Attempts, Session};
use super::{Store, now};

/// In order.
pub(super) const MIGRATIONS: [(i64, &str); 6] = [
    (1, include_str!("../../migrations/0001_start.sql")),
    (2, include_str!("../../migrations/0002_public_ip.sql")),
    (
        3,
        include_str!("../../migrations/0003_previous_address.sql"),
    ),
    (4, include_str!("../../migrations/0004_public_ip.sql")),
    (5, include_str!("../../migrations/0005_operators.sql")),
    (6, include_str!("../../migrations/0006_campaigns.sql")),
];

/// A statement on a large table takes its time, and a transaction that holds the table too.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(4 * 3600);
/// A change of a table waits for the transactions that use it, and whoever comes later waits behind it. This is how long,
/// which must be well below a server's deadline of a statement.
const TABLE_WAIT_S: u32 = 2;
/// After such a wait, while the others are let through.
const BLOCKED_PAUSE_MIN: Duration = Duration::from_secs(4);
const BLOCKED_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Another node may be at it.
const LOCK_WAIT: Duration = Duration::from_secs(600);
const LOCK_STEP_S: u32 = 5;
/// While a statement runs.
const TELL_INTERVAL: Duration = Duration::from_secs(5);
/// Of a statement, in what people are told.
const HEAD_CHARS_MAX: usize = 60;
/// Named after the database, because MySQL's locks are the server's.
const LOCK_NAME: &str = "CONCAT('fleet.', SHA1(DATABASE()))";

/// Who is told how it goes.
pub(crate) type Tell<'t> = &'t (dyn Fn(Progress) + Send + Sync);

/// For who does not want to know.
pub(crate) fn quiet(_: Progress) {}

impl Store {
    /// Migrations of tables that have not run and that this build needs; works on an empty database.
    pub(crate) async fn missing_migrations(&self) -> Result<usize> {
        let mut session = self.session(Purpose::Read).await?;
        let missing = missing(&mut session).await?;
        let needed = missing
            .iter()
            .filter(|(_, text)| !statements(text).is_empty());
        Ok(needed.count())
    }

    /// `NotPrepared` when tables lack something. Backfills may be under way; unknown newer migrations are only warned of:
    /// an older binary may serve while a fleet of nodes is upgraded.
    pub(crate) async fn require_prepared(&self) -> Result<()> {
        match self.missing_migrations().await? {
            0 => Ok(()),
            missing => Err(Error::NotPrepared { missing }),
        }
    }

    /// Runs what is missing of the migrations, without backfills; several nodes may do so at once. Returns how many ran.
    pub(crate) async fn prepare(&self, tell: Tell<'_>) -> Result<usize> {
        match self.dialect {
            Dialect::Sqlite => {
                let mut session = Attempts::new(self).begin().await?;
                session.allow(STATEMENT_DEADLINE).await?;
                let outcome = run_missing(&mut session, tell).await;
                Ok(session.end(outcome).await?)
            }
            Dialect::Mysql => {
                let mut session = self.session(Purpose::Write).await?;
                session.allow(STATEMENT_DEADLINE).await?;
                session.set_apart();
                let outcome = run_missing_locked(&mut session, tell).await;
                session.leave().await;
                outcome
            }
        }
    }
}

async fn missing(session: &mut Session<'_>) -> StdResult<Vec<(i64, &'static str)>, Fault> {
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

/// On a connection of its own, whose end gives the lock back.
async fn run_missing_locked(session: &mut Session<'_>, tell: Tell<'_>) -> Result<usize> {
    let began = Instant::now();
    let sql = format!("SELECT GET_LOCK({LOCK_NAME}, {LOCK_STEP_S})");
    loop {
        let taken = session.row("migrate_lock", sql.as_str(), &[]).await?;
        if taken.map_or(Ok(0), |row| row.int(0))? == 1 {
            break;
        }
        let waited = began.elapsed();
        if waited >= LOCK_WAIT {
            let text = "another node has been running migrations for ten minutes";
            return Err(Error::Unavailable(text.into()));
        }
        tell(Progress::Queued { waited });
    }
    let sql = format!("SET SESSION lock_wait_timeout = {TABLE_WAIT_S}");
    session.command("migrate", sql).await?;
    Ok(run_missing(session, tell).await?)
}

async fn run_missing(session: &mut Session<'_>, tell: Tell<'_>) -> StdResult<usize, Fault> {
    let table = "CREATE TABLE IF NOT EXISTS migrations \
        (version BIGINT NOT NULL PRIMARY KEY, applied_at BIGINT NOT NULL) $TABLE";
    let table = session.dialect().migration(table);
    session.command("migrate", table).await?;
    let missing = missing(session).await?;
    for (version, text) in &missing {
        let started = Instant::now();
        let text = session.dialect().migration(text);
        let statements = statements(&text);
        for statement in &statements {
            change(session, *version, statement, tell).await?;
        }
        let sql = "INSERT INTO migrations (version, applied_at) VALUES (?, ?)";
        let args = [(*version).into(), now().into()];
        session.execute("migrate", sql, &args).await?;
        let took = started.elapsed();
        if !statements.is_empty() {
            tell(Progress::Changed {
                migration: *version,
                took,
            });
        }
        tracing::info!(version, took_ms = took.as_millis(), "ran a migration");
    }
    Ok(missing.len())
}

/// Runs one statement, in MySQL again and again while somebody's transaction holds what it needs.
async fn change(
    session: &mut Session<'_>,
    migration: i64,
    statement: &str,
    tell: Tell<'_>,
) -> StdResult<(), Fault> {
    let began = Instant::now();
    let mut pause = BLOCKED_PAUSE_MIN;
    loop {
        let told = telling(migration, statement, began, tell);
        let fault = tokio::select! {
            done = session.command("migrate", statement) => match done {
                Ok(()) => return Ok(()),
                Err(fault) if is_done_already(fault.number) => return Ok(()),
                Err(fault) => fault,
            },
            never = told => match never {},
        };
        let elapsed = began.elapsed();
        // SQLite has its write lock already.
        let is_worth_it = session.dialect() == Dialect::Mysql
            && fault.may_retry
            && elapsed + pause < STATEMENT_DEADLINE;
        if !is_worth_it {
            return Err(fault);
        }
        tracing::info!(migration, error = %fault.error, "a migration waits for a transaction");
        tell(Progress::Blocked {
            migration,
            statement: head(statement),
            elapsed,
            again_in: pause,
        });
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BLOCKED_PAUSE_MAX);
    }
}

/// Tells now and then that a statement runs; never ends.
async fn telling(migration: i64, statement: &str, began: Instant, tell: Tell<'_>) -> Infallible {
    loop {
        tell(Progress::Changing {
            migration,
            statement: head(statement),
            elapsed: began.elapsed(),
        });
        tokio::time::sleep(TELL_INTERVAL).await;
    }
}

/// What a statement is about.
fn head(statement: &str) -> String {
    let words = statement.split(['(', '\n']).next().unwrap_or_default();
    words.trim().chars().take(HEAD_CHARS_MAX).collect()
}

/// Table, column or key exists already (MySQL 1050, 1060, 1061), or is gone already (1091).
fn is_done_already(number: u16) -> bool {
    matches!(number, 1050 | 1060 | 1061 | 1091)
}

pub(super) fn statements(text: &str) -> Vec<String> {
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("--"));
    let text = lines.collect::<Vec<_>>().join("\n");
    text.split(";\n")
        .map(|statement| statement.trim().trim_end_matches(';').to_owned())
        .filter(|statement| !statement.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The statements of a migration as SQLite runs them; both engines have the same ones.
    fn all_statements() -> Vec<(i64, String)> {
        let all = MIGRATIONS.into_iter().flat_map(|(version, text)| {
            let text = Dialect::Sqlite.migration(text);
            statements(&text)
                .into_iter()
                .map(move |statement| (version, statement))
        });
        all.collect()
    }

    #[test]
    fn migrations_are_numbered_from_one() {
        for (index, (version, text)) in MIGRATIONS.into_iter().enumerate() {
            assert_eq!(version, i64::try_from(index).unwrap() + 1);
            for dialect in [Dialect::Sqlite, Dialect::Mysql] {
                let text = dialect.migration(text);
                assert!(
                    statements(&text)
                        .iter()
                        .all(|statement| !statement.contains('$'))
                );
            }
        }
        assert!(all_statements().len() > 20);
    }

    /// What is wrong with a statement for servers of the previous build, which know nothing of it. `made` are the tables
    /// that the same migration makes.
    fn objection(statement: &str, made: &BTreeSet<String>) -> Option<&'static str> {
        let words: Vec<&str> = statement.split_whitespace().collect();
        let upper = statement.to_uppercase();
        let is_made = |name: &str| made.contains(name);
        match words.as_slice() {
            ["CREATE", "TABLE", "IF", "NOT", "EXISTS", ..] => None,
            ["CREATE", "INDEX", ..] => None,
            ["CREATE", "UNIQUE", "INDEX", rest @ ..] => {
                let on = rest.iter().position(|word| *word == "ON");
                let table = on.and_then(|on| rest.get(on + 1));
                (!table.is_some_and(|name| is_made(name)))
                    .then_some("its rows may be refused by a unique index")
            }
            ["ALTER", "TABLE", name, rest @ ..] => {
                let is_column = matches!(rest, ["ADD", "COLUMN", ..]);
                let is_one = !statement.contains(',') && upper.matches(" ADD ").count() == 1;
                if !is_column || !is_one {
                    return Some("more than one new column");
                }
                let is_filled = !upper.contains("NOT NULL") || upper.contains(" DEFAULT ");
                (!is_filled && !is_made(name)).then_some("its rows lack a value")
            }
            ["INSERT", "INTO", ..] => (!statement.ends_with("ON CONFLICT DO NOTHING"))
                .then_some("rows that exist are not kept"),
            _ => Some("not known to be harmless"),
        }
    }

    #[test]
    fn the_previous_build_works_on_beside_every_statement() {
        let mut made: BTreeSet<String> = BTreeSet::new();
        let mut current = 0;
        for (version, statement) in all_statements() {
            if version != current {
                (current, made) = (version, BTreeSet::new());
            }
            assert_eq!(objection(&statement, &made), None, "{version}: {statement}");
            if let Some(rest) = statement.strip_prefix("CREATE TABLE IF NOT EXISTS ") {
                made.extend(rest.split_whitespace().next().map(str::to_owned));
            }
        }
        for statement in [
            "DROP TABLE hosts",
            "ALTER TABLE hosts DROP COLUMN address",
            "ALTER TABLE hosts RENAME COLUMN address TO origin",
            "ALTER TABLE hosts MODIFY COLUMN address TEXT",
            "ALTER TABLE hosts ADD COLUMN a TEXT NOT NULL",
            "ALTER TABLE hosts ADD COLUMN a TEXT, DROP COLUMN b",
            "CREATE UNIQUE INDEX IF NOT EXISTS a ON hosts (address)",
            "INSERT INTO labels (id) VALUES (1)",
            "UPDATE hosts SET address = ''",
            "DELETE FROM hosts",
        ] {
            assert!(objection(statement, &made).is_some(), "{statement}");
        }
    }

    #[test]
    fn a_statement_is_told_by_its_head() {
        let sql = "CREATE TABLE IF NOT EXISTS a (\n    b BIGINT\n)";
        assert_eq!(head(sql), "CREATE TABLE IF NOT EXISTS a");
        let sql = "ALTER TABLE a ADD COLUMN b VARCHAR(255)";
        assert_eq!(head(sql), "ALTER TABLE a ADD COLUMN b VARCHAR");
    }
}
