//! The simulated agent against a recording server: each fact of osquery's TLS API that a server may rely on.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the helpers of a test file fail the test"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fleet_loadtest::agent::{Agent, Paths, Settings};
use fleet_loadtest::bodies::QueryOutcome;
use fleet_loadtest::client::Dialer;
use fleet_loadtest::host::{Host, Platform, Release};
use fleet_loadtest::lines;
use fleet_loadtest::listener::{Listener, Received, Reply};
use fleet_loadtest::osquery_server;
use fleet_loadtest::tables::Rows;
use fleet_loadtest::target::{Sources, Target};
use fleet_loadtest::tls::{Trust, Versions, client_config};
use fleet_loadtest::verdict::Failure;
use fleet_protocol::agent::{LogType, Route};
use fleet_protocol::reject::Reject;
use fleet_protocol::secret::Secret;
use tokio::time::Instant;

/// What a server may take to notice something; a failing test waits this long, a passing one does not.
const PATIENCE: Duration = Duration::from_secs(10);

struct Bench {
    listener: Listener,
    settings: Settings,
    dialer: Dialer,
    host: Host,
    name: &'static str,
}

impl Bench {
    async fn start(respond: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certified = rcgen::generate_simple_self_signed(names).unwrap();
        let (cert, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
        let listener = Listener::start(&cert, &key, respond).await.unwrap();
        let tls = client_config(&Trust::CaPem(cert), Versions::Both).unwrap();
        let mut settings = Settings::new(Secret::new(osquery_server::SECRET));
        settings.paths = Paths::osquery();
        settings.sleep_divisor = 10_000;
        Self {
            listener,
            settings,
            dialer: Dialer::new(tls, Sources::default()),
            host: Host::new(1, 1)
                .with_platform(Platform::Linux)
                .with_release(Release::NEWEST),
            name: "localhost",
        }
    }

    fn agent(&self) -> Agent {
        let port = self.listener.address().port();
        let mut target = Target::parse(&format!("https://{}:{port}", self.name)).unwrap();
        // The name may resolve to ::1 first; the listener is on 127.0.0.1.
        target.address = self.listener.address();
        Agent::new(
            self.host,
            Arc::new(self.settings.clone()),
            Arc::new(self.dialer.clone()),
            Arc::new(target),
        )
    }

    fn enrolled(&self) -> Agent {
        let agent = self.agent();
        agent.set_node_key("key");
        agent
    }

    async fn wait_for_ended(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.listener.ended().len() < count {
            assert!(Instant::now() < deadline, "{count} connections did not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Answers one after the other, the last for ever.
fn in_turn(replies: Vec<Reply>) -> impl Fn(&Received) -> Reply + Send + Sync + 'static {
    let turn = AtomicUsize::new(0);
    move |_| {
        let index = turn.fetch_add(1, Ordering::SeqCst).min(replies.len() - 1);
        replies[index].clone()
    }
}

#[tokio::test]
async fn osquerys_test_server_is_spoken_to() {
    let bench = Bench::start(osquery_server::respond()).await;
    let agent = bench.agent();
    assert!(agent.enroll().await.is_success());
    assert_eq!(agent.node_key(), osquery_server::NODE_KEY);
    assert!(agent.config().await.is_success());
    assert!(agent.config().await.is_success());
    let third = agent.config().await;
    assert_eq!(third.failure(), Some(&Failure::NodeInvalid));
    assert_eq!(agent.node_key(), "");

    // The next request enrolls by itself; the text in `accelerate` does not accelerate.
    let round = agent.read_round(Instant::now()).await;
    assert!(round.is_success);
    assert_eq!((round.queries, round.write), (2, Some(true)));
    assert_eq!(round.wait, bench.settings.intervals.read);
    let line = lines::result_line(&bench.host, Duration::ZERO, 1);
    assert!(agent.log(LogType::Result, &[line]).await.is_success());

    let paths: Vec<String> = bench
        .listener
        .received()
        .into_iter()
        .map(|r| r.path)
        .collect();
    assert_eq!(
        paths,
        [
            "/enroll",
            "/config",
            "/config",
            "/config",
            "/enroll",
            "/distributed_read",
            "/distributed_write",
            "/log"
        ]
    );
    let carve = agent.carve(&[7; 100], 64).await;
    assert_eq!(carve.session_id.as_deref(), Some("session"));
    assert!(!carve.is_complete, "blocks get no answer there");
}

#[tokio::test]
async fn every_request_is_a_new_connection_with_a_full_handshake() {
    let bench = Bench::start(|_| Reply::ok("{}")).await;
    let agent = bench.enrolled();
    for _ in 0..3 {
        let exchange = agent.config().await;
        assert!(exchange.is_success());
        assert_eq!(exchange.connections, 1);
    }
    bench.wait_for_ended(3).await;
    for ended in bench.listener.ended() {
        assert!(ended.is_full, "{ended:?}");
        assert_eq!(ended.requests, 1);
        assert!(!ended.has_close_notify, "the end is a bare TCP shutdown");
        assert_eq!(ended.server_name.as_deref(), Some("localhost"));
    }
}

#[tokio::test]
async fn the_head_is_osquerys() {
    let mut bench = Bench::start(|_| Reply::ok("{}")).await;
    bench.enrolled().config().await;
    bench.host = bench.host.with_release(Release::OLD);
    bench.settings.gzip_logs = true;
    bench.enrolled().log(LogType::Status, &[]).await;
    let received = bench.listener.received();
    let port = bench.listener.address().port();
    assert_eq!(
        received[0].head,
        format!(
            "POST /config HTTP/1.1\r\nContent-Type: application/json\r\nAccept: application/json\r\n\
             User-Agent: osquery/5.23.1\r\nAuthorization: NodeKey key\r\nHost: localhost:{port}\r\n\
             Content-Length: 18"
        )
    );
    assert!(!received[1].head.contains("Authorization"));
    assert!(received[1].head.contains("\r\nContent-Encoding: gzip\r\n"));
}

#[tokio::test]
async fn the_status_is_ignored_and_an_empty_body_is_success() {
    let bench = Bench::start(in_turn(vec![
        Reply::status(500, ""),
        Reply::status(413, r#"{"message":"boom"}"#),
        Reply::status(200, r#"{"error":"busy"}"#),
        Reply::status(200, "<html>"),
        Reply::status(401, r#"{"node_invalid":true,"error":"x"}"#),
    ]))
    .await;
    let agent = bench.enrolled();
    assert!(agent.config().await.is_success());
    assert!(agent.config().await.is_success());
    let busy = agent.config().await;
    assert_eq!(busy.failure(), Some(&Failure::Error("busy".into())));
    assert_eq!(agent.config().await.failure(), Some(&Failure::NotJson));
    assert_eq!(agent.node_key(), "key");
    let invalid = agent.config().await;
    assert_eq!(invalid.failure(), Some(&Failure::NodeInvalid));
    assert_eq!(invalid.status, 401);
    assert_eq!(agent.node_key(), "");
}

#[tokio::test]
async fn a_config_is_looked_into_when_it_differs() {
    let bench = Bench::start(in_turn(vec![
        Reply::ok(r#"{"options":{"a":1}}"#),
        Reply::ok(r#"{"options":{"a":1}}"#),
        Reply::ok(r#"{"error":"busy"}"#),
        Reply::ok(r#"{"error":"busy"}"#),
        Reply::ok(r#"{"options":{"a":2}}"#),
    ]))
    .await;
    let agent = bench.enrolled();
    assert_eq!(agent.config().await.verdict.unwrap()["options"]["a"], 1);
    assert!(agent.config().await.verdict.unwrap().is_empty());
    for _ in 0..2 {
        let busy = agent.config().await;
        assert_eq!(busy.failure(), Some(&Failure::Error("busy".into())));
    }
    assert_eq!(agent.config().await.verdict.unwrap()["options"]["a"], 2);
}

#[tokio::test]
async fn a_broken_connection_is_resent_once() {
    let bench = Bench::start(in_turn(vec![
        Reply::Torn(Vec::new()),
        Reply::ok("{}"),
        Reply::Torn(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{".to_vec()),
        Reply::Torn(Vec::new()),
        Reply::ok("{}"),
    ]))
    .await;
    let agent = bench.enrolled();
    let first = agent.config().await;
    assert!(first.is_success() && first.is_resent);
    assert_eq!(first.connections, 2);
    let second = agent.config().await;
    assert_eq!(second.failure(), Some(&Failure::Closed));
    assert_eq!(second.connections, 2);
    assert!(!agent.config().await.is_resent);
}

#[tokio::test]
async fn the_deadline_is_for_everything_and_is_not_resent() {
    let mut bench = Bench::start(|_| Reply::Silence(PATIENCE)).await;
    bench.dialer.deadline = Duration::from_millis(300);
    let agent = bench.enrolled();
    let exchange = agent.read().await;
    assert_eq!(exchange.failure(), Some(&Failure::Timeout));
    assert_eq!((exchange.connections, exchange.is_resent), (1, false));
    assert_eq!(agent.node_key(), "key");
}

#[tokio::test]
async fn nobody_listening_costs_two_connects() {
    let bench = Bench::start(|_| Reply::ok("{}")).await;
    let agent = bench.enrolled();
    let address = bench.listener.address();
    drop(bench);
    let deadline = Instant::now() + PATIENCE;
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < deadline, "the listener did not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let exchange = agent.config().await;
    assert_eq!(exchange.failure(), Some(&Failure::Refused));
    assert_eq!(exchange.connections, 2);
}

#[tokio::test]
async fn sockets_are_held_until_the_next_request_unless_close_is_said_exactly() {
    let shouted = Reply::Answer {
        status: 200,
        headers: "Connection: Close\r\n",
        body: b"{}".to_vec(),
    };
    let bench = Bench::start(in_turn(vec![Reply::open("{}"), shouted, Reply::ok("{}")])).await;
    let agent = bench.enrolled();
    agent.config().await;
    // Another thread's request leaves this thread's socket alone.
    agent.read().await;
    assert_eq!(bench.listener.ended().len(), 0);
    agent.config().await;
    bench.wait_for_ended(2).await;
    let mut ended: Vec<usize> = bench
        .listener
        .ended()
        .iter()
        .map(|e| e.connection)
        .collect();
    ended.sort_unstable();
    assert_eq!(ended, [0, 2]);
    agent.close().await;
    bench.wait_for_ended(3).await;
}

#[tokio::test]
async fn reuse_is_an_option() {
    let mut bench = Bench::start(|_| Reply::open("{}")).await;
    bench.dialer.reuse = true;
    bench.settings.keep_alive = true;
    let agent = bench.enrolled();
    assert_eq!(agent.config().await.connections, 1);
    assert_eq!(agent.config().await.connections, 0);
    assert_eq!(bench.listener.accepted(), 1);
    assert!(
        bench.listener.received()[0]
            .head
            .contains("\r\nConnection: keep-alive\r\n")
    );
}

#[tokio::test]
async fn lines_stay_until_a_success() {
    let bench = Bench::start(in_turn(vec![
        Reply::status(503, r#"{"error":"busy"}"#),
        Reply::Torn(Vec::new()),
        Reply::Torn(Vec::new()),
        Reply::status(500, ""),
    ]))
    .await;
    let agent = bench.enrolled();
    for number in 0..3 {
        let line = lines::result_line(&bench.host, Duration::ZERO, number);
        agent.buffer_line(LogType::Result, line).await;
    }
    for _ in 0..2 {
        let round = agent.log_round(Instant::now()).await;
        assert_eq!((round.delivered, round.failures), (0, 1));
        assert_eq!(agent.buffered_lines(LogType::Result).await, 3);
        // The backoff of osquery, divided for the test.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // What makes an empty error answer so dangerous: it counts as delivered.
    let round = agent.log_round(Instant::now()).await;
    assert_eq!((round.delivered, round.failures), (3, 0));
    assert_eq!(agent.buffered_lines(LogType::Result).await, 0);
    let bodies: Vec<Vec<u8>> = bench
        .listener
        .received()
        .into_iter()
        .map(|r| r.body)
        .collect();
    assert!(bodies.iter().all(|body| *body == bodies[0]));
}

#[tokio::test]
async fn a_backing_off_type_does_not_hold_up_the_other() {
    let mut bench = Bench::start(|received| {
        if received
            .body
            .windows(8)
            .any(|window| window == b"\"result\"")
        {
            Reply::ok(r#"{"error":"no"}"#)
        } else {
            Reply::ok("{}")
        }
    })
    .await;
    bench.settings.sleep_divisor = 1;
    bench.settings.log_lines_max = 3;
    let agent = bench.enrolled();
    for number in 0..2 {
        let result = lines::result_line(&bench.host, Duration::ZERO, number);
        let status = lines::status_line(&bench.host, Duration::ZERO, number);
        agent.buffer_line(LogType::Result, result).await;
        agent.buffer_line(LogType::Status, status).await;
    }
    let round = agent.log_round(Instant::now()).await;
    assert_eq!((round.delivered, round.failures), (1, 1));
    let round = agent.log_round(Instant::now()).await;
    assert_eq!((round.delivered, round.failures), (1, 0), "results wait");
    assert_eq!(agent.buffered_lines(LogType::Result).await, 2);
}

#[tokio::test]
async fn results_are_kept_and_merged_until_a_write_succeeds() {
    let is_up = Arc::new(AtomicUsize::new(0));
    let up = is_up.clone();
    let bench = Bench::start(move |received| match received.path.as_str() {
        "/distributed_read" => {
            let name = format!("q{}", up.load(Ordering::SeqCst));
            Reply::ok(format!(
                r#"{{"queries":{{"{name}":"SELECT version FROM osquery_info"}}}}"#
            ))
        }
        _ if up.load(Ordering::SeqCst) == 0 => Reply::ok(r#"{"error":"later"}"#),
        _ => Reply::ok("{}"),
    })
    .await;
    let agent = bench.enrolled();
    let round = agent.read_round(Instant::now()).await;
    assert_eq!(round.write, Some(false));
    assert_eq!(agent.unsent_results().await, 1);
    is_up.store(1, Ordering::SeqCst);
    let round = agent.read_round(Instant::now()).await;
    assert_eq!(round.write, Some(true));
    assert_eq!(agent.unsent_results().await, 0);
    let last = bench.listener.received().pop().unwrap();
    let body: serde_json::Value = serde_json::from_slice(&last.body).unwrap();
    assert_eq!(body["queries"]["q0"][0]["version"], "5.23.1");
    assert_eq!(body["statuses"]["q1"], 0);
}

#[tokio::test]
async fn retries_end_after_their_attempts() {
    let bench = Bench::start(|_| Reply::ok(r#"{"error":"busy"}"#)).await;
    let agent = bench.enrolled();
    let round = agent.config_round(Instant::now()).await;
    assert!(!round.is_success);
    assert_eq!(round.wait, bench.settings.intervals.config_after_failure);
    assert_eq!(bench.listener.received().len(), 3);
    let round = agent.read_round(Instant::now()).await;
    assert!(!round.is_success);
    assert_eq!(round.wait, bench.settings.intervals.read);
    assert_eq!(bench.listener.received().len(), 3 + 10);
}

#[tokio::test]
async fn an_unenrollable_agent_goes_on_with_an_empty_key() {
    let bench = Bench::start(|received| {
        if received.path == "/enroll" {
            Reply::ok(r#"{"node_invalid":true}"#)
        } else {
            Reply::status(401, r#"{"node_invalid":true}"#)
        }
    })
    .await;
    let agent = bench.agent();
    let exchange = agent.config().await;
    assert_eq!(exchange.failure(), Some(&Failure::NodeInvalid));
    let received = bench.listener.received();
    assert_eq!(received.len(), 12 + 1);
    assert_eq!(received[12].body, br#"{"node_key":""}"#);
    assert!(!received[12].head.contains("Authorization"));
}

#[tokio::test]
async fn threads_enroll_one_at_a_time_and_share_the_key() {
    let bench = Bench::start(|received| {
        if received.path == "/enroll" {
            Reply::ok(r#"{"node_key":"shared"}"#)
        } else {
            Reply::ok("{}")
        }
    })
    .await;
    let agent = bench.agent();
    let (config, read, log) = tokio::join!(
        agent.config(),
        agent.read(),
        agent.log(LogType::Status, &[])
    );
    assert!(config.is_success() && read.is_success() && log.is_success());
    let enrolments = bench
        .listener
        .received()
        .iter()
        .filter(|received| received.path == "/enroll")
        .count();
    assert_eq!(enrolments, 1);
}

#[tokio::test]
async fn a_late_node_invalid_erases_the_newer_key() {
    let is_asked = Arc::new(tokio::sync::Semaphore::new(0));
    let asked = is_asked.clone();
    let bench = Bench::start(move |_| {
        asked.add_permits(1);
        Reply::ok(r#"{"node_invalid":true}"#)
    })
    .await;
    let agent = bench.enrolled();
    let ((), exchange) = tokio::join!(
        biased;
        async {
            is_asked.acquire().await.unwrap().forget();
            agent.set_node_key("newer");
        },
        agent.config()
    );
    assert_eq!(exchange.failure(), Some(&Failure::NodeInvalid));
    assert_eq!(agent.node_key(), "");
}

#[tokio::test]
async fn redirects_keep_post_body_and_key() {
    let bench = Bench::start(|received| {
        if received.path == "/config" {
            Reply::Answer {
                status: 301,
                headers: "Location: /moved\r\nConnection: close\r\n",
                body: Vec::new(),
            }
        } else {
            Reply::ok(r#"{"moved":1}"#)
        }
    })
    .await;
    let agent = bench.enrolled();
    let exchange = agent.config().await;
    assert_eq!(exchange.verdict.unwrap()["moved"], 1);
    let received = bench.listener.received();
    assert_eq!(received[1].path, "/moved");
    assert_eq!(received[0].body, received[1].body);
    assert!(received[1].head.contains("Authorization: NodeKey key"));
    // 304 counts as a redirect and fails for want of a location, after the resend.
    let stale = Bench::start(|_| Reply::status(304, "")).await;
    let exchange = stale.enrolled().config().await;
    assert!(matches!(exchange.failure(), Some(Failure::Redirect(_))));
    assert_eq!(exchange.connections, 2);
}

#[tokio::test]
async fn gzip_is_only_undone_when_asked_for() {
    let zipped = {
        use std::io::Write as _;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(br#"{"a":1}"#).unwrap();
        encoder.finish().unwrap()
    };
    let mut bench = Bench::start(move |_| Reply::Answer {
        status: 200,
        headers: "Content-Encoding: gzip\r\nConnection: close\r\n",
        body: zipped.clone(),
    })
    .await;
    assert_eq!(
        bench.enrolled().config().await.failure(),
        Some(&Failure::NotJson)
    );
    bench.settings.accept_gzip = true;
    assert_eq!(bench.enrolled().config().await.body, br#"{"a":1}"#);
}

#[tokio::test]
async fn carves_go_in_blocks_without_key_in_the_body() {
    let bench = Bench::start(|received| match received.path.as_str() {
        "/carve_init" => Reply::ok(r#"{"session_id":"s-1"}"#),
        _ => Reply::ok(r#"{"error":"ignored here"}"#),
    })
    .await;
    let agent = bench.enrolled();
    let carve = agent.carve(&[1; 150], 64).await;
    assert!(carve.is_complete);
    let received = bench.listener.received();
    assert_eq!(received.len(), 4);
    let begin: serde_json::Value = serde_json::from_slice(&received[0].body).unwrap();
    assert_eq!(
        (begin["block_count"].as_u64(), begin["carve_size"].as_u64()),
        (Some(3), Some(150))
    );
    for (index, received) in received[1..].iter().enumerate() {
        let block: serde_json::Value = serde_json::from_slice(&received.body).unwrap();
        assert_eq!(block["block_id"], index);
        assert_eq!(block["session_id"], "s-1");
        assert!(block.get("node_key").is_none());
        assert!(received.head.contains("Authorization: NodeKey key"));
    }
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let mut bench = Bench::start(|_| Reply::ok("{}")).await;
    bench.name = "elsewhere.invalid";
    let port = bench.listener.address().port();
    let target = Target {
        resolve_each: None,
        address: bench.listener.address(),
        server_name: "elsewhere.invalid".try_into().unwrap(),
        host: format!("elsewhere.invalid:{port}"),
        is_tls: true,
        prefix: String::new(),
    };
    let agent = Agent::new(
        bench.host,
        Arc::new(bench.settings.clone()),
        Arc::new(bench.dialer.clone()),
        Arc::new(target),
    );
    agent.set_node_key("key");
    let exchange = agent.config().await;
    assert!(
        matches!(exchange.failure(), Some(Failure::Tls(_))),
        "{exchange:?}"
    );
}

#[tokio::test]
async fn large_bodies_go_both_ways() {
    let bench = Bench::start(|received| {
        let length = received.body.len();
        Reply::ok(format!(
            r#"{{"length":{length},"pad":"{}"}}"#,
            "x".repeat(3 << 20)
        ))
    })
    .await;
    let agent = bench.enrolled();
    let lines: Vec<Vec<u8>> = (0..4000)
        .map(|number| lines::result_line(&bench.host, Duration::ZERO, number))
        .collect();
    let exchange = agent.log(LogType::Result, &lines).await;
    let answer = exchange.verdict.unwrap();
    assert_eq!(
        answer["length"].as_u64().unwrap(),
        exchange.sent_bytes as u64
    );
    let outcome = QueryOutcome {
        name: "q".into(),
        rows: Rows::Some(Vec::new()),
    };
    assert!(agent.write(&[outcome]).await.is_success());
}

#[tokio::test]
async fn hellos_that_rustls_cannot_send_are_sent_by_hand() {
    use fleet_loadtest::hello_probe::{Answer, Hello, probe};

    let bench = Bench::start(|_| Reply::ok("{}")).await;
    for has_hybrid_share in [false, true] {
        for server_name in [
            None,
            Some("localhost".to_owned()),
            Some("127.0.0.1".to_owned()),
        ] {
            let hello = Hello {
                server_name,
                has_hybrid_share,
            };
            let answer = probe(bench.listener.address(), &hello).await.unwrap();
            // The share of the hybrid group is random bytes: a server that picks that group rightly refuses it.
            if !has_hybrid_share {
                assert_eq!(answer, Answer::ServerHello, "{hello:?}");
            } else {
                assert_ne!(answer, Answer::Closed, "{hello:?}");
            }
        }
    }
}

#[tokio::test]
async fn every_refusal_of_the_gateway_keeps_the_lines_and_is_no_success() {
    for reject in Reject::ALL {
        let respond = move |received: &Received| {
            let tail = received.path.rsplit('/').next().unwrap_or_default();
            let route = if tail == "log" {
                Route::Log
            } else {
                Route::Config
            };
            let answer = reject.answer(Some(route));
            Reply::status(answer.status, answer.body)
        };
        let bench = Bench::start(respond).await;
        let agent = bench.enrolled();
        let line = br#"{"name":"kept"}"#.to_vec();
        agent.buffer_line(LogType::Result, line).await;
        agent.log_round(Instant::now()).await;
        // What will never be accepted is dropped, or the agent would send it for ever.
        let kept = usize::from(!reject.is_loss_on(Some(Route::Log)));
        assert_eq!(
            agent.buffered_lines(LogType::Result).await,
            kept,
            "{reject:?}"
        );
        assert!(!bench.enrolled().config().await.is_success(), "{reject:?}");
    }
}
