//! The bus against a private Redis, when there is one on the machine.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fleet_protocol::config::Config;
use fleet_protocol::ids::FeedSeq;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Server {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// On a Unix socket of its own, so that no port can be taken.
    pub(crate) fn start(dir: tempfile::TempDir) -> Option<Self> {
        let socket = dir.path().join("redis.sock").display().to_string();
        Self::spawn(dir, &["--port", "0", "--unixsocket", &socket])
    }

    fn spawn(dir: tempfile::TempDir, args: &[&str]) -> Option<Self> {
        let child = Command::new("redis-server")
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(dir.path())
            .args(args)
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        Some(Self { child, dir })
    }

    pub(crate) fn config(&self) -> Config {
        let mut config = Config::default();
        config.redis.address = self.dir.path().join("redis.sock").display().to_string();
        config
    }

    pub(crate) fn stop(mut self) -> tempfile::TempDir {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let empty = tempfile::tempdir().unwrap();
        std::mem::replace(&mut self.dir, empty)
    }
}

pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn in_process_wakes_arrive() {
    let bus = Bus::open(&Config::default()).unwrap();
    let mut wakes = bus.wakes();
    bus.publish_wake(FeedSeq(7));
    wakes.changed().await.unwrap();
    assert_eq!(*wakes.borrow_and_update(), FeedSeq(7));
    assert!(bus.is_healthy());
    assert_eq!(bus.ping().await, Ok(()));
    assert_eq!(bus.engine(), "in-process bus");
}

#[tokio::test]
async fn wakes_cross_redis_and_survive_its_restart() {
    let Some(server) = Server::start(tempfile::tempdir().unwrap()) else {
        eprintln!("skipped: no redis-server on this machine");
        return;
    };
    let config = server.config();
    let (a, b) = (Bus::open(&config).unwrap(), Bus::open(&config).unwrap());
    until("both connect", || a.is_healthy() && b.is_healthy()).await;
    assert_eq!(a.ping().await, Ok(()));
    let mut wakes = b.wakes();
    a.publish_wake(FeedSeq(5));
    tokio::time::timeout(DEADLINE, wakes.changed())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(*wakes.borrow_and_update(), FeedSeq(5));

    let dir = server.stop();
    until("the loss is noticed", || !a.is_healthy() && !b.is_healthy()).await;
    // Nothing waits for it.
    a.publish_wake(FeedSeq(6));
    until("its own wake arrives", || *a.wakes().borrow() == FeedSeq(6)).await;
    let started = Instant::now();
    tokio::time::sleep(PING_INTERVAL).await;
    assert!(a.ping().await.is_err());
    assert!(started.elapsed() < PING_INTERVAL + PING_DEADLINE);

    let _server = Server::start(dir).unwrap();
    until("both come back", || a.is_healthy() && b.is_healthy()).await;
    wakes.mark_unchanged();
    a.publish_wake(FeedSeq(8));
    until("the next wake arrives", || {
        *b.wakes().borrow() == FeedSeq(8)
    })
    .await;
    assert!(a.statistics().reconnects >= 1);
}

#[tokio::test]
async fn an_idle_bus_is_quiet_and_a_busy_one_is_paced() {
    let Some(server) = Server::start(tempfile::tempdir().unwrap()) else {
        eprintln!("skipped: no redis-server on this machine");
        return;
    };
    let bus = Bus::open(&server.config()).unwrap();
    until("it connects", || bus.is_healthy()).await;
    let started = Instant::now();
    for seq in 1..=1000 {
        bus.publish_wake(FeedSeq(seq));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let paced = started.elapsed().as_millis() / redis_link::PUBLISH_INTERVAL.as_millis() + 2;
    assert!(u128::from(bus.statistics().commands) <= paced);
}

#[tokio::test]
async fn an_absent_redis_is_no_error_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.redis.address = dir.path().join("none.sock").display().to_string();
    let bus = Bus::open(&config).unwrap();
    assert!(!bus.is_healthy());
    assert!(bus.ping().await.is_err());
}

/// A port that was free a moment ago.
/// Below the range that the kernel gives ports from by itself, so that nobody gets it before the server does.
pub(crate) fn free_port() -> u16 {
    std::iter::repeat_with(|| fastrand::u16(15_000..32_000))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .unwrap()
}

/// `ca.pem`, and `cert.pem` and `key.pem` of localhost. False when there is no openssl on the machine.
pub(crate) fn make_certificates(dir: &Path) -> bool {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    let commands = [
        format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=ca"),
        format!("req {key} -keyout key.pem -out request.pem -subj /CN=localhost"),
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
         -extfile names -out cert.pem"
            .to_owned(),
    ];
    let names = "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
    std::fs::write(dir.join("names"), names).unwrap();
    commands.iter().all(|command| {
        Command::new("openssl")
            .args(command.split_whitespace())
            .current_dir(dir)
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    })
}

#[tokio::test]
async fn tls_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    if !make_certificates(dir.path()) {
        eprintln!("skipped: no openssl on this machine");
        return;
    }
    let other = tempfile::tempdir().unwrap();
    assert!(make_certificates(other.path()));
    let (ca, port) = (dir.path().join("ca.pem"), free_port());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (cert, key, ca_text) = (path("cert.pem"), path("key.pem"), path("ca.pem"));
    let port_text = port.to_string();
    let args = [
        "--port",
        "0",
        "--tls-port",
        &port_text,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca_text,
        "--tls-auth-clients",
        "no",
    ];
    let Some(_server) = Server::spawn(dir, &args) else {
        eprintln!("skipped: no redis-server on this machine");
        return;
    };
    let mut config = Config::default();
    config.redis.address = format!("localhost:{port}");
    config.redis.use_tls = true;
    config.redis.tls_ca = ca;
    let bus = Bus::open(&config).unwrap();
    until("it connects", || bus.is_healthy()).await;
    assert_eq!(bus.ping().await, Ok(()));
    // The same server, but another authority is trusted.
    config.redis.tls_ca = other.path().join("ca.pem");
    let stranger = Bus::open(&config).unwrap();
    let is_refused = || match stranger.shared.link() {
        Err(Error::Unavailable(reason)) => reason.contains("certificate"),
        _ => false,
    };
    until("it is refused", is_refused).await;
}

#[tokio::test]
async fn wakes_cross_a_cluster() {
    let (port, bus_port) = (free_port().to_string(), free_port().to_string());
    let args = [
        "--port",
        &port,
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &bus_port,
    ];
    let Some(_server) = Server::spawn(tempfile::tempdir().unwrap(), &args) else {
        eprintln!("skipped: no redis-server on this machine");
        return;
    };
    let cli = |args: &[&str]| {
        let output = Command::new("redis-cli")
            .args(["-p", &port])
            .args(args)
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    until("it serves", || {
        cli(&["cluster", "addslotsrange", "0", "16383"]).contains("OK")
    })
    .await;
    until("all slots are served", || {
        cli(&["cluster", "info"]).contains("cluster_state:ok")
    })
    .await;
    let mut config = Config::default();
    config.redis.address = format!("127.0.0.1:{port},127.0.0.1:{port}");
    let (a, b) = (Bus::open(&config).unwrap(), Bus::open(&config).unwrap());
    until("both connect", || a.is_healthy() && b.is_healthy()).await;
    assert_eq!(a.ping().await, Ok(()));
    a.publish_wake(FeedSeq(5));
    until("the wake arrives", || *b.wakes().borrow() == FeedSeq(5)).await;
}
