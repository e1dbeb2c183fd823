//! Events per second from a counter that is read now and then. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// Readings kept; at one a second the rate is that of the last five seconds.
const READINGS_MAX: usize = 6;

/// A sliding window over a growing counter.
#[derive(Clone, Debug, Default)]
pub struct Rate {
    readings: VecDeque<(Duration, u64)>,
}

impl Rate {
    /// Takes a reading. A counter that went back belongs to a new process and starts the window again.
    pub fn record(&mut self, now: Duration, total: u64) {
        if self.readings.back().is_some_and(|(_, last)| *last > total) {
            self.readings.clear();
        }
        self.readings.push_back((now, total));
        if self.readings.len() > READINGS_MAX {
            self.readings.pop_front();
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.readings.clear();
    }

    /// Events per second over the window; 0 with fewer than two readings.
    pub fn per_second(&self) -> f64 {
        let (Some(first), Some(last)) = (self.readings.front(), self.readings.back()) else {
            return 0.0;
        };
        let seconds = last.0.saturating_sub(first.0).as_secs_f64();
        if seconds <= 0.0 {
            return 0.0;
        }
        // Exact up to 2^53 events within the window.
        last.1.saturating_sub(first.1) as f64 / seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_that_of_the_last_readings() {
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(), 0.0);
        for second in 0..20 {
            rate.record(Duration::from_secs(second), second * 100);
        }
        assert_eq!(rate.per_second(), 100.0);
        rate.record(Duration::from_secs(20), 0);
        assert_eq!(rate.per_second(), 0.0);
    }
}
