//! A first start on an empty directory, as someone who just cloned the repository sees it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use fleet_tests::gateway::{Gateway, read, texts};
use fleet_tests::https::enroll_body;
use fleet_tests::process::{is_alive, run};
use fleet_tests::wait;
use serde_json::json;

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn makes_what_is_missing_and_says_what_to_do() {
    let gateway = Gateway::start();
    // Started by root, the directory is shared with the user that control runs as, and with nobody else.
    let shared = if nix::unistd::geteuid().is_root() {
        0o770
    } else {
        0o700
    };
    assert_eq!(mode(&gateway.state("")), shared);
    assert_eq!(mode(&gateway.state("tls/key.pem")), 0o600);
    assert_eq!(mode(&gateway.state("enroll_secret")), 0o600);
    assert!(gateway.secret().len() >= 24);

    let banner = gateway.banner();
    let flagfile = gateway.state("osquery.flags");
    for told in [
        gateway.address.to_string(),
        gateway.state("tls/cert.pem").display().to_string(),
        gateway.state("enroll_secret").display().to_string(),
        flagfile.display().to_string(),
    ] {
        assert!(banner.contains(&told), "{told} is not in:\n{banner}");
    }
    assert!(
        !banner.contains(&gateway.secret()),
        "the banner shows the secret"
    );
    assert!(
        !gateway.log().contains(&gateway.secret()),
        "the log shows the secret"
    );

    let flags = read(&flagfile);
    for flag in [
        format!("--tls_hostname={}", gateway.address),
        format!(
            "--tls_server_certs={}",
            gateway.state("tls/cert.pem").display()
        ),
        format!(
            "--enroll_secret_path={}",
            gateway.state("enroll_secret").display()
        ),
        "--config_tls_endpoint=/api/v1/osquery/config".into(),
        "--disable_distributed=false".into(),
    ] {
        assert!(
            flags.lines().any(|line| line == flag),
            "{flag} is not in:\n{flags}"
        );
    }
}

#[test]
fn curl_enrolls_a_host_and_its_log_is_on_disk() {
    let gateway = Gateway::start();
    let url = format!("https://{}/api/v1/osquery", gateway.address);
    let ca = gateway.state("tls/cert.pem");
    let curl = |path: &str, body: String| {
        let output = run(Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--fail",
                "--max-time",
                "20",
                "--cacert",
            ])
            .arg(&ca)
            .args(["--data", &body, &format!("{url}/{path}")]));
        let (out, error) = texts(&output);
        assert!(output.status.success(), "{path}: {error}{out}");
        serde_json::from_str::<serde_json::Value>(&out).unwrap()
    };
    let key = curl(
        "enroll",
        enroll_body(&gateway.secret(), "web-1").to_string(),
    )["node_key"]
        .clone();
    assert!(key.as_str().is_some_and(|key| key.len() >= 16));
    curl(
        "log",
        json!({"data": [{"name": "pack/Global/cpu", "n": 1}], "log_type": "result", "node_key": key})
            .to_string(),
    );
    assert_eq!(
        gateway.journal("result"),
        [r#"{"name":"pack/Global/cpu","n":1}"#]
    );

    let hosts = gateway.ctl(&["get", "hosts"]);
    assert!(hosts.contains("web-1"), "{hosts}");
}

#[test]
fn stop_drains_and_ends_every_process() {
    let mut gateway = Gateway::start();
    let pids = [
        gateway.worker_pid(0),
        gateway.worker_pid(1),
        gateway.control_pid(),
    ];
    let output = gateway.command(&["stop"]);
    assert!(output.status.success(), "{:?}", texts(&output));
    assert_eq!(gateway.supervisor.exit_code(), 0, "{}", gateway.log());
    for pid in pids {
        assert!(!is_alive(pid), "process {pid} is left");
    }
    assert_eq!(gateway.command(&["status"]).status.code(), Some(69));
}

#[test]
fn children_drain_and_exit_when_the_supervisor_is_gone() {
    let mut gateway = Gateway::start();
    let pids = [
        gateway.worker_pid(0),
        gateway.worker_pid(1),
        gateway.control_pid(),
    ];
    gateway.supervisor.kill();
    for pid in pids {
        wait::until("a child exits", || (!is_alive(pid)).then_some(()));
    }
}

#[test]
fn a_restart_keeps_hosts_secret_and_certificate() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let before = (gateway.secret(), read(&gateway.state("tls/cert.pem")));
    let gateway = gateway.restart();
    assert_eq!(
        (gateway.secret(), read(&gateway.state("tls/cert.pem"))),
        before
    );
    let answer = gateway
        .https
        .post("/api/osquery/config", &json!({"node_key": key}))
        .unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!answer.object().contains_key("error"));
}
