//! One operation's connection: runs statements within deadlines, counts them, and ends the transaction.
//!
//! Invariant: a connection on which something was cut off half-way (a dropped future, a deadline, an open transaction)
//! is closed instead of going back to the pool.

use std::time::Duration;

use sqlx::mysql::MySqlQueryResult;
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection};
use tokio::time::Instant;

use super::Store;
use super::batch::Piece;
use super::breaker::Sign;
use super::dialect::{Dialect, Upsert};
use super::error::{Error, Fault};
use super::gate::{Gate, Lease, PROBE_DEADLINE, Ticket};
use super::pools::{Connection, MYSQL_UNBOUNDED, Pools, Purpose};
use super::value::{Arg, Row, unexpected};

/// From the call to its answer, with all of its retries.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// One statement.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(5);
/// The end of a connection of its own.
const LEAVE_DEADLINE: Duration = Duration::from_secs(1);
/// Attempts of an operation that met a deadlock or a lock wait.
const ATTEMPTS_MAX: u32 = 4;

/// Runs `$body` (a future that uses `$session`) in a transaction, again when it met a deadlock.
macro_rules! transaction {
    ($store:expr, $name:ident, $body:expr) => {{
        let mut attempts = $crate::store::session::Attempts::new($store);
        loop {
            let mut $name = match attempts.begin().await {
                Ok(session) => session,
                Err(fault) => {
                    attempts.pause(fault).await?;
                    continue;
                }
            };
            let outcome = $body.await;
            match $name.end(outcome).await {
                Ok(value) => break Ok(value),
                Err(fault) => attempts.pause(fault).await?,
            }
        }
    }};
}
pub(super) use transaction;

/// What an executed statement did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Executed {
    pub(super) rows: u64,
    pub(super) last_insert_id: u64,
}

/// One connection in use.
pub(super) struct Session<'s> {
    store: &'s Store,
    connection: Option<Connection>,
    lease: Option<Lease<'s>>,
    ticket: Ticket<'s>,
    /// Nothing runs and no transaction is open.
    is_clean: bool,
    /// The server lets its statements run for as long as they take.
    is_unbounded: bool,
    /// The number of the newest change that the transaction leaves.
    changed_to: Option<i64>,
    deadline: Instant,
    statement_deadline: Duration,
}

/// Counts the attempts of one operation.
pub(super) struct Attempts<'s> {
    store: &'s Store,
    deadline: Instant,
    made: u32,
}

impl<'s> Attempts<'s> {
    pub(super) fn new(store: &'s Store) -> Self {
        Self {
            store,
            deadline: Instant::now() + CALL_DEADLINE,
            made: 0,
        }
    }

    /// A connection with a transaction on it.
    pub(super) async fn begin(&mut self) -> Result<Session<'s>, Fault> {
        let mut session = Session::open(self.store, Purpose::Write, self.deadline).await?;
        session.command("begin", session.dialect().begin()).await?;
        session.is_clean = false;
        Ok(session)
    }

    /// Waits a little if the operation may be tried again, else gives the error.
    pub(super) async fn pause(&mut self, fault: Fault) -> Result<(), Error> {
        self.made += 1;
        let jitter = Duration::from_millis(fastrand::u64(5..25) << self.made);
        if !fault.may_retry || self.made >= ATTEMPTS_MAX || Instant::now() + jitter >= self.deadline
        {
            return Err(fault.error);
        }
        self.store.statistics.retried();
        tokio::time::sleep(jitter).await;
        Ok(())
    }
}

impl<'s> Session<'s> {
    /// A connection for single statements, each a transaction of its own.
    pub(super) async fn open(
        store: &'s Store,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<Self, Fault> {
        if purpose == Purpose::Report
            && let Some(session) = store.replicas.session(store).await
        {
            return Ok(session);
        }
        Self::at(store, (&store.pools, &store.gate), purpose, deadline).await
    }

    /// The same at a place: the primary, or a replica.
    pub(super) async fn at(
        store: &'s Store,
        (pools, gate): (&'s Pools, &'s Gate),
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<Self, Fault> {
        let started = Instant::now();
        let (connection, lease, ticket) = pools.connection(purpose, gate, deadline).await?;
        store.statistics.acquired(started.elapsed());
        let (statement_deadline, deadline) = if ticket.is_probe() {
            // The way here may have taken all of the caller's time.
            let end = Instant::now() + PROBE_DEADLINE;
            (PROBE_DEADLINE, deadline.max(end))
        } else {
            (STATEMENT_DEADLINE, deadline)
        };
        Ok(Self {
            store,
            connection: Some(connection),
            lease: Some(lease),
            statement_deadline,
            ticket,
            is_clean: true,
            is_unbounded: false,
            changed_to: None,
            deadline,
        })
    }

    /// After a short question: the time of a whole call begins now.
    pub(super) fn prolong(&mut self) {
        self.deadline = Instant::now() + CALL_DEADLINE;
    }

    /// For statements that are known to take long. A server's own bound is lifted too, so the connection is not given back.
    pub(super) async fn allow(&mut self, span: Duration) -> Result<(), Fault> {
        self.statement_deadline = span;
        self.deadline = Instant::now() + span;
        if self.dialect() == Dialect::Mysql && !self.is_unbounded {
            self.command("unbound", MYSQL_UNBOUNDED).await?;
            self.is_unbounded = true;
        }
        Ok(())
    }

    /// Takes its connection out of the pool, which may make another: for a lock or a setting that lasts, over a longer
    /// time. It is never given back. The embedded store's stays, because nobody else could write.
    pub(super) fn set_apart(&mut self) {
        self.connection = match self.connection.take() {
            Some(Connection::Mysql(connection)) => {
                self.is_clean = false;
                drop(self.lease.take());
                Some(Connection::Apart(Box::new(connection.detach())))
            }
            other => other,
        };
    }

    /// Ends it with a word to the server, which then gives its locks to others at once.
    pub(super) async fn leave(mut self) {
        if let Some(Connection::Apart(connection)) = self.connection.take() {
            let _ = tokio::time::timeout(LEAVE_DEADLINE, connection.close()).await;
        }
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.store.dialect
    }

    pub(super) fn origin(&self) -> i64 {
        self.store.origin
    }

    /// Rows of a query.
    pub(super) async fn rows(
        &mut self,
        name: &'static str,
        sql: impl Into<String>,
        args: &[Arg<'_>],
    ) -> Result<Vec<Row>, Fault> {
        match self.guarded(name, Job::Rows, sql.into(), args).await {
            Ok(done) => Ok(done.rows),
            // Only the question whether the server takes writes reads variables, and some proxies do not know them.
            Err(fault) if fault.is_unknown_variable() => Ok(Vec::new()),
            Err(fault) => Err(fault),
        }
    }

    /// The only row, if there is one.
    pub(super) async fn row(
        &mut self,
        name: &'static str,
        sql: impl Into<String>,
        args: &[Arg<'_>],
    ) -> Result<Option<Row>, Fault> {
        Ok(self.rows(name, sql, args).await?.into_iter().next())
    }

    /// A statement without rows.
    pub(super) async fn execute(
        &mut self,
        name: &'static str,
        sql: impl Into<String>,
        args: &[Arg<'_>],
    ) -> Result<Executed, Fault> {
        let done = self.guarded(name, Job::Execute, sql.into(), args).await?;
        Ok(done.executed)
    }

    /// A statement that is not prepared, such as those for transactions and tables.
    pub(super) async fn command(
        &mut self,
        name: &'static str,
        sql: impl Into<String>,
    ) -> Result<(), Fault> {
        self.guarded(name, Job::Command, sql.into(), &[]).await?;
        Ok(())
    }

    async fn guarded(
        &mut self,
        name: &'static str,
        job: Job,
        sql: String,
        args: &[Arg<'_>],
    ) -> Result<Done, Fault> {
        let Some(connection) = self.connection.as_mut() else {
            return Err(Error::Unavailable("the connection was lost".into()).into());
        };
        let was_clean = std::mem::replace(&mut self.is_clean, false);
        let started = Instant::now();
        let deadline = self.deadline.min(started + self.statement_deadline);
        let result = tokio::time::timeout_at(deadline, run(connection, job, sql, args)).await;
        let is_error = !matches!(result, Ok(Ok(_)));
        self.store
            .statistics
            .statement(name, started.elapsed(), is_error);
        match result {
            Ok(Ok(done)) => {
                self.ticket.answered();
                self.is_clean = was_clean;
                Ok(done)
            }
            Ok(Err(error)) => {
                let fault = Fault::of(name, &error);
                if fault.may_retry || !fault.error.is_away() {
                    self.ticket.answered();
                    self.is_clean = was_clean;
                } else if fault.is_read_only() {
                    self.ticket.answered();
                    self.ticket.demote(&fault.error);
                    self.abandon();
                } else {
                    // Shut down, out of step: another connection may lead to a better server.
                    self.ticket.failed(Sign::Failed(fault.error.clone()));
                    self.abandon();
                }
                Err(fault)
            }
            Err(_) => {
                self.abandon();
                let text = format!("{name}: no answer within its deadline");
                let error = Error::Unavailable(text);
                self.ticket.failed(Sign::Silent(error.clone()));
                Err(error.into())
            }
        }
    }

    fn abandon(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.abandon();
        }
    }

    /// Commits what succeeded, undoes what did not.
    pub(super) async fn end<T>(mut self, outcome: Result<T, Fault>) -> Result<T, Fault> {
        match outcome {
            Ok(value) => {
                self.command("commit", "COMMIT").await?;
                self.is_clean = true;
                if let Some(newest) = self.changed_to {
                    self.store
                        .note_change(u64::try_from(newest).unwrap_or_default());
                }
                Ok(value)
            }
            Err(fault) => {
                if self.connection.is_some() && self.command("rollback", "ROLLBACK").await.is_ok() {
                    self.is_clean = true;
                }
                Err(fault)
            }
        }
    }

    /// Rows for a list of keys: `{}` in `sql` becomes the parameters.
    pub(super) async fn rows_in(
        &mut self,
        name: &'static str,
        sql: &str,
        keys: &[Arg<'_>],
    ) -> Result<Vec<Row>, Fault> {
        let mut rows = Vec::new();
        for piece in super::batch::pieces(keys.len(), 1) {
            let sql = sql.replace("{}", &super::dialect::parameters(piece.count));
            rows.extend(self.rows(name, sql, &args_of(&piece, keys)).await?);
        }
        Ok(rows)
    }

    /// Executes for a list of keys: `{}` in `sql` becomes the parameters.
    pub(super) async fn execute_in(
        &mut self,
        name: &'static str,
        sql: &str,
        keys: &[Arg<'_>],
    ) -> Result<u64, Fault> {
        let mut rows = 0;
        for piece in super::batch::pieces(keys.len(), 1) {
            let sql = sql.replace("{}", &super::dialect::parameters(piece.count));
            rows += self.execute(name, sql, &args_of(&piece, keys)).await?.rows;
        }
        Ok(rows)
    }

    /// Writes rows, which must be sorted by key. Each has as many parameters as the upsert has columns.
    pub(super) async fn upsert(
        &mut self,
        name: &'static str,
        upsert: &Upsert<'_>,
        rows: &[Vec<Arg<'_>>],
    ) -> Result<(), Fault> {
        let weights: Vec<usize> = rows.iter().map(|row| weight(row)).collect();
        for piece in super::batch::weighed_pieces(&weights, upsert.columns.len()) {
            let sql = self.dialect().upsert(upsert, piece.count);
            let args: Vec<Arg<'_>> = piece
                .indices()
                .filter_map(|index| rows.get(index))
                .flatten()
                .copied()
                .collect();
            self.execute(name, sql, &args).await?;
        }
        Ok(())
    }

    /// The transaction leaves changes up to this number.
    pub(super) fn leaves(&mut self, newest: i64) {
        self.changed_to = Some(newest);
    }

    /// Adds to a counter and locks it until the end of the transaction. Returns its new value.
    pub(super) async fn advance(&mut self, counter: &'static str, by: u32) -> Result<i64, Fault> {
        let args = [by.into(), counter.into()];
        let sql = self.dialect().advance();
        match self.dialect() {
            Dialect::Sqlite => match self.row("counter_advance", sql, &args).await? {
                Some(row) => row.int(0),
                None => Err(unexpected()),
            },
            Dialect::Mysql => {
                let done = self.execute("counter_advance", sql, &args).await?;
                if done.rows == 0 {
                    return Err(unexpected());
                }
                i64::try_from(done.last_insert_id).map_err(|_| unexpected())
            }
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if !self.is_clean || self.is_unbounded {
            self.abandon();
        }
    }
}

/// How a statement is run.
#[derive(Clone, Copy, Debug)]
enum Job {
    Rows,
    Execute,
    /// Without preparing it.
    Command,
}

/// What came of it.
struct Done {
    rows: Vec<Row>,
    executed: Executed,
}

/// The same for both engines: `$row` wraps a row, `$id` reads the last insert id.
macro_rules! run_on {
    ($connection:expr, $job:expr, $sql:expr, $args:expr, $row:path, $id:expr) => {{
        let mut rows = Vec::new();
        let mut executed = Executed::default();
        if matches!($job, Job::Command) {
            sqlx::raw_sql(AssertSqlSafe($sql))
                .execute($connection)
                .await?;
            return Ok(Done { rows, executed });
        }
        let mut query = sqlx::query(AssertSqlSafe($sql));
        for arg in $args {
            query = match arg {
                Arg::Int(value) => query.bind(*value),
                Arg::Text(value) => query.bind(*value),
                Arg::Bytes(value) => query.bind(*value),
                Arg::Null => query.bind(None::<i64>),
            };
        }
        if matches!($job, Job::Rows) {
            let found = query.fetch_all($connection).await?;
            rows = found.into_iter().map($row).collect();
        } else {
            let done = query.execute($connection).await?;
            executed.rows = done.rows_affected();
            executed.last_insert_id = $id(&done);
        }
        Ok(Done { rows, executed })
    }};
}

async fn run(
    connection: &mut Connection,
    job: Job,
    sql: String,
    args: &[Arg<'_>],
) -> Result<Done, sqlx::Error> {
    let connection: &mut MySqlConnection = match connection {
        Connection::Sqlite(connection) => {
            return run_on!(&mut **connection, job, sql, args, Row::Sqlite, |_: &_| 0);
        }
        Connection::Mysql(connection) => connection,
        Connection::Apart(connection) => connection,
    };
    let last_id = MySqlQueryResult::last_insert_id;
    run_on!(&mut *connection, job, sql, args, Row::Mysql, last_id)
}

fn args_of<'a>(piece: &Piece, keys: &[Arg<'a>]) -> Vec<Arg<'a>> {
    piece
        .indices()
        .filter_map(|index| keys.get(index).copied())
        .collect()
}

fn weight(row: &[Arg<'_>]) -> usize {
    row.iter()
        .map(|arg| match arg {
            Arg::Int(_) | Arg::Null => 9,
            Arg::Text(text) => text.len() + 4,
            Arg::Bytes(bytes) => bytes.len() + 4,
        })
        .sum()
}
