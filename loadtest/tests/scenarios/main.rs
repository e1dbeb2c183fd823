//! The binary against a recording server: its scenarios end, count right and report as JSON.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test file fail the test"
)]

mod backlog;
mod churn;
mod exchange;
mod held;
mod idle;
mod slow;
mod steady;
mod storm;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use fleet_loadtest::listener::{Listener, Received, Reply};
use serde_json::Value;
use tokio::process::Command;

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

fn command(dir: &Path, listener: &Listener, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleet-loadtest"));
    command
        .args(args)
        .arg("--server")
        .arg(format!("https://{}", listener.address()))
        .args(["--enroll-secret", "s3cr3t", "--json"])
        .arg(format!("--server-pids={}", std::process::id()))
        .arg("--ca")
        .arg(dir.join("ca.pem"));
    command
}

async fn run(dir: &Path, listener: &Listener, args: &[&str]) -> (bool, Value) {
    let output = command(dir, listener, args)
        .stderr(Stdio::inherit())
        .output()
        .await
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!report.to_string().contains("s3cr3t"));
    (output.status.success(), report)
}

/// What a run says that cannot be made.
async fn refusal(dir: &Path, listener: &Listener, args: &[&str]) -> String {
    let output = command(dir, listener, args).output().await.unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{words}");
    words
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

/// Has nothing to hand out and takes its time to say so, as a gateway that holds reads.
fn hold_reads(received: &Received) -> Reply {
    if received.path.ends_with("/read") {
        Reply::Held(Duration::from_millis(5200), "{}".into())
    } else {
        accept_all(received)
    }
}

fn route<'a>(phase: &'a Value, name: &str) -> Option<&'a Value> {
    phase["routes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["route"] == name)
}
