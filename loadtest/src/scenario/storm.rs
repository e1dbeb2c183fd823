//! `storm`: every host in the same moment, as after an outage, and the echo of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use fleet_protocol::agent::LogType;
use tokio::time::Instant;

use super::acknowledged::{self, Acknowledged};
use super::crowd::{self, Preparation};
use super::lane::Shared;
use super::options::Common;
use super::population::{Habits, Member, Population, Recorder, Thread};
use super::report::Findings;
use super::stage::{Look, Run, Stage};
use super::tally::{Percentiles, as_u64, histogram, micros};
use super::timeline::{Moment, steady_again_s};
use super::witness::{Story, Witness};
use crate::agent::Agent;
use crate::host::Host;
use crate::lines::ResultLines;
use crate::schedule::Profile;

/// Between the last preparation and the storm.
const CALM: Duration = Duration::from_secs(2);
/// From the decision to the storm, so that every lane is ready for it.
const LEAD: Duration = Duration::from_millis(200);
/// The server is steady again from a second on that begins a row of this many, or of a whole interval of reads.
const STEADY_ROW_S: f64 = 5.0;
/// With p99 below this in each.
const STEADY_P99_MS: f64 = 50.0;

/// Options of `storm`.
#[derive(Clone, Debug, Args)]
pub(super) struct Storm {
    /// Common options.
    #[command(flatten)]
    pub(super) common: Common,
    /// Simulated hosts.
    #[arg(long)]
    pub(super) hosts: u32,
    /// The hosts are new to the server: each enrolls first, in the same moment.
    #[arg(long)]
    pub(super) unenrolled: bool,
    /// Longest time from the storm's begin to the end of the run.
    #[arg(long, default_value_t = 120)]
    pub(super) seconds: u64,
    /// Intervals of the agents.
    #[arg(long, value_enum, default_value = "fleet")]
    pub(super) profile: Profile,
    /// Result lines that each host has kept from the outage.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=10_000))]
    pub(super) lines: u32,
    /// Write each line that the server acknowledged, as `HOST_IDENTIFIER COUNTER`, to FILE.
    #[arg(long, value_name = "FILE")]
    pub(super) acknowledged: Option<PathBuf>,
    /// Of its hosts.
    #[command(flatten)]
    pub(super) preparation: Preparation,
}

struct Plan {
    options: Storm,
    stage: Stage,
    recorder: Arc<Recorder>,
    /// Counter of the first line of each host: no two runs have the same.
    first_line: u64,
}

/// What became of one host.
struct Account {
    story: Story,
    taken: Acknowledged,
}

/// Runs the storm; whether every host was served, or told properly until then, within an agent's deadline.
pub(super) fn run(options: &Storm) -> anyhow::Result<bool> {
    let mut settings = options.common.settings()?;
    settings.intervals = options.profile.intervals();
    let stage = Stage::new(&options.common, settings, options.hosts.saturating_mul(3))?;
    let shared = Arc::new(Shared::default());
    let plan = Arc::new(Plan {
        options: options.clone(),
        stage,
        recorder: Recorder::new(&shared, true),
        first_line: acknowledged::first_number(),
    });
    let mut run = Run::start(&plan.stage, shared, &plan, live)?;
    let hosts = u64::from(options.hosts);
    let is_ready = run.prepare(hosts, &options.preparation);
    run.pass(CALM, "calm");
    let begun = run.look();
    let storm_at = Instant::now() + LEAD;
    let storm_s = run.timeline.now_s() + LEAD.as_secs_f64();
    run.shared.marks.begin_next(storm_at);
    let row_s = STEADY_ROW_S.max(plan.stage.settings.intervals.read.as_secs_f64());
    let until = storm_at + Duration::from_secs(options.seconds);
    let are_served = is_ready
        && run.watch(
            until,
            |shared, _| is_served(shared, hosts),
            |shared| {
                let served = shared.done.load(Ordering::Relaxed);
                format!("storm: {served} of {hosts} served")
            },
        );
    // Steadiness is looked for once every host was served: until then a quiet second may be one without any answer.
    let served_s = run.timeline.now_s();
    let steady_after = |moments: &[Moment]| steady_again_s(moments, served_s, row_s, STEADY_P99_MS);
    let is_over = are_served
        && run.watch(
            until,
            |_, timeline| steady_after(timeline.moments()).is_some(),
            |_| "all served, not yet steady".to_owned(),
        );
    run.note_effort();
    let ended = run.look();
    let steady_s = steady_after(run.timeline.moments())
        .filter(|_| are_served)
        .map(|seconds| seconds + served_s - storm_s);
    if !is_over {
        run.notes
            .push("the run ended before all hosts were served and the server steady".into());
    }
    publish(&plan, run, [&begun, &ended], steady_s)
}

fn is_served(shared: &Shared, hosts: u64) -> bool {
    shared.done.load(Ordering::Relaxed) >= hosts
}

fn publish(
    plan: &Plan,
    run: Run<Vec<Account>>,
    [begun, ended]: [&Look; 2],
    steady_s: Option<f64>,
) -> anyhow::Result<bool> {
    let servers = run.servers("server, storm", begun, ended);
    let (lanes, mut report) = run.end("storm")?;
    let accounts: Vec<Account> = lanes.into_iter().flatten().collect();
    if let Some(path) = &plan.options.acknowledged {
        let taken: Vec<_> = accounts
            .iter()
            .map(|account| account.taken.clone())
            .collect();
        acknowledged::write(path, plan.first_line, &taken)?;
    }
    report.servers = servers;
    let [before, storm, ..] = plan.recorder.take();
    let seconds = (ended.at() - begun.at()).as_secs_f64();
    report.phases = vec![
        before.phase("preparation", 0.0),
        storm.phase("storm", seconds),
    ];
    let stories: Vec<Story> = accounts.iter().map(|account| account.story).collect();
    let is_proper = findings(&mut report.findings, &stories, plan.options.hosts);
    let delivered: u64 = accounts.iter().map(|account| account.taken.lines).sum();
    report.findings.count("lines_acknowledged", delivered);
    if let Some(seconds) = steady_s {
        report.findings.figure("steady_again_s", seconds);
    }
    report.publish_all(&plan.options.common)?;
    Ok(is_proper && steady_s.is_some())
}

/// Counts over all hosts; whether each was served in the end and none was treated wrongly.
fn findings(findings: &mut Findings, stories: &[Story], hosts: u32) -> bool {
    let count = |is: fn(&Story) -> bool| as_u64(stories.iter().filter(|story| is(story)).count());
    let sum = |of: fn(&Story) -> u32| {
        stories
            .iter()
            .map(|story| u64::from(of(story)))
            .sum::<u64>()
    };
    let served = count(|story| story.all_served.is_some());
    let silent = count(|story| story.first_word.is_none());
    let (violations, own) = (sum(|story| story.violations), sum(|story| story.own));
    findings.count("hosts", hosts.into());
    findings.count("hosts_served", served);
    findings.count("hosts_told_first", count(Story::is_told_first));
    findings.count("hosts_without_a_word", silent);
    findings.count("answers_told_to_come_back", sum(|story| story.told));
    findings.count("answers_none_in_16s", sum(|story| story.silent));
    findings.count("attempts_unreached", sum(|story| story.unreached));
    findings.count("violations", violations);
    findings.count("failures_of_the_generator", own);
    for (name, of) in [
        (
            "first_word",
            (|story| story.first_word) as fn(&Story) -> Option<Duration>,
        ),
        ("first_success", |story| story.first_success),
        ("all_served", |story| story.all_served),
    ] {
        let mut times = histogram();
        for time in stories.iter().filter_map(of) {
            times.saturating_record(micros(time));
        }
        findings.percentiles(name, "ms", &Percentiles::of(&times));
    }
    served == u64::from(hosts) && silent + violations + own == 0
}

/// One lane: prepares its hosts, waits for the storm, and lets them live in it.
async fn live(plan: Arc<Plan>, lane: usize) -> anyhow::Result<Vec<Account>> {
    let (options, stage) = (&plan.options, &plan.stage);
    let shared = plan.recorder.shared.clone();
    let dialer = Arc::new(stage.dialer(&shared)?);
    let mut agents: Vec<Arc<Agent>> = Vec::new();
    let mut witnesses = Vec::new();
    for index in stage.share(lane, options.hosts) {
        let witness = Witness::new(&plan.recorder, options.lines > 0);
        let host = Host::new(options.common.seed, index);
        agents.push(Arc::new(stage.agent(host, &dialer, witness.clone())?));
        witnesses.push(witness);
    }
    if options.unenrolled {
        let count = as_u64(agents.len());
        shared.ready.fetch_add(count, Ordering::Relaxed);
    } else {
        crowd::prepare_all(&agents, &options.preparation, &shared).await?;
    }
    for agent in &agents {
        let lines = ResultLines::new(agent.host(), crate::unix_now());
        for number in plan.first_line..plan.first_line + u64::from(options.lines) {
            agent.buffer_line(LogType::Result, lines.line(number)).await;
        }
    }
    let members: Vec<_> = agents.into_iter().map(Member::of).collect();
    let habits = Habits::without_logs(stage.settings.intervals);
    let mut population = Population::new(members.clone(), habits, shared.clone());
    let Some(storm_at) = crowd::begin_of(&shared, 1).await else {
        return Ok(Vec::new());
    };
    let threads: &[Thread] = if options.unenrolled {
        &[Thread::Start]
    } else {
        &[Thread::Config, Thread::Read, Thread::Log]
    };
    for member in 0..members.len() {
        population.begin_at(member, threads, storm_at);
    }
    population.live().await;
    Ok(members
        .iter()
        .zip(witnesses)
        .map(|(member, witness)| Account {
            story: witness.story(),
            taken: Acknowledged {
                identifier: member.agent.host().uuid(),
                lines: member.delivered.load(Ordering::Relaxed),
            },
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_word_spoils_the_run() {
        let second = Some(Duration::from_secs(1));
        let served = Story {
            first_word: second,
            first_success: second,
            all_served: second,
            ..Story::default()
        };
        assert!(findings(&mut Findings::default(), &[served; 3], 3));
        assert!(!findings(&mut Findings::default(), &[served; 2], 3));
        let silent = [served, served, Story::default()];
        assert!(!findings(&mut Findings::default(), &silent, 3));
        let violated = Story {
            violations: 1,
            ..served
        };
        assert!(!findings(&mut Findings::default(), &[served, violated], 2));
    }
}
