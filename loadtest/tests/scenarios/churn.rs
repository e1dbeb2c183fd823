//! `churn`.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use fleet_loadtest::listener::Reply;
use serde_json::Value;

use crate::{accept_all, run, start};

#[tokio::test]
async fn churn_installs_hosts_again() {
    let dir = tempfile::tempdir().unwrap();
    let keys = AtomicUsize::new(0);
    let listener = start(dir.path(), move |received| {
        if received.path.ends_with("/enroll") {
            let key = keys.fetch_add(1, Ordering::SeqCst);
            return Reply::ok(format!(r#"{{"node_key":"key-{key}"}}"#));
        }
        Reply::ok("{}")
    })
    .await;
    let args = [
        "churn",
        "--hosts=6",
        "--seconds=6",
        "--life=1",
        "--away=0.2",
        "--interval=0.5",
    ];
    let (is_clean, report) = run(dir.path(), &listener, &args).await;
    assert!(is_clean, "{report}");
    let findings = &report["findings"];
    let count = |name: &str| findings[name].as_u64().unwrap();
    assert!(count("hosts_reinstalled") > 0, "{report}");
    assert_eq!(
        count("hosts_reinstalled"),
        count("hosts_reinstalled_and_served")
    );
    assert_eq!(count("hosts_appeared"), count("hosts_vanished"));
    let enrolled: Vec<Value> = listener
        .received()
        .iter()
        .filter(|received| received.path.ends_with("/enroll"))
        .map(|received| serde_json::from_slice(&received.body).unwrap())
        .collect();
    assert_eq!(as_u64(enrolled.len()), count("hosts_appeared"));
    let identifiers: BTreeSet<&str> = enrolled
        .iter()
        .map(|body| body["host_identifier"].as_str().unwrap())
        .collect();
    let machines = as_u64(enrolled.len()) - count("hosts_reinstalled");
    assert_eq!(as_u64(identifiers.len()), machines);
}

#[tokio::test]
async fn churn_sees_that_an_old_key_is_given_again() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), accept_all).await;
    let args = [
        "churn",
        "--hosts=4",
        "--seconds=4",
        "--life=0.8",
        "--away=0.1",
        "--reinstalled=100",
    ];
    let (is_clean, report) = run(dir.path(), &listener, &args).await;
    assert!(!is_clean, "the server gives one key to all: {report}");
    assert_eq!(report["findings"]["hosts_reinstalled_and_served"], 0);
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap()
}
