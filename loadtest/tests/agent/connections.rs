//! How requests reach a server: connections, deadlines, resends and hellos.

use std::sync::Arc;
use std::time::Duration;

use fleet_loadtest::agent::Agent;
use fleet_loadtest::listener::Reply;
use fleet_loadtest::target::Target;
use fleet_loadtest::verdict::Failure;
use tokio::time::Instant;

use crate::{Bench, PATIENCE, in_turn};

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
