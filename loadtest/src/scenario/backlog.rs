//! `backlog`: every host comes back with the log lines of an outage, and sends them in osquery's batches until none is
//! left. Lines are made when they are sent: what a host still has is a number.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use fleet_protocol::agent::LogType;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::acknowledged::{self, Acknowledged};
use super::crowd::{self, Preparation};
use super::lane::Shared;
use super::options::Common;
use super::population::Recorder;
use super::stage::{Look, Run, Stage};
use super::steady::is_clean;
use super::tally::{as_f64, ratio};
use crate::agent::Agent;
use crate::lines::ResultLines;
use crate::schedule::LogBackoff;

/// Batches in memory at the same time, in each thread: some 0.6 MB each.
const BATCHES_MAX: usize = 256;

/// Options of `backlog`.
#[derive(Clone, Debug, Args)]
pub(super) struct Backlog {
    /// Common options.
    #[command(flatten)]
    pub(super) common: Common,
    /// Simulated hosts.
    #[arg(long)]
    pub(super) hosts: u32,
    /// Result lines that each host has kept; osquery keeps 1,000,000.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) lines: u32,
    /// Seconds between a host's batches (`logger_tls_period`); 0: the next as soon as the last is answered.
    #[arg(long, default_value_t = 10)]
    pub(super) period: u64,
    /// Longest time of the run; hosts that are not through then have lines left.
    #[arg(long, default_value_t = 600)]
    pub(super) seconds: u64,
    /// Compress logs (`logger_tls_compress`).
    #[arg(long)]
    pub(super) gzip_logs: bool,
    /// Write each line that the server acknowledged, as `HOST_IDENTIFIER COUNTER`, to FILE.
    #[arg(long, value_name = "FILE")]
    pub(super) acknowledged: Option<PathBuf>,
    /// Of its hosts.
    #[command(flatten)]
    pub(super) preparation: Preparation,
}

struct Plan {
    options: Backlog,
    stage: Stage,
    recorder: Arc<Recorder>,
    first_line: u64,
    /// Turns that waited for room for their batch: the generator's limit, not the server's.
    waited: AtomicU64,
}

/// What one host still has to send, and when. Pure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rest {
    taken: u32,
    lines: u32,
    backoff: LogBackoff,
}

impl Rest {
    fn new(lines: u32) -> Self {
        Self {
            taken: 0,
            lines,
            backoff: LogBackoff::default(),
        }
    }

    /// Lines of the next batch; 0 when all are delivered.
    fn batch(self, lines_max: u32) -> u32 {
        (self.lines - self.taken).min(lines_max)
    }

    /// Goes on after a batch; gives the wait until the next. Lines leave only after a success.
    fn after(&mut self, batch: u32, is_success: bool, period: Duration, max: Duration) -> Duration {
        if is_success {
            self.taken += batch;
        }
        self.backoff.after(is_success, period, max)
    }
}

/// Runs the scenario; whether every line was delivered and no request failed or was late.
pub(super) fn run(options: &Backlog) -> anyhow::Result<bool> {
    let mut settings = options.common.settings()?;
    settings.gzip_logs = options.gzip_logs;
    settings.intervals.log = Duration::from_secs(options.period);
    let stage = Stage::new(&options.common, settings, options.hosts)?;
    let shared = Arc::new(Shared::default());
    let plan = Arc::new(Plan {
        options: options.clone(),
        stage,
        recorder: Recorder::new(&shared, true),
        first_line: acknowledged::first_number(),
        waited: AtomicU64::new(0),
    });
    let mut run = Run::start(&plan.stage, shared, &plan, live)?;
    let hosts = u64::from(options.hosts);
    run.prepare(hosts, &options.preparation);
    let begun = run.look();
    run.shared.marks.begin_next(begun.at());
    run.watch(
        Instant::now() + Duration::from_secs(options.seconds),
        |shared, _| shared.done.load(Ordering::Relaxed) >= hosts,
        |shared| {
            let done = shared.done.load(Ordering::Relaxed);
            format!("backlog: {done} of {hosts} hosts through")
        },
    );
    run.note_effort();
    let ended = run.look();
    publish(&plan, run, &begun, &ended)
}

fn publish(
    plan: &Plan,
    run: Run<Vec<Acknowledged>>,
    begun: &Look,
    ended: &Look,
) -> anyhow::Result<bool> {
    let options = &plan.options;
    let seconds = (ended.at() - begun.at()).as_secs_f64();
    let lines_in_time = run.shared.lines.load(Ordering::Relaxed);
    let servers = run.servers("server, backlog", begun, ended);
    let (lanes, mut report) = run.end("backlog")?;
    let taken: Vec<Acknowledged> = lanes.into_iter().flatten().collect();
    if let Some(path) = &options.acknowledged {
        acknowledged::write(path, plan.first_line, &taken)?;
    }
    report.servers = servers;
    let [before, backlog, ..] = plan.recorder.take();
    report.phases = vec![
        before.phase("preparation", 0.0),
        backlog.phase("backlog", seconds),
    ];
    let wanted = u64::from(options.hosts) * u64::from(options.lines);
    let acknowledged: u64 = taken.iter().map(|host| host.lines).sum();
    let findings = &mut report.findings;
    findings.count("lines_wanted", wanted);
    findings.count("lines_acknowledged", acknowledged);
    findings.count("lines_left", wanted - acknowledged);
    findings.figure("lines_per_s", ratio(lines_in_time, seconds));
    let cpu_us = ended.cpu_us().saturating_sub(begun.cpu_us());
    findings.figure(
        "server_cpu_us_per_1000_lines",
        ratio(cpu_us, as_f64(lines_in_time) / 1000.0),
    );
    findings.count(
        "batches_that_waited_for_room",
        plan.waited.load(Ordering::Relaxed),
    );
    report.publish_all(&options.common)?;
    let is_clean = report.phases.iter().skip(1).all(is_clean);
    Ok(is_clean && acknowledged == wanted)
}

/// One lane: prepares its hosts, then lets each send what it has.
async fn live(plan: Arc<Plan>, lane: usize) -> anyhow::Result<Vec<Acknowledged>> {
    let (options, stage) = (&plan.options, &plan.stage);
    let shared = plan.recorder.shared.clone();
    let dialer = Arc::new(stage.dialer(&shared)?);
    let agents = stage.agents(lane, options.hosts, &dialer, &plan.recorder)?;
    crowd::prepare_all(&agents, &options.preparation, &shared).await?;
    let Some(begin) = crowd::begin_of(&shared, 1).await else {
        return Ok(Vec::new());
    };
    let room = Arc::new(Semaphore::new(BATCHES_MAX));
    let hosts: Vec<_> = agents
        .into_iter()
        .map(|agent| tokio::spawn(deliver(plan.clone(), agent, room.clone(), begin)))
        .collect();
    let mut taken = Vec::new();
    for host in hosts {
        taken.push(host.await?);
    }
    Ok(taken)
}

/// One host: batch after batch until none is left or the run ends.
async fn deliver(
    plan: Arc<Plan>,
    agent: Arc<Agent>,
    room: Arc<Semaphore>,
    begin: Instant,
) -> Acknowledged {
    let shared = &plan.recorder.shared;
    let settings = &plan.stage.settings;
    let end = begin + Duration::from_secs(plan.options.seconds);
    let lines_max = u32::try_from(settings.log_lines_max).unwrap_or(u32::MAX);
    let mut rest = Rest::new(plan.options.lines);
    while !shared.is_stopped() {
        let batch = rest.batch(lines_max);
        if batch == 0 {
            Shared::count(&shared.done);
            break;
        }
        let is_success = send(&plan, &agent, &room, rest.taken, batch).await;
        if is_success {
            shared.lines.fetch_add(batch.into(), Ordering::Relaxed);
        }
        let wait = rest.after(
            batch,
            is_success,
            settings.intervals.log,
            settings.log_backoff_max,
        );
        // Old agents have no backoff.
        let wait = if agent.host().release().has_log_backoff {
            wait
        } else {
            settings.intervals.log
        };
        let next_at = Instant::now() + wait;
        if next_at >= end && rest.batch(lines_max) > 0 {
            break;
        }
        if rest.batch(lines_max) > 0 {
            tokio::time::sleep_until(next_at).await;
        }
    }
    agent.close().await;
    Acknowledged {
        identifier: agent.host().uuid(),
        lines: rest.taken.into(),
    }
}

/// One batch, which lives no longer than its request; whether the server took it.
async fn send(plan: &Plan, agent: &Agent, room: &Semaphore, first: u32, batch: u32) -> bool {
    let shared = &plan.recorder.shared;
    let permit = match room.try_acquire() {
        Ok(permit) => Ok(permit),
        Err(_) => {
            Shared::count(&plan.waited);
            room.acquire().await
        }
    };
    let Ok(_permit) = permit else {
        return false;
    };
    let lines = ResultLines::new(agent.host(), crate::unix_now());
    let mut bytes = Vec::new();
    let mut ends = Vec::new();
    let first = plan.first_line + u64::from(first);
    for number in first..first + u64::from(batch) {
        lines.push(number, &mut bytes);
        ends.push(bytes.len());
    }
    let mut begin = 0;
    let slices: Vec<&[u8]> = ends
        .into_iter()
        .map(|end| {
            bytes
                .get(std::mem::replace(&mut begin, end)..end)
                .unwrap_or_default()
        })
        .collect();
    shared.in_flight.fetch_add(1, Ordering::Relaxed);
    let exchange = agent.log_slices(LogType::Result, &slices).await;
    shared.in_flight.fetch_sub(1, Ordering::Relaxed);
    exchange.is_success()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_leave_after_a_success_only() {
        let (period, max) = (Duration::from_secs(10), Duration::from_secs(3600));
        let mut rest = Rest::new(1500);
        assert_eq!(rest.batch(1024), 1024);
        assert_eq!(rest.after(1024, false, period, max), period);
        assert_eq!(rest.after(1024, false, period, max), period * 4);
        assert_eq!(rest.taken, 0);
        assert_eq!(rest.after(1024, true, period, max), period);
        assert_eq!(rest.batch(1024), 476);
        rest.after(476, true, period, max);
        assert_eq!(rest.batch(1024), 0);
    }
}
