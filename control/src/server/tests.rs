use std::collections::HashMap as Map;
use std::path::PathBuf;

use fleet_protocol::agent::{Log, LogType, Request};
use fleet_protocol::feed::{CALLED_SINCE, Change, Load};
use fleet_protocol::frame::{Decoder, Message, VERSION};
use fleet_protocol::hello::{Hello, HelloReply};
use fleet_protocol::ids::{
    BatchId, Generation, HostId, NodeKeyHash, RequestId, SlotIndex, UnixSeconds,
};
use fleet_protocol::limits::BatchLimits;
use fleet_protocol::link::FromWorker;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Notify;

use super::*;

const WAIT: Duration = Duration::from_secs(20);

/// Counts what it runs; log batches wait until they are let go.
#[derive(Default)]
struct Fake {
    runs: Mutex<Map<u64, u32>>,
    let_go: Notify,
    /// One for each subscriber.
    feeds: Mutex<Vec<mpsc::Sender<Arc<Feed>>>>,
}

struct FakeFeed(mpsc::Receiver<Arc<Feed>>);

impl FeedSource for FakeFeed {
    async fn next(&mut self) -> Option<Arc<Feed>> {
        self.0.recv().await
    }

    fn try_next(&mut self) -> Option<Arc<Feed>> {
        self.0.try_recv().ok()
    }
}

fn piece(seq: u64) -> Arc<Feed> {
    let key = NodeKeyHash([7; 32]);
    Arc::new(Feed {
        load: Load::Changes,
        seq: FeedSeq(seq),
        changes: vec![Change::Forget(key)],
    })
}

impl Backend for Fake {
    type Feed = FakeFeed;

    fn subscribe(&self, _: Option<FeedSeq>) -> FakeFeed {
        let (sender, receiver) = mpsc::channel(64);
        self.feeds.lock().unwrap().push(sender);
        FakeFeed(receiver)
    }

    async fn run(&self, batch: Batch) -> BatchReply {
        *self.runs.lock().unwrap().entry(batch.id.0).or_default() += 1;
        match batch.kind {
            BatchKind::Log => self.let_go.notified().await,
            // Told before the reply is ready, as the agents' side does.
            BatchKind::Lookup => {
                for feed in self.feeds.lock().unwrap().iter() {
                    let _ = feed.try_send(piece(batch.id.0));
                }
            }
            _ => {}
        }
        BatchReply {
            id: batch.id,
            kind: batch.kind,
            answers: batch
                .requests
                .iter()
                .map(|(id, _)| (*id, Answer::Accepted))
                .collect(),
        }
    }
}

struct Harness {
    fake: Arc<Fake>,
    server: Arc<Server<Fake>>,
    path: PathBuf,
    _directory: TempDir,
}

impl Harness {
    fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("control.sock");
        let fake = Arc::new(Fake::default());
        let server = Server::new(Arc::clone(&fake), BootNonce(99));
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(Arc::clone(&server).accept(listener));
        Self {
            fake,
            server,
            path,
            _directory: directory,
        }
    }

    async fn link(&self, worker: u64) -> Link {
        let mut link = Link::connect(&self.path).await;
        link.send(&hello(worker)).await;
        let reply: HelloReply = link.receive().await.unwrap();
        let HelloReply::Accepted { boot, credit, .. } = reply else {
            panic!("{reply:?}");
        };
        assert_eq!(boot, BootNonce(99));
        assert_eq!(credit.len(), BatchKind::ALL.len());
        link
    }

    fn runs(&self, id: u64) -> u32 {
        self.fake
            .runs
            .lock()
            .unwrap()
            .get(&id)
            .copied()
            .unwrap_or(0)
    }

    async fn until(&self, what: &str, is_true: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + WAIT;
        while !is_true(self) {
            assert!(Instant::now() < deadline, "timed out: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

struct Link {
    stream: UnixStream,
    input: BytesMut,
    decoder: Decoder,
}

impl Link {
    async fn connect(path: &std::path::Path) -> Self {
        Self {
            stream: UnixStream::connect(path).await.unwrap(),
            input: BytesMut::new(),
            decoder: Decoder::default(),
        }
    }

    async fn send<M: Message>(&mut self, message: &M) {
        let mut bytes = BytesMut::new();
        frame::encode(message, &mut bytes).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// `None` when control closed.
    async fn receive<M: Message>(&mut self) -> Option<M> {
        tokio::time::timeout(WAIT, async {
            loop {
                if let Some(message) = self.decoder.decode(&mut self.input).unwrap() {
                    return Some(message);
                }
                match self.stream.read_buf(&mut self.input).await {
                    Ok(1..) => {}
                    _ => return None,
                }
            }
        })
        .await
        .expect("a message in time")
    }

    /// The next message that is no ping; pings are answered.
    async fn next(&mut self) -> Option<FromControl> {
        loop {
            match self.receive().await {
                Some(FromControl::Ping(number)) => {
                    let mut bytes = BytesMut::new();
                    frame::encode(&FromWorker::Pong(number), &mut bytes).unwrap();
                    // Control may have cut the link since; the next read tells.
                    let _ = self.stream.write_all(&bytes).await;
                }
                other => return other,
            }
        }
    }

    async fn reply(&mut self) -> BatchReply {
        match self.next().await {
            Some(FromControl::Reply(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }
}

fn hello(worker: u64) -> Hello {
    Hello {
        version_min: fleet_protocol::frame::VERSION_MIN,
        version_max: fleet_protocol::frame::VERSION,
        build: "test".into(),
        slot: SlotIndex(0),
        generation: Generation(0),
        boot: BootNonce(worker),
        feed_after: None,
    }
}

fn log_batch(id: u64) -> FromWorker {
    FromWorker::Batch(Batch {
        id: BatchId(id),
        kind: BatchKind::Log,
        requests: vec![(
            RequestId(id * 100),
            Request::Log(Log {
                host: HostId(1),
                log_type: LogType::Result,
                lines: Bytes::from_static(b"{}\n"),
                line_count: 1,
            }),
        )],
    })
}

fn lookup_batch(id: u64) -> FromWorker {
    FromWorker::Batch(Batch {
        id: BatchId(id),
        kind: BatchKind::Lookup,
        requests: vec![(
            RequestId(id * 100),
            Request::Lookup(NodeKeyHash([id.to_le_bytes()[0]; 32])),
        )],
    })
}

#[tokio::test]
async fn replies_come_as_they_are_ready_after_their_feed() {
    let harness = Harness::start();
    let mut link = harness.link(1).await;
    link.send(&log_batch(1)).await;
    link.send(&lookup_batch(2)).await;
    match link.next().await {
        Some(FromControl::Feed(feed)) => assert_eq!(feed.seq, FeedSeq(2)),
        other => panic!("{other:?}"),
    }
    assert_eq!(link.reply().await.id, BatchId(2));
    harness.fake.let_go.notify_one();
    let reply = link.reply().await;
    assert_eq!(reply.id, BatchId(1));
    assert_eq!(reply.answers, [(RequestId(100), Answer::Accepted)]);
}

#[tokio::test]
async fn a_running_batch_is_joined_and_an_answered_one_remembered() {
    let harness = Harness::start();
    let mut first = harness.link(1).await;
    first.send(&log_batch(1)).await;
    harness.until("the batch runs", |h| h.runs(1) == 1).await;
    drop(first);
    let mut second = harness.link(1).await;
    second.send(&log_batch(1)).await;
    harness
        .until("the batch is joined", |h| {
            h.server.counters.repeated.load(Ordering::Relaxed) == 1
        })
        .await;
    harness.fake.let_go.notify_one();
    assert_eq!(second.reply().await.id, BatchId(1));
    drop(second);
    let mut third = harness.link(1).await;
    third.send(&log_batch(1)).await;
    assert_eq!(third.reply().await.id, BatchId(1));
    assert_eq!(harness.runs(1), 1);
    // The same number from another worker is another batch.
    let mut other = harness.link(2).await;
    harness.fake.let_go.notify_one();
    other.send(&log_batch(1)).await;
    assert_eq!(other.reply().await.id, BatchId(1));
    assert_eq!(harness.runs(1), 2);
}

#[tokio::test]
async fn exceeding_the_credit_cuts_the_link() {
    let harness = Harness::start();
    let mut link = harness.link(1).await;
    let credit = u64::from(BatchLimits::of(BatchKind::Log).credit);
    for id in 1..=credit {
        link.send(&log_batch(id)).await;
    }
    harness
        .until("all run", |h| (1..=credit).all(|id| h.runs(id) == 1))
        .await;
    // A reply gives one back.
    harness.fake.let_go.notify_one();
    link.reply().await;
    link.send(&log_batch(credit + 1)).await;
    harness.until("it runs", |h| h.runs(credit + 1) == 1).await;
    link.send(&log_batch(credit + 2)).await;
    assert_eq!(link.next().await, None);
    assert_eq!(harness.runs(credit + 2), 0);
    assert_eq!(
        harness.server.counters.violations.load(Ordering::Relaxed),
        1
    );
}

#[tokio::test]
async fn broken_peers_are_cut() {
    let harness = Harness::start();
    // A request in a batch of another kind.
    let mut link = harness.link(1).await;
    let FromWorker::Batch(mut batch) = log_batch(1) else {
        unreachable!()
    };
    batch.kind = BatchKind::Read;
    link.send(&FromWorker::Batch(batch)).await;
    assert_eq!(link.next().await, None);
    // No frames at all.
    let mut link = harness.link(1).await;
    link.stream
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(link.next().await, None);
    assert_eq!(
        harness.server.counters.violations.load(Ordering::Relaxed),
        2
    );
    // A version that we do not speak gets a reason.
    let mut link = Link::connect(&harness.path).await;
    let future = Hello {
        version_min: 700,
        version_max: 800,
        ..hello(1)
    };
    link.send(&future).await;
    let reply: HelloReply = link.receive().await.unwrap();
    assert!(matches!(reply, HelloReply::Refused { reason } if reason.contains("700")));
    assert_eq!(link.receive::<FromControl>().await, None);
    // No hello at all.
    let mut link = Link::connect(&harness.path).await;
    assert_eq!(link.receive::<FromControl>().await, None);
    harness
        .until("both are counted", |h| {
            h.server.counters.refused.load(Ordering::Relaxed) == 2
        })
        .await;
    assert_eq!(harness.fake.runs.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_worker_of_the_previous_build_hears_frames_of_its_version() {
    use fleet_protocol::frame::VERSION_MIN;

    let harness = Harness::start();
    let mut link = Link::connect(&harness.path).await;
    let previous = Hello {
        version_max: VERSION_MIN,
        ..hello(1)
    };
    link.send(&previous).await;
    let reply: HelloReply = link.receive().await.unwrap();
    assert!(matches!(reply, HelloReply::Accepted { version, .. } if version == VERSION_MIN));
    while link.input.len() < 6 {
        assert_ne!(link.stream.read_buf(&mut link.input).await.unwrap(), 0);
    }
    assert_eq!(link.input[4..6], VERSION_MIN.to_be_bytes());
}

#[tokio::test]
async fn pings_are_answered_and_silence_ends_the_link() {
    let harness = Harness::start();
    let mut link = harness.link(1).await;
    link.send(&FromWorker::Ping(42)).await;
    assert_eq!(link.next().await, Some(FromControl::Pong(42)));
    // Read, but say nothing.
    while let Some(message) = link.receive::<FromControl>().await {
        assert!(matches!(message, FromControl::Ping(_)), "{message:?}");
    }
    assert_eq!(harness.server.counters.dead.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_subscriber_that_fell_behind_is_cut() {
    let harness = Harness::start();
    let mut link = harness.link(1).await;
    harness
        .until("it has subscribed", |h| {
            h.fake.feeds.lock().unwrap().len() == 1
        })
        .await;
    harness.fake.feeds.lock().unwrap().clear();
    assert_eq!(link.next().await, None);
    assert_eq!(harness.server.counters.behind.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn the_end_waits_for_what_runs() {
    let harness = Harness::start();
    let mut link = harness.link(1).await;
    link.send(&log_batch(1)).await;
    harness.until("the batch runs", |h| h.runs(1) == 1).await;
    let server = Arc::clone(&harness.server);
    let end = tokio::spawn(async move { server.finish().await });
    assert_eq!(link.next().await, Some(FromControl::GoAway));
    assert!(!end.is_finished());
    harness.fake.let_go.notify_one();
    assert_eq!(link.reply().await.id, BatchId(1));
    assert_eq!(link.next().await, None);
    end.await.unwrap();
    assert_eq!(harness.server.counters.open.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn calls_reach_workers_of_both_builds() {
    let harness = Harness::start();
    let mut bytes = Vec::new();
    let hosts = roaring::RoaringBitmap::from([3, 70_000]);
    hosts.serialize_into(&mut bytes).unwrap();
    let at = UnixSeconds(0);
    let called = Change::Called {
        hosts: bytes.into(),
        at,
    };
    let due = |host| Change::WorkDue {
        host: HostId(host),
        at,
    };
    let expected = [
        (VERSION, vec![called.clone()]),
        (CALLED_SINCE - 1, vec![due(3), due(70_000)]),
    ];
    for (version_max, changes) in expected {
        let mut link = Link::connect(&harness.path).await;
        link.send(&Hello {
            version_max,
            ..hello(u64::from(version_max))
        })
        .await;
        let reply: HelloReply = link.receive().await.unwrap();
        assert!(matches!(reply, HelloReply::Accepted { version, .. } if version == version_max));
        let piece = Arc::new(Feed {
            load: Load::Changes,
            seq: FeedSeq(5),
            changes: vec![called.clone()],
        });
        harness
            .until("it subscribes", |h| {
                !h.fake.feeds.lock().unwrap().is_empty()
            })
            .await;
        let feed = harness.fake.feeds.lock().unwrap().pop().unwrap();
        feed.try_send(piece).unwrap();
        match link.next().await {
            Some(FromControl::Feed(feed)) => assert_eq!(feed.changes, changes),
            other => panic!("{other:?}"),
        }
    }
}
