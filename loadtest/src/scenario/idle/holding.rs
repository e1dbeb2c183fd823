//! One lane of `idle`: opens its share, holds it, uses the active ones, and notices what is dropped.

use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use fleet_protocol::agent::Route;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::crowd;
use super::super::lane::{Shared, TICK};
use super::super::tally::as_u64;
use super::Plan;
use crate::agent::{Exchange, NoObserver, Observer as _};
use crate::bodies;
use crate::client::{DEADLINE, Dialer};
use crate::connection::{Connection, is_open};
use crate::host::{Host, Release};
use crate::http::{Request, Response};
use crate::target::Target;
use crate::verdict::{self, Failure};

/// Between two looks at a part of the held sockets.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Looks after which every socket has been looked at: with a million of them, 50,000 a second.
const LOOKS_PER_ROUND: usize = 100;
/// How late an active connection may notice the end of the run.
const END_INTERVAL: Duration = Duration::from_secs(1);

/// What a lane holds. Invariant: an inactive connection is a bare descriptor, known to no runtime.
#[derive(Default)]
struct Holding {
    sockets: Vec<TcpStream>,
    /// With their numbers.
    active: Vec<(Connection, u32)>,
}

/// A lane's share while it is being opened.
struct Share {
    plan: Arc<Plan>,
    dialer: Arc<Dialer>,
    lane: usize,
    keys: Vec<String>,
    /// Counts the connections of this lane.
    next: AtomicU32,
    begin: Instant,
    holding: Mutex<Holding>,
}

/// Opens the lane's share and holds it until told to stop; gives how many are still open then.
pub(super) async fn hold(plan: Arc<Plan>, lane: usize) -> anyhow::Result<u64> {
    let shared = plan.recorder.shared.clone();
    let dialer = Arc::new(plan.stage.dialer(&shared)?);
    let keys = keys(&plan, &dialer, lane).await?;
    Shared::count(&plan.counts.prepared);
    while !plan.counts.may_open.load(Ordering::Relaxed) && !shared.is_stopped() {
        tokio::time::sleep(TICK).await;
    }
    let share = Arc::new(Share {
        dialer,
        lane,
        keys,
        next: AtomicU32::new(0),
        begin: Instant::now(),
        holding: Mutex::default(),
        plan,
    });
    let mut tasks = Vec::new();
    for _ in 0..share.plan.options.concurrency {
        tasks.push(tokio::spawn(open(share.clone())));
    }
    for task in tasks {
        task.await?;
    }
    let Holding {
        mut sockets,
        active,
    } = share.take();
    // The hold begins when every lane is through.
    while shared.marks.begin_of(1).is_none() && !shared.is_stopped() {
        tokio::time::sleep(TICK).await;
    }
    let users: Vec<_> = active
        .into_iter()
        .map(|(connection, number)| tokio::spawn(make_requests(share.clone(), connection, number)))
        .collect();
    let mut looks = 0;
    while !shared.is_stopped() {
        tokio::time::sleep(LOOK_INTERVAL).await;
        looks += 1;
        share.drop_closed(&mut sockets, |place| {
            place % LOOKS_PER_ROUND == looks % LOOKS_PER_ROUND
        });
    }
    share.drop_closed(&mut sockets, |_| true);
    let mut open = as_u64(sockets.len());
    for user in users {
        open += u64::from(user.await?);
    }
    Ok(open)
}

/// Enrolls the hosts behind this lane's connections.
async fn keys(plan: &Plan, dialer: &Arc<Dialer>, lane: usize) -> anyhow::Result<Vec<String>> {
    let hosts = plan.options.hosts;
    let first = u32::try_from(lane).unwrap_or(0).saturating_mul(hosts);
    let mut keys = Vec::new();
    for index in first..first.saturating_add(hosts) {
        let host = Host::new(plan.options.common.seed, index).with_release(Release::NEWEST);
        let agent = plan.stage.agent(host, dialer, Arc::new(NoObserver))?;
        crowd::prepare(&agent).await?;
        crowd::read_until_nothing_is_due(&agent).await?;
        agent.close().await;
        keys.push(agent.node_key());
    }
    Ok(keys)
}

impl Share {
    fn take(&self) -> Holding {
        let mut holding = self.holding.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *holding)
    }

    /// When the `count`-th connection of this lane may begin.
    fn opening_at(&self, count: u32) -> Instant {
        let lanes = u32::try_from(self.plan.stage.lanes).unwrap_or(u32::MAX);
        match self.plan.options.opening_rate {
            0 => self.begin,
            rate => {
                let seconds = f64::from(count) * f64::from(lanes) / f64::from(rate);
                self.begin + Duration::from_secs_f64(seconds)
            }
        }
    }

    /// The read that the connection with this number makes, and where.
    fn request(&self, number: u32) -> anyhow::Result<(Request, Arc<Target>)> {
        let stage = &self.plan.stage;
        let target = stage.target(number)?.clone();
        let count = usize::try_from(number).unwrap_or(0) / stage.lanes.max(1);
        let key = count
            .checked_rem(self.keys.len())
            .and_then(|place| self.keys.get(place))
            .context("no host is enrolled")?;
        let path = stage.settings.paths.of(Route::Read);
        let request = Request {
            target: format!("{}{path}", target.prefix),
            user_agent: Release::NEWEST.user_agent,
            node_key: Some(key.clone()),
            is_gzip: false,
            accept_gzip: false,
            keep_alive: true,
            body: bodies::key_only(key),
        };
        Ok((request, target))
    }

    /// Looks at some of the sockets, by their place; those that the server has closed are closed here too.
    fn drop_closed(&self, sockets: &mut Vec<TcpStream>, is_looked_at: impl Fn(usize) -> bool) {
        let before = sockets.len();
        let mut place = 0;
        sockets.retain_mut(|socket| {
            place += 1;
            !is_looked_at(place) || is_open(socket)
        });
        self.forget(as_u64(before - sockets.len()));
    }

    /// Whether a connection that was active is still open after its last turn; looked at as the others are.
    fn is_kept(&self, connection: Connection) -> bool {
        let is_kept = connection
            .into_socket()
            .is_some_and(|mut socket| is_open(&mut socket));
        if !is_kept {
            self.forget(1);
        }
        is_kept
    }

    fn forget(&self, dropped: u64) {
        let shared = &self.plan.recorder.shared;
        self.plan
            .counts
            .dropped
            .fetch_add(dropped, Ordering::Relaxed);
        shared.open.fetch_sub(dropped, Ordering::Relaxed);
    }
}

/// Opens one connection after the other until none of the lane's share is left.
async fn open(share: Arc<Share>) {
    let plan = &share.plan;
    let lanes = u32::try_from(plan.stage.lanes).unwrap_or(u32::MAX);
    let lane = u32::try_from(share.lane).unwrap_or(0);
    loop {
        let count = share.next.fetch_add(1, Ordering::Relaxed);
        let number = count.saturating_mul(lanes).saturating_add(lane);
        if number >= plan.options.connections || plan.recorder.shared.is_stopped() {
            return;
        }
        sleep_until(share.opening_at(count)).await;
        let Ok((request, target)) = share.request(number) else {
            return;
        };
        let intended_at = Instant::now();
        let place = usize::try_from(number).unwrap_or(0);
        let source = plan.stage.sources.for_pair(place, plan.stage.targets.len());
        let opened = timeout(DEADLINE, async {
            let mut connection = Connection::open(&target, source, &share.dialer.tls).await?;
            let response = connection.exchange(&request, &target.host).await?;
            Ok::<_, Failure>((connection, response))
        });
        let opened = opened.await.unwrap_or(Err(Failure::Timeout));
        let (connection, exchange) = match opened {
            Ok((connection, response)) => (Some(connection), judged(Ok(response), intended_at)),
            Err(failure) => (None, judged(Err(failure), intended_at)),
        };
        plan.recorder.observe(&exchange, intended_at);
        share.keep(number, connection, &exchange);
    }
}

impl Share {
    /// Puts a connection where it belongs after its first exchange.
    fn keep(&self, number: u32, connection: Option<Connection>, exchange: &Exchange) {
        let counts = &self.plan.counts;
        let Some(connection) = connection.filter(|_| exchange.is_success()) else {
            Shared::count(&counts.failed);
            let failure = exchange.failure().map(ToString::to_string);
            counts.error(failure.unwrap_or_default());
            return;
        };
        if exchange.header("connection") == Some("close") {
            Shared::count(&counts.refused);
            return;
        }
        let mut holding = self.holding.lock().unwrap_or_else(PoisonError::into_inner);
        if self.plan.options.is_active(number) {
            holding.active.push((connection, number));
        } else {
            holding.sockets.extend(connection.into_socket());
        }
        Shared::count(&counts.opened);
        Shared::count(&self.plan.recorder.shared.open);
    }
}

fn judged(result: Result<Response, Failure>, started_at: Instant) -> Exchange {
    let (verdict, response) = match result {
        Ok(response) => (verdict::judge(&response.body), response),
        Err(failure) => (Err(failure), Response::default()),
    };
    Exchange {
        route: Route::Read,
        verdict,
        status: response.status,
        headers: response.headers,
        body: response.body,
        connections: 1,
        is_resent: false,
        waited: Duration::ZERO,
        sent_bytes: 0,
        started_at,
        ended_at: Instant::now(),
    }
}

/// Makes requests on one connection for as long as the hold lasts; whether the connection is open at its end.
async fn make_requests(share: Arc<Share>, mut connection: Connection, number: u32) -> bool {
    let (plan, shared) = (&share.plan, &share.plan.recorder.shared);
    let Some(begin) = shared.marks.begin_of(1) else {
        return share.is_kept(connection);
    };
    let end = begin + Duration::from_secs(plan.options.seconds);
    let Ok((request, target)) = share.request(number) else {
        return false;
    };
    let interval = plan.options.request_interval();
    // The golden ratio spreads any number of phases evenly.
    let mut at = begin + interval.mul_f64((f64::from(number) * 0.618_034).fract());
    while at < end && !shared.is_stopped() {
        sleep_until(at).await;
        let started_at = Instant::now();
        shared.in_flight.fetch_add(1, Ordering::Relaxed);
        let done = timeout(DEADLINE, connection.exchange(&request, &target.host));
        let result = done.await.unwrap_or(Err(Failure::Timeout));
        shared.in_flight.fetch_sub(1, Ordering::Relaxed);
        let mut exchange = judged(result, started_at);
        exchange.connections = 0;
        plan.recorder.observe(&exchange, at);
        let is_closing = exchange.header("connection") == Some("close");
        if is_closing || exchange.failure().is_some_and(Failure::is_transport) {
            share.forget(1);
            return false;
        }
        at += interval;
    }
    // It stays open until the last look at memory.
    while !shared.is_stopped() {
        tokio::time::sleep(END_INTERVAL).await;
    }
    share.is_kept(connection)
}
