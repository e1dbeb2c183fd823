//! What `start` says and does about the kernel's settings.

use std::fs;
use std::path::Path;
use std::process::Command;

use fleet_tests::gateway::{Gateway, read, texts};
use fleet_tests::namespace::{inside, make_read_only, mount};
use fleet_tests::process::{binary, run};
use serde_json::Value;

use crate::tune::{all_running, firsts, said, set_all, sysctl_path, wanted};

#[test]
fn start_warns_in_few_lines_and_status_shows_what_does_not_hold() {
    inside(|| {
        fs::write(sysctl_path("net.core.somaxconn"), "128").unwrap();
        let gateway = Gateway::start();
        let log = gateway.log();
        // What comes later is of the processes.
        let (log, _) = log.split_once("self-signed certificate").unwrap();
        let warned: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
        assert!(warned.len() <= 5, "not short:\n{log}");
        assert!(
            log.contains("server.backlog is 4096, but net.core.somaxconn makes it 128"),
            "{log}"
        );
        let last = warned
            .iter()
            .rfind(|line| line.contains("kernel settings"))
            .unwrap();
        assert!(
            last.contains("fleet-supervisor tune --apply --state_dir="),
            "{last}"
        );
        let somaxconn = setting(&gateway, "net.core.somaxconn");
        assert_eq!(
            (&somaxconn["holds"], &somaxconn["now"]),
            (&Value::Bool(false), &Value::from("128"))
        );
        let (text, _) = texts(&gateway.command(&["status"]));
        assert!(
            text.lines()
                .any(|line| line.trim_start().starts_with("net.core.somaxconn")),
            "{text}"
        );
    });
}

fn setting(gateway: &Gateway, key: &str) -> Value {
    let status = gateway.status().unwrap();
    let settings = status["gateway"]["settings"].as_array().unwrap();
    settings
        .iter()
        .find(|setting| setting["key"] == key)
        .unwrap()
        .clone()
}

#[test]
fn start_tunes_by_itself_when_told() {
    inside(|| {
        set_all();
        // What belongs to the whole machine stays as it is, and the files go with this namespace.
        make_read_only("/proc/sys/fs");
        make_read_only("/proc/sys/kernel");
        mount(&["-t", "tmpfs", "none", "/etc"]);
        let gateway = Gateway::options()
            .set("tune.apply", true)
            .set("tune.hosts", 30_000)
            .start();
        assert_eq!(all_running(), wanted(), "{}", gateway.log());
        let log = gateway.log();
        assert!(
            log.contains("tune.apply: net.core.somaxconn: 128 -> 16384"),
            "{log}"
        );
        assert_eq!(setting(&gateway, "net.core.somaxconn")["holds"], true);
        assert!(read(Path::new("/etc/sysctl.d/90-fleet.conf")).contains("somaxconn"));
        let state = gateway.state("");
        drop_gateway_and_revert(gateway, &state);
        assert_eq!(all_running(), firsts());
        assert!(!Path::new("/etc/sysctl.d").exists());
    });
}

fn drop_gateway_and_revert(mut gateway: Gateway, state: &Path) {
    assert_eq!(gateway.stop(), 0);
    let output = run(Command::new(binary("fleet-supervisor"))
        .args(["tune", "--revert"])
        .arg(format!("--state_dir={}", state.display())));
    assert_eq!(said(&output).0, 0, "{output:?}");
}

#[test]
fn a_limit_below_what_works_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "ulimit -n 60; exec {} start --workers_count=2 --server_address=127.0.0.1:0 --state_dir={}",
        binary("fleet-supervisor").display(),
        dir.path().join("state").display()
    );
    let (code, text) = said(&run(Command::new("sh").arg("-c").arg(script)));
    assert_eq!(code, 70, "{text}");
    assert!(
        text.contains("only 60 are allowed") && text.contains("LimitNOFILE"),
        "{text}"
    );
    assert!(text.lines().count() <= 4, "not short:\n{text}");
}
