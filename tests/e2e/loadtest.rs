//! The load scenarios against a whole gateway: what they conclude, not how fast it was.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use fleet_tests::gateway::{Gateway, read};
use fleet_tests::process::binary;
use serde_json::Value;

/// Runs `fleet-loadtest ARGS` at a gateway; whether it was content, and its report.
fn load(gateway: &Gateway, args: &[&str]) -> (bool, Value) {
    let output = Command::new(binary("fleet-loadtest"))
        .args(args)
        .arg(format!("--server=https://{}", gateway.address))
        .arg("--ca")
        .arg(gateway.state("tls/cert.pem"))
        .arg("--enroll-secret-file")
        .arg(gateway.state("enroll_secret"))
        .arg(format!("--server-tree={}", gateway.supervisor.pid()))
        .arg("--json")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    (output.status.success(), report)
}

fn phase<'a>(report: &'a Value, name: &str) -> &'a Value {
    let phases = report["phases"].as_array().unwrap();
    let found = phases.iter().find(|phase| phase["name"] == name);
    found.unwrap_or_else(|| panic!("no phase {name}: {report}"))
}

/// Names of the result lines in the journal, as `--acknowledged` writes them.
fn journal(gateway: &Gateway) -> Vec<String> {
    let lines = gateway.journal("result");
    let name = |line: &String| {
        let line: Value = serde_json::from_str(line).unwrap();
        let identifier = line["hostIdentifier"].as_str().unwrap();
        format!("{identifier} {}", line["counter"])
    };
    lines.iter().map(name).collect()
}

#[test]
fn a_storm_is_served_and_every_acknowledged_line_is_in_the_journal() {
    let gateway = Gateway::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("acknowledged");
    let acknowledged = format!("--acknowledged={}", path.display());
    let args = [
        "storm",
        "--hosts=200",
        "--lines=5",
        "--seconds=40",
        &acknowledged,
    ];
    let (_, report) = load(&gateway, &args);
    let findings = &report["findings"];
    assert_eq!(findings["hosts_served"], 200, "{report}");
    assert_eq!(findings["violations"], 0, "{report}");
    assert_eq!(findings["hosts_without_a_word"], 0, "{report}");
    assert_eq!(findings["lines_acknowledged"], 1000, "{report}");
    let named: BTreeSet<String> = read(&path).lines().map(str::to_owned).collect();
    let kept: BTreeSet<String> = journal(&gateway).into_iter().collect();
    assert_eq!(named.len(), 1000);
    assert!(named.is_subset(&kept), "{} in the journal", kept.len());
    assert!(!report["timeline"].as_array().unwrap().is_empty());
    let processes = report["servers"][0]["processes"].as_array().unwrap();
    assert_eq!(processes.len(), 4, "supervisor, control, two workers");
}

#[test]
fn new_hosts_enroll_in_a_storm() {
    let gateway = Gateway::start();
    let args = ["storm", "--hosts=200", "--unenrolled", "--seconds=40"];
    let (_, report) = load(&gateway, &args);
    assert_eq!(report["findings"]["hosts_served"], 200, "{report}");
    assert_eq!(report["findings"]["violations"], 0, "{report}");
    let storm = phase(&report, "storm");
    let mut rows = storm["routes"].as_array().unwrap().iter();
    let enrolled = rows.find(|row| row["route"] == "enroll").unwrap();
    assert_eq!(enrolled["exchanges"], 200, "{report}");
}

#[test]
fn a_backlog_arrives_whole() {
    let gateway = Gateway::start();
    let args = ["backlog", "--hosts=200", "--lines=1100", "--period=0"];
    let (_, report) = load(&gateway, &args);
    assert_eq!(
        report["findings"]["lines_acknowledged"], 220_000,
        "{report}"
    );
    assert_eq!(report["findings"]["lines_left"], 0, "{report}");
    // A batch whose answer was lost on the way comes twice; none is missing.
    let kept: BTreeSet<String> = journal(&gateway).into_iter().collect();
    assert_eq!(kept.len(), 220_000);
}

#[test]
fn slow_connections_are_closed_and_the_others_do_not_notice() {
    let gateway = Gateway::start();
    let args = [
        "slow",
        "--hosts=200",
        "--connections=60",
        "--before=3",
        "--seconds=22",
        "--interval=3",
    ];
    let (is_clean, report) = load(&gateway, &args);
    assert!(is_clean, "{report}");
    for part in ["handshake", "head", "body"] {
        let count = |what: &str| report["findings"][format!("slow_{part}_{what}")].clone();
        assert_eq!(count("opened"), 20, "{report}");
        assert_eq!(count("closed"), 20, "{report}");
        assert_eq!(count("open_at_end"), 0, "{report}");
    }
}

#[test]
fn idle_connections_are_held_while_some_are_used() {
    let gateway = Gateway::start();
    let args = [
        "idle",
        "--connections=1000",
        "--active=10",
        "--interval=1",
        "--seconds=4",
        "--threads=4",
    ];
    let (is_held, report) = load(&gateway, &args);
    assert!(is_held, "{report}");
    assert_eq!(report["idle"]["open_at_end"], 1000, "{report}");
    assert_eq!(report["findings"]["active_connections"], 100.0);
    assert_eq!(report["findings"]["dropped_while_held"], 0);
    let used = phase(&report, "requests while holding");
    let all = used["routes"].as_array().unwrap().last().unwrap();
    assert!(all["exchanges"].as_u64() >= Some(300), "{report}");
    assert_eq!(all["failed"], 0);
    // How much it is follows from what the processes give back of their start meanwhile.
    let worker = report["findings"]["server_anonymous_bytes_per_connection"].as_f64();
    assert!(worker.is_some(), "{report}");
}

#[test]
fn hosts_that_are_installed_again_are_served() {
    let gateway = Gateway::start();
    let args = [
        "churn",
        "--hosts=40",
        "--seconds=12",
        "--life=3",
        "--away=0.5",
        "--interval=1",
    ];
    let (is_clean, report) = load(&gateway, &args);
    assert!(is_clean, "{report}");
    let count = |name: &str| report["findings"][name].as_u64().unwrap();
    assert!(count("hosts_reinstalled") > 10, "{report}");
    let served = count("hosts_reinstalled_and_served");
    assert_eq!(served, count("hosts_reinstalled"), "{report}");
}
