//! When to start a dead child again, and when to stop trying. Pure: `now` and the jitter are arguments.
//!
//! Invariants: a delay is never outside [`DELAY_MIN`]..=[`DELAY_MAX`], whatever the jitter; at most [`QUICK_DEATHS_MAX`]
//! deaths are remembered.

use std::collections::VecDeque;
use std::time::Duration;

/// Shortest delay.
pub const DELAY_MIN: Duration = Duration::from_millis(100);
/// Longest delay.
pub const DELAY_MAX: Duration = Duration::from_secs(30);
/// A child that served this long starts with a clean record.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// This many deaths within [`QUICK_DEATHS_WINDOW`] are a crash loop.
pub const QUICK_DEATHS_MAX: usize = 5;
/// See [`QUICK_DEATHS_MAX`].
pub const QUICK_DEATHS_WINDOW: Duration = Duration::from_secs(60);

/// The record of one child's deaths. Times are durations since the supervisor's start.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    deaths: VecDeque<Duration>,
    doublings: u32,
}

/// What a death means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Wait this long before the next start.
    pub delay: Duration,
    /// Whether the child dies again and again.
    pub is_crash_loop: bool,
}

impl Backoff {
    /// Records a death at `now` of a child that had been ready for `served`. `jitter` is 0.0 to 1.0 and decides how
    /// long to wait within the lower and upper half of the present step, so that children that died together do not
    /// come back together.
    pub fn record_death(&mut self, now: Duration, served: Duration, jitter: f64) -> Verdict {
        if served >= HEALTHY_AFTER {
            self.deaths.clear();
            self.doublings = 0;
        }
        while self
            .deaths
            .front()
            .is_some_and(|at| now.saturating_sub(*at) > QUICK_DEATHS_WINDOW)
        {
            self.deaths.pop_front();
        }
        self.deaths.push_back(now);
        let is_crash_loop = self.deaths.len() >= QUICK_DEATHS_MAX;
        if is_crash_loop {
            self.deaths.pop_front();
        }
        let step = DELAY_MIN
            .saturating_mul(2_u32.saturating_pow(self.doublings.saturating_add(1)))
            .min(DELAY_MAX);
        self.doublings = self.doublings.saturating_add(1).min(16);
        let jitter = if jitter.is_finite() {
            jitter.clamp(0.0, 1.0)
        } else {
            0.0
        };
        let half = step / 2;
        Verdict {
            delay: (half + half.mul_f64(jitter)).clamp(DELAY_MIN, DELAY_MAX),
            is_crash_loop,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn delays_double_up_to_the_longest() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..12)
            .map(|n| {
                let now = seconds(n * 100);
                backoff
                    .record_death(now, Duration::ZERO, 1.0)
                    .delay
                    .as_millis()
            })
            .collect();
        assert_eq!(
            delays,
            [
                200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000, 30_000, 30_000
            ]
        );
    }

    #[test]
    fn the_fifth_quick_death_is_a_crash_loop() {
        let mut backoff = Backoff::default();
        let verdicts: Vec<_> = (0..5)
            .map(|n| {
                let verdict = backoff.record_death(seconds(n), Duration::ZERO, 0.5);
                verdict.is_crash_loop
            })
            .collect();
        assert_eq!(verdicts, [false, false, false, false, true]);
    }

    #[test]
    fn a_minute_of_service_clears_the_record() {
        let mut backoff = Backoff::default();
        for n in 0..4 {
            backoff.record_death(seconds(n), Duration::ZERO, 0.0);
        }
        let verdict = backoff.record_death(seconds(70), HEALTHY_AFTER, 0.0);
        assert_eq!(
            verdict,
            Verdict {
                delay: DELAY_MIN,
                is_crash_loop: false
            }
        );
    }

    proptest! {
        #[test]
        fn delays_stay_in_bounds_and_memory_too(
            deaths in prop::collection::vec((0_u64..200_000, 0_u64..100_000, any::<f64>()), 1..64),
        ) {
            let (mut backoff, mut now) = (Backoff::default(), Duration::ZERO);
            for (gap_ms, served_ms, jitter) in deaths {
                now += Duration::from_millis(gap_ms);
                let verdict = backoff.record_death(now, Duration::from_millis(served_ms), jitter);
                prop_assert!((DELAY_MIN..=DELAY_MAX).contains(&verdict.delay));
                prop_assert!(backoff.deaths.len() <= QUICK_DEATHS_MAX);
            }
        }

        #[test]
        fn slow_deaths_are_never_a_crash_loop(gaps in prop::collection::vec(15_001_u64..100_000, 1..40)) {
            let (mut backoff, mut now) = (Backoff::default(), Duration::ZERO);
            for gap_ms in gaps {
                now += Duration::from_millis(gap_ms);
                prop_assert!(!backoff.record_death(now, Duration::ZERO, 0.5).is_crash_loop);
            }
        }
    }
}
