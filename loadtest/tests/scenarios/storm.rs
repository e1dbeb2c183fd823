//! `storm`.

use std::collections::BTreeSet;

use fleet_loadtest::listener::{Received, Reply};
use serde_json::Value;

use crate::{accept_all, run, start};

#[tokio::test]
async fn storm_serves_every_host_and_names_what_was_taken() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), accept_all).await;
    let lines = dir.path().join("lines");
    let acknowledged = format!("--acknowledged={}", lines.display());
    let args = [
        "storm",
        "--hosts=30",
        "--seconds=40",
        "--lines=3",
        "--threads=2",
        &acknowledged,
    ];
    let (is_proper, report) = run(dir.path(), &listener, &args).await;
    assert!(is_proper, "{report}");
    let findings = &report["findings"];
    assert_eq!(findings["hosts_served"], 30);
    assert_eq!(findings["violations"], 0);
    assert_eq!(findings["lines_acknowledged"], 90);
    assert!(findings["steady_again_s"].is_number(), "{report}");
    let taken = std::fs::read_to_string(lines).unwrap();
    let taken: BTreeSet<&str> = taken.lines().collect();
    assert_eq!(taken.len(), 90);
    let received: Vec<Value> = listener
        .received()
        .iter()
        .filter(|received| received.path.ends_with("/log"))
        .map(|received| serde_json::from_slice(&received.body).unwrap())
        .collect();
    for line in received
        .iter()
        .flat_map(|body| body["data"].as_array().unwrap())
    {
        let identifier = line["hostIdentifier"].as_str().unwrap();
        let name = format!("{identifier} {}", line["counter"]);
        assert!(taken.contains(name.as_str()), "{name}");
    }
}

/// Takes logs with nothing at all, which an agent takes for success.
fn lose_logs(received: &Received) -> Reply {
    if received.path.ends_with("/log") {
        Reply::status(503, "")
    } else {
        accept_all(received)
    }
}

#[tokio::test]
async fn storm_calls_a_made_up_success_a_violation() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), lose_logs).await;
    let args = ["storm", "--hosts=5", "--seconds=2"];
    let (is_proper, report) = run(dir.path(), &listener, &args).await;
    assert!(!is_proper, "{report}");
    assert_eq!(report["findings"]["violations"], 5);
}

#[tokio::test]
async fn storm_of_new_hosts_is_told_to_come_back() {
    /// Refuses enrolments as a server does whose store is away.
    fn refuse(received: &Received) -> Reply {
        if received.path.ends_with("/enroll") {
            Reply::status(503, r#"{"error":"busy"}"#)
        } else {
            Reply::ok(r#"{"node_invalid":true}"#)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), refuse).await;
    let args = ["storm", "--hosts=5", "--seconds=2", "--unenrolled"];
    let (is_proper, report) = run(dir.path(), &listener, &args).await;
    assert!(!is_proper, "nobody was served");
    let findings = &report["findings"];
    assert_eq!(findings["hosts_served"], 0);
    assert_eq!(findings["hosts_without_a_word"], 0);
    assert_eq!(findings["violations"], 0);
    assert!(
        findings["answers_told_to_come_back"].as_u64() >= Some(10),
        "{report}"
    );
}
