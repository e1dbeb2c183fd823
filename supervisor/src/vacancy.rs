//! What becomes of the sockets of a slot that has no process and gets none: what waits there is served by the others, then
//! they stop to listen. Pure.
//!
//! Where the kernel moves connections between listeners (`net.ipv4.tcp_migrate_req`), to stop is enough. Elsewhere it would
//! reset what waits, so another worker takes it first.

use std::time::Duration;

use fleet_protocol::limits::{EXCHANGE_DEADLINE, SWEEP_TIME};

/// A sweep is over: the worker has let go.
const SWEEP_OVER: Duration = SWEEP_TIME.saturating_add(Duration::from_secs(1));
/// Sweeps of one queue. Nobody new comes, so that the first is the last, unless the kernel does not steer.
const SWEEPS_MAX: u32 = 3;

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vacancy {
    /// The sockets listen, and nobody takes what waits there.
    Waiting {
        /// Since then.
        since: Duration,
    },
    /// Another worker takes it.
    Swept {
        /// Since then.
        since: Duration,
        /// The how-many-eth time.
        sweeps: u32,
    },
    /// They listen no more.
    Shut {
        /// Since then.
        since: Duration,
    },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing yet.
    None,
    /// Hand the sockets to a worker that serves.
    Sweep,
    /// Stop to listen.
    Shut,
}

/// What is known of the world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// The kernel moves what waits to others, all of which are ours.
    pub(crate) can_migrate: bool,
    /// Another worker serves.
    pub(crate) is_served: bool,
    /// Somebody waits.
    pub(crate) is_waiting: bool,
}

impl Vacancy {
    /// What to do at `now`. Having done it, tell [`Self::done`].
    pub(crate) fn step(self, facts: Facts, now: Duration) -> Step {
        match self {
            Self::Waiting { .. } if facts.is_served && facts.can_migrate => Step::Shut,
            Self::Waiting { .. } if facts.is_served => Step::Sweep,
            // Whoever waits has given up.
            Self::Waiting { since } if now >= since + EXCHANGE_DEADLINE => Step::Shut,
            Self::Swept { since, .. } if now < since + SWEEP_OVER => Step::None,
            Self::Swept { sweeps, .. }
                if facts.is_waiting && facts.is_served && sweeps < SWEEPS_MAX =>
            {
                Step::Sweep
            }
            Self::Swept { .. } => Step::Shut,
            Self::Waiting { .. } | Self::Shut { .. } => Step::None,
        }
    }

    /// After a step at `now`.
    pub(crate) fn done(self, step: Step, now: Duration) -> Self {
        match (step, self) {
            (Step::None, _) => self,
            (Step::Sweep, Self::Swept { sweeps, .. }) => Self::Swept {
                since: now,
                sweeps: sweeps + 1,
            },
            (Step::Sweep, _) => Self::Swept {
                since: now,
                sweeps: 1,
            },
            (Step::Shut, _) => Self::Shut { since: now },
        }
    }

    /// Whether the sockets can be closed: the kernel moves half-open connections only while the socket that they came to is
    /// there, and does so when their peers speak.
    pub(crate) fn is_over(self, now: Duration) -> bool {
        matches!(self, Self::Shut { since } if now >= since + EXCHANGE_DEADLINE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Steps at each second until it is over.
    fn run(facts: impl Fn(u64) -> Facts) -> Vec<(u64, Step)> {
        let mut vacancy = Vacancy::Waiting {
            since: Duration::ZERO,
        };
        let mut steps = Vec::new();
        for second in 0..100 {
            let now = seconds(second);
            if vacancy.is_over(now) {
                return steps;
            }
            let step = vacancy.step(facts(second), now);
            vacancy = vacancy.done(step, now);
            if step != Step::None {
                steps.push((second, step));
            }
        }
        panic!("never over: {steps:?}");
    }

    fn facts(can_migrate: bool, is_served: bool, is_waiting: bool) -> Facts {
        Facts {
            can_migrate,
            is_served,
            is_waiting,
        }
    }

    #[test]
    fn where_the_kernel_moves_connections_it_stops_at_once() {
        assert_eq!(run(|_| facts(true, true, true)), [(0, Step::Shut)]);
    }

    #[test]
    fn elsewhere_another_worker_takes_what_waits_first() {
        assert_eq!(
            run(|_| facts(false, true, false)),
            [(0, Step::Sweep), (6, Step::Shut)]
        );
        assert_eq!(
            run(|second| facts(false, true, second < 7)),
            [(0, Step::Sweep), (6, Step::Sweep), (12, Step::Shut)]
        );
        let last = run(|_| facts(false, true, true)).pop();
        assert_eq!(last, Some((18, Step::Shut)));
    }

    #[test]
    fn nothing_is_done_while_nobody_serves_until_all_have_given_up() {
        assert_eq!(
            run(|second| facts(true, second >= 3, true)),
            [(3, Step::Shut)]
        );
        assert_eq!(run(|_| facts(true, false, true)), [(16, Step::Shut)]);
    }
}
