//! What only a server can do: be empty, read-only, gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use fleet_protocol::config::Config;
use fleet_protocol::ids::{FeedSeq, HostId, UnixSeconds};
use sqlx::AssertSqlSafe;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::time::Instant;

use super::server::Server;
use super::{Bed, enroll_many, enrollment, unseen};
use crate::bus::tests::make_certificates;
use crate::model::host::{HostColumns, HostDetails};
use crate::store::breaker::Sign;
use crate::store::migrate::MIGRATIONS;
use crate::store::pools::Purpose;
use crate::store::{Error, Store, quiet};

pub(super) async fn migrations_start_from_nothing(server: &Server) {
    let config = server.database("migrations_start").await;
    let dir = tempfile::tempdir().unwrap();
    let open = || Store::open(&config, dir.path());
    let (a, b) = (open().await.unwrap(), open().await.unwrap());
    let missing = a.missing_migrations().await.unwrap();
    assert!(missing > 0);
    assert_eq!(
        a.require_prepared().await,
        Err(Error::NotPrepared { missing })
    );
    // Two nodes at once: one of them does it.
    let (x, y) = tokio::join!(a.prepare(&quiet), b.prepare(&quiet));
    assert_eq!(x.unwrap() + y.unwrap(), MIGRATIONS.len());
    assert_eq!(a.require_prepared().await, Ok(()));
    assert_eq!(b.prepare(&quiet).await, Ok(0));
    enroll_many(&a, 3).await;
    // A migration that stopped half-way runs again and leaves the data.
    server
        .run("DELETE FROM migrations_start.migrations".into())
        .await;
    assert_eq!(a.prepare(&quiet).await, Ok(MIGRATIONS.len()));
    assert_eq!(b.host_count().await, Ok(3));
    // A newer version's migrations are no reason not to start.
    server
        .run("INSERT INTO migrations_start.migrations VALUES (9999, 0)".into())
        .await;
    assert_eq!(b.require_prepared().await, Ok(()));
}

/// A statement that nobody waits for any more does not go on beside those that come after it.
pub(super) async fn a_statement_ends_on_the_server_too(server: &Server) {
    let bed = Bed::open(server.database("given_up").await).await;
    let mut session = bed.store.session(Purpose::Read).await.unwrap();
    let asked = session.row("sleep", "SELECT SLEEP(600)", &[]).await;
    assert!(asked.is_err());
    drop(session);
    let sql = "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT SLEEP%'";
    let mut connection = server.connect().await;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let running: i64 = sqlx::query_scalar(sql)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        if running == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{running} still run");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Work that may take long is not cut short.
    let mut session = bed.store.session(Purpose::Read).await.unwrap();
    session.allow(Duration::from_secs(60)).await.unwrap();
    let bound = session.row("bound", "SELECT @@max_statement_time = 0", &[]);
    assert_eq!(bound.await.unwrap().unwrap().int(0).unwrap(), 1);
}

pub(super) async fn tls_is_verified(server: &Server) {
    let (address, ca) = server.tls();
    if !ca.exists() {
        eprintln!("skipped: no openssl on this machine");
        return;
    }
    let mut config = server.database("over_tls").await;
    config.mysql.address = address;
    config.mysql.tls_ca = ca;
    let bed = Bed::open(config.clone()).await;
    enroll_many(&bed.store, 3).await;
    assert_eq!(bed.store.host_count().await, Ok(3));
    // The same server, but another authority is trusted.
    let other = tempfile::tempdir().unwrap();
    assert!(make_certificates(other.path()));
    config.mysql.tls_ca = other.path().join("ca.pem");
    let stranger = Store::open(&config, other.path()).await.unwrap();
    let refused = stranger.host_count().await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    // A wrong password is not repeated.
    config.mysql.password_path = "/dev/null".into();
    let stranger = Store::open(&config, other.path()).await.unwrap();
    assert!(stranger.host_count().await.is_err());
}

pub(super) async fn a_read_only_server_is_unavailable(server: &Server) {
    let bed = Bed::open(server.database("read_only").await).await;
    let hosts = enroll_many(&bed.store, 1).await;
    server.run("SET GLOBAL read_only = 1".into()).await;
    tokio::time::sleep(crate::store::PING_INTERVAL).await;
    let unavailable = |result: Result<(), Error>| matches!(result, Err(Error::Unavailable(_)));
    assert!(unavailable(bed.store.ping().await));
    let marked = bed.store.mark_seen(&hosts, UnixSeconds(5)).await;
    assert!(unavailable(marked));
    // Reads go on, writes are refused without asking.
    assert_eq!(bed.store.host_count().await, Ok(1));
    let gate = bed.store.statistics().gate;
    assert!(gate.is_read_only && !gate.is_open);
    assert!(unavailable(
        bed.store.mark_seen(&hosts, UnixSeconds(5)).await
    ));
    assert!(bed.store.statistics().gate.refused > gate.refused);
    let pinged = bed.store.ping().await.unwrap_err();
    assert_eq!(bed.store.trouble(&pinged), "read-only");
    server.run("SET GLOBAL read_only = 0".into()).await;
    tokio::time::sleep(crate::store::PING_INTERVAL).await;
    assert_eq!(bed.store.ping().await, Ok(()));
    assert_eq!(bed.store.mark_seen(&hosts, UnixSeconds(5)).await, Ok(()));
    assert!(!bed.store.statistics().gate.is_read_only);

    // Found by a write this time, not by a health check.
    server.run("SET GLOBAL read_only = 1".into()).await;
    assert!(unavailable(
        bed.store.mark_seen(&hosts, UnixSeconds(6)).await
    ));
    assert_eq!(bed.store.statistics().gate.demoted, 2);
    // And by who must know before rows that are missing count.
    let other = bed.node().await;
    assert!(!other.is_read_only());
    assert!(unavailable(other.require_writable().await));
    assert!(other.is_read_only());
    // By a probe, at last: the breaker closes, the server stays read-only.
    let other = bed.node().await;
    let gone = Error::Unavailable("gone".into());
    other.gate.note(Sign::Unreachable(gone));
    let deadline = Instant::now() + Duration::from_secs(60);
    while other.host_count().await.is_err() {
        assert!(Instant::now() < deadline, "no probe succeeds");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(other.is_read_only());
    server.run("SET GLOBAL read_only = 0".into()).await;
    assert_eq!(bed.node().await.require_writable().await, Ok(()));
}

/// Refuses each connection with an error of this number, as servers do before any greeting.
async fn refuse_all(listener: TcpListener, number: u16, refused: Arc<AtomicU32>) {
    let mut packet = vec![0, 0, 0, 0, 0xff];
    packet.extend(number.to_le_bytes());
    packet.extend(b"not you");
    packet[0] = u8::try_from(packet.len() - 4).unwrap();
    while let Ok((mut stream, _)) = listener.accept().await {
        refused.fetch_add(1, Relaxed);
        let _ = stream.write_all(&packet).await;
        let _ = stream.shutdown().await;
        // Until the other side is done, or the packet might be lost by a reset.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
}

/// Results that a store failed at are given up; who was not even let in must not be taken for one bad host.
#[tokio::test]
async fn who_is_not_let_in_finds_the_store_away() {
    for number in [1129, 1130, 1226, 1862, 3118] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = Config::default();
        config.mysql.address = listener.local_addr().unwrap().to_string();
        let refused = Arc::new(AtomicU32::new(0));
        let refusing = tokio::spawn(refuse_all(listener, number, Arc::clone(&refused)));
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&config, dir.path()).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        // By the pool first, then by the breaker, then by a probe.
        while refused.load(Relaxed) < 2 {
            assert!(Instant::now() < deadline, "{number}: nobody probes");
            let written = store.mark_seen(&[HostId(1)], UnixSeconds(5)).await;
            let error = written.unwrap_err();
            assert!(
                matches!(&error, Error::Unavailable(text) if text.contains(&number.to_string())),
                "{error:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(store.statistics().gate.is_open);
        refusing.abort();
    }
}

pub(super) async fn a_server_that_is_slow_to_connect_to_comes_back(server: &Server) {
    let mut config = server.database("slow").await;
    let bed = Bed::open(config.clone()).await;
    let behind = std::mem::replace(
        &mut config.mysql.address,
        bed.dir().join("slow").display().to_string(),
    );
    let store = Store::open(&config, bed.dir()).await.unwrap();
    assert!(store.host_count().await.is_err());
    assert!(store.statistics().gate.is_open);
    // Two connections take longer than one step of a probe may.
    let delay = crate::store::gate::PROBE_DEADLINE * 11 / 20;
    let listener = UnixListener::bind(&config.mysql.address).unwrap();
    let slow = tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let behind = behind.clone();
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let mut far = UnixStream::connect(behind).await.unwrap();
                let _ = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    let deadline = Instant::now() + Duration::from_secs(60);
    while store.host_count().await.is_err() {
        assert!(Instant::now() < deadline, "it never came back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!store.statistics().gate.is_open);
    slow.abort();
}

pub(super) async fn a_deadlock_is_tried_again(server: &Server) {
    let bed = Bed::open(server.database("deadlock").await).await;
    let hosts = enroll_many(&bed.store, 40).await;
    let mut rival = server.connect().await;
    let mut run = async |sql: &str| {
        sqlx::raw_sql(AssertSqlSafe(format!("USE deadlock; {sql}")))
            .execute(&mut rival)
            .await
    };
    let details: Vec<HostDetails> = [hosts[0], hosts[39]]
        .into_iter()
        .map(|host| HostDetails {
            host,
            at: UnixSeconds(2_000_000),
            columns: HostColumns::default(),
            details: serde_json::Map::new(),
        })
        .collect();
    // It has changed more rows than the store will have, so that the store's transaction is the one that is undone.
    run("START TRANSACTION; UPDATE host_details SET uptime = 1 WHERE host_id > 1")
        .await
        .unwrap();
    let (written, rival) = tokio::join!(bed.store.update_details(&details), async {
        let deadline = Instant::now() + Duration::from_secs(60);
        while server.lock_waits().await == 0 {
            assert!(Instant::now() < deadline, "the store waits for no lock");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        run("UPDATE host_details SET uptime = 2 WHERE host_id = 1").await?;
        run("COMMIT").await
    });
    rival.unwrap();
    assert_eq!(written, Ok(()));
    assert!(bed.store.statistics().retries >= 1);
    assert!(!bed.store.statistics().gate.is_open);
}

pub(super) async fn who_is_denied_is_told_so(server: &Server) {
    let mut config = server.database("denied").await;
    config.mysql.password_path = "/dev/null".into();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&config, dir.path()).await.unwrap();
    let denied = store.require_prepared().await;
    assert!(matches!(denied, Err(Error::Denied(_))), "{denied:?}");
    let pinged = store.ping().await.unwrap_err();
    assert_eq!(store.trouble(&pinged), "access denied");
}

pub(super) async fn a_lost_server_fails_fast_and_comes_back(server: &mut Server) {
    let bed = Bed::open(server.database("lost").await).await;
    enroll_many(&bed.store, 1).await;
    server.stop();
    // Without the breaker each of these would take its whole deadline.
    let deadline = Instant::now() + Duration::from_secs(60);
    for _ in 0..200 {
        assert!(Instant::now() < deadline, "calls do not fail fast");
        let read = bed.store.changes_after(FeedSeq(0), 1).await;
        assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
        let written = bed.store.enroll(&[enrollment("x", "", 1)], &unseen).await;
        let error = written.unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
        assert!(!error.to_string().contains("hunter2"));
    }
    server.start_again();
    let deadline = Instant::now() + Duration::from_secs(60);
    while bed.store.host_count().await.is_err() {
        assert!(Instant::now() < deadline, "it never came back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(bed.store.hosts_by_ids(&[HostId(1)]).await.unwrap().len(), 1);
}
