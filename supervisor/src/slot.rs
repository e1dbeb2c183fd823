//! What becomes of one child: a pure state machine, events in, actions out.
//!
//! Owns the state of a worker's slot or of control's place. Times are durations since the supervisor's start.
//! Invariants: at most one process exists per slot (an action [`Action::Launch`] is only given when the last process
//! has ended); nothing is started once draining has begun; a parked slot stays parked.

use std::time::Duration;

use fleet_protocol::slot::{EXIT_FATAL, SlotState};

use crate::backoff::Backoff;

/// How a kind of child is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Parked after quick deaths and after a fatal exit: the others go on without it.
    Worker,
    /// Never parked, because nothing works without it. Fatal before it was ever ready ends the server.
    Control,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The process exists.
    Launched {
        /// Its id.
        pid: u32,
    },
    /// There is no process.
    LaunchFailed {
        /// The system's words.
        reason: String,
    },
    /// The child serves.
    Ready,
    /// The child says why it cannot serve.
    Fatal {
        /// Its words.
        reason: String,
    },
    /// The process is gone.
    Exited {
        /// Its exit code; none after a signal.
        code: Option<i32>,
        /// For people: `exit code 1`, `signal 9`.
        how: String,
    },
    /// The time that [`Slot::due_at`] named may have come.
    Timer,
    /// Finish by `deadline`.
    Drain {
        /// When a process that is still there is killed.
        deadline: Duration,
    },
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Start a process and answer with [`Event::Launched`] or [`Event::LaunchFailed`].
    Launch,
    /// Tell the process to finish.
    Drain,
    /// Kill the process.
    Kill,
    /// Take the slot out of service.
    Park {
        /// Why.
        reason: String,
    },
    /// End the server.
    End {
        /// Why.
        reason: String,
    },
}

/// One slot.
#[derive(Clone, Debug)]
pub struct Slot {
    policy: Policy,
    state: SlotState,
    pid: Option<u32>,
    launched_at: Duration,
    ready_at: Option<Duration>,
    was_ever_ready: bool,
    launches: u64,
    /// Why the process will end, as it said itself.
    fatal: Option<String>,
    /// How the last process ended.
    last_end: Option<String>,
    due_at: Option<Duration>,
    backoff: Backoff,
}

impl Slot {
    /// A slot whose first process is due at once.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            state: SlotState::Backoff,
            pid: None,
            launched_at: Duration::ZERO,
            ready_at: None,
            was_ever_ready: false,
            launches: 0,
            fatal: None,
            last_end: None,
            due_at: Some(Duration::ZERO),
            backoff: Backoff::default(),
        }
    }

    /// Takes an event. `jitter` is a random number from 0.0 to 1.0.
    pub fn step(&mut self, event: Event, now: Duration, jitter: f64) -> Action {
        match event {
            Event::Launched { pid } => {
                self.pid = Some(pid);
                Action::None
            }
            Event::LaunchFailed { reason } => {
                let how = format!("not started: {reason}");
                self.end(None, how, now, jitter)
            }
            Event::Ready => {
                if self.state == SlotState::Starting {
                    self.state = SlotState::Ready;
                    self.ready_at = Some(now);
                    self.was_ever_ready = true;
                }
                Action::None
            }
            Event::Fatal { reason } => {
                self.fatal = Some(reason);
                Action::None
            }
            Event::Exited { code, how } => self.end(code, how, now, jitter),
            Event::Timer => self.timer(now),
            Event::Drain { deadline } => self.drain(deadline),
        }
    }

    fn timer(&mut self, now: Duration) -> Action {
        if self.due_at.is_none_or(|due_at| now < due_at) {
            return Action::None;
        }
        self.due_at = None;
        match self.state {
            SlotState::Backoff => {
                self.state = SlotState::Starting;
                self.launched_at = now;
                self.ready_at = None;
                self.fatal = None;
                self.launches += 1;
                Action::Launch
            }
            SlotState::Draining => Action::Kill,
            _ => Action::None,
        }
    }

    fn drain(&mut self, deadline: Duration) -> Action {
        match self.state {
            SlotState::Starting | SlotState::Ready => {
                self.state = SlotState::Draining;
                self.due_at = Some(deadline);
                Action::Drain
            }
            // A second request can only bring the end nearer.
            SlotState::Draining => {
                self.due_at = self.due_at.map(|due_at| due_at.min(deadline));
                Action::Drain
            }
            SlotState::Backoff | SlotState::Parked | SlotState::Stopped => {
                self.state = SlotState::Stopped;
                self.due_at = None;
                Action::None
            }
        }
    }

    fn end(&mut self, code: Option<i32>, how: String, now: Duration, jitter: f64) -> Action {
        self.pid = None;
        self.due_at = None;
        if self.state == SlotState::Draining || self.state == SlotState::Stopped {
            self.state = SlotState::Stopped;
            return Action::None;
        }
        let said = self.fatal.take();
        let is_fatal = said.is_some() || code == Some(EXIT_FATAL);
        let why = said.unwrap_or_else(|| how.clone());
        self.last_end = Some(how);
        let served = self
            .ready_at
            .take()
            .map_or(Duration::ZERO, |at| now.saturating_sub(at));
        let verdict = self.backoff.record_death(now, served, jitter);
        match self.policy {
            Policy::Control if is_fatal && !self.was_ever_ready => {
                self.state = SlotState::Stopped;
                return Action::End { reason: why };
            }
            Policy::Worker if is_fatal || verdict.is_crash_loop => {
                self.state = SlotState::Parked;
                let reason = if is_fatal {
                    why
                } else {
                    format!("it died again and again, last by {why}")
                };
                return Action::Park { reason };
            }
            Policy::Control | Policy::Worker => {}
        }
        self.state = SlotState::Backoff;
        self.due_at = Some(now + verdict.delay);
        Action::None
    }

    /// What it is doing.
    pub fn state(&self) -> SlotState {
        self.state
    }

    /// The process, if there is one.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Age of the process at `now`.
    pub fn uptime(&self, now: Duration) -> Duration {
        match self.pid {
            Some(_) => now.saturating_sub(self.launched_at),
            None => Duration::ZERO,
        }
    }

    /// Processes that followed the first.
    pub fn restarts(&self) -> u64 {
        self.launches.saturating_sub(1)
    }

    /// Whether any process of this slot was ever ready.
    pub fn was_ever_ready(&self) -> bool {
        self.was_ever_ready
    }

    /// How the last process ended.
    pub fn last_end(&self) -> Option<&str> {
        self.last_end.as_deref()
    }

    /// When to send [`Event::Timer`].
    pub fn due_at(&self) -> Option<Duration> {
        self.due_at
    }

    /// Nothing will happen here any more.
    pub fn is_over(&self) -> bool {
        self.pid.is_none() && matches!(self.state, SlotState::Stopped | SlotState::Parked)
    }
}

#[cfg(test)]
#[path = "slot_tests.rs"]
mod tests;
