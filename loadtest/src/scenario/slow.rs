//! `slow`: connections that send a byte a second, in each phase of an exchange, beside agents that behave. How the agents
//! fare before and meanwhile, and when the server was rid of each slow connection.
//!
//! They are opened evenly, those that a server bears longest first, so that all are open at one time. Their handshakes cost
//! the server what any would, and have a phase of their own, before the one in which nothing but slow bytes comes.

mod drip;

use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::crowd::{self, Preparation};
use super::lane::Shared;
use super::options::Common;
use super::population::{Habits, Member, Population, Recorder, Thread};
use super::report::Findings;
use super::stage::{Look, Run, Stage};
use super::steady::is_clean;
use super::tally::{Percentiles, Phase, as_f64, as_u64, histogram, micros, ratio};
use crate::client::Dialer;
use drip::{Ending, Part};

/// Options of `slow`.
#[derive(Clone, Debug, Args)]
pub(super) struct Slow {
    /// Common options.
    #[command(flatten)]
    pub(super) common: Common,
    /// Hosts whose agents behave.
    #[arg(long)]
    pub(super) hosts: u32,
    /// Slow connections; a third in each phase: handshake, head, body.
    #[arg(long)]
    pub(super) connections: u32,
    /// Seconds in which the slow connections are opened.
    #[arg(long, default_value_t = 8)]
    pub(super) opening: u64,
    /// Seconds of the phase with all of them.
    #[arg(long, default_value_t = 5)]
    pub(super) seconds: u64,
    /// Seconds after it, in which a server has to close the rest of them.
    #[arg(long, default_value_t = 15)]
    pub(super) rest: u64,
    /// Seconds of the phase before them.
    #[arg(long, default_value_t = 10)]
    pub(super) before: u64,
    /// Seconds between two reads, and two configs, of a host that behaves.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) interval: u64,
    /// Of its hosts.
    #[command(flatten)]
    pub(super) preparation: Preparation,
}

struct Plan {
    options: Slow,
    stage: Stage,
    recorder: Arc<Recorder>,
}

/// Runs the scenario; whether every slow connection was opened, and no exchange of the agents that behave failed or was
/// late.
pub(super) fn run(options: &Slow) -> anyhow::Result<bool> {
    let mut settings = options.common.settings()?;
    settings.intervals.read = Duration::from_secs(options.interval);
    // A server may hold reads, but never a config: its latency shows what the slow ones do.
    settings.intervals.config = settings.intervals.read;
    let sockets = options
        .hosts
        .saturating_mul(2)
        .saturating_add(options.connections);
    let stage = Stage::new(&options.common, settings, sockets)?;
    let shared = Arc::new(Shared::default());
    let plan = Arc::new(Plan {
        options: options.clone(),
        stage,
        recorder: Recorder::new(&shared, true),
    });
    let mut run = Run::start(&plan.stage, shared, &plan, live)?;
    run.prepare(options.hosts.into(), &options.preparation);
    let prepared = run.look();
    run.shared.marks.begin_next(prepared.at());
    run.pass(Duration::from_secs(options.before), "before");
    let begun = run.look();
    run.shared.marks.begin_next(begun.at());
    run.pass(Duration::from_secs(options.opening), "opening");
    let opened = run.look();
    run.shared.marks.begin_next(opened.at());
    run.pass(Duration::from_secs(options.seconds), "slow");
    let ended = run.look();
    run.shared.marks.begin_next(ended.at());
    run.pass(Duration::from_secs(options.rest), "rest");
    run.note_effort();
    publish(&plan, run, [&prepared, &begun, &opened, &ended])
}

fn publish(
    plan: &Plan,
    run: Run<Vec<Ending>>,
    [prepared, begun, opened, ended]: [&Look; 4],
) -> anyhow::Result<bool> {
    let mut servers = run.servers("server, before", prepared, begun);
    servers.extend(run.servers("server, while slow connections are opened", begun, opened));
    servers.extend(run.servers("server, with slow connections", opened, ended));
    let (lanes, mut report) = run.end("slow")?;
    report.servers = servers;
    let [preparation, before, opening, during, rest] = plan.recorder.take();
    let seconds = |from: &Look, to: &Look| (to.at() - from.at()).as_secs_f64();
    report.phases = vec![
        preparation.phase("preparation", 0.0),
        before.phase("before", seconds(prepared, begun)),
        opening.phase("while slow connections are opened", seconds(begun, opened)),
        during.phase("with slow connections", seconds(opened, ended)),
        rest.phase("after", as_f64(plan.options.rest)),
    ];
    let p99 = |phase: Option<&Phase>| {
        let all = phase.and_then(|phase| phase.routes.last());
        all.map_or(0.0, |row| row.latency_ms.p99)
    };
    for (number, name) in ["before", "opening", "during"].into_iter().enumerate() {
        let p99 = p99(report.phases.get(number + 1));
        report.findings.figure(format!("others_p99_{name}_ms"), p99);
    }
    let endings: Vec<Ending> = lanes.into_iter().flatten().collect();
    let is_open = |ending: &&Ending| {
        let closed_at = ending.closed_after.map(|after| ending.begun_at + after);
        ending.is_opened
            && ending.begun_at <= opened.at()
            && closed_at.is_none_or(|at| at > opened.at())
    };
    let at_once = endings.iter().filter(is_open).count();
    report.findings.count("slow_open_at_once", as_u64(at_once));
    for part in Part::ALL {
        tell(&mut report.findings, part, &endings);
    }
    report.publish_all(&plan.options.common)?;
    let are_clean = report.phases.iter().skip(1).all(is_clean);
    Ok(are_clean && are_opened(&endings, plan.options.connections))
}

/// Without all of them the agents would have met less than the run was to show.
fn are_opened(endings: &[Ending], wanted: u32) -> bool {
    let opened = endings.iter().filter(|ending| ending.is_opened).count();
    as_u64(opened) == u64::from(wanted)
}

/// What became of the slow connections of one part.
fn tell(findings: &mut Findings, part: Part, endings: &[Ending]) {
    let name = part.name();
    let mut closed_after = histogram();
    let (mut opened, mut failed, mut open) = (0, 0, 0);
    for ending in endings.iter().filter(|ending| ending.part == part) {
        match ending.closed_after {
            _ if !ending.is_opened => failed += 1,
            Some(after) => {
                opened += 1;
                closed_after.saturating_record(micros(after));
            }
            None => {
                opened += 1;
                open += 1;
            }
        }
    }
    findings.count(format!("slow_{name}_opened"), opened);
    findings.count(format!("slow_{name}_not_opened"), failed);
    findings.count(format!("slow_{name}_closed"), closed_after.len());
    findings.count(format!("slow_{name}_open_at_end"), open);
    if !closed_after.is_empty() {
        let name = format!("slow_{name}_closed_after");
        findings.percentiles(&name, "ms", &Percentiles::of(&closed_after));
    }
}

/// One lane: its share of the agents, and later of the slow connections beside them.
async fn live(plan: Arc<Plan>, lane: usize) -> anyhow::Result<Vec<Ending>> {
    let (options, stage) = (&plan.options, &plan.stage);
    let shared = plan.recorder.shared.clone();
    let dialer = Arc::new(stage.dialer(&shared)?);
    let agents = stage.agents(lane, options.hosts, &dialer, &plan.recorder)?;
    crowd::prepare_all(&agents, &options.preparation, &shared).await?;
    let Some(begin) = crowd::begin_of(&shared, 1).await else {
        return Ok(Vec::new());
    };
    let members: Vec<_> = agents.into_iter().map(Member::of).collect();
    let habits = Habits::without_logs(stage.settings.intervals);
    let mut population = Population::new(members, habits, shared.clone());
    let interval = Duration::from_secs(options.interval);
    population.begin_evenly(&[Thread::Config, Thread::Read], begin, interval);
    let slow = tokio::spawn(dribble(plan.clone(), lane, dialer));
    population.live().await;
    slow.await?
}

/// Opens this lane's slow connections when the phase before them is over, and lets each drip until the end.
async fn dribble(plan: Arc<Plan>, lane: usize, dialer: Arc<Dialer>) -> anyhow::Result<Vec<Ending>> {
    let (options, stage) = (&plan.options, &plan.stage);
    let shared = &plan.recorder.shared;
    let Some(begin) = crowd::begin_of(shared, 2).await else {
        return Ok(Vec::new());
    };
    let opening = Duration::from_secs(options.opening);
    let end = begin + opening + Duration::from_secs(options.seconds + options.rest);
    let path = stage
        .settings
        .paths
        .of(fleet_protocol::agent::Route::Log)
        .to_owned();
    let mut tasks = Vec::new();
    for number in stage.share(lane, options.connections) {
        let part = Part::of(number, options.connections);
        let at = begin + opening.mul_f64(ratio(number.into(), options.connections.into()));
        let target = stage.target(number)?.clone();
        let (dialer, path) = (dialer.clone(), format!("{}{path}", target.prefix));
        tasks.push(tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            drip::run(part, &dialer, &target, &path, end).await
        }));
    }
    let mut endings = Vec::new();
    for task in tasks {
        endings.push(task.await?);
    }
    Ok(endings)
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn endings_are_told_apart() {
        let ending = |number: u32, closed_after: Option<u64>| Ending {
            part: Part::of(number, 9),
            is_opened: true,
            begun_at: Instant::now(),
            closed_after: closed_after.map(Duration::from_secs),
        };
        let endings = [
            ending(3, Some(10)),
            ending(6, Some(5)),
            ending(4, None),
            Ending {
                is_opened: false,
                ..ending(5, None)
            },
        ];
        assert!(!are_opened(&endings, 4), "one was not");
        assert!(!are_opened(&endings[..3], 4), "one was not tried");
        assert!(are_opened(&endings[..3], 3));
        let mut findings = Findings::default();
        tell(&mut findings, Part::Handshake, &endings);
        let json = serde_json::to_value(&findings).unwrap();
        let name = |what: &str| json[format!("slow_handshake_{what}")].clone();
        assert_eq!(name("opened"), 2);
        assert_eq!(name("closed"), 1);
        assert_eq!(name("open_at_end"), 1);
        assert_eq!(name("not_opened"), 1);
        let after = name("closed_after_p50_ms").as_f64().unwrap();
        assert!((after - 10_000.0).abs() < 50.0, "{after}");
    }
}
