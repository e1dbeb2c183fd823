//! How long one may have waited in the kernel's queue of a listener to be served still. Pure: no socket, no clock.
//!
//! A herd that returns at once fills the queue, and is served within seconds: [`Allowed::queue_age`] bounds its wait. A
//! queue that stands longer than [`Allowed::queue_burst`] will not go by itself: more come than can be served, and whoever
//! waits only makes the next wait as long. From then on those who have waited longer than
//! [`Allowed::queue_age_lasting`] are refused, which costs a tenth of serving them, so that the others are served as if
//! nobody else had come; until nobody had to be refused so for [`CALM`].

use std::time::{Duration, Instant};

use fleet_protocol::limits::Allowed;

/// Agents that were refused try again at once, and then at their next interval, which is longer. So when nobody has come
/// too many for this time, the offer is less than what can be served.
const CALM: Duration = Duration::from_secs(2);

/// What is known of a listener's queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Since when all who came from it had waited.
    stands_since: Option<Instant>,
    /// While more come than can be served.
    lasts_until: Option<Instant>,
}

impl Queue {
    /// Nobody waits in it.
    pub(crate) fn emptied(&mut self) {
        self.stands_since = None;
    }

    /// The longest wait with which somebody is served now; the next one has waited for `age`.
    pub(crate) fn longest_wait(
        &mut self,
        age: Duration,
        allowed: &Allowed,
        now: Instant,
    ) -> Duration {
        let is_late = age > allowed.queue_age_lasting;
        if !is_late {
            self.stands_since = None;
        }
        let stands = is_late
            && now.saturating_duration_since(*self.stands_since.get_or_insert(now))
                >= allowed.queue_burst;
        if !stands && !self.is_lasting(now) {
            return allowed.queue_age;
        }
        if is_late {
            self.lasts_until = Some(now + CALM);
        }
        allowed.queue_age_lasting.min(allowed.queue_age)
    }

    /// Whether more come than can be served.
    fn is_lasting(&self, now: Instant) -> bool {
        self.lasts_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use fleet_protocol::config::Config;
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn allowed() -> Allowed {
        Allowed {
            queue_age: 10_000 * MS,
            queue_age_lasting: 20 * MS,
            queue_burst: 5_000 * MS,
            ..Allowed::of(&Config::default(), 1)
        }
    }

    #[test]
    fn a_herd_may_wait_and_lasting_overload_may_not() {
        let (allowed, start) = (allowed(), Instant::now());
        let mut queue = Queue::default();
        let mut wait = |at: u32, age: u32| queue.longest_wait(age * MS, &allowed, start + at * MS);
        assert_eq!(wait(0, 3_000), allowed.queue_age);
        assert_eq!(wait(4_999, 5_000), allowed.queue_age);
        assert_eq!(wait(5_000, 5_000), allowed.queue_age_lasting);
        // Those who have not waited are served meanwhile, and do not end it.
        assert_eq!(wait(5_001, 3), allowed.queue_age_lasting);
        assert_eq!(wait(5_002, 21), allowed.queue_age_lasting);
        assert_eq!(wait(7_001, 3), allowed.queue_age_lasting);
        // Two seconds after the last one who came too many.
        assert_eq!(wait(7_002, 21), allowed.queue_age);
    }

    #[test]
    fn a_queue_that_empties_now_and_then_does_not_stand() {
        let (allowed, start) = (allowed(), Instant::now());
        let mut queue = Queue::default();
        for second in 0..60 {
            let at = start + second * 1_000 * MS;
            assert_eq!(
                queue.longest_wait(900 * MS, &allowed, at),
                allowed.queue_age
            );
            if second % 4 == 3 {
                queue.emptied();
            }
        }
    }

    #[test]
    fn a_queue_without_patience_is_short_at_once() {
        let mut allowed = allowed();
        allowed.queue_burst = Duration::ZERO;
        let now = Instant::now();
        let mut queue = Queue::default();
        assert_eq!(
            queue.longest_wait(21 * MS, &allowed, now),
            allowed.queue_age_lasting
        );
    }

    proptest! {
        /// Whoever offers a multiple of what is served, for however long: a queue that is served oldest first, as here by a
        /// simulated worker, is short once the burst is over, the worker is never idle, and everybody is served within
        /// the burst's bounds again when the offer falls below what can be served.
        #[test]
        fn overload_settles_and_ends(
            serve_us in 200_u64..2_000,
            factor in 13_u64..60,
            seconds in 8_u64..20,
        ) {
            let (allowed, start) = (allowed(), Instant::now());
            let mut queue = Queue::default();
            let refuse_us = serve_us / 10;
            let overload_us = seconds * 1_000_000;
            let gap_us = serve_us * 10 / factor;
            let (mut clock_us, mut arrival_us) = (0, 0);
            let (mut idle_us, mut longest_us, mut refused_late) = (0, 0, 0);
            let end_us = overload_us + 10_000_000;
            while arrival_us < end_us {
                if arrival_us > clock_us {
                    queue.emptied();
                    if arrival_us < overload_us {
                        idle_us += arrival_us - clock_us;
                    }
                    clock_us = arrival_us;
                }
                let age = Duration::from_micros(clock_us - arrival_us);
                let at = start + Duration::from_micros(clock_us);
                let is_served = age <= queue.longest_wait(age, &allowed, at);
                clock_us += if is_served { serve_us } else { refuse_us };
                // The queue that stood is cleared at a tenth of the cost.
                let settled_us = 5_000_000 + 5_000_000 * factor / 10 / 5;
                if is_served && arrival_us > settled_us {
                    longest_us = longest_us.max(clock_us - arrival_us);
                }
                if !is_served && arrival_us > overload_us + 3_000_000 {
                    refused_late += 1;
                }
                arrival_us += if arrival_us < overload_us { gap_us } else { serve_us * 2 };
            }
            prop_assert!(idle_us <= gap_us + serve_us, "idle for {idle_us} us");
            prop_assert!(longest_us <= 20_000 + serve_us, "{longest_us} us");
            prop_assert_eq!(refused_late, 0);
        }
    }
}
