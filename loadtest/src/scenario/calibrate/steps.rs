//! The measured steps: agents in a closed loop, and what the server's processes use meanwhile.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use fleet_protocol::agent::{LogType, Route};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::super::procfs::Sample;
use super::super::report::Servers;
use super::super::tally::as_f64;
use super::server::Server;
use crate::agent::{Agent, Exchange, Settings};
use crate::bodies;
use crate::client::{DEADLINE, Dialer};
use crate::connection::Connection;
use crate::host::Release;
use crate::http::Request;
use crate::target::Target;
use crate::{lines, unix_now};

/// From a step's start until it is measured.
const WARM_UP: Duration = Duration::from_millis(300);
/// Rounds of a step; its length is shared among them.
const ROUNDS_MAX: u32 = 5;
/// Reads that an agent may need until nothing is due.
const FIRST_READS_MAX: u32 = 20;
/// Attempts to enroll, a second apart.
const ENROLLS_MAX: u32 = 4;
/// Connections opened at the same time.
const OPENING: u32 = 32;
/// Between the last connection and the look at memory.
const SETTLE: Duration = Duration::from_secs(1);

/// What an agent does again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// A distributed read with nothing due.
    Read,
    /// Config.
    Config,
    /// A log request.
    Log {
        /// Of so many result lines.
        lines: u32,
    },
}

impl Act {
    /// Does it once; gives the bytes of its log lines too.
    pub(super) async fn run(self, agent: &Agent) -> (Exchange, usize) {
        /// No two lines are the same.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        match self {
            Self::Read => (agent.read().await, 0),
            Self::Config => (agent.config().await, 0),
            Self::Log { lines } => {
                let number = NUMBER.fetch_add(u64::from(lines), Ordering::Relaxed);
                let lines: Vec<Vec<u8>> = (0..u64::from(lines))
                    .map(|line| lines::result_line(agent.host(), unix_now(), number + line))
                    .collect();
                let bytes = lines.iter().map(Vec::len).sum();
                (agent.log(LogType::Result, &lines).await, bytes)
            }
        }
    }
}

/// CPU for each exchange.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// Exchanges.
    pub(super) count: f64,
    /// Of all processes.
    pub(super) all_us: f64,
    /// Of the control process.
    pub(super) control_us: f64,
}

impl Cost {
    /// What was used between two looks, for each of `count`.
    pub(super) fn between(begin: &[Sample], end: &[Sample], count: usize) -> Self {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        let servers = Servers::between("", begin, end, count, 1.0);
        let control = servers
            .processes
            .iter()
            .filter(|process| process.end.name.starts_with("control"));
        Self {
            count: as_f64(count),
            all_us: servers.cpu_us_per_exchange,
            control_us: control.map(|process| process.cpu_us_per_exchange).sum(),
        }
    }
}

/// Where agents connect to, and how.
pub(in super::super) struct Crowd {
    pub(in super::super) dialer: Arc<Dialer>,
    pub(in super::super) settings: Arc<Settings>,
    pub(in super::super) target: Arc<Target>,
    /// At the same time.
    pub(in super::super) connections: u32,
}

impl Crowd {
    /// As many of them as act at the same time.
    pub(super) fn few(&self, agents: &[Arc<Agent>]) -> Vec<Arc<Agent>> {
        let count = usize::try_from(self.connections).unwrap_or(usize::MAX);
        agents.iter().take(count).cloned().collect()
    }

    /// Enrolls hosts until all are, or the time is over.
    pub(super) async fn enroll(
        &self,
        indices: Range<u32>,
        limit: Duration,
    ) -> anyhow::Result<Vec<Arc<Agent>>> {
        let until = Instant::now() + limit;
        let waiting: VecDeque<_> = indices.map(|index| self.agent(index)).collect();
        self.each(waiting, until, |agent| async move {
            enroll(&agent).await?;
            agent.close().await;
            Ok(())
        })
        .await
    }

    /// Lets each answer its detail queries.
    pub(super) async fn details(&self, agents: &[Arc<Agent>]) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(3600);
        let done = self.each(
            agents.iter().cloned().collect(),
            until,
            |agent| async move {
                details(&agent).await?;
                agent.close().await;
                Ok(())
            },
        );
        done.await.map(drop)
    }

    /// Does something with each agent, some at the same time; gives those that were done when the time is over.
    async fn each<F>(
        &self,
        waiting: VecDeque<Arc<Agent>>,
        until: Instant,
        act: fn(Arc<Agent>) -> F,
    ) -> anyhow::Result<Vec<Arc<Agent>>>
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let waiting = Arc::new(Mutex::new(waiting));
        let mut tasks = JoinSet::new();
        for _ in 0..self.connections {
            let waiting = waiting.clone();
            tasks.spawn(async move {
                let mut done = Vec::new();
                while Instant::now() < until {
                    let next = {
                        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                        waiting.pop_front()
                    };
                    let Some(agent) = next else { break };
                    act(agent.clone()).await?;
                    done.push(agent);
                }
                anyhow::Ok(done)
            });
        }
        let mut all = Vec::new();
        while let Some(done) = tasks.join_next().await {
            all.extend(done??);
        }
        Ok(all)
    }
}

/// Enrolls one host.
pub(in super::super) async fn enroll(agent: &Agent) -> anyhow::Result<()> {
    for attempt in 1.. {
        let enrolled = agent.enroll().await;
        match enrolled.failure() {
            None => break,
            Some(failure) if attempt >= ENROLLS_MAX => bail!("enroll: {failure}"),
            Some(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
    Ok(())
}

/// Reads and writes until nothing is due.
pub(in super::super) async fn details(agent: &Agent) -> anyhow::Result<()> {
    for _ in 0..FIRST_READS_MAX {
        let round = agent.read_round(Instant::now()).await;
        if round.is_success && round.queries == 0 && round.write.is_none() {
            return Ok(());
        }
    }
    bail!("reads are still handing out work after {FIRST_READS_MAX} turns")
}

/// All agents do the same as fast as it goes; the cost of each round.
pub(super) async fn busy(
    server: &Server,
    agents: &[Arc<Agent>],
    act: Act,
    seconds: u64,
) -> anyhow::Result<Vec<Cost>> {
    anyhow::ensure!(!agents.is_empty(), "no host is enrolled");
    let is_over = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for agent in agents {
        let (agent, is_over, done) = (agent.clone(), is_over.clone(), done.clone());
        tasks.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let (exchange, _) = act.run(&agent).await;
                if let Some(failure) = exchange.failure() {
                    bail!("{act:?}: {failure}");
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
            agent.close().await;
            Ok(())
        });
    }
    tokio::time::sleep(WARM_UP).await;
    let rounds = u32::try_from(seconds)
        .unwrap_or(ROUNDS_MAX)
        .clamp(1, ROUNDS_MAX);
    let length = Duration::from_secs(seconds) / rounds;
    let mut costs = Vec::new();
    for _ in 0..rounds {
        let (begin, before) = (server.processes(), done.load(Ordering::Relaxed));
        tokio::time::sleep(length).await;
        let (end, after) = (server.processes(), done.load(Ordering::Relaxed));
        let count = usize::try_from(after - before).unwrap_or(usize::MAX);
        if count > 0 {
            costs.push(Cost::between(&begin, &end, count));
        }
    }
    is_over.store(true, Ordering::Relaxed);
    while let Some(end) = tasks.join_next().await {
        end??;
    }
    anyhow::ensure!(!costs.is_empty(), "{act:?}: no exchange ended in time");
    Ok(costs)
}

/// Opens connections, uses each once and holds them; bytes of the worker for each after the first fifth, which pays for
/// what is made at the first use.
pub(super) async fn idle(server: &Server, crowd: &Crowd, count: u32) -> anyhow::Result<f64> {
    let agent = crowd.agent(0);
    enroll(&agent).await?;
    details(&agent).await?;
    let key = agent.node_key();
    agent.close().await;
    let first = (count / 5).max(1);
    let mut held = open(crowd, &key, first).await?;
    tokio::time::sleep(SETTLE).await;
    let before = server.memory().worker;
    let rest = count - first;
    held.extend(open(crowd, &key, rest).await?);
    tokio::time::sleep(SETTLE).await;
    let grown = server.memory().worker - before;
    anyhow::ensure!(
        held.len() == usize::try_from(count)?,
        "only {} of {count} connections are held",
        held.len()
    );
    Ok(grown.max(0.0) / f64::from(rest.max(1)))
}

/// Opens connections, uses each for one read, and gives their sockets, which stay open.
pub(in super::super) async fn open(
    crowd: &Crowd,
    key: &str,
    count: u32,
) -> anyhow::Result<Vec<std::net::TcpStream>> {
    let left = Arc::new(AtomicU64::new(u64::from(count)));
    let mut tasks = JoinSet::new();
    for _ in 0..OPENING {
        let (left, dialer, target) = (left.clone(), crowd.dialer.clone(), crowd.target.clone());
        let request = Request {
            target: crowd.settings.paths.of(Route::Read).to_owned(),
            user_agent: Release::NEWEST.user_agent,
            node_key: Some(key.to_owned()),
            is_gzip: false,
            accept_gzip: false,
            keep_alive: true,
            body: bodies::key_only(key),
        };
        tasks.spawn(async move {
            let mut held = Vec::new();
            let take = |left: u64| left.checked_sub(1);
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_ok()
            {
                let opened = timeout(DEADLINE, async {
                    let source = dialer.sources.next();
                    let mut connection = Connection::open(&target, source, &dialer.tls).await?;
                    let answer = connection.exchange(&request, &target.host).await?;
                    Ok::<_, crate::verdict::Failure>((connection, answer))
                });
                match opened.await {
                    Ok(Ok((connection, answer))) if !answer.says_close() => {
                        held.extend(connection.into_socket());
                    }
                    Ok(Ok(_)) => bail!("the server does not keep a connection open"),
                    Ok(Err(failure)) => bail!("open a connection: {failure}"),
                    Err(_) => bail!("open a connection: no answer"),
                }
            }
            Ok(held)
        });
    }
    let mut all = Vec::new();
    while let Some(held) = tasks.join_next().await {
        all.extend(held??);
    }
    Ok(all)
}
