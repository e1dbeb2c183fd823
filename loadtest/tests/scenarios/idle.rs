//! `idle`.

use fleet_loadtest::listener::{Received, Reply};
use serde_json::Value;

use crate::{accept_all, hold_open, hold_reads, refusal, route, run, start};

#[tokio::test]
async fn idle_holds_what_the_server_lets_it_hold() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), hold_open).await;
    let args = [
        "idle",
        "--connections=20",
        "--seconds=3",
        "--active=20",
        "--interval=0.5",
        "--opening-rate=40",
        "--threads=3",
    ];
    let (is_held, report) = run(dir.path(), &listener, &args).await;
    assert!(is_held, "{report}");
    assert_eq!(report["idle"]["open_at_end"], 20);
    assert_eq!(
        route(&report["phases"][0], "read").unwrap()["exchanges"],
        20
    );
    let used = route(&report["phases"][1], "read").unwrap();
    assert!(used["exchanges"].as_u64() >= Some(8), "{report}");
    assert_eq!(used["connections"], 0, "on connections that were open");
    assert_eq!(report["findings"]["dropped_while_held"], 0);
    let moments = report["timeline"].as_array().unwrap();
    assert!(
        moments.iter().any(|moment| moment["open"] == 20),
        "{report}"
    );

    let closing = start(dir.path(), accept_all).await;
    let (is_held, report) = run(dir.path(), &closing, &args).await;
    assert!(!is_held);
    assert_eq!(report["idle"]["refused_reuse"], 20);
}

/// Answers the first request of a connection and ends it without a word a little later.
fn drop_later(received: &Received) -> Reply {
    if received.path.ends_with("/read") && received.connection.is_multiple_of(2) {
        let body = "HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\n{}";
        return Reply::Torn(body.into());
    }
    hold_open(received)
}

/// Runs 20 connections toward a server that drops every other one; the report tells of those.
async fn assert_half_are_dropped(more: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), drop_later).await;
    let args = [&["idle", "--connections=20"][..], more].concat();
    let (is_held, report) = run(dir.path(), &listener, &args).await;
    assert!(!is_held, "{report}");
    let count = |pointer| report.pointer(pointer).and_then(Value::as_u64);
    let dropped = count("/findings/dropped_while_held").unwrap();
    assert!((9..=11).contains(&dropped), "{report}");
    assert_eq!(count("/idle/open_at_end"), Some(20 - dropped));
}

#[tokio::test]
async fn idle_notices_dropped_connections() {
    assert_half_are_dropped(&["--seconds=4", "--active=0"]).await;
}

#[tokio::test]
async fn idle_notices_dropped_connections_that_made_their_last_request() {
    // All are active, and nearly all turns would come after the end.
    assert_half_are_dropped(&["--seconds=3", "--active=100", "--interval=1000"]).await;
}

#[tokio::test]
async fn idle_refuses_a_server_that_holds_reads() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), hold_reads).await;
    let args = ["idle", "--connections=2", "--seconds=1"];
    let words = refusal(dir.path(), &listener, &args).await;
    let advice = "the server holds reads: start it with --osquery_distributed_hold=0s";
    assert!(words.contains(advice), "{words}");
}
