//! The command line: what a wrong or incomplete start says, and with which exit code.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output};

use fleet_tests::gateway::{Gateway, texts};
use fleet_tests::process::{binary, run};

fn supervisor(args: &[&str]) -> Output {
    run(Command::new(binary("fleet-supervisor")).args(args))
}

/// Exit code and the standard error, which must be short.
fn refusal(args: &[&str]) -> (i32, String) {
    let output = supervisor(args);
    let (_, error) = texts(&output);
    assert!(error.lines().count() <= 4, "not short:\n{error}");
    (output.status.code().unwrap(), error)
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn state_flag(&self) -> String {
        format!("--state_dir={}", self.0.path().join("state").display())
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

#[test]
fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = Dir::new();
    let (code, error) = refusal(&[
        "start",
        &dir.state_flag(),
        &format!("--server_address={address}"),
    ]);
    assert_eq!(code, 70, "{error}");
    assert!(error.contains(&address), "{error}");
}

#[test]
fn a_bad_certificate_is_named() {
    let dir = Dir::new();
    let cert = dir.file("cert.pem", "not a certificate");
    let key = dir.file("key.pem", "not a key");
    let (code, error) = refusal(&[
        "start",
        &dir.state_flag(),
        "--server_address=127.0.0.1:0",
        &format!("--server_cert={cert}"),
        &format!("--server_key={key}"),
    ]);
    assert_eq!(code, 78, "{error}");
    assert!(error.contains(&cert), "{error}");
}

#[test]
fn an_unreadable_or_wrong_config_is_named() {
    let dir = Dir::new();
    let (code, error) = refusal(&["start", &dir.state_flag(), "--config=/no/such/file.yml"]);
    assert_eq!(code, 78, "{error}");
    assert!(error.contains("/no/such/file.yml"), "{error}");

    let typo = dir.file("typo.yml", "server:\n  adress: 127.0.0.1:0\n");
    let (code, error) = refusal(&["config", "check", &format!("--config={typo}")]);
    assert_eq!(code, 78, "{error}");
    assert!(
        error.contains("adress") && error.contains("address"),
        "{error}"
    );

    let (code, _) = refusal(&["start", &dir.state_flag(), "--workers_count=many"]);
    assert!([64, 78].contains(&code), "{code}");
}

#[test]
fn usage_errors_exit_with_64() {
    assert_eq!(supervisor(&["no-such-command"]).status.code(), Some(64));
    assert_eq!(
        supervisor(&["start", "--no_such_flag"]).status.code(),
        Some(64)
    );
}

#[test]
fn a_second_supervisor_on_the_same_state_is_refused() {
    let gateway = Gateway::start();
    let output = gateway.command(&["start"]);
    let (_, error) = texts(&output);
    assert_eq!(output.status.code(), Some(70), "{error}");
    assert!(
        error.contains(&gateway.supervisor.pid().to_string()),
        "{error}"
    );
}

#[test]
fn dump_masks_secrets_and_is_a_config_again() {
    let dir = Dir::new();
    let config = dir.file(
        "config.yml",
        "mysql:\n  address: db:3306\n  password: hunter2\nserver:\n  address: 127.0.0.1:9\nfilesystem:\n  enable_log_compression: true\n",
    );
    let output = run(Command::new(binary("fleet-supervisor"))
        .args([
            "config",
            "dump",
            &format!("--config={config}"),
            "--server-tls=false",
        ])
        .env("FLEET_WORKERS_COUNT", "7"));
    let (dump, error) = texts(&output);
    assert!(output.status.success(), "{error}");
    assert!(!dump.contains("hunter2"), "{dump}");
    for line in [
        "password: '********'",
        "count: 7",
        "tls: false",
        "127.0.0.1:9",
    ] {
        let plain = line.replace('\'', "").replace("\"", "");
        assert!(
            dump.replace(['\'', '"'], "").contains(&plain),
            "{line} is not in:\n{dump}"
        );
    }
    let again = dir.file("again.yml", &dump);
    assert!(
        supervisor(&["config", "check", &format!("--config={again}")])
            .status
            .success()
    );
}

#[test]
fn secrets_stay_out_of_the_process_list_and_the_log() {
    let gateway = Gateway::options()
        .set("prometheus.basic_auth.username", "p")
        .start();
    for pid in [gateway.worker_pid(0), gateway.control_pid()] {
        let cmdline = fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .unwrap()
            .replace('\0', " ");
        assert!(
            cmdline.starts_with("fleet-supervisor worker --slot 0")
                || cmdline.starts_with("fleet-supervisor control"),
            "{cmdline}"
        );
        // Where this is not root's test, nobody may read it at all.
        let environment = fs::read(format!("/proc/{pid}/environ"));
        let environment = match environment {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => continue,
            read => read.unwrap(),
        };
        assert!(!String::from_utf8_lossy(&environment).contains(&gateway.secret()));
    }
}

#[test]
fn status_shows_every_slot_to_people() {
    let gateway = Gateway::start();
    let output = gateway.command(&["status"]);
    let (table, error) = texts(&output);
    assert!(output.status.success(), "{error}");
    for pid in [
        gateway.worker_pid(0),
        gateway.worker_pid(1),
        gateway.control_pid(),
    ] {
        assert!(
            table.contains(&pid.to_string()),
            "{pid} is not in:\n{table}"
        );
    }
    assert!(table.contains(&gateway.address.to_string()), "{table}");
    assert!(
        table.lines().all(|line| line.chars().count() <= 100),
        "too wide:\n{table}"
    );
}

#[test]
fn version_names_the_program() {
    let output = supervisor(&["version"]);
    assert!(texts(&output).0.contains(env!("CARGO_PKG_VERSION")));
}
