//! `backlog`.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{accept_all, refuse_logs, route, run, start};

#[tokio::test]
async fn backlog_sends_batches_until_none_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), accept_all).await;
    let args = ["backlog", "--hosts=3", "--lines=2500", "--period=0"];
    let (is_clean, report) = run(dir.path(), &listener, &args).await;
    assert!(is_clean, "{report}");
    let findings = &report["findings"];
    assert_eq!(findings["lines_acknowledged"], 7500);
    assert_eq!(findings["lines_left"], 0);
    assert_eq!(route(&report["phases"][1], "log").unwrap()["exchanges"], 9);
    let mut numbers = BTreeSet::new();
    for received in listener.received() {
        if !received.path.ends_with("/log") {
            continue;
        }
        let body: Value = serde_json::from_slice(&received.body).unwrap();
        let lines = body["data"].as_array().unwrap();
        assert!(lines.len() <= 1024);
        numbers.extend(lines.iter().map(|line| {
            (
                line["hostIdentifier"].as_str().unwrap().to_owned(),
                line["counter"].as_u64().unwrap(),
            )
        }));
    }
    assert_eq!(numbers.len(), 7500, "each line once");
}

#[tokio::test]
async fn backlog_keeps_what_was_refused() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), refuse_logs).await;
    let args = [
        "backlog",
        "--hosts=2",
        "--lines=10",
        "--period=1",
        "--seconds=3",
    ];
    let (is_clean, report) = run(dir.path(), &listener, &args).await;
    assert!(!is_clean, "{report}");
    assert_eq!(report["findings"]["lines_acknowledged"], 0);
    assert_eq!(report["findings"]["lines_left"], 20);
}
