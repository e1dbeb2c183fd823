//! The store: hosts, specs, changes, carves. One type over two engines, embedded SQLite and MySQL or MariaDB.
//!
//! Owner of all durable state but the journal and the files. Invariants: an operation is one transaction on one
//! connection and has a deadline; whatever it writes is sorted by key and comes in statements of few fixed sizes;
//! transactions that leave change rows number them under a lock that they hold until they are committed, so numbers
//! become visible in their order; ids of hosts come from a counter in the same transaction, so a failed one burns none.

mod activities;
mod backfill;
mod batch;
mod breaker;
mod campaigns;
mod carves;
mod changes;
mod columns;
mod details;
mod diagnosis;
mod dialect;
mod directory;
mod enroll;
mod error;
mod gate;
mod host_list;
mod host_names;
mod import;
mod label_specs;
mod migrate;
mod packs;
mod pools;
mod progress;
mod queries;
mod replicas;
mod reports;
mod session;
mod sessions;
mod settings;
mod specs;
mod statistics;
#[cfg(test)]
pub(crate) mod tests;
mod users;
mod value;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleet_protocol::config::Config;
use fleet_protocol::ids::{FeedSeq, UnixSeconds};
use tokio::sync::Mutex;
use tokio::time::Instant;

pub(crate) use error::{Error, Result};
pub(crate) use import::{Imported, ImportedHost};
pub(crate) use migrate::{Tell, quiet};
pub(crate) use pools::mysql_options;
pub use progress::{Filling, Progress};
pub(crate) use replicas::Standing;
pub(crate) use statistics::StoreStatistics;

use dialect::Dialect;
use error::Fault;
use gate::Gate;
use pools::{Knock, Pools, Purpose};
use replicas::Replicas;
use session::Session;
use statistics::Statistics;

/// Name of the embedded store in the state directory.
const FILE_NAME: &str = "store.sqlite";
/// From a single statement's call to its answer, with the wait for a connection.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// A health check must end before those who wait for it give up, so that its silence is counted.
const PING_DEADLINE: Duration = Duration::from_millis(1500);
/// Health checks within this time share one answer.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EngineName {
    Sqlite,
    Mysql,
}

impl EngineName {
    /// Metric label and dependency name.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Mysql => "mysql",
        }
    }
}

/// The store.
pub(crate) struct Store {
    pools: Pools,
    gate: Arc<Gate>,
    replicas: Replicas,
    /// The number of the newest change that this node has seen or made.
    newest_change: AtomicU64,
    dialect: Dialect,
    location: String,
    /// Random; tells this process's changes from those of others.
    origin: i64,
    /// Seen marks of this age may still wait in memory.
    seen_interval_s: u32,
    statistics: Statistics,
    /// Backfills by their migration.
    fillings: std::sync::Mutex<BTreeMap<i64, Filling>>,
    ping: Mutex<Option<(Instant, Result<()>)>>,
}

impl Store {
    /// Opens the engine that the configuration names. Embedded: creates `store.sqlite` in `state_dir` and brings its
    /// tables up to date. MySQL: connects lazily, so an absent server is no error here; [`Store::require_prepared`]
    /// asks it.
    pub(crate) async fn open(config: &Config, state_dir: &Path) -> Result<Self> {
        let store = Self::open_as_it_is(config, state_dir).await?;
        if store.dialect == Dialect::Sqlite {
            store.prepare(&quiet).await?;
        }
        Ok(store)
    }

    /// The same without a change to the tables of the embedded store.
    pub(crate) async fn open_as_it_is(config: &Config, state_dir: &Path) -> Result<Self> {
        let is_embedded = config.mysql.address.is_empty();
        let gate = Arc::new(Gate::new(!is_embedded));
        let (pools, location) = if is_embedded {
            let path = state_dir.join(FILE_NAME);
            (Pools::open_sqlite(&path).await?, path.display().to_string())
        } else {
            let location = format!("{}/{}", config.mysql.address, config.mysql.database);
            (Pools::open_mysql(&config.mysql, &gate)?, location)
        };
        let seen_interval_s = config.osquery.seen_interval.as_secs();
        Ok(Self {
            pools,
            gate,
            replicas: if is_embedded {
                Replicas::default()
            } else {
                Replicas::open(config)?
            },
            newest_change: AtomicU64::new(0),
            dialect: if is_embedded {
                Dialect::Sqlite
            } else {
                Dialect::Mysql
            },
            location,
            origin: fastrand::i64(1..),
            seen_interval_s: u32::try_from(seen_interval_s).unwrap_or(u32::MAX),
            statistics: Statistics::default(),
            fillings: std::sync::Mutex::default(),
            ping: Mutex::new(None),
        })
    }

    pub(crate) fn engine(&self) -> EngineName {
        match self.dialect {
            Dialect::Sqlite => EngineName::Sqlite,
            Dialect::Mysql => EngineName::Mysql,
        }
    }

    /// Where it is, for people; no secrets.
    pub(crate) fn location(&self) -> &str {
        &self.location
    }

    pub(crate) fn statistics(&self) -> StoreStatistics {
        let (connections, idle_connections) = self.pools.sizes();
        StoreStatistics {
            connections,
            idle_connections,
            gate: self.gate.statistics(),
            replicas: self.replicas.statistics(),
            fillings: self.fillings(),
            ..self.statistics.snapshot()
        }
    }

    /// Whether reads and writes work; asked of the engine at most once a second.
    pub(crate) async fn ping(&self) -> Result<()> {
        let mut last = self.ping.lock().await;
        if let Some((at, result)) = last.as_ref()
            && at.elapsed() < PING_INTERVAL
        {
            return result.clone();
        }
        let result = self.ask().await.map_err(Error::from);
        *last = Some((Instant::now(), result.clone()));
        result
    }

    async fn ask(&self) -> std::result::Result<(), Fault> {
        if self.gate.is_demoted() {
            // Not over the pool: the name may lead to another server by now.
            if self.pools.knock().await? == Knock::ReadOnly {
                return Err(read_only().into());
            }
            self.gate.promote();
        }
        let deadline = Instant::now() + PING_DEADLINE;
        let mut session = Session::open(self, Purpose::Write, deadline).await?;
        if self.dialect == Dialect::Sqlite {
            // A full disk or a read-only file shows only in a real write.
            let sql = "UPDATE counters SET value = value + 1 WHERE name = 'pings'";
            session.execute("ping", sql, &[]).await?;
            return Ok(());
        }
        let is_read_only = match session.row("ping", pools::READ_ONLY, &[]).await? {
            Some(row) => row.int(0)? + row.int(1)? != 0,
            None => false,
        };
        if is_read_only {
            // Users with the privilege to write all the same must not.
            self.gate.demote(&read_only());
            return Err(read_only().into());
        }
        Ok(())
    }

    /// What is wrong with it now, in a word or two that may be shown to anybody.
    pub(crate) fn trouble(&self, error: &Error) -> &'static str {
        match error {
            Error::Denied(_) => "access denied",
            _ if self.gate.is_demoted() => "read-only",
            _ => "unavailable",
        }
    }

    /// How long calls have been refused at once because the store does not answer.
    pub(crate) fn refused_for(&self) -> Option<Duration> {
        self.gate.open_for()
    }

    /// How the replicas are: address, and what is wrong.
    pub(crate) async fn check_replicas(&self) -> Vec<(String, Option<String>)> {
        self.replicas.check(self).await
    }

    fn note_change(&self, number: u64) {
        self.newest_change.fetch_max(number, Relaxed);
    }

    fn newest_change(&self) -> u64 {
        self.newest_change.load(Relaxed)
    }

    /// The newest change that this node has seen or made.
    pub(crate) fn newest_known(&self) -> FeedSeq {
        FeedSeq(self.newest_change())
    }

    /// Closes every connection; calls fail from then on.
    pub(crate) async fn close(&self) {
        self.replicas.close().await;
        self.pools.close().await;
    }

    /// A connection for single statements.
    async fn session(&self, purpose: Purpose) -> std::result::Result<Session<'_>, Fault> {
        Session::open(self, purpose, Instant::now() + CALL_DEADLINE).await
    }
}

fn read_only() -> Error {
    Error::Unavailable("the server is read-only".into())
}

/// The time that rows are stamped with when the caller brings none.
fn now() -> UnixSeconds {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixSeconds(u32::try_from(since.as_secs()).unwrap_or(u32::MAX))
}
