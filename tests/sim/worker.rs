//! A worker: its door, its exchanges, and the product's queues and window between them and the link.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Instant;

use bytes::Bytes;
use fleet_protocol::agent::{Answer, Log, LogType, Request};
use fleet_protocol::ids::{BatchId, BootNonce, HostId, NodeKeyHash, RequestId};
use fleet_protocol::limits::BatchLimits;
use fleet_protocol::link::{Batch, BatchKind, BatchReply, Credit, FromWorker};
use fleet_protocol::reject::Reject;
use tokio::sync::oneshot;

use crate::waiting::{Claim, Completed, Refusal, Waiting, bytes_of};

/// Connections that a worker takes.
pub(crate) const PERMITS_MAX: usize = 48;
/// Bytes of the largest log body: twelve of them do not fit into a queue.
pub(crate) const BODY_BYTES_MAX: usize = 12 << 20;
/// Log bodies come out of one buffer.
static BODY: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; BODY_BYTES_MAX]));

/// What an agent wants.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Want {
    /// To store; each attempt has its own number.
    Log {
        attempt: u32,
        bytes: usize,
    },
    Read,
    Lookup(u8),
}

/// How an exchange ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    Answered(Answer),
    /// No room in the queue.
    Full,
    /// The time was over, or the agent went away.
    Late,
    Gone,
}

pub(crate) struct Exchange {
    pub(crate) want: Want,
    pub(crate) begun_at: u64,
    claim: Claim,
    receiver: oneshot::Receiver<Answer>,
}

pub(crate) struct Worker {
    pub(crate) boot: BootNonce,
    pub(crate) link: Option<usize>,
    pub(crate) exchanges: HashMap<u64, Exchange>,
    pub(crate) waiting: Waiting,
    /// A model of the queues: what was queued and has not left.
    queued: HashMap<RequestId, (BatchKind, usize)>,
    /// Requests and bytes in it, by kind.
    sums: [(usize, usize); BatchKind::ALL.len()],
    askers: HashMap<RequestId, Vec<u64>>,
    pub(crate) oddities: u64,
}

impl Worker {
    pub(crate) fn new(boot: BootNonce) -> Self {
        Self {
            boot,
            link: None,
            exchanges: HashMap::new(),
            waiting: Waiting::new(),
            queued: HashMap::new(),
            sums: Default::default(),
            askers: HashMap::new(),
            oddities: 0,
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.exchanges.len() < PERMITS_MAX
    }

    /// Begins an exchange; the outcome, when it ends at once.
    pub(crate) fn begin(&mut self, id: u64, want: Want, at: u64, now: Instant) -> Option<Outcome> {
        let request = match want {
            Want::Log { attempt, bytes } => Request::Log(Log {
                host: HostId(attempt),
                log_type: LogType::Result,
                lines: BODY.slice(..bytes.min(BODY_BYTES_MAX)),
                line_count: 1,
            }),
            Want::Read => Request::Read(HostId(0)),
            Want::Lookup(key) => Request::Lookup(NodeKeyHash([key; 32])),
        };
        let (kind, bytes) = (BatchKind::of(&request), bytes_of(&request));
        let asked = match &request {
            Request::Lookup(key) => self.waiting.look_up(*key, now),
            _ => self.waiting.ask(request, now),
        };
        let (claim, receiver) = match asked {
            Ok(asked) => asked,
            Err(refusal) => {
                let is_one_queued = || self.queued.values().any(|(of, _)| *of == kind);
                let is_right = match refusal {
                    Refusal::Full => self.is_full_for(kind, bytes),
                    Refusal::Late => is_one_queued(),
                };
                assert!(is_right, "{refusal:?}, though there is room");
                return Some(Outcome::Full);
            }
        };
        let request = match claim {
            Claim::One(request) | Claim::Lookup(_, request, _) => request,
        };
        // A lookup that is out already is joined, also when nobody waits for it any more.
        if !self.askers.contains_key(&request) {
            assert_eq!(self.queued.insert(request, (kind, bytes)), None);
            let (count, sum) = &mut self.sums[kind.index()];
            (*count, *sum) = (*count + 1, *sum + bytes);
        }
        self.askers.entry(request).or_default().push(id);
        let exchange = Exchange {
            want,
            begun_at: at,
            claim,
            receiver,
        };
        assert!(self.exchanges.insert(id, exchange).is_none());
        assert!(
            self.exchanges.len() <= PERMITS_MAX,
            "more permits than there are"
        );
        self.check();
        None
    }

    /// Takes a request out of the model of the queues; whether it was there.
    fn unqueue(&mut self, id: RequestId) -> bool {
        let Some((kind, bytes)) = self.queued.remove(&id) else {
            return false;
        };
        let (count, sum) = &mut self.sums[kind.index()];
        (*count, *sum) = (*count - 1, *sum - bytes);
        true
    }

    fn is_full_for(&self, kind: BatchKind, bytes: usize) -> bool {
        let limits = BatchLimits::of(kind);
        let (count, sum) = self.sums[kind.index()];
        count >= limits.waiting_requests_max || sum + bytes > limits.waiting_bytes_max
    }

    /// The queues hold what the model holds, and never more than they may; no more batches are out than credit allows.
    fn check(&self) {
        for kind in BatchKind::ALL {
            let limits = BatchLimits::of(kind);
            let (count, bytes) = self.sums[kind.index()];
            if kind != BatchKind::Seen {
                assert_eq!(self.waiting.queued(kind), count, "{kind:?}");
            }
            assert!(count <= limits.waiting_requests_max, "{kind:?}");
            assert!(bytes <= limits.waiting_bytes_max, "{kind:?}");
            let in_flight = self.waiting.window.in_flight(kind);
            assert!(in_flight <= usize::from(limits.credit), "{kind:?}");
        }
    }

    /// Ends an exchange whose time is over or whose agent is gone; `None` when it has ended before.
    pub(crate) fn cancel(&mut self, id: u64) -> Option<Exchange> {
        let exchange = self.exchanges.remove(&id)?;
        self.waiting.cancel(exchange.claim);
        let request = match exchange.claim {
            Claim::One(request) | Claim::Lookup(_, request, _) => request,
        };
        let askers = self.askers.entry(request).or_default();
        askers.retain(|asker| *asker != id);
        if askers.is_empty() {
            self.unqueue(request);
            // A lookup that is out goes on, and may be joined again.
            if matches!(exchange.claim, Claim::One(_)) {
                self.askers.remove(&request);
            }
        }
        self.check();
        Some(exchange)
    }

    pub(crate) fn linked(&mut self, link: usize) {
        self.link = Some(link);
        self.waiting.restart_window();
        for kind in BatchKind::ALL {
            let batches = BatchLimits::of(kind).credit;
            self.waiting.window.set_credit(Credit { kind, batches });
        }
    }

    /// The next batch for the link, as the link's task takes it.
    pub(crate) fn next_batch(&mut self, now: Instant) -> Option<Batch> {
        self.link?;
        for kind in BatchKind::ALL {
            if self.waiting.window.unsent(kind) == 0
                && let Some(taken) = self.waiting.take_due(kind, now)
            {
                for (id, _) in &taken.requests {
                    let left = self.unqueue(*id);
                    assert!(kind == BatchKind::Seen || left, "a request leaves twice");
                }
                self.waiting.window.open(kind, taken.requests, now);
            }
            if let Some((_, message)) = self.waiting.window.next_to_send(kind, now) {
                let FromWorker::Batch(batch) = message.clone() else {
                    panic!("no batch");
                };
                self.check();
                return Some(batch);
            }
        }
        None
    }

    /// Takes a reply, as the link's task does; gives the exchanges that it ends.
    pub(crate) fn take_reply(&mut self, reply: BatchReply) -> Vec<(u64, Exchange, Outcome)> {
        let Some(in_flight) = self.waiting.window.close(BatchId(reply.id.0)) else {
            self.oddities += 1;
            return Vec::new();
        };
        let mut ended = Vec::new();
        let left_out = in_flight.requests().iter().map(|(id, _)| *id);
        let left_out = left_out.map(|id| (id, Answer::Refused(Reject::Internal)));
        for (request, answer) in reply.answers.into_iter().chain(left_out) {
            if self.waiting.complete(request, answer) != Completed::Told {
                continue;
            }
            for id in self.askers.remove(&request).unwrap_or_default() {
                let mut exchange = self.exchanges.remove(&id).unwrap();
                let answer = exchange.receiver.try_recv().expect("its answer");
                ended.push((id, exchange, Outcome::Answered(answer)));
            }
        }
        self.check();
        ended
    }

    /// Nothing is left of all that was.
    pub(crate) fn assert_empty(&self) {
        assert!(
            self.exchanges.is_empty(),
            "{} permits leaked",
            self.exchanges.len()
        );
        assert!(self.waiting.is_idle(), "something still waits for control");
        assert!(self.queued.is_empty());
        for kind in BatchKind::ALL {
            let in_flight = self.waiting.window.in_flight(kind);
            assert_eq!(in_flight, 0, "credit for {kind:?} leaked");
        }
    }
}
