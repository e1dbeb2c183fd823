//! An upgrade as the old supervisor lives it: carries out what [`Handover`] decides, and takes everything back when it
//! comes to nothing. The new supervisor's part is [`super::heir`].

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use fleet_protocol::admin::{Reply, Upgraded};
use fleet_protocol::frame::{VERSION, VERSION_MIN};
use fleet_protocol::hello::newest_common;
use fleet_protocol::ids::{Generation, SlotIndex};
use fleet_protocol::limits::DRAIN_DEADLINE;
use fleet_protocol::slot::SlotState;
use fleet_protocol::upgrade::{Estate, FromOld, ITEMS_PER_MESSAGE_MAX, Item, Prepared};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;

use super::heir::Heir;
use super::{Phase, Supervisor};
use crate::exit::{self, Failure};
use crate::place::{Place, Role};
use crate::slot::{self, Then};
use crate::upgrade::handover::{Action, Event, Handover};
use crate::upgrade::successor::{Heard, Successor};
use crate::upgrade::{is_alive, own_path};

/// What control gets to finish; agents wait meanwhile.
const CONTROL_DRAIN: Duration = Duration::from_secs(4);
/// A control process of the new build that has lost its supervisor ends by then, or is ended.
const STRANGER_LIMIT: Duration = Duration::from_secs(6);
/// Between two looks whether it has.
const STRANGER_LOOK: Duration = Duration::from_millis(20);
/// Our own control serves again by then, or the operator is told all the same.
const RETURN_LIMIT: Duration = Duration::from_secs(30);

/// Where an upgrade stands.
pub(super) enum Upgrade {
    /// There is none.
    None,
    /// We hand over.
    Giving(Box<Giving>),
    /// We handed over in vain, and wait for our own control.
    TakingBack(TakingBack),
    /// Another supervisor serves; our workers finish. The operator may not have heard yet.
    Given(mpsc::Sender<Reply>),
    /// We take over.
    Taking(Box<Heir>),
    /// We cannot take over, and have said so.
    Refused(Failure),
}

/// See [`Upgrade`].
pub(super) struct Giving {
    handover: Handover,
    successor: Successor,
    build: String,
    reply: mpsc::Sender<Reply>,
    chunks: VecDeque<(Vec<Item>, Vec<OwnedFd>)>,
}

/// See [`Upgrade`].
pub(super) struct TakingBack {
    since: Duration,
    /// The other side's control process, which must end before ours begins.
    stranger: Option<u32>,
    is_revived: bool,
    reply: mpsc::Sender<Reply>,
    failure: Failure,
}

/// What the other side of an upgrade says.
pub(super) enum PeerHeard {
    /// The new side.
    Successor(Heard),
    /// The old side; none: it is gone.
    Predecessor(Option<FromOld>),
}

impl Upgrade {
    /// Waits for the other side; for ever when there is none. Cancel-safe.
    pub(super) async fn hear(&mut self) -> PeerHeard {
        match self {
            Self::Giving(giving) => PeerHeard::Successor(giving.successor.hear().await),
            Self::Taking(heir) => PeerHeard::Predecessor(heir.hear().await),
            _ => std::future::pending().await,
        }
    }

    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// When something falls due by itself, since the start.
    pub(super) fn due_at(&self, now: Duration) -> Option<Duration> {
        match self {
            Self::Giving(giving) => giving.handover.due_at(),
            Self::TakingBack(back) if back.is_revived => Some(back.since + RETURN_LIMIT),
            Self::TakingBack(_) => Some(now + STRANGER_LOOK),
            _ => None,
        }
    }
}

impl Supervisor {
    /// Starts an upgrade; the reply comes when it is over.
    pub(super) fn begin_upgrade(&mut self, binary: Option<PathBuf>, reply: mpsc::Sender<Reply>) {
        match self.try_begin_upgrade(binary, reply.clone()) {
            Ok(giving) => {
                tracing::info!(pid = giving.successor.pid, "an upgrade begins");
                self.upgrade = Upgrade::Giving(Box::new(giving));
            }
            Err(failure) => {
                tracing::warn!("no upgrade: {failure}");
                tell(&reply, "no upgrade, nothing is changed", &failure);
            }
        }
    }

    fn try_begin_upgrade(
        &mut self,
        binary: Option<PathBuf>,
        reply: mpsc::Sender<Reply>,
    ) -> Result<Giving, Failure> {
        if self.phase != Phase::Serving {
            return Err(Failure::unavailable("the server is stopping"));
        }
        if !self.upgrade.is_none() {
            return Err(Failure::unavailable("an upgrade is under way"));
        }
        let control = self.places.first();
        if let Some(reason) = control.and_then(Place::cannot_be_replaced) {
            return Err(Failure::unavailable(format!(
                "{reason}, so a new one could not serve; try again when `status` shows all well"
            )));
        }
        if self.places.iter().any(|place| place.is_leaving) {
            return Err(Failure::unavailable(
                "a worker is being ended for good; try again when `status` shows it no more",
            ));
        }
        if self.setup.addresses.is_leaving() {
            return Err(Failure::unavailable(
                "an address is being withdrawn; try again when `status` shows it no more",
            ));
        }
        if self.setup.addresses.is_shared() {
            return Err(Failure::unavailable(
                "another program listens where this server does; end it first, `status` names it",
            ));
        }
        let trouble = |error: std::io::Error| Failure::fatal(format!("cannot upgrade: {error}"));
        let program = binary.map_or_else(own_path, Ok).map_err(trouble)?;
        let mut items = self.setup.items().map_err(trouble)?;
        for (item, fd) in &self.spread_items {
            items.push((*item, fd.try_clone().map_err(trouble)?));
        }
        let mut chunks = VecDeque::new();
        let mut items = items.into_iter().peekable();
        while items.peek().is_some() {
            let (items, fds): (Vec<_>, Vec<_>) = items.by_ref().take(ITEMS_PER_MESSAGE_MAX).unzip();
            chunks.push_back((items, fds));
        }
        let counts = chunks.iter().map(|(items, _)| count(items));
        let workers = self.workers().filter(|place| place.vacancy.is_none());
        let slots = workers.filter_map(|place| match place.role {
            Role::Worker(SlotIndex(slot)) => Some(slot),
            Role::Control => None,
        });
        let control = self.places.first();
        let own_control = control.map_or(Duration::ZERO, |place| place.slot.time_to_ready());
        let handover = Handover::new(counts, slots, own_control, self.now());
        let successor = Successor::start(&program).map_err(|error| {
            Failure::config(format!("cannot start {}: {error}", program.display()))
        })?;
        let line = format!("{} is started as pid {}", program.display(), successor.pid);
        let _ = reply.try_send(Reply::Progress(line));
        Ok(Giving {
            handover,
            successor,
            build: String::new(),
            reply,
            chunks,
        })
    }

    /// Takes what the other side says.
    pub(super) fn hear_peer(&mut self, heard: PeerHeard) {
        match heard {
            PeerHeard::Successor(Heard::Said(said)) => self.step_upgrade(Event::Said(said)),
            PeerHeard::Successor(Heard::Gone { how }) => self.step_upgrade(Event::Gone { how }),
            PeerHeard::Predecessor(heard) => self.hear_predecessor(heard),
        }
    }

    /// Gives up an upgrade that is under way. One that is done, or that gives everything to us, goes on.
    pub(super) fn cancel_upgrade(&mut self, reason: &str) {
        let reason = reason.to_owned();
        self.step_upgrade(Event::Cancel { reason });
    }

    /// Does what is due for an upgrade.
    pub(super) fn advance_upgrade(&mut self, now: Duration) {
        let is_control_over = self.places.first().is_some_and(|of| of.slot.is_over());
        match &mut self.upgrade {
            Upgrade::Giving(giving) => {
                let event = if giving.handover.is_emptying() && is_control_over {
                    Event::ControlEnded
                } else {
                    Event::Timer
                };
                self.step_upgrade(event);
            }
            Upgrade::TakingBack(_) => self.advance_return(now),
            _ => {}
        }
    }

    fn step_upgrade(&mut self, event: Event) {
        let now = self.now();
        let Upgrade::Giving(giving) = &mut self.upgrade else {
            return;
        };
        let mut actions: VecDeque<Action> = giving.handover.step(event, now).into();
        while let Some(action) = actions.pop_front() {
            let Upgrade::Giving(giving) = &mut self.upgrade else {
                return;
            };
            let failed = match action {
                Action::Check(prepared) => check(giving, &prepared, self.setup.state.path()).err(),
                Action::Hand => giving.hand(),
                Action::SendEstate => {
                    let estate = self.estate();
                    self.tell_successor(&FromOld::Estate(Box::new(estate)))
                }
                Action::EndControl => {
                    self.end_control();
                    None
                }
                Action::StartControl => self.tell_successor(&FromOld::StartControl),
                Action::StartSlot(slot) => self.tell_successor(&FromOld::StartSlot { slot }),
                Action::Rest(slot) => {
                    self.rest(Some(slot), true);
                    None
                }
                Action::Commit => self.tell_successor(&FromOld::Commit),
                Action::Finish => {
                    self.finish_upgrade();
                    None
                }
                Action::TakeBack { reason, code } => {
                    self.take_back(Failure::told(reason, code), now);
                    None
                }
                Action::Report(line) => {
                    tracing::info!("upgrade: {line}");
                    let _ = giving.reply.try_send(Reply::Progress(line));
                    None
                }
            };
            if let (Some(event), Upgrade::Giving(giving)) = (failed, &mut self.upgrade) {
                actions = giving.handover.step(event, now).into();
            }
        }
    }

    fn tell_successor(&self, message: &FromOld) -> Option<Event> {
        let Upgrade::Giving(giving) = &self.upgrade else {
            return None;
        };
        let said = giving.successor.say(message, &[]);
        said.err().map(|error| does_not_listen(&error))
    }

    fn estate(&self) -> Estate {
        let counts = self.setup.items().map_or(0, |items| items.len());
        let count = counts + self.spread_items.len();
        Estate {
            count: u32::try_from(count).unwrap_or(u32::MAX),
            generation: Generation(self.setup.generation.0.wrapping_add(1)),
            slots: self.setup.workers,
            control_pid: self.places.first().and_then(|place| place.slot.pid()),
            tickets: self.setup.tickets.keys().clone(),
            tickets_age_s: self.setup.tickets.age(self.now()).as_secs(),
            tls_digest: self.setup.tls_digest(),
        }
    }

    fn end_control(&mut self) {
        self.drain_place(0, CONTROL_DRAIN, Then::End);
    }

    /// One worker or all accept nothing, or everything again.
    fn rest(&mut self, slot: Option<u16>, is_resting: bool) {
        for place in &mut self.places {
            if slot.is_none_or(|slot| place.role == Role::Worker(SlotIndex(slot))) {
                place.rest(is_resting);
            }
        }
        self.update_listeners();
    }

    /// The new supervisor serves: what is left of us finishes, and nobody is told of an end.
    fn finish_upgrade(&mut self) {
        let Upgrade::Giving(giving) = std::mem::replace(&mut self.upgrade, Upgrade::None) else {
            return;
        };
        let (pid, build) = (giving.successor.pid, giving.build.clone());
        tracing::info!(pid, build, "the new supervisor serves; this one ends");
        self.notify.main_pid(pid);
        self.spread_tasks.abort_all();
        self.claiming.abandon();
        if let Some(admin) = self.admin.take() {
            admin.abort();
        }
        let upgraded = Upgraded {
            pid,
            build,
            old_pid: std::process::id(),
        };
        let _ = giving.reply.try_send(Reply::Upgraded(upgraded));
        self.upgrade = Upgrade::Given(giving.reply);
        self.phase = Phase::Workers;
        self.drain_phase(DRAIN_DEADLINE);
    }

    fn take_back(&mut self, failure: Failure, now: Duration) {
        let Upgrade::Giving(giving) = std::mem::replace(&mut self.upgrade, Upgrade::None) else {
            return;
        };
        tracing::error!("the upgrade has failed, this build serves on: {failure}");
        let Giving {
            handover,
            successor,
            reply,
            ..
        } = *giving;
        successor.kill();
        self.rest(None, false);
        if !handover.is_control_given() {
            tell_failure(&reply, &failure);
            return;
        }
        self.upgrade = Upgrade::TakingBack(TakingBack {
            since: now,
            stranger: handover.control_pid(),
            is_revived: false,
            reply,
            failure,
        });
        self.advance_return(now);
    }

    /// Our control is started again when no other runs.
    fn advance_return(&mut self, now: Duration) {
        let Upgrade::TakingBack(back) = &mut self.upgrade else {
            return;
        };
        if self.phase == Phase::Control {
            // Nobody needs it any more.
            tell(&back.reply, "no upgrade, the server ends", &back.failure);
            self.upgrade = Upgrade::None;
            return;
        }
        let Some(control) = self.places.first_mut() else {
            return;
        };
        let is_late = now >= back.since + STRANGER_LIMIT;
        match back.stranger.filter(|pid| is_alive(*pid)) {
            Some(pid) if is_late => {
                tracing::warn!(pid, "control of the new build has not ended and is killed");
                if let Ok(pid) = i32::try_from(pid) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                back.stranger = None;
            }
            Some(_) => return,
            None => {}
        }
        if !back.is_revived && control.slot.is_over() {
            control.slot.step(slot::Event::Want, now, 0.0);
            back.is_revived = true;
        }
        let is_ready = back.is_revived && control.slot.state() == SlotState::Ready;
        if is_ready {
            tracing::info!("everything is as it was before the upgrade");
            tell_failure(&back.reply, &back.failure);
            self.upgrade = Upgrade::None;
        } else if now >= back.since + RETURN_LIMIT {
            tracing::error!("control has not come back after the upgrade that failed");
            let text =
                "no upgrade; this build goes on, but its control does not serve yet, see `status`";
            tell(&back.reply, text, &back.failure);
            self.upgrade = Upgrade::None;
        }
    }

    /// Whether nothing of an upgrade keeps this process alive: the operator has heard how it ended, or does not care.
    pub(super) fn may_end(&self) -> bool {
        match &self.upgrade {
            Upgrade::Given(reply) => reply.is_closed() || reply.capacity() == reply.max_capacity(),
            _ => true,
        }
    }
}

impl Giving {
    fn hand(&mut self) -> Option<Event> {
        let (items, fds) = self.chunks.pop_front()?;
        let said = self.successor.say(&FromOld::Hand(items), &fds);
        said.err().map(|error| does_not_listen(&error))
    }
}

fn check(
    giving: &mut Giving,
    prepared: &Prepared,
    state_dir: &std::path::Path,
) -> Result<(), Event> {
    giving.build.clone_from(&prepared.build);
    let (min, max) = (prepared.version_min, prepared.version_max);
    let reason = if newest_common(min, max).is_none() {
        format!(
            "build {} speaks protocol {min} to {max}, the running one {VERSION_MIN} to {VERSION}; stop and start instead",
            prepared.build
        )
    } else if prepared.state_dir != state_dir.display().to_string() {
        format!(
            "the configuration names another state.dir now, {}; stop and start instead",
            prepared.state_dir
        )
    } else {
        return Ok(());
    };
    Err(Event::Cancel { reason })
}

fn does_not_listen(error: &std::io::Error) -> Event {
    Event::Gone {
        how: format!("does not listen: {error}"),
    }
}

fn count(items: &[Item]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}

fn tell_failure(reply: &mpsc::Sender<Reply>, failure: &Failure) {
    tell(reply, "no upgrade, everything serves as before", failure);
}

/// `outcome` is what has become of the server.
fn tell(reply: &mpsc::Sender<Reply>, outcome: &str, failure: &Failure) {
    let code = match failure.code() {
        0 => exit::FATAL,
        code => code,
    };
    let _ = reply.try_send(Reply::Error {
        reason: format!("{outcome}: {failure}"),
        code,
    });
}
