//! What the supervisor does for its slots: who gets connections, what becomes of those that are given up, how many there
//! are, which are drained.

use std::fs;
use std::time::Duration;

use fleet_protocol::admin::Drain;
use fleet_protocol::ids::SlotIndex;
use fleet_protocol::limits::DRAIN_DEADLINE;
use fleet_protocol::slot::SlotState;

use super::{Phase, Supervisor};
use crate::addresses::{Addresses, Given};
use crate::exit::Failure;
use crate::place::{Place, Role};
use crate::port_owner;
use crate::slot::{Event, Then};
use crate::steering::{self, Readiness};
use crate::vacancy::{Facts, Step, Vacancy};

/// Between two looks for others who share our ports.
const MEET_INTERVAL: Duration = Duration::from_secs(5);
const MIGRATE: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

impl Supervisor {
    /// Lets a second pass for every process.
    pub(super) fn beat(&mut self) {
        for index in 0..self.places.len() {
            self.step(index, Event::Beat);
        }
    }

    /// Divides new connections among those who can take them.
    pub(super) fn steer(&mut self) {
        if self.is_open() && self.upgrade.is_none() {
            let slots: Vec<Readiness> = self.workers().map(Place::readiness).collect();
            self.setup.addresses.steer(steering::weights(&slots));
        }
    }

    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Announced)
    }

    /// Does what is due for slots that leave or are out of service.
    pub(super) fn tend_slots(&mut self, now: Duration) {
        // During an upgrade another supervisor counts on the listeners as they are.
        if !self.is_open() || !self.upgrade.is_none() {
            return;
        }
        for index in 1..self.places.len() {
            self.retire(index);
            self.vacate(index, now);
        }
        while let Some(place) = self.places.last()
            && let Role::Worker(SlotIndex(slot)) = place.role
            && place.is_leaving
            && place.slot.is_over()
            && place.vacancy.is_some_and(|vacancy| vacancy.is_over(now))
        {
            self.setup.addresses.close_slot(usize::from(slot));
            self.places.pop();
            self.is_changed = true;
            tracing::info!("slot {slot} is gone");
        }
    }

    /// Lets a slot finish that is no longer wanted, once another one serves.
    fn retire(&mut self, index: usize) {
        let Some(place) = self.places.get(index).filter(|place| place.is_leaving) else {
            return;
        };
        match place.slot.state() {
            SlotState::Ready if self.is_served_without(index) => {
                self.drain_place(index, DRAIN_DEADLINE, Then::End)
            }
            SlotState::Starting | SlotState::Backoff | SlotState::Parked => {
                self.drain_place(index, DRAIN_DEADLINE, Then::End);
            }
            SlotState::Ready | SlotState::Draining | SlotState::Stopped => {}
        }
    }

    /// Whether a slot serves that stays, other than this one.
    fn is_served_without(&self, index: usize) -> bool {
        let others = self.places.iter().enumerate().skip(1);
        others
            .filter(|(other, place)| *other != index && !place.is_leaving)
            .any(|(_, place)| place.slot.state() == SlotState::Ready)
    }

    /// Brings the sockets of a slot that is out of service one step further.
    fn vacate(&mut self, index: usize, now: Duration) {
        let Some(place) = self.places.get(index) else {
            return;
        };
        let vacancy = match place.vacancy {
            Some(Vacancy::Shut { .. }) => return,
            Some(vacancy) => vacancy,
            None if place.slot.is_over() => Vacancy::Waiting { since: now },
            None => return,
        };
        let slot = index.saturating_sub(1);
        let serves = |place: &&Place| {
            let readiness = place.readiness();
            !place.is_leaving && matches!(readiness, Readiness::Ready | Readiness::Full)
        };
        let sweeper = self.places.iter().skip(1).find(serves);
        let addresses = &mut self.setup.addresses;
        let mut facts = Facts {
            can_migrate: can_migrate() && !addresses.is_shared(),
            is_served: sweeper.is_some(),
            is_waiting: addresses.is_waiting(slot),
        };
        let mut step = vacancy.step(facts, now);
        // When a socket ends, the last of its group moves to its index, be it ours or not: so look first who is there.
        if step == Step::Shut && meet(addresses) {
            // The kernel would move connections to the one who has come.
            facts.can_migrate = false;
            step = vacancy.step(facts, now);
        }
        match step {
            Step::None => {}
            Step::Shut => addresses.shut_slot(slot),
            Step::Sweep => match addresses.change(slot, &Given::new()) {
                Ok(change) => {
                    // Who cannot be told now is told in the next turn.
                    if !sweeper.is_some_and(|place| place.sweep(change.listen)) {
                        step = Step::None;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "what waits for slot {slot} cannot be handed over");
                    step = Step::None;
                }
            },
        }
        if let Some(place) = self.places.get_mut(index) {
            place.vacancy = Some(vacancy.done(step, now));
        }
    }

    /// Lets a slot listen that is to have a process.
    pub(super) fn occupy(&mut self, index: usize) {
        let Some(place) = self.places.get_mut(index) else {
            return;
        };
        let is_vacant = place.vacancy.take().is_some();
        if is_vacant && let Role::Worker(SlotIndex(slot)) = place.role {
            // Who is at which index of a group counts from here on.
            self.meet();
            self.setup.addresses.open_slot(usize::from(slot));
        }
    }

    /// Looks for others who share our ports.
    pub(super) fn meet(&mut self) {
        self.meet_at = self.now() + MEET_INTERVAL;
        self.is_changed |= meet(&mut self.setup.addresses);
    }

    /// Takes another number of workers. True when it is one.
    pub(super) fn resize(&mut self, workers: u16) -> bool {
        if self.setup.workers == workers {
            return false;
        }
        self.setup.workers = workers;
        self.is_changed = true;
        for index in 1..self.places.len() {
            let is_leaving = index > usize::from(workers);
            if let Some(place) = self.places.get_mut(index)
                && std::mem::replace(&mut place.is_leaving, is_leaving)
                && !is_leaving
            {
                self.step(index, Event::Want);
            }
        }
        self.meet();
        // Control stands before the slots.
        for slot in self.places.len().saturating_sub(1)..usize::from(workers) {
            let role = Role::Worker(SlotIndex(u16::try_from(slot).unwrap_or(u16::MAX)));
            self.setup.addresses.open_slot(slot);
            self.places.push(Place::new(role));
        }
        true
    }

    /// Tries parked slots again.
    pub(super) fn retry(&mut self) {
        for index in 0..self.places.len() {
            self.step(index, Event::Retry);
        }
    }

    /// Does what an operator asks for; a sentence about it.
    pub(super) fn drain(&mut self, what: Drain) -> Result<String, Failure> {
        if self.phase != Phase::Serving {
            return Err(Failure::unavailable("the server is stopping"));
        }
        if !self.upgrade.is_none() {
            return Err(Failure::unavailable(
                "an upgrade is under way; try again after it",
            ));
        }
        match what {
            Drain::Gateway => {
                self.is_away = true;
                self.is_changed = true;
                tracing::info!("drained: nobody is told of this gateway, who comes is served");
                Ok("Balancers and resolvers are told to send agents elsewhere; who comes is served. \
                    To be told of again: drain --cancel"
                    .into())
            }
            Drain::Cancel => {
                self.is_away = false;
                self.is_changed = true;
                tracing::info!("drained no more");
                Ok("Agents are sent here again.".into())
            }
            Drain::Slot(slot) => self.drain_slot(slot),
        }
    }

    fn drain_slot(&mut self, slot: SlotIndex) -> Result<String, Failure> {
        let index = usize::from(slot.0) + 1;
        let Some(place) = self.places.get(index) else {
            let last = self.setup.workers.saturating_sub(1);
            return Err(Failure::usage(format!(
                "there is no slot {slot}; the slots are 0 to {last}"
            )));
        };
        let state = place.slot.state();
        if state != SlotState::Ready {
            return Err(Failure::unavailable(format!(
                "worker {slot} is {}, so there is nothing to drain",
                state.label()
            )));
        }
        if !self.is_served_without(index) {
            return Err(Failure::unavailable(format!(
                "no worker but {slot} serves; agents would wait for its successor"
            )));
        }
        tracing::info!("an operator drains worker {slot}");
        self.drain_place(index, DRAIN_DEADLINE, Then::Again);
        Ok(format!(
            "Worker {slot} finishes within {} s, new connections go to the others; then another worker takes its place.",
            DRAIN_DEADLINE.as_secs()
        ))
    }
}

/// True when somebody has come.
fn meet(addresses: &mut Addresses) -> bool {
    let sentences = addresses.meet(&port_owner::listeners());
    for sentence in &sentences {
        tracing::warn!("{sentence}");
    }
    !sentences.is_empty()
}

fn can_migrate() -> bool {
    fs::read_to_string(MIGRATE).is_ok_and(|text| text.trim() == "1")
}
