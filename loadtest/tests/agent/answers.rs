//! What a request says, and what is concluded from its answer.

use std::time::Duration;

use fleet_loadtest::bodies::QueryOutcome;
use fleet_loadtest::host::Release;
use fleet_loadtest::lines;
use fleet_loadtest::listener::Reply;
use fleet_loadtest::tables::Rows;
use fleet_loadtest::verdict::Failure;
use fleet_protocol::agent::LogType;
use tokio::time::Instant;

use crate::{Bench, in_turn};

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
async fn a_config_sets_the_pause_between_reads() {
    let bench = Bench::start(in_turn(vec![
        Reply::ok(r#"{"options":{"distributed_interval":3}}"#),
        Reply::ok("{}"),
        Reply::ok(r#"{"error":"busy"}"#),
        Reply::ok("{}"),
        Reply::ok(r#"{"options":{}}"#),
        Reply::ok("{}"),
    ]))
    .await;
    let agent = bench.enrolled();
    for seconds in [3, 3, 10] {
        agent.config().await;
        let round = agent.read_round(Instant::now()).await;
        assert_eq!(round.wait, Duration::from_secs(seconds));
    }
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
