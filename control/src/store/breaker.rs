//! Decides whether the store is asked at all. Pure: the time and the dice are arguments.
//!
//! Closed, it watches two things over a window: how long callers wait for a connection, and how statements end. It
//! opens when half or more of either goes wrong, and at once when nobody answers the door. Open, it refuses everybody
//! but one probe at a time, with a growing pause between two of them; a probe's success closes it.
//!
//! Invariant: who is refused hears that the store is away or denies access, never that it failed: results that a store
//! failed at are given up.

use std::time::Duration;

use tokio::time::Instant;

use super::error::Error;

/// Half of the window; what is older than the whole is forgotten.
const HALF_WINDOW: Duration = Duration::from_secs(5);
/// A wait for a connection that is slow.
pub(super) const SLOW_WAIT: Duration = Duration::from_secs(1);
/// Fewer bad signs than these in a window mean nothing.
const BAD_MIN: u32 = 4;
/// What a statement without an answer weighs; one with an error weighs one.
const SILENCE_WEIGHT: u32 = 2;
/// A server that answered so recently is not gone because one connection failed.
const FRESH: Duration = Duration::from_secs(1);
/// First pause before a probe; doubled by each failure.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// Longest pause, before the dice.
const PAUSE_MAX: Duration = Duration::from_secs(4);
/// Opening again so soon goes on with the pause where it was.
const CALM: Duration = Duration::from_secs(10);

/// What was seen of the store.
#[derive(Clone, Debug)]
pub(super) enum Sign {
    /// A connection was got from the pool.
    Waited(Duration),
    /// None was got in time, and all of the pool's are in use.
    Crowded(Error),
    /// A statement was answered.
    Answered,
    /// A statement failed for a reason that lies with the server or the way to it.
    Failed(Error),
    /// A statement was not answered in time.
    Silent(Error),
    /// No connection could be made.
    Unreachable(Error),
}

/// What a caller may do.
#[derive(Debug)]
pub(super) enum Entry {
    /// Ask.
    Pass,
    /// Ask first and alone; the outcome goes to [`Breaker::probed`].
    Probe,
    /// Do not ask; this is why.
    Refuse(Error),
}

/// What operators hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Opened(Error),
    Closed { after: Duration },
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    open: Option<Open>,
    waits: Window,
    answers: Window,
    answered_at: Option<Instant>,
    /// A connection broke, and nothing was answered since.
    is_doubtful: bool,
    /// Failed probes, kept for a while after the end of an outage.
    strikes: u32,
    closed_at: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    since: Instant,
    error: Error,
    probe_at: Instant,
    is_probing: bool,
}

impl Breaker {
    /// Asked before each call.
    pub(super) fn enter(&mut self, now: Instant) -> Entry {
        match &mut self.open {
            None => Entry::Pass,
            Some(open) if open.is_probing || now < open.probe_at => {
                Entry::Refuse(open.error.clone())
            }
            Some(open) => {
                open.is_probing = true;
                Entry::Probe
            }
        }
    }

    /// Whether a wait for a connection should be short: the last thing heard was that one broke.
    pub(super) fn is_doubtful(&self) -> bool {
        self.is_doubtful
    }

    /// Since when it is open.
    pub(super) fn open_since(&self) -> Option<Instant> {
        self.open.as_ref().map(|open| open.since)
    }

    /// Takes a sign of a caller that was let pass. What comes late, after the opening, changes nothing.
    pub(super) fn note(&mut self, sign: Sign, now: Instant, dice: u32) -> Option<Change> {
        if self.open.is_some() {
            return None;
        }
        let (error, is_enough) = match sign {
            Sign::Answered => {
                self.answers.add(1, 0, now);
                self.answered_at = Some(now);
                self.is_doubtful = false;
                return None;
            }
            Sign::Waited(wait) if wait < SLOW_WAIT => {
                self.waits.add(1, 0, now);
                return None;
            }
            Sign::Waited(wait) => {
                let text = format!("a connection was waited for {} ms", wait.as_millis());
                let error = Error::Unavailable(text);
                (error, self.waits.add(1, 1, now))
            }
            Sign::Crowded(error) => (error, self.waits.add(1, 1, now)),
            Sign::Failed(error) => {
                self.is_doubtful = true;
                (error, self.answers.add(1, 1, now))
            }
            Sign::Silent(error) => {
                self.is_doubtful = true;
                let is_enough = self.answers.add(SILENCE_WEIGHT, SILENCE_WEIGHT, now);
                (error, is_enough)
            }
            Sign::Unreachable(error) => {
                self.is_doubtful = true;
                let is_enough = self.answers.add(SILENCE_WEIGHT, SILENCE_WEIGHT, now);
                let is_fresh = self.answered_at.is_some_and(|at| now < at + FRESH);
                (error, is_enough || !is_fresh)
            }
        };
        if !is_enough {
            return None;
        }
        if self.closed_at.is_none_or(|at| now >= at + CALM) {
            self.strikes = 0;
        }
        let error = error.on_the_way();
        self.open = Some(Open {
            since: now,
            error: error.clone(),
            probe_at: now + pause(self.strikes, dice),
            is_probing: false,
        });
        Some(Change::Opened(error))
    }

    /// Takes the outcome of a probe. An error replaces the one that callers are refused with.
    pub(super) fn probed(
        &mut self,
        outcome: Result<(), Error>,
        now: Instant,
        dice: u32,
    ) -> Option<Change> {
        let open = self.open.as_mut()?;
        match outcome {
            Ok(()) => {
                let after = now.saturating_duration_since(open.since);
                let strikes = self.strikes.saturating_add(1);
                *self = Self {
                    strikes,
                    closed_at: Some(now),
                    answered_at: Some(now),
                    ..Self::default()
                };
                Some(Change::Closed { after })
            }
            Err(error) => {
                self.strikes = self.strikes.saturating_add(1);
                open.error = error.on_the_way();
                open.is_probing = false;
                open.probe_at = now + pause(self.strikes, dice);
                None
            }
        }
    }
}

/// Between three and five quarters of what the strikes say, by the dice, so that gateways do not knock in step.
fn pause(strikes: u32, dice: u32) -> Duration {
    let whole = PAUSE_FIRST
        .saturating_mul(1 << strikes.min(8))
        .min(PAUSE_MAX);
    let quarter = whole / 4;
    quarter * 3 + quarter * (dice % 1024) / 512
}

/// Counts over the last five to ten seconds.
#[derive(Debug, Default)]
struct Window {
    begun: Option<Instant>,
    current: Tally,
    previous: Tally,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    all: u32,
    bad: u32,
}

impl Window {
    /// Whether there are now enough bad ones, and half or more are.
    fn add(&mut self, all: u32, bad: u32, now: Instant) -> bool {
        let begun = *self.begun.get_or_insert(now);
        let age = now.saturating_duration_since(begun);
        if age >= HALF_WINDOW * 2 {
            *self = Self {
                begun: Some(now),
                ..Self::default()
            };
        } else if age >= HALF_WINDOW {
            self.begun = Some(begun + HALF_WINDOW);
            self.previous = std::mem::take(&mut self.current);
        }
        self.current.all = self.current.all.saturating_add(all);
        self.current.bad = self.current.bad.saturating_add(bad);
        let all = self.current.all.saturating_add(self.previous.all);
        let bad = self.current.bad.saturating_add(self.previous.bad);
        bad >= BAD_MIN && bad.saturating_mul(2) >= all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gone() -> Error {
        Error::Unavailable("gone".into())
    }

    /// Opens it as a server does that refuses connections.
    fn open(breaker: &mut Breaker, now: Instant) {
        let change = breaker.note(Sign::Unreachable(gone()), now, 0);
        assert_eq!(change, Some(Change::Opened(gone())));
    }

    #[test]
    fn one_caller_at_a_time_probes() {
        let mut breaker = Breaker::default();
        let start = Instant::now();
        assert!(matches!(breaker.enter(start), Entry::Pass));
        open(&mut breaker, start);
        assert!(matches!(breaker.enter(start), Entry::Refuse(error) if error == gone()));
        let later = start + PAUSE_FIRST;
        assert!(matches!(breaker.enter(later), Entry::Probe));
        assert!(matches!(breaker.enter(later), Entry::Refuse(_)));
        let worse = Error::Denied("no".into());
        assert_eq!(breaker.probed(Err(worse.clone()), later, 0), None);
        assert!(matches!(breaker.enter(later), Entry::Refuse(error) if error == worse));
        let last = later + PAUSE_FIRST * 2;
        assert!(matches!(breaker.enter(last), Entry::Probe));
        let after = last - start;
        assert_eq!(
            breaker.probed(Ok(()), last, 0),
            Some(Change::Closed { after })
        );
        assert!(matches!(breaker.enter(last), Entry::Pass));
    }

    #[test]
    fn nobody_is_refused_with_a_failure() {
        let mut breaker = Breaker::default();
        let start = Instant::now();
        let failed = || Error::Failed("blocked".into());
        breaker.note(Sign::Unreachable(failed()), start, 0);
        let away = Error::Unavailable("blocked".into());
        assert!(matches!(breaker.enter(start), Entry::Refuse(error) if error == away));
        let later = start + PAUSE_FIRST;
        assert!(matches!(breaker.enter(later), Entry::Probe));
        breaker.probed(Err(failed()), later, 0);
        assert!(matches!(breaker.enter(later), Entry::Refuse(error) if error == away));
    }

    #[test]
    fn a_slow_pool_opens_it_though_statements_are_answered() {
        let mut breaker = Breaker::default();
        let start = Instant::now();
        let mut opened = None;
        for call in 0..BAD_MIN {
            assert_eq!(opened, None, "after {call} calls");
            for _ in 0..10 {
                breaker.note(Sign::Answered, start, 0);
            }
            opened = breaker.note(Sign::Waited(SLOW_WAIT), start, 0);
        }
        assert!(matches!(opened, Some(Change::Opened(_))));
    }

    #[test]
    fn few_errors_among_many_answers_are_borne() {
        let mut breaker = Breaker::default();
        let start = Instant::now();
        for step in 0..1000 {
            let now = start + Duration::from_millis(10) * step;
            breaker.note(Sign::Answered, now, 0);
            breaker.note(Sign::Answered, now, 0);
            assert_eq!(breaker.note(Sign::Failed(gone()), now, 0), None);
            assert!(breaker.is_doubtful());
        }
        // One connection that cannot be made while others work.
        let now = start + Duration::from_secs(10);
        breaker.note(Sign::Answered, now, 0);
        assert_eq!(breaker.note(Sign::Unreachable(gone()), now, 0), None);
    }

    #[test]
    fn silence_opens_it_and_old_signs_are_forgotten() {
        let mut breaker = Breaker::default();
        let start = Instant::now();
        assert_eq!(breaker.note(Sign::Silent(gone()), start, 0), None);
        let later = start + HALF_WINDOW * 2;
        assert_eq!(breaker.note(Sign::Silent(gone()), later, 0), None);
        assert!(breaker.note(Sign::Silent(gone()), later, 0).is_some());
    }

    #[test]
    fn pauses_grow_to_their_bound_and_start_anew_after_a_calm() {
        let mut breaker = Breaker::default();
        let mut now = Instant::now();
        open(&mut breaker, now);
        let mut last = Duration::ZERO;
        for strikes in 1..20 {
            now += PAUSE_MAX * 2;
            assert!(matches!(breaker.enter(now), Entry::Probe));
            breaker.probed(Err(gone()), now, 512);
            let pause = pause(strikes, 512);
            assert!(pause >= last && pause <= PAUSE_MAX * 5 / 4, "{pause:?}");
            last = pause;
        }
        now += PAUSE_MAX * 2;
        assert!(matches!(breaker.enter(now), Entry::Probe));
        breaker.probed(Ok(()), now, 0);
        open(&mut breaker, now + FRESH);
        assert!(matches!(
            breaker.enter(now + FRESH + PAUSE_FIRST * 2),
            Entry::Refuse(_)
        ));
        let mut calm = Breaker {
            strikes: 9,
            closed_at: Some(now),
            ..Breaker::default()
        };
        open(&mut calm, now + CALM);
        assert!(matches!(calm.enter(now + CALM + PAUSE_FIRST), Entry::Probe));
    }

    proptest! {
        /// Whatever happens: never two probes at once, and an open breaker lets one through in bounded time.
        #[test]
        fn it_is_never_shut_for_ever(steps in prop::collection::vec((0_u8..8, 0_u64..3000, any::<u32>()), 1..200)) {
            let mut breaker = Breaker::default();
            let mut now = Instant::now();
            let mut probes = 0_u32;
            for (what, ms, dice) in steps {
                now += Duration::from_millis(ms);
                match what {
                    0 => { breaker.note(Sign::Answered, now, dice); }
                    1 => { breaker.note(Sign::Failed(gone()), now, dice); }
                    2 => { breaker.note(Sign::Silent(gone()), now, dice); }
                    3 => { breaker.note(Sign::Unreachable(gone()), now, dice); }
                    4 => { breaker.note(Sign::Waited(Duration::from_millis(ms)), now, dice); }
                    5 if probes > 0 => { breaker.probed(Ok(()), now, dice); probes -= 1; }
                    6 if probes > 0 => { breaker.probed(Err(gone()), now, dice); probes -= 1; }
                    _ => if matches!(breaker.enter(now), Entry::Probe) {
                        probes += 1;
                        prop_assert_eq!(probes, 1);
                    },
                }
            }
            if breaker.open_since().is_some() && probes == 0 {
                now += PAUSE_MAX * 2;
                prop_assert!(matches!(breaker.enter(now), Entry::Probe));
            }
        }
    }
}
