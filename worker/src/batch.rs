//! When requests of one kind leave for control: at once while nothing of the kind is in flight, else when enough of
//! them wait or the oldest has waited long enough, and never without credit.
//!
//! A pure core: `now` is an argument. Requests leave in the order in which they came, each at most once. Requests and
//! bytes that wait are bounded; what exceeds the bound is handed back.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fleet_protocol::ids::RequestId;
use fleet_protocol::limits::BatchLimits;

/// Requests of one kind that wait to be sent.
pub(crate) struct Queue<T> {
    limits: BatchLimits,
    /// Ids ascend. A cancelled request leaves an empty item behind.
    items: VecDeque<Item<T>>,
    waiting: usize,
    bytes: usize,
}

struct Item<T> {
    id: RequestId,
    since: Instant,
    bytes: usize,
    request: Option<T>,
}

/// What is to be sent as one batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken<T> {
    /// Oldest first; never empty.
    pub(crate) requests: Vec<(RequestId, T)>,
    /// Of the oldest.
    pub(crate) age: Duration,
}

impl<T> Queue<T> {
    pub(crate) fn new(limits: BatchLimits) -> Self {
        Self {
            limits,
            items: VecDeque::new(),
            waiting: 0,
            bytes: 0,
        }
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether a request of this size would be handed back.
    pub(crate) fn is_full_for(&self, bytes: usize) -> bool {
        self.waiting >= self.limits.waiting_requests_max
            || self.bytes.saturating_add(bytes) > self.limits.waiting_bytes_max
    }

    /// Takes a request whose id is above all ids before; hands it back when the queue is full.
    pub(crate) fn push(
        &mut self,
        id: RequestId,
        request: T,
        bytes: usize,
        now: Instant,
    ) -> Result<(), T> {
        if self.is_full_for(bytes) {
            return Err(request);
        }
        self.waiting += 1;
        self.bytes += bytes;
        self.items.push_back(Item {
            id,
            since: now,
            bytes,
            request: Some(request),
        });
        Ok(())
    }

    /// Takes a request back out; whether it was still here.
    pub(crate) fn cancel(&mut self, id: RequestId) -> bool {
        let Ok(place) = self.items.binary_search_by_key(&id, |item| item.id) else {
            return false;
        };
        let Some(item) = self.items.get_mut(place) else {
            return false;
        };
        if item.request.take().is_none() {
            return false;
        }
        self.waiting -= 1;
        self.bytes -= item.bytes;
        // Empty items never outnumber the others by much, so they are bounded too.
        if self.items.len() > 2 * self.waiting + 64 {
            self.items.retain(|item| item.request.is_some());
        }
        true
    }

    /// The next batch, if one is due now and credit is left for it.
    pub(crate) fn take_due(
        &mut self,
        now: Instant,
        in_flight: usize,
        credit: usize,
    ) -> Option<Taken<T>> {
        if self.due_at(in_flight, credit)? > now {
            return None;
        }
        let oldest = self.oldest()?;
        let mut requests = Vec::with_capacity(self.waiting.min(self.limits.requests_max));
        let mut bytes = 0;
        while let Some(item) = self.items.front() {
            let is_room = requests.is_empty() || bytes + item.bytes <= self.limits.bytes_max;
            if requests.len() >= self.limits.requests_max || !is_room {
                break;
            }
            let Some(item) = self.items.pop_front() else {
                break;
            };
            if let Some(request) = item.request {
                bytes += item.bytes;
                requests.push((item.id, request));
            }
        }
        self.waiting -= requests.len();
        self.bytes -= bytes;
        Some(Taken {
            requests,
            age: now.saturating_duration_since(oldest),
        })
    }

    /// When the next batch is due; `None` while nothing waits or no credit is left.
    pub(crate) fn due_at(&self, in_flight: usize, credit: usize) -> Option<Instant> {
        let oldest = self.oldest()?;
        if in_flight >= credit {
            return None;
        }
        let is_full =
            self.waiting >= self.limits.requests_max || self.bytes >= self.limits.bytes_max;
        if in_flight == 0 || is_full {
            Some(oldest)
        } else {
            Some(oldest + self.limits.age_max)
        }
    }

    /// Since when the oldest waits.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        let item = self.items.iter().find(|item| item.request.is_some())?;
        Some(item.since)
    }
}

#[cfg(test)]
mod tests {
    use fleet_protocol::link::BatchKind;
    use proptest::prelude::*;

    use super::*;

    const LIMITS: BatchLimits = BatchLimits {
        requests_max: 4,
        bytes_max: 100,
        age_max: Duration::from_millis(5),
        credit: 2,
        waiting_requests_max: 10,
        waiting_bytes_max: 300,
    };

    const NONE: [u64; 0] = [];

    fn ids(taken: Option<Taken<u64>>) -> Vec<u64> {
        let requests = taken.map(|taken| taken.requests).unwrap_or_default();
        requests.into_iter().map(|(id, _)| id.0).collect()
    }

    fn filled(count: u64, bytes: usize, now: Instant) -> Queue<u64> {
        let mut queue = Queue::new(LIMITS);
        for id in 0..count {
            queue.push(RequestId(id), id, bytes, now).unwrap();
        }
        queue
    }

    #[test]
    fn leaves_at_once_while_nothing_is_in_flight() {
        let now = Instant::now();
        let mut queue = filled(1, 1, now);
        assert_eq!(ids(queue.take_due(now, 1, 2)), NONE);
        assert_eq!(queue.due_at(1, 2), Some(now + LIMITS.age_max));
        assert_eq!(ids(queue.take_due(now, 0, 0)), NONE);
        assert_eq!(queue.due_at(0, 0), None);
        assert_eq!(ids(queue.take_due(now, 0, 1)), [0]);
        assert_eq!(queue.due_at(0, 1), None);
    }

    #[test]
    fn leaves_full_or_old() {
        let now = Instant::now();
        let mut queue = filled(5, 1, now);
        assert_eq!(ids(queue.take_due(now, 1, 2)), [0, 1, 2, 3]);
        assert_eq!(ids(queue.take_due(now, 1, 2)), NONE);
        let later = now + LIMITS.age_max;
        let taken = queue.take_due(later, 1, 2).unwrap();
        assert_eq!(taken.age, LIMITS.age_max);
        let mut queue = filled(3, 60, now);
        assert_eq!(ids(queue.take_due(now, 1, 2)), [0]);
        let mut queue = Queue::new(LIMITS);
        queue.push(RequestId(0), 0, 250, now).unwrap();
        assert_eq!(ids(queue.take_due(now, 1, 2)), [0], "larger than a batch");
    }

    #[test]
    fn a_full_queue_hands_back() {
        let now = Instant::now();
        let mut queue = filled(10, 1, now);
        assert_eq!(queue.push(RequestId(10), 10, 1, now), Err(10));
        let mut queue = filled(3, 100, now);
        assert!(queue.is_full_for(1));
        assert!(queue.cancel(RequestId(1)));
        assert!(!queue.cancel(RequestId(1)));
        assert!(!queue.is_full_for(100));
        assert_eq!(ids(queue.take_due(now, 0, 1)), [0]);
        assert_eq!(ids(queue.take_due(now, 0, 1)), [2]);
        assert_eq!((queue.waiting(), queue.bytes), (0, 0));
    }

    #[test]
    fn cancelled_requests_take_no_room() {
        let now = Instant::now();
        let mut queue = filled(1, 1, now);
        for id in 1..100_000 {
            queue.push(RequestId(id), id, 1, now).unwrap();
            assert!(queue.cancel(RequestId(id)));
        }
        assert!(queue.items.len() < 100);
        assert!(queue.items.capacity() < 256);
    }

    #[test]
    fn every_kind_takes_one_request() {
        for kind in BatchKind::ALL {
            let limits = BatchLimits::of(kind);
            let queue = Queue::<u64>::new(limits);
            assert!(!queue.is_full_for(limits.bytes_max), "{kind:?}");
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Cancel(u64),
        Take(usize),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (1_usize..140).prop_map(Step::Push),
            1 => (0_u64..60).prop_map(Step::Cancel),
            2 => (0_usize..3).prop_map(Step::Take),
            1 => (0_u64..7).prop_map(Step::Wait),
        ];
        prop::collection::vec(step, 0..120)
    }

    proptest! {
        #[test]
        fn everything_comes_out_once_and_in_order(steps in steps()) {
            let mut queue = Queue::new(LIMITS);
            let mut now = Instant::now();
            let mut next = 0;
            let mut model: VecDeque<(u64, usize, Instant)> = VecDeque::new();
            for step in steps {
                match step {
                    Step::Push(bytes) => {
                        let bytes_waiting: usize = model.iter().map(|(_, bytes, _)| bytes).sum();
                        let fits = model.len() < LIMITS.waiting_requests_max
                            && bytes_waiting + bytes <= LIMITS.waiting_bytes_max;
                        prop_assert_eq!(queue.push(RequestId(next), next, bytes, now).is_ok(), fits);
                        if fits {
                            model.push_back((next, bytes, now));
                        }
                        next += 1;
                    }
                    Step::Cancel(id) => {
                        let is_here = model.iter().any(|(other, ..)| *other == id);
                        prop_assert_eq!(queue.cancel(RequestId(id)), is_here);
                        model.retain(|(other, ..)| *other != id);
                    }
                    Step::Take(in_flight) => {
                        let oldest = model.front().map(|(_, _, since)| *since);
                        let taken = queue.take_due(now, in_flight, 2);
                        let is_old = oldest.is_some_and(|since| now - since >= LIMITS.age_max);
                        if let Some(taken) = &taken {
                            prop_assert!(in_flight < 2);
                            prop_assert!(!taken.requests.is_empty());
                            prop_assert!(taken.requests.len() <= LIMITS.requests_max);
                            prop_assert_eq!(Some(now - taken.age), oldest);
                        } else {
                            prop_assert!(in_flight >= 2 || oldest.is_none() || (in_flight > 0 && !is_old));
                        }
                        let mut bytes_sent = 0;
                        let count = taken.as_ref().map_or(0, |taken| taken.requests.len());
                        for (id, request) in taken.into_iter().flat_map(|taken| taken.requests) {
                            let (expected, bytes, _) = model.pop_front().unwrap();
                            prop_assert_eq!((id.0, request), (expected, expected));
                            bytes_sent += bytes;
                        }
                        prop_assert!(count <= 1 || bytes_sent <= LIMITS.bytes_max);
                    }
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                }
                prop_assert_eq!(queue.waiting(), model.len());
            }
            while let Some(taken) = queue.take_due(now, 0, 1) {
                for (id, _) in taken.requests {
                    prop_assert_eq!(Some(id.0), model.pop_front().map(|(id, ..)| id));
                }
            }
            prop_assert!(model.is_empty());
            prop_assert_eq!(queue.bytes, 0);
        }
    }
}
