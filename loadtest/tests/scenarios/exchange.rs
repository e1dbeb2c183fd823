//! `exchange`, and the files that every scenario writes.

use serde_json::Value;

use crate::{accept_all, hold_reads, refusal, run, start};

#[tokio::test]
async fn exchange_alternates_between_two_servers() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), accept_all).await;
    let peer = format!("--compare=https://{}", listener.address());
    let args = [
        "exchange",
        "--connections=2",
        "--seconds=2",
        "--round=1",
        &peer,
    ];
    let (is_clean, report) = run(dir.path(), &listener, &args).await;
    assert!(is_clean, "{report}");
    let rounds = report["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 2);
    for side in rounds {
        assert_eq!(side["exchanges_per_s"].as_array().unwrap().len(), 2);
        assert!(side["exchanges_per_s"][0].as_f64() > Some(0.0), "{report}");
    }
}

#[tokio::test]
async fn exchange_refuses_a_server_that_holds_reads() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), hold_reads).await;
    let args = ["exchange", "--connections=2", "--seconds=1"];
    let words = refusal(dir.path(), &listener, &args).await;
    let advice = "the server holds reads: start it with --osquery_distributed_hold=0s";
    assert!(words.contains(advice), "{words}");
}

#[tokio::test]
async fn reports_are_files_that_others_can_read() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), accept_all).await;
    let (json, html) = (dir.path().join("r.json"), dir.path().join("r.html"));
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_fleet-loadtest"))
        .args(["exchange", "--connections=2", "--seconds=1", "--round=1"])
        .args(["--insecure", "--enroll-secret=s3cr3t"])
        .arg(format!("--server=https://{}", listener.address()))
        .arg(format!("--server-pids={}", std::process::id()))
        .arg(format!("--json={}", json.display()))
        .arg(format!("--html={}", html.display()))
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let curve = report["rounds"][0]["curve"].as_array().unwrap();
    assert_eq!(curve.last().unwrap()[0], 100.0, "{report}");

    let page = std::fs::read_to_string(&html).unwrap();
    assert!(!page.contains("s3cr3t"));
    let options = roxmltree::ParsingOptions {
        allow_dtd: true,
        ..Default::default()
    };
    let page = roxmltree::Document::parse_with_options(&page, options).unwrap();
    let drawings: Vec<&str> = page
        .descendants()
        .filter(|node| node.has_tag_name("svg"))
        .filter_map(|node| node.attribute("aria-label"))
        .collect();
    assert!(
        drawings.contains(&"Percentiles of all rounds"),
        "{drawings:?}"
    );
    assert!(
        drawings.contains(&"CPU an exchange, by server"),
        "{drawings:?}"
    );
}
