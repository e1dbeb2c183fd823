//! What the worker's tasks share. Single-threaded: `Rc` outside, cells inside, no borrow held over an await.
//!
//! Owner of the tables that answers come from and of the requests that wait for control. Only `link` removes what it
//! sends; only `exchange` adds.

use std::cell::{Cell, RefCell};
use std::hash::RandomState;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use fleet_protocol::agent::{Answer, Request, Route};
use fleet_protocol::config::Config;
use fleet_protocol::feed::{Change, Feed, Host, Load};
use fleet_protocol::frame::MESSAGE_BYTES_MAX;
use fleet_protocol::ids::{
    BootNonce, Generation, HostId, NodeKeyHash, RequestId, SlotIndex, UnixSeconds,
};
use fleet_protocol::limits::{self, Allowed};
use fleet_protocol::reject::Reject;
use fleet_protocol::slot::StartWorker;
use fleet_protocol::stats::{Shed, WorkerStats};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant as TokioInstant, timeout_at};

use crate::admission::Gate;
use crate::feed::{Table, read_called};
use crate::holds::{Holds, IdleRead};
use crate::latest_key::LatestKey;
use crate::negative::Negative;
use crate::seen::Seen;
use crate::waiting::{Claim, Completed, Refusal, Waiting};

/// From the end of a request to the answer that control gives. Leaves time for handshake, upload and answer within
/// the agent's 16 s.
pub(crate) const CONTROL_DEADLINE: Duration = Duration::from_secs(14);
/// Bytes of one request on its way to control: what a message may hold, less its frame and neighbours.
pub(crate) const REQUEST_BYTES_MAX: usize = MESSAGE_BYTES_MAX - (4 << 20);
/// Bytes of requests that wait for a lookup of their key; beyond, a request is refused.
const PARKED_BYTES_MAX: usize = 64 << 20;
/// Longest time between two rounds of seen marks.
const SEEN_INTERVAL_MAX: Duration = Duration::from_secs(10);

/// The worker's memory.
pub(crate) struct State {
    /// Random number of this process; goes into `FromChild::Ready`.
    pub(crate) boot: BootNonce,
    pub(crate) slot: SlotIndex,
    pub(crate) generation: Generation,
    pub(crate) link_path: PathBuf,
    pub(crate) body_limits: BodyLimits,
    pub(crate) seen_interval: Duration,
    /// Counters; each task adds its own. Gauges are filled in by [`crate::stats::report`].
    pub(crate) stats: RefCell<WorkerStats>,
    pub(crate) table: RefCell<Table>,
    pub(crate) negative: RefCell<Negative>,
    pub(crate) seen: RefCell<Seen>,
    pub(crate) waiting: RefCell<Waiting>,
    latest_key: RefCell<LatestKey>,
    pub(crate) holds: Rc<RefCell<Holds>>,
    pub(crate) gate: Rc<RefCell<Gate>>,
    /// Longest time that a read with nothing due is held; zero is never.
    pub(crate) distributed_hold: Duration,
    /// Something was queued.
    pub(crate) wake: Notify,
    parked_bytes: Cell<usize>,
    /// One moment on both clocks; the link sets it anew each second, because the wall clock is corrected at times.
    clock: Cell<(Instant, Duration)>,
    me: Weak<Self>,
}

/// Bytes of a body on the wire, by route.
pub(crate) struct BodyLimits([usize; Route::ALL.len()]);

impl BodyLimits {
    fn new(config: &Config) -> Self {
        Self(Route::ALL.map(|route| {
            let configured = match route {
                Route::Enroll => return limits::ENROLL_BODY_BYTES_MAX,
                Route::Config | Route::Read => return limits::SMALL_BODY_BYTES_MAX,
                Route::CarveBegin => return limits::CARVE_BEGIN_BODY_BYTES_MAX,
                Route::Write => config.osquery.write_body_bytes_max(),
                Route::Log => config.osquery.log_body_bytes_max(),
                Route::CarveBlock => config.carver.block_body_bytes_max(),
            };
            usize::try_from(configured).map_or(REQUEST_BYTES_MAX, |max| max.min(REQUEST_BYTES_MAX))
        }))
    }

    /// On the wire.
    pub(crate) fn of(&self, route: Route) -> usize {
        self.0.get(route.index()).copied().unwrap_or(0)
    }

    /// After inflating, and of what is made of the body.
    pub(crate) fn inflated(&self, route: Route) -> usize {
        let inflated = self.of(route).saturating_mul(limits::INFLATED_RATIO_MAX);
        inflated.min(REQUEST_BYTES_MAX)
    }
}

impl State {
    /// Nothing known yet.
    pub(crate) fn new(start: &StartWorker) -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            boot: random_nonce(),
            slot: start.slot,
            generation: start.generation,
            link_path: start.link_path.clone(),
            body_limits: BodyLimits::new(&start.config),
            seen_interval: start
                .config
                .osquery
                .seen_interval
                .clamp(Duration::from_secs(1), SEEN_INTERVAL_MAX),
            stats: RefCell::default(),
            table: RefCell::default(),
            negative: RefCell::default(),
            seen: RefCell::default(),
            waiting: RefCell::new(Waiting::new()),
            latest_key: RefCell::default(),
            holds: Rc::default(),
            gate: Rc::new(RefCell::new(gate(&start.config))),
            distributed_hold: start.config.osquery.distributed_hold,
            wake: Notify::new(),
            parked_bytes: Cell::new(0),
            clock: Cell::new((Instant::now(), since_1970())),
            me: me.clone(),
        })
    }

    /// The hash under which the node key of a request is known.
    pub(crate) fn hash(&self, node_key: &str) -> NodeKeyHash {
        let mut latest = self.latest_key.borrow_mut();
        latest.hash(node_key.as_bytes(), hash_bytes)
    }

    /// A handle that outlives the caller's borrow. `None` only while the state is being dropped.
    pub(crate) fn handle(&self) -> Option<Rc<Self>> {
        self.me.upgrade()
    }

    /// Counts a refusal, and the loss if it is one.
    pub(crate) fn count_reject(&self, route: Option<Route>, reject: Reject) {
        let mut stats = self.stats.borrow_mut();
        if let Some(count) = stats.rejects.get_mut(reject.index()) {
            *count += 1;
        }
        if reject.is_loss_on(route) {
            stats.lost_requests += 1;
        }
    }

    /// Counts a message from control that made no sense.
    pub(crate) fn count_oddity(&self) {
        self.stats.borrow_mut().link_oddities += 1;
    }

    /// The wall clock at `now`.
    pub(crate) fn unix_seconds(&self, now: Instant) -> UnixSeconds {
        let (at, since_1970) = self.clock.get();
        let seconds = (since_1970 + now.saturating_duration_since(at)).as_secs();
        UnixSeconds(u32::try_from(seconds).unwrap_or(u32::MAX))
    }

    /// Follows corrections of the wall clock.
    pub(crate) fn set_clock(&self) {
        self.clock.set((Instant::now(), since_1970()));
    }

    /// Queues a request for control.
    pub(crate) fn ask(&self, request: Request, now: Instant) -> Result<Ticket, Reject> {
        let claimed = self.waiting.borrow_mut().ask(request, now);
        self.ticket(claimed, now)
    }

    /// Asks control whose key this is, together with everybody else who asks the same.
    pub(crate) fn look_up(&self, key: NodeKeyHash, now: Instant) -> Result<Ticket, Reject> {
        let claimed = self.waiting.borrow_mut().look_up(key, now);
        self.ticket(claimed, now)
    }

    /// Refuses because of what waits already.
    pub(crate) fn busy(&self, shed: Shed) -> Reject {
        self.gate.borrow_mut().count(shed);
        Reject::Busy
    }

    fn ticket(
        &self,
        claimed: Result<(Claim, oneshot::Receiver<Answer>), Refusal>,
        now: Instant,
    ) -> Result<Ticket, Reject> {
        let (claim, answer) = claimed.map_err(|refusal| self.busy(refusal.into()))?;
        self.wake.notify_one();
        Ok(Ticket {
            state: self.handle().ok_or(Reject::Draining)?,
            claim,
            answer,
            deadline: now + CONTROL_DEADLINE,
        })
    }

    /// Makes room for the content of a request that waits for a lookup.
    pub(crate) fn park(&self, bytes: usize) -> Result<Parked, Reject> {
        let parked = self.parked_bytes.get().saturating_add(bytes);
        if parked > PARKED_BYTES_MAX {
            return Err(self.busy(Shed::LookupFull));
        }
        self.parked_bytes.set(parked);
        Ok(Parked {
            state: self.me.clone(),
            bytes,
        })
    }

    /// The host of a read, unless it has another key by now.
    pub(crate) fn host_of(&self, read: &IdleRead) -> Option<Host> {
        let host = self.table.borrow().host_by_id(read.host());
        host.filter(|host| read.is_of(host))
    }

    /// Takes a piece of the feed, which may make keys valid and work due.
    pub(crate) fn take_feed(&self, feed: Feed) {
        let is_new_table = matches!(feed.load, Load::Whole | Load::End);
        let holds = self.holds.borrow();
        let mut negative = self.negative.borrow_mut();
        let mut is_readable = true;
        let applied = self.table.borrow_mut().apply(feed, |change| match change {
            Change::Host(host) => {
                negative.remove(&host.key);
                holds.wake(host.id);
            }
            Change::WorkDue { host, .. } => holds.wake(*host),
            Change::Called { hosts, .. } => match read_called(hosts) {
                Some(hosts) => hosts.iter().for_each(|host| holds.wake(HostId(host))),
                None => is_readable = false,
            },
            Change::Answer { .. } | Change::DropAnswer(_) | Change::Forget(_) => {}
        });
        if applied.is_err() || !is_readable {
            self.count_oddity();
        } else if is_new_table {
            holds.wake_all();
        }
    }

    /// Takes control's answer to one request: what it tells of hosts is remembered, and whoever waits hears it.
    pub(crate) fn complete(&self, id: RequestId, answer: Answer, now: Instant) -> Completed {
        let key = self.waiting.borrow().lookup_key(id);
        let answer = match (key, answer) {
            (Some(key), answer) => self.looked_up(key, answer, now),
            (None, Answer::Enrolled { node_key, host }) => {
                self.know(host);
                Answer::Enrolled { node_key, host }
            }
            (None, Answer::Host(Some(host))) => {
                self.know(host);
                Answer::Host(Some(host))
            }
            (None, answer) => answer,
        };
        self.waiting.borrow_mut().complete(id, answer)
    }

    fn looked_up(&self, key: NodeKeyHash, answer: Answer, now: Instant) -> Answer {
        match answer {
            Answer::Host(Some(host)) if host.key == key => {
                self.know(host);
                Answer::Host(Some(host))
            }
            Answer::Host(None) => {
                // The feed may have brought the host while control was looking.
                let host = self.table.borrow().host(&key);
                if host.is_none() {
                    self.negative.borrow_mut().insert(key, now);
                }
                Answer::Host(host)
            }
            Answer::Refused(reject) => Answer::Refused(reject),
            _ => {
                self.count_oddity();
                Answer::Refused(Reject::Internal)
            }
        }
    }

    fn know(&self, host: Host) {
        self.negative.borrow_mut().remove(&host.key);
        self.table.borrow_mut().insert_host(host);
        self.holds.borrow().wake(host.id);
    }
}

/// With the share of one slot of as many as the configuration says; the supervisor tells how many really serve.
fn gate(config: &Config) -> Gate {
    let workers = config.workers.count.max(1);
    let share = Allowed::of(config, workers).share(workers);
    Gate::new(share, RandomState::new(), Instant::now())
}

/// A request that waits. Dropping it cancels the request.
pub(crate) struct Ticket {
    state: Rc<State>,
    claim: Claim,
    answer: oneshot::Receiver<Answer>,
    deadline: Instant,
}

impl Ticket {
    /// The same deadline as another ticket's: one exchange has one.
    pub(crate) fn with_deadline(mut self, deadline: Instant) -> Self {
        self.deadline = deadline;
        self
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Control's answer, or the refusal when none comes in time.
    pub(crate) async fn answer(mut self) -> Answer {
        let deadline = TokioInstant::from_std(self.deadline);
        match timeout_at(deadline, &mut self.answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Answer::Refused(Reject::Internal),
            Err(_) if self.state.stats.borrow().is_linked => {
                Answer::Refused(Reject::DeadlineExceeded)
            }
            Err(_) => Answer::Refused(Reject::ControlUnavailable),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.state.waiting.borrow_mut().cancel(self.claim);
    }
}

/// Room taken by [`State::park`]; dropping it gives it back.
pub(crate) struct Parked {
    state: Weak<State>,
    bytes: usize,
}

impl Drop for Parked {
    fn drop(&mut self) {
        if let Some(state) = self.state.upgrade() {
            let parked = state.parked_bytes.get().saturating_sub(self.bytes);
            state.parked_bytes.set(parked);
        }
    }
}

/// The hash of a node key, for tests of other files.
#[cfg(test)]
pub(crate) fn hash_node_key(node_key: &str) -> NodeKeyHash {
    hash_bytes(node_key.as_bytes())
}

fn hash_bytes(bytes: &[u8]) -> NodeKeyHash {
    let digest = digest::digest(&digest::SHA256, bytes);
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    NodeKeyHash(hash)
}

fn random_nonce() -> BootNonce {
    let mut bytes = [0; 8];
    if SystemRandom::new().fill(&mut bytes).is_err() {
        // No randomness would also mean no TLS; time and process id still tell two lives apart.
        let life = since_1970().as_nanos() ^ u128::from(std::process::id());
        bytes = life.to_le_bytes().first_chunk().copied().unwrap_or(bytes);
    }
    BootNonce(u64::from_le_bytes(bytes))
}

fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// A worker's state without a supervisor, for tests of other files.
#[cfg(test)]
pub(crate) fn test_state(link_path: PathBuf) -> Rc<State> {
    State::new(&StartWorker {
        slot: SlotIndex(0),
        generation: Generation(0),
        cpu: None,
        listeners: Vec::new(),
        tls: None,
        link_path,
        tunnel_path: PathBuf::new(),
        config: Config::default(),
        confine: fleet_protocol::sandbox::Confine::default(),
    })
}
