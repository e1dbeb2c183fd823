//! `overload`: finds what a server takes, offers a multiple of it, and tells what becomes of those that are taken, of those
//! that are not, and of the time after. Latencies count from the connect, as agents feel them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::crowd::{self, Preparation};
use super::lane::{Shared, TICK};
use super::options::Common;
use super::population::Recorder;
use super::report::Findings;
use super::stage::{Look, Run, Stage};
use super::tally::{Percentiles, as_f64, as_u64, histogram, micros, ratio};
use super::witness::Treatment;
use crate::agent::{Agent, Exchange};

/// Time between two looks at who is due.
const STEP: Duration = Duration::from_millis(5);
/// Seconds of the time after are looked at one by one.
const SECOND_US: u64 = 1_000_000;

/// Options of `overload`.
#[derive(Clone, Debug, Args)]
pub(super) struct Overload {
    /// Common options.
    #[command(flatten)]
    pub(super) common: Common,
    /// Hosts. An agent waits up to 16 s, so the offer needs 16 hosts for each one that is not taken in a second; what could
    /// not be offered is told.
    #[arg(long)]
    pub(super) hosts: u32,
    /// Seconds of each of the four phases.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(2..=600))]
    pub(super) seconds: u64,
    /// Exchanges at a time while the capacity is looked for: enough to keep the server busy, and few enough that it
    /// refuses none.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) connections: u32,
    /// The offer under overload, as a multiple of the capacity.
    #[arg(long, default_value_t = 3.0)]
    pub(super) factor: f64,
    /// The offer before and after, as a part of the capacity.
    #[arg(long, default_value_t = 0.5)]
    pub(super) normal: f64,
    /// Of its hosts.
    #[command(flatten)]
    pub(super) preparation: Preparation,
}

/// The phases after the preparation, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Capacity,
    Normal,
    Overload,
    After,
}

impl Part {
    const ALL: [Self; 4] = [Self::Capacity, Self::Normal, Self::Overload, Self::After];

    /// Its number among the marks; 0 is the preparation.
    fn phase(self) -> usize {
        self as usize + 1
    }

    fn name(self) -> &'static str {
        match self {
            Self::Capacity => "capacity",
            Self::Normal => "normal",
            Self::Overload => "overload",
            Self::After => "after",
        }
    }
}

/// What became of the exchanges that began in one phase.
#[derive(Clone)]
struct Score {
    /// Latency of those that were served, microseconds.
    served: Histogram<u64>,
    /// By [`Treatment`].
    treated: [u64; 6],
    /// Due while every host was waiting already.
    not_offered: u64,
    /// When it began, since the phase did, and how long it took, microseconds; of those that were served.
    moments: Vec<(u64, u64)>,
}

impl Default for Score {
    fn default() -> Self {
        Self {
            served: histogram(),
            treated: [0; 6],
            not_offered: 0,
            moments: Vec::new(),
        }
    }
}

impl Score {
    /// Whether it was served.
    fn record(&mut self, exchange: &Exchange, begun: Instant) -> bool {
        let treatment = Treatment::of(exchange);
        if let Some(count) = self.treated.get_mut(treatment as usize) {
            *count += 1;
        }
        if treatment != Treatment::Served {
            return false;
        }
        let latency = micros(exchange.ended_at - exchange.started_at);
        self.served.saturating_record(latency);
        let at = exchange.started_at.saturating_duration_since(begun);
        self.moments.push((micros(at), latency));
        true
    }

    fn merge(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.served.add(&other.served);
        for (mine, theirs) in self.treated.iter_mut().zip(other.treated) {
            *mine += theirs;
        }
        self.not_offered += other.not_offered;
        self.moments.extend(&other.moments);
    }

    fn count(&self, treatment: Treatment) -> u64 {
        self.treated
            .get(treatment as usize)
            .copied()
            .unwrap_or_default()
    }

    fn offered(&self) -> u64 {
        self.treated.iter().sum()
    }

    /// Of those that began this late in the phase or later.
    fn settled(&self, from_us: u64) -> Percentiles {
        let mut settled = histogram();
        for (_, latency) in self.moments.iter().filter(|(at, _)| *at >= from_us) {
            settled.saturating_record(*latency);
        }
        Percentiles::of(&settled)
    }
}

/// The first second after which every one has its 99 % within `bound_us`; `None` when the last has not.
fn recovered_after(moments: &[(u64, u64)], seconds: u64, bound_us: u64) -> Option<u64> {
    let is_good = |second: u64| {
        let of = moments
            .iter()
            .filter(|(at, _)| at / SECOND_US == second)
            .map(|(_, latency)| *latency);
        let mut latencies: Vec<u64> = of.collect();
        latencies.sort_unstable();
        let rank = latencies.len().saturating_sub(1) * 99 / 100;
        latencies.get(rank).is_some_and(|p99| *p99 <= bound_us)
    };
    let bad = (0..seconds).rev().find(|second| !is_good(*second));
    match bad {
        None => Some(0),
        Some(last) if last + 1 == seconds => None,
        Some(last) => Some(last + 1),
    }
}

type Scores = [Score; 4];

struct Plan {
    options: Overload,
    stage: Stage,
    recorder: Arc<Recorder>,
    /// Exchanges that were served in the first phase.
    served: AtomicU64,
}

impl Plan {
    /// Exchanges a second that are offered in a phase, by all lanes.
    fn offer(&self, part: Part) -> f64 {
        let capacity = ratio(
            self.served.load(Ordering::Relaxed),
            as_f64(self.options.seconds),
        );
        match part {
            Part::Capacity => 0.0,
            Part::Normal | Part::After => capacity * self.options.normal,
            Part::Overload => capacity * self.options.factor,
        }
    }
}

/// Runs the scenario; whether no agent was told anything that makes it lose what it has.
pub(super) fn run(options: &Overload) -> anyhow::Result<bool> {
    let settings = options.common.settings()?;
    let sockets = options.hosts.saturating_add(options.connections);
    let stage = Stage::new(&options.common, settings, sockets)?;
    let shared = Arc::new(Shared::default());
    let plan = Arc::new(Plan {
        options: options.clone(),
        stage,
        recorder: Recorder::new(&shared, false),
        served: AtomicU64::new(0),
    });
    let mut run = Run::start(&plan.stage, shared, &plan, live)?;
    run.prepare(options.hosts.into(), &options.preparation);
    let time = Duration::from_secs(options.seconds);
    let mut looks = vec![run.look()];
    for part in Part::ALL {
        let before = run.look();
        run.shared.marks.begin_next(before.at());
        run.pass(time, part.name());
        run.note_effort();
        looks.push(run.look());
    }
    publish(&plan, run, &looks)
}

/// One lane: its share of the hosts, and of each phase's offer.
async fn live(plan: Arc<Plan>, lane: usize) -> anyhow::Result<Scores> {
    let (options, stage) = (&plan.options, &plan.stage);
    let shared = &plan.recorder.shared;
    let dialer = Arc::new(stage.dialer(shared)?);
    let agents = stage.agents(lane, options.hosts, &dialer, &plan.recorder)?;
    crowd::prepare_all(&agents, &options.preparation, shared).await?;
    let mut crew = Crew {
        plan: plan.clone(),
        idle: agents.into(),
        busy: JoinSet::new(),
        scores: Scores::default(),
    };
    for part in Part::ALL {
        let Some(begun) = crowd::begin_of(shared, part.phase()).await else {
            break;
        };
        let end = begun + Duration::from_secs(options.seconds);
        if part == Part::Capacity {
            let share = stage.share(lane, options.connections).count();
            crew.keep_busy(share, end).await;
        } else {
            let lanes = as_f64(as_u64(stage.lanes.max(1)));
            crew.offer(part, plan.offer(part) / lanes, begun, end).await;
        }
    }
    while !crew.busy.is_empty() && !shared.is_stopped() {
        crew.welcome().await;
    }
    Ok(crew.scores)
}

/// The agents of a lane.
struct Crew {
    plan: Arc<Plan>,
    idle: VecDeque<Arc<Agent>>,
    busy: JoinSet<(Arc<Agent>, Part, Instant, Exchange)>,
    scores: Scores,
}

impl Crew {
    /// Sends one off, if any is idle.
    fn send(&mut self, part: Part, begun: Instant) -> bool {
        let Some(agent) = self.idle.pop_front() else {
            return false;
        };
        self.busy.spawn(async move {
            // Nobody holds a config back on purpose.
            let exchange = agent.config().await;
            (agent, part, begun, exchange)
        });
        true
    }

    /// Waits a step at most for one that comes back, and takes in all that have.
    async fn welcome(&mut self) {
        let mut next = tokio::time::timeout(STEP, self.busy.join_next())
            .await
            .ok()
            .flatten();
        while let Some(back) = next {
            if let Ok((agent, part, begun, exchange)) = back {
                let score = self.scores.get_mut(part as usize);
                let is_served = score.is_some_and(|score| score.record(&exchange, begun));
                if is_served && part == Part::Capacity {
                    self.plan.served.fetch_add(1, Ordering::Relaxed);
                }
                self.idle.push_back(agent);
            }
            next = self.busy.try_join_next();
        }
    }

    /// So many at a time, whatever each takes.
    async fn keep_busy(&mut self, count: usize, end: Instant) {
        let begun = Instant::now();
        while Instant::now() < end {
            while self.busy.len() < count && self.send(Part::Capacity, begun) {}
            self.welcome().await;
            if self.busy.is_empty() {
                tokio::time::sleep(TICK).await;
            }
        }
    }

    /// So many a second, whatever becomes of them.
    async fn offer(&mut self, part: Part, per_second: f64, begun: Instant, end: Instant) {
        let mut offered = 0_u64;
        loop {
            let now = Instant::now();
            if now >= end {
                return;
            }
            let due = now.saturating_duration_since(begun).as_secs_f64() * per_second;
            while as_f64(offered) < due {
                offered += 1;
                if !self.send(part, begun)
                    && let Some(score) = self.scores.get_mut(part as usize)
                {
                    score.not_offered += 1;
                }
            }
            let wake = tokio::time::sleep(STEP);
            self.welcome().await;
            wake.await;
        }
    }
}

fn publish(plan: &Plan, run: Run<Scores>, looks: &[Look]) -> anyhow::Result<bool> {
    let options = &plan.options;
    let mut servers = Vec::new();
    for (part, pair) in Part::ALL.into_iter().zip(looks.windows(2)) {
        if let [begin, end] = pair {
            servers.extend(run.servers(part.name(), begin, end));
        }
    }
    let (lanes, mut report) = run.end("overload")?;
    let mut scores = Scores::default();
    for lane in &lanes {
        for (sum, score) in scores.iter_mut().zip(lane) {
            sum.merge(score);
        }
    }
    report.servers = servers;
    let findings = &mut report.findings;
    tell(findings, options, &scores);
    if let [_, capacity, normal, overload, after] = looks
        && capacity.rss_bytes() > 0
    {
        let cpu = |begin: &Look, end: &Look| end.cpu_us().saturating_sub(begin.cpu_us());
        let [served, _, taken, _] = &scores;
        let each = ratio(
            cpu(looks.first().unwrap_or(capacity), capacity),
            as_f64(served.count(Treatment::Served)).max(1.0),
        );
        findings.figure("cpu_us_per_exchange_at_capacity", each);
        let spent = as_f64(cpu(normal, overload));
        let told = as_f64(taken.count(Treatment::Told));
        let on_served = each * as_f64(taken.count(Treatment::Served));
        // An agent that is cut off tries again at once: two refusals each.
        findings.figure(
            "cpu_us_per_refusal",
            (spent - on_served).max(0.0) / (2.0 * told).max(1.0),
        );
        findings.count("rss_mib_normal", normal.rss_bytes() >> 20);
        findings.count("rss_mib_overload", overload.rss_bytes() >> 20);
        findings.count("rss_mib_after", after.rss_bytes() >> 20);
    }
    report.publish_all(&options.common)?;
    let violations: u64 = scores
        .iter()
        .map(|score| score.count(Treatment::Violation))
        .sum();
    Ok(violations == 0)
}

fn tell(findings: &mut Findings, options: &Overload, scores: &Scores) {
    let seconds = as_f64(options.seconds);
    let [capacity, normal, overload, after] = scores;
    for (part, score) in Part::ALL.into_iter().zip(scores) {
        let name = part.name();
        let served = score.count(Treatment::Served);
        findings.figure(
            format!("{name}_offered_per_s"),
            ratio(score.offered(), seconds),
        );
        findings.figure(format!("{name}_served_per_s"), ratio(served, seconds));
        findings.percentiles(
            &format!("{name}_served"),
            "ms",
            &Percentiles::of(&score.served),
        );
    }
    let most = capacity.count(Treatment::Served);
    let goodput = ratio(overload.count(Treatment::Served), as_f64(most).max(1.0));
    findings.figure("overload_goodput_percent", 100.0 * goodput);
    // A server may let a herd wait at first; what lasts is seen in the second half.
    let settled = overload.settled(options.seconds * SECOND_US / 2);
    findings.percentiles("overload_settled_served", "ms", &settled);
    let normal_p99 = Percentiles::of(&normal.served).p99.max(0.001);
    findings.figure("overload_settled_p99_by_normal", settled.p99 / normal_p99);
    findings.count(
        "overload_told_to_come_back",
        overload.count(Treatment::Told),
    );
    findings.count("overload_none_in_16s", overload.count(Treatment::Silent));
    findings.count("overload_unreached", overload.count(Treatment::Unreached));
    findings.count("overload_violations", overload.count(Treatment::Violation));
    findings.count(
        "failures_of_the_generator",
        scores.iter().map(|score| score.count(Treatment::Own)).sum(),
    );
    findings.count("overload_not_offered", overload.not_offered);
    let bound_us = normal.served.value_at_quantile(0.99).saturating_mul(2);
    match recovered_after(&after.moments, options.seconds, bound_us) {
        Some(second) => findings.count("normal_again_after_s", second),
        None => findings.count("not_normal_again_within_s", options.seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_overload_is_found() {
        let second = |number: u64, latency: u64| (number * SECOND_US + 5, latency);
        let moments = [second(0, 900), second(1, 50), second(2, 300), second(3, 90)];
        assert_eq!(recovered_after(&moments, 4, 100), Some(3));
        assert_eq!(recovered_after(&moments, 4, 1000), Some(0));
        assert_eq!(recovered_after(&moments, 4, 60), None);
        // A second in which nobody was served is not normal.
        assert_eq!(recovered_after(&moments, 5, 1000), None);
    }
}
