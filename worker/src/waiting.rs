//! Requests that wait for control: queued, sent, or sent and to be sent again.
//!
//! Owner of the queues, of the window and of everybody who waits. A request is in `requests` from the moment it is
//! queued until it is answered or cancelled; requests for the same unknown key share one lookup.

use std::time::Instant;

use fleet_protocol::agent::{Answer, Request};
use fleet_protocol::ids::{HostId, NodeKeyHash, RequestId};
use fleet_protocol::limits::{BatchLimits, WAITING_AGE_MAX};
use fleet_protocol::link::BatchKind;
use fleet_protocol::stats::Shed;
use hashbrown::HashMap;
use slab::Slab;
use tokio::sync::oneshot;

use crate::batch::{Queue, Taken};
use crate::window::Window;

/// Bytes that a request takes besides its content, roughly.
const REQUEST_BYTES: usize = 64;

/// Everything that waits.
pub(crate) struct Waiting {
    pub(crate) window: Window,
    queues: [Queue<Request>; BatchKind::ALL.len()],
    requests: HashMap<RequestId, Waiter>,
    lookups: HashMap<NodeKeyHash, Lookup>,
    next: u64,
}

/// Who hears the answer.
enum Waiter {
    Lookup(NodeKeyHash),
    One(BatchKind, oneshot::Sender<Answer>),
    /// Nobody; but refused marks are taken back.
    Seen,
}

struct Lookup {
    id: RequestId,
    waiters: Slab<oneshot::Sender<Answer>>,
}

/// What [`Waiting::complete`] did with an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Completed {
    /// Whoever waited has it.
    Told,
    /// To a request that was cancelled or never made.
    Unknown,
    /// To seen marks.
    Seen,
}

/// How to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    One(RequestId),
    /// Key, request and place among its waiters. The request tells a later lookup of the same key apart.
    Lookup(NodeKeyHash, RequestId, usize),
}

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The queue of its kind is full.
    Full,
    /// The oldest of its kind has waited for `WAITING_AGE_MAX`, and no later one will do better.
    Late,
}

impl From<Refusal> for Shed {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full => Self::QueueFull,
            Refusal::Late => Self::QueueLate,
        }
    }
}

type Claimed = (Claim, oneshot::Receiver<Answer>);

impl Waiting {
    pub(crate) fn new() -> Self {
        Self {
            window: Window::new(),
            queues: BatchKind::ALL.map(|kind| Queue::new(BatchLimits::of(kind))),
            requests: HashMap::new(),
            lookups: HashMap::new(),
            next: 0,
        }
    }

    /// Queues a request that one exchange waits for.
    pub(crate) fn ask(&mut self, request: Request, now: Instant) -> Result<Claimed, Refusal> {
        let kind = BatchKind::of(&request);
        self.check_age(kind, now)?;
        let id = self.queue(request, now).map_err(|_| Refusal::Full)?;
        let (sender, receiver) = oneshot::channel();
        self.requests.insert(id, Waiter::One(kind, sender));
        Ok((Claim::One(id), receiver))
    }

    /// Joins the lookup of a key, or starts it.
    pub(crate) fn look_up(&mut self, key: NodeKeyHash, now: Instant) -> Result<Claimed, Refusal> {
        if !self.lookups.contains_key(&key) {
            self.check_age(BatchKind::Lookup, now)?;
            let request = Request::Lookup(key);
            let id = self.queue(request, now).map_err(|_| Refusal::Full)?;
            self.requests.insert(id, Waiter::Lookup(key));
            let waiters = Slab::new();
            self.lookups.insert(key, Lookup { id, waiters });
        }
        let lookup = self.lookups.get_mut(&key).ok_or(Refusal::Full)?;
        let (sender, receiver) = oneshot::channel();
        let place = lookup.waiters.insert(sender);
        Ok((Claim::Lookup(key, lookup.id, place), receiver))
    }

    /// Queues seen marks; hands them back when the queue is full.
    pub(crate) fn tell_seen(&mut self, ids: Vec<HostId>, now: Instant) -> Result<(), Vec<HostId>> {
        match self.queue(Request::Seen(ids), now) {
            Ok(id) => {
                self.requests.insert(id, Waiter::Seen);
                Ok(())
            }
            Err(Request::Seen(ids)) => Err(ids),
            Err(_) => Err(Vec::new()),
        }
    }

    /// Whether a request of this kind and size would be refused.
    pub(crate) fn refusal(&self, kind: BatchKind, bytes: usize, now: Instant) -> Option<Refusal> {
        let queue = self.queues.get(kind.index())?;
        if queue.is_full_for(bytes.saturating_add(REQUEST_BYTES)) {
            return Some(Refusal::Full);
        }
        self.check_age(kind, now).err()
    }

    fn check_age(&self, kind: BatchKind, now: Instant) -> Result<(), Refusal> {
        let queue = self.queues.get(kind.index());
        let oldest = queue.and_then(Queue::oldest);
        match oldest.map(|oldest| now.saturating_duration_since(oldest)) {
            Some(age) if age >= WAITING_AGE_MAX => Err(Refusal::Late),
            _ => Ok(()),
        }
    }

    /// Nobody waits there any more. What was sent stays sent.
    pub(crate) fn cancel(&mut self, claim: Claim) {
        match claim {
            Claim::One(id) => {
                if let Some(Waiter::One(kind, _)) = self.requests.remove(&id) {
                    self.unqueue(kind, id);
                }
            }
            Claim::Lookup(key, id, place) => {
                let lookup = self.lookups.get_mut(&key);
                let Some(lookup) = lookup.filter(|lookup| lookup.id == id) else {
                    return;
                };
                lookup.waiters.try_remove(place);
                if lookup.waiters.is_empty() && self.unqueue(BatchKind::Lookup, id) {
                    self.lookups.remove(&key);
                    self.requests.remove(&id);
                }
            }
        }
    }

    /// Hands an answer to whoever waits for it.
    pub(crate) fn complete(&mut self, id: RequestId, answer: Answer) -> Completed {
        match self.requests.remove(&id) {
            Some(Waiter::One(_, sender)) => {
                // A receiver that is gone cancels in a moment.
                let _ = sender.send(answer);
                Completed::Told
            }
            Some(Waiter::Lookup(key)) => {
                let waiters = self.lookups.remove(&key).map(|lookup| lookup.waiters);
                for (_, sender) in waiters.into_iter().flatten() {
                    let _ = sender.send(answer.clone());
                }
                Completed::Told
            }
            Some(Waiter::Seen) => Completed::Seen,
            None => Completed::Unknown,
        }
    }

    /// The key that a request looks up.
    pub(crate) fn lookup_key(&self, id: RequestId) -> Option<NodeKeyHash> {
        match self.requests.get(&id) {
            Some(Waiter::Lookup(key)) => Some(*key),
            Some(Waiter::One(..) | Waiter::Seen) | None => None,
        }
    }

    /// The requests of the next batch of a kind, if one is due.
    pub(crate) fn take_due(&mut self, kind: BatchKind, now: Instant) -> Option<Taken<Request>> {
        let (in_flight, credit) = (self.window.in_flight(kind), self.window.credit(kind));
        let queue = self.queues.get_mut(kind.index())?;
        queue.take_due(now, in_flight, credit)
    }

    /// When the next batch of any kind is due.
    pub(crate) fn due_at(&self) -> Option<Instant> {
        let due = BatchKind::ALL.into_iter().zip(&self.queues);
        due.filter_map(|(kind, queue)| {
            queue.due_at(self.window.in_flight(kind), self.window.credit(kind))
        })
        .min()
    }

    /// Requests of a kind that wait to be sent.
    pub(crate) fn queued(&self, kind: BatchKind) -> usize {
        self.queues.get(kind.index()).map_or(0, Queue::waiting)
    }

    /// A new link: what nobody waits for any more is not sent again, or agents that were told to try again would have
    /// stored twice.
    pub(crate) fn restart_window(&mut self) {
        let requests = &self.requests;
        self.window.restart(|id| requests.contains_key(&id));
    }

    /// Nothing is queued or in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.window.is_empty() && self.queues.iter().all(|queue| queue.waiting() == 0)
    }

    fn queue(&mut self, request: Request, now: Instant) -> Result<RequestId, Request> {
        let kind = BatchKind::of(&request);
        let bytes = bytes_of(&request);
        let Some(queue) = self.queues.get_mut(kind.index()) else {
            return Err(request);
        };
        let id = RequestId(self.next);
        queue.push(id, request, bytes, now)?;
        self.next += 1;
        Ok(id)
    }

    fn unqueue(&mut self, kind: BatchKind, id: RequestId) -> bool {
        let queue = self.queues.get_mut(kind.index());
        queue.is_some_and(|queue| queue.cancel(id))
    }
}

/// About how many bytes a request takes in a batch.
pub(crate) fn bytes_of(request: &Request) -> usize {
    REQUEST_BYTES
        + match request {
            Request::Lookup(_) | Request::Read(_) => 0,
            Request::Enroll(enroll) => {
                let columns = enroll.details.values().flatten();
                let columns = columns.map(|(name, value)| name.len() + value.len() + 8);
                enroll.identifier.len() + enroll.platform_type.len() + columns.sum::<usize>()
            }
            Request::Adopt(adopt) => adopt.identity.len(),
            Request::Write(write) => {
                let results = write.results.iter().map(|result| {
                    let texts = [&result.name, &result.message, &result.rows, &result.stats];
                    texts.map(String::len).iter().sum::<usize>() + REQUEST_BYTES
                });
                results.sum::<usize>()
            }
            Request::Log(log) => log.lines.len(),
            Request::CarveBegin(carve) => carve.carve_id.len() + carve.request_id.len(),
            Request::CarveBlock(block) => block.data.len() + block.request_id.len(),
            // Nobody waits for them, and they are bounded by their number.
            Request::Seen(_) => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(waiting: &mut Waiting, kind: BatchKind) -> Vec<RequestId> {
        let taken = waiting.take_due(kind, Instant::now());
        let requests = taken.map(|taken| taken.requests).unwrap_or_default();
        requests.into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn lookups_of_one_key_are_one() {
        let now = Instant::now();
        let mut waiting = Waiting::new();
        let key = NodeKeyHash([1; 32]);
        let (_, mut first) = waiting.look_up(key, now).unwrap();
        let (claim, mut second) = waiting.look_up(key, now).unwrap();
        let (late, mut third) = waiting.look_up(key, now).unwrap();
        let ids = sent(&mut waiting, BatchKind::Lookup);
        assert_eq!(ids.len(), 1);
        assert_eq!(waiting.lookup_key(ids[0]), Some(key));
        waiting.cancel(claim);
        let answer = Answer::Host(None);
        assert_eq!(waiting.complete(ids[0], answer.clone()), Completed::Told);
        assert_eq!(first.try_recv(), Ok(answer.clone()));
        assert!(second.try_recv().is_err());
        assert_eq!(third.try_recv(), Ok(answer.clone()));
        assert_eq!(waiting.complete(ids[0], answer), Completed::Unknown);
        // What is left of the old lookup does not touch a new one.
        let (_, mut again) = waiting.look_up(key, now).unwrap();
        waiting.cancel(late);
        assert!(again.try_recv().is_err());
        assert_eq!(sent(&mut waiting, BatchKind::Lookup).len(), 1);
    }

    #[test]
    fn cancelled_requests_are_not_sent() {
        let now = Instant::now();
        let mut waiting = Waiting::new();
        let (read, _keep) = waiting.ask(Request::Read(HostId(1)), now).unwrap();
        let (lookup, _keep) = waiting.look_up(NodeKeyHash([1; 32]), now).unwrap();
        waiting.cancel(read);
        waiting.cancel(read);
        waiting.cancel(lookup);
        assert!(waiting.is_idle());
        assert!(waiting.requests.is_empty() && waiting.lookups.is_empty());
        assert_eq!(sent(&mut waiting, BatchKind::Read), []);
        assert_eq!(sent(&mut waiting, BatchKind::Lookup), []);
    }

    #[test]
    fn a_full_queue_refuses() {
        let now = Instant::now();
        let mut waiting = Waiting::new();
        let limits = BatchLimits::of(BatchKind::Read);
        let mut kept = Vec::new();
        for _ in 0..limits.waiting_requests_max {
            kept.push(waiting.ask(Request::Read(HostId(1)), now).unwrap());
        }
        let full = Some(Refusal::Full);
        assert_eq!(waiting.refusal(BatchKind::Read, 0, now), full);
        assert_eq!(waiting.ask(Request::Read(HostId(1)), now).err(), full);
        let (claim, _) = kept.pop().unwrap();
        waiting.cancel(claim);
        assert!(waiting.ask(Request::Read(HostId(1)), now).is_ok());
    }

    #[test]
    fn nothing_is_taken_behind_what_has_waited_too_long() {
        let now = Instant::now();
        let then = now.checked_sub(WAITING_AGE_MAX).unwrap();
        let mut waiting = Waiting::new();
        let (claim, _) = waiting.ask(Request::Read(HostId(1)), then).unwrap();
        let just = now
            .checked_sub(std::time::Duration::from_millis(1))
            .unwrap();
        let (second, _) = waiting.ask(Request::Read(HostId(1)), just).unwrap();
        let late = Some(Refusal::Late);
        assert_eq!(waiting.refusal(BatchKind::Read, 0, now), late);
        assert_eq!(waiting.ask(Request::Read(HostId(1)), now).err(), late);
        assert!(waiting.look_up(NodeKeyHash([1; 32]), now).is_ok());
        // Given up, or sent.
        waiting.cancel(claim);
        assert!(waiting.ask(Request::Read(HostId(1)), now).is_ok());
        waiting.cancel(second);
        assert_eq!(sent(&mut waiting, BatchKind::Read).len(), 1);
    }

    #[test]
    fn seen_marks_come_back_when_refused() {
        let now = Instant::now();
        let mut waiting = Waiting::new();
        waiting.tell_seen(vec![HostId(1)], now).unwrap();
        let ids = sent(&mut waiting, BatchKind::Seen);
        assert_eq!(waiting.complete(ids[0], Answer::Accepted), Completed::Seen);
        let mut count = 0;
        while waiting.tell_seen(vec![HostId(7)], now).is_ok() {
            count += 1;
        }
        assert_eq!(count, BatchLimits::of(BatchKind::Seen).waiting_requests_max);
        assert_eq!(
            waiting.tell_seen(vec![HostId(8)], now),
            Err(vec![HostId(8)])
        );
    }
}
