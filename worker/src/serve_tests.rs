//! Tests of a whole worker: real sockets, a fake control, clients that block. Plain HTTP, except where TLS matters.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fleet_protocol::agent::{Answer, LogType, Request, Route};
use fleet_protocol::config::Config;
use fleet_protocol::feed;
use fleet_protocol::frame::Decoder;
use fleet_protocol::ids::{AnswerId, Generation, HostId, NodeKeyHash, SlotIndex, UnixSeconds};
use fleet_protocol::proxy_header;
use fleet_protocol::sandbox::{Confine, Sandbox};
use fleet_protocol::secret::Secret;
use fleet_protocol::slot::{self, FromChild, StartTls, StartWorker, TlsIdentity, ToChild};
use fleet_protocol::stats::WorkerStats;

use super::*;
use crate::fake_control::{FakeControl, PATIENCE};

/// A worker in its own thread, its supervisor's end of the channel, and its control.
struct Bench {
    address: SocketAddr,
    channel: UnixStream,
    decoder: Decoder,
    input: bytes::BytesMut,
    tunnels: UnixListener,
    worker: Option<JoinHandle<anyhow::Result<()>>>,
    certificate: rustls_pki_types::CertificateDer<'static>,
    _dir: tempfile::TempDir,
}

/// Host 7 has work now: told alone, or called together with others.
fn work_due(log_type: LogType) -> feed::Change {
    let at = UnixSeconds(1);
    match log_type {
        LogType::Result => feed::Change::WorkDue {
            host: host().id,
            at,
        },
        LogType::Status => {
            let mut hosts = Vec::new();
            let called = roaring::RoaringBitmap::from([host().id.0, 70_000]);
            called.serialize_into(&mut hosts).unwrap();
            feed::Change::Called {
                hosts: hosts.into(),
                at,
            }
        }
    }
}

/// A control that enrolls everybody as host 7 and accepts everything, until its worker leaves. Whatever is logged makes
/// work due for the host.
fn run_control(control: FakeControl, runtime: &tokio::runtime::Runtime) {
    runtime.block_on(async {
        let mut link = control.link().await;
        while let Some(message) = link.read().await {
            match message {
                fleet_protocol::link::FromWorker::Batch(batch) => {
                    link.reply(&batch, |request| match request {
                        Request::Enroll(_) => Answer::Enrolled {
                            node_key: Secret::new("key-7"),
                            host: host(),
                        },
                        Request::Lookup(_) => Answer::Host(None),
                        Request::Read(_) => Answer::Work(work()),
                        _ => Answer::Accepted,
                    })
                    .await;
                    if let Some((_, Request::Log(log))) = batch.requests.first() {
                        link.write(&fleet_protocol::link::FromControl::Feed(feed::Feed {
                            load: feed::Load::Changes,
                            seq: fleet_protocol::ids::FeedSeq(2),
                            changes: vec![work_due(log.log_type)],
                        }))
                        .await;
                    }
                }
                fleet_protocol::link::FromWorker::Ping(number) => {
                    let pong = fleet_protocol::link::FromControl::Pong(number);
                    link.write(&pong).await;
                }
                fleet_protocol::link::FromWorker::Pong(_) => {}
            }
        }
    });
}

fn work() -> fleet_protocol::agent::Work {
    fleet_protocol::agent::Work {
        queries: vec![fleet_protocol::agent::Query {
            name: "uptime".into(),
            sql: "SELECT 1".into(),
            discovery: String::new(),
        }],
        accelerate_s: None,
    }
}

fn host() -> feed::Host {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"key-7");
    feed::Host {
        id: HostId(7),
        key: NodeKeyHash(digest.as_ref().try_into().unwrap()),
        answer: AnswerId(1),
        work_due_at: UnixSeconds(u32::MAX),
    }
}

impl Bench {
    fn start(with_tls: bool, change: impl FnOnce(&mut Config)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::start_on(listener, with_tls, change)
    }

    /// Takes over a listener in whose queue some may wait.
    fn start_on(listener: TcpListener, with_tls: bool, change: impl FnOnce(&mut Config)) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let control = runtime.block_on(async { FakeControl::listen() });
        let dir = tempfile::tempdir().unwrap();
        let tunnel_path = dir.path().join("tunnel.sock");
        let tunnels = UnixListener::bind(&tunnel_path).unwrap();
        let address = listener.local_addr().unwrap();
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut config = Config::default();
        config.osquery.distributed_hold = Duration::ZERO;
        change(&mut config);
        let start = StartWorker {
            slot: SlotIndex(0),
            generation: Generation(0),
            cpu: None,
            listeners: Vec::new(),
            tls: with_tls.then(|| StartTls {
                identities: vec![TlsIdentity {
                    cert_chain_pem: pair.cert.pem(),
                    key_pem: Secret::new(pair.signing_key.serialize_pem()),
                    names: vec!["localhost".into()],
                }],
                client_trust: None,
                tickets: crate::ticketer::test_keys(),
            }),
            link_path: control.path(),
            tunnel_path,
            config,
            confine: Confine::default(),
        };
        std::thread::spawn(move || run_control(control, &runtime));
        let (channel, child) = UnixStream::pair().unwrap();
        let worker = std::thread::spawn(move || {
            let socket = socket2::Socket::from(listener);
            socket.set_nonblocking(true)?;
            let listener = slot::Listener {
                address,
                fd: 0,
                balancers: None,
            };
            let listeners = vec![(listener, socket)];
            let sandbox = Sandbox::default();
            serve(
                Worker::new(&start)?,
                Channel::new(child),
                listeners,
                sandbox,
            )
        });
        channel.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bench = Self {
            address,
            channel,
            decoder: Decoder::default(),
            input: bytes::BytesMut::new(),
            tunnels,
            worker: Some(worker),
            certificate: pair.cert.der().clone(),
            _dir: dir,
        };
        assert!(matches!(bench.hear(), FromChild::Ready { .. }));
        bench.stats_until(|stats| stats.is_linked);
        bench
    }

    fn hear(&mut self) -> FromChild {
        let mut chunk = [0; 4096];
        loop {
            if let Some(message) = self.decoder.decode(&mut self.input).unwrap() {
                return message;
            }
            let length = self.channel.read(&mut chunk).unwrap();
            assert!(length > 0, "the worker ended");
            self.input.extend_from_slice(&chunk[..length]);
        }
    }

    fn stats_until(&mut self, is_wanted: impl Fn(&WorkerStats) -> bool) -> WorkerStats {
        let start = Instant::now();
        loop {
            let FromChild::Worker(stats) = self.hear() else {
                continue;
            };
            if is_wanted(&stats) {
                return *stats;
            }
            assert!(start.elapsed() < PATIENCE, "{stats:?}");
        }
    }

    fn drain(&mut self, deadline: Duration) {
        let message = ToChild::Drain {
            deadline_ms: deadline.as_millis().try_into().unwrap(),
        };
        self.say(&message);
    }

    fn say(&mut self, message: &ToChild) {
        let mut out = bytes::BytesMut::new();
        fleet_protocol::frame::encode(message, &mut out).unwrap();
        self.channel.write_all(&out).unwrap();
    }

    fn join(&mut self) {
        let start = Instant::now();
        let worker = self.worker.take().unwrap();
        while !worker.is_finished() {
            assert!(start.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(5));
        }
        worker.join().unwrap().unwrap();
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends a whole request and hears everything until the worker or its goodbye ends the answer.
    fn post(&self, path: &str, fields: &str, body: &str) -> String {
        let mut stream = self.connect();
        stream
            .write_all(request(path, fields, body).as_bytes())
            .unwrap();
        answer(&mut stream)
    }
}

fn request(path: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: f\r\n{fields}Content-Length: {length}\r\n\r\n{body}")
}

/// One answer, by its length.
fn answer(stream: &mut impl std::io::Read) -> String {
    let mut heard = Vec::new();
    let mut byte = [0];
    while !heard.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        heard.push(byte[0]);
    }
    let head = String::from_utf8(heard).unwrap();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        (name == "Content-Length").then(|| value.parse::<usize>().unwrap())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).unwrap();
    head + std::str::from_utf8(&body).unwrap()
}

const ENROLL: &str = r#"{"enroll_secret":"s","host_identifier":"h","platform_type":"9"}"#;
const READ: &str = "/api/osquery/distributed/read";

#[test]
fn agents_are_answered_alone_and_through_control() {
    let mut bench = Bench::start(false, |_| ());
    let close = "Connection: close\r\n";
    let enrolled = bench.post("/api/v1/osquery/enroll", close, ENROLL);
    assert!(enrolled.ends_with(r#"{"node_key":"key-7"}"#), "{enrolled}");
    assert!(enrolled.contains("\r\nConnection: close\r\n"));
    let read = bench.post(READ, "Authorization: NodeKey key-7\r\n", "{}");
    assert!(read.ends_with("\r\n\r\n{}"), "{read}");
    let unknown = bench.post(READ, "", r#"{"node_key":"nobody"}"#);
    assert!(unknown.contains(r#""node_invalid":true"#), "{unknown}");
    let log = r#"{"data":[{"a":1}],"log_type":"result","node_key":"key-7"}"#;
    assert!(bench.post("/api/osquery/log", "", log).ends_with("{}"));
    let wrong = bench.post("/api/osquery/log", "Content-Length: 1\r\n", log);
    assert!(wrong.starts_with("HTTP/1.1 400 "), "{wrong}");

    let stats = bench.stats_until(|stats| stats.exchanges_total() == 4);
    let counts = |route: Route| stats.exchanges[route.index()];
    assert_eq!(counts(Route::Enroll), [0, 1, 0, 0, 0]);
    assert_eq!(counts(Route::Read), [1, 0, 1, 0, 0]);
    assert_eq!(counts(Route::Log), [0, 1, 0, 0, 0]);
    assert_eq!(stats.exchange_us[Route::Read.index()].count(), 2);
    bench.drain(PATIENCE);
    bench.join();
}

#[test]
fn a_connection_that_breaks_is_counted() {
    let mut bench = Bench::start(false, |_| ());
    let mut stream = bench.connect();
    let text = request(READ, "", "{\"node_key\":\"k\"}");
    stream
        .write_all(&text.as_bytes()[..text.len() - 1])
        .unwrap();
    drop(stream);
    let stats = bench.stats_until(|stats| stats.exchanges_total() == 1);
    assert_eq!(stats.exchanges[Route::Read.index()], [0, 0, 0, 1, 0]);
    bench.stats_until(|stats| stats.open_connections == 0);
}

#[test]
fn tls_agents_are_heard_out_and_close_first() {
    let mut bench = Bench::start(true, |_| ());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(bench.certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let mut session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = bench.connect();
    let mut stream = rustls::Stream::new(&mut session, &mut socket);
    stream
        .write_all(request("/api/osquery/enroll", "", ENROLL).as_bytes())
        .unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).unwrap();
    assert!(heard.ends_with(r#"{"node_key":"key-7"}"#), "{heard}");
    // The goodbye was TLS's; the socket is still ours to close, for a while.
    let stats = bench.stats_until(|stats| stats.exchanges_total() == 1);
    assert_eq!(stats.handshakes, [1, 0, 0, 0]);
    drop(socket);
    bench.stats_until(|stats| stats.open_connections == 0);
    // Nobody speaks TLS here.
    let mut socket = bench.connect();
    socket.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    bench.stats_until(|stats| stats.handshakes == [1, 0, 0, 1]);
}

#[test]
fn a_drain_serves_what_is_open_and_what_is_queued() {
    let mut bench = Bench::start(false, |_| ());
    let reuse = "Connection: keep-alive\r\n";
    let mut idle = bench.connect();
    idle.write_all(request("/api/osquery/enroll", reuse, ENROLL).as_bytes())
        .unwrap();
    assert!(answer(&mut idle).contains("Connection: keep-alive"));
    let mut open = bench.connect();
    let text = request(READ, reuse, "{\"node_key\":\"key-7\"}");
    let (start, end) = text.split_at(text.len() - 1);
    open.write_all(start.as_bytes()).unwrap();
    bench.stats_until(|stats| stats.open_connections == 2);
    bench.drain(PATIENCE);
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "the idle one is closed");
    open.write_all(end.as_bytes()).unwrap();
    assert!(answer(&mut open).contains("Connection: close\r\n"));
    drop(open);
    bench.join();
}

#[test]
fn a_worker_without_supervisor_ends() {
    let mut bench = Bench::start(false, |_| ());
    let (other, _) = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut bench.channel, other));
    bench.join();
}

#[test]
fn operators_pass_through_to_control() {
    let mut bench = Bench::start(false, |_| ());
    let mut client = bench.connect();
    let text = "GET /api/latest/fleet/ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\nfirst";
    client.write_all(text.as_bytes()).unwrap();
    let (mut control, _) = bench.tunnels.accept().unwrap();
    control.set_read_timeout(Some(PATIENCE)).unwrap();
    let header = proxy_header::encode(client.local_addr().unwrap(), bench.address);
    let mut heard = vec![0; header.len() + text.len()];
    control.read_exact(&mut heard).unwrap();
    assert_eq!(heard, [&header[..], text.as_bytes()].concat());
    // Far more than any buffer holds, both ways at once, and neither side reads before it has written.
    let bulk = vec![b'x'; 4 << 20];
    let writers = [
        client.try_clone().unwrap().into(),
        control.try_clone().unwrap().into(),
    ]
    .map(|socket: std::os::fd::OwnedFd| {
        let (mut socket, bulk) = (std::fs::File::from(socket), bulk.clone());
        std::thread::spawn(move || socket.write_all(&bulk).unwrap())
    });
    let mut heard = vec![0; bulk.len()];
    client.read_exact(&mut heard).unwrap();
    assert_eq!(heard, bulk);
    control.read_exact(&mut heard).unwrap();
    assert_eq!(heard, bulk);
    for writer in writers {
        writer.join().unwrap();
    }
    assert_eq!(bench.stats_until(|stats| stats.tunnels > 0).tunnels, 1);
    // A half-closed client still hears the end.
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    control.read_to_end(&mut rest).unwrap();
    control.write_all(b"bye").unwrap();
    drop(control);
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"bye");
    bench.stats_until(|stats| stats.tunnels == 0);
    // Nobody there: still an answer, and a JSON object.
    std::fs::remove_file(bench._dir.path().join("tunnel.sock")).unwrap();
    let mut client = bench.connect();
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let heard = answer(&mut client);
    assert!(heard.starts_with("HTTP/1.1 503 "), "{heard}");
    assert!(heard.contains("\r\n\r\n{\"error\":"), "{heard}");
}

#[test]
fn a_full_worker_takes_others_when_there_is_room() {
    let mut bench = Bench::start(false, |config| config.server.connections_per_worker_max = 2);
    let held: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = bench.connect();
            stream.write_all(b"POST ").unwrap();
            stream
        })
        .collect();
    bench.stats_until(|stats| stats.open_connections == 2);
    let mut third = bench.connect();
    third
        .write_all(request("/api/osquery/enroll", "", ENROLL).as_bytes())
        .unwrap();
    let stats = bench.stats_until(|_| true);
    assert_eq!((stats.open_connections, stats.accepted), (2, 2));
    drop(held);
    assert!(answer(&mut third).contains("key-7"));
}

#[test]
fn the_task_of_a_connection_is_small() {
    fn bytes_of<S, F>(_: impl Fn(S) -> F) -> usize {
        size_of::<F>()
    }
    let (task, session, tls) = (
        bytes_of(session::Session::serve),
        size_of::<session::Session>(),
        size_of::<rustls::server::UnbufferedServerConnection>(),
    );
    assert!(task <= 64, "{task}");
    // The allocator gives 504 for anything above 488.
    assert!(session <= 504, "{session}");
    assert!(tls <= 1280, "{tls}");
}

#[path = "serve_hold_tests.rs"]
mod holds;
