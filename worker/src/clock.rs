//! Deadlines of all connections of this worker, swept at a coarse interval.
//!
//! A runtime timer per connection would cost more memory than the connection's own state; an alarm is one slab entry.
//! Owner of state: the worker, through [`Clock`]; each connection owns its [`Alarm`]. A deadline is never missed, but may
//! be noticed up to [`TICK`] late.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use slab::Slab;

/// Time between two sweeps.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// All alarms.
pub(crate) struct Clock {
    start: Instant,
    entries: RefCell<Slab<Entry>>,
}

struct Entry {
    /// Ticks since the start; `u32::MAX` once it has rung.
    tick: u32,
    waker: Waker,
}

impl Clock {
    pub(crate) fn new(start: Instant) -> Rc<Self> {
        Rc::new(Self {
            start,
            entries: RefCell::default(),
        })
    }

    /// Wakes every task whose deadline is over.
    pub(crate) fn ring(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.start);
        let tick = u32::try_from(elapsed.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX);
        for (_, entry) in self.entries.borrow_mut().iter_mut() {
            if entry.tick <= tick {
                entry.tick = u32::MAX;
                entry.waker.wake_by_ref();
            }
        }
    }

    /// Wakes every task, so that it sees that the worker is draining.
    pub(crate) fn wake_all(&self) {
        for (_, entry) in self.entries.borrow().iter() {
            entry.waker.wake_by_ref();
        }
    }

    /// Sweeps for ever.
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
        u32::try_from(offset.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u32::MAX - 1)
    }
}

/// One task's deadline. Forgotten when dropped.
pub(crate) struct Alarm {
    clock: Rc<Clock>,
    key: Option<usize>,
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
        let mut entries = self.clock.entries.borrow_mut();
        if let Some(entry) = self.key.and_then(|key| entries.get_mut(key)) {
            entry.tick = tick;
            entry.waker.clone_from(waker);
            return;
        }
        let waker = waker.clone();
        self.key = Some(entries.insert(Entry { tick, waker }));
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.clock.entries.borrow_mut().try_remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

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
        assert!(clock.entries.borrow().is_empty());
    }
}
