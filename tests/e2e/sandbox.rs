//! Who the processes are and what they may, as the kernel tells it; and that all works while they are confined.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use fleet_tests::gateway::{Gateway, read, texts};
use fleet_tests::process::signal;
use nix::sys::signal::Signal;
use nix::unistd::Uid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A line of `/proc/PID/task/TID/status`, for each thread.
fn each_thread(pid: u32, field: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .filter_map(|task| {
            let status = read(&task.unwrap().path().join("status"));
            // A thread may have ended meanwhile.
            let line = status.lines().find_map(|line| line.strip_prefix(field))?;
            Some(line.trim().to_owned())
        })
        .collect()
}

fn assert_confined(pid: u32, uid: u32) {
    let none = "0000000000000000";
    let uids = vec![uid.to_string(); 4].join("\t");
    let mut expected = vec![
        ("Uid:", uids.as_str()),
        ("CapInh:", none),
        ("CapPrm:", none),
        ("CapEff:", none),
        ("CapAmb:", none),
        ("NoNewPrivs:", "1"),
        ("Seccomp:", "2"),
    ];
    if Uid::effective().is_root() {
        // Who has no rights cannot give up the right to get some; no_new_privs does it for them.
        expected.push(("CapBnd:", none));
    }
    for (field, value) in expected {
        let found = each_thread(pid, field);
        assert!(!found.is_empty(), "{pid} {field}");
        for thread in found {
            assert_eq!(thread, value, "{pid} {field}");
        }
    }
    let limits = read(Path::new(&format!("/proc/{pid}/limits")));
    let cores = limits.lines().find(|line| line.starts_with("Max core"));
    let cores: Vec<_> = cores.unwrap().split_whitespace().collect();
    assert_eq!(cores[4..6], ["0", "0"], "{limits}");
}

fn uid_of(status: &Value, process: &str) -> u32 {
    let views = status["gateway"]["sandboxes"].as_array().unwrap().iter();
    let mut found = views.filter(|view| view["process"] == process);
    let sandbox = &found.next().unwrap()["sandbox"];
    assert_ne!(sandbox["level"], "none", "{sandbox}");
    sandbox["uid"].as_u64().unwrap().try_into().unwrap()
}

/// A host enrolls, logs, and is shown to an operator; through a tunnel, too.
fn use_everything(gateway: &Gateway, name: &str) {
    let key = gateway.https.enroll(&gateway.secret(), name);
    let before = gateway.journal("result").len();
    let log = json!({"node_key": key, "log_type": "result", "data": [{"name": "q", "n": 7}]});
    let answer = gateway
        .https
        .post("/api/v1/osquery/log", &log)
        .unwrap()
        .object();
    assert!(!answer.contains_key("error"), "{answer:?}");
    assert_eq!(gateway.journal("result").len(), before + 1);
    assert!(gateway.ctl(&["get", "hosts"]).contains(name));
    assert_eq!(gateway.https.get("/healthz").unwrap().status, 200);
}

fn directory(mode: u32) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
    dir
}

/// A directory that everybody may pass through.
fn open_directory() -> TempDir {
    directory(0o755)
}

#[test]
fn children_have_no_rights_and_keep_working_over_restarts() {
    let mut gateway = Gateway::start_in(open_directory(), Gateway::options());
    let is_root = Uid::effective().is_root();
    for round in 0..2 {
        let status = gateway.status().unwrap();
        let (worker, control) = (uid_of(&status, "worker 0"), uid_of(&status, "control"));
        let own = Uid::effective().as_raw();
        assert_eq!(worker != own, is_root);
        assert_eq!(control, worker);
        for pid in [gateway.worker_pid(0), gateway.worker_pid(1)] {
            assert_confined(pid, worker);
            if is_root {
                let root = fs::read_link(format!("/proc/{pid}/root")).unwrap();
                assert_eq!(root, gateway.state("run"));
            }
        }
        assert_confined(gateway.control_pid(), control);
        use_everything(&gateway, &format!("host-{round}"));

        // Its successors find everything as it did.
        for (pointer, pid) in [
            ("/control", gateway.control_pid()),
            ("/gateway/slots/0", gateway.worker_pid(0)),
        ] {
            signal(pid, Signal::SIGKILL);
            gateway.wait_for_successor(pointer, pid);
        }
        use_everything(&gateway, &format!("host-{round}-again"));
        gateway = gateway.restart();
    }
    if is_root {
        let owner = |name: &str| fs::metadata(gateway.state(name)).unwrap().uid();
        let of_control = ["store.sqlite", "log/osquery_result/osquery_result.log"];
        for name in of_control {
            assert_ne!(owner(name), 0, "{name}");
        }
        for name in [
            "",
            "tls/key.pem",
            "enroll_secret",
            "run",
            "run/operator.sock",
            "run/admin.sock",
        ] {
            assert_eq!(owner(name), 0, "{name:?}");
        }
        let mode = fs::metadata(gateway.state("")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o1770, "{mode:o}");
        let (text, _) = texts(&gateway.command(&["status"]));
        assert!(
            text.contains("sandbox (control, worker): full, uid ")
                || text.contains("sandbox (worker, control): full, uid "),
            "{text}"
        );
    }
}

#[test]
fn below_a_closed_directory_control_is_root_without_its_rights() {
    if !Uid::effective().is_root() {
        // Then nobody becomes anybody.
        return;
    }
    let gateway = Gateway::start_in(directory(0o700), Gateway::options());
    let status = gateway.status().unwrap();
    assert_eq!(uid_of(&status, "control"), 0);
    assert_confined(gateway.control_pid(), 0);
    let worker = uid_of(&status, "worker 0");
    assert_ne!(worker, 0);
    assert_confined(gateway.worker_pid(0), worker);
    let log = gateway.log();
    assert_eq!(log.matches("control stays root").count(), 1, "{log}");
    use_everything(&gateway, "below");
}

#[test]
fn a_state_of_another_user_is_taken_over() {
    if !Uid::effective().is_root() {
        return;
    }
    let unconfined = || Gateway::options().set("server.user", "root");
    let mut gateway = Gateway::start_in(open_directory(), unconfined());
    use_everything(&gateway, "first");
    let of_root =
        |gateway: &Gateway| fs::metadata(gateway.state("store.sqlite")).unwrap().uid() == 0;
    assert!(of_root(&gateway));
    assert!(gateway.log().contains("server.user is root"));
    let dir = gateway.stop_and_keep();
    let mut gateway = Gateway::start_in(dir, Gateway::options());
    assert!(!of_root(&gateway));
    assert!(gateway.ctl(&["get", "hosts"]).contains("first"));
    use_everything(&gateway, "second");
    let dir = gateway.stop_and_keep();
    let gateway = Gateway::start_in(dir, unconfined());
    assert!(of_root(&gateway));
    use_everything(&gateway, "third");
}

#[test]
fn the_sandbox_can_be_switched_off_and_says_so() {
    let gateway = Gateway::options().set("server.sandbox", false).start();
    let pid = gateway.worker_pid(0);
    assert!(
        each_thread(pid, "Seccomp:")
            .iter()
            .all(|found| found == "0")
    );
    assert!(gateway.log().contains("server.sandbox is off"));
    let (text, _) = texts(&gateway.command(&["status"]));
    assert!(text.contains(": none, uid "), "{text}");
    use_everything(&gateway, "open");
}
