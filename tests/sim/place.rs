//! Where a process lives: the product's slot, and whether there is a process.

use std::time::Duration;

use fleet_supervisor::slot::{Action, Event, Policy, Slot};

/// What a place wants of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Nothing,
    /// A process was started; it is ready after a while.
    Started,
}

pub(crate) struct Place {
    slot: Slot,
    /// Processes so far; the present one is the last.
    pub(crate) launches: u32,
    pub(crate) is_alive: bool,
    pub(crate) is_parked: bool,
    /// How often it was parked.
    pub(crate) parks: u64,
}

impl Place {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            slot: Slot::new(policy),
            launches: 0,
            is_alive: false,
            is_parked: false,
            parks: 0,
        }
    }

    pub(crate) fn due_at(&self) -> Option<Duration> {
        self.slot.due_at()
    }

    pub(crate) fn step(&mut self, event: Event, now: Duration, rng: &mut fastrand::Rng) -> Wish {
        match self.slot.step(event, now, rng.f64()) {
            Action::Launch => {
                assert!(!self.is_alive, "a second process in one slot");
                // After its cool-down.
                self.is_parked = false;
                if rng.u8(..) < 20 {
                    let reason = "no memory".into();
                    return self.step(Event::LaunchFailed { reason }, now, rng);
                }
                self.is_alive = true;
                self.launches += 1;
                let pid = self.launches;
                self.step(Event::Launched { pid }, now, rng);
                Wish::Started
            }
            Action::Park { .. } => {
                assert!(!self.is_alive);
                self.is_parked = true;
                self.parks += 1;
                Wish::Nothing
            }
            Action::End { reason } => panic!("the server ends: {reason}"),
            _ => Wish::Nothing,
        }
    }
}
