//! Hosts that are known to the server before a scenario's own part begins.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use clap::Args;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::lane::{Shared, TICK};
use crate::agent::Agent;

/// Rounds of preparation, a second apart, until a host is given up.
const ROUNDS_MAX: u32 = 30;
/// Between two of them.
const ROUND_INTERVAL: Duration = Duration::from_secs(1);
/// Reads that an agent may need until nothing is due.
const FIRST_READS_MAX: u32 = 20;
/// A read that waited this long for nothing was held, whatever the load.
const HOLD_SEEN: Duration = Duration::from_secs(5);

/// Options of scenarios that prepare their hosts.
#[derive(Clone, Debug, Args)]
pub(super) struct Preparation {
    /// Hosts prepared at the same time by each thread.
    #[arg(long, default_value_t = 32)]
    pub(super) preparing: usize,
    /// Longest time for the preparation of all hosts, seconds.
    #[arg(long, default_value_t = 1800)]
    pub(super) prepare_wait: u64,
}

/// Enrolls, fetches the config, and delivers the first details. Not to the point where nothing is due, because a server
/// may hold the read that finds nothing.
pub(super) async fn prepare(agent: &Agent) -> anyhow::Result<()> {
    let mut last = String::new();
    for _ in 0..ROUNDS_MAX {
        match first_rounds(agent).await {
            Ok(()) => return Ok(()),
            Err(failure) => last = failure,
        }
        tokio::time::sleep(ROUND_INTERVAL).await;
    }
    anyhow::bail!("a host could not be prepared: {last}")
}

async fn first_rounds(agent: &Agent) -> Result<(), String> {
    if agent.node_key().is_empty() {
        let enrolled = agent.enroll().await;
        if let Some(failure) = enrolled.failure() {
            return Err(format!("enroll: {failure}"));
        }
    }
    if let Some(failure) = agent.config().await.failure() {
        return Err(format!("config: {failure}"));
    }
    let round = agent.read_round(Instant::now()).await;
    if round.is_success && round.write != Some(false) {
        Ok(())
    } else {
        Err("first read or write".to_owned())
    }
}

/// Takes the work that waits for a new host, until nothing is due. Fails when the server holds the read that finds
/// nothing: for scenarios whose reads are to be answered at once.
pub(super) async fn read_until_nothing_is_due(agent: &Agent) -> anyhow::Result<()> {
    for _ in 0..FIRST_READS_MAX {
        let round = agent.read_round(Instant::now()).await;
        if round.is_success && round.queries == 0 && round.write.is_none() {
            anyhow::ensure!(
                round.waited < HOLD_SEEN,
                "the server holds reads: start it with --osquery_distributed_hold=0s"
            );
            return Ok(());
        }
    }
    anyhow::bail!("reads are still handing out work after {FIRST_READS_MAX} turns")
}

/// Prepares all hosts of a lane, some at the same time; counts each as ready.
pub(super) async fn prepare_all(
    agents: &[Arc<Agent>],
    preparation: &Preparation,
    shared: &Arc<Shared>,
) -> anyhow::Result<()> {
    let waiting: Arc<Mutex<VecDeque<Arc<Agent>>>> =
        Arc::new(Mutex::new(agents.iter().cloned().collect()));
    let mut tasks = JoinSet::new();
    for _ in 0..preparation.preparing.max(1) {
        let (waiting, shared) = (waiting.clone(), shared.clone());
        tasks.spawn(async move {
            while !shared.is_stopped() {
                let next = waiting
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .pop_front();
                let Some(agent) = next else {
                    break;
                };
                prepare(&agent).await?;
                agent.close().await;
                Shared::count(&shared.ready);
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// When a phase of the run begins, once the main thread has set it; `None` when the run ends before.
pub(super) async fn begin_of(shared: &Shared, phase: usize) -> Option<Instant> {
    loop {
        if let Some(begin) = shared.marks.begin_of(phase) {
            return Some(begin);
        }
        if shared.is_stopped() {
            return None;
        }
        tokio::time::sleep(TICK).await;
    }
}
