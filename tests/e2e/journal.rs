//! The journal: disks that are full or fail, batches that come twice, damage that is found.

use fleet_tests::gateway::{Gateway, texts};
use fleet_tests::loop_disk::{LoopDisk, fill};
use fleet_tests::wait;
use serde_json::{Value, json};

/// The value of a metric of one log type.
fn metric(gateway: &Gateway, name: &str) -> u64 {
    let text = String::from_utf8(gateway.https.get("/metrics").unwrap().body).unwrap();
    let begin = format!("{name}{{log_type=\"result\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&begin));
    value
        .unwrap_or_else(|| panic!("no {name} in {text}"))
        .parse()
        .unwrap()
}

fn lines_of(path: &std::path::Path) -> Vec<Value> {
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let text = fleet_tests::gateway::read(&path);
            lines.extend(
                text.lines()
                    .map(|line| serde_json::from_str::<Value>(line).unwrap()),
            );
        }
    }
    lines
}

/// Logs to a disk of its own.
struct Bench {
    // Ends before its disk.
    gateway: Gateway,
    disk: LoopDisk,
    key: String,
    acknowledged: Vec<u64>,
    next: u64,
}

impl Bench {
    /// `None` where mounting is not allowed.
    fn start(test: &str) -> Option<Self> {
        let Some(disk) = LoopDisk::mount(24) else {
            eprintln!("SKIPPED {test}: mounting a file system needs root");
            return None;
        };
        let gateway = Gateway::options()
            .set(
                "filesystem.result_log_file",
                format!("{}/", disk.path().display()),
            )
            .set("prometheus.basic_auth.disable", true)
            .start();
        let key = gateway.https.enroll(&gateway.secret(), "web-1");
        Some(Self {
            gateway,
            disk,
            key,
            acknowledged: Vec::new(),
            next: 0,
        })
    }

    /// Logs 64 KiB; whether they were taken.
    fn log(&mut self) -> bool {
        self.next += 1;
        let data = json!([{"n": self.next, "x": "y".repeat(64 << 10)}]);
        let body = json!({"node_key": self.key, "log_type": "result", "data": data});
        let answer = self
            .gateway
            .https
            .post("/api/osquery/log", &body)
            .unwrap()
            .object();
        assert!(!answer.contains_key("node_invalid"), "{answer:?}");
        if answer.is_empty() {
            self.acknowledged.push(self.next);
        } else {
            assert!(answer.contains_key("error"), "{answer:?}");
        }
        answer.is_empty()
    }

    fn is_healthy(&self) -> bool {
        let status = self
            .gateway
            .https
            .get("/healthz?check=journal")
            .unwrap()
            .status;
        assert!(status == 200 || status == 500, "{status}");
        status == 200
    }

    /// Everything that was acknowledged is there, once, and nothing that was not.
    fn check(mut self) {
        assert!(self.log() && self.log());
        let mut stored: Vec<u64> = lines_of(self.disk.path())
            .iter()
            .map(|line| line["n"].as_u64().unwrap())
            .collect();
        stored.sort_unstable();
        assert_eq!(stored, self.acknowledged);
        let output = self.gateway.command(&["journal", "verify", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(
            output.status.success() && report["is_sound"] == true,
            "{report}"
        );
        assert_eq!(self.gateway.https.get("/healthz").unwrap().status, 200);
        assert_eq!(self.gateway.stop(), 0, "{}", self.gateway.log());
    }
}

#[test]
fn a_full_disk_refuses_logs_and_takes_them_again_by_itself() {
    let Some(mut bench) = Bench::start("a_full_disk_refuses_logs") else {
        return;
    };
    assert!(bench.log() && bench.is_healthy());
    // Somebody else's file takes most of it.
    let (large, small) = (
        bench.disk.path().join("large"),
        bench.disk.path().join("small"),
    );
    std::fs::write(&large, vec![7; 8 << 20]).unwrap();
    let mut taken = 0;
    while bench.log() {
        taken += 1;
        assert!(taken < 1000, "never full");
    }
    // The journal stops early and leaves some to others.
    let left = fill(&small);
    assert!(left > 512 << 10, "only {left} bytes were left to others");
    for _ in 0..5 {
        assert!(!bench.log());
    }
    wait::until("health says so", || (!bench.is_healthy()).then_some(()));
    assert_eq!(bench.gateway.https.get("/healthz").unwrap().status, 500);
    bench.gateway.https.enroll(&bench.gateway.secret(), "web-2");
    let log = bench.gateway.log();
    assert!(
        log.contains("no room: "),
        "the reason is not in the log: {log}"
    );
    std::fs::remove_file(large).unwrap();
    std::fs::remove_file(small).unwrap();
    wait::until("service resumes", || bench.is_healthy().then_some(()));
    bench.check();
}

/// Writes go to the page cache, and fail on the way to the disk.
#[test]
fn lines_whose_sync_fails_are_refused_and_go_to_a_new_file_afterwards() {
    let Some(mut bench) = Bench::start("lines_whose_sync_fails") else {
        return;
    };
    for _ in 0..3 {
        assert!(bench.log());
    }
    bench.disk.break_free_blocks();
    wait::until("a sync fails", || (!bench.log()).then_some(()));
    for _ in 0..5 {
        assert!(!bench.log());
    }
    wait::until("health says so", || (!bench.is_healthy()).then_some(()));
    assert_eq!(bench.gateway.https.get("/healthz").unwrap().status, 500);
    bench.disk.repair_free_blocks();
    wait::until("service resumes", || bench.is_healthy().then_some(()));
    wait::until("logs are taken", || bench.log().then_some(()));
    assert!(metric(&bench.gateway, "fleet_control_journal_retired_total") >= 1);
    bench.check();
}

#[test]
fn a_batch_that_comes_again_is_stored_once() {
    let gateway = Gateway::options()
        .set("prometheus.basic_auth.disable", true)
        .start();
    let keys = ["web-1", "web-2"].map(|name| gateway.https.enroll(&gateway.secret(), name));
    // Each on a connection of its own, so on either worker.
    for _ in 0..6 {
        for key in &keys {
            let data = json!([{"a": 1}, {"b": 2}]);
            let body = json!({"node_key": key, "log_type": "result", "data": data});
            assert!(
                gateway
                    .https
                    .post("/api/osquery/log", &body)
                    .unwrap()
                    .object()
                    .is_empty()
            );
        }
    }
    assert_eq!(gateway.journal("result").len(), 4, "each host's own");
    assert_eq!(
        metric(&gateway, "fleet_control_journal_duplicate_batches_total"),
        10
    );
    assert_eq!(
        metric(&gateway, "fleet_control_journal_duplicate_lines_total"),
        20
    );
    assert_eq!(metric(&gateway, "fleet_control_journal_lines_total"), 4);
}

#[test]
fn damage_is_found_and_named() {
    let gateway = Gateway::start();
    let key = gateway.https.enroll(&gateway.secret(), "web-1");
    for n in 0..3 {
        let body = json!({"node_key": key, "log_type": "result", "data": [{"n": n}]});
        assert!(
            gateway
                .https
                .post("/api/osquery/log", &body)
                .unwrap()
                .object()
                .is_empty()
        );
    }
    let output = gateway.command(&["journal", "verify"]);
    assert!(output.status.success(), "{:?}", texts(&output));
    let log = gateway.state("log/osquery_result/osquery_result.log");
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::write(&log, text.replace("\"n\":0", "\"n\":9")).unwrap();
    let output = gateway.command(&["journal", "verify"]);
    let (text, _) = texts(&output);
    assert_eq!(output.status.code(), Some(65), "{text}");
    assert!(
        text.contains("DAMAGED") && text.contains("at 0: 8 bytes, 1 lines of host 1"),
        "{text}"
    );
}
