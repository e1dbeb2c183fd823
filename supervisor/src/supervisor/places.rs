//! What becomes of each place: its process starts, is heard, is ended, and another one follows.

use std::time::Duration;

use fleet_protocol::ids::SlotIndex;
use fleet_protocol::slot::{FromChild, SlotState, ToChild};
use fleet_protocol::upgrade::FromNew;

use super::Supervisor;
use crate::addresses::Given;
use crate::exit::Failure;
use crate::place::{Place, Role};
use crate::process::{Heard, News};
use crate::setup::Setup;
use crate::slot::{Action, Event};
use crate::vacancy::Vacancy;

/// A place whose first process is due. A slot that does not listen does so when it is.
pub(super) fn place(role: Role, setup: &Setup) -> Place {
    let mut place = Place::new(role);
    if let Role::Worker(SlotIndex(slot)) = role
        && !setup.addresses.is_open(slot)
    {
        let since = Duration::ZERO;
        place.vacancy = Some(Vacancy::Shut { since });
    }
    place
}

impl Supervisor {
    /// Gives a place an event and carries out what follows.
    pub(super) fn step(&mut self, index: usize, event: Event) {
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

    pub(super) fn hear(&mut self, heard: Heard) {
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
}
