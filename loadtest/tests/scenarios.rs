//! The binary against a recording server: its scenarios end, count right and report as JSON.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test file fail the test"
)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fleet_loadtest::listener::{Listener, Received, Reply};
use serde_json::Value;

async fn start(
    dir: &Path,
    respond: impl Fn(&Received) -> Reply + Send + Sync + 'static,
) -> Listener {
    let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(dir.join("ca.pem"), certified.cert.pem()).unwrap();
    let key = certified.signing_key.serialize_pem();
    Listener::start(&certified.cert.pem(), &key, respond)
        .await
        .unwrap()
}

async fn run(dir: &Path, listener: &Listener, args: &[&str]) -> (bool, Value) {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_fleet-loadtest"))
        .args(args)
        .arg("--server")
        .arg(format!("https://{}", listener.address()))
        .args(["--enroll-secret", "s3cr3t", "--json"])
        .arg(format!("--server-pids={}", std::process::id()))
        .arg("--ca")
        .arg(dir.join("ca.pem"))
        .stderr(Stdio::inherit())
        .output()
        .await
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!report.to_string().contains("s3cr3t"));
    (output.status.success(), report)
}

fn accept_all(received: &Received) -> Reply {
    match received.path.as_str() {
        path if path.ends_with("/enroll") => Reply::ok(r#"{"node_key":"key"}"#),
        _ => Reply::ok("{}"),
    }
}

fn refuse_logs(received: &Received) -> Reply {
    if received.path.ends_with("/log") {
        Reply::ok(r#"{"error":"no logs today"}"#)
    } else {
        accept_all(received)
    }
}

fn hold_open(received: &Received) -> Reply {
    match accept_all(received) {
        Reply::Answer { status, body, .. } => Reply::Answer {
            status,
            headers: "",
            body,
        },
        other => other,
    }
}

fn route<'a>(phase: &'a Value, name: &str) -> Option<&'a Value> {
    phase["routes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["route"] == name)
}

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

#[tokio::test]
async fn idle_notices_dropped_connections() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), drop_later).await;
    let args = ["idle", "--connections=20", "--seconds=4", "--active=0"];
    let (is_held, report) = run(dir.path(), &listener, &args).await;
    assert!(!is_held, "{report}");
    let dropped = report["findings"]["dropped_while_held"].as_u64().unwrap();
    assert!((9..=11).contains(&dropped), "{report}");
    assert_eq!(report["idle"]["open_at_end"].as_u64(), Some(20 - dropped));
}

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

/// Holds every read but a host's first, as a server does that has nothing to hand out.
fn hold_reads() -> impl Fn(&Received) -> Reply + Send + Sync + 'static {
    let reads = AtomicUsize::new(0);
    move |received| {
        let is_read = received.path.ends_with("/read");
        if is_read && reads.fetch_add(1, Ordering::SeqCst) >= 4 {
            return Reply::Held(Duration::from_millis(1500), "{}".into());
        }
        accept_all(received)
    }
}

#[tokio::test]
async fn held_counts_what_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), hold_reads()).await;
    let args = ["held", "--hosts=4", "--seconds=5", "--ramp=1"];
    let (is_held, report) = run(dir.path(), &listener, &args).await;
    assert!(is_held, "{report}");
    let findings = &report["findings"];
    assert!(
        findings["reads_held_to_the_end"].as_u64() >= Some(4),
        "{report}"
    );
    assert_eq!(findings["held_at_once_max"], 4);
    assert!(findings["hold_p50_ms"].as_f64() >= Some(1490.0), "{report}");
    let row = route(&report["phases"][2], "read (held)").unwrap();
    assert_eq!(row["late_over_16s"], 0);
    assert!(
        route(&report["phases"][2], "read").is_none(),
        "not as slow reads"
    );
}

#[tokio::test]
async fn held_fails_when_the_server_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), accept_all).await;
    let args = [
        "held",
        "--hosts=4",
        "--seconds=3",
        "--ramp=1",
        "--interval=1",
    ];
    let (is_held, report) = run(dir.path(), &listener, &args).await;
    assert!(!is_held, "{report}");
    assert_eq!(report["findings"]["reads_held_to_the_end"], 0);
    assert_eq!(report["phases"][2]["failures"], serde_json::json!({}));
}

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

#[tokio::test]
async fn slow_tells_when_each_connection_was_closed() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), accept_all).await;
    // This listener waits for every byte, so what is slow stays open.
    let args = [
        "slow",
        "--hosts=4",
        "--connections=6",
        "--before=1",
        "--seconds=3",
        "--interval=1",
        "--threads=2",
    ];
    let (is_clean, report) = run(dir.path(), &listener, &args).await;
    assert!(is_clean, "{report}");
    for part in ["handshake", "head", "body"] {
        let count = |what: &str| report["findings"][format!("slow_{part}_{what}")].clone();
        assert_eq!(count("opened"), 2, "{report}");
        assert_eq!(count("open_at_end"), 2, "{report}");
        assert_eq!(count("closed"), 0, "{report}");
    }
    assert!(route(&report["phases"][2], "config").unwrap()["exchanges"].as_u64() >= Some(4));
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap()
}
