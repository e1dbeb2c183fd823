//! What an agent has to deliver, and how long it keeps it: lines, results of queries, carves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fleet_loadtest::lines;
use fleet_loadtest::listener::{Received, Reply};
use fleet_protocol::agent::{LogType, Route};
use fleet_protocol::reject::Reject;
use tokio::time::Instant;

use crate::{Bench, in_turn};

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
