//! What the machine does to a gateway: its disk fills up or fails, its clock jumps.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fleet_protocol::agent::Route;
use fleet_tests::failing_disk::FailingDisk;
use fleet_tests::gateway::Gateway;
use fleet_tests::namespace::{self, mount};
use fleet_tests::process::run;
use fleet_tests::steady_load::{Fault, under_load};
use fleet_tests::wait;
use nix::unistd::Uid;
use serde_json::Value;
use tempfile::TempDir;

/// How long a disk is not itself.
const SPELL: Duration = Duration::from_secs(4);

/// Runs `test` with a loopback of its own; not where that is not permitted.
fn inside(test: impl FnOnce() + Send) {
    if !Uid::effective().is_root() {
        eprintln!("LEFT OUT: a disk of its own needs a mount; run it as root");
        return;
    }
    namespace::inside(|| {
        let output = run(Command::new("ip").args(["link", "set", "lo", "up"]));
        assert!(output.status.success(), "{output:?}");
        test();
    });
}

fn wait_for_health(gateway: &Gateway, status: u16) {
    wait::until(&format!("health is {status}"), || {
        let answer = gateway.https.get("/healthz").ok()?;
        (answer.status == status).then_some(())
    });
}

fn wait_until_logs_are_told(fault: &Fault<'_>) {
    wait::until("agents are told to keep their lines", || {
        let is_told = |(route, kind): &(Route, String)| {
            *route == Route::Log && kind.starts_with("error_object")
        };
        fault.failures().iter().any(is_told).then_some(())
    });
}

/// A small file system of its own on `directory`, which ends with the mount namespace.
fn small_disk(image: &Path, directory: &Path) {
    let file = File::create(image).unwrap();
    file.set_len(48 << 20).unwrap();
    let output = run(Command::new("mkfs.ext4").arg("-q").arg("-m0").arg(image));
    assert!(output.status.success(), "{output:?}");
    std::fs::create_dir_all(directory).unwrap();
    let (image, directory) = (image.to_str().unwrap(), directory.to_str().unwrap());
    mount(&["-o", "loop", image, directory]);
}

/// Writes zeros until there is no room for another byte.
fn fill(path: &Path) {
    use std::io::Write as _;
    let mut file = File::create(path).unwrap();
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    let _ = file.sync_all();
}

#[test]
fn a_full_disk_makes_agents_wait_and_room_lets_them_go_on() {
    inside(|| {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        small_disk(&dir.path().join("image"), &disk);
        let state = tempfile::tempdir_in(&disk).unwrap();
        let gateway = Gateway::start_in(state, Gateway::options());
        let verdict = under_load(&gateway, |load| {
            load.fault("disk: full for 4 s", |fault| {
                let ballast = disk.join("ballast");
                fill(&ballast);
                wait_until_logs_are_told(fault);
                wait_for_health(&gateway, 500);
                std::thread::sleep(SPELL);
                std::fs::remove_file(&ballast).unwrap();
            });
        });
        verdict.assert_none_cut();
        wait_for_health(&gateway, 200);
    });
}

/// The disk under `path` of a state directory refuses to write for a while. Agents keep their lines, and everything comes
/// back by itself.
fn failing_writes(name: &str, path: &str) {
    inside(|| {
        let dir = tempfile::tempdir().unwrap();
        let Some(disk) = FailingDisk::mount(&dir.path().join(path)) else {
            return;
        };
        let mut gateway = Gateway::start_in(dir, Gateway::options());
        let verdict = under_load(&gateway, |load| {
            load.fault(name, |fault| {
                disk.break_writes();
                let broken_at = Instant::now();
                wait_until_logs_are_told(fault);
                wait_for_health(&gateway, 500);
                std::thread::sleep(SPELL);
                let stored = fault.successes_since(broken_at, Route::Log);
                disk.mend_writes();
                assert_eq!(stored, 0, "acknowledged, and not on the disk");
            });
        });
        verdict.assert_none_cut();
        wait_for_health(&gateway, 200);
        // What the kernel could not write it has dropped, and would report success for the next sync of the same file.
        for log_type in ["result", "status"] {
            let directory = gateway.state(&format!("log/osquery_{log_type}"));
            let files = std::fs::read_dir(directory).unwrap().flatten();
            let logs = files.filter(|file| {
                let name = file.file_name().to_string_lossy().into_owned();
                name.contains(".log") && !name.starts_with('.')
            });
            assert!(logs.count() > 1, "{log_type} logs did not go to a new file");
        }
        let log = gateway.log();
        assert!(log.contains("Input/output error"), "another error: {log}");
        let dir = gateway.stop_and_keep();
        // Its directory goes once nothing is mounted there.
        drop(disk);
        drop(dir);
    });
}

#[test]
fn a_journal_whose_disk_fails_makes_agents_wait_and_goes_on_in_a_new_file() {
    failing_writes("disk: EIO for the journal for 4 s", "state/log");
}

#[test]
fn a_disk_that_fails_makes_agents_wait_and_lets_them_go_on() {
    failing_writes("disk: EIO for 4 s", "state");
}

/// The time of day of all processes of a gateway, which a test shifts.
struct Clock {
    dir: TempDir,
}

impl Clock {
    /// Builds the library that shifts; `None`, and a line that says so, where there is no compiler.
    fn new() -> Option<Self> {
        let clock = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        clock.shift_by(0);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("faults/clock.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .arg(clock.library())
            .arg(source)
            .output();
        match built {
            Ok(output) => {
                assert!(output.status.success(), "{output:?}");
                Some(clock)
            }
            Err(error) => {
                eprintln!("LEFT OUT: needs a C compiler: cc: {error}");
                None
            }
        }
    }

    fn library(&self) -> PathBuf {
        self.dir.path().join("clock.so")
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("shift")
    }

    /// From now on, everywhere.
    fn shift_by(&self, seconds: i64) {
        use std::os::unix::fs::FileExt as _;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.file());
        file.unwrap()
            .write_all_at(&seconds.to_ne_bytes(), 0)
            .unwrap();
    }
}

fn clock_jumps(name: &str, step: i64) {
    let Some(clock) = Clock::new() else {
        return;
    };
    let gateway = Gateway::options()
        .env("LD_PRELOAD", clock.library().display())
        .env("FAULTS_CLOCK", clock.file().display())
        .start();
    let verdict = under_load(&gateway, |load| {
        for shift in [step, 0] {
            load.fault(name, |_| {
                clock.shift_by(shift);
                let noted = shift_of(&gateway, &format!("clock-{shift}"));
                assert!(
                    (noted - shift).abs() < 120,
                    "control's clock is {noted} s ahead, not {shift}"
                );
            });
        }
    });
    verdict.assert_none_cut();
}

/// How many seconds control's time of day is ahead of the machine's: by the time that it notes for a new host.
fn shift_of(gateway: &Gateway, name: &str) -> i64 {
    gateway.https.enroll(&gateway.secret(), name);
    let hosts = gateway.ctl(&["get", "hosts", "--json"]);
    // One document on each line.
    let host = hosts
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|host| host.get("spec").cloned().unwrap_or(host))
        .find(|host| host["computer_name"] == *name)
        .unwrap_or_else(|| panic!("no {name} in {hosts}"));
    let noted = host["last_enrolled_at"].as_str().unwrap();
    let seconds = |text: &str| -> i64 {
        let output = run(Command::new("date").args(["-d", text, "+%s"]));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.trim().parse().unwrap()
    };
    seconds(noted) - seconds("now")
}

#[test]
fn a_clock_that_jumps_ahead_and_back_costs_nothing() {
    clock_jumps("clock: one hour ahead, then back", 3600);
}

#[test]
fn a_clock_that_jumps_back_and_ahead_costs_nothing() {
    clock_jumps("clock: one hour back, then ahead", -3600);
}
