//! Token buckets: one, or a table of them for many clients in bounded memory. Pure: time and hashes are arguments.
//!
//! A bucket is one number, the moment at which it will be full again; a token moves it on by what a token takes to grow.
//! The table has a fixed number of cells in sets of four. When a set is full, the client that owes least is forgotten, and
//! has a full bucket when he comes again: a table that is too small lets through too much, and refuses nobody for others.

use std::time::Duration;

use fleet_protocol::limits::Rate;

/// Cells of one set.
const WAYS: usize = 4;

/// A rate in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// In which a token grows.
    token: u64,
    /// In which an empty bucket becomes full.
    full: u64,
}

impl Pace {
    fn of(rate: Rate) -> Self {
        let token = 1_000_000_000 / u64::from(rate.per_second.max(1));
        Self {
            token,
            full: token.saturating_mul(u64::from(rate.burst.max(1))),
        }
    }

    /// When a bucket that is full at `full_at` is full after one token more; `None` when it holds none.
    fn take(self, full_at: u64, now: u64) -> Option<u64> {
        let full_at = full_at.max(now).saturating_add(self.token);
        (full_at - now <= self.full).then_some(full_at)
    }

    /// The same tokens are missing from a bucket of this pace as were of `before`.
    fn convert(self, before: Self, full_at: u64, now: u64) -> u64 {
        let missing = full_at.saturating_sub(now).div_ceil(before.token.max(1));
        now.saturating_add(missing.saturating_mul(self.token))
    }
}

/// Nanoseconds since whoever asks began to count; a moment before that is 0.
fn nanos(since_start: Duration) -> u64 {
    u64::try_from(since_start.as_nanos()).unwrap_or(u64::MAX)
}

/// One bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    pace: Pace,
    full_at: u64,
}

impl Bucket {
    pub(crate) fn new(rate: Rate) -> Self {
        Self {
            pace: Pace::of(rate),
            full_at: 0,
        }
    }

    /// Whether there was a token.
    pub(crate) fn take(&mut self, now: Duration) -> bool {
        let taken = self.pace.take(self.full_at, nanos(now));
        self.full_at = taken.unwrap_or(self.full_at);
        taken.is_some()
    }

    /// What was taken stays taken.
    pub(crate) fn set(&mut self, rate: Rate, now: Duration) {
        let before = std::mem::replace(&mut self.pace, Pace::of(rate));
        self.full_at = self.pace.convert(before, self.full_at, nanos(now));
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    /// Hash of the client.
    client: u64,
    full_at: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Buckets {
    pace: Pace,
    sets: Box<[[Cell; WAYS]]>,
}

impl Buckets {
    /// Room for `clients`, rounded up to a power of two.
    pub(crate) fn new(rate: Rate, clients: usize) -> Self {
        let sets = clients.div_ceil(WAYS).next_power_of_two();
        Self {
            pace: Pace::of(rate),
            sets: vec![[Cell::default(); WAYS]; sets].into_boxed_slice(),
        }
    }

    /// Whether the client of this hash, which must be keyed, had a token.
    pub(crate) fn take(&mut self, client: u64, now: Duration) -> bool {
        let now = nanos(now);
        let sets = u64::try_from(self.sets.len()).unwrap_or(1).max(1);
        let place = usize::try_from(client % sets).unwrap_or_default();
        let Some(set) = self.sets.get_mut(place) else {
            return true;
        };
        // Cells that were never used look like a client that owes nothing.
        let known = set.iter().position(|cell| cell.client == client);
        let owing_least = || {
            let cells = set.iter().enumerate();
            cells.min_by_key(|(_, cell)| cell.full_at).map(|(at, _)| at)
        };
        let Some(at) = known.or_else(owing_least) else {
            return true;
        };
        let full_at = match set.get(at) {
            Some(cell) if cell.client == client => cell.full_at,
            _ => 0,
        };
        let taken = self.pace.take(full_at, now);
        if let (Some(full_at), Some(cell)) = (taken, set.get_mut(at)) {
            *cell = Cell { client, full_at };
        }
        taken.is_some()
    }

    /// What was taken stays taken.
    pub(crate) fn set(&mut self, rate: Rate, now: Duration) {
        let before = std::mem::replace(&mut self.pace, Pace::of(rate));
        for cell in self.sets.iter_mut().flatten() {
            cell.full_at = self.pace.convert(before, cell.full_at, nanos(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate { per_second, burst }
    }

    #[test]
    fn a_burst_then_the_rate() {
        let mut buckets = Buckets::new(rate(10, 3), 64);
        let at = Duration::from_millis;
        let taken = |buckets: &mut Buckets, ms| buckets.take(77, at(ms));
        for (ms, is_taken) in [
            (0, true),
            (0, true),
            (0, true),
            (0, false),
            (99, false),
            (100, true),
            (100, false),
            (5000, true),
            (5000, true),
            (5000, true),
            (5000, false),
        ] {
            assert_eq!(taken(&mut buckets, ms), is_taken, "at {ms} ms");
        }
        assert!(buckets.take(78, at(5000)), "another client has his own");
        buckets.set(rate(1000, 4), at(5000));
        assert!(taken(&mut buckets, 5000), "three of four are missing");
        assert!(!taken(&mut buckets, 5000));
        assert!(taken(&mut buckets, 5001), "the new rate holds at once");
    }

    #[test]
    fn a_full_table_refuses_nobody_for_others() {
        let mut buckets = Buckets::new(rate(1, 2), 4);
        let now = Duration::from_secs(1);
        // One client owes all he may.
        assert!(buckets.take(0, now) && buckets.take(0, now) && !buckets.take(0, now));
        for client in 1..1000 {
            assert!(buckets.take(client, now), "client {client}");
        }
        assert!(!buckets.take(0, now), "who owes most is not forgotten");
    }

    proptest! {
        /// In any span a client takes at most a burst and what grew in that time; who stays below the rate is never
        /// refused, whatever the other clients do.
        #[test]
        fn the_rate_is_never_exceeded(
            per_second in 1_u32..1000,
            burst in 1_u32..100,
            asks in prop::collection::vec((0_u64..4, 0_u64..50), 1..300),
        ) {
            let mut buckets = Buckets::new(rate(per_second, burst), 16);
            let mut single = Bucket::new(rate(per_second, burst));
            let mut now = Duration::from_secs(5);
            let mut taken: Vec<Duration> = Vec::new();
            for (client, pause_ms) in asks {
                now += Duration::from_millis(pause_ms);
                let is_taken = buckets.take(client, now);
                if client != 0 {
                    continue;
                }
                prop_assert_eq!(single.take(now), is_taken, "a table of few is as good as a bucket each");
                if is_taken {
                    taken.push(now);
                }
            }
            for (index, first) in taken.iter().enumerate() {
                for (count, last) in taken[index..].iter().enumerate() {
                    let grown = (*last - *first).as_secs_f64() * f64::from(per_second) * 1.000_001;
                    prop_assert!(count as f64 <= f64::from(burst) + grown);
                }
            }
        }

        #[test]
        fn who_keeps_to_the_rate_is_never_refused(
            per_second in 1_u32..1000,
            burst in 1_u32..100,
            noise in prop::collection::vec(1_u64..64, 0..200),
        ) {
            let mut buckets = Buckets::new(rate(per_second, burst), 8);
            let mut now = Duration::ZERO;
            for client in noise {
                for _ in 0..8 {
                    buckets.take(client, now);
                }
                now += Duration::from_secs(1) / per_second;
                prop_assert!(buckets.take(0, now));
            }
        }
    }
}
