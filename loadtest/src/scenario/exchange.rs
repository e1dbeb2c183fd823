//! `exchange`: full handshake, one POST, close, as fast as it goes; in rounds that alternate between two servers.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fleet_protocol::agent::Route;
use tokio::time::Instant;

use super::crowd;
use super::lane::{self, Lane, Shared, TICK};
use super::options::{Exchange as Options, ExchangeRoute};
use super::procfs::{Sample, Watch};
use super::progress::{LOOK, Progress};
use super::report::{Report, Rounds, Servers};
use super::tally::{Phase, RouteTally, ratio};
use crate::agent::{Agent, Exchange, Settings};
use crate::host::{Host, Release};
use crate::target::{Sources, Target};

/// The server and its peer.
const SIDES: usize = 2;
/// Nobody is measured.
const NOBODY: usize = usize::MAX;
/// From a round's start until it is measured, so that all connections are busy.
const WARM_UP: Duration = Duration::from_millis(300);

/// What the lanes and the main thread share.
struct Contest {
    shared: Shared,
    /// Whose turn it is.
    side: AtomicUsize,
    /// Exchanges are recorded: set after the warm-up.
    is_measured: std::sync::atomic::AtomicBool,
    exchanges: [AtomicU64; SIDES],
}

struct Plan {
    options: Options,
    lanes: usize,
    targets: Vec<Arc<Target>>,
    peer: Option<Arc<Target>>,
    sources: Sources,
    settings: Arc<Settings>,
}

type Tallies = [RouteTally; SIDES];

/// Runs the scenario; whether no exchange failed.
pub(super) fn run(options: &Options) -> anyhow::Result<bool> {
    let common = &options.common;
    let targets = common.targets()?;
    let peer = match &options.compare {
        Some(url) => Some(Arc::new(Target::parse(url)?)),
        None => None,
    };
    let mut all = targets.clone();
    all.extend(peer.clone());
    let sources = common.sources(&all, options.connections)?;
    common.dialer(&sources, None)?;
    let plan = Arc::new(Plan {
        options: options.clone(),
        lanes: common.threads_for(options.connections),
        targets,
        peer,
        sources,
        settings: Arc::new(common.settings()?),
    });
    let contest = Arc::new(Contest {
        shared: Shared::default(),
        side: AtomicUsize::new(NOBODY),
        is_measured: false.into(),
        exchanges: Default::default(),
    });
    let lanes = {
        let (plan, contest) = (plan.clone(), contest.clone());
        lane::start(plan.lanes, move |index| {
            work(plan.clone(), contest.clone(), index)
        })?
    };
    let mut progress = Progress::start();
    let connections = u64::from(options.connections);
    while contest.shared.ready.load(Ordering::Relaxed) < connections && !lane::has_ended(&lanes) {
        std::thread::sleep(TICK);
        let ready = contest.shared.ready.load(Ordering::Relaxed);
        progress.show(|| format!("preparing: {ready} of {connections}"));
    }
    let sides = measure(&plan, &contest, &lanes, &mut progress);
    contest.shared.stop();
    progress.finish();
    let mut tallies = Tallies::default();
    for lane in lane::join(lanes)? {
        for (mine, theirs) in tallies.iter_mut().zip(&lane) {
            mine.merge(theirs);
        }
    }
    let report = report(options, &sides, &tallies);
    report.publish_all(common)?;
    Ok(report.rounds.iter().all(|rounds| rounds.failed == 0))
}

/// One lane: prepares its agents, then lets them run whenever it is their side's turn.
async fn work(plan: Arc<Plan>, contest: Arc<Contest>, lane: usize) -> anyhow::Result<Tallies> {
    let options = &plan.options;
    let dialer = Arc::new(options.common.dialer(&plan.sources, None)?);
    let peer_ca = options.compare_ca.as_ref();
    let peer_dialer = Arc::new(options.common.dialer(&plan.sources, peer_ca)?);
    let tallies: Arc<Mutex<Tallies>> = Arc::default();
    let mut tasks = Vec::new();
    for index in 0..options.connections {
        let place = usize::try_from(index).unwrap_or(0);
        if place % plan.lanes != lane {
            continue;
        }
        let Some(target) = plan.targets.get(place % plan.targets.len()) else {
            continue;
        };
        let host = Host::new(options.common.seed, index).with_release(Release::NEWEST);
        let new = |dialer: &Arc<_>, target: &Arc<_>| {
            Agent::new(
                host,
                plan.settings.clone(),
                Arc::clone(dialer),
                Arc::clone(target),
            )
        };
        let agent = new(&dialer, target);
        let peer = plan.peer.as_ref().map(|target| new(&peer_dialer, target));
        let (contest, tallies, route) = (contest.clone(), tallies.clone(), options.route);
        tasks.push(tokio::spawn(async move {
            prepare(&agent, route).await?;
            let key = agent.node_key();
            if let Some(peer) = &peer {
                peer.set_node_key(key);
            }
            Shared::count(&contest.shared.ready);
            run_side(&contest, &tallies, &agent, peer.as_ref(), route).await;
            anyhow::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    let mut tallies = tallies.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut *tallies))
}

/// Enrolls and delivers the first details, until nothing is due.
async fn prepare(agent: &Agent, route: ExchangeRoute) -> anyhow::Result<()> {
    if route == ExchangeRoute::Raw {
        agent.set_node_key("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        return Ok(());
    }
    for attempt in 0.. {
        let enrolled = agent.enroll().await;
        match enrolled.failure() {
            None => break,
            Some(failure) if attempt == 3 => anyhow::bail!("enroll: {failure}"),
            Some(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
    if let Some(failure) = agent.config().await.failure() {
        anyhow::bail!("config: {failure}");
    }
    crowd::read_until_nothing_is_due(agent).await
}

async fn run_side(
    contest: &Contest,
    tallies: &Mutex<Tallies>,
    agent: &Agent,
    peer: Option<&Agent>,
    route: ExchangeRoute,
) {
    while !contest.shared.is_stopped() {
        let side = contest.side.load(Ordering::Relaxed);
        let chosen = match (side, peer) {
            (0, _) => agent,
            (1, Some(peer)) => peer,
            _ => {
                tokio::time::sleep(TICK).await;
                continue;
            }
        };
        let exchange: Exchange = match route {
            ExchangeRoute::Config => chosen.config().await,
            ExchangeRoute::Read => chosen.read().await,
            ExchangeRoute::Raw => {
                let body = crate::bodies::key_only(&chosen.node_key());
                chosen.post(Route::Read, body).await
            }
        };
        if let Some(count) = contest.exchanges.get(side) {
            Shared::count(count);
        }
        if contest.is_measured.load(Ordering::Relaxed) || !exchange.is_success() {
            let mut tallies = tallies.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(tally) = tallies.get_mut(side) {
                tally.record(&exchange, exchange.started_at);
            }
        }
        if !exchange.is_success() {
            // A server that is down must not make this a busy loop.
            tokio::time::sleep(TICK).await;
        }
    }
}

/// One measured round.
struct Round {
    exchanges: u64,
    seconds: f64,
    begin: Vec<Sample>,
    end: Vec<Sample>,
}

struct Side {
    name: String,
    watch: Watch,
    rounds: Vec<Round>,
}

fn measure(
    plan: &Plan,
    contest: &Contest,
    lanes: &[Lane<Tallies>],
    progress: &mut Progress,
) -> Vec<Side> {
    let options = &plan.options;
    let mut sides = vec![Side {
        name: "server".to_owned(),
        watch: Watch {
            trees: options.common.server_tree.clone(),
            pids: options.common.server_pids.clone(),
        },
        rounds: Vec::new(),
    }];
    if plan.peer.is_some() {
        sides.push(Side {
            name: options.compare_name.clone(),
            watch: Watch {
                trees: options.compare_tree.clone(),
                pids: Vec::new(),
            },
            rounds: Vec::new(),
        });
    }
    let rounds = options.seconds.div_ceil(options.round.max(1)).max(1);
    for number in 1..=rounds {
        for (index, side) in sides.iter_mut().enumerate() {
            if lane::has_ended(lanes) {
                return sides;
            }
            let at = (number - 1, rounds);
            let show = |rate: f64| {
                let name = &side.name;
                progress.advance(at.0, at.1, || format!("{name}: {rate:.0}/s"));
            };
            let round = one_round(contest, index, &side.watch, options.round, show);
            side.rounds.push(round);
        }
    }
    sides
}

/// A round of one side; `show` is told the rate now.
fn one_round(
    contest: &Contest,
    side: usize,
    watch: &Watch,
    seconds: u64,
    mut show: impl FnMut(f64),
) -> Round {
    let count = || {
        contest
            .exchanges
            .get(side)
            .map_or(0, |count| count.load(Ordering::Relaxed))
    };
    contest.side.store(side, Ordering::Relaxed);
    std::thread::sleep(WARM_UP);
    contest.is_measured.store(true, Ordering::Relaxed);
    let (begin, before, from) = (watch.sample(), count(), Instant::now());
    let until = from + Duration::from_secs(seconds);
    let mut last = (from, before);
    while Instant::now() < until {
        std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
        let now = (Instant::now(), count());
        show(ratio(now.1 - last.1, (now.0 - last.0).as_secs_f64()));
        last = now;
    }
    let round = Round {
        exchanges: count() - before,
        seconds: from.elapsed().as_secs_f64(),
        end: watch.sample(),
        begin,
    };
    contest.is_measured.store(false, Ordering::Relaxed);
    contest.side.store(NOBODY, Ordering::Relaxed);
    // Exchanges under way end before the other side's round begins.
    std::thread::sleep(WARM_UP);
    round
}

fn report(options: &Options, sides: &[Side], tallies: &Tallies) -> Report {
    let mut rounds = Vec::new();
    let mut servers = Vec::new();
    let mut phases: Vec<Phase> = Vec::new();
    for (side, tally) in sides.iter().zip(tallies) {
        let total: u64 = side.rounds.iter().map(|round| round.exchanges).sum();
        let seconds: f64 = side.rounds.iter().map(|round| round.seconds).sum();
        let row = tally.row(&side.name, seconds);
        let cpu = side.rounds.iter().filter(|_| !side.watch.is_empty());
        rounds.push(Rounds {
            name: side.name.clone(),
            exchanges: row.exchanges,
            exchanges_per_s: side
                .rounds
                .iter()
                .map(|round| ratio(round.exchanges, round.seconds))
                .collect(),
            cpu_us_per_exchange: cpu
                .map(|round| {
                    Servers::between("", &round.begin, &round.end, round.exchanges, round.seconds)
                        .cpu_us_per_exchange
                })
                .collect(),
            failed: row.failed,
            latency_ms: row.service_ms,
            curve: row.curve,
        });
        if !side.watch.is_empty() {
            servers.push(sum_of_rounds(side, total, seconds));
        }
        phases.extend(tally.failures_phase(&side.name, seconds));
    }
    let mut notes = Vec::new();
    if let [server, peer] = rounds.as_slice() {
        let median =
            |rounds: &Rounds| super::report::Spread::of(&rounds.cpu_us_per_exchange).median;
        if median(peer) > 0.0 && median(server) > 0.0 {
            notes.push(format!(
                "server / {}: {:.2} of its CPU for each exchange",
                peer.name,
                median(server) / median(peer)
            ));
        }
    }
    notes.push(format!(
        "{} exchanges at a time, route {:?}, rounds of {} s",
        options.connections, options.route, options.round
    ));
    Report {
        notes,
        phases,
        servers,
        rounds,
        ..Report::new("exchange")
    }
}

/// CPU of each process over all rounds of a side, without what it did in the other's rounds.
fn sum_of_rounds(side: &Side, exchanges: u64, seconds: f64) -> Servers {
    let mut ends = side
        .rounds
        .last()
        .map_or_else(Vec::new, |round| round.end.clone());
    let mut begins = ends.clone();
    for (end, begin) in ends.iter_mut().zip(&mut begins) {
        let of = |samples: &[Sample]| {
            samples
                .iter()
                .find(|sample| sample.pid == begin.pid)
                .map_or(0, |sample| sample.cpu_us)
        };
        end.cpu_us = side
            .rounds
            .iter()
            .map(|round| of(&round.end).saturating_sub(of(&round.begin)))
            .sum();
        let first = side
            .rounds
            .first()
            .and_then(|round| round.begin.iter().find(|sample| sample.pid == begin.pid));
        begin.rss_bytes = first.map_or(0, |sample| sample.rss_bytes);
        begin.cpu_us = 0;
    }
    Servers::between(side.name.clone(), &begins, &ends, exchanges, seconds)
}
