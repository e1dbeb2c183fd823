//! Upgrades that go wrong, one that goes well, and a reload of everything: no agent notices any of them.

use std::fs;
use std::path::{Path, PathBuf};

use fleet_tests::gateway::{Gateway, texts};
use fleet_tests::https::Https;
use fleet_tests::process::{Successor, script};
use fleet_tests::steady_load::{Load, Plan, under_load};
use fleet_tests::wait;
use serde_json::Value;
use tempfile::TempDir;

/// Upgrades to a script, which fails for `reason`; the old server goes on with the same processes.
fn upgrade_fails(name: &str, text: &str, reason: &str) {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start();
    let pids = || (gateway.pid(), gateway.control_pid(), gateway.worker_pid(0));
    let before = pids();
    let path = script(dir.path(), text);
    let verdict = under_load(&gateway, |load| {
        load.fault(name, |fault| {
            let (code, printed) = gateway.upgrade(Some(&path));
            assert_ne!(code, Some(0), "{printed}");
            assert!(printed.contains(reason), "{printed}");
            fault.wait_for_successes();
        });
    });
    assert_eq!(before, pids());
    verdict.assert_none_failed();
}

#[test]
fn nobody_notices_an_upgrade_to_a_binary_that_crashes() {
    // As a shell tells of it.
    let text = "kill -SEGV $$";
    upgrade_fails("upgrade: to a binary that crashes", text, "signal: 11");
}

#[test]
fn nobody_notices_an_upgrade_to_a_binary_that_hangs() {
    let text = "exec sleep 600";
    upgrade_fails(
        "upgrade: to a binary that hangs",
        text,
        "was not prepared in time",
    );
}

#[test]
fn nobody_notices_an_upgrade_to_a_binary_that_speaks_another_protocol() {
    let text = "echo fleet-supervisor 9.9.9 >&3; exec sleep 60";
    upgrade_fails(
        "upgrade: to a binary of another protocol",
        text,
        "speaks another protocol",
    );
}

#[test]
fn nobody_notices_an_upgrade() {
    let gateway = Gateway::start();
    let before = gateway.pid();
    let mut successors = Vec::new();
    let verdict = under_load(&gateway, |load| {
        load.fault("upgrade: to a good binary", |fault| {
            let (code, printed) = gateway.upgrade(None);
            assert_eq!(code, Some(0), "{printed}");
            successors.push(Successor(gateway.pid()));
            fault.wait_for_successes();
        });
    });
    assert_ne!(before, gateway.pid());
    verdict.assert_none_failed();
}

/// A certificate with its key, as `server.cert` and `server.key` name them.
struct Pair {
    cert: String,
    key: String,
}

impl Pair {
    fn new() -> Self {
        let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        Self {
            cert: pair.cert.pem(),
            key: pair.signing_key.serialize_pem(),
        }
    }

    fn write(&self, dir: &Path) {
        fs::write(dir.join("cert.pem"), &self.cert).unwrap();
        fs::write(dir.join("key.pem"), &self.key).unwrap();
    }
}

fn yaml(dir: &Path, workers: u16, burst: u32, debug: bool) -> String {
    format!(
        "server:\n  address: 127.0.0.1:0\n  cert: {0}/cert.pem\n  key: {0}/key.pem\n\
         workers:\n  count: {workers}\nlimits:\n  host_rate: {burst}\n  host_burst: {burst}\n\
         logging:\n  debug: {debug}\n",
        dir.display()
    )
}

fn trust(dir: &TempDir, name: &str, pairs: &[&Pair]) -> PathBuf {
    let path = dir.path().join(name);
    let texts: String = pairs.iter().map(|pair| pair.cert.as_str()).collect();
    fs::write(&path, texts).unwrap();
    path
}

fn wait_for_workers(gateway: &Gateway, count: usize) {
    wait::until(&format!("{count} workers"), || {
        let status = gateway.status()?;
        let slots = status["gateway"]["slots"].as_array()?;
        let is_ready = |slot: &Value| slot["state"] == "ready";
        (slots.len() == count && slots.iter().all(is_ready)).then_some(())
    });
}

#[test]
fn nobody_notices_a_reload_of_everything() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = [Pair::new(), Pair::new()];
    pairs[0].write(dir.path());
    let gateway = Gateway::options()
        .file(&yaml(dir.path(), 2, 5_000, false))
        .start();
    let plan = Plan {
        trust: Some(trust(&dir, "both.pem", &[&pairs[0], &pairs[1]])),
        ..Plan::default()
    };
    let trusts_new = Https::new(gateway.address, &trust(&dir, "new.pem", &[&pairs[1]]));
    assert!(trusts_new.get("/healthz").is_err());
    let mut load = Load::settled(&gateway, plan);
    load.fault("reload: certificate, limits, log, workers", |fault| {
        pairs[1].write(dir.path());
        gateway.write_config(&yaml(dir.path(), 3, 10_000, true));
        let output = gateway.command(&["reload"]);
        let (out, error) = texts(&output);
        assert!(output.status.success(), "{out}{error}");
        assert!(out.contains("3 workers"), "{out}{error}");
        wait_for_workers(&gateway, 3);
        fault.wait_for_successes();
        gateway.write_config(&yaml(dir.path(), 1, 10_000, false));
        let output = gateway.command(&["reload"]);
        assert!(output.status.success(), "{:?}", texts(&output));
        wait_for_workers(&gateway, 1);
        fault.wait_for_successes();
    });
    // The one worker that is left shows the new certificate only.
    assert_eq!(trusts_new.get("/version").unwrap().status, 200);
    load.finish(&gateway).assert_none_failed();
}
