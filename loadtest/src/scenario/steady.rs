//! `steady`: hosts enroll, then poll at their intervals. Enrolment and first details are counted apart.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::time::Instant;

use super::lane::{PHASES, Shared};
use super::options::Common;
use super::population::{Habits, Member, Pace, Population, Recorder, Thread};
use super::stage::{Look, Run, Stage};
use super::tally::{Phase, Tally};
use crate::host::Host;
use crate::schedule::Profile;

/// Hosts that start in a second unless told otherwise.
const HOSTS_PER_SECOND: u64 = 400;
/// Sockets for each hundred hosts: with reads held, nearly every host has one, and some a second.
const SOCKETS_PERCENT: u32 = 110;

/// When hosts start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Start {
    /// Evenly over the ramp.
    Spread,
    /// All in the same moment; they stay in step.
    AtOnce,
}

/// Options of `steady`.
#[derive(Clone, Debug, Args)]
pub(super) struct Steady {
    /// Common options.
    #[command(flatten)]
    pub(super) common: Common,
    /// Simulated hosts.
    #[arg(long)]
    pub(super) hosts: u32,
    /// Length of the measured phase, after enrolment.
    #[arg(long)]
    pub(super) seconds: u64,
    /// Intervals of the agents.
    #[arg(long, value_enum, default_value = "fleet")]
    pub(super) profile: Profile,
    /// When hosts start.
    #[arg(long, value_enum, default_value = "spread")]
    pub(super) start: Start,
    /// Seconds over which hosts start; default: 400 hosts a second.
    #[arg(long)]
    pub(super) ramp: Option<u64>,
    /// Longest wait, after the ramp, for the last host to have enrolled and sent its first details.
    #[arg(long, default_value_t = 120)]
    pub(super) ramp_wait: u64,
    /// Seconds between the end of enrolment and the measured phase.
    #[arg(long, default_value_t = 5)]
    pub(super) settle: u64,
    /// When turns begin. With `agent`, reads of a second and more count as held by the server, not as slow.
    #[arg(long, value_enum, default_value = "grid")]
    pub(super) pace: Pace,
    /// Log lines that each host produces a minute; one in ten is a status line.
    #[arg(long, default_value_t = 0.2)]
    pub(super) log_lines_per_host_minute: f64,
    /// Log turns in a thousand that carry an oddity: invalid UTF-8, no lines, a 1 MiB line, 0.5 MB, old status lines.
    #[arg(long, default_value_t = 5)]
    pub(super) odd_per_mille: u32,
    /// Compress logs (`logger_tls_compress`).
    #[arg(long)]
    pub(super) gzip_logs: bool,
    /// Keep connections (`Connection: keep-alive`), which no osquery since 4.1 does.
    #[arg(long)]
    pub(super) reuse: bool,
}

/// Everything a lane needs to build its hosts.
struct Plan {
    options: Steady,
    stage: Stage,
    recorder: Arc<Recorder>,
    ramp: Duration,
    begin: Instant,
}

/// Runs the scenario; whether the measured phase had no failure and no late answer.
pub(super) fn run(options: &Steady) -> anyhow::Result<bool> {
    let mut settings = options.common.settings()?;
    settings.gzip_logs = options.gzip_logs;
    settings.keep_alive = options.reuse;
    settings.intervals = options.profile.intervals();
    let sockets = options.hosts / 100 * SOCKETS_PERCENT + 100;
    let stage = Stage::new(&options.common, settings, sockets)?;
    let shared = Arc::new(Shared::default());
    let plan = Arc::new(Plan {
        options: options.clone(),
        stage,
        recorder: Recorder::new(&shared, options.pace == Pace::Agent),
        ramp: ramp(options),
        begin: Instant::now() + Duration::from_millis(200),
    });
    let mut run = Run::start(&plan.stage, shared, &plan, live)?;
    let started = run.look();
    let enrolled_s = ramp_up(&plan, &mut run);
    let begun = run.look();
    run.shared.marks.begin_next(begun.at());
    run.pass(Duration::from_secs(options.seconds), "steady");
    run.shared.marks.begin_next(Instant::now());
    run.note_effort();
    let ended = run.look();
    publish(&plan, run, [&started, &begun, &ended], enrolled_s)
}

fn publish(
    plan: &Plan,
    mut run: Run<()>,
    [started, begun, ended]: [&Look; 3],
    enrolled_s: f64,
) -> anyhow::Result<bool> {
    let options = &plan.options;
    let mut servers = run.servers("server, enrolment and first details", started, begun);
    servers.extend(run.servers("server, steady", begun, ended));
    run.notes.push(format!(
        "{} hosts of seed {}, {} threads; {} log lines delivered in all",
        options.hosts,
        options.common.seed,
        plan.stage.lanes,
        run.shared.lines.load(Ordering::Relaxed)
    ));
    let (_, mut report) = run.end("steady")?;
    let steady_s = (ended.at() - begun.at()).as_secs_f64();
    report.phases = phases(&plan.recorder.take(), enrolled_s, steady_s);
    report.servers = servers;
    report.publish_all(&options.common)?;
    Ok(report
        .phases
        .iter()
        .filter(|phase| phase.name == "steady")
        .all(is_clean))
}

fn ramp(options: &Steady) -> Duration {
    Duration::from_secs(match (options.start, options.ramp) {
        (Start::AtOnce, _) => 0,
        (Start::Spread, Some(seconds)) => seconds,
        (Start::Spread, None) => u64::from(options.hosts).div_ceil(HOSTS_PER_SECOND),
    })
}

/// No exchange failed and none was late.
pub(super) fn is_clean(phase: &Phase) -> bool {
    phase
        .routes
        .iter()
        .all(|row| row.failed == 0 && row.late_over_16s == 0)
}

/// One lane: builds its hosts in its own runtime and lets them live.
async fn live(plan: Arc<Plan>, lane: usize) -> anyhow::Result<()> {
    let (options, stage) = (&plan.options, &plan.stage);
    let shared = &plan.recorder.shared;
    let mut dialer = stage.dialer(shared)?;
    dialer.reuse = options.reuse;
    let dialer = Arc::new(dialer);
    fastrand::seed(options.common.seed ^ u64::try_from(lane).unwrap_or(0));
    let mut members = Vec::new();
    let mut starts = Vec::new();
    for index in stage.share(lane, options.hosts) {
        let host = Host::new(options.common.seed, index);
        let agent = stage.agent(host, &dialer, plan.recorder.clone())?;
        members.push(Member::of(Arc::new(agent)));
        let part = f64::from(index) / f64::from(options.hosts.max(1));
        starts.push(plan.begin + plan.ramp.mul_f64(part));
    }
    let habits = Habits {
        intervals: stage.settings.intervals,
        pace: options.pace,
        line_spacing: spacing(options.log_lines_per_host_minute),
        odd_per_mille: options.odd_per_mille,
    };
    let mut population = Population::new(members, habits, shared.clone());
    for (member, at) in starts.into_iter().enumerate() {
        population.begin_at(member, &[Thread::Start], at);
    }
    population.live().await;
    Ok(())
}

/// Time between two lines of a host.
fn spacing(lines_per_minute: f64) -> Option<Duration> {
    (lines_per_minute > 0.0)
        .then(|| Duration::try_from_secs_f64(60.0 / lines_per_minute).ok())
        .flatten()
}

/// Waits until all hosts are enrolled and described, and a while longer; gives how long it took.
fn ramp_up(plan: &Plan, run: &mut Run<()>) -> f64 {
    let options = &plan.options;
    let hosts = u64::from(options.hosts);
    let deadline = plan.begin + plan.ramp + Duration::from_secs(options.ramp_wait);
    run.watch(
        deadline,
        |shared, _| shared.ready.load(Ordering::Relaxed) >= hosts,
        |shared| {
            let ready = shared.ready.load(Ordering::Relaxed);
            format!("enrolling: {ready} of {hosts} hosts")
        },
    );
    let ready = run.shared.ready.load(Ordering::Relaxed);
    let took = Instant::now()
        .saturating_duration_since(plan.begin)
        .as_secs_f64();
    let text = format!("{ready} of {hosts} hosts enrolled and described in {took:.1} s");
    run.progress.note(&text);
    run.notes.push(text);
    run.pass(Duration::from_secs(options.settle), "settling");
    took
}

fn phases(tallies: &[Tally; PHASES], enrolled_s: f64, steady_s: f64) -> Vec<Phase> {
    let [before, steady, ..] = tallies;
    vec![
        before.phase("enrolment and first details", enrolled_s),
        steady.phase("steady", steady_s),
    ]
}
