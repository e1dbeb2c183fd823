//! Batches that were sent and not answered, and the credit for more.
//!
//! A pure core. A batch keeps its id and its content until it is answered or nobody waits for it any more; after a
//! new link it is sent again, before anything new of its kind, and takes credit like any other.

use std::collections::BTreeMap;
use std::time::Instant;

use fleet_protocol::agent::Request;
use fleet_protocol::ids::{BatchId, RequestId};
use fleet_protocol::limits::BatchLimits;
use fleet_protocol::link::{Batch, BatchKind, Credit, FromWorker};

/// The window of one worker.
pub(crate) struct Window {
    /// Batches that may be in flight, by kind.
    credit: [usize; BatchKind::ALL.len()],
    /// Batches sent on the present link, by kind.
    sent: [usize; BatchKind::ALL.len()],
    batches: BTreeMap<BatchId, InFlight>,
    next: u64,
}

/// One batch without an answer.
pub(crate) struct InFlight {
    pub(crate) kind: BatchKind,
    /// The batch, as it is sent.
    message: FromWorker,
    /// When it was last sent.
    pub(crate) sent_at: Instant,
    /// Whether it was sent on the present link.
    is_sent: bool,
}

impl InFlight {
    /// Oldest first.
    pub(crate) fn requests(&self) -> &[(RequestId, Request)] {
        match &self.message {
            FromWorker::Batch(batch) => &batch.requests,
            FromWorker::Ping(_) | FromWorker::Pong(_) => &[],
        }
    }
}

impl Window {
    pub(crate) fn new() -> Self {
        Self {
            credit: BatchKind::ALL.map(|kind| usize::from(BatchLimits::of(kind).credit)),
            sent: [0; BatchKind::ALL.len()],
            batches: BTreeMap::new(),
            next: 0,
        }
    }

    /// Batches of a kind that control has and has not answered.
    pub(crate) fn in_flight(&self, kind: BatchKind) -> usize {
        self.sent.get(kind.index()).copied().unwrap_or(0)
    }

    /// Batches of a kind that the present link has not seen.
    pub(crate) fn unsent(&self, kind: BatchKind) -> u64 {
        let batches = self.batches.values();
        let unsent = batches.filter(|in_flight| !in_flight.is_sent && in_flight.kind == kind);
        u64::try_from(unsent.count()).unwrap_or(u64::MAX)
    }

    pub(crate) fn credit(&self, kind: BatchKind) -> usize {
        self.credit.get(kind.index()).copied().unwrap_or(0)
    }

    pub(crate) fn set_credit(&mut self, credit: Credit) {
        if let Some(batches) = self.credit.get_mut(credit.kind.index()) {
            *batches = usize::from(credit.batches);
        }
    }

    /// No batch is without an answer.
    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// A new link: every batch is to be sent again, but those that `is_awaited` denies for each of their requests.
    pub(crate) fn restart(&mut self, is_awaited: impl Fn(RequestId) -> bool) {
        self.sent = [0; BatchKind::ALL.len()];
        self.batches.retain(|_, in_flight| {
            in_flight.is_sent = false;
            in_flight.requests().iter().any(|(id, _)| is_awaited(*id))
        });
    }

    /// A new batch. It waits for [`Window::next_to_send`] like those of a broken link.
    pub(crate) fn open(
        &mut self,
        kind: BatchKind,
        requests: Vec<(RequestId, Request)>,
        now: Instant,
    ) -> BatchId {
        let id = BatchId(self.next);
        self.next += 1;
        let message = FromWorker::Batch(Batch { id, kind, requests });
        self.batches.insert(
            id,
            InFlight {
                kind,
                message,
                sent_at: now,
                is_sent: false,
            },
        );
        id
    }

    /// The oldest batch of a kind that the present link has not seen, counted as sent; only while credit is left.
    pub(crate) fn next_to_send(
        &mut self,
        kind: BatchKind,
        now: Instant,
    ) -> Option<(BatchId, &FromWorker)> {
        let sent = self.sent.get_mut(kind.index())?;
        if *sent >= self.credit.get(kind.index()).copied()? {
            return None;
        }
        let (id, in_flight) = self
            .batches
            .iter_mut()
            .find(|(_, in_flight)| !in_flight.is_sent && in_flight.kind == kind)?;
        in_flight.is_sent = true;
        in_flight.sent_at = now;
        *sent += 1;
        Some((*id, &in_flight.message))
    }

    /// The answer to a batch is here (or none will come): forgets it and gives its credit back.
    pub(crate) fn close(&mut self, id: BatchId) -> Option<InFlight> {
        let in_flight = self.batches.remove(&id)?;
        if in_flight.is_sent
            && let Some(sent) = self.sent.get_mut(in_flight.kind.index())
        {
            *sent = sent.saturating_sub(1);
        }
        Some(in_flight)
    }
}

#[cfg(test)]
mod tests {
    use fleet_protocol::ids::HostId;

    use super::*;

    fn open(window: &mut Window, kind: BatchKind, request: u64) -> BatchId {
        let requests = vec![(RequestId(request), Request::Read(HostId(1)))];
        window.open(kind, requests, Instant::now())
    }

    fn send(window: &mut Window, kind: BatchKind) -> Option<BatchId> {
        let (id, message) = window.next_to_send(kind, Instant::now())?;
        assert!(matches!(message, FromWorker::Batch(batch) if batch.id == id));
        Some(id)
    }

    #[test]
    fn credit_is_taken_and_returned() {
        let mut window = Window::new();
        let ids = [1, 2, 3].map(|request| open(&mut window, BatchKind::Read, request));
        assert_eq!(send(&mut window, BatchKind::Read), Some(ids[0]));
        assert_eq!(send(&mut window, BatchKind::Read), Some(ids[1]));
        assert_eq!(send(&mut window, BatchKind::Read), None, "no credit");
        assert_eq!(window.in_flight(BatchKind::Read), 2);
        assert_eq!(window.in_flight(BatchKind::Log), 0);
        let closed = window.close(ids[0]).unwrap();
        assert_eq!(closed.requests()[0].0, RequestId(1));
        assert!(window.close(ids[0]).is_none());
        assert_eq!(window.in_flight(BatchKind::Read), 1);
        assert_eq!(send(&mut window, BatchKind::Read), Some(ids[2]));
        assert!(!window.is_empty());
    }

    #[test]
    fn a_new_link_gets_the_same_batches_in_order() {
        let mut window = Window::new();
        let ids = [1, 2, 3].map(|request| open(&mut window, BatchKind::Read, request));
        open(&mut window, BatchKind::Log, 4);
        while send(&mut window, BatchKind::Read).is_some() {}
        window.restart(|id| id.0 != 2 && id.0 != 4);
        window.set_credit(Credit {
            kind: BatchKind::Read,
            batches: 1,
        });
        assert_eq!(send(&mut window, BatchKind::Log), None, "nobody waits");
        assert_eq!(send(&mut window, BatchKind::Read), Some(ids[0]));
        assert_eq!(send(&mut window, BatchKind::Read), None, "no credit");
        window.close(ids[0]).unwrap();
        assert_eq!(send(&mut window, BatchKind::Read), Some(ids[2]));
        // An answer that crossed the end of the old link.
        window.restart(|_| true);
        window.close(ids[2]).unwrap();
        assert_eq!(window.in_flight(BatchKind::Read), 0);
        assert!(window.is_empty());
        assert_ne!(open(&mut window, BatchKind::Read, 5), ids[2]);
    }
}
