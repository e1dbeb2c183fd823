//! Node keys: how an agent gets, shares and loses its own.

use std::sync::Arc;

use fleet_loadtest::listener::Reply;
use fleet_loadtest::verdict::Failure;
use fleet_protocol::agent::LogType;

use crate::Bench;

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
