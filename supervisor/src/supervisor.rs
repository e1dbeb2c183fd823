//! The supervisor's loop: starts children, starts them again, answers operators, drains, ends.
//!
//! Owner of all process state; one task, so nothing here is shared. What is decided is decided by the pure
//! [`crate::slot::Slot`]; this file carries it out.

mod addresses;
mod end;
mod heir;
mod limits;
mod slots;
mod upgrade;

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fleet_protocol::admin::{Reply, Request, Status};
use fleet_protocol::ids::SlotIndex;
use fleet_protocol::limits::STATS_INTERVAL;
use fleet_protocol::slot::{FromChild, Gateway, SlotState, ToChild};
use fleet_protocol::upgrade::{FromNew, Item};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep_until};

use crate::addresses::Given;
use crate::admin::{self, Ask};
use crate::claim::Claims;
use crate::claiming::{self, Claiming};
use crate::exit::Failure;
use crate::notify::Notify;
use crate::place::{Place, Role};
use crate::process::{Heard, Launcher, News};
use crate::setup::Setup;
use crate::signals::Signals;
use crate::slot::{Action, Event};
use crate::ticket_ring;
use crate::upgrade::channel::Channel;
use crate::vacancy::Vacancy;

pub(crate) use self::end::ANNOUNCE_MAX;
use self::heir::Heir;
use self::upgrade::Upgrade;

const HEARD_MAX: usize = 1024;
const ASKS_MAX: usize = 16;
const CLAIMS_MAX: usize = 1024;
/// Workers wait this long for control's first word, so that a server which cannot serve takes no agents.
const CONTROL_FIRST: Duration = Duration::from_secs(5);
/// The banner is printed by then, even if something is still starting.
const BANNER_BY: Duration = Duration::from_secs(10);

/// How a supervisor's life begins.
pub(crate) enum Beginning {
    /// By itself, with what it has claimed.
    Start(Claims),
    /// Beside an old one.
    Upgrade(Box<(Channel, Heritage)>),
}

/// What the old supervisor has told, beside what is in the setup.
#[derive(Debug)]
pub(crate) struct Heritage {
    /// Its control process.
    pub(crate) control_pid: Option<u32>,
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The server has ended.
    Over,
    /// Another supervisor has what this one had.
    NotOurs,
}

/// Runs until drained. Must be called within a runtime.
pub(crate) async fn run(
    setup: Setup,
    signals: Signals,
    beginning: Beginning,
) -> (Ending, Result<(), Failure>) {
    let trouble = |error: std::io::Error| Failure::fatal(format!("cannot start: {error}"));
    let (heard_sender, heard) = mpsc::channel(HEARD_MAX);
    let (asks_sender, asks) = mpsc::channel(ASKS_MAX);
    let (claims_sender, claimed) = mpsc::channel(CLAIMS_MAX);
    let launcher = match Launcher::open().map_err(trouble) {
        Ok(launcher) => launcher,
        Err(failure) => return (Ending::Over, Err(failure)),
    };
    let senders = Senders {
        heard: heard_sender,
        asks: asks_sender,
        claims: claims_sender,
    };
    let mut supervisor = Supervisor::new(setup, launcher, senders);
    match beginning {
        Beginning::Start(claims) => {
            supervisor.claiming = Claiming::start(claims, supervisor.claims_heard.clone());
            if let Err(failure) = supervisor.open_doors() {
                supervisor.claiming.end().await;
                return (Ending::Over, Err(failure));
            }
        }
        Beginning::Upgrade(of) => {
            let (channel, heritage) = *of;
            supervisor.workers_from = Duration::ZERO;
            supervisor.upgrade = Upgrade::Taking(Box::new(Heir::new(channel, heritage)));
        }
    }
    let mut inputs = Inputs {
        heard,
        asks,
        claimed,
        signals,
        claims_heard: Vec::new(),
        ticks: interval(STATS_INTERVAL),
    };
    inputs
        .ticks
        .set_missed_tick_behavior(MissedTickBehavior::Delay);
    supervisor.live(&mut inputs).await;
    // Nobody listens any more, so the claiming task does not wait to be heard.
    drop(inputs);
    supervisor.end().await
}

/// The ends that tasks send to.
struct Senders {
    heard: mpsc::Sender<Heard>,
    asks: mpsc::Sender<Ask>,
    claims: mpsc::Sender<claiming::News>,
}

/// What the loop listens to.
struct Inputs {
    heard: mpsc::Receiver<Heard>,
    asks: mpsc::Receiver<Ask>,
    claimed: mpsc::Receiver<claiming::News>,
    claims_heard: Vec<claiming::News>,
    signals: Signals,
    ticks: Interval,
}

impl Supervisor {
    /// The loop. Returns when everything is over.
    async fn live(&mut self, inputs: &mut Inputs) {
        let Inputs {
            heard,
            asks,
            claimed,
            claims_heard,
            signals,
            ticks,
        } = inputs;
        let supervisor = self;
        loop {
            supervisor.turn();
            if supervisor.is_over() {
                return;
            }
            let due = supervisor.started + supervisor.due_at();
            tokio::select! {
                Some(heard) = heard.recv() => supervisor.hear(heard),
                Some(ask) = asks.recv() => supervisor.answer(ask),
                peer = supervisor.upgrade.hear() => supervisor.hear_peer(peer),
                _ = claimed.recv_many(claims_heard, CLAIMS_MAX), if !claimed.is_closed() => {
                    supervisor.hear_claims(claims_heard.drain(..));
                }
                _ = signals.terminate.recv() => supervisor.take_signal("SIGTERM"),
                _ = signals.interrupt.recv() => supervisor.take_signal("SIGINT"),
                _ = signals.hang_up.recv() => supervisor.take_hang_up(),
                _ = ticks.tick() => supervisor.tick(),
                () = sleep_until(due.into()) => {}
            }
        }
    }

    /// Lets go of everything.
    async fn end(self) -> (Ending, Result<(), Failure>) {
        let Self {
            claiming,
            failure,
            upgrade,
            ..
        } = self;
        match upgrade {
            Upgrade::Refused(failure) => (Ending::NotOurs, Err(failure)),
            Upgrade::Given(_) => (Ending::NotOurs, failure.map_or(Ok(()), Err)),
            _ => {
                claiming.end().await;
                (Ending::Over, failure.map_or(Ok(()), Err))
            }
        }
    }

    /// Answers operators, and tells the world where agents may go.
    fn open_doors(&mut self) -> Result<(), Failure> {
        let trouble = |error: std::io::Error| Failure::fatal(format!("cannot start: {error}"));
        let listener = self.setup.local.admin().map_err(trouble)?;
        let asks = self.asks.clone();
        let admin = tokio::spawn(async move {
            if let Err(error) = admin::serve(listener, asks).await {
                tracing::error!(%error, "the admin socket is lost; status and stop do not work");
            }
        });
        self.admin = Some(admin.abort_handle());
        if let Some(spread) = self.setup.spread.take() {
            self.spread_items = spread.items().map_err(trouble)?;
            self.spread_tasks = spread.run(&self.gateway.subscribe());
        }
        Ok(())
    }
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Those who spread agents are told; agents who come all the same are served.
    Announced,
    /// Workers finish; control still works for them.
    Workers,
    /// Control writes down what it has.
    Control,
}

struct Supervisor {
    setup: Setup,
    launcher: Launcher,
    claiming: Claiming,
    heard: mpsc::Sender<Heard>,
    asks: mpsc::Sender<Ask>,
    claims_heard: mpsc::Sender<claiming::News>,
    /// Serves operators.
    admin: Option<AbortHandle>,
    /// Tell the world where agents may go.
    spread_tasks: JoinSet<()>,
    /// Their sockets, to hand over.
    spread_items: Vec<(Item, OwnedFd)>,
    notify: Notify,
    /// Systemd has heard that we are ready.
    is_announced: bool,
    upgrade: Upgrade,
    /// A control process that is not ours and must end before ours begins, at the latest then.
    stranger: Option<(u32, Duration)>,
    started: Instant,
    /// Control first, then the slots in order.
    places: Vec<Place>,
    phase: Phase,
    /// When the workers begin to finish.
    announced_until: Duration,
    signals: u32,
    workers_from: Duration,
    banner: Option<String>,
    failure: Option<Failure>,
    /// Counts the reloads that processes must know of.
    reloads: u64,
    /// The last word on slots and addresses, for those who spread agents.
    gateway: watch::Sender<Arc<Gateway>>,
    /// They have not heard of a change yet.
    is_changed: bool,
    /// An operator wants agents to go elsewhere.
    is_away: bool,
    /// When to look for others who share our ports.
    meet_at: Duration,
}

impl Supervisor {
    fn new(mut setup: Setup, launcher: Launcher, senders: Senders) -> Self {
        let Senders {
            heard,
            asks,
            claims,
        } = senders;
        let workers = (0..setup.workers).map(|slot| Role::Worker(SlotIndex(slot)));
        let roles = std::iter::once(Role::Control).chain(workers);
        Self {
            banner: setup.banner.take(),
            places: roles.map(|role| place(role, &setup)).collect(),
            setup,
            launcher,
            claiming: Claiming::none(),
            heard,
            asks,
            claims_heard: claims,
            admin: None,
            spread_tasks: JoinSet::new(),
            spread_items: Vec::new(),
            notify: Notify::open(),
            is_announced: false,
            upgrade: Upgrade::None,
            stranger: None,
            started: Instant::now(),
            phase: Phase::Serving,
            announced_until: Duration::ZERO,
            signals: 0,
            workers_from: CONTROL_FIRST,
            failure: None,
            reloads: 0,
            gateway: watch::Sender::default(),
            is_changed: false,
            is_away: false,
            meet_at: Duration::ZERO,
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// When the next thing is due, since the start.
    fn due_at(&self) -> Duration {
        let now = self.now();
        let of = |place: &Place| match place.role {
            _ if self.is_held(place, now) => None,
            Role::Worker(_) => place.slot.due_at().map(|due| due.max(self.workers_from)),
            Role::Control => place.slot.due_at(),
        };
        let banner = self.banner.as_ref().map(|_| BANNER_BY);
        let announced = (self.phase == Phase::Announced).then_some(self.announced_until);
        let dues = self.places.iter().filter_map(of);
        let dues = dues.chain(banner).chain(announced);
        let dues = dues
            .chain(self.upgrade.due_at(now))
            .chain(self.stranger_due_at(now))
            .chain(self.notify.watchdog_due_at());
        dues.min().unwrap_or(now + Duration::from_secs(3600))
    }

    /// Does all that is due.
    fn turn(&mut self) {
        let now = self.now();
        for index in 0..self.places.len() {
            let is_held = self.places.get(index).is_some_and(|place| {
                let is_early = place.role != Role::Control
                    && now < self.workers_from
                    && self.phase == Phase::Serving;
                is_early || self.is_held(place, now)
            });
            if !is_held {
                self.step(index, Event::Timer);
            }
        }
        self.forget_stranger(now);
        self.advance_upgrade(now);
        self.advance_end(now);
        self.tend_slots(now);
        self.steer();
        self.notify.feed_watchdog(now);
        let is_settled = self.places.iter().all(Place::is_settled);
        if (is_settled || now >= BANNER_BY) && self.phase == Phase::Serving {
            self.print_banner(is_settled);
            self.announce();
        }
        if std::mem::take(&mut self.is_changed) {
            self.tend_limits();
            self.publish();
        }
    }

    fn print_banner(&mut self, is_settled: bool) {
        if let Some(banner) = self.banner.take() {
            if !is_settled {
                tracing::warn!("not everything is ready yet; `status` shows what is missing");
            }
            let mut out = std::io::stdout().lock();
            // A closed standard output is no reason to stop serving.
            let _ = out.write_all(banner.as_bytes()).and_then(|()| out.flush());
        }
    }

    /// Tells systemd once that we serve.
    fn announce(&mut self) {
        if !self.is_announced && self.upgrade.is_none() {
            self.is_announced = true;
            self.notify.ready();
        }
    }

    fn workers(&self) -> impl Iterator<Item = &Place> {
        self.places
            .iter()
            .filter(|place| place.role != Role::Control)
    }

    fn is_over(&self) -> bool {
        let is_refused = matches!(self.upgrade, Upgrade::Refused(_));
        let is_ended =
            self.phase == Phase::Control && self.places.iter().all(|place| place.slot.is_over());
        is_refused || is_ended && self.may_end()
    }

    /// Gives a place an event and carries out what follows.
    fn step(&mut self, index: usize, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let now = self.now();
            let Some(place) = self.places.get_mut(index) else {
                return;
            };
            let name = place.role.name();
            let was = place.slot.state();
            let action = place.slot.step(event, now, fastrand::f64());
            self.is_changed |= place.slot.state() != was;
            match action {
                Action::None | Action::Drain => {}
                Action::Launch => next = Some(self.launch(index)),
                Action::Abort { reason } => {
                    tracing::error!(
                        pid = place.slot.pid(),
                        "{name} stands still and is ended: {reason}"
                    );
                    place.abort();
                }
                Action::Kill => {
                    tracing::warn!(
                        pid = place.slot.pid(),
                        "{name} has not finished in time and is killed"
                    );
                    place.kill();
                }
                Action::Park { reason } => {
                    let cool_down = place.slot.due_at().unwrap_or_default().saturating_sub(now);
                    tracing::error!(
                        "{name} is out of service, and tried again in {} s or at a reload: {reason}",
                        cool_down.as_secs()
                    );
                    self.park(&reason);
                }
                Action::End { reason } => self.fail(Failure::fatal(reason)),
            }
        }
    }

    fn launch(&mut self, index: usize) -> Event {
        self.occupy(index);
        let Some(place) = self.places.get_mut(index) else {
            return Event::Timer;
        };
        let role = place.role;
        let id = place.next_id(index);
        let mut given = Given::new();
        let started = self.setup.first_message(role).and_then(|(first, keep)| {
            if let ToChild::StartWorker(start) = &first {
                let listeners = start.listeners.iter();
                given.extend(listeners.map(|of| (of.address, of.balancers.clone())));
            }
            let heard = self.heard.clone();
            Ok(self
                .launcher
                .launch(id, &role.arguments(), keep, first, heard)?)
        });
        match started {
            Ok(child) => {
                let pid = child.pid;
                tracing::debug!(pid, "{} starts", role.name());
                place.adopt(child, given, self.reloads);
                if role == Role::Control {
                    self.tell_predecessor(&FromNew::ControlStarted { pid });
                }
                Event::Launched { pid }
            }
            Err(error) => {
                let reason = format!("{error:#}");
                tracing::error!("{} cannot be started: {reason}", role.name());
                Event::LaunchFailed { reason }
            }
        }
    }

    /// Ends a server of which no part can serve.
    fn park(&mut self, reason: &str) {
        let failure = Failure::fatal(format!("a worker cannot serve: {reason}"));
        if self.refuse_upgrade(failure) {
            return;
        }
        let is_useless = self
            .workers()
            .all(|place| place.slot.state() == SlotState::Parked && !place.slot.was_ever_ready());
        if is_useless {
            self.fail(Failure::fatal(format!("no worker can serve: {reason}")));
        }
    }

    fn hear(&mut self, heard: Heard) {
        let Heard { id, news } = heard;
        let now = self.now();
        let Some(place) = self.places.get_mut(id.place) else {
            return;
        };
        if !place.is_current(id) {
            return;
        }
        if matches!(news, News::Said(_)) {
            place.slot.step(Event::Report, now, 0.0);
        }
        match news {
            News::Said(said) => match place.take_report(said, now) {
                Some(FromChild::Ready { .. }) => {
                    let uptime_ms = place.slot.uptime(now).as_millis();
                    tracing::info!(
                        pid = place.slot.pid(),
                        "{} is ready after {uptime_ms} ms",
                        place.role.name()
                    );
                    let said = match place.role {
                        Role::Control => FromNew::ControlReady,
                        Role::Worker(SlotIndex(slot)) => FromNew::SlotReady { slot },
                    };
                    if place.role == Role::Control {
                        self.workers_from = Duration::ZERO;
                    }
                    self.tell_predecessor(&said);
                    self.step(id.place, Event::Ready);
                    self.update_listeners();
                    self.tell_reloads();
                }
                Some(FromChild::Fatal { reason }) => self.step(id.place, Event::Fatal { reason }),
                _ => {}
            },
            News::Exited { code, how } => self.bury(id.place, code, how),
        }
    }

    fn bury(&mut self, index: usize, code: Option<i32>, how: String) {
        let now = self.now();
        let Some(place) = self.places.get_mut(index) else {
            return;
        };
        let (name, pid) = (place.role.name(), place.slot.pid());
        self.setup.addresses.keep(place.report());
        place.bury();
        self.step(
            index,
            Event::Exited {
                code,
                how: how.clone(),
            },
        );
        let slot = self.places.get(index).map(|place| &place.slot);
        match slot.map(|slot| (slot.state(), slot.due_at())) {
            Some((SlotState::Backoff, Some(due))) => {
                let delay_ms = due.saturating_sub(now).as_millis();
                tracing::warn!(pid, "{name} ended ({how}); another starts in {delay_ms} ms");
            }
            _ => tracing::info!(pid, "{name} ended ({how})"),
        }
    }

    fn answer(&mut self, ask: Ask) {
        let reply = match ask.request {
            Request::Upgrade { binary } => return self.begin_upgrade(binary, ask.reply),
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::Stop => {
                if self.phase == Phase::Serving {
                    tracing::info!("an operator asks to stop");
                    self.cancel_upgrade("the server is asked to stop");
                    self.begin_drain();
                }
                Reply::Stopping {
                    pid: std::process::id(),
                }
            }
            Request::Drain(what) => match self.drain(what) {
                Ok(text) => Reply::Draining { text },
                Err(failure) => Reply::Error {
                    reason: failure.to_string(),
                    code: failure.code(),
                },
            },
            Request::Reload => match self.reload() {
                Ok(reloaded) => Reply::Reloaded(reloaded),
                Err(failure) => Reply::Error {
                    reason: failure.to_string(),
                    code: failure.code(),
                },
            },
        };
        // The asker may have gone.
        let _ = ask.reply.try_send(reply);
    }

    fn tick(&mut self) {
        let now = self.now();
        self.beat();
        if now >= self.meet_at && self.upgrade.is_none() {
            self.meet();
        }
        self.tend_addresses();
        self.tell_reloads();
        self.tend_limits();
        // While two supervisors are at it, certificates and keys stay as they were handed over.
        if self.upgrade.is_none() {
            self.tend_certificates();
            self.tend_tickets(now);
        }
        self.tell_status();
        let reports = self.places.iter().map(Place::report);
        self.setup.addresses.count(reports, now);
        let gateway = self.publish();
        if let Some(control) = self.places.first()
            && matches!(control.slot.state(), SlotState::Ready | SlotState::Draining)
        {
            // A control process that does not read is told again in a second.
            control.tell(ToChild::Gateway(Box::new(gateway)));
        }
    }

    /// Changes the keys of session tickets when it is time. A worker that cannot be told has the key that seals now as its
    /// next one, and is told again a period later.
    fn tend_tickets(&mut self, now: Duration) {
        let Some(keys) = self.setup.tickets.turn(now, ticket_ring::random_key) else {
            return;
        };
        for place in &self.places {
            if place.role != Role::Control {
                place.tell(ToChild::Tickets(keys.clone()));
            }
        }
    }

    /// Tells those who spread agents, and gives what it told.
    fn publish(&self) -> Gateway {
        let gateway = self.gateway();
        self.gateway.send_replace(Arc::new(gateway.clone()));
        gateway
    }

    fn is_draining(&self) -> bool {
        self.phase != Phase::Serving || self.is_away
    }

    fn tell_status(&mut self) {
        let ready = |place: &&Place| place.slot.state() == SlotState::Ready;
        let (ready, all) = (self.workers().filter(ready).count(), self.setup.workers);
        let control = self.places.first().map(|place| place.slot.state().label());
        let what = match (&self.upgrade, self.phase) {
            (Upgrade::None, Phase::Serving) => "serves",
            (Upgrade::None, _) => "is stopping",
            _ => "is being upgraded",
        };
        self.notify.status(format!(
            "{what}: {ready} of {all} workers ready, control {}",
            control.unwrap_or_default()
        ));
    }

    fn gateway(&self) -> Gateway {
        let now = self.now();
        Gateway {
            slots: self
                .places
                .iter()
                .filter_map(|place| place.slot_view(now))
                .collect(),
            control_restarts: self.places.first().map_or(0, |place| place.slot.restarts()),
            control_hangs: self.places.first().map_or(0, |place| place.slot.hangs()),
            is_draining: self.is_draining(),
            addresses: self.setup.addresses.views(),
            settings: self.setup.settings.clone(),
            sandboxes: self.places.iter().filter_map(Place::sandbox_view).collect(),
            certificates: self.setup.renewal.credentials.views.clone(),
            certificate_trouble: self.setup.renewal.trouble.clone(),
        }
    }

    fn status(&self) -> Status {
        let now = self.now();
        let control = self.places.first().map(|place| place.control_view(now));
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_s: now.as_secs(),
            is_draining: self.is_draining(),
            addresses: self.setup.urls(),
            state_dir: self.setup.state.path().display().to_string(),
            gateway: self.gateway(),
            control: control.unwrap_or_else(|| Place::new(Role::Control).control_view(now)),
        }
    }
}

/// A place whose first process is due. A slot that does not listen does so when it is.
fn place(role: Role, setup: &Setup) -> Place {
    let mut place = Place::new(role);
    if let Role::Worker(SlotIndex(slot)) = role
        && !setup.addresses.is_open(slot)
    {
        let since = Duration::ZERO;
        place.vacancy = Some(Vacancy::Shut { since });
    }
    place
}
