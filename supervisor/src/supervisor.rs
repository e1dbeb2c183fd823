//! The supervisor's loop: starts children, starts them again, answers operators, drains, ends.
//!
//! Owner of all process state; one task, so nothing here is shared. What is decided is decided by the pure
//! [`crate::slot::Slot`]; the files below this one carry it out.

mod addresses;
mod doors;
mod end;
mod heir;
mod inputs;
mod limits;
mod places;
mod slots;
mod upgrade;
mod views;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fleet_protocol::ids::SlotIndex;
use fleet_protocol::slot::{Gateway, SlotState, ToChild};
use fleet_protocol::upgrade::Item;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::admin::Ask;
use crate::claim::Claims;
use crate::claiming::{self, Claiming};
use crate::exit::Failure;
use crate::notify::Notify;
use crate::place::{Place, Role};
use crate::process::{Heard, Launcher};
use crate::setup::Setup;
use crate::signals::Signals;
use crate::slot::Event;
use crate::ticket_ring;
use crate::upgrade::channel::Channel;

pub(crate) use self::end::ANNOUNCE_MAX;
use self::heir::Heir;
use self::inputs::{Inputs, Senders};
use self::upgrade::Upgrade;

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
    let launcher = match Launcher::open().map_err(trouble) {
        Ok(launcher) => launcher,
        Err(failure) => return (Ending::Over, Err(failure)),
    };
    let (mut inputs, senders) = Inputs::open(signals);
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
    supervisor.live(&mut inputs).await;
    // Nobody listens any more, so the claiming task does not wait to be heard.
    drop(inputs);
    supervisor.end().await
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
            places: roles.map(|role| places::place(role, &setup)).collect(),
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
}
