//! Limits of the kernel that one worker runs into.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use fleet_tests::gateway::Gateway;
use fleet_tests::https::TlsStream;
use fleet_tests::process::{is_alive, run};
use fleet_tests::steady_load::under_load;
use fleet_tests::wait;

fn limit_descriptors(pid: u32, limit: &str) {
    let output = run(Command::new("prlimit")
        .arg(format!("--pid={pid}"))
        .arg(format!("--nofile={limit}")));
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_worker_without_descriptors_loses_nothing() {
    // The limit of a process of another user is not ours to change without CAP_SYS_RESOURCE.
    let gateway = Gateway::options().set("server.user", "root").start();
    let pid = gateway.worker_pid(0);
    let verdict = under_load(&gateway, |load| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count();
        load.fault("worker: no descriptors left for 3 s", |_| {
            // Less than what is open: whatever closes makes no room. The hard limit stays.
            limit_descriptors(pid, &format!("{}:", open.saturating_sub(20).max(8)));
            std::thread::sleep(std::time::Duration::from_secs(3));
            limit_descriptors(pid, "4096:");
        });
        assert_eq!(gateway.worker_pid(0), pid, "it is no reason to die");
    });
    verdict.assert_none_cut();
}

/// A memory group of version 1, removed at the end.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// `None`, and a line that says so, where there are none or this is not root.
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("fleet-faults-{}", std::process::id());
        let group = Self(PathBuf::from("/sys/fs/cgroup/memory").join(name));
        let made = std::fs::create_dir(&group.0).and_then(|()| {
            let limit = group.0.join("memory.limit_in_bytes");
            std::fs::write(limit, bytes.to_string())
        });
        match made {
            Ok(()) => Some(group),
            Err(error) => {
                eprintln!(
                    "LEFT OUT: needs a memory group of its own ({error}); run it as root with cgroup v1"
                );
                None
            }
        }
    }

    fn add(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // What is in it moves to the root, or the directory cannot go.
        let procs = std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines() {
            let _ = std::fs::write("/sys/fs/cgroup/memory/cgroup.procs", pid);
        }
        wait::until_or(std::time::Duration::from_secs(10), || {
            std::fs::remove_dir(&self.0).ok()
        });
    }
}

/// A log request of half a megabyte whose end does not come: the worker keeps what it has of it.
fn unfinished(gateway: &Gateway, key: &str) -> Option<TlsStream> {
    let mut stream = gateway.https.connect().ok()?;
    let head = format!(
        "POST /api/osquery/log HTTP/1.1\r\nHost: x\r\nAuthorization: NodeKey {key}\r\nContent-Length: 1000000\r\n\r\n"
    );
    let body = format!(r#"{{"node_key":"{key}","log_type":"result","data":[{{"x":""#);
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()?;
    stream.write_all(&vec![b'x'; 500_000]).ok()?;
    Some(stream)
}

#[test]
fn a_worker_that_is_killed_for_its_memory_takes_nobody_with_it() {
    let Some(group) = MemoryGroup::new(4 << 20) else {
        return;
    };
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "hungry");
    let verdict = under_load(&gateway, |load| {
        let pid = gateway.worker_pid(0);
        load.fault("worker: killed at its memory limit", |_| {
            group.add(pid);
            let mut kept = Vec::new();
            wait::until("the worker meets its limit", || {
                if kept.len() < 100 {
                    kept.extend(unfinished(&gateway, &key));
                }
                (!is_alive(pid)).then_some(())
            });
            gateway.wait_for_successor("/gateway/slots/0", pid);
        });
    });
    verdict.assert_none_refused();
}
