//! `idle`: connections that are opened, used once and held; what each costs in memory.

use std::io::Read as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fleet_protocol::agent::Route;
use tokio::time::{Instant, timeout};

use super::lane::{self, Shared, TICK};
use super::machine::Machine;
use super::options::Idle;
use super::procfs::{self, Sample, Watch};
use super::progress::{LOOK, Progress};
use super::report::{Held, Report, Servers};
use super::tally::ratio;
use crate::agent::{Agent, Settings};
use crate::bodies;
use crate::client::{DEADLINE, Dialer};
use crate::connection::Connection;
use crate::host::{Host, Release};
use crate::http::Request;
use crate::target::{Sources, Target};

#[derive(Default)]
struct State {
    shared: Shared,
    /// Lanes whose hosts are enrolled.
    prepared: AtomicU64,
    /// Lanes may connect.
    may_open: std::sync::atomic::AtomicBool,
    opened: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    errors: Mutex<std::collections::BTreeMap<String, u64>>,
}

impl State {
    fn notes(&self) -> Vec<String> {
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        errors
            .iter()
            .map(|(error, count)| format!("{count} x {error}"))
            .collect()
    }
}

struct Plan {
    options: Idle,
    lanes: usize,
    targets: Vec<Arc<Target>>,
    sources: Sources,
    settings: Arc<Settings>,
}

/// Runs the scenario; whether all connections were held to the end.
pub(super) fn run(options: &Idle) -> anyhow::Result<bool> {
    let common = &options.common;
    let targets = common.targets()?;
    let sources = common.sources(&targets)?;
    common.dialer(&sources, None)?;
    let plan = Arc::new(Plan {
        options: options.clone(),
        lanes: common.threads_for(options.connections),
        targets,
        sources,
        settings: Arc::new(common.settings()?),
    });
    let watch = Watch {
        trees: common.server_tree.clone(),
        pids: common.server_pids.clone(),
    };
    let state = Arc::new(State::default());
    let lanes = {
        let (plan, state) = (plan.clone(), state.clone());
        lane::start(plan.lanes, move |index| {
            hold(plan.clone(), state.clone(), index)
        })?
    };
    let mut progress = Progress::start();
    let all_lanes = u64::try_from(plan.lanes).unwrap_or(u64::MAX);
    while state.prepared.load(Ordering::Relaxed) < all_lanes && !lane::has_ended(&lanes) {
        std::thread::sleep(TICK);
    }
    std::thread::sleep(Duration::from_secs(1));
    let (begin, own_begin) = (watch.sample(), procfs::sample(std::process::id()));
    state.may_open.store(true, Ordering::Relaxed);
    let from = Instant::now();
    open_and_hold(options, &state, &lanes, &mut progress);
    let (end, own_end) = (watch.sample(), procfs::sample(std::process::id()));
    let seconds = from.elapsed().as_secs_f64();
    state.shared.stop();
    progress.finish();
    let open_at_end = lane::join(lanes)?.into_iter().sum();
    let opened = state.opened.load(Ordering::Relaxed);
    let wanted = u64::from(options.connections);
    let held = Held {
        wanted,
        opened,
        refused_reuse: state.refused.load(Ordering::Relaxed),
        failed: state.failed.load(Ordering::Relaxed),
        open_at_end,
        server_bytes_per_connection: growth(&begin, &end, opened),
        generator_bytes_per_connection: growth(own_begin.as_slice(), own_end.as_slice(), opened),
    };
    let is_held = held.open_at_end == wanted;
    let servers = if watch.is_empty() {
        Vec::new()
    } else {
        vec![Servers::between("server", &begin, &end, opened, seconds)]
    };
    Report {
        machine: Machine::read(),
        scenario: "idle",
        notes: state.notes(),
        phases: Vec::new(),
        servers,
        rounds: Vec::new(),
        idle: Some(held),
    }
    .publish(common.json.as_deref())?;
    Ok(is_held)
}

/// Waits until every connection was tried, and then for the time that they are to be held.
fn open_and_hold(
    options: &Idle,
    state: &State,
    lanes: &[lane::Lane<u64>],
    progress: &mut Progress,
) {
    let wanted = u64::from(options.connections);
    let mut done = 0;
    while done < wanted && !lane::has_ended(lanes) {
        std::thread::sleep(LOOK);
        done = [&state.opened, &state.refused, &state.failed]
            .map(|count| count.load(Ordering::Relaxed))
            .into_iter()
            .sum();
        progress.show(|| format!("opening: {done} of {wanted}"));
    }
    let until = Instant::now() + Duration::from_secs(options.seconds);
    while Instant::now() < until && !lane::has_ended(lanes) {
        std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
        progress.show(|| format!("holding {}", state.opened.load(Ordering::Relaxed)));
    }
}

/// Resident growth over all processes, for each connection.
fn growth(begin: &[Sample], end: &[Sample], connections: u64) -> f64 {
    let sum = |samples: &[Sample]| samples.iter().map(|sample| sample.rss_bytes).sum::<u64>();
    ratio(
        sum(end).saturating_sub(sum(begin)),
        super::tally::as_f64(connections),
    )
}

/// One lane: opens its share and holds it until told to stop; gives how many are still open then.
async fn hold(plan: Arc<Plan>, state: Arc<State>, lane: usize) -> anyhow::Result<u64> {
    let options = &plan.options;
    let dialer = Arc::new(options.common.dialer(&plan.sources, None)?);
    let mut keys = Vec::new();
    for index in 0..options.hosts.max(1) {
        let Some(target) = plan.targets.first() else {
            continue;
        };
        let host = Host::new(options.common.seed, index).with_release(Release::NEWEST);
        let agent = Agent::new(host, plan.settings.clone(), dialer.clone(), target.clone());
        let enrolled = agent.enroll().await;
        if let Some(failure) = enrolled.failure() {
            anyhow::bail!("enroll: {failure}");
        }
        agent.read_round(Instant::now()).await;
        agent.close().await;
        keys.push(agent.node_key());
    }
    Shared::count(&state.prepared);
    while !state.may_open.load(Ordering::Relaxed) && !state.shared.is_stopped() {
        tokio::time::sleep(TICK).await;
    }
    let next = Arc::new(AtomicU64::new(u64::try_from(lane).unwrap_or(0)));
    let keys: Arc<[String]> = keys.into();
    let sockets: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let mut tasks = Vec::new();
    for _ in 0..options.concurrency.max(1) {
        tasks.push(tokio::spawn(open_share(
            plan.clone(),
            state.clone(),
            dialer.clone(),
            keys.clone(),
            next.clone(),
            sockets.clone(),
        )));
    }
    for task in tasks {
        task.await?;
    }
    while !state.shared.is_stopped() {
        tokio::time::sleep(TICK).await;
    }
    let mut sockets = sockets.lock().unwrap_or_else(PoisonError::into_inner);
    let open = sockets.iter_mut().map(|socket| u64::from(is_open(socket)));
    Ok(open.sum())
}

async fn open_share(
    plan: Arc<Plan>,
    state: Arc<State>,
    dialer: Arc<Dialer>,
    keys: Arc<[String]>,
    next: Arc<AtomicU64>,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
) {
    let lanes = u64::try_from(plan.lanes).unwrap_or(1);
    loop {
        let index = next.fetch_add(lanes, Ordering::Relaxed);
        if index >= u64::from(plan.options.connections) || state.shared.is_stopped() {
            return;
        }
        let place = usize::try_from(index).unwrap_or(0);
        let (Some(target), Some(key)) = (
            plan.targets.get(place % plan.targets.len()),
            keys.get(place % keys.len()),
        ) else {
            return;
        };
        let request = Request {
            target: format!("{}{}", target.prefix, plan.settings.paths.of(Route::Read)),
            user_agent: Release::NEWEST.user_agent,
            node_key: Some(key.clone()),
            is_gzip: false,
            accept_gzip: false,
            keep_alive: true,
            body: bodies::key_only(key),
        };
        let opened = timeout(DEADLINE, async {
            let source = dialer.sources.next();
            let mut connection = Connection::open(target, source, &dialer.tls).await?;
            let response = connection.exchange(&request, &target.host).await?;
            Ok::<_, crate::verdict::Failure>((connection, response))
        });
        match opened
            .await
            .unwrap_or(Err(crate::verdict::Failure::Timeout))
        {
            Ok((_, response)) if response.says_close() => Shared::count(&state.refused),
            Ok((connection, _)) => {
                // Only the bare socket stays: what an idle client costs here must not limit how many there can be.
                let mut held = sockets.lock().unwrap_or_else(PoisonError::into_inner);
                held.extend(connection.into_socket());
                Shared::count(&state.opened);
            }
            Err(failure) => {
                Shared::count(&state.failed);
                let mut errors = state.errors.lock().unwrap_or_else(PoisonError::into_inner);
                *errors.entry(failure.to_string()).or_default() += 1;
            }
        }
    }
}

/// Reads away what arrived (tickets, perhaps a close_notify) up to the end, if there is one.
fn is_open(socket: &mut TcpStream) -> bool {
    let mut bytes = [0; 4096];
    // Tokio's sockets are non-blocking, and stay so.
    loop {
        match socket.read(&mut bytes) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}
