//! The workers' links: accepts them, runs their batches once, and ends them in order.
//!
//! Owner of the state: this type, for the table of batches and the phase. Invariants: a batch runs to its end even when
//! its link breaks, so that the same batch on the next link finds its reply; batches that run are bounded by the credit
//! of each link and the number of links.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fleet_protocol::agent::Answer;
use fleet_protocol::feed::Feed;
use fleet_protocol::frame;
use fleet_protocol::ids::{BootNonce, FeedSeq};
use fleet_protocol::link::{Batch, BatchKind, BatchReply, FromControl};
use fleet_protocol::reject::Reject;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::dedupe::{Dedupe, Verdict};
use crate::link;

/// Links at once; more than a supervisor may have workers, twice, because an old link may linger.
const LINKS_MAX: usize = 2048;
/// Pause after an accept that failed, so that a full descriptor table does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// After GoAway, what workers had sent already is still taken for this long.
const LAST_BATCHES: Duration = Duration::from_millis(200);
/// Time to write the last replies.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// What does the work.
pub(crate) trait Backend: Send + Sync + 'static {
    /// A worker's part of the feed.
    type Feed: FeedSource;
    /// Load or changes, then what comes.
    fn subscribe(&self, after: Option<FeedSeq>) -> Self::Feed;
    /// One answer for each request, in order; within a deadline; does not panic.
    fn run(&self, batch: Batch) -> impl Future<Output = BatchReply> + Send;
}

/// Pieces of the feed, in order.
pub(crate) trait FeedSource: Send + 'static {
    /// The next piece; `None` when the reader fell behind and must connect again. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Option<Arc<Feed>>> + Send;
    /// The next piece if it is there already.
    fn try_next(&mut self) -> Option<Arc<Feed>>;
}

/// How far the end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Links are accepted and batches taken.
    Serving,
    /// Workers were told to send nothing new.
    GoingAway,
    /// Links write what they have, then close.
    Closing,
}

/// What a link writes, beside the feed.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// An encoded reply.
    Reply {
        kind: BatchKind,
        bytes: Bytes,
    },
    Pong(u64),
}

/// Where a reply goes.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// Has room for every reply that the link's credit allows.
    pub(crate) outgoing: mpsc::Sender<Outgoing>,
    /// What the worker and this process both speak; the same on every link of one worker process.
    pub(crate) version: u16,
}

/// Counters since start. Relaxed: nothing is decided by them.
#[derive(Debug, Default)]
pub(crate) struct LinkCounters {
    pub(crate) accepted: AtomicU64,
    pub(crate) open: AtomicU64,
    /// Hellos refused, and peers with a foreign uid.
    pub(crate) refused: AtomicU64,
    /// Links cut for breaking the protocol: credit, kinds, frames.
    pub(crate) violations: AtomicU64,
    /// Links that went silent or did not read.
    pub(crate) dead: AtomicU64,
    /// Links whose feed fell behind.
    pub(crate) behind: AtomicU64,
    /// Links whose socket failed.
    pub(crate) lost: AtomicU64,
    /// Batches that came again.
    pub(crate) repeated: AtomicU64,
    /// Feed pieces written.
    pub(crate) feed_pieces: AtomicU64,
    /// Bytes read and written.
    pub(crate) read_bytes: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
}

impl LinkCounters {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// All links. Shared by `Arc`.
pub(crate) struct Server<B> {
    pub(crate) backend: Arc<B>,
    /// This control process.
    pub(crate) boot: BootNonce,
    pub(crate) counters: Arc<LinkCounters>,
    dedupe: Mutex<Dedupe<mpsc::Sender<Outgoing>, Bytes>>,
    running: watch::Sender<usize>,
    phase: watch::Sender<Phase>,
}

impl<B: Backend> Server<B> {
    pub(crate) fn new(backend: Arc<B>, boot: BootNonce) -> Arc<Self> {
        Arc::new(Self {
            backend,
            boot,
            counters: Arc::default(),
            dedupe: Mutex::default(),
            running: watch::Sender::new(0),
            phase: watch::Sender::new(Phase::Serving),
        })
    }

    /// Accepts links until the phase changes.
    pub(crate) async fn accept(self: Arc<Self>, listener: UnixListener) {
        let permits = Arc::new(Semaphore::new(LINKS_MAX));
        let mut phase = self.phases();
        loop {
            let accepted = tokio::select! {
                _ = phase.wait_for(|phase| *phase > Phase::Serving) => return,
                accepted = async {
                    let permit = Arc::clone(&permits).acquire_owned().await;
                    (permit, listener.accept().await)
                } => accepted,
            };
            match accepted {
                (Ok(permit), Ok((stream, _))) => {
                    let server = Arc::clone(&self);
                    tokio::spawn(async move {
                        link::converse(&server, stream).await;
                        drop(permit);
                    });
                }
                (_, Err(error)) => {
                    tracing::warn!(%error, "cannot accept a worker's link");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                (Err(_), _) => return,
            }
        }
    }

    /// Sees every change of the phase.
    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Runs a batch, or joins it to the one that runs, or gives the reply that it had. The reply goes to `link`, unless
    /// that is gone by then.
    pub(crate) fn take(self: &Arc<Self>, worker: BootNonce, batch: Batch, link: &Link) {
        let (id, kind) = (batch.id, batch.kind);
        let Link { outgoing, version } = link.clone();
        let verdict = self.dedupe(|dedupe, now| dedupe.begin(worker, id, kind, outgoing, now));
        match verdict {
            Verdict::Join => LinkCounters::add(&self.counters.repeated, 1),
            Verdict::Answered(bytes) => {
                LinkCounters::add(&self.counters.repeated, 1);
                send(&link.outgoing, kind, bytes);
            }
            Verdict::Run => {
                let running = Running::new(Arc::clone(self));
                tokio::spawn(async move {
                    let server = &running.0;
                    let requests: Vec<_> = batch.requests.iter().map(|(id, _)| *id).collect();
                    let reply = server.backend.run(batch).await;
                    let bytes = encode(version, reply).unwrap_or_else(|| {
                        let refused = Answer::Refused(Reject::Internal);
                        let answers = requests.into_iter().map(|id| (id, refused.clone()));
                        let answers = answers.collect();
                        encode(version, BatchReply { id, kind, answers }).unwrap_or_default()
                    });
                    let links = server
                        .dedupe(|dedupe, now| dedupe.finish(worker, id, kind, bytes.clone(), now));
                    for link in links {
                        send(&link, kind, bytes.clone());
                    }
                });
            }
        }
    }

    /// Tells the workers, waits for what runs, writes the replies, closes. The caller bounds the time.
    pub(crate) async fn finish(&self) {
        self.phase.send_replace(Phase::GoingAway);
        tokio::time::sleep(LAST_BATCHES).await;
        // The sender lives in self, so this cannot fail.
        let _ = self.running.subscribe().wait_for(|count| *count == 0).await;
        self.phase.send_replace(Phase::Closing);
        let all_closed = async {
            while self.counters.open.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(CLOSE_DEADLINE, all_closed)
            .await
            .is_err()
        {
            tracing::warn!("some links did not take their last replies in time");
        }
    }

    fn dedupe<T>(
        &self,
        work: impl FnOnce(&mut Dedupe<mpsc::Sender<Outgoing>, Bytes>, Instant) -> T,
    ) -> T {
        let mut dedupe = self.dedupe.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut dedupe, Instant::now())
    }
}

/// Counts a batch as running, whatever becomes of its task.
struct Running<B: Backend>(Arc<Server<B>>);

impl<B: Backend> Running<B> {
    fn new(server: Arc<Server<B>>) -> Self {
        server.running.send_modify(|count| *count += 1);
        Self(server)
    }
}

impl<B: Backend> Drop for Running<B> {
    fn drop(&mut self) {
        self.0.running.send_modify(|count| *count -= 1);
    }
}

/// A link's queue has room for every reply that its credit allows, so failure means that the link is gone.
fn send(link: &mpsc::Sender<Outgoing>, kind: BatchKind, bytes: Bytes) {
    let _ = link.try_send(Outgoing::Reply { kind, bytes });
}

fn encode(version: u16, reply: BatchReply) -> Option<Bytes> {
    let mut bytes = BytesMut::new();
    match frame::encode_in(version, &FromControl::Reply(reply), &mut bytes) {
        Ok(()) => Some(bytes.freeze()),
        Err(error) => {
            tracing::error!(%error, "a reply cannot be encoded");
            None
        }
    }
}

#[cfg(test)]
mod tests;
