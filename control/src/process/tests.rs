use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::IntoRawFd as _;
use std::path::PathBuf;

use bytes::Bytes;
use fleet_protocol::agent::{Answer, Enroll, Log, LogType, Request};
use fleet_protocol::feed::{Change, Load};
use fleet_protocol::frame::Message;
use fleet_protocol::hello::{Hello, HelloReply};
use fleet_protocol::ids::{BatchId, Generation, RequestId, SlotIndex};
use fleet_protocol::link::{Batch, BatchKind, FromControl, FromWorker};
use fleet_protocol::reject::Reject;
use fleet_protocol::secret::Secret;
use tempfile::TempDir;

use fleet_protocol::sandbox::Confine;

use super::*;

const WAIT: Duration = Duration::from_secs(60);
/// What a supervisor says.
const TOLD: Drain = Drain {
    time: Duration::from_secs(10),
    is_orphaned: false,
};

#[test]
fn memory_is_read() {
    assert!(fleet_child::memory::resident_bytes() > 1 << 20);
}

#[tokio::test]
async fn the_end_of_the_channel_is_an_order_to_drain() {
    let (supervisor, child) = UnixStream::pair().unwrap();
    let (read, _write) = child.into_split();
    let orders = Orders {
        stream: read,
        input: BytesMut::new(),
        decoder: Decoder::default(),
    };
    let (gateway, gateways) = watch::channel(Gateway::default());
    let (drain, mut drains) = watch::channel(None);
    tokio::spawn(orders.obey(gateway, drain));
    let (_, mut to_child) = supervisor.into_split();
    let mut bytes = BytesMut::new();
    let latest = Gateway {
        control_restarts: 3,
        ..Gateway::default()
    };
    frame::encode(&ToChild::Gateway(Box::new(latest.clone())), &mut bytes).unwrap();
    to_child.write_all(&bytes).await.unwrap();
    let mut seen = gateways.clone();
    seen.wait_for(|gateway| *gateway == latest).await.unwrap();
    assert_eq!(*drains.borrow(), None);
    drop(to_child);
    let time = *drains.wait_for(Option::is_some).await.unwrap();
    let orphaned = Drain {
        time: DRAIN_DEADLINE,
        is_orphaned: true,
    };
    assert_eq!(time, Some(orphaned));
}

#[tokio::test]
async fn an_order_to_drain_keeps_its_time() {
    let (supervisor, child) = UnixStream::pair().unwrap();
    let (read, _write) = child.into_split();
    let orders = Orders {
        stream: read,
        input: BytesMut::new(),
        decoder: Decoder::default(),
    };
    let (gateway, _gateways) = watch::channel(Gateway::default());
    let (drain, mut drains) = watch::channel(None);
    tokio::spawn(orders.obey(gateway, drain));
    let reporter = Reporter(Mutex::new(supervisor.into_split().1));
    let mut bytes = BytesMut::new();
    frame::encode(&ToChild::Drain { deadline_ms: 1500 }, &mut bytes).unwrap();
    reporter.0.lock().await.write_all(&bytes).await.unwrap();
    drains.wait_for(Option::is_some).await.unwrap();
    drop(reporter);
    tokio::task::yield_now().await;
    let told = Drain {
        time: Duration::from_millis(1500),
        is_orphaned: false,
    };
    assert_eq!(*drains.borrow(), Some(told));
}

struct Wire {
    stream: UnixStream,
    input: BytesMut,
    decoder: Decoder,
}

impl Wire {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            decoder: Decoder::default(),
        }
    }

    async fn send<M: Message>(&mut self, message: &M) {
        let mut bytes = BytesMut::new();
        frame::encode(message, &mut bytes).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn receive<M: Message>(&mut self) -> Option<M> {
        timeout(WAIT, async {
            loop {
                if let Some(message) = self.decoder.decode(&mut self.input).unwrap() {
                    return Some(message);
                }
                if !matches!(self.stream.read_buf(&mut self.input).await, Ok(1..)) {
                    return None;
                }
            }
        })
        .await
        .expect("a message in time")
    }

    /// Skips feed and pings, which are answered, until a reply; collects the feed's changes.
    async fn answers(&mut self, feed: &mut Vec<Change>) -> Vec<(RequestId, Answer)> {
        loop {
            match self.receive().await.expect("the link stands") {
                FromControl::Reply(reply) => return reply.answers,
                FromControl::Feed(piece) => feed.extend(piece.changes),
                FromControl::Ping(number) => self.send(&FromWorker::Pong(number)).await,
                _ => {}
            }
        }
    }

    async fn ask(&mut self, id: u64, request: Request, feed: &mut Vec<Change>) -> Answer {
        let batch = Batch {
            id: BatchId(id),
            kind: BatchKind::of(&request),
            requests: vec![(RequestId(id), request)],
        };
        self.send(&FromWorker::Batch(batch)).await;
        let answers = self.answers(feed).await;
        let [(RequestId(of), answer)] = <[_; 1]>::try_from(answers).unwrap();
        assert_eq!(of, id);
        answer
    }
}

/// A whole control process, but for the process.
struct Harness {
    state: TempDir,
    supervisor: Wire,
    drain: watch::Sender<Option<Drain>>,
    end: tokio::task::JoinHandle<End>,
}

impl Harness {
    fn start(config: Config) -> Self {
        let state = TempDir::new().unwrap();
        let listen = |name: &str| {
            let path = state.path().join(name);
            std::os::unix::net::UnixListener::bind(path)
                .unwrap()
                .into_raw_fd()
        };
        let start = StartControl {
            generation: Generation(1),
            link_fd: listen("control.sock"),
            tunnel_fd: listen("tunnel.sock"),
            operator_fd: listen("operator.sock"),
            state_dir: state.path().to_owned(),
            first_enroll_secret: Secret::new("first secret"),
            config,
            confine: Confine::default(),
            worker_uid: None,
        };
        let (supervisor, child) = UnixStream::pair().unwrap();
        let reporter = Arc::new(Reporter(Mutex::new(child.into_split().1)));
        let (drain, drains) = watch::channel(None);
        let (_, gateways) = watch::channel(Gateway::default());
        let end = tokio::spawn(async move {
            serve(start, Sandbox::default(), &reporter, gateways, drains).await
        });
        Self {
            state,
            supervisor: Wire::new(supervisor),
            drain,
            end,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.state.path().join(name)
    }

    async fn ready(&mut self) {
        loop {
            match self.supervisor.receive().await.unwrap() {
                FromChild::Ready { .. } => return,
                FromChild::Control(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn link(&self) -> Wire {
        let stream = UnixStream::connect(self.path("control.sock")).await;
        let mut link = Wire::new(stream.unwrap());
        link.send(&Hello {
            version_min: fleet_protocol::frame::VERSION,
            version_max: fleet_protocol::frame::VERSION,
            build: "test".into(),
            slot: SlotIndex(0),
            generation: Generation(1),
            boot: BootNonce(5),
            feed_after: None,
        })
        .await;
        let reply: HelloReply = link.receive().await.unwrap();
        assert!(matches!(reply, HelloReply::Accepted { .. }), "{reply:?}");
        link
    }

    async fn get(&self, path: &str) -> String {
        let mut stream = UnixStream::connect(self.path("operator.sock"))
            .await
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(WAIT, stream.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        answer
    }
}

fn enroll(secret: &str) -> Request {
    Request::Enroll(Box::new(Enroll {
        secret: Secret::new(secret),
        identifier: "host-1".into(),
        platform_type: "9".into(),
        details: std::collections::BTreeMap::new(),
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_served_from_start_to_drain() {
    let mut harness = Harness::start(Config::default());
    harness.ready().await;
    let mut link = harness.link().await;
    let first: FromControl = link.receive().await.unwrap();
    assert!(
        matches!(&first, FromControl::Feed(piece) if matches!(piece.load, Load::Begin | Load::Whole)),
        "{first:?}"
    );
    let mut feed = Vec::new();
    let refused = link.ask(1, enroll("wrong"), &mut feed).await;
    assert_eq!(refused, Answer::Refused(Reject::EnrollSecretInvalid));
    let host = match link.ask(2, enroll("first secret"), &mut feed).await {
        Answer::Enrolled { host, .. } => host,
        other => panic!("{other:?}"),
    };
    let is_told = |change: &Change| matches!(change, Change::Host(of) if of.id == host.id);
    assert!(feed.iter().any(is_told), "{feed:?}");
    let found = link.ask(3, Request::Lookup(host.key), &mut feed).await;
    assert!(matches!(found, Answer::Host(Some(of)) if of.id == host.id));
    let log = Log {
        host: host.id,
        log_type: LogType::Status,
        lines: Bytes::from_static(b"{\"s\":1}\n"),
        line_count: 1,
    };
    let stored = link.ask(4, Request::Log(log), &mut feed).await;
    assert_eq!(stored, Answer::Accepted);
    let file = harness.path("log/osquery_status/osquery_status.log");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "{\"s\":1}\n");
    assert!(harness.get("/healthz").await.starts_with("HTTP/1.1 200 "));
    let metrics = harness.get("/metrics").await;
    assert!(
        metrics.contains("fleet_control_enrolled_hosts 1\n"),
        "{metrics}"
    );
    harness.drain.send_replace(Some(TOLD));
    loop {
        match link.receive::<FromControl>().await {
            Some(FromControl::GoAway) => break,
            Some(_) => {}
            None => panic!("no word of the end"),
        }
    }
    while link.receive::<FromControl>().await.is_some() {}
    assert_eq!(harness.end.await.unwrap(), End::Drained);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_database_is_waited_for_with_health_500() {
    let mut config = Config::default();
    // Nobody listens on port 1.
    config.mysql.address = "127.0.0.1:1".into();
    let mut harness = Harness::start(config);
    loop {
        let Some(FromChild::Control(stats)) = harness.supervisor.receive().await else {
            panic!("signs of life only");
        };
        if stats
            .dependencies
            .iter()
            .any(|of| of.detail.contains("unavailable"))
        {
            break;
        }
    }
    assert!(harness.get("/healthz").await.starts_with("HTTP/1.1 500 "));
    harness.drain.send_replace(Some(TOLD));
    assert_eq!(harness.end.await.unwrap(), End::Drained);
}
