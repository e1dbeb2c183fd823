//! The simulated agent against a recording server: each fact of osquery's TLS API that a server may rely on.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the helpers of a test file fail the test"
)]

mod answers;
mod connections;
mod delivery;
mod enrolment;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fleet_loadtest::agent::{Agent, Paths, Settings};
use fleet_loadtest::client::Dialer;
use fleet_loadtest::host::{Host, Platform, Release};
use fleet_loadtest::lines;
use fleet_loadtest::listener::{Listener, Received, Reply};
use fleet_loadtest::osquery_server;
use fleet_loadtest::target::{Sources, Target};
use fleet_loadtest::tls::{Trust, Versions, client_config};
use fleet_loadtest::verdict::Failure;
use fleet_protocol::agent::LogType;
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
