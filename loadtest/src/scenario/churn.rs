//! `churn`: hosts appear, live for a while and vanish; some are installed again on the same machine, with the identifier
//! that the server knows and an empty database.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use super::crowd;
use super::lane::Shared;
use super::options::Common;
use super::population::Recorder;
use super::stage::{Look, Run, Stage};
use super::steady::is_clean;
use crate::agent::Agent;
use crate::client::Dialer;
use crate::host::Host;

/// Options of `churn`.
#[derive(Clone, Debug, Args)]
pub(super) struct Churn {
    /// Common options.
    #[command(flatten)]
    pub(super) common: Common,
    /// Places; in each stands at most one host at a time.
    #[arg(long)]
    pub(super) hosts: u32,
    /// Length of the run.
    #[arg(long)]
    pub(super) seconds: u64,
    /// Mean life of a host, seconds; lives last from half of it to one and a half.
    #[arg(long, default_value_t = 60.0)]
    pub(super) life: f64,
    /// Seconds that a place is empty between two hosts.
    #[arg(long, default_value_t = 5.0)]
    pub(super) away: f64,
    /// Percent of hosts that come back as the same machine, installed anew; the others make room for another.
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(..=100))]
    pub(super) reinstalled: u32,
    /// Seconds between two reads of a host.
    #[arg(long, default_value_t = 10.0)]
    pub(super) interval: f64,
}

#[derive(Default)]
struct Counts {
    appeared: AtomicU64,
    vanished: AtomicU64,
    reinstalled: AtomicU64,
    /// Of those, got a key that is not the old one, and were served with it.
    reinstalled_served: AtomicU64,
    /// Ended without ever having been enrolled.
    never_enrolled: AtomicU64,
}

struct Plan {
    options: Churn,
    stage: Stage,
    recorder: Arc<Recorder>,
    counts: Counts,
}

/// Who stands in a place. Pure: everything follows from place, turn and percentage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tenant {
    /// Host of the run.
    index: u32,
    /// How often osquery was installed on it before.
    installation: u32,
}

impl Tenant {
    fn first(place: u32) -> Self {
        Self {
            index: place,
            installation: 0,
        }
    }

    /// The next in the same place, of `places` in all.
    fn next(self, places: u32, seed: u64, reinstalled_percent: u32) -> Self {
        let chance = self.host(seed).number(u64::from(self.installation) ^ 0xc4) % 100;
        if chance < u64::from(reinstalled_percent) {
            Self {
                installation: self.installation + 1,
                ..self
            }
        } else {
            Self {
                index: self.index.saturating_add(places),
                installation: 0,
            }
        }
    }

    fn host(self, seed: u64) -> Host {
        Host::new(seed, self.index).with_installation(self.installation)
    }

    /// From half of the mean to one and a half.
    fn life(self, seed: u64, mean: Duration) -> Duration {
        let number = self
            .host(seed)
            .number(u64::from(self.installation) ^ 0x11fe)
            % 1000;
        mean.mul_f64(0.5 + super::tally::as_f64(number) / 1000.0)
    }
}

/// Runs the scenario; whether no exchange failed and every host that was installed again was served.
pub(super) fn run(options: &Churn) -> anyhow::Result<bool> {
    let mut settings = options.common.settings()?;
    settings.intervals.read = seconds(options.interval)?;
    seconds(options.life)?;
    seconds(options.away)?;
    let stage = Stage::new(&options.common, settings, options.hosts.saturating_mul(2))?;
    let shared = Arc::new(Shared::default());
    let plan = Arc::new(Plan {
        options: options.clone(),
        stage,
        recorder: Recorder::new(&shared, true),
        counts: Counts::default(),
    });
    let mut run = Run::start(&plan.stage, shared, &plan, live)?;
    let begun = run.look();
    run.shared.marks.begin_next(begun.at());
    run.pass(Duration::from_secs(options.seconds), "churn");
    run.note_effort();
    let ended = run.look();
    publish(&plan, run, &begun, &ended)
}

fn seconds(seconds: f64) -> anyhow::Result<Duration> {
    Ok(Duration::try_from_secs_f64(seconds)?)
}

fn publish(plan: &Plan, run: Run<()>, begun: &Look, ended: &Look) -> anyhow::Result<bool> {
    let servers = run.servers("server, churn", begun, ended);
    let (_, mut report) = run.end("churn")?;
    report.servers = servers;
    let [_, churn, ..] = plan.recorder.take();
    let seconds = (ended.at() - begun.at()).as_secs_f64();
    report.phases = vec![churn.phase("churn", seconds)];
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let counts = &plan.counts;
    let findings = &mut report.findings;
    findings.count("hosts_appeared", count(&counts.appeared));
    findings.count("hosts_vanished", count(&counts.vanished));
    findings.count("hosts_never_enrolled", count(&counts.never_enrolled));
    findings.count("hosts_reinstalled", count(&counts.reinstalled));
    findings.count(
        "hosts_reinstalled_and_served",
        count(&counts.reinstalled_served),
    );
    report.publish_all(&plan.options.common)?;
    let are_served = count(&counts.reinstalled) == count(&counts.reinstalled_served);
    let never = count(&counts.never_enrolled);
    Ok(are_served && never == 0 && report.phases.iter().all(is_clean))
}

/// One lane: a task for each of its places.
async fn live(plan: Arc<Plan>, lane: usize) -> anyhow::Result<()> {
    let dialer = Arc::new(plan.stage.dialer(&plan.recorder.shared)?);
    let Some(begin) = crowd::begin_of(&plan.recorder.shared, 1).await else {
        return Ok(());
    };
    let places: Vec<_> = plan
        .stage
        .share(lane, plan.options.hosts)
        .map(|place| tokio::spawn(stay(plan.clone(), dialer.clone(), place, begin)))
        .collect();
    for place in places {
        place.await??;
    }
    Ok(())
}

/// One place, from its first host to the end of the run.
async fn stay(
    plan: Arc<Plan>,
    dialer: Arc<Dialer>,
    place: u32,
    begin: Instant,
) -> anyhow::Result<()> {
    let options = &plan.options;
    let seed = options.common.seed;
    let end = begin + Duration::from_secs(options.seconds);
    let (life, away) = (seconds(options.life)?, seconds(options.away)?);
    let mut tenant = Tenant::first(place);
    let mut old_key = String::new();
    // Places fill evenly over one life.
    let part = f64::from(place) / f64::from(options.hosts.max(1));
    let mut at = begin + life.mul_f64(part);
    while at < end {
        tokio::time::sleep_until(at).await;
        let agent = plan
            .stage
            .agent(tenant.host(seed), &dialer, plan.recorder.clone())?;
        let until = (at + tenant.life(seed, life)).min(end);
        let is_reinstalled = tenant.installation > 0;
        let is_served = spend(&plan, &agent, at, until).await;
        let key = agent.node_key();
        if is_reinstalled {
            Shared::count(&plan.counts.reinstalled);
            if is_served && key != old_key {
                Shared::count(&plan.counts.reinstalled_served);
            }
        }
        if key.is_empty() {
            Shared::count(&plan.counts.never_enrolled);
        }
        agent.close().await;
        Shared::count(&plan.counts.vanished);
        old_key = key;
        tenant = tenant.next(options.hosts, seed, options.reinstalled);
        at = until.max(Instant::now()) + away;
    }
    Ok(())
}

/// One life: start, then reads at their interval; whether any read was served.
async fn spend(plan: &Plan, agent: &Agent, begin: Instant, until: Instant) -> bool {
    let shared = &plan.recorder.shared;
    Shared::count(&plan.counts.appeared);
    shared.in_flight.fetch_add(1, Ordering::Relaxed);
    agent.start_round(begin).await;
    shared.in_flight.fetch_sub(1, Ordering::Relaxed);
    let mut is_served = false;
    let mut at = Instant::now();
    // A host lives for one read at least, or nobody would know whether it was served.
    loop {
        shared.in_flight.fetch_add(1, Ordering::Relaxed);
        let round = agent.read_round(at).await;
        shared.in_flight.fetch_sub(1, Ordering::Relaxed);
        is_served |= round.is_success;
        at = Instant::now() + round.wait;
        if at >= until || shared.is_stopped() {
            tokio::time::sleep_until(until).await;
            return is_served;
        }
        tokio::time::sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_taken_by_the_same_machine_or_another() {
        let (places, seed) = (10, 1);
        let mut tenant = Tenant::first(3);
        let mut again = 0;
        for _ in 0..1000 {
            let next = tenant.next(places, seed, 50);
            if next.index == tenant.index {
                assert_eq!(next.installation, tenant.installation + 1);
                assert_eq!(next.host(seed).uuid(), tenant.host(seed).uuid());
                again += 1;
            } else {
                assert_eq!((next.index, next.installation), (tenant.index + places, 0));
            }
            tenant = next;
        }
        assert!((400..600).contains(&again), "{again}");
        assert_eq!(tenant.next(places, seed, 0).installation, 0);
        assert_eq!(tenant.next(places, seed, 100).index, tenant.index);
    }

    #[test]
    fn lives_differ_around_the_mean() {
        let mean = Duration::from_secs(60);
        let lives: Vec<Duration> = (0..200)
            .map(|place| Tenant::first(place).life(1, mean))
            .collect();
        assert!(lives.iter().all(|life| (30..=90).contains(&life.as_secs())));
        assert!(lives.iter().any(|life| life.as_secs() < 45));
        assert!(lives.iter().any(|life| life.as_secs() > 75));
    }
}
