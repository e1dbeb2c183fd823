//! The bus: tells other nodes that there are new changes, and carries what they share of live queries. Redis, or
//! in-process for a single node.
//!
//! Owner of the Redis connection. Invariants: nothing here waits for Redis but [`Bus::ping`] and [`Bus::ask`], and those
//! not for long; a lost Redis only means that other nodes see changes when they next poll for them, and that live queries
//! wait.

mod address;
mod redis_link;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fleet_protocol::config::Config;
use fleet_protocol::ids::FeedSeq;
use fleet_protocol::stats::Histogram;
use redis::{Cmd, Value};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use address::Addresses;
use redis_link::Link;

/// Health checks within this time share one answer.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// A health check waits no longer than this, whatever `redis.read_timeout` says.
const PING_DEADLINE: Duration = Duration::from_secs(2);

/// Longest wait for an answer to [`Bus::ask`]: agents wait behind it.
const ASK_DEADLINE: Duration = Duration::from_secs(2);
/// News that may wait for this node to take them.
const NEWS_MAX: usize = 1024;

/// Why a call failed. Texts hold no secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The configuration names something that cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// Redis is not there or does not answer in time.
    #[error("Redis unavailable: {0}")]
    Unavailable(String),
}

/// Counters of the bus.
#[derive(Clone, Debug, Default)]
pub(crate) struct BusStatistics {
    /// Commands sent.
    pub(crate) commands: u64,
    /// Of those, failed.
    pub(crate) errors: u64,
    /// Wakes heard from other nodes and from this one.
    pub(crate) wakes: u64,
    /// Connections established after the first one.
    pub(crate) reconnects: u64,
    pub(crate) latency_us: Histogram,
}

/// The bus.
pub(crate) struct Bus {
    shared: Arc<Shared>,
    location: String,
    database: u16,
    publish: watch::Sender<FeedSeq>,
    /// Empty for the in-process bus.
    tasks: Vec<JoinHandle<()>>,
    ping: tokio::sync::Mutex<Option<(Instant, Result<(), Error>)>>,
}

/// What the bus and its tasks share.
struct Shared {
    wakes: watch::Sender<FeedSeq>,
    /// What nodes tell each other of live queries.
    news: broadcast::Sender<Arc<[u8]>>,
    /// Connections that were established.
    connects: watch::Sender<u64>,
    statistics: Mutex<BusStatistics>,
    link: Mutex<LinkState>,
}

/// How it stands with Redis.
enum LinkState {
    /// There is no Redis and none is needed.
    InProcess,
    Up(Link),
    /// Why not.
    Down(String),
}

impl Bus {
    /// Reads the configuration and starts connecting in the background; an absent Redis is no error here. Needs a
    /// tokio runtime.
    pub(crate) fn open(config: &Config) -> Result<Self, Error> {
        let publish = watch::Sender::new(FeedSeq(0));
        let addresses = Addresses::read(&config.redis)?;
        let state = match addresses {
            Some(_) => LinkState::Down("not connected yet".into()),
            None => LinkState::InProcess,
        };
        let shared = Arc::new(Shared {
            wakes: watch::Sender::new(FeedSeq(0)),
            news: broadcast::Sender::new(NEWS_MAX),
            connects: watch::Sender::new(0),
            statistics: Mutex::default(),
            link: Mutex::new(state),
        });
        let mut tasks = Vec::new();
        let location = match addresses {
            Some(addresses) => {
                let location = addresses.shown();
                let keeper = redis_link::Keeper::new(shared.clone(), addresses, &config.redis)?;
                tasks.push(tokio::spawn(keeper.keep()));
                let publisher =
                    redis_link::publish(shared.clone(), publish.subscribe(), &config.redis);
                tasks.push(tokio::spawn(publisher));
                location
            }
            None => "this process".to_owned(),
        };
        Ok(Self {
            shared,
            location,
            database: config.redis.database,
            publish,
            tasks,
            ping: tokio::sync::Mutex::new(None),
        })
    }

    /// Dependency name.
    pub(crate) fn engine(&self) -> &'static str {
        if self.tasks.is_empty() {
            "in-process bus"
        } else {
            "redis"
        }
    }

    /// Where it is, for people; no secrets.
    pub(crate) fn location(&self) -> &str {
        &self.location
    }

    /// Tells every node, this one included. Never waits; several in short order become one.
    pub(crate) fn publish_wake(&self, seq: FeedSeq) {
        self.shared.wake(seq);
        self.publish.send_if_modified(|newest| {
            let is_newer = seq > *newest;
            *newest = seq.max(*newest);
            is_newer
        });
    }

    /// Changes whenever a node wrote changes; the value is the number that was last heard of.
    pub(crate) fn wakes(&self) -> watch::Receiver<FeedSeq> {
        self.shared.wakes.subscribe()
    }

    /// Whether there is a Redis that nodes share, up or not.
    pub(crate) fn is_shared(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// The database's number, which stands in every key.
    pub(crate) fn database(&self) -> u16 {
        self.database
    }

    /// Sends a command and waits for its answer, not for long. Several at once share the connection and the wait.
    pub(crate) async fn ask(&self, command: &Cmd) -> Result<Value, Error> {
        let link = self.shared.link()?;
        self.shared.answer(link, command, ASK_DEADLINE).await
    }

    /// Tells every node, this one included.
    pub(crate) async fn tell(&self, news: &[u8]) -> Result<(), Error> {
        let mut command = redis::cmd("PUBLISH");
        command
            .arg(redis_link::news_channel(self.database))
            .arg(news);
        self.ask(&command).await.map(drop)
    }

    /// What nodes tell. Who falls behind, and who hears of a new connection, has missed some.
    pub(crate) fn news(&self) -> broadcast::Receiver<Arc<[u8]>> {
        self.shared.news.subscribe()
    }

    /// Changes with every connection that is established.
    pub(crate) fn connects(&self) -> watch::Receiver<u64> {
        self.shared.connects.subscribe()
    }

    /// Asks Redis, at most once a second; the in-process bus always works.
    pub(crate) async fn ping(&self) -> Result<(), Error> {
        if self.tasks.is_empty() {
            return Ok(());
        }
        let mut last = self.ping.lock().await;
        if let Some((at, result)) = last.as_ref()
            && at.elapsed() < PING_INTERVAL
        {
            return result.clone();
        }
        let result = match self.shared.link() {
            Ok(link) => {
                self.shared
                    .command(link, &redis::cmd("PING"), PING_DEADLINE)
                    .await
            }
            Err(error) => Err(error),
        };
        *last = Some((Instant::now(), result.clone()));
        result
    }

    /// What is known without asking.
    pub(crate) fn is_healthy(&self) -> bool {
        !matches!(*self.shared.lock_link(), LinkState::Down(_))
    }

    pub(crate) fn statistics(&self) -> BusStatistics {
        self.shared.lock_statistics().clone()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shared {
    fn lock_link(&self) -> MutexGuard<'_, LinkState> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_statistics(&self) -> MutexGuard<'_, BusStatistics> {
        self.statistics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to send on, or why there is none.
    fn link(&self) -> Result<Link, Error> {
        match &*self.lock_link() {
            LinkState::Up(link) => Ok(link.clone()),
            LinkState::Down(reason) => Err(Error::Unavailable(reason.clone())),
            LinkState::InProcess => Err(Error::Unavailable("there is no Redis".into())),
        }
    }

    /// A wake from this node or another. The echo of our own is no news.
    fn wake(&self, seq: FeedSeq) {
        let is_news = self.wakes.send_if_modified(|last| {
            let is_news = *last != seq;
            *last = seq;
            is_news
        });
        if is_news {
            self.lock_statistics().wakes += 1;
        }
    }
}
