//! Which batches of lines were stored a moment ago, so that one that comes again is not stored twice. Pure.
//!
//! An agent whose connection breaks sends the same bytes again at once, on another connection and maybe to another
//! worker; it cannot know that we have them. A batch is known by its host, its log type and a 128-bit hash of its lines:
//! no host can make another's lines vanish, and chance makes no two batches of one host equal. Empty batches are not
//! remembered.
//!
//! Results carry their time and a counter, so equal bytes within [`REPEAT_WINDOW`] are one batch sent twice. Status lines
//! carry their time in seconds and no counter, so an agent may mean it when it sends equal bytes again; their
//! [`window`] is the time that one exchange of an agent may take, in which a repetition is expected. What remains: a
//! host's two status batches that are equal byte for byte, with all their times of the same second, and come within that
//! window, are stored once (each line of the second stands in the first); and a status batch that is
//! sent again later than that is stored twice.
//!
//! Memory is bounded: at most [`REPEATS_MAX`] stored batches, for their window each; the oldest gives way. Those under
//! way are bounded by the journal's queue.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fleet_protocol::agent::LogType;
use fleet_protocol::ids::HostId;
use hashbrown::HashMap;

/// A batch of results is remembered for this long after it was stored; one of status logs for less.
pub(super) const REPEAT_WINDOW: Duration = Duration::from_secs(60);
/// An agent's deadline for one exchange.
const STATUS_WINDOW: Duration = Duration::from_secs(16);
/// Stored batches that are remembered: 4,369 a second, in at most 48 MiB.
pub(super) const REPEATS_MAX: usize = 1 << 18;

/// For how long a batch is remembered after it was stored.
pub(super) fn window(log_type: LogType) -> Duration {
    match log_type {
        LogType::Result => REPEAT_WINDOW,
        LogType::Status => STATUS_WINDOW,
    }
}

/// One batch of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) host: HostId,
    pub(super) log_type: LogType,
    /// Of the lines.
    pub(super) fingerprint: u128,
}

/// What to do with a batch that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Store it, then call [`Repeats::finish`].
    Store,
    /// The same is being stored; call [`Repeats::wait`] to hear how that ends.
    Wait,
    /// It is stored.
    Stored,
}

/// Batches under way and stored ones. `W` is told when the first of several equal batches ends.
#[derive(Debug)]
pub(super) struct Repeats<W> {
    batches: HashMap<Key, State<W>>,
    /// Stored ones of each of [`LogType::ALL`], oldest first.
    stored: [VecDeque<(Instant, Key)>; LogType::ALL.len()],
}

#[derive(Debug)]
enum State<W> {
    UnderWay(Vec<W>),
    Stored,
}

impl<W> Default for Repeats<W> {
    fn default() -> Self {
        Self {
            batches: HashMap::new(),
            stored: Default::default(),
        }
    }
}

impl<W> Repeats<W> {
    /// A batch came in.
    pub(super) fn begin(&mut self, key: Key, now: Instant) -> Verdict {
        self.forget_old(now);
        match self.batches.get(&key) {
            Some(State::Stored) => Verdict::Stored,
            Some(State::UnderWay(_)) => Verdict::Wait,
            None => {
                self.batches.insert(key, State::UnderWay(Vec::new()));
                Verdict::Store
            }
        }
    }

    /// Waits for the equal batch that is under way.
    pub(super) fn wait(&mut self, key: &Key, waiter: W) {
        if let Some(State::UnderWay(waiters)) = self.batches.get_mut(key) {
            waiters.push(waiter);
        }
    }

    /// A batch was stored, or was not: everybody who waits for it. One that was not may be tried again by anybody.
    pub(super) fn finish(&mut self, key: Key, is_stored: bool, now: Instant) -> Vec<W> {
        let waiters = match self.batches.remove(&key) {
            Some(State::UnderWay(waiters)) => waiters,
            Some(State::Stored) => {
                self.batches.insert(key, State::Stored);
                return Vec::new();
            }
            None => Vec::new(),
        };
        if is_stored {
            self.remember(key, now);
        }
        waiters
    }

    /// A batch is known to be stored. False when it is under way again, which is left to its end.
    pub(super) fn remember(&mut self, key: Key, now: Instant) -> bool {
        self.forget_old(now);
        match self.batches.get(&key) {
            Some(State::Stored) => return true,
            Some(State::UnderWay(_)) => return false,
            None => {}
        }
        while self.remembered() >= REPEATS_MAX {
            self.forget_first();
        }
        self.batches.insert(key, State::Stored);
        let [results, status] = &mut self.stored;
        match key.log_type {
            LogType::Result => results.push_back((now, key)),
            LogType::Status => status.push_back((now, key)),
        }
        true
    }

    /// Nobody will end the batches that are under way: everybody who waits for one.
    pub(super) fn abandon(&mut self) -> Vec<W> {
        let is_under_way = |_: &Key, state: &mut State<W>| matches!(state, State::UnderWay(_));
        let abandoned = self.batches.extract_if(is_under_way);
        abandoned
            .flat_map(|(_, state)| match state {
                State::UnderWay(waiters) => waiters,
                State::Stored => Vec::new(),
            })
            .collect()
    }

    /// Stored batches that are remembered.
    pub(super) fn remembered(&self) -> usize {
        self.stored.iter().map(VecDeque::len).sum()
    }

    fn forget_old(&mut self, now: Instant) {
        for stored in &mut self.stored {
            while let Some((at, key)) = stored.front()
                && now.saturating_duration_since(*at) > window(key.log_type)
            {
                self.batches.remove(key);
                stored.pop_front();
            }
        }
    }

    /// Of both types.
    fn forget_first(&mut self) {
        let first = |stored: &&mut VecDeque<(Instant, Key)>| stored.front().map(|(at, _)| *at);
        let oldest = self
            .stored
            .iter_mut()
            .filter(|stored| !stored.is_empty())
            .min_by_key(first);
        if let Some((_, key)) = oldest.and_then(VecDeque::pop_front) {
            self.batches.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn key(host: u32, fingerprint: u128) -> Key {
        Key {
            host: HostId(host),
            log_type: LogType::Result,
            fingerprint,
        }
    }

    #[test]
    fn a_batch_is_stored_once_within_the_window() {
        let (mut repeats, now) = (Repeats::<u32>::default(), Instant::now());
        assert_eq!(repeats.begin(key(1, 5), now), Verdict::Store);
        assert_eq!(repeats.begin(key(1, 5), now), Verdict::Wait);
        repeats.wait(&key(1, 5), 8);
        repeats.wait(&key(1, 5), 9);
        // Neither another host's nor the other type's.
        assert_eq!(repeats.begin(key(2, 5), now), Verdict::Store);
        let status = Key {
            log_type: LogType::Status,
            ..key(1, 5)
        };
        assert_eq!(repeats.begin(status, now), Verdict::Store);
        assert_eq!(repeats.finish(key(1, 5), true, now), [8, 9]);
        assert_eq!(repeats.begin(key(1, 5), now), Verdict::Stored);
        let later = now + REPEAT_WINDOW;
        assert_eq!(repeats.begin(key(1, 5), later), Verdict::Stored);
        let too_late = later + Duration::from_millis(1);
        assert_eq!(repeats.begin(key(1, 5), too_late), Verdict::Store);
        assert_eq!(repeats.remembered(), 0);
    }

    #[test]
    fn status_batches_are_known_for_one_exchange_only() {
        let (mut repeats, now) = (Repeats::<u32>::default(), Instant::now());
        let result = key(1, 5);
        let status = Key {
            log_type: LogType::Status,
            ..result
        };
        repeats.remember(result, now);
        repeats.remember(status, now);
        let at = now + Duration::from_secs(16);
        assert_eq!(repeats.begin(status, at), Verdict::Stored);
        // The agent logs the same once more.
        let at = at + Duration::from_millis(1);
        assert_eq!(repeats.begin(status, at), Verdict::Store);
        assert_eq!(repeats.begin(result, at), Verdict::Stored);
        assert_eq!(repeats.remembered(), 1);
    }

    #[test]
    fn batches_that_nobody_will_end_are_abandoned() {
        let (mut repeats, now) = (Repeats::<u32>::default(), Instant::now());
        repeats.remember(key(1, 4), now);
        assert_eq!(repeats.begin(key(1, 5), now), Verdict::Store);
        repeats.wait(&key(1, 5), 8);
        assert_eq!(repeats.abandon(), [8]);
        assert_eq!(repeats.begin(key(1, 4), now), Verdict::Stored);
        assert_eq!(repeats.begin(key(1, 5), now), Verdict::Store);
    }

    #[test]
    fn what_was_not_stored_may_come_again() {
        let (mut repeats, now) = (Repeats::<u32>::default(), Instant::now());
        assert_eq!(repeats.begin(key(1, 5), now), Verdict::Store);
        repeats.wait(&key(1, 5), 8);
        assert_eq!(repeats.finish(key(1, 5), false, now), [8]);
        assert_eq!(repeats.begin(key(1, 5), now), Verdict::Store);
    }

    #[test]
    fn memory_is_bounded() {
        let (mut repeats, now) = (Repeats::<u32>::default(), Instant::now());
        let count = REPEATS_MAX as u128 + 10;
        for fingerprint in 0..count {
            repeats.remember(key(1, fingerprint), now);
        }
        assert_eq!(repeats.remembered(), REPEATS_MAX);
        assert_eq!(repeats.batches.len(), REPEATS_MAX);
        assert_eq!(repeats.begin(key(1, 9), now), Verdict::Store);
        assert_eq!(repeats.begin(key(1, 10), now), Verdict::Stored);
    }

    proptest! {
        /// Against a model that keeps everything.
        #[test]
        fn agrees_with_a_model(steps in prop::collection::vec((0_u8..4, 0_u32..3, 0_u128..3, any::<bool>()), 1..200)) {
            let mut repeats = Repeats::<u32>::default();
            let mut now = Instant::now();
            // None: under way.
            let mut model: BTreeMap<(u32, u128), Option<Instant>> = BTreeMap::new();
            for (step, host, fingerprint, is_stored) in steps {
                let (key, of_model) = (key(host, fingerprint), (host, fingerprint));
                model.retain(|_, at| at.is_none_or(|at| now - at <= REPEAT_WINDOW));
                match step {
                    0 | 1 => {
                        let expected = match model.get(&of_model) {
                            None => Verdict::Store,
                            Some(None) => Verdict::Wait,
                            Some(Some(_)) => Verdict::Stored,
                        };
                        prop_assert_eq!(repeats.begin(key, now), expected);
                        model.entry(of_model).or_insert(None);
                    }
                    2 if model.get(&of_model) == Some(&None) => {
                        repeats.finish(key, is_stored, now);
                        model.remove(&of_model);
                        if is_stored {
                            model.insert(of_model, Some(now));
                        }
                    }
                    _ => now += Duration::from_secs(7),
                }
            }
        }
    }
}
