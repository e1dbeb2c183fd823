//! Deadlines of all connections of this worker, on a wheel that turns at a coarse interval.
//!
//! A runtime timer per connection would cost more memory than the connection's own state; an alarm is one slab entry and
//! one place on the wheel. A deadline that moves back leaves its place where it is and finds out when its turn comes: so
//! a turn costs what is due, however many connections are open.
//! Owner of state: the worker, through [`Clock`]; each connection owns its [`Alarm`]. A deadline is never missed, but may
//! be noticed up to [`TICK`] late.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use slab::Slab;

/// Time between two turns.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// One revolution is longer than an exchange, and than most connections are kept.
const SPOKES: u32 = 1024;
/// Of an entry that has rung.
const NEVER: u32 = u32::MAX;
/// Room for so many is kept for the next storm; what goes beyond is given back.
const KEPT_KEYS_MAX: usize = 4096;

/// All alarms.
pub(crate) struct Clock {
    start: Instant,
    wheel: RefCell<Wheel>,
}

struct Wheel {
    entries: Slab<Entry>,
    /// Keys of entries, each on the spoke of the tick at which it is looked at.
    spokes: Vec<Vec<u32>>,
    /// Up to here, in ticks since the start, everybody was woken.
    now: u32,
}

struct Entry {
    /// When it rings.
    tick: u32,
    /// When it is looked at, never later. A key that stands on another spoke was left behind, by this entry or by one
    /// that had its key before.
    looked_at: u32,
    waker: Waker,
}

impl Clock {
    pub(crate) fn new(start: Instant) -> Rc<Self> {
        Rc::new(Self {
            start,
            wheel: RefCell::new(Wheel {
                entries: Slab::new(),
                spokes: (0..SPOKES).map(|_| Vec::new()).collect(),
                now: 0,
            }),
        })
    }

    /// Wakes every task whose deadline is over.
    pub(crate) fn ring(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.start);
        let tick = u32::try_from(elapsed.as_millis() / TICK.as_millis()).unwrap_or(NEVER - 1);
        self.wheel.borrow_mut().turn(tick);
    }

    /// Wakes every task, so that it sees that the worker is draining.
    pub(crate) fn wake_all(&self) {
        for (_, entry) in &self.wheel.borrow().entries {
            entry.waker.wake_by_ref();
        }
    }

    /// Turns for ever.
    pub(crate) async fn run(self: Rc<Self>) {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            interval.tick().await;
            self.ring(Instant::now());
        }
    }

    /// The first tick at which `deadline` is over.
    fn tick_of(&self, deadline: Instant) -> u32 {
        let offset = deadline.saturating_duration_since(self.start);
        u32::try_from(offset.as_millis().div_ceil(TICK.as_millis())).unwrap_or(NEVER - 1)
    }
}

impl Wheel {
    /// Sets the entry of `key`, or a new one, to ring at `tick`; returns its key.
    fn set(&mut self, key: Option<u32>, tick: u32, waker: &Waker) -> Option<u32> {
        // The spoke of this moment was turned past.
        let tick = tick.max(self.now + 1);
        if let Some(key) = key
            && let Some(entry) = self.entries.get_mut(key as usize)
        {
            entry.tick = tick;
            entry.waker.clone_from(waker);
            if tick < entry.looked_at {
                entry.looked_at = tick;
                self.place(key, tick);
            }
            return Some(key);
        }
        // No process has this many descriptors.
        let key = u32::try_from(self.entries.vacant_key()).ok()?;
        self.entries.insert(Entry {
            tick,
            looked_at: tick,
            waker: waker.clone(),
        });
        self.place(key, tick);
        Some(key)
    }

    fn place(&mut self, key: u32, tick: u32) {
        if let Some(spoke) = self.spokes.get_mut((tick % SPOKES) as usize) {
            spoke.push(key);
        }
    }

    fn turn(&mut self, now: u32) {
        let first = self.now.saturating_add(1);
        self.now = self.now.max(now);
        // One revolution passes every spoke.
        for tick in (first..=now).take(SPOKES as usize) {
            let index = tick % SPOKES;
            let Some(spoke) = self.spokes.get_mut(index as usize) else {
                continue;
            };
            let mut keys = std::mem::take(spoke);
            for key in keys.drain(..) {
                if let Some(later) = self.look_at(key, index) {
                    self.place(key, later);
                }
            }
            if let Some(spoke) = self.spokes.get_mut(index as usize)
                && spoke.is_empty()
                && keys.capacity() <= KEPT_KEYS_MAX
            {
                *spoke = keys;
            }
        }
        if self.entries.capacity() > KEPT_KEYS_MAX
            && self.entries.len() < self.entries.capacity() / 4
        {
            self.entries.shrink_to_fit();
        }
    }

    /// Wakes the task of a key that was found on a spoke, or tells when to look again.
    fn look_at(&mut self, key: u32, spoke: u32) -> Option<u32> {
        let entry = self.entries.get_mut(key as usize)?;
        if entry.looked_at % SPOKES != spoke || entry.looked_at == NEVER {
            return None;
        }
        if entry.tick <= self.now {
            (entry.tick, entry.looked_at) = (NEVER, NEVER);
            entry.waker.wake_by_ref();
            return None;
        }
        entry.looked_at = entry.tick;
        Some(entry.tick)
    }
}

/// One task's deadline. Forgotten when dropped.
pub(crate) struct Alarm {
    clock: Rc<Clock>,
    key: Option<u32>,
}

impl Alarm {
    pub(crate) fn new(clock: &Rc<Clock>) -> Self {
        Self {
            clock: Rc::clone(clock),
            key: None,
        }
    }

    /// Wakes `waker` after `deadline`, in place of what was set before.
    pub(crate) fn set(&mut self, deadline: Instant, waker: &Waker) {
        let tick = self.clock.tick_of(deadline);
        self.key = self.clock.wheel.borrow_mut().set(self.key, tick, waker);
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.clock
                .wheel
                .borrow_mut()
                .entries
                .try_remove(key as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn rings_once_after_the_deadline_and_never_before() {
        let start = Instant::now();
        let clock = Clock::new(start);
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut alarm = Alarm::new(&clock);
        alarm.set(start + Duration::from_millis(250), &waker);
        for (at_ms, rung) in [(0, 0), (200, 0), (250, 0), (300, 1), (400, 1)] {
            clock.ring(start + Duration::from_millis(at_ms));
            assert_eq!(count.0.load(Ordering::Relaxed), rung, "at {at_ms} ms");
        }
        alarm.set(start + Duration::from_secs(1), &waker);
        alarm.set(start + Duration::from_secs(2), &waker);
        clock.ring(start + Duration::from_millis(1500));
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "the later one counts");
        clock.wake_all();
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        drop(alarm);
        clock.ring(start + Duration::from_secs(9));
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        assert!(clock.wheel.borrow().entries.is_empty());
    }

    /// What is done to one of a few alarms.
    #[derive(Clone, Debug)]
    enum Deed {
        Set(usize, u32),
        Drop(usize),
        Pass(u32),
    }

    fn deeds() -> impl Strategy<Value = Vec<Deed>> {
        let far = prop_oneof![0_u32..30, 0_u32..3000];
        let deed = prop_oneof![
            (0_usize..6, far).prop_map(|(alarm, ticks)| Deed::Set(alarm, ticks)),
            (0_usize..6).prop_map(Deed::Drop),
            prop_oneof![0_u32..5, 0_u32..2500].prop_map(Deed::Pass),
        ];
        prop::collection::vec(deed, 0..60)
    }

    proptest! {
        /// Against a model: each alarm rings once, at the first turn after its latest deadline.
        #[test]
        fn rings_as_a_list_of_deadlines_would(deeds in deeds()) {
            let start = Instant::now();
            let clock = Clock::new(start);
            let counts: Vec<_> = (0..6).map(|_| Arc::new(Count::default())).collect();
            let mut alarms: Vec<Option<Alarm>> = (0..6).map(|_| None).collect();
            let mut model: Vec<Option<u32>> = vec![None; 6];
            let mut wanted = [0; 6];
            let mut now = 0;
            for deed in deeds {
                match deed {
                    Deed::Set(index, ticks) => {
                        let waker = Waker::from(Arc::clone(&counts[index]));
                        let deadline = start + TICK * (now + ticks);
                        let alarm = alarms[index].get_or_insert_with(|| Alarm::new(&clock));
                        alarm.set(deadline, &waker);
                        model[index] = Some((now + ticks).max(now + 1));
                    }
                    Deed::Drop(index) => {
                        alarms[index] = None;
                        model[index] = None;
                    }
                    Deed::Pass(ticks) => {
                        now += ticks;
                        clock.ring(start + TICK * now);
                        for (wanted, due) in wanted.iter_mut().zip(&mut model) {
                            if due.is_some_and(|due| due <= now) {
                                *due = None;
                                *wanted += 1;
                            }
                        }
                    }
                }
                let rung: Vec<_> = counts.iter().map(|count| count.0.load(Ordering::Relaxed)).collect();
                prop_assert_eq!(&rung[..], &wanted[..]);
            }
        }
    }
}
