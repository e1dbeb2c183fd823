//! `steady`.

use crate::{accept_all, refuse_logs, route, run, start};

const STEADY: [&str; 15] = [
    "steady",
    "--hosts",
    "8",
    "--seconds",
    "11",
    "--profile",
    "flagfile",
    "--ramp",
    "1",
    "--settle",
    "0",
    "--log-lines-per-host-minute",
    "60",
    "--threads",
    "2",
];

#[tokio::test]
async fn steady_counts_phases_and_routes() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), accept_all).await;
    let (is_clean, report) = run(dir.path(), &listener, &STEADY).await;
    assert!(is_clean, "{report}");
    let [enrolment, steady] = report["phases"].as_array().unwrap().as_slice() else {
        panic!("{report}");
    };
    assert_eq!(route(enrolment, "enroll").unwrap()["exchanges"], 8);
    assert!(route(steady, "enroll").is_none());
    for name in ["config", "read", "log"] {
        assert!(
            route(steady, name).unwrap()["exchanges"].as_u64() >= Some(8),
            "{name}: {report}"
        );
    }
    assert_eq!(
        report["servers"][1]["processes"][0]["pid"],
        std::process::id()
    );
}

#[tokio::test]
async fn steady_fails_when_exchanges_fail() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), refuse_logs).await;
    let (is_clean, report) = run(dir.path(), &listener, &STEADY).await;
    assert!(!is_clean, "{report}");
    let details = &report["phases"][1]["details"];
    assert!(
        details["log error_object: no logs today"].as_u64() > Some(0),
        "{report}"
    );
}
