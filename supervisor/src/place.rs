//! One place in the process tree, a worker's slot or control's: its state machine, its process, its last report.

use std::os::fd::OwnedFd;
use std::time::Duration;

use fleet_protocol::admin::ControlView;
use fleet_protocol::ids::SlotIndex;
use fleet_protocol::sandbox::{Sandbox, SandboxView};
use fleet_protocol::slot::{
    self, FDS_PER_MESSAGE_MAX, FromChild, SlotLimits, SlotState, SlotView, ToChild,
};
use fleet_protocol::stats::{ControlStats, WorkerStats};

use crate::addresses::{Addresses, Change, Given};
use crate::process::{Child, ChildId};
use crate::rate::Rate;
use crate::slot::{Policy, Slot};
use crate::steering::Readiness;
use crate::vacancy::Vacancy;

/// As control names them among what it depends on.
const STORES: [&str; 2] = ["sqlite", "mysql"];

/// Which program runs here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A worker.
    Worker(SlotIndex),
    /// The control process.
    Control,
}

impl Role {
    /// As people read it.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Worker(slot) => format!("worker {slot}"),
            Self::Control => "control".into(),
        }
    }

    /// The child's arguments.
    pub(crate) fn arguments(self) -> Vec<String> {
        match self {
            Self::Worker(slot) => vec!["worker".into(), "--slot".into(), slot.to_string()],
            Self::Control => vec!["control".into()],
        }
    }
}

/// See the module.
pub(crate) struct Place {
    /// Which program.
    pub(crate) role: Role,
    /// Its state.
    pub(crate) slot: Slot,
    child: Option<Child>,
    /// Listeners that the process has been told of.
    given: Given,
    /// As the process said when it became ready.
    sandbox: Option<Sandbox>,
    /// The last reload that the process has been told of.
    reloads: u64,
    /// Limits that the process has been told of.
    limits: Option<SlotLimits>,
    /// It accepts nothing for now.
    is_resting: bool,
    launches: u64,
    worker: WorkerStats,
    control: ControlStats,
    exchanges: Rate,
    /// What becomes of its sockets while it is out of service; none while it is not.
    pub(crate) vacancy: Option<Vacancy>,
    /// There are to be fewer workers.
    pub(crate) is_leaving: bool,
}

impl Place {
    /// A place whose first process is due.
    pub(crate) fn new(role: Role) -> Self {
        let policy = match role {
            Role::Worker(_) => Policy::Worker,
            Role::Control => Policy::Control,
        };
        Self {
            role,
            slot: Slot::new(policy),
            child: None,
            given: Given::new(),
            sandbox: None,
            reloads: 0,
            limits: None,
            is_resting: false,
            launches: 0,
            worker: WorkerStats::default(),
            control: ControlStats::default(),
            exchanges: Rate::default(),
            vacancy: None,
            is_leaving: false,
        }
    }

    /// The id of the process that is about to be started.
    pub(crate) fn next_id(&mut self, place: usize) -> ChildId {
        self.launches += 1;
        ChildId {
            place,
            launch: self.launches,
        }
    }

    /// Whether news with this id are of the present process.
    pub(crate) fn is_current(&self, id: ChildId) -> bool {
        id.launch == self.launches
    }

    /// Takes a started process, whose first message knew of all reloads up to `reloads`.
    pub(crate) fn adopt(&mut self, child: Child, given: Given, reloads: u64) {
        self.child = Some(child);
        self.given = given;
        self.reloads = reloads;
        self.limits = None;
    }

    /// Forgets the process and what it reported about itself.
    pub(crate) fn bury(&mut self) {
        self.child = None;
        self.sandbox = None;
        self.worker = WorkerStats::default();
        self.control = ControlStats::default();
        self.exchanges.clear();
    }

    /// Says something to the process, if there is one.
    pub(crate) fn tell(&self, message: ToChild) -> bool {
        self.child.as_ref().is_some_and(|child| child.tell(message))
    }

    /// Has a worker accept nothing, or everything again; [`Self::update_listeners`] tells it. What its listeners hold waits
    /// for others who accept on them.
    pub(crate) fn rest(&mut self, is_resting: bool) {
        self.is_resting = is_resting;
    }

    /// Brings a worker's listeners up to date. What it cannot be told now it is told the next time.
    pub(crate) fn update_listeners(&mut self, addresses: &Addresses) {
        let (Role::Worker(slot), Some(child)) = (self.role, &self.child) else {
            return;
        };
        // Before its first message is read, a process takes no descriptors; at its end it needs none.
        if self.slot.state() != SlotState::Ready {
            return;
        }
        let change = if self.is_resting {
            Ok(Change {
                listen: Vec::new(),
                withdraw: self.given.keys().copied().collect(),
            })
        } else {
            addresses.change(usize::from(slot.0), &self.given)
        };
        let change = match change {
            Ok(change) => change,
            Err(error) => {
                tracing::error!(%error, "worker {slot} cannot be given its listeners");
                return;
            }
        };
        if !change.withdraw.is_empty() && child.tell(ToChild::Withdraw(change.withdraw.clone())) {
            for address in &change.withdraw {
                self.given.remove(address);
            }
        }
        let mut listen = change.listen.into_iter().peekable();
        while listen.peek().is_some() {
            let (listeners, fds): (Vec<_>, Vec<_>) =
                listen.by_ref().take(FDS_PER_MESSAGE_MAX).unzip();
            let given: Vec<_> = listeners
                .iter()
                .map(|listener| (listener.address, listener.balancers.clone()))
                .collect();
            if !child.tell_with(ToChild::Listen(listeners), fds) {
                return;
            }
            self.given.extend(given);
        }
    }

    /// Whether it serves, and has not been told of the latest reload.
    pub(crate) fn is_behind(&self, reloads: u64) -> bool {
        self.slot.state() == SlotState::Ready && self.reloads != reloads
    }

    /// Tells it of a reload, if it takes messages now.
    pub(crate) fn tell_reload(&mut self, message: ToChild, reloads: u64) {
        if self.tell(message) {
            self.reloads = reloads;
        }
    }

    /// Hands listeners of another slot to a ready worker, which takes what waits there. False when it cannot be told.
    pub(crate) fn sweep(&self, listeners: Vec<(slot::Listener, OwnedFd)>) -> bool {
        let Some(child) = &self.child else {
            return false;
        };
        let mut listeners = listeners.into_iter().peekable();
        while listeners.peek().is_some() {
            let (listeners, fds): (Vec<_>, Vec<_>) =
                listeners.by_ref().take(FDS_PER_MESSAGE_MAX).unzip();
            if !child.tell_with(ToChild::Sweep(listeners), fds) {
                return false;
            }
        }
        true
    }

    /// What new connections may expect here.
    pub(crate) fn readiness(&self) -> Readiness {
        match self.slot.readiness(self.worker.is_full) {
            // A process on its last way, or one that will not be started.
            Readiness::Waiting if self.is_leaving => Readiness::Out,
            readiness => readiness,
        }
    }

    /// Ends the process with a core, if there is one.
    pub(crate) fn abort(&self) {
        if let Some(child) = &self.child {
            child.abort();
        }
    }

    /// How the process is confined, once it has said so.
    pub(crate) fn sandbox_view(&self) -> Option<SandboxView> {
        Some(SandboxView {
            process: self.role.name(),
            sandbox: self.sandbox.clone()?,
        })
    }

    /// Tells a worker what it may take in, unless it knows. What it cannot be told now it is told the next time.
    pub(crate) fn update_limits(&mut self, limits: &SlotLimits) {
        let is_serving = self.slot.state() == SlotState::Ready;
        if self.role == Role::Control || !is_serving || self.limits.as_ref() == Some(limits) {
            return;
        }
        if self.tell(ToChild::Limits(Box::new(limits.clone()))) {
            self.limits = Some(limits.clone());
        }
    }

    /// What the process reported last; a worker's.
    pub(crate) fn report(&self) -> &WorkerStats {
        &self.worker
    }

    /// Kills the process, if there is one.
    pub(crate) fn kill(&self) {
        if let Some(child) = &self.child {
            child.kill();
        }
    }

    /// Takes a report; gives back what is none.
    pub(crate) fn take_report(&mut self, said: FromChild, now: Duration) -> Option<FromChild> {
        match said {
            FromChild::Worker(stats) => {
                self.exchanges.record(now, stats.exchanges_total());
                self.worker = *stats;
                None
            }
            FromChild::Control(stats) => {
                self.control = *stats;
                None
            }
            FromChild::Ready { ref sandbox, .. } => {
                self.sandbox = Some(sandbox.clone());
                Some(said)
            }
            FromChild::Fatal { .. } => Some(said),
        }
    }

    /// A worker's view; `None` for control.
    pub(crate) fn slot_view(&self, now: Duration) -> Option<SlotView> {
        let Role::Worker(slot) = self.role else {
            return None;
        };
        Some(SlotView {
            slot,
            state: self.slot.state(),
            pid: self.slot.pid(),
            uptime_s: self.slot.uptime(now).as_secs(),
            restarts: self.slot.restarts(),
            exchanges_per_s: self.exchanges.per_second(),
            // Listeners are shown by address, over all workers.
            stats: WorkerStats {
                listeners: Vec::new(),
                ..self.worker.clone()
            },
            last_end: self.slot.last_end().unwrap_or_default().to_owned(),
            hangs: self.slot.hangs(),
            parked_for: self.slot.parked_for().unwrap_or_default().to_owned(),
            retry_in_s: matches!(self.slot.state(), SlotState::Parked | SlotState::Backoff)
                .then(|| self.slot.due_at())
                .flatten()
                .map(|due| due.saturating_sub(now).as_secs()),
            is_leaving: self.is_leaving,
        })
    }

    /// Control's view.
    pub(crate) fn control_view(&self, now: Duration) -> ControlView {
        ControlView {
            state: self.slot.state(),
            pid: self.slot.pid(),
            uptime_s: self.slot.uptime(now).as_secs(),
            restarts: self.slot.restarts(),
            stats: self.control.clone(),
            last_end: self.slot.last_end().unwrap_or_default().to_owned(),
            hangs: self.slot.hangs(),
        }
    }

    /// Why another control process would not serve if this one gave way to it now; `None`: it would.
    pub(crate) fn cannot_be_replaced(&self) -> Option<String> {
        if self.slot.state() != SlotState::Ready {
            return Some("control does not serve".into());
        }
        // What was said before it was ready has another name: then the store was there a moment ago.
        let mut stores = self.control.dependencies.iter();
        let store = stores.find(|of| STORES.contains(&of.name.as_str()) && !of.is_healthy)?;
        Some(format!("the store does not work ({})", store.detail))
    }

    /// Serving, or given up: nothing more to wait for at start.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.slot.state(), SlotState::Ready | SlotState::Parked)
    }
}

#[cfg(test)]
mod tests {
    use fleet_protocol::stats::Dependency;

    use super::*;
    use crate::slot::Event;

    #[test]
    fn control_gives_way_only_while_it_serves_and_has_a_store() {
        let now = Duration::from_secs(1);
        let mut place = Place::new(Role::Control);
        assert!(place.cannot_be_replaced().is_some());
        place.slot.step(Event::Timer, now, 0.0);
        place.slot.step(Event::Launched { pid: 1 }, now, 0.0);
        place.slot.step(Event::Ready, now, 0.0);
        for (name, is_healthy, may) in [
            ("store", false, true),
            ("sqlite", true, true),
            ("mysql", false, false),
            ("redis", false, true),
        ] {
            place.control.dependencies = vec![Dependency {
                name: name.into(),
                is_healthy,
                detail: "why".into(),
            }];
            assert_eq!(place.cannot_be_replaced().is_none(), may, "{name}");
        }
    }
}
