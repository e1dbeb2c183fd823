//! `steady`: hosts enroll, then poll at their intervals. Enrolment and first details are counted apart.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::lane::{self, Lane, Shared};
use super::machine::Machine;
use super::options::{Start, Steady};
use super::population::{Habits, Member, PHASES, Population, Recorder, Tallies};
use super::procfs::{Sample, Watch};
use super::progress::{LOOK, Progress};
use super::report::{Report, Servers};
use super::tally::{Phase, Tally, ratio};
use crate::agent::{Agent, Settings};
use crate::host::Host;
use crate::target::{Sources, Target};

/// Hosts that start in a second unless told otherwise.
const HOSTS_PER_SECOND: u64 = 400;

/// Everything a lane needs to build its hosts.
struct Plan {
    options: Steady,
    lanes: usize,
    targets: Vec<Arc<Target>>,
    sources: Sources,
    settings: Arc<Settings>,
    ramp: Duration,
    begin: Instant,
}

/// Runs the scenario; whether the measured phase had no failure and no late answer.
pub(super) fn run(options: &Steady) -> anyhow::Result<bool> {
    let common = &options.common;
    let targets = common.targets()?;
    let mut settings = common.settings()?;
    settings.gzip_logs = options.gzip_logs;
    settings.keep_alive = options.reuse;
    settings.intervals = options.profile.intervals();
    // Fails here rather than in every lane.
    let sources = common.sources(&targets)?;
    common.dialer(&sources, None)?;
    let ramp = match (options.start, options.ramp) {
        (Start::AtOnce, _) => 0,
        (Start::Spread, Some(seconds)) => seconds,
        (Start::Spread, None) => u64::from(options.hosts).div_ceil(HOSTS_PER_SECOND),
    };
    let plan = Arc::new(Plan {
        options: options.clone(),
        lanes: common.threads_for(options.hosts),
        targets,
        sources,
        settings: Arc::new(settings),
        ramp: Duration::from_secs(ramp),
        begin: Instant::now() + Duration::from_millis(200),
    });
    let watch = Watch {
        trees: common.server_tree.clone(),
        pids: common.server_pids.clone(),
    };
    let shared = Arc::new(Shared::default());
    let before = watch.sample();
    let lanes = {
        let (plan, shared) = (plan.clone(), shared.clone());
        lane::start(plan.lanes, move |index| {
            live(plan.clone(), shared.clone(), index)
        })?
    };
    let mut progress = Progress::start();
    let mut notes = Vec::new();
    let enrolled_s = ramp_up(&plan, &shared, &lanes, &mut progress, &mut notes);
    let measured = measure(&plan, &shared, &lanes, &watch, &mut progress);
    shared.stop();
    progress.finish();
    let tallies = merge(lane::join(lanes)?);
    let seconds = options.seconds;
    notes.push(format!(
        "{} hosts of seed {}, {} threads; {} log lines delivered in all",
        options.hosts,
        common.seed,
        plan.lanes,
        shared.lines.load(Ordering::Relaxed)
    ));
    let report = Report {
        machine: Machine::read(),
        scenario: "steady",
        notes,
        phases: phases(&tallies, enrolled_s, seconds_f64(seconds)),
        servers: measured.servers(&watch, &before, enrolled_s),
        rounds: Vec::new(),
        idle: None,
    };
    report.publish(common.json.as_deref())?;
    Ok(report
        .phases
        .iter()
        .filter(|phase| phase.name == "steady")
        .all(is_clean))
}

fn is_clean(phase: &Phase) -> bool {
    phase
        .routes
        .iter()
        .all(|row| row.failed == 0 && row.late_over_16s == 0)
}

/// One lane: builds its hosts in its own runtime and lets them live.
async fn live(
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    lane: usize,
) -> anyhow::Result<[Tally; PHASES]> {
    let options = &plan.options;
    let mut dialer = options.common.dialer(&plan.sources, None)?;
    dialer.reuse = options.reuse;
    let dialer = Arc::new(dialer);
    let tallies: Tallies = Arc::default();
    let recorder = Arc::new(Recorder {
        shared: shared.clone(),
        tallies: tallies.clone(),
    });
    fastrand::seed(options.common.seed ^ u64::try_from(lane).unwrap_or(0));
    let mut members = Vec::new();
    for index in 0..options.hosts {
        let place = usize::try_from(index).unwrap_or(0);
        if place % plan.lanes != lane {
            continue;
        }
        let Some(target) = plan.targets.get(place % plan.targets.len()) else {
            continue;
        };
        let agent = Agent::new(
            Host::new(options.common.seed, index),
            plan.settings.clone(),
            dialer.clone(),
            target.clone(),
        )
        .with_observer(recorder.clone());
        let share = f64::from(index) / f64::from(options.hosts);
        let starts_at = plan.begin + plan.ramp.mul_f64(share);
        members.push((Member::new(agent), starts_at));
    }
    let habits = Habits {
        intervals: plan.settings.intervals,
        pace: options.pace,
        line_spacing: (options.log_lines_per_host_minute > 0.0)
            .then(|| Duration::from_secs_f64(60.0 / options.log_lines_per_host_minute)),
        odd_per_mille: options.odd_per_mille,
    };
    Population::new(members, habits, shared).live().await;
    let mut tallies = tallies.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut *tallies))
}

/// Waits for every host's enrolment and first details; gives the seconds that it took.
fn ramp_up(
    plan: &Plan,
    shared: &Shared,
    lanes: &[Lane<[Tally; PHASES]>],
    progress: &mut Progress,
    notes: &mut Vec<String>,
) -> f64 {
    let hosts = u64::from(plan.options.hosts);
    let deadline = plan.begin + plan.ramp + Duration::from_secs(plan.options.ramp_wait);
    let mut ready = 0;
    while ready < hosts && Instant::now() < deadline && !lane::has_ended(lanes) {
        std::thread::sleep(LOOK);
        ready = shared.ready.load(Ordering::Relaxed);
        progress.show(|| format!("enrolling: {ready} of {hosts} hosts; {}", counters(shared)));
    }
    let took = (Instant::now().saturating_duration_since(plan.begin)).as_secs_f64();
    let text = format!("{ready} of {hosts} hosts enrolled and described in {took:.1} s");
    progress.note(&text);
    notes.push(text);
    let settled_at = Instant::now() + Duration::from_secs(plan.options.settle);
    while Instant::now() < settled_at && !lane::has_ended(lanes) {
        std::thread::sleep(LOOK);
        progress.show(|| format!("settling; {}", counters(shared)));
    }
    took
}

/// Samples and counts at both ends of the measured phase.
struct Measured {
    begin: Vec<Sample>,
    end: Vec<Sample>,
    exchanges_before: u64,
    exchanges: u64,
    seconds: f64,
}

fn measure(
    plan: &Plan,
    shared: &Shared,
    lanes: &[Lane<[Tally; PHASES]>],
    watch: &Watch,
    progress: &mut Progress,
) -> Measured {
    let begin = watch.sample();
    let exchanges_before = shared.exchanges.load(Ordering::Relaxed);
    let from = Instant::now();
    let until = from + Duration::from_secs(plan.options.seconds);
    // Set once, here.
    let _ = shared.measured.set((from, until));
    let mut last = (from, exchanges_before);
    while Instant::now() < until && !lane::has_ended(lanes) {
        std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
        let now = (Instant::now(), shared.exchanges.load(Ordering::Relaxed));
        if now.0 - last.0 < Duration::from_secs(1) {
            continue;
        }
        let rate = ratio(now.1 - last.1, (now.0 - last.0).as_secs_f64());
        last = now;
        let left = until.saturating_duration_since(now.0).as_secs();
        progress.show(|| format!("steady: {rate:.0}/s, {left} s left; {}", counters(shared)));
    }
    Measured {
        begin,
        end: watch.sample(),
        exchanges_before,
        exchanges: shared.exchanges.load(Ordering::Relaxed) - exchanges_before,
        seconds: from.elapsed().as_secs_f64(),
    }
}

impl Measured {
    fn servers(&self, watch: &Watch, before: &[Sample], enrolled_s: f64) -> Vec<Servers> {
        if watch.is_empty() {
            return Vec::new();
        }
        vec![
            Servers::between(
                "server, enrolment and first details",
                before,
                &self.begin,
                self.exchanges_before,
                enrolled_s,
            ),
            Servers::between(
                "server, steady",
                &self.begin,
                &self.end,
                self.exchanges,
                self.seconds,
            ),
        ]
    }
}

fn counters(shared: &Shared) -> String {
    format!(
        "{} exchanges, {} failed, {} under way, {} lines",
        shared.exchanges.load(Ordering::Relaxed),
        shared.failures.load(Ordering::Relaxed),
        shared.in_flight.load(Ordering::Relaxed),
        shared.lines.load(Ordering::Relaxed)
    )
}

fn merge(lanes: Vec<[Tally; PHASES]>) -> [Tally; PHASES] {
    let mut sum: [Tally; PHASES] = Default::default();
    for lane in &lanes {
        for (mine, theirs) in sum.iter_mut().zip(lane) {
            mine.merge(theirs);
        }
    }
    sum
}

fn phases(tallies: &[Tally; PHASES], enrolled_s: f64, steady_s: f64) -> Vec<Phase> {
    let [before, steady, _] = tallies;
    vec![
        before.phase("enrolment and first details", enrolled_s),
        steady.phase("steady", steady_s),
    ]
}

fn seconds_f64(seconds: u64) -> f64 {
    super::tally::as_f64(seconds)
}
