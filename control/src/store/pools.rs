//! Opens the engines: their options, their pools, and how a connection is taken from them.
//!
//! Owner of the pools; whether they are asked at all is the gate's word. Invariant: an operation takes one connection
//! and never a second one while it holds it.

use std::cell::Cell;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fleet_protocol::config;
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions, MySqlSslMode};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{
    ConnectOptions, Connection as _, Executor, MySql, MySqlConnection, MySqlPool, Sqlite,
    SqlitePool,
};
use tokio::time::Instant;

use super::breaker::Sign;
use super::error::{Error, Fault};
use super::gate::{Gate, Lease, PROBE_DEADLINE, Ticket};

/// Readers of the embedded store; its one writer comes on top.
const SQLITE_READERS: u32 = 4;
/// How long SQLite waits for a lock that another process holds.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(4);
/// Prepared statements that a connection keeps; more than there are texts in one node's life.
const STATEMENTS_MAX: usize = 160;
/// A connection that was idle longer is asked whether it still lives before it is used.
const PING_AFTER_IDLE: Duration = Duration::from_secs(2);
/// That question's answer; a connection on which it does not come is closed.
const PING_DEADLINE: Duration = Duration::from_secs(1);
/// Strict, whatever the server's default; row values are read with the session's rules. A statement that nobody waits for
/// any more, because our deadline is over, ends on the server too: MariaDB bounds every statement, in seconds, MySQL those
/// that only read, in milliseconds. Each ignores the other's comment.
const MYSQL_SESSION: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', \
     innodb_lock_wait_timeout = 3, time_zone = '+00:00' \
     /*M!100101 , max_statement_time = 6 */ /*!50704 , max_execution_time = 6000 */; \
     SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
/// Takes that bound away.
pub(super) const MYSQL_UNBOUNDED: &str = "SET SESSION time_zone = '+00:00' \
     /*M!100101 , max_statement_time = 0 */ /*!50704 , max_execution_time = 0 */";
/// Whether the server takes writes: both are zero. The second is how Aurora marks a demoted writer.
pub(super) const READ_ONLY: &str = "SELECT @@global.read_only NOT IN ('0', 'OFF'), \
     @@global.innodb_read_only NOT IN ('0', 'OFF')";
/// For who does not know the second.
const READ_ONLY_BARE: &str = "SELECT @@global.read_only NOT IN ('0', 'OFF'), 0";

tokio::task_local! {
    /// What a wait for a connection spent on asking connections whether they live.
    static PINGED: Cell<Duration>;
}

/// The open engine.
pub(super) enum Pools {
    Sqlite {
        writer: SqlitePool,
        readers: SqlitePool,
    },
    Mysql {
        pool: MySqlPool,
        /// For connections beside the pool.
        options: Box<MySqlConnectOptions>,
    },
}

/// One connection, given back when dropped.
pub(super) enum Connection {
    Sqlite(PoolConnection<Sqlite>),
    Mysql(PoolConnection<MySql>),
    /// No longer of the pool.
    Apart(Box<MySqlConnection>),
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    /// A read that a replica may serve.
    Report,
    Write,
}

/// What a server said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Knock {
    Writable,
    ReadOnly,
}

impl Knock {
    /// From the answer to `READ_ONLY`.
    fn of(flags: Result<(i64, i64), sqlx::Error>) -> Result<Self, Fault> {
        match flags {
            Ok((0, 0)) => Ok(Self::Writable),
            Ok(_) => Ok(Self::ReadOnly),
            Err(error) => Err(Fault::of_connecting(&error)),
        }
    }
}

impl Pools {
    /// The embedded store, created when it is missing.
    pub(super) async fn open_sqlite(path: &Path) -> Result<Self, Error> {
        make_private(path)
            .map_err(|error| Error::Unavailable(format!("{}: {error}", path.display())))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // FULL: a node key that was handed out and an applied spec survive a power cut. One fsync a batch.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(SQLITE_BUSY_TIMEOUT)
            .foreign_keys(false)
            .pragma("temp_store", "MEMORY")
            .pragma("journal_size_limit", "67108864")
            .statement_cache_capacity(STATEMENTS_MAX)
            .disable_statement_logging();
        let pool = || {
            SqlitePoolOptions::new()
                .test_before_acquire(false)
                .idle_timeout(None)
                .max_lifetime(None)
                .acquire_timeout(Duration::from_secs(5))
        };
        let writer = pool()
            .max_connections(1)
            .connect_with(options.clone())
            .await
            .map_err(|error| Fault::of("open", &error).error)?;
        // Not opened read-only: a WAL reader may have to recover the log.
        let readers = pool()
            .max_connections(SQLITE_READERS)
            .connect_lazy_with(options.pragma("query_only", "ON"));
        Ok(Self::Sqlite { writer, readers })
    }

    /// MySQL or MariaDB; connects when it is first needed.
    pub(super) fn open_mysql(mysql: &config::Mysql, gate: &Arc<Gate>) -> Result<Self, Error> {
        let options = mysql_options(mysql)?;
        let (lifetime, most) = (mysql.conn_max_lifetime, mysql.max_open_conns);
        let lifetime = (!lifetime.is_zero()).then_some(lifetime);
        let (before, after) = (Arc::clone(gate), Arc::clone(gate));
        let pool = MySqlPoolOptions::new()
            .max_connections(most)
            .acquire_timeout(mysql.acquire_timeout)
            .max_lifetime(lifetime)
            .test_before_acquire(false)
            .after_connect(|connection, _| {
                Box::pin(async move { connection.execute(MYSQL_SESSION).await.map(|_| ()) })
            })
            .before_acquire(move |connection, meta| {
                let gate = Arc::clone(&before);
                Box::pin(async move {
                    if gate.is_recalled(meta.age, Instant::now()) {
                        return Ok(false);
                    }
                    if meta.idle_for > PING_AFTER_IDLE {
                        let began = Instant::now();
                        let answer = tokio::time::timeout(PING_DEADLINE, connection.ping()).await;
                        let _ = PINGED.try_with(|spent| spent.set(spent.get() + began.elapsed()));
                        let answer = answer.unwrap_or_else(|_| {
                            Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into()))
                        });
                        answer.inspect_err(|error| {
                            gate.note(Sign::Failed(Fault::of_connecting(error).error));
                        })?;
                    }
                    Ok(true)
                })
            })
            .after_release(move |_, meta| {
                let is_old = lifetime.is_some_and(|span| after.may_retire(meta.age, span, most));
                let stays = !is_old && !after.is_recalled(meta.age, Instant::now());
                Box::pin(async move { Ok(stays) })
            })
            .connect_lazy_with(options.clone());
        Ok(Self::Mysql {
            pool,
            options: Box::new(options),
        })
    }

    /// Waits for a connection. Refuses at once while the gate is shut.
    pub(super) async fn connection<'g>(
        &self,
        purpose: Purpose,
        gate: &'g Gate,
        deadline: Instant,
    ) -> Result<(Connection, Lease<'g>, Ticket<'g>), Fault> {
        let mut ticket = gate.enter(purpose, Instant::now())?;
        if ticket.is_probe() {
            match self.knock().await {
                Ok(Knock::Writable) => {}
                Ok(Knock::ReadOnly) => {
                    gate.demote(&super::read_only());
                    if purpose == Purpose::Write && gate.is_demoted() {
                        ticket.answered();
                        return Err(super::read_only().into());
                    }
                }
                Err(fault) => {
                    ticket.failed(Sign::Unreachable(fault.error.clone()));
                    return Err(fault);
                }
            }
        }
        let began = Instant::now();
        let deadline = ticket.deadline(began, deadline);
        let (taken, pinged) = PINGED
            .scope(Cell::default(), async {
                let taken = tokio::time::timeout_at(deadline, self.acquire(purpose)).await;
                (taken, PINGED.with(Cell::get))
            })
            .await;
        match taken.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok(connection) => {
                gate.note(Sign::Waited(began.elapsed().saturating_sub(pinged)));
                Ok((connection, gate.lease(), ticket))
            }
            Err(error) => {
                let fault = Fault::of_connecting(&error);
                // A pool that is all in use is no sign that the engine is away, one that could not fill itself is.
                let is_crowded =
                    matches!(error, sqlx::Error::PoolTimedOut) && gate.in_use() >= self.most();
                let error = fault.error.clone();
                ticket.failed(if is_crowded {
                    Sign::Crowded(error)
                } else {
                    Sign::Unreachable(error)
                });
                Err(fault)
            }
        }
    }

    /// Makes a connection beside the pool, which tells at once why it cannot be made, where the pool would go on trying;
    /// and asks it whether the server takes writes. The embedded store always does, as far as this goes.
    pub(super) async fn knock(&self) -> Result<Knock, Fault> {
        let Self::Mysql { options, .. } = self else {
            return Ok(Knock::Writable);
        };
        let asked = async {
            let connection = options.connect().await;
            let mut connection = connection.map_err(|error| Fault::of_connecting(&error))?;
            let mut found = Ok(Knock::Writable);
            for sql in [READ_ONLY, READ_ONLY_BARE] {
                let flags = sqlx::query_as(sql).fetch_one(&mut connection).await;
                found = Knock::of(flags);
                if !matches!(&found, Err(fault) if fault.is_unknown_variable()) {
                    break;
                }
                // A proxy that knows neither leads to a writer, as far as one can tell.
                found = Ok(Knock::Writable);
            }
            let _ = connection.close().await;
            found
        };
        match tokio::time::timeout(PROBE_DEADLINE, asked).await {
            Ok(found) => found,
            Err(_) => Err(Error::Unavailable("connect: no answer in time".into()).into()),
        }
    }

    async fn acquire(&self, purpose: Purpose) -> Result<Connection, sqlx::Error> {
        match (self, purpose) {
            (Self::Sqlite { writer, .. }, Purpose::Write) => {
                writer.acquire().await.map(Connection::Sqlite)
            }
            (Self::Sqlite { readers, .. }, Purpose::Read | Purpose::Report) => {
                readers.acquire().await.map(Connection::Sqlite)
            }
            (Self::Mysql { pool, .. }, _) => pool.acquire().await.map(Connection::Mysql),
        }
    }

    fn most(&self) -> u32 {
        match self {
            Self::Sqlite { .. } => SQLITE_READERS + 1,
            Self::Mysql { pool, .. } => pool.options().get_max_connections(),
        }
    }

    /// Connections open, and of those idle.
    pub(super) fn sizes(&self) -> (u32, u32) {
        let (size, idle) = match self {
            Self::Sqlite { writer, readers } => (
                writer.size() + readers.size(),
                writer.num_idle() + readers.num_idle(),
            ),
            Self::Mysql { pool, .. } => (pool.size(), pool.num_idle()),
        };
        (size, u32::try_from(idle).unwrap_or(u32::MAX))
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite { writer, readers } => {
                readers.close().await;
                writer.close().await;
            }
            Self::Mysql { pool, .. } => pool.close().await,
        }
    }
}

impl Connection {
    /// Closes without a word, for connections in an unknown state.
    pub(super) fn abandon(self) {
        match self {
            Self::Sqlite(connection) => drop(connection.detach()),
            Self::Mysql(connection) => drop(connection.detach()),
            Self::Apart(connection) => drop(connection),
        }
    }
}

/// Creates the file for its owner only. SQLite gives its log and index files the same mode.
fn make_private(path: &Path) -> io::Result<()> {
    let opened = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match opened {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        opened => opened.map(|_| ()),
    }
}

/// How a server of MySQL's is reached.
pub(crate) fn mysql_options(mysql: &config::Mysql) -> Result<MySqlConnectOptions, Error> {
    let mut options = MySqlConnectOptions::new()
        .username(&mysql.username)
        .database(&mysql.database)
        .charset("utf8mb4")
        .collation("utf8mb4_bin")
        .pipes_as_concat(false)
        .timezone(None)
        .statement_cache_capacity(STATEMENTS_MAX)
        .disable_statement_logging();
    options = match mysql_address(&mysql.address)? {
        MysqlAddress::Socket(path) => options.socket(path),
        MysqlAddress::Tcp(host, port) => options.host(&host).port(port),
    };
    if is_set(&mysql.password_path) {
        let text = read("mysql.password_path", &mysql.password_path)?;
        let text = String::from_utf8(text)
            .map_err(|_| Error::Invalid("mysql.password_path: not UTF-8".into()))?;
        options = options.password(text.trim_end_matches(['\r', '\n']));
    } else if !mysql.password.is_empty() {
        options = options.password(mysql.password.reveal());
    }
    if is_set(&mysql.tls_ca) {
        options = options
            .ssl_mode(MySqlSslMode::VerifyIdentity)
            .ssl_ca_from_pem(read("mysql.tls_ca", &mysql.tls_ca)?);
    }
    if is_set(&mysql.tls_cert) {
        options = options.ssl_client_cert_from_pem(read("mysql.tls_cert", &mysql.tls_cert)?);
    }
    if is_set(&mysql.tls_key) {
        options = options.ssl_client_key_from_pem(read("mysql.tls_key", &mysql.tls_key)?);
    }
    Ok(options)
}

fn is_set(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

fn read(option: &str, path: &PathBuf) -> Result<Vec<u8>, Error> {
    std::fs::read(path)
        .map_err(|error| Error::Invalid(format!("{option}: {}: {error}", path.display())))
}

#[derive(Debug, PartialEq, Eq)]
enum MysqlAddress {
    Socket(PathBuf),
    Tcp(String, u16),
}

fn mysql_address(address: &str) -> Result<MysqlAddress, Error> {
    if address.starts_with('/') {
        return Ok(MysqlAddress::Socket(address.into()));
    }
    let bad = || Error::Invalid(format!("mysql.address: {address:?} is not host:port"));
    let (host, port) = match address.rsplit_once(':') {
        // A bare IPv6 address has colons but no port.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse().map_err(|_| bad())?)
        }
        _ => (address, 3306),
    };
    let host = host.trim_matches(['[', ']']);
    if host.is_empty() {
        return Err(bad());
    }
    Ok(MysqlAddress::Tcp(host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let tcp = |host: &str, port| MysqlAddress::Tcp(host.into(), port);
        assert_eq!(mysql_address("db:3307"), Ok(tcp("db", 3307)));
        assert_eq!(mysql_address("db"), Ok(tcp("db", 3306)));
        assert_eq!(mysql_address("[::1]:3307"), Ok(tcp("::1", 3307)));
        assert_eq!(mysql_address("::1"), Ok(tcp("::1", 3306)));
        assert_eq!(
            mysql_address("/run/mysqld.sock"),
            Ok(MysqlAddress::Socket("/run/mysqld.sock".into()))
        );
        assert!(mysql_address("db:x").is_err());
        assert!(mysql_address(":3306").is_err());
    }
}
