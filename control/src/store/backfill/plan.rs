//! Which rows come next, how many at once, and how long to leave the store to others between.
//!
//! Pure: times are arguments.

use std::time::Duration;

use crate::store::progress::Filling;

/// Rows of the first chunk, and of any.
const ROWS_FIRST: u32 = 500;
const ROWS_MIN: u32 = 50;
const ROWS_MAX: u32 = 5_000;
/// A chunk that takes longer than twice this becomes smaller, one that takes less than half of it larger: agents' writes
/// wait for its rows that long, in the embedded store for all of it.
const CHUNK_AIM: Duration = Duration::from_millis(100);
/// Between two chunks.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// After a chunk that was undone because of somebody's lock.
const UNDONE_PAUSE_MIN: Duration = Duration::from_millis(50);
const UNDONE_PAUSE_MAX: Duration = Duration::from_secs(5);
/// In a row; with the waits for the locks themselves some minutes.
const UNDONE_MAX: u32 = 60;

/// Who else uses the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Company {
    /// Nobody, so there is no need to pause.
    Alone,
    /// Servers: half of the time is theirs.
    Shared,
}

/// The keys that are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// The last one that is done.
    pub(super) after: i64,
    /// The last one to do, fixed at the beginning: later rows have what this fills in.
    pub(super) end: i64,
}

impl Span {
    pub(super) fn is_done(self) -> bool {
        self.after >= self.end
    }

    /// The last key of a chunk of at most `limit` rows, when so many rows were `found` up to the key `last`.
    pub(super) fn upto(self, limit: u32, found: u64, last: i64) -> i64 {
        if found < u64::from(limit) {
            self.end
        } else {
            last.clamp(self.after, self.end)
        }
    }
}

/// Pace of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    company: Company,
    rows: u32,
    /// Chunks undone in a row.
    undone: u32,
}

impl Plan {
    pub(super) fn new(company: Company) -> Self {
        Self {
            company,
            rows: ROWS_FIRST,
            undone: 0,
        }
    }

    /// Rows of the next chunk.
    pub(super) fn rows(&self) -> u32 {
        self.rows
    }

    /// A chunk is committed. Gives the pause before the next one.
    pub(super) fn done(&mut self, took: Duration) -> Duration {
        self.undone = 0;
        if took > CHUNK_AIM * 2 {
            self.rows = (self.rows / 2).max(ROWS_MIN);
        } else if took < CHUNK_AIM / 2 {
            self.rows = (self.rows * 2).min(ROWS_MAX);
        }
        match self.company {
            Company::Alone => Duration::ZERO,
            Company::Shared => took.min(PAUSE_MAX),
        }
    }

    /// A chunk was undone, because somebody else had locks. Gives the pause before it is tried again with fewer rows;
    /// `None` when it is time to give up.
    pub(super) fn undone(&mut self) -> Option<Duration> {
        let pause = UNDONE_PAUSE_MIN * (1 << self.undone.min(10));
        self.undone += 1;
        self.rows = (self.rows / 2).max(ROWS_MIN);
        (self.undone < UNDONE_MAX).then(|| pause.min(UNDONE_PAUSE_MAX))
    }
}

/// The count of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tally {
    migration: i64,
    rows: &'static str,
    total: u64,
    done: u64,
    /// What was done when this process began.
    found_done: u64,
    changed: u64,
    is_elsewhere: bool,
}

impl Tally {
    pub(super) fn new(migration: i64, rows: &'static str, total: u64, left: u64) -> Self {
        let done = total.saturating_sub(left);
        Self {
            migration,
            rows,
            total,
            done,
            found_done: done,
            changed: 0,
            is_elsewhere: false,
        }
    }

    /// This process has done a chunk.
    pub(super) fn add(&mut self, rows: u64, changed: u64) {
        self.is_elsewhere = false;
        // Hosts come and go; the total was counted once.
        self.done = (self.done + rows).min(self.total);
        self.changed += changed;
    }

    /// Another node is at it, and so many rows are left.
    pub(super) fn look_on(&mut self, left: u64) {
        self.is_elsewhere = true;
        self.done = self.done.max(self.total.saturating_sub(left));
    }

    pub(super) fn finish(&mut self) {
        self.done = self.total;
    }

    /// For people.
    pub(super) fn filling(&self, elapsed: Duration) -> Filling {
        let left = self.total.saturating_sub(self.done);
        let pace = self.done.saturating_sub(self.found_done);
        Filling {
            migration: self.migration,
            rows: self.rows,
            done: self.done,
            total: self.total,
            changed: self.changed,
            elapsed,
            left: (pace > 0).then(|| {
                let micros = elapsed.as_micros() * u128::from(left) / u128::from(pace);
                Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
            }),
            is_elsewhere: self.is_elsewhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pause_is_as_long_as_its_chunk() {
        let took = Duration::from_millis(70);
        assert_eq!(Plan::new(Company::Shared).done(took), took);
        assert_eq!(Plan::new(Company::Alone).done(took), Duration::ZERO);
        let long = Duration::from_secs(60);
        assert_eq!(Plan::new(Company::Shared).done(long), PAUSE_MAX);
    }

    #[test]
    fn slow_chunks_become_smaller_and_quick_ones_larger() {
        let mut plan = Plan::new(Company::Shared);
        for _ in 0..20 {
            plan.done(Duration::from_millis(1));
        }
        assert_eq!(plan.rows(), ROWS_MAX);
        plan.done(CHUNK_AIM);
        assert_eq!(plan.rows(), ROWS_MAX);
        for _ in 0..20 {
            plan.done(Duration::from_secs(1));
        }
        assert_eq!(plan.rows(), ROWS_MIN);
    }

    #[test]
    fn locks_are_waited_for_and_at_last_given_up() {
        let mut plan = Plan::new(Company::Alone);
        let pauses: Vec<Duration> = std::iter::from_fn(|| plan.undone()).collect();
        assert_eq!(pauses.len() + 1, UNDONE_MAX as usize);
        assert_eq!(pauses[0], UNDONE_PAUSE_MIN);
        assert!(pauses.is_sorted());
        assert_eq!(pauses.last(), Some(&UNDONE_PAUSE_MAX));
        assert_eq!(plan.rows(), ROWS_MIN);
        // A success begins the count anew.
        plan.done(CHUNK_AIM);
        assert_eq!(plan.undone(), Some(UNDONE_PAUSE_MIN));
    }

    #[test]
    fn what_is_left_takes_as_long_as_what_was_done() {
        let mut tally = Tally::new(4, "hosts", 1_000, 800);
        let begun = tally.filling(Duration::from_secs(3));
        assert_eq!((begun.done, begun.left), (200, None));
        tally.add(200, 150);
        let half = tally.filling(Duration::from_secs(10));
        assert_eq!((half.done, half.changed), (400, 150));
        assert_eq!(half.left, Some(Duration::from_secs(30)));
        tally.look_on(100);
        // An older answer moves nothing back.
        tally.look_on(500);
        let seen = tally.filling(Duration::from_secs(10));
        assert_eq!((seen.done, seen.is_elsewhere), (900, true));
        // More rows than were counted.
        tally.add(5_000, 0);
        assert_eq!(tally.filling(Duration::ZERO).rows_left(), 0);
    }

    proptest! {
        /// Whatever the keys, the chunks' times and what happens between, each key that was there at the beginning is
        /// in exactly one chunk.
        #[test]
        fn every_row_is_in_one_chunk(
            keys in proptest::collection::btree_set(1..5_000i64, 0..2_000),
            times_ms in proptest::collection::vec(proptest::option::of(0..1_000u64), 1..50),
            later in 0..100i64,
        ) {
            let end = keys.last().copied().unwrap_or(0);
            let mut table: BTreeSet<i64> = keys.clone();
            let mut plan = Plan::new(Company::Shared);
            let mut span = Span { after: 0, end };
            let mut seen = Vec::new();
            let mut times = times_ms.iter().cycle();
            // A chunk that is undone does not count; some are not.
            let mut patience = 20_000;
            while !span.is_done() {
                patience -= 1;
                if patience == 0 {
                    prop_assert!(times_ms.iter().all(Option::is_none));
                    return Ok(());
                }
                let limit = plan.rows();
                prop_assert!((ROWS_MIN..=ROWS_MAX).contains(&limit));
                let part: Vec<i64> = table
                    .range(span.after + 1..=span.end)
                    .copied()
                    .take(limit as usize)
                    .collect();
                let last = part.last().copied().unwrap_or(0);
                let upto = span.upto(limit, part.len() as u64, last);
                match times.next().unwrap() {
                    Some(ms) => {
                        plan.done(Duration::from_millis(*ms));
                        seen.extend(table.range(span.after + 1..=upto).copied());
                        prop_assert!(upto > span.after);
                        span.after = upto;
                    }
                    None => {
                        plan.undone();
                    }
                }
                // Rows that come while it goes on are beyond its end.
                table.insert(end + 1 + later);
            }
            prop_assert_eq!(seen, keys.into_iter().collect::<Vec<_>>());
        }
    }
}
