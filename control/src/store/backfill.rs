//! Backfills: what a migration has to write into rows that exist, in chunks beside whoever else uses the store.
//!
//! Each chunk is one short transaction that also writes how far it got (counters `backfill.N` and, fixed at the beginning,
//! `backfill.N.end`), so a run that was cut off goes on where it was. Chunks of several nodes exclude each other by
//! the counter's lock, so none is done twice; an advisory lock leaves the whole work to one node at a time, and the others
//! look on. Invariants: a statement changes only rows that lack what it fills in, so a value that a server wrote meanwhile
//! stays; readers take rows of both forms, since servers of the previous build go on writing the former one.

mod plan;

use std::collections::BTreeMap;
use std::result::Result as StdResult;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::Store;
use super::dialect::{Dialect, Rule, Upsert};
use super::error::{Fault, Result};
use super::migrate::Tell;
use super::pools::Purpose;
use super::progress::{Filling, Progress};
use super::session::{Attempts, Session, transaction};
use super::value::{Arg, unexpected};
pub(crate) use plan::Company;
use plan::{Plan, Span, Tally};

/// What a migration fills in.
struct Backfill {
    /// Its number; the statements of this and of earlier migrations have run.
    migration: i64,
    /// What a row is, in the plural, for people.
    rows: &'static str,
    /// The table whose rows are counted, and its integer key.
    table: &'static str,
    key: &'static str,
    /// Changes the rows with a key above the first parameter, up to the second, that lack something.
    fill: &'static str,
}

/// In order.
static BACKFILLS: [Backfill; 1] = [
    // Hosts of before the column: the list shows where they enrolled from, and a search for it finds them now. Every host
    // has a row of details, because both are written by one transaction.
    Backfill {
        migration: 4,
        rows: "hosts",
        table: "hosts",
        key: "id",
        fill: "UPDATE host_details SET public_ip = \
                   (SELECT NULLIF(h.address, '') FROM hosts h WHERE h.id = host_details.host_id) \
               WHERE host_id > ? AND host_id <= ? AND public_ip IS NULL",
    },
];

const COUNTERS: Upsert<'_> = Upsert {
    table: "counters",
    key: &["name"],
    columns: &[("name", Rule::Keep), ("value", Rule::Keep)],
};

/// Held by the node that is at it. Not the lock of the tables' migrations, which must not wait for this.
const LOCK_NAME: &str = "CONCAT('fleet.backfill.', SHA1(DATABASE()))";
/// A chunk, from its first statement to its commit.
const CHUNK_DEADLINE: Duration = Duration::from_secs(15);
/// Counting a large table once.
const COUNT_DEADLINE: Duration = Duration::from_secs(120);
/// Between two looks at what another node does.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);
/// In the background: after a failure, and between two lines of the log.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// One backfill under way.
struct Run {
    backfill: &'static Backfill,
    plan: Plan,
    tally: Tally,
    began: Instant,
}

/// What a chunk did.
struct Chunk {
    rows: u64,
    changed: u64,
    is_last: bool,
}

/// The right to work through a backfill.
enum Turn<'s> {
    /// SQLite: whoever has the write lock. A connection for each chunk, because there is only one to write with.
    Each(&'s Store),
    /// MySQL: the connection that has the advisory lock.
    Locked(Box<Session<'s>>),
}

impl Store {
    /// Fills in what is left, to the end of all backfills, here or by looking on while another node does it. The tables'
    /// migrations must have run. Returns how many rows were changed here.
    pub(crate) async fn fill(&self, company: Company, tell: Tell<'_>) -> Result<u64> {
        let mut runs = Vec::new();
        for backfill in &BACKFILLS {
            runs.extend(self.begin_run(backfill, company).await?);
        }
        let mut changed = 0;
        for mut run in runs {
            run.began = Instant::now();
            self.finish_run(&mut run, tell).await?;
            run.tally.finish();
            let filling = self.note(&run);
            changed += filling.changed;
            tell(Progress::Filled(filling));
        }
        Ok(changed)
    }

    /// Whom a command has to expect beside itself: the embedded store has one process at a time.
    pub(crate) fn company(&self) -> Company {
        match self.dialect {
            Dialect::Sqlite => Company::Alone,
            Dialect::Mysql => Company::Shared,
        }
    }

    /// As [`Store::fill`], beside everything else that this process does, again until it succeeds; then never returns.
    pub(crate) async fn fill_in_background(&self) {
        let last_line = std::sync::Mutex::new(None::<Instant>);
        let tell = |progress: Progress| match progress {
            Progress::Filling(filling) => {
                let mut last = last_line.lock().unwrap_or_else(PoisonError::into_inner);
                if last.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                    *last = Some(Instant::now());
                    tracing::info!(progress = %filling, "filling in rows for a migration");
                }
            }
            Progress::Filled(filling) => tracing::info!(
                migration = filling.migration,
                rows = filling.total,
                changed = filling.changed,
                took_ms = filling.elapsed.as_millis(),
                "filled in the rows of a migration"
            ),
            _ => {}
        };
        while let Err(error) = self.fill(Company::Shared, &tell).await {
            let retry_s = RETRY_INTERVAL.as_secs();
            tracing::warn!(%error, retry_s, "filling in rows for a migration failed; goes on later");
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
        std::future::pending::<()>().await;
    }

    /// How far each backfill is, as far as this process knows.
    pub(crate) fn fillings(&self) -> Vec<Filling> {
        self.lock_fillings().values().cloned().collect()
    }

    fn lock_fillings(&self) -> std::sync::MutexGuard<'_, BTreeMap<i64, Filling>> {
        self.fillings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, run: &Run) -> Filling {
        let filling = run.tally.filling(run.began.elapsed());
        self.lock_fillings()
            .insert(filling.migration, filling.clone());
        filling
    }

    /// `None` when everything is done.
    async fn begin_run(
        &self,
        backfill: &'static Backfill,
        company: Company,
    ) -> Result<Option<Run>> {
        let found = {
            let mut session = self.session(Purpose::Read).await?;
            read_span(&mut session, backfill, "").await?
        };
        let span = match found {
            Some(span) => span,
            None => self.begin(backfill).await?,
        };
        let (total, left) = if span.is_done() {
            (0, 0)
        } else {
            self.count(backfill, span).await?
        };
        let run = Run {
            backfill,
            plan: Plan::new(company),
            tally: Tally::new(backfill.migration, backfill.rows, total, left),
            began: Instant::now(),
        };
        self.note(&run);
        Ok((!span.is_done()).then_some(run))
    }

    async fn begin(&self, backfill: &Backfill) -> Result<Span> {
        transaction!(self, session, begin(&mut session, backfill))
    }

    /// All rows, and those that are left.
    async fn count(&self, backfill: &Backfill, span: Span) -> Result<(u64, u64)> {
        let Backfill { table, key, .. } = backfill;
        let mut session = self.session(Purpose::Read).await?;
        session.allow(COUNT_DEADLINE).await?;
        let sql = format!(
            "SELECT COUNT(*), COUNT(CASE WHEN {key} > ? THEN 1 END) FROM {table} WHERE {key} <= ?"
        );
        let args = [span.after.into(), span.end.into()];
        let row = session.row("backfill_count", sql, &args).await?;
        let row = row.ok_or_else(unexpected)?;
        Ok((row.u64(0)?, row.u64(1)?))
    }

    /// Until no row is left.
    async fn finish_run(&self, run: &mut Run, tell: Tell<'_>) -> Result<()> {
        tell(Progress::Filling(self.note(run)));
        loop {
            if let Some(mut turn) = self.turn().await? {
                let outcome = self.work(&mut turn, run, tell).await;
                turn.leave().await;
                return outcome;
            }
            let span = {
                let mut session = self.session(Purpose::Read).await?;
                read_span(&mut session, run.backfill, "").await?
            };
            let span = span.ok_or_else(unexpected)?;
            if span.is_done() {
                return Ok(());
            }
            let (_, left) = self.count(run.backfill, span).await?;
            run.tally.look_on(left);
            tell(Progress::Filling(self.note(run)));
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// `None` while another node is at it.
    async fn turn(&self) -> Result<Option<Turn<'_>>> {
        if self.dialect == Dialect::Sqlite {
            return Ok(Some(Turn::Each(self)));
        }
        let mut session = self.session(Purpose::Write).await?;
        let sql = format!("SELECT GET_LOCK({LOCK_NAME}, 0)");
        let taken = session.row("backfill_lock", sql, &[]).await?;
        if taken.map_or(Ok(0), |row| row.int(0))? != 1 {
            return Ok(None);
        }
        session.set_apart();
        Ok(Some(Turn::Locked(Box::new(session))))
    }

    async fn work(&self, turn: &mut Turn<'_>, run: &mut Run, tell: Tell<'_>) -> Result<()> {
        loop {
            let began = Instant::now();
            let pause = match turn.chunk(run.backfill, run.plan.rows()).await {
                Ok(chunk) => {
                    run.tally.add(chunk.rows, chunk.changed);
                    if chunk.is_last {
                        return Ok(());
                    }
                    run.plan.done(began.elapsed())
                }
                Err(fault) if fault.may_retry => {
                    self.statistics.retried();
                    run.plan.undone().ok_or(fault.error)?
                }
                Err(fault) => return Err(fault.error),
            };
            tell(Progress::Filling(self.note(run)));
            tokio::time::sleep(pause).await;
        }
    }
}

impl Turn<'_> {
    async fn chunk(&mut self, backfill: &Backfill, rows: u32) -> StdResult<Chunk, Fault> {
        match self {
            Self::Each(store) => {
                let mut session = Attempts::new(store).begin().await?;
                let outcome = chunk(&mut session, backfill, rows).await;
                session.end(outcome).await
            }
            Self::Locked(session) => {
                session.allow(CHUNK_DEADLINE).await?;
                session.command("begin", Dialect::Mysql.begin()).await?;
                let outcome = chunk(session, backfill, rows).await;
                let (name, sql) = match &outcome {
                    Ok(_) => ("commit", "COMMIT"),
                    Err(_) => ("rollback", "ROLLBACK"),
                };
                // What made the chunk fail says more than a rollback that fails too.
                match (outcome, session.command(name, sql).await) {
                    (Ok(chunk), ended) => ended.map(|()| chunk),
                    (Err(fault), _) => Err(fault),
                }
            }
        }
    }

    async fn leave(self) {
        if let Self::Locked(session) = self {
            session.leave().await;
        }
    }
}

/// One chunk, within a transaction.
async fn chunk(
    session: &mut Session<'_>,
    backfill: &Backfill,
    limit: u32,
) -> StdResult<Chunk, Fault> {
    let lock = session.dialect().lock_rows();
    let found = read_span(session, backfill, lock).await?;
    let span = found.ok_or_else(unexpected)?;
    if span.is_done() {
        // Another node has done the rest.
        return Ok(Chunk {
            rows: 0,
            changed: 0,
            is_last: true,
        });
    }
    let Backfill { table, key, .. } = backfill;
    let sql = format!(
        "SELECT COUNT(*), COALESCE(MAX(part.k), 0) FROM (SELECT {key} AS k FROM {table} \
         WHERE {key} > ? AND {key} <= ? ORDER BY {key} LIMIT ?) AS part"
    );
    let args = [span.after.into(), span.end.into(), limit.into()];
    let row = session.row("backfill_part", sql, &args).await?;
    let row = row.ok_or_else(unexpected)?;
    let rows = row.u64(0)?;
    let upto = span.upto(limit, rows, row.int(1)?);
    let args = [span.after.into(), upto.into()];
    let filled = session
        .execute("backfill_fill", backfill.fill, &args)
        .await?;
    let (name, _) = names(backfill);
    let sql = "UPDATE counters SET value = ? WHERE name = ?";
    let args = [upto.into(), name.as_str().into()];
    session.execute("backfill_note", sql, &args).await?;
    Ok(Chunk {
        rows,
        changed: filled.rows,
        is_last: upto >= span.end,
    })
}

/// Writes down where it begins and ends, unless another node has.
async fn begin(session: &mut Session<'_>, backfill: &Backfill) -> StdResult<Span, Fault> {
    let Backfill { table, key, .. } = backfill;
    let sql = format!("SELECT COALESCE(MAX({key}), 0) FROM {table}");
    let row = session.row("backfill_end", sql, &[]).await?;
    let end = row.map_or(Ok(0), |row| row.int(0))?;
    let (at_name, end_name) = names(backfill);
    let rows = [
        vec![at_name.as_str().into(), Arg::Int(0)],
        vec![end_name.as_str().into(), Arg::Int(end)],
    ];
    session.upsert("backfill_begin", &COUNTERS, &rows).await?;
    let span = read_span(session, backfill, "").await?;
    span.ok_or_else(unexpected)
}

/// `None` when it was never begun. `lock` is the end of the statement.
async fn read_span(
    session: &mut Session<'_>,
    backfill: &Backfill,
    lock: &str,
) -> StdResult<Option<Span>, Fault> {
    let (at_name, end_name) = names(backfill);
    let sql = format!("SELECT name, value FROM counters WHERE name IN (?, ?) ORDER BY name {lock}");
    let args = [at_name.as_str().into(), end_name.as_str().into()];
    let (mut after, mut end) = (None, None);
    for row in session.rows("backfill_span", sql, &args).await? {
        let value = Some(row.int(1)?);
        if row.text(0)? == at_name {
            after = value;
        } else {
            end = value;
        }
    }
    Ok(after.zip(end).map(|(after, end)| Span { after, end }))
}

/// Counters of how far it is, and of where it ends.
fn names(backfill: &Backfill) -> (String, String) {
    let name = format!("backfill.{}", backfill.migration);
    let end = format!("{name}.end");
    (name, end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::migrate::MIGRATIONS;

    #[test]
    fn backfills_only_fill_in() {
        let mut numbers = Vec::new();
        for backfill in &BACKFILLS {
            let sql = backfill.fill;
            assert!(sql.starts_with("UPDATE "), "{sql}");
            assert!(sql.ends_with(" IS NULL"), "it keeps what is there: {sql}");
            assert_eq!(sql.matches('?').count(), 2, "{sql}");
            assert!(
                sql.contains("> ? AND ") && sql.contains("<= ? AND"),
                "{sql}"
            );
            numbers.push(backfill.migration);
        }
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        let known = MIGRATIONS.map(|(version, _)| version);
        assert!(numbers.iter().all(|number| known.contains(number)));
    }
}
