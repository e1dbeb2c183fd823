//! An upgrade as the new supervisor lives it: starts its processes one by one as it is told, and is the server in the end.
//!
//! When the old supervisor dies in the middle, everything that it had is here already, so this one goes on alone.

use std::collections::BTreeSet;
use std::time::Duration;

use fleet_protocol::ids::SlotIndex;
use fleet_protocol::upgrade::{FromNew, FromOld};

use super::upgrade::Upgrade;
use super::{Heritage, Phase, Supervisor};
use crate::claim::Claims;
use crate::claiming::Claiming;
use crate::exit::Failure;
use crate::place::{Place, Role};
use crate::upgrade::channel::Channel;
use crate::upgrade::heir::refuse;
use crate::upgrade::is_alive;

/// A control process that has lost its supervisor has ended by then.
const STRANGER_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks whether it has.
const STRANGER_LOOK: Duration = Duration::from_millis(50);

/// What we may do already.
pub(super) struct Heir {
    channel: Channel,
    heritage: Heritage,
    may_control: bool,
    slots: BTreeSet<u16>,
}

impl Heir {
    pub(super) fn new(channel: Channel, heritage: Heritage) -> Self {
        Self {
            channel,
            heritage,
            may_control: false,
            slots: BTreeSet::new(),
        }
    }

    pub(super) async fn hear(&mut self) -> Option<FromOld> {
        match self.channel.hear().await {
            Ok(said) => said,
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the old supervisor is not understood"
                );
                None
            }
        }
    }
}

impl Supervisor {
    /// Whether a place must not be started yet.
    pub(super) fn is_held(&self, place: &Place, now: Duration) -> bool {
        // What does not listen must not begin to while two supervisors count on the order of listeners.
        if place.vacancy.is_some() && !self.upgrade.is_none() && self.phase == Phase::Serving {
            return true;
        }
        let role = place.role;
        match &self.upgrade {
            Upgrade::Taking(heir) => match role {
                Role::Control => !heir.may_control,
                Role::Worker(SlotIndex(slot)) => !heir.slots.contains(&slot),
            },
            // Only the new side may start one; our own is stopped, not due.
            _ => match (role, self.stranger) {
                (Role::Control, Some((pid, until))) => now < until && is_alive(pid),
                _ => false,
            },
        }
    }

    /// When to look again for a control process that ours must wait for.
    pub(super) fn stranger_due_at(&self, now: Duration) -> Option<Duration> {
        self.stranger.map(|_| now + STRANGER_LOOK)
    }

    pub(super) fn forget_stranger(&mut self, now: Duration) {
        let is_gone = |(pid, until)| now >= until || !is_alive(pid);
        if self.stranger.is_some_and(is_gone) {
            self.stranger = None;
        }
    }

    pub(super) fn hear_predecessor(&mut self, heard: Option<FromOld>) {
        let Upgrade::Taking(heir) = &mut self.upgrade else {
            return;
        };
        match heard {
            Some(FromOld::StartControl) => heir.may_control = true,
            Some(FromOld::StartSlot { slot }) => {
                heir.slots.insert(slot);
            }
            Some(FromOld::Commit) => {
                let told = heir.channel.say(&FromNew::Serves, &[]);
                if let Err(error) = told {
                    tracing::warn!(%error, "the old supervisor does not hear that this one serves");
                }
                self.serve_alone();
            }
            Some(FromOld::Hand(_) | FromOld::Estate(_)) => {
                self.refuse_upgrade(Failure::fatal("the old supervisor sent something twice"));
            }
            None => {
                tracing::error!(
                    "the old supervisor is gone in the middle of the upgrade; this one goes on alone"
                );
                if !heir.may_control {
                    let until = self.started.elapsed() + STRANGER_LIMIT;
                    self.stranger = heir.heritage.control_pid.map(|pid| (pid, until));
                }
                self.serve_alone();
            }
        }
    }

    /// We are the server from now on.
    fn serve_alone(&mut self) {
        self.upgrade = Upgrade::None;
        let claim = &self.setup.config.addresses.claim;
        match Claims::adopt(claim, self.setup.state.path()) {
            Ok(claims) => {
                let news = self.claims_heard.clone();
                self.claiming = Claiming::start(claims, news);
            }
            Err(failure) => tracing::error!("claimed addresses stay as they are: {failure}"),
        }
        if let Err(error) = self.setup.state.own() {
            tracing::warn!(%error, "the lock file names the old supervisor");
        }
        if let Err(failure) = self.setup.write_flagfile() {
            tracing::warn!("{failure}");
        }
        if let Err(failure) = self.setup.write_addresses() {
            tracing::warn!("{failure}");
        }
        if let Err(failure) = self.open_doors() {
            tracing::error!("{failure}");
        }
        self.is_changed = true;
        tracing::info!(
            generation = self.setup.generation.0,
            "this supervisor serves"
        );
    }

    /// Tells the old side what has become of a process, while that is of interest.
    pub(super) fn tell_predecessor(&self, message: &FromNew) {
        if let Upgrade::Taking(heir) = &self.upgrade
            && let Err(error) = heir.channel.say(message, &[])
        {
            // Its end is heard on the same channel.
            tracing::debug!(%error, "the old supervisor does not listen");
        }
    }

    /// Ends our part of an upgrade that we cannot complete. True when there was one.
    pub(super) fn refuse_upgrade(&mut self, failure: Failure) -> bool {
        if let Upgrade::Taking(heir) = &self.upgrade {
            refuse(&heir.channel, &failure);
            self.upgrade = Upgrade::Refused(failure);
            return true;
        }
        false
    }
}
