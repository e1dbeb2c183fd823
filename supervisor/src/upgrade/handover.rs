//! What the old supervisor does in an upgrade, step by step: a pure state machine, events in, actions out.
//!
//! Invariants: every step has a deadline; whatever is not expected ends the upgrade with [`Action::TakeBack`], once, unless
//! the new side serves already; control is started by one side only after the other's has ended.

use std::collections::VecDeque;
use std::time::Duration;

use fleet_protocol::upgrade::{FromNew, Prepared};

use crate::exit;

/// To read the configuration, the certificates, the kernel's settings.
const PREPARE_LIMIT: Duration = Duration::from_secs(20);
/// To take descriptors, or to answer at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// For our control to end; it has less by its orders.
const EMPTY_LIMIT: Duration = Duration::from_secs(7);
/// For the new control to serve, at least: agents wait meanwhile, and no agent waits for more than 16 s.
const CONTROL_LIMIT: Duration = Duration::from_secs(6);
/// Where control has taken long to start before, it may again.
const CONTROL_TIMES: u32 = 2;
/// However long that was: agents wait.
const CONTROL_LIMIT_MAX: Duration = Duration::from_secs(30);
/// For a new worker to serve; the old one serves meanwhile.
const SLOT_LIMIT: Duration = Duration::from_secs(20);

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Handover {
    step: Step,
    due_at: Duration,
    /// Descriptors in each message.
    chunks: VecDeque<u32>,
    count: u32,
    slots: VecDeque<u16>,
    control_limit: Duration,
    /// The new side's control process.
    control_pid: Option<u32>,
    is_control_given: bool,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The new side's word that it is prepared.
    Preparing,
    /// Its acknowledgement of a message with so many descriptors.
    Handing(u32),
    /// Its count of all.
    Counting,
    /// The end of our control.
    Emptying,
    /// Its control.
    Control,
    /// Its worker in this slot.
    Slot(u16),
    /// Its word that it serves.
    Committing,
    /// Nothing more.
    Over,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// The new side speaks.
    Said(FromNew),
    /// The new side has ended, or cannot be understood.
    Gone {
        /// For people.
        how: String,
    },
    /// Our control has ended.
    ControlEnded,
    /// The upgrade is to be given up.
    Cancel {
        /// Why.
        reason: String,
    },
    /// The time that [`Handover::due_at`] named may have come.
    Timer,
}

/// What to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Check whether this one can take over; if not, [`Event::Cancel`].
    Check(Prepared),
    /// Send the next message with descriptors.
    Hand,
    /// Send the rest.
    SendEstate,
    /// Have our control finish and not come again.
    EndControl,
    /// Let the new side start its control.
    StartControl,
    /// Let it start this worker.
    StartSlot(u16),
    /// Our worker in this slot accepts no more.
    Rest(u16),
    /// Let it be the server.
    Commit,
    /// It is the server: finish.
    Finish,
    /// End the new side and serve as before.
    TakeBack {
        /// Why.
        reason: String,
        /// What the operator's command exits with.
        code: u8,
    },
    /// A line for the operator.
    Report(String),
}

impl Handover {
    /// Begins when the new side has been started. `chunks` is how many descriptors go with each message, `slots` those with
    /// a worker, `own_control` the time that our control took to serve.
    pub(crate) fn new(
        chunks: impl IntoIterator<Item = u32>,
        slots: impl IntoIterator<Item = u16>,
        own_control: Duration,
        now: Duration,
    ) -> Self {
        let chunks: VecDeque<u32> = chunks.into_iter().collect();
        Self {
            step: Step::Preparing,
            due_at: now + PREPARE_LIMIT,
            count: chunks.iter().sum(),
            chunks,
            slots: slots.into_iter().collect(),
            control_limit: own_control
                .saturating_mul(CONTROL_TIMES)
                .clamp(CONTROL_LIMIT, CONTROL_LIMIT_MAX),
            control_pid: None,
            is_control_given: false,
        }
    }

    /// When to send [`Event::Timer`]; `None` when it is over.
    pub(crate) fn due_at(&self) -> Option<Duration> {
        (self.step != Step::Over).then_some(self.due_at)
    }

    /// Whether our control has been told to end.
    pub(crate) fn is_control_given(&self) -> bool {
        self.is_control_given
    }

    /// The new side's control process, as far as is known.
    pub(crate) fn control_pid(&self) -> Option<u32> {
        self.control_pid
    }

    /// Whether the end of our control is waited for.
    pub(crate) fn is_emptying(&self) -> bool {
        self.step == Step::Emptying
    }

    /// Takes an event.
    pub(crate) fn step(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match (self.step, event) {
            (Step::Over, _) => Vec::new(),
            (_, Event::Said(FromNew::Refused { reason, code })) => {
                self.take_back(format!("the new build refuses: {reason}"), code)
            }
            (_, Event::Gone { how }) => {
                self.take_back(format!("the new supervisor {how}"), exit::FATAL)
            }
            (_, Event::Cancel { reason }) => self.take_back(reason, exit::UNAVAILABLE),
            (_, Event::Timer) if now < self.due_at => Vec::new(),
            (step, Event::Timer) => {
                self.take_back(format!("{} in time", step.failure()), exit::FATAL)
            }
            (Step::Emptying, Event::ControlEnded) => {
                self.wait(Step::Control, self.control_limit, now);
                let line = "control of this build has ended, the new one starts";
                vec![Action::Report(line.into()), Action::StartControl]
            }
            (_, Event::ControlEnded) => Vec::new(),
            (_, Event::Said(said)) => self.hear(said, now),
        }
    }

    fn hear(&mut self, said: FromNew, now: Duration) -> Vec<Action> {
        match (self.step, said) {
            (Step::Preparing, FromNew::Prepared(prepared)) => {
                let line = format!("build {} is started and takes over", prepared.build);
                let mut actions = vec![Action::Check(prepared), Action::Report(line)];
                actions.extend(self.hand_next(now));
                actions
            }
            (Step::Handing(sent), FromNew::Took { count }) if count == sent => self.hand_next(now),
            (Step::Counting, FromNew::Holds { count }) if count == self.count => {
                self.wait(Step::Emptying, EMPTY_LIMIT, now);
                self.is_control_given = true;
                let line = format!("{count} descriptors are handed over");
                vec![Action::Report(line), Action::EndControl]
            }
            (Step::Control, FromNew::ControlStarted { pid }) => {
                self.control_pid = Some(pid);
                Vec::new()
            }
            (Step::Control, FromNew::ControlReady) => {
                let line = "control of the new build serves";
                let mut actions = vec![Action::Report(line.into())];
                actions.extend(self.next_slot(now));
                actions
            }
            // It may have had to start them again.
            (Step::Slot(_) | Step::Committing, FromNew::ControlStarted { pid }) => {
                self.control_pid = Some(pid);
                self.take_back(
                    "control of the new build has ended again".into(),
                    exit::FATAL,
                )
            }
            (Step::Slot(slot), FromNew::SlotReady { slot: ready }) if slot == ready => {
                let line = format!("worker {slot} of the new build serves");
                let mut actions = vec![Action::Report(line), Action::Rest(slot)];
                actions.extend(self.next_slot(now));
                actions
            }
            (Step::Slot(_) | Step::Committing, FromNew::SlotReady { .. }) => Vec::new(),
            (Step::Committing, FromNew::Serves) => {
                self.step = Step::Over;
                vec![Action::Finish]
            }
            (step, said) => self.take_back(
                format!("the new supervisor said {said:?} while {step:?}"),
                exit::FATAL,
            ),
        }
    }

    fn hand_next(&mut self, now: Duration) -> Vec<Action> {
        match self.chunks.pop_front() {
            Some(count) => {
                self.wait(Step::Handing(count), ANSWER_LIMIT, now);
                vec![Action::Hand]
            }
            None => {
                // It may have to bind what we do not have.
                self.wait(Step::Counting, PREPARE_LIMIT, now);
                vec![Action::SendEstate]
            }
        }
    }

    fn next_slot(&mut self, now: Duration) -> Vec<Action> {
        match self.slots.pop_front() {
            Some(slot) => {
                self.wait(Step::Slot(slot), SLOT_LIMIT, now);
                vec![Action::StartSlot(slot)]
            }
            None => {
                self.wait(Step::Committing, ANSWER_LIMIT, now);
                vec![Action::Commit]
            }
        }
    }

    fn wait(&mut self, step: Step, limit: Duration, now: Duration) {
        self.step = step;
        self.due_at = now + limit;
    }

    fn take_back(&mut self, reason: String, code: u8) -> Vec<Action> {
        self.step = Step::Over;
        vec![Action::TakeBack { reason, code }]
    }
}

impl Step {
    /// What has not happened.
    fn failure(self) -> String {
        match self {
            Self::Preparing => "the new supervisor was not prepared".into(),
            Self::Handing(_) | Self::Counting => {
                "the new supervisor did not take the descriptors".into()
            }
            Self::Emptying => "control of this build did not end".into(),
            Self::Control => "control of the new build was not ready".into(),
            Self::Slot(slot) => format!("worker {slot} of the new build was not ready"),
            Self::Committing => "the new supervisor did not begin to serve".into(),
            Self::Over => "the upgrade did not end".into(),
        }
    }
}

#[cfg(test)]
#[path = "handover_tests.rs"]
mod tests;
