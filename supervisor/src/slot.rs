//! What becomes of one child: a pure state machine, events in, actions out.
//!
//! Owns the state of a worker's slot or of control's place. Times are durations since the supervisor's start.
//! Invariants: at most one process exists per slot (an action [`Action::Launch`] is only given when the last process
//! has ended); a slot that is drained for good starts nothing until it is wanted again; whatever stands still is ended.

use std::time::Duration;

use fleet_protocol::slot::{EXIT_FATAL, SlotState};

use crate::backoff::{Backoff, HEALTHY_AFTER};
use crate::steering::Readiness;

/// A process that serves and misses this many reports, one a second, stands still.
const MISSED_MAX: u32 = 5;
/// From this many on, connections go elsewhere.
const MISSED_SUSPECT: u32 = 2;
/// The same for one that has not begun to serve: what control does first may take its time, but it reports all the while.
const MISSED_STARTING_MAX: u32 = 30;
/// From SIGABRT, for the core, to SIGKILL.
const ABORT_BEATS: u32 = 2;
/// A parked slot is tried again after this time, then after twice that, and so on.
pub(crate) const COOL_DOWN_MIN: Duration = Duration::from_secs(300);
/// See [`COOL_DOWN_MIN`].
const COOL_DOWN_MAX: Duration = Duration::from_secs(3600);

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
    /// It has reported.
    Report,
    /// A second is over, in which it should have reported. Counted instead of measured, so that a supervisor that stood still
    /// itself accuses nobody.
    Beat,
    /// Finish by `deadline`.
    Drain {
        /// When a process that is still there is killed.
        deadline: Duration,
        /// What then.
        then: Then,
    },
    /// What parked it may be over: try again at once.
    Retry,
    /// It was to end for good, and is wanted again.
    Want,
}

/// What becomes of a slot whose process has finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    End,
    /// Another process.
    Again,
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
    /// End the process with a core.
    Abort {
        /// Why.
        reason: String,
    },
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
    /// After a drain.
    then: Then,
    /// Seconds without a report.
    missed: u32,
    /// Seconds since the process was told to abort, and why it was.
    aborted: Option<(u32, String)>,
    hangs: u64,
    /// Times it was parked since it served well.
    parks: u32,
    parked_for: Option<String>,
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
            then: Then::End,
            missed: 0,
            aborted: None,
            hangs: 0,
            parks: 0,
            parked_for: None,
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
                    self.missed = 0;
                }
                Action::None
            }
            Event::Fatal { reason } => {
                self.fatal = Some(reason);
                Action::None
            }
            Event::Exited { code, how } => self.end(code, how, now, jitter),
            Event::Timer => self.timer(now),
            Event::Report => {
                self.missed = 0;
                Action::None
            }
            Event::Beat => self.beat(),
            Event::Drain { deadline, then } => self.drain(deadline, then, now),
            Event::Retry => {
                if self.state == SlotState::Parked {
                    self.due_at = Some(now);
                }
                Action::None
            }
            Event::Want => {
                self.then = Then::Again;
                if self.state == SlotState::Stopped {
                    self.state = SlotState::Backoff;
                    self.due_at = Some(now);
                }
                Action::None
            }
        }
    }

    fn beat(&mut self) -> Action {
        if let Some((beats, _)) = &mut self.aborted {
            *beats += 1;
            return if *beats == ABORT_BEATS {
                Action::Kill
            } else {
                Action::None
            };
        }
        let missed_max = match self.state {
            SlotState::Starting => MISSED_STARTING_MAX,
            SlotState::Ready => MISSED_MAX,
            // The end of a drain has a deadline already.
            _ => return Action::None,
        };
        self.missed += 1;
        if self.pid.is_none() || self.missed < missed_max {
            return Action::None;
        }
        let reason = if self.state == SlotState::Ready {
            format!("no report for {missed_max} s")
        } else {
            format!("not ready within {missed_max} s")
        };
        self.hangs += 1;
        self.aborted = Some((0, reason.clone()));
        Action::Abort { reason }
    }

    fn timer(&mut self, now: Duration) -> Action {
        if self.due_at.is_none_or(|due_at| now < due_at) {
            return Action::None;
        }
        self.due_at = None;
        match self.state {
            SlotState::Backoff | SlotState::Parked => {
                if self.parked_for.take().is_some() {
                    self.backoff = Backoff::default();
                }
                self.state = SlotState::Starting;
                self.missed = 0;
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

    fn drain(&mut self, deadline: Duration, then: Then, now: Duration) -> Action {
        match (self.state, then) {
            (SlotState::Starting | SlotState::Ready, _) => {
                self.state = SlotState::Draining;
                self.then = then;
                self.due_at = Some(deadline);
                Action::Drain
            }
            // A second request can only bring the end nearer, and an end for good stays one.
            (SlotState::Draining, _) => {
                if then == Then::End {
                    self.then = then;
                }
                self.due_at = self.due_at.map(|due_at| due_at.min(deadline));
                Action::Drain
            }
            (SlotState::Backoff | SlotState::Parked | SlotState::Stopped, Then::End) => {
                self.state = SlotState::Stopped;
                self.parked_for = None;
                self.due_at = None;
                Action::None
            }
            // There is nothing to finish.
            (SlotState::Parked, Then::Again) => {
                self.due_at = Some(now);
                Action::None
            }
            (SlotState::Backoff | SlotState::Stopped, Then::Again) => Action::None,
        }
    }

    fn end(&mut self, code: Option<i32>, how: String, now: Duration, jitter: f64) -> Action {
        self.pid = None;
        self.due_at = None;
        let how = match self.aborted.take() {
            Some((_, reason)) => format!("{reason}, ended by {how}"),
            None => how,
        };
        let is_drained = self.state == SlotState::Draining;
        if is_drained && self.then == Then::Again {
            self.last_end = Some(format!("drained, {how}"));
            self.fatal = None;
            self.ready_at = None;
            self.state = SlotState::Backoff;
            self.due_at = Some(now);
            return Action::None;
        }
        if is_drained || self.state == SlotState::Stopped {
            self.last_end = Some(how);
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
        if served >= HEALTHY_AFTER {
            self.parks = 0;
        }
        let verdict = self.backoff.record_death(now, served, jitter);
        match self.policy {
            Policy::Control if is_fatal && !self.was_ever_ready => {
                self.state = SlotState::Stopped;
                return Action::End { reason: why };
            }
            Policy::Worker if is_fatal || verdict.is_crash_loop => {
                let reason = if is_fatal {
                    why
                } else {
                    format!("it died again and again, last by {why}")
                };
                return self.park(reason, now);
            }
            Policy::Control | Policy::Worker => {}
        }
        self.state = SlotState::Backoff;
        self.due_at = Some(now + verdict.delay);
        Action::None
    }

    fn park(&mut self, reason: String, now: Duration) -> Action {
        let doubled = COOL_DOWN_MIN.saturating_mul(2_u32.saturating_pow(self.parks));
        self.parks = self.parks.saturating_add(1);
        self.state = SlotState::Parked;
        self.due_at = Some(now + doubled.min(COOL_DOWN_MAX));
        self.parked_for = Some(reason.clone());
        Action::Park { reason }
    }

    /// The time from the start of the last process to its first word; 0 while there was none.
    pub fn time_to_ready(&self) -> Duration {
        self.ready_at
            .map_or(Duration::ZERO, |at| at.saturating_sub(self.launched_at))
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

    /// Why it is parked; none when it is not.
    pub fn parked_for(&self) -> Option<&str> {
        self.parked_for.as_deref()
    }

    /// Processes that stood still and were ended for it.
    pub fn hangs(&self) -> u64 {
        self.hangs
    }

    /// What new connections may expect here; `is_full` is the process's own word.
    pub(crate) fn readiness(&self, is_full: bool) -> Readiness {
        match self.state {
            SlotState::Ready if self.missed >= MISSED_SUSPECT => Readiness::Waiting,
            SlotState::Ready if is_full => Readiness::Full,
            SlotState::Ready => Readiness::Ready,
            SlotState::Starting | SlotState::Backoff => Readiness::Waiting,
            SlotState::Draining if self.then == Then::Again => Readiness::Waiting,
            SlotState::Draining | SlotState::Parked | SlotState::Stopped => Readiness::Out,
        }
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
