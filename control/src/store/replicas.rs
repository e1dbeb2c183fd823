//! Read replicas: operators' lists are read from one that knows every change that this node knows, else from the primary.
//!
//! Invariant: what is read is not older than what this node has seen of the primary, its own writes included: a replica's
//! number of the newest change is compared with ours on the connection that is then read from. That takes no privilege,
//! works on every server, and what an operator has just applied is in the next list.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use fleet_protocol::config::{Config, Mysql};
use tokio::time::Instant;

use super::Store;
use super::error::{Error, Fault};
use super::gate::Gate;
use super::pools::{Pools, Purpose};
use super::session::Session;
use super::value::unexpected;

/// Who waits longer for a replica is better served by the primary.
const REPLICA_DEADLINE: Duration = Duration::from_secs(1);

/// How a replica was when it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    #[default]
    Unknown,
    /// Knows all that we know.
    Level,
    /// Does not yet.
    Behind,
    /// Does not answer, or denies access.
    Away,
}

impl Standing {
    const ALL: [Self; 4] = [Self::Unknown, Self::Level, Self::Behind, Self::Away];
}

/// For operators.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReplicaStatistics {
    pub(crate) address: String,
    pub(crate) standing: Standing,
    /// Changes that it lacked when it was last asked.
    pub(crate) lag: u64,
    /// Reads that it served.
    pub(crate) reads: u64,
    /// Reads that went on to another, because it was behind or away.
    pub(crate) passed: u64,
}

/// All of them; none without configuration.
#[derive(Default)]
pub(super) struct Replicas {
    all: Vec<Replica>,
    turn: AtomicUsize,
}

struct Replica {
    address: String,
    pools: Pools,
    gate: Arc<Gate>,
    standing: AtomicU8,
    lag: AtomicU64,
    reads: AtomicU64,
    passed: AtomicU64,
}

impl Replicas {
    /// Connects when they are first needed.
    pub(super) fn open(config: &Config) -> Result<Self, Error> {
        let mut all = Vec::new();
        for address in &config.mysql_read_replica.address {
            let gate = Arc::new(Gate::of_replica(address));
            all.push(Replica {
                address: address.clone(),
                pools: Pools::open_mysql(&options(config, address), &gate)?,
                gate,
                standing: AtomicU8::new(0),
                lag: AtomicU64::new(0),
                reads: AtomicU64::new(0),
                passed: AtomicU64::new(0),
            });
        }
        Ok(Self {
            all,
            turn: AtomicUsize::new(0),
        })
    }

    /// A connection to one that is level, each in turn; `None` when there is none.
    pub(super) async fn session<'s>(&'s self, store: &'s Store) -> Option<Session<'s>> {
        let count = self.all.len();
        let first = self.turn.fetch_add(1, Relaxed);
        for step in 0..count {
            let replica = self.all.get(first.wrapping_add(step) % count)?;
            match replica.ask(store).await {
                Ok(Some(session)) => {
                    replica.reads.fetch_add(1, Relaxed);
                    return Some(session);
                }
                Ok(None) | Err(_) => {
                    replica.passed.fetch_add(1, Relaxed);
                }
            }
        }
        None
    }

    /// Asks each of them how it stands. Reasons for those that cannot be used, by address.
    pub(super) async fn check(&self, store: &Store) -> Vec<(String, Option<String>)> {
        let mut found = Vec::with_capacity(self.all.len());
        for replica in &self.all {
            let trouble = match replica.ask(store).await {
                Ok(Some(_)) => None,
                Ok(None) => Some(format!("behind by {} changes", replica.lag.load(Relaxed))),
                Err(fault) => Some(fault.error.to_string()),
            };
            found.push((replica.address.clone(), trouble));
        }
        found
    }

    pub(super) fn statistics(&self) -> Vec<ReplicaStatistics> {
        self.all
            .iter()
            .map(|replica| ReplicaStatistics {
                address: replica.address.clone(),
                standing: Standing::ALL
                    .get(usize::from(replica.standing.load(Relaxed)))
                    .copied()
                    .unwrap_or_default(),
                lag: replica.lag.load(Relaxed),
                reads: replica.reads.load(Relaxed),
                passed: replica.passed.load(Relaxed),
            })
            .collect()
    }

    pub(super) async fn close(&self) {
        for replica in &self.all {
            replica.pools.close().await;
        }
    }
}

impl Replica {
    /// A session if it is level, `None` if it is behind.
    async fn ask<'s>(&'s self, store: &'s Store) -> Result<Option<Session<'s>>, Fault> {
        let wanted = store.newest_change();
        let outcome = self.position(store).await;
        let standing = match &outcome {
            Ok((_, newest)) => {
                let lag = wanted.saturating_sub(*newest);
                self.lag.store(lag, Relaxed);
                if lag == 0 {
                    Standing::Level
                } else {
                    Standing::Behind
                }
            }
            Err(_) => Standing::Away,
        };
        let number = Standing::ALL.iter().position(|of| *of == standing);
        let number = number.and_then(|number| u8::try_from(number).ok());
        self.standing.store(number.unwrap_or_default(), Relaxed);
        let (session, _) = outcome?;
        Ok((standing == Standing::Level).then_some(session))
    }

    async fn position<'s>(&'s self, store: &'s Store) -> Result<(Session<'s>, u64), Fault> {
        let deadline = Instant::now() + REPLICA_DEADLINE;
        let place = (&self.pools, &*self.gate);
        let mut session = Session::at(store, place, Purpose::Read, deadline).await?;
        let sql = "SELECT value FROM counters WHERE name = ?";
        let args = ["changes".into()];
        let row = session.row("replica_position", sql, &args).await?;
        let newest = row.ok_or_else(unexpected)?.u64(0)?;
        session.prolong();
        Ok((session, newest))
    }
}

/// What the primary is reached with, where nothing else is said.
fn options(config: &Config, address: &str) -> Mysql {
    let of = &config.mysql_read_replica;
    let mut mysql = config.mysql.clone();
    mysql.address = address.to_owned();
    mysql.max_open_conns = of.max_open_conns;
    mysql.conn_max_lifetime = of.conn_max_lifetime;
    if !of.database.is_empty() {
        mysql.database.clone_from(&of.database);
    }
    if !of.username.is_empty() {
        mysql.username.clone_from(&of.username);
        mysql.password = of.password.clone();
        mysql.password_path.clone_from(&of.password_path);
    }
    for (path, ours) in [
        (&mut mysql.tls_ca, &of.tls_ca),
        (&mut mysql.tls_cert, &of.tls_cert),
        (&mut mysql.tls_key, &of.tls_key),
    ] {
        if !ours.as_os_str().is_empty() {
            path.clone_from(ours);
        }
    }
    mysql
}
