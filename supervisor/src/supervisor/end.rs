//! How the server ends: announced, then agents finish, then control; at once when it must.

use std::time::Duration;

use fleet_protocol::config::Config;
use fleet_protocol::limits::DRAIN_DEADLINE;
use fleet_protocol::slot::ToChild;

use super::upgrade::Upgrade;
use super::{Ending, Phase, Supervisor};
use crate::exit::Failure;
use crate::slot::{Event, Then};

/// HAProxy asks each second.
const ANNOUNCE_TO_BALANCERS: Duration = Duration::from_secs(3);
/// Added to the time that resolvers remember.
const ANNOUNCE_MARGIN: Duration = Duration::from_secs(1);
/// An end is not delayed for longer, whatever resolvers remember.
pub(crate) const ANNOUNCE_MAX: Duration = Duration::from_secs(12);
/// What everybody gets when the server cannot serve at all, or a second signal comes.
const SHORT_DRAIN: Duration = Duration::from_secs(1);

/// What control gets to write down what it has.
const CONTROL_DRAIN: Duration = Duration::from_secs(10);
/// Added to the time that a child is told, before it is killed.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

impl Supervisor {
    /// Begins the next phase of the end when it is time.
    pub(super) fn advance_end(&mut self, now: Duration) {
        if self.phase == Phase::Announced && now >= self.announced_until {
            self.phase = Phase::Workers;
            self.drain_phase(DRAIN_DEADLINE);
        }
        if self.phase == Phase::Workers && self.workers().all(|place| place.slot.is_over()) {
            self.phase = Phase::Control;
            self.drain_phase(CONTROL_DRAIN);
        }
    }

    pub(super) fn take_signal(&mut self, name: &str) {
        match &self.upgrade {
            // The old supervisor decides, and ends us if it must.
            Upgrade::Taking(_) => {
                tracing::info!("{name} is left to the old supervisor");
                return;
            }
            // We end already, for another reason.
            Upgrade::Given(_) if self.signals == 0 => {
                self.signals += 1;
                return;
            }
            _ => {}
        }
        self.signals += 1;
        if self.phase == Phase::Serving {
            tracing::info!(
                "{name}: agents get up to {} s to finish",
                DRAIN_DEADLINE.as_secs()
            );
            self.cancel_upgrade("the server is told to stop");
            self.begin_drain();
            return;
        }
        let limit = if self.signals <= 2 {
            SHORT_DRAIN
        } else {
            Duration::ZERO
        };
        if self.phase == Phase::Announced {
            self.phase = Phase::Workers;
        }
        tracing::warn!(
            "{name} again: what is not finished in {} s is killed",
            limit.as_secs()
        );
        self.drain_phase(limit);
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        if self.refuse_upgrade(failure.clone()) {
            return;
        }
        self.cancel_upgrade("the server fails");
        self.notify.stopping();
        if self.failure.is_none() {
            self.failure = Some(failure);
        }
        self.banner = None;
        if matches!(self.phase, Phase::Serving | Phase::Announced) {
            self.phase = Phase::Workers;
            self.drain_phase(SHORT_DRAIN);
        }
    }

    /// Ends in order: nobody new is sent here, then agents finish, then control.
    pub(super) fn begin_drain(&mut self) {
        self.notify.stopping();
        self.phase = Phase::Announced;
        self.announced_until = self.now() + announce_time(&self.setup.config);
        self.is_changed = true;
    }

    /// Tells those whose turn it is to finish within `limit`. Again, it can only shorten.
    pub(super) fn drain_phase(&mut self, limit: Duration) {
        let phase = self.phase;
        for index in 0..self.places.len() {
            let is_worker = index > 0;
            if is_worker != (phase == Phase::Workers) {
                continue;
            }
            self.drain_place(index, limit, Then::End);
        }
    }

    /// Tells one process to finish within `limit`. Who connects from now on is steered elsewhere first.
    pub(super) fn drain_place(&mut self, index: usize, limit: Duration, then: Then) {
        let grace = if limit.is_zero() {
            Duration::ZERO
        } else {
            DRAIN_GRACE
        };
        let deadline = self.now() + limit + grace;
        self.step(index, Event::Drain { deadline, then });
        self.steer();
        if let Some(place) = self.places.get(index) {
            let deadline_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
            place.tell(ToChild::Drain { deadline_ms });
        }
        self.is_changed = true;
    }

    /// Lets go of everything.
    pub(super) async fn end(self) -> (Ending, Result<(), Failure>) {
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
}

/// What those who spread agents get to hear of the end: HAProxy asks each second, resolvers remember for a time.
fn announce_time(config: &Config) -> Duration {
    let (dns, agent_check) = (&config.addresses.dns, &config.addresses.agent_check);
    let balancers = if agent_check.listen.is_empty() {
        Duration::ZERO
    } else {
        ANNOUNCE_TO_BALANCERS
    };
    let resolvers = if dns.name.is_empty() {
        Duration::ZERO
    } else {
        dns.ttl + ANNOUNCE_MARGIN
    };
    balancers.max(resolvers).min(ANNOUNCE_MAX)
}
