//! Everything that serves, put together: made in order at start, watched while it runs, ended in the reverse order.
//!
//! Invariants: a store that is away at start is waited for, with the operator sockets answering; only what a restart
//! cannot mend (bad configuration, missing migrations) is an error. Tasks that must run for ever are watched.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fleet_protocol::config::Config;
use fleet_protocol::feed::Feed;
use fleet_protocol::ids::{BootNonce, FeedSeq};
use fleet_protocol::link::{Batch, BatchReply};
use fleet_protocol::slot::{Gateway, StartControl};
use fleet_protocol::stats::{ControlStats, Dependency};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::agents::{Agents, now};
use crate::bus::{self, Bus};
use crate::carve::Carves;
use crate::dispatch::Dispatch;
use crate::feed::Subscription;
use crate::journal::Journal;
use crate::metrics::{self, Sources};
use crate::operator::{self, Deps};
use crate::server::{Backend, FeedSource, Server};
use crate::spool::Spool;
use crate::store::{self, Store};
use crate::{inherit, waiting};

const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// In a row; then it is a matter of the configuration. The supervisor ends the server if control never worked, and
/// starts control again if it did.
const DENIALS_MAX: u32 = 4;
/// What is told to the supervisor is found out this often; a health check of our own costs a statement.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
const PING_DEADLINE: Duration = Duration::from_secs(2);
/// Time of the last writes to the store.
const LAST_WRITES: Duration = Duration::from_secs(5);

impl Backend for Dispatch {
    type Feed = Subscription;

    fn subscribe(&self, after: Option<FeedSeq>) -> Subscription {
        self.agents().subscribe(after)
    }

    async fn run(&self, batch: Batch) -> BatchReply {
        Self::run(self, batch).await
    }
}

impl FeedSource for Subscription {
    async fn next(&mut self) -> Option<Arc<Feed>> {
        Self::next(self).await
    }

    fn try_next(&mut self) -> Option<Arc<Feed>> {
        Self::try_next(self)
    }
}

/// Why the store is not ready.
enum Obstacle {
    /// Come again.
    Later(String),
    /// Come again a few times: what is denied is seldom allowed by waiting.
    Denied(String),
    /// A restart would not help.
    Fatal(String),
}

impl From<store::Error> for Obstacle {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Unavailable(_) | store::Error::Failed(_) => {
                Self::Later(error.to_string())
            }
            store::Error::Denied(_) => Self::Denied(error.to_string()),
            store::Error::NotPrepared { .. } | store::Error::Invalid(_) => {
                Self::Fatal(error.to_string())
            }
        }
    }
}

/// Everything that serves.
pub(crate) struct Assembly {
    parts: Parts,
    server: Arc<Server<Dispatch>>,
    drain: watch::Sender<bool>,
    /// Each ends only by mistake, or on drain; its name says which.
    tasks: JoinSet<&'static str>,
}

/// What the tasks share.
#[derive(Clone)]
struct Parts {
    store: Arc<Store>,
    bus: Arc<Bus>,
    agents: Arc<Agents>,
    journal: Arc<Journal>,
    carves: Arc<Carves>,
}

/// Makes everything; waits for the store as long as it takes. An error is for people, and final.
pub(crate) async fn assemble(
    start: &StartControl,
    boot: BootNonce,
    gateway: watch::Receiver<Gateway>,
    stats: &watch::Sender<ControlStats>,
) -> Result<Assembly, String> {
    let listener = |fd| {
        inherit::listener(fd)
            .and_then(UnixListener::from_std)
            .map_err(|error| error.to_string())
    };
    let links = listener(start.link_fd)?;
    let tunnels = listener(start.tunnel_fd)?;
    let operators = listener(start.operator_fd)?;
    let journal = Journal::open(&start.config.filesystem, &start.state_dir)
        .map_err(|error| format!("cannot start the journal's threads: {error}"))?;
    let state_dir = start.state_dir.clone();
    let spool = tokio::task::spawn_blocking(move || Spool::open(&state_dir)).await;
    let spool = Arc::new(spool.map_err(|error| format!("cannot open the spool: {error}"))?);
    let (store, bus, agents) = tokio::select! {
        found = find_store(start, &spool, stats) => found?,
        () = waiting::serve(&tunnels, &operators) => return Err("operator sockets failed".into()),
    };
    let carves = Arc::new(Carves::new(
        Arc::clone(&store),
        &start.config.carver,
        &start.state_dir,
    ));
    let parts = Parts {
        store,
        bus,
        agents,
        journal,
        carves,
    };
    let config = Arc::new(start.config.clone());
    Ok(Assembly::start(
        parts, &config, boot, gateway, links, tunnels, operators,
    ))
}

/// Retries until store and directory are loaded.
async fn find_store(
    start: &StartControl,
    spool: &Arc<Spool>,
    stats: &watch::Sender<ControlStats>,
) -> Result<(Arc<Store>, Arc<Bus>, Arc<Agents>), String> {
    let mut pause = RETRY_FIRST;
    let mut denials = 0;
    loop {
        let reason = match try_store(start, spool).await {
            Ok(found) => return Ok(found),
            Err(Obstacle::Fatal(reason)) => return Err(reason),
            Err(Obstacle::Later(reason)) => {
                denials = 0;
                reason
            }
            Err(Obstacle::Denied(reason)) => {
                denials += 1;
                if denials >= DENIALS_MAX {
                    return Err(reason);
                }
                reason
            }
        };
        tracing::warn!(%reason, retry_s = pause.as_secs_f32(), "not ready to serve; trying again");
        stats.send_modify(|stats| {
            stats.dependencies = vec![Dependency {
                name: "store".into(),
                is_healthy: false,
                detail: reason,
            }];
        });
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

async fn try_store(
    start: &StartControl,
    spool: &Arc<Spool>,
) -> Result<(Arc<Store>, Arc<Bus>, Arc<Agents>), Obstacle> {
    let (config, first_enroll_secret) = (&start.config, &start.first_enroll_secret);
    let store = Arc::new(Store::open(config, &start.state_dir).await?);
    store.require_prepared().await?;
    if !first_enroll_secret.is_empty() && store.add_first_enroll_secret(first_enroll_secret).await?
    {
        tracing::info!("the store had no enroll secret; took the one of the state directory");
    }
    let bus = Bus::open(config).map_err(|error| match error {
        bus::Error::Invalid(reason) => Obstacle::Fatal(reason),
        bus::Error::Unavailable(reason) => Obstacle::Later(reason),
    })?;
    let bus = Arc::new(bus);
    let agents = Agents::load(
        Arc::clone(&store),
        Arc::clone(&bus),
        Arc::clone(spool),
        config,
    )
    .await
    .map_err(|error| Obstacle::Later(format!("{error:#}")))?;
    agents.skip_second(now());
    Ok((store, bus, agents))
}

impl Assembly {
    fn start(
        parts: Parts,
        config: &Arc<Config>,
        boot: BootNonce,
        gateway: watch::Receiver<Gateway>,
        links: UnixListener,
        tunnels: UnixListener,
        operators: UnixListener,
    ) -> Self {
        let dispatch = Arc::new(Dispatch::new(
            Arc::clone(&parts.agents),
            Arc::clone(&parts.journal),
            Arc::clone(&parts.carves),
        ));
        let server = Server::new(Arc::clone(&dispatch), boot);
        let sources = Sources {
            gateway: gateway.clone(),
            store: Arc::clone(&parts.store),
            bus: Arc::clone(&parts.bus),
            agents: Arc::clone(&parts.agents),
            journal: Arc::clone(&parts.journal),
            carves: Arc::clone(&parts.carves),
            dispatch,
            links: Arc::clone(&server.counters),
        };
        let deps = Deps {
            config: Arc::clone(config),
            store: Arc::clone(&parts.store),
            bus: Arc::clone(&parts.bus),
            agents: Arc::clone(&parts.agents),
            journal: Arc::clone(&parts.journal),
            carves: Arc::clone(&parts.carves),
            gateway,
            metrics: Arc::new(move || metrics::render(&sources)),
        };
        let (drain, drains) = watch::channel(false);
        let mut tasks = parts.background();
        let accepting = Arc::clone(&server);
        tasks.spawn(async move {
            accepting.accept(links).await;
            "links"
        });
        tasks.spawn(async move {
            operator::serve(tunnels, operators, deps, drains).await;
            "operator sockets"
        });
        Self {
            parts,
            server,
            drain,
            tasks,
        }
    }

    /// Where the store is, for people.
    pub(crate) fn store_location(&self) -> &str {
        self.parts.store.location()
    }

    /// Keeps `stats` true until some task that must run has stopped; returns its name.
    pub(crate) async fn watch(&mut self, stats: &watch::Sender<ControlStats>) -> &'static str {
        let links = Arc::clone(&self.server.counters);
        let parts = self.parts.clone();
        let health = async {
            loop {
                let (store, bus, replicas) = tokio::join!(
                    parts.store_health(),
                    parts.bus_health(),
                    parts.replica_health()
                );
                stats.send_replace(ControlStats {
                    dependencies: [store, bus, parts.journal_health()]
                        .into_iter()
                        .chain(replicas)
                        .chain(parts.spool_state())
                        .chain(parts.backfill_states())
                        .collect(),
                    hosts: parts.agents.statistics().hosts,
                    links: u32::try_from(links.open.load(Ordering::Relaxed)).unwrap_or(u32::MAX),
                    rss_bytes: fleet_child::memory::resident_bytes(),
                });
                tokio::time::sleep(HEALTH_INTERVAL).await;
            }
        };
        tokio::select! {
            ended = self.tasks.join_next() => match ended {
                Some(Ok(name)) => name,
                Some(Err(_)) => "one that panicked",
                None => "all",
            },
            () = health => "health",
        }
    }

    /// Returns when no worker is linked.
    pub(crate) async fn workers_gone(&self) {
        while self.server.counters.open.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Finishes what is under way, then writes what must not be lost. The caller bounds the time.
    pub(crate) async fn finish(mut self) {
        self.drain.send_replace(true);
        self.server.finish().await;
        let last = timeout(LAST_WRITES, self.parts.agents.finish());
        if last.await.is_err() {
            tracing::warn!("the last seen times were not written");
        }
        Arc::clone(&self.parts.journal).finish().await;
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        // A store that does not answer closes by itself with the process.
        let _ = timeout(LAST_WRITES, self.parts.store.close()).await;
    }
}

impl Parts {
    /// What goes on by itself.
    fn background(&self) -> JoinSet<&'static str> {
        let mut tasks = JoinSet::new();
        let agents = Arc::clone(&self.agents);
        tasks.spawn(async move {
            agents.watch().await;
            "watch of changes"
        });
        let agents = Arc::clone(&self.agents);
        tasks.spawn(async move {
            agents.flush_seen().await;
            "writing of seen times"
        });
        let agents = Arc::clone(&self.agents);
        tasks.spawn(async move {
            agents.replay().await;
            "replay of kept results"
        });
        let campaigns = Arc::clone(&self.agents.campaigns);
        tasks.spawn(async move {
            campaigns.run().await;
            "live queries"
        });
        let store = Arc::clone(&self.store);
        tasks.spawn(async move {
            store.fill_in_background().await;
            "backfills"
        });
        let carves = Arc::clone(&self.carves);
        tasks.spawn(async move {
            carves.expire_forever().await;
            "expiry of carves"
        });
        tasks
    }

    async fn store_health(&self) -> Dependency {
        let fault = match timeout(PING_DEADLINE, self.store.ping()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(match self.store.refused_for() {
                Some(span) => format!("{error} (breaker open for {} s)", span.as_secs()),
                None => error.to_string(),
            }),
            Err(_) => Some("no answer in time".to_owned()),
        };
        dependency(self.store.engine().label(), fault, self.store.location())
    }

    /// One that is behind or away costs nothing but the primary's time.
    async fn replica_health(&self) -> Vec<Dependency> {
        let checked = timeout(PING_DEADLINE, self.store.check_replicas()).await;
        let checked = checked.unwrap_or_default().into_iter();
        checked
            .map(|(address, trouble)| dependency("mysql replica", trouble, &address))
            .collect()
    }

    /// Without a question of our own: commands on Redis are counted by those who pay for it.
    async fn bus_health(&self) -> Dependency {
        let fault = if self.bus.is_healthy() {
            None
        } else {
            match timeout(PING_DEADLINE, self.bus.ping()).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("no answer in time".to_owned()),
            }
        };
        dependency(self.bus.engine(), fault, self.bus.location())
    }

    /// Only while something waits in it; results that wait are no fault of the gateway.
    fn spool_state(&self) -> Option<Dependency> {
        let spool = self.agents.spool.statistics();
        (spool.waiting > 0).then(|| Dependency {
            name: "spool".to_owned(),
            is_healthy: true,
            detail: format!(
                "{} batches of results ({} KiB) wait for the store",
                spool.waiting,
                spool.bytes.div_ceil(1024)
            ),
        })
    }

    /// Only while some rows are left; the gateway lacks nothing meanwhile.
    fn backfill_states(&self) -> Vec<Dependency> {
        let mut fillings = self.store.fillings();
        fillings.retain(|filling| filling.rows_left() > 0);
        let states = fillings.into_iter().map(|filling| Dependency {
            name: "backfill".to_owned(),
            is_healthy: true,
            detail: filling.to_string(),
        });
        states.collect()
    }

    fn journal_health(&self) -> Dependency {
        dependency("journal", self.journal.fault(), "")
    }
}

fn dependency(name: &str, fault: Option<String>, location: &str) -> Dependency {
    Dependency {
        name: name.to_owned(),
        is_healthy: fault.is_none(),
        detail: fault.unwrap_or_else(|| location.to_owned()),
    }
}
