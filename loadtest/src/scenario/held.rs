//! `held`: hosts whose reads the server holds open; how long, how many are under way at a time (held, or on their way
//! there and back), and what each of those costs in memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use super::crowd::{self, Preparation};
use super::lane::Shared;
use super::options::Common;
use super::population::{Habits, Member, Population, Recorder, Thread};
use super::stage::{Look, Run, Stage};
use super::steady::is_clean;
use super::tally::{READ_HELD, as_f64, as_u64, ratio};

/// Sockets for each hundred hosts: one each, and a few that are about to close.
const SOCKETS_PERCENT: u32 = 105;

/// Options of `held`.
#[derive(Clone, Debug, Args)]
pub(super) struct Held {
    /// Common options.
    #[command(flatten)]
    pub(super) common: Common,
    /// Simulated hosts, each with one read at a time.
    #[arg(long)]
    pub(super) hosts: u32,
    /// Length of the measured phase.
    #[arg(long, default_value_t = 60)]
    pub(super) seconds: u64,
    /// Seconds over which the first reads begin.
    #[arg(long, default_value_t = 10)]
    pub(super) ramp: u64,
    /// Seconds between a read's end and the next (`distributed_interval`); 0 keeps nearly all reads held all the time.
    #[arg(long, default_value_t = 0)]
    pub(super) interval: u64,
    /// Of its hosts.
    #[command(flatten)]
    pub(super) preparation: Preparation,
}

struct Plan {
    options: Held,
    stage: Stage,
    recorder: Arc<Recorder>,
}

/// Runs the scenario; whether reads were held and none failed.
pub(super) fn run(options: &Held) -> anyhow::Result<bool> {
    let mut settings = options.common.settings()?;
    settings.intervals.read = Duration::from_secs(options.interval);
    let sockets = options.hosts / 100 * SOCKETS_PERCENT + 100;
    let stage = Stage::new(&options.common, settings, sockets)?;
    let shared = Arc::new(Shared::default());
    let plan = Arc::new(Plan {
        options: options.clone(),
        stage,
        recorder: Recorder::new(&shared, true),
    });
    let mut run = Run::start(&plan.stage, shared, &plan, live)?;
    run.prepare(options.hosts.into(), &options.preparation);
    let before = run.look();
    run.shared.marks.begin_next(before.at());
    run.pass(Duration::from_secs(options.ramp), "ramp");
    let begun = run.look();
    let begun_s = run.timeline.now_s();
    run.shared.marks.begin_next(begun.at());
    run.pass(Duration::from_secs(options.seconds), "holding");
    run.shared.marks.begin_next(Instant::now());
    run.note_effort();
    let under_way_at_end = run.shared.in_flight.load(Ordering::Relaxed);
    let ended = run.look();
    let under_way: Vec<u64> = run
        .timeline
        .moments()
        .iter()
        .filter(|moment| moment.at_s > begun_s)
        .map(|moment| moment.in_flight)
        .collect();
    publish(
        &plan,
        run,
        [&before, &begun, &ended],
        under_way_at_end,
        &under_way,
    )
}

fn publish(
    plan: &Plan,
    run: Run<()>,
    [before, begun, ended]: [&Look; 3],
    under_way_at_end: u64,
    under_way: &[u64],
) -> anyhow::Result<bool> {
    let servers = run.servers("server, holding", begun, ended);
    let (_, mut report) = run.end("held")?;
    report.servers = servers;
    let [preparation, ramp, holding, ..] = plan.recorder.take();
    let ramp_s = (begun.at() - before.at()).as_secs_f64();
    let holding_s = (ended.at() - begun.at()).as_secs_f64();
    report.phases = vec![
        preparation.phase("preparation", 0.0),
        ramp.phase("ramp", ramp_s),
        holding.phase("holding", holding_s),
    ];
    let phase = report.phases.last();
    let row = phase.and_then(|phase| phase.routes.iter().find(|row| row.route == READ_HELD));
    let row = row.cloned();
    let findings = &mut report.findings;
    findings.count("hosts", plan.options.hosts.into());
    let reads_held = row.as_ref().map_or(0, |row| row.exchanges);
    findings.count("reads_held_to_the_end", reads_held);
    findings.count(
        "reads_under_way_max",
        under_way.iter().copied().max().unwrap_or(0),
    );
    let sum: u64 = under_way.iter().sum();
    findings.figure(
        "reads_under_way_mean",
        ratio(sum, as_f64(as_u64(under_way.len()))),
    );
    if let Some(row) = &row {
        findings.percentiles("hold", "ms", &row.service_ms);
    }
    let each = |end: u64, begin: u64| ratio(end.saturating_sub(begin), as_f64(under_way_at_end));
    findings.count("reads_under_way_at_end", under_way_at_end);
    findings.figure(
        "server_bytes_per_read_under_way",
        each(ended.rss_bytes(), before.rss_bytes()),
    );
    findings.figure(
        "server_anonymous_bytes_per_read_under_way",
        each(ended.anonymous_bytes(), before.anonymous_bytes()),
    );
    report.publish_all(&plan.options.common)?;
    Ok(reads_held > 0 && report.phases.iter().skip(1).all(is_clean))
}

/// One lane: prepares its hosts, then lets them read and nothing else.
async fn live(plan: Arc<Plan>, lane: usize) -> anyhow::Result<()> {
    let (options, stage) = (&plan.options, &plan.stage);
    let shared = plan.recorder.shared.clone();
    let dialer = Arc::new(stage.dialer(&shared)?);
    let agents = stage.agents(lane, options.hosts, &dialer, &plan.recorder)?;
    crowd::prepare_all(&agents, &options.preparation, &shared).await?;
    let Some(begin) = crowd::begin_of(&shared, 1).await else {
        return Ok(());
    };
    let members: Vec<_> = agents.into_iter().map(Member::of).collect();
    let habits = Habits::without_logs(stage.settings.intervals);
    let mut population = Population::new(members, habits, shared);
    let ramp = Duration::from_secs(options.ramp);
    population.begin_evenly(&[Thread::Read], begin, ramp);
    population.live().await;
    Ok(())
}
