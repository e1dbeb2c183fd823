//! One worker's link: hello, frames in, replies and feed out, pings both ways.
//!
//! Owner of the state: the link's task, for the buffers and the batches in flight per kind. Invariants: a peer that
//! exceeds its credit, mixes kinds or breaks the framing is cut; what waits to be written is bounded by the credit; feed
//! pieces that were queued before a reply was ready are written before that reply, for the kinds whose replies tell of
//! hosts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use fleet_protocol::feed::{CALLED_SINCE, Change, Feed};
use fleet_protocol::frame::{self, Decoder, Message};
use fleet_protocol::hello::{self, Hello, HelloReply};
use fleet_protocol::ids::{BootNonce, HostId};
use fleet_protocol::limits::{BatchLimits, HELLO_DEADLINE, PING_INTERVAL};
use fleet_protocol::link::{Batch, BatchKind, Credit, FromControl, FromWorker};
use roaring::RoaringBitmap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use crate::peer;
use crate::server::{Backend, FeedSource, Link, LinkCounters, Outgoing, Phase, Server};

/// Intervals in which this process looked for a sign of life and found none; a pause of its own, however long, is one of
/// them. Long, because a link between two processes of one machine does not break unseen: a worker that stalls is its
/// supervisor's matter, and cutting the link of one that is busy only makes it send everything again.
const SILENT_INTERVALS_MAX: u32 = 10;
/// A worker that does not read for this long is cut; it comes back and takes a load.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// Pongs that wait to be written; a peer that pings faster is cut.
const PONGS_MAX: usize = 16;
/// What is encoded before it is written.
const BUFFER_BYTES: usize = 256 << 10;
const READ_BYTES: usize = 64 << 10;
/// Feed pieces that may go before one reply.
const PIECES_BEFORE_REPLY_MAX: usize = 16_384;

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("peer closed")]
    Closed,
    #[error("peer reads its feed too slowly")]
    Behind,
    #[error("peer went silent")]
    Silent,
    #[error("peer does not read")]
    Stuck,
    #[error("{0}")]
    Socket(#[from] std::io::Error),
    #[error("{0}")]
    Frame(#[from] frame::Error),
    #[error("{0}")]
    Violation(String),
    #[error("{0}")]
    Refused(String),
    #[error("control is ending")]
    Ending,
}

/// Serves one accepted connection to its end.
pub(crate) async fn converse<B: Backend>(server: &Arc<Server<B>>, stream: UnixStream) {
    let counters = &server.counters;
    LinkCounters::add(&counters.accepted, 1);
    let open = Open::new(&server.counters);
    let mut reader = Reader {
        stream: None,
        input: BytesMut::with_capacity(READ_BYTES),
        decoder: Decoder::default(),
    };
    let mut slot = None;
    let end = match greet(server, stream, &mut reader).await {
        Ok((writer, hello, version)) => {
            slot = Some(hello.slot);
            tracing::info!(slot = %hello.slot, worker = %hello.build, version, feed_after = ?hello.feed_after, "link stands");
            exchange(server, &mut reader, writer, &hello, version).await
        }
        Err(end) => end,
    };
    drop(open);
    let counter = match &end {
        End::Closed | End::Ending => None,
        End::Socket(_) => Some(&counters.lost),
        End::Behind => Some(&counters.behind),
        End::Silent | End::Stuck => Some(&counters.dead),
        End::Frame(_) | End::Violation(_) => Some(&counters.violations),
        End::Refused(_) => Some(&counters.refused),
    };
    match counter {
        Some(counter) => {
            LinkCounters::add(counter, 1);
            tracing::warn!(slot = slot.map(|slot| slot.0), reason = %end, "link cut");
        }
        None => {
            tracing::info!(slot = slot.map(|slot| slot.0), reason = %end, "link ended");
        }
    }
}

struct Open<'a>(&'a LinkCounters);

impl<'a> Open<'a> {
    fn new(counters: &'a LinkCounters) -> Self {
        LinkCounters::add(&counters.open, 1);
        Self(counters)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Checks the peer, reads its hello, answers it; with the version that both speak.
async fn greet<B: Backend>(
    server: &Server<B>,
    stream: UnixStream,
    reader: &mut Reader,
) -> Result<(OwnedWriteHalf, Hello, u16), End> {
    let peer = stream.peer_cred()?.uid();
    if !peer::is_worker(peer) {
        return Err(End::Refused(format!("peer has uid {peer}")));
    }
    let (read, mut write) = stream.into_split();
    reader.stream = Some(read);
    let hello: Hello = timeout(HELLO_DEADLINE, reader.next(&server.counters))
        .await
        .map_err(|_| End::Refused("no hello in time".into()))??;
    let verdict = hello::choose_version(&hello);
    let reply = match &verdict {
        Ok(version) => HelloReply::Accepted {
            version: *version,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            boot: server.boot,
            credit: BatchKind::ALL
                .into_iter()
                .map(|kind| Credit {
                    kind,
                    batches: BatchLimits::of(kind).credit,
                })
                .collect(),
        },
        Err(reason) => HelloReply::Refused {
            reason: reason.clone(),
        },
    };
    let mut bytes = BytesMut::new();
    frame::encode(&reply, &mut bytes)?;
    timeout(HELLO_DEADLINE, write.write_all(&bytes))
        .await
        .map_err(|_| End::Stuck)??;
    let version = verdict.map_err(End::Refused)?;
    Ok((write, hello, version))
}

async fn exchange<B: Backend>(
    server: &Arc<Server<B>>,
    reader: &mut Reader,
    stream: OwnedWriteHalf,
    hello: &Hello,
    version: u16,
) -> End {
    let in_flight = InFlight::default();
    let (outgoing, queue) = mpsc::channel(InFlight::total() + PONGS_MAX);
    let mut pings = interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let writer = Writer {
        version,
        stream,
        buffer: BytesMut::new(),
        queue,
        feed: server.backend.subscribe(hello.feed_after),
        phase: server.phases(),
        pings,
        ping: 0,
        in_flight: &in_flight,
        counters: &server.counters,
    };
    let link = Link { outgoing, version };
    tokio::select! {
        end = read_all(server, reader, hello.boot, &in_flight, &link) => end,
        end = writer.write_all() => end,
    }
}

/// Batches in flight, by kind: taken and not yet answered on this link.
#[derive(Default)]
struct InFlight([AtomicU16; BatchKind::ALL.len()]);

impl InFlight {
    fn total() -> usize {
        BatchKind::ALL
            .into_iter()
            .map(|kind| usize::from(BatchLimits::of(kind).credit))
            .sum()
    }

    /// False when the kind's credit is used up.
    fn take(&self, kind: BatchKind) -> bool {
        let credit = BatchLimits::of(kind).credit;
        self.0
            .get(kind.index())
            .is_some_and(|count| count.fetch_add(1, Ordering::Relaxed) < credit)
    }

    fn give_back(&self, kind: BatchKind) {
        if let Some(count) = self.0.get(kind.index()) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

struct Reader {
    stream: Option<OwnedReadHalf>,
    input: BytesMut,
    decoder: Decoder,
}

impl Reader {
    async fn next<M: Message>(&mut self, counters: &LinkCounters) -> Result<M, End> {
        let mut silent_intervals = 0;
        loop {
            if let Some(message) = self.decoder.decode(&mut self.input)? {
                return Ok(message);
            }
            let Some(stream) = &mut self.stream else {
                return Err(End::Closed);
            };
            self.input.reserve(READ_BYTES);
            let Ok(count) = timeout(PING_INTERVAL, stream.read_buf(&mut self.input)).await else {
                silent_intervals += 1;
                if silent_intervals >= SILENT_INTERVALS_MAX {
                    return Err(End::Silent);
                }
                continue;
            };
            let count = count?;
            silent_intervals = 0;
            if count == 0 {
                return Err(End::Closed);
            }
            LinkCounters::add(&counters.read_bytes, count as u64);
        }
    }
}

async fn read_all<B: Backend>(
    server: &Arc<Server<B>>,
    reader: &mut Reader,
    worker: BootNonce,
    in_flight: &InFlight,
    link: &Link,
) -> End {
    loop {
        match reader.next(&server.counters).await {
            Ok(FromWorker::Batch(batch)) => {
                if let Err(reason) = check(&batch, in_flight) {
                    return End::Violation(reason);
                }
                server.take(worker, batch, link);
            }
            Ok(FromWorker::Ping(number)) => {
                if link.outgoing.try_send(Outgoing::Pong(number)).is_err() {
                    return End::Violation("too many pings".into());
                }
            }
            // Any bytes are a sign of life; which ping this answers does not matter.
            Ok(FromWorker::Pong(_)) => {}
            Err(end) => return end,
        }
    }
}

fn check(batch: &Batch, in_flight: &InFlight) -> Result<(), String> {
    let stray = batch
        .requests
        .iter()
        .map(|(_, request)| BatchKind::of(request))
        .find(|kind| *kind != batch.kind);
    if let Some(stray) = stray {
        return Err(format!(
            "a {} request in a batch of kind {}",
            stray.label(),
            batch.kind.label()
        ));
    }
    if !in_flight.take(batch.kind) {
        return Err(format!("credit for {} exceeded", batch.kind.label()));
    }
    Ok(())
}

struct Writer<'a, F> {
    version: u16,
    stream: OwnedWriteHalf,
    buffer: BytesMut,
    queue: mpsc::Receiver<Outgoing>,
    feed: F,
    phase: watch::Receiver<Phase>,
    pings: Interval,
    ping: u64,
    in_flight: &'a InFlight,
    counters: &'a LinkCounters,
}

impl<F: FeedSource> Writer<'_, F> {
    async fn write_all(mut self) -> End {
        loop {
            if let Err(end) = self.step().await {
                return end;
            }
        }
    }

    /// Waits for something to write and writes it, with what else is there. No branch is preferred, so that neither
    /// feed nor replies starve the other.
    async fn step(&mut self) -> Result<(), End> {
        tokio::select! {
            Some(outgoing) = self.queue.recv() => self.put(outgoing).await?,
            piece = self.feed.next() => {
                let piece = piece.ok_or(End::Behind)?;
                self.put_piece(piece)?;
            }
            changed = self.phase.changed() => {
                let phase = *self.phase.borrow_and_update();
                if changed.is_err() || phase == Phase::Closing {
                    return self.close().await;
                }
                if phase == Phase::GoingAway {
                    self.put_message(&FromControl::GoAway)?;
                }
            }
            _ = self.pings.tick() => {
                self.ping += 1;
                self.put_message(&FromControl::Ping(self.ping))?;
            }
        }
        self.put_waiting().await?;
        self.flush().await
    }

    async fn put_waiting(&mut self) -> Result<(), End> {
        while self.buffer.len() < BUFFER_BYTES {
            match self.queue.try_recv() {
                Ok(outgoing) => self.put(outgoing).await?,
                Err(_) => break,
            }
        }
        Ok(())
    }

    async fn put(&mut self, outgoing: Outgoing) -> Result<(), End> {
        match outgoing {
            Outgoing::Pong(number) => self.put_message(&FromControl::Pong(number)),
            Outgoing::Reply { kind, bytes } => {
                if tells_of_hosts(kind) {
                    self.put_pieces().await?;
                }
                // Before the bytes go out: the worker may use the credit as soon as it reads them.
                self.in_flight.give_back(kind);
                self.buffer.extend_from_slice(&bytes);
                Ok(())
            }
        }
    }

    /// Puts every feed piece that is there.
    async fn put_pieces(&mut self) -> Result<(), End> {
        for _ in 0..PIECES_BEFORE_REPLY_MAX {
            let Some(piece) = self.feed.try_next() else {
                break;
            };
            self.put_piece(piece)?;
            if self.buffer.len() >= BUFFER_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    fn put_piece(&mut self, piece: Arc<Feed>) -> Result<(), End> {
        LinkCounters::add(&self.counters.feed_pieces, 1);
        let mut piece = Arc::unwrap_or_clone(piece);
        if self.version < CALLED_SINCE {
            piece.changes = expand_calls(piece.changes);
        }
        self.put_message(&FromControl::Feed(piece))
    }

    fn put_message(&mut self, message: &FromControl) -> Result<(), End> {
        Ok(frame::encode_in(self.version, message, &mut self.buffer)?)
    }

    async fn flush(&mut self) -> Result<(), End> {
        LinkCounters::add(&self.counters.written_bytes, self.buffer.len() as u64);
        timeout(WRITE_DEADLINE, self.stream.write_all(&self.buffer))
            .await
            .map_err(|_| End::Stuck)??;
        self.buffer.clear();
        if self.buffer.capacity() > 4 * BUFFER_BYTES {
            self.buffer = BytesMut::new();
        }
        Ok(())
    }

    /// Writes the last replies and says goodbye by the end of the stream.
    async fn close(&mut self) -> Result<(), End> {
        while let Ok(outgoing) = self.queue.try_recv() {
            self.put(outgoing).await?;
        }
        self.flush().await?;
        // The peer may have closed first.
        let _ = self.stream.shutdown().await;
        Err(End::Ending)
    }
}

/// For workers of the previous build, which are told of each host.
fn expand_calls(changes: Vec<Change>) -> Vec<Change> {
    let mut expanded = Vec::with_capacity(changes.len());
    for change in changes {
        if let Change::Called { hosts, at } = change {
            let hosts = RoaringBitmap::deserialize_from(hosts.as_ref()).unwrap_or_default();
            let due = |host| Change::WorkDue {
                host: HostId(host),
                at,
            };
            expanded.extend(hosts.into_iter().map(due));
        } else {
            expanded.push(change);
        }
    }
    expanded
}

/// Kinds whose replies say something that the feed says too; log, carve and seen need not wait for it.
fn tells_of_hosts(kind: BatchKind) -> bool {
    match kind {
        BatchKind::Lookup | BatchKind::Enroll | BatchKind::Read | BatchKind::Write => true,
        BatchKind::Log | BatchKind::Carve | BatchKind::Seen => false,
    }
}
