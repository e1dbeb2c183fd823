//! One server becomes another while agents are at it: no exchange fails, whatever the new one does.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fleet_tests::gateway::{Gateway, texts};
use fleet_tests::process::{Successor, binary, is_alive, script, signal};
use fleet_tests::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

const AGENTS: usize = 8;
/// Exchanges that must have been made before something happens, and again after it.
const SOME: usize = 100;

/// Agents that enroll, fetch their config, read and log, and what came of it.
struct Load<'a> {
    gateway: &'a Gateway,
    secret: String,
    is_over: AtomicBool,
    exchanges: AtomicUsize,
    failures: Mutex<Vec<String>>,
    acknowledged: Mutex<Vec<String>>,
}

impl<'a> Load<'a> {
    /// Runs `work` under load; then every exchange must have succeeded, and every acknowledged line must be there.
    fn run(gateway: &'a Gateway, work: impl FnOnce(&Self)) {
        let load = Self {
            gateway,
            secret: gateway.secret(),
            is_over: AtomicBool::new(false),
            exchanges: AtomicUsize::new(0),
            failures: Mutex::default(),
            acknowledged: Mutex::default(),
        };
        std::thread::scope(|scope| {
            for agent in 0..AGENTS {
                let load = &load;
                scope.spawn(move || load.play(agent));
            }
            let end = EndOnDrop(&load.is_over);
            load.wait();
            work(&load);
            load.wait();
            drop(end);
        });
        let failures = load.failures.into_inner().unwrap();
        assert!(failures.is_empty(), "{failures:#?}");
        let acknowledged = load.acknowledged.into_inner().unwrap();
        let mut found: HashMap<String, usize> = HashMap::new();
        for text in gateway.journal("result") {
            let line: Value = serde_json::from_str(&text).unwrap();
            let line = line["line"].as_str().unwrap().to_owned();
            *found.entry(line).or_default() += 1;
        }
        for line in &acknowledged {
            assert!(found.contains_key(line), "acknowledged and lost: {line}");
        }
        let again: usize = found.values().map(|count| count - 1).sum();
        println!(
            "{} exchanges, {} lines, {again} of them twice",
            load.exchanges.into_inner(),
            acknowledged.len()
        );
    }

    fn play(&self, agent: usize) {
        let mut n = 0;
        let mut key = None;
        while !self.is_over.load(Ordering::Relaxed) {
            // A new host now and then, and its first exchanges.
            if n % 16 == 0 {
                let body = fleet_tests::https::enroll_body(&self.secret, &format!("h-{agent}-{n}"));
                let answer = self.post("/api/osquery/enroll", &body);
                key = answer.and_then(|object| Some(object.get("node_key")?.as_str()?.to_owned()));
            }
            n += 1;
            let Some(key) = &key else {
                continue;
            };
            self.post("/api/osquery/config", &json!({"node_key": key}));
            self.post("/api/osquery/distributed/read", &json!({"node_key": key}));
            let line = format!("{agent}-{n}");
            let body = json!({"data": [{"line": line}], "log_type": "result", "node_key": key});
            if self.post("/api/osquery/log", &body).is_some() {
                self.acknowledged.lock().unwrap().push(line);
            }
        }
    }

    /// What came back; a failure is noted.
    fn post(&self, path: &str, body: &Value) -> Option<serde_json::Map<String, Value>> {
        let failure = match self.gateway.https.post(path, body) {
            Err(error) => format!("{path}: {error}"),
            Ok(answer) => {
                let object = answer.object();
                let is_good = answer.status == 200 && answer.is_cleanly_closed;
                if is_good && !object.contains_key("error") && !object.contains_key("node_invalid")
                {
                    self.exchanges.fetch_add(1, Ordering::Relaxed);
                    return Some(object);
                }
                format!("{path}: {answer:?}")
            }
        };
        self.failures.lock().unwrap().push(failure);
        None
    }

    /// Until some more exchanges have been made, or have failed.
    fn wait(&self) {
        let all = || self.exchanges.load(Ordering::Relaxed) + self.failures.lock().unwrap().len();
        let before = all();
        wait::until("agents are served", || {
            (all() >= before + SOME).then_some(())
        });
    }
}

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The built program under another path, as a package would install it.
fn copy(dir: &TempDir, name: &str) -> PathBuf {
    let path = dir.path().join(name);
    fs::copy(binary("fleet-supervisor"), &path).unwrap();
    path
}

fn program_of(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap()
}

#[test]
fn an_upgrade_under_load_fails_no_exchange_and_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start();
    let first = gateway.pid();
    let path = copy(&dir, "fleet-next");
    let mut successors = Vec::new();
    let keep = gateway.https.enroll(&gateway.secret(), "kept");
    Load::run(&gateway, |load| {
        let (code, printed) = gateway.upgrade(Some(&path));
        assert_eq!(code, Some(0), "{printed}");
        for part in [
            "is started as pid",
            "descriptors are handed over",
            "worker 1 of the new build serves",
            "Upgraded:",
        ] {
            assert!(printed.contains(part), "{printed}");
        }
        let second = gateway.pid();
        successors.push(Successor(second));
        assert_ne!(second, first);
        assert_eq!(program_of(second), path);
        load.wait();
        // Again, to the one that the command itself runs from.
        let (code, printed) = gateway.upgrade(None);
        assert_eq!(code, Some(0), "{printed}");
        let third = gateway.pid();
        successors.push(Successor(third));
        assert_ne!(third, second);
        assert_eq!(program_of(third), binary("fleet-supervisor"));
    });
    assert_eq!(gateway.supervisor.exit_code(), 0, "{}", gateway.log());
    wait::until("the second supervisor ends", || {
        (!is_alive(successors[0].0)).then_some(())
    });
    let answer = gateway
        .https
        .post("/api/osquery/config", &json!({"node_key": keep}));
    assert_eq!(answer.unwrap().status, 200);
    let output = gateway.command(&["stop"]);
    assert!(output.status.success(), "{output:?}");
    assert!(!gateway.state("run/admin.sock").exists());
    assert!(!gateway.log().contains("went silent"), "{}", gateway.log());
}

#[test]
fn a_binary_that_ends_or_talks_nonsense_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start();
    let (pid, control) = (gateway.pid(), gateway.control_pid());
    Load::run(&gateway, |load| {
        for (text, reason) in [
            ("exit 3", "exit status: 3"),
            (
                "echo fleet-supervisor 9.9.9 >&3; exec sleep 60",
                "speaks another protocol",
            ),
            ("exec 3>&-; exec sleep 60", "closed its channel"),
        ] {
            let (code, printed) = gateway.upgrade(Some(&script(dir.path(), text)));
            assert!(code.is_some_and(|code| code != 0), "{printed}");
            assert!(printed.contains(reason), "{printed}");
            load.wait();
        }
        let nothing = dir.path().join("nothing");
        fs::write(&nothing, "").unwrap();
        let (code, printed) = gateway.upgrade(Some(&nothing));
        assert_eq!(code, Some(78), "{printed}");
        assert!(printed.contains("cannot start"), "{printed}");
    });
    assert_eq!((gateway.pid(), gateway.control_pid()), (pid, control));
}

#[test]
fn a_binary_that_hangs_is_given_up_and_only_one_upgrade_runs() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start();
    let pid = gateway.pid();
    Load::run(&gateway, |_| {
        let path = script(dir.path(), "exec sleep 600");
        std::thread::scope(|scope| {
            let first = scope.spawn(|| gateway.upgrade(Some(&path)));
            wait::until("the first is under way", || {
                gateway.log().contains("an upgrade begins").then_some(())
            });
            let (code, printed) = gateway.upgrade(Some(&path));
            assert_ne!(code, Some(0), "{printed}");
            assert!(printed.contains("an upgrade is under way"), "{printed}");
            let output = gateway.command(&["reload"]);
            let (_, error) = texts(&output);
            assert!(error.contains("an upgrade is under way"), "{error}");
            let (code, printed) = first.join().unwrap();
            assert_eq!(code, Some(70), "{printed}");
            assert!(printed.contains("was not prepared in time"), "{printed}");
        });
    });
    assert_eq!(gateway.pid(), pid);
}

#[test]
fn a_wrong_configuration_is_refused_before_anything_is_touched() {
    let yaml = "server:\n  address: 127.0.0.1:0\n";
    let gateway = Gateway::options().file(yaml).start();
    let (pid, control) = (gateway.pid(), gateway.control_pid());
    for (text, reason) in [
        ("server:\n  address: nonsense\n", "server.address"),
        ("server:\n  address: 127.0.0.2:0\n", "withdraw it first"),
    ] {
        gateway.write_config(text);
        let (code, printed) = gateway.upgrade(None);
        assert_eq!(code, Some(78), "{printed}");
        assert!(printed.contains(reason), "{printed}");
    }
    assert_eq!((gateway.pid(), gateway.control_pid()), (pid, control));
    gateway.https.enroll(&gateway.secret(), "web-1");
}

#[test]
fn a_new_control_that_does_not_serve_gives_way_to_the_old_one() {
    let yaml = "server:\n  address: 127.0.0.1:0\n";
    let gateway = Gateway::options().file(yaml).start();
    let (pid, control) = (gateway.pid(), gateway.control_pid());
    Load::run(&gateway, |_| {
        // A store that refuses connections.
        gateway.write_config(&format!("{yaml}mysql:\n  address: 127.0.0.1:1\n"));
        let (code, printed) = gateway.upgrade(None);
        assert_eq!(code, Some(70), "{printed}");
        assert!(printed.contains("control"), "{printed}");
    });
    assert_eq!(gateway.pid(), pid);
    assert_ne!(gateway.control_pid(), control);
    gateway.write_config(yaml);
    let (code, printed) = gateway.upgrade(None);
    assert_eq!(code, Some(0), "{printed}");
    drop(Successor(gateway.pid()));
}

/// Upgrades, and calls `at` with the new supervisor's number when the line comes.
fn interrupted(gateway: &Gateway, line_part: &str, at: impl Fn(u32)) -> (Option<i32>, u32) {
    let mut child = gateway
        .prepared(&["upgrade"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut pid = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some((_, number)) = line.split_once("is started as pid ") {
            pid = number.trim().parse().unwrap();
        }
        if line.contains(line_part) {
            at(pid);
        }
    }
    (child.wait().unwrap().code(), pid)
}

#[test]
fn a_new_supervisor_that_is_killed_half_way_is_not_missed() {
    let gateway = Gateway::start();
    let pid = gateway.pid();
    Load::run(&gateway, |_| {
        let (code, _) = interrupted(&gateway, "the new one starts", |pid| {
            signal(pid, Signal::SIGKILL);
        });
        assert_eq!(code, Some(70));
        assert_eq!(gateway.pid(), pid);
        wait::until("the old control serves", || {
            (gateway.status()?["control"]["state"] == "ready").then_some(())
        });
    });
}

#[test]
fn when_the_old_supervisor_is_killed_half_way_the_new_one_goes_on() {
    let mut gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    let old = gateway.pid();
    let (code, pid) = interrupted(&gateway, "the new one starts", |_| {
        signal(old, Signal::SIGKILL);
    });
    let _successor = Successor(pid);
    assert_ne!(code, Some(0));
    gateway.supervisor.kill();
    wait::until("the new supervisor serves with everything", || {
        let status = gateway.status()?;
        let slots = status["gateway"]["slots"].as_array()?;
        let is_ready = |part: &Value| part["state"] == "ready";
        let is_whole = status["pid"] == pid && is_ready(&status["control"]);
        (is_whole && slots.iter().all(is_ready)).then_some(())
    });
    let answer = gateway
        .https
        .post("/api/osquery/config", &json!({"node_key": key}))
        .unwrap();
    assert!(!answer.object().contains_key("error"), "{answer:?}");
}

#[test]
fn a_server_that_is_stopped_during_an_upgrade_stops() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start();
    let path = script(dir.path(), "exec sleep 600");
    std::thread::scope(|scope| {
        let upgraded = scope.spawn(|| gateway.upgrade(Some(&path)));
        wait::until("the upgrade begins", || {
            gateway.log().contains("an upgrade begins").then_some(())
        });
        gateway.supervisor.signal(Signal::SIGTERM);
        let (code, printed) = upgraded.join().unwrap();
        assert_eq!(code, Some(69), "{printed}");
        assert!(printed.contains("told to stop"), "{printed}");
    });
    assert_eq!(gateway.supervisor.exit_code(), 0, "{}", gateway.log());
}

#[test]
fn systemd_hears_of_every_change() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    // Read all the time: the kernel keeps a few of them only.
    let all = Mutex::new(Vec::new());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 4096];
            while !is_over.load(Ordering::Relaxed) {
                if let Ok(length) = socket.recv(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    all.lock().unwrap().push(text);
                }
            }
        });
        let _end = EndOnDrop(&is_over);
        play_service(&path, &all);
    });
}

fn play_service(socket: &Path, all: &Mutex<Vec<String>>) {
    let gateway = Gateway::options()
        .env("NOTIFY_SOCKET", socket.display())
        .env("WATCHDOG_USEC", 2_000_000)
        .start();
    // What was heard before is forgotten when everything is there that was waited for.
    let heard = |wanted: &[&str]| {
        wait::until(&format!("{wanted:?}"), || {
            let mut all = all.lock().unwrap();
            let is_there = |what: &&str| all.iter().any(|text| text.starts_with(what));
            wanted.iter().all(is_there).then(|| all.clear())
        });
    };
    heard(&[
        "READY=1",
        "WATCHDOG=1",
        "STATUS=serves: 2 of 2 workers ready",
    ]);
    gateway.supervisor.signal(Signal::SIGHUP);
    heard(&["RELOADING=1\nMONOTONIC_USEC=", "READY=1"]);
    let (code, printed) = gateway.upgrade(None);
    assert_eq!(code, Some(0), "{printed}");
    let successor = Successor(gateway.pid());
    let main_pid = format!("MAINPID={}", successor.0);
    heard(&[&main_pid, "READY=1", "WATCHDOG=1"]);
    drop(successor);
    heard(&["STOPPING=1"]);
}

/// `tests/run` builds it from the commit before this one. `None` when it is not there, or knows no upgrade.
pub(super) fn previous_build() -> Option<PathBuf> {
    let built = binary("fleet-supervisor");
    let previous = built.parent()?.join("../previous/debug/fleet-supervisor");
    let mut asked = std::process::Command::new(&previous);
    let is_good = previous.exists()
        && fleet_tests::process::run(asked.args(["upgrade", "--help"]))
            .status
            .success();
    is_good.then_some(previous)
}

#[test]
fn the_previous_build_is_upgraded_under_load() {
    let Some(previous) = previous_build() else {
        println!("LEFT OUT: there is no previous build that knows upgrade; tests/run builds it");
        return;
    };
    let gateway = Gateway::options().program(&previous).start();
    Load::run(&gateway, |_| {
        let (code, printed) = gateway.upgrade(Some(&binary("fleet-supervisor")));
        assert_eq!(code, Some(0), "{printed}");
    });
    drop(Successor(gateway.pid()));
}
