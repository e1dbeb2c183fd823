//! A machine of files below a temporary directory: changed, changed again, put back.

use std::collections::BTreeMap;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::probe::{look, probe};
use crate::record::RECORD_FILE;
use crate::revert::revert;
use crate::settings::{PORT_RANGE, SOMAXCONN, TCP_MEM};
use crate::size::Size;

const SIZE: Size = Size {
    hosts: 30_000,
    cores: 2,
    memory_bytes: 8 << 30,
    page_bytes: 4096,
    connections: 30_000,
    listeners: 2,
};

/// What a plain kernel says.
const RUNNING: &[(&str, &str)] = &[
    ("proc/sys/kernel/osrelease", "5.10.0-fake\n"),
    ("proc/sys/kernel/pid_max", "32768\n"),
    ("proc/sys/kernel/threads-max", "63000\n"),
    ("proc/sys/fs/nr_open", "1048576\n"),
    ("proc/sys/fs/file-max", "9223372036854775807\n"),
    ("proc/sys/net/core/somaxconn", "128\n"),
    ("proc/sys/net/ipv4/ip_local_port_range", "40000\t64000\n"),
    ("proc/sys/net/ipv4/tcp_mem", "10\t999999999\t999999999\n"),
    ("proc/sys/net/ipv4/tcp_tw_reuse", "2\n"),
    ("proc/sys/net/ipv4/tcp_slow_start_after_idle", "1\n"),
    (
        "proc/self/limits",
        "Max open files            1024                 4096                 files\n",
    ),
    ("proc/self/cgroup", "0::/a/b\n"),
    ("sys/fs/cgroup/a/pids.max", "64\n"),
    ("sys/fs/cgroup/a/b/pids.max", "max\n"),
    (
        "sys/kernel/mm/transparent_hugepage/enabled",
        "[always] madvise never\n",
    ),
];

struct Machine {
    dir: TempDir,
    roots: Roots,
}

impl Machine {
    fn new(extra: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in RUNNING.iter().chain(extra) {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let roots = Roots::under(dir.path());
        assert_eq!(roots.running, dir.path());
        Self { dir, roots }
    }

    fn record(&self) -> PathBuf {
        self.dir.path().join("state").join(RECORD_FILE)
    }

    fn apply(&self, only: &[&str], extent: Extent) -> Report {
        let only: Vec<String> = only.iter().map(|key| (*key).to_owned()).collect();
        let findings = probe(&self.roots, &SIZE, &only);
        apply(&self.roots, &findings, &self.record(), extent).unwrap()
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.dir.path().join(path.trim_start_matches('/'))).unwrap_or_default()
    }

    /// Every file and directory but the state.
    fn snapshot(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut dirs = vec![self.dir.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.ends_with("state") {
                    continue;
                }
                if path.is_dir() {
                    dirs.push(path.clone());
                    found.insert(path, String::new());
                } else {
                    let text = fs::read_to_string(&path).unwrap();
                    // The kernel writes its numbers with tabs, whoever set them.
                    found.insert(path, words(&text).join(" "));
                }
            }
        }
        found
    }
}

fn done<'a>(report: &'a Report, key: &str) -> &'a Done {
    &report
        .changes
        .iter()
        .find(|change| change.key == key)
        .unwrap()
        .done
}

#[test]
fn what_is_low_is_changed_kept_and_put_back() {
    let machine = Machine::new(&[]);
    let before = machine.snapshot();
    let report = machine.apply(&[], Extent::default());
    assert_eq!(done(&report, SOMAXCONN), &Done::Changed);
    assert_eq!(machine.read("proc/sys/net/core/somaxconn").trim(), "16384");
    assert_eq!(
        machine.read("proc/sys/net/ipv4/ip_local_port_range").trim(),
        "32768 64000"
    );
    assert_eq!(
        machine.read("proc/sys/net/ipv4/tcp_mem").trim(),
        "30000 999999999 999999999"
    );
    assert_eq!(machine.read("proc/sys/net/ipv4/tcp_tw_reuse").trim(), "1");
    let kept = machine.read(SYSCTL_FILE);
    for line in [
        "net.core.somaxconn = 16384",
        "net.ipv4.ip_local_port_range = 32768 64000",
    ] {
        assert!(
            kept.lines().any(|have| have == line),
            "{line} is not in\n{kept}"
        );
    }
    assert!(
        !kept.contains("fs.nr_open"),
        "nothing was wrong with it:\n{kept}"
    );
    assert!(
        machine
            .read(LIMITS_FILE)
            .contains("root hard nofile 1024000")
    );
    assert!(
        machine
            .read(DROP_IN_FILE)
            .contains("LimitNOFILE=1024000:1024000")
    );
    // The group's bound is not ours.
    assert!(matches!(done(&report, "pids.max"), Done::Failed(_)));

    let record = machine.read("state/tune.json");
    let again = machine.apply(
        &["net", "fs", "kernel", "nofile", "Limit", "Tasks"],
        Extent::default(),
    );
    assert!(again.is_empty(), "{again:?}");
    assert_eq!(machine.read("state/tune.json"), record);

    let reverted = revert(&machine.roots, &machine.record(), false).unwrap();
    assert!(!reverted.has_failed());
    assert_eq!(machine.snapshot(), before);
    assert!(!machine.record().exists());
    assert!(
        revert(&machine.roots, &machine.record(), false)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn parts_add_up_and_the_first_values_are_restored() {
    let own = "# by hand\nvm.swappiness = 10\nnet.core.somaxconn = 200\n";
    let machine = Machine::new(&[("etc/sysctl.d/90-fleet.conf", own)]);
    let before = machine.snapshot();
    machine.apply(&[SOMAXCONN], Extent::default());
    machine.apply(&[PORT_RANGE], Extent::default());
    let larger = Size {
        hosts: 100_000,
        ..SIZE
    };
    let finding = look(&machine.roots, &larger, settings::find(SOMAXCONN).unwrap());
    apply(
        &machine.roots,
        &[finding],
        &machine.record(),
        Extent::default(),
    )
    .unwrap();
    let kept = machine.read(SYSCTL_FILE);
    for line in [
        "net.core.somaxconn = 65535",
        "net.ipv4.ip_local_port_range = 32768 64000",
        "vm.swappiness = 10",
    ] {
        assert!(
            kept.lines().any(|have| have == line),
            "{line} is not in\n{kept}"
        );
    }
    assert_eq!(kept.matches("somaxconn").count(), 1);
    revert(&machine.roots, &machine.record(), false).unwrap();
    assert_eq!(machine.snapshot(), before);
    assert_eq!(machine.read(SYSCTL_FILE), own);
}

#[test]
fn a_dry_run_changes_nothing() {
    let machine = Machine::new(&[]);
    let before = machine.snapshot();
    let dry = Extent {
        is_dry: true,
        files_only: false,
    };
    let report = machine.apply(&[], dry);
    assert_eq!(done(&report, SOMAXCONN), &Done::Would);
    assert_eq!(report.files.len(), 3);
    assert_eq!(machine.snapshot(), before);
    assert!(!machine.record().exists());
}

#[test]
fn files_alone_hold_every_setting() {
    let machine = Machine::new(&[]);
    let files_only = Extent {
        is_dry: false,
        files_only: true,
    };
    machine.apply(&[], files_only);
    assert_eq!(machine.read("proc/sys/net/core/somaxconn"), "128\n");
    let kept = machine.read(SYSCTL_FILE);
    // Not on this kernel, but perhaps on the one that reads the file.
    for line in ["-net.ipv4.tcp_migrate_req = 1", "fs.nr_open = 1048576"] {
        assert!(
            kept.lines().any(|have| have == line),
            "{line} is not in\n{kept}"
        );
    }
    assert!(machine.apply(&[], files_only).is_empty());
}

#[test]
fn one_that_fails_does_not_stop_the_others() {
    let machine = Machine::new(&[]);
    // A directory cannot be written, not even by root.
    let path = machine.dir.path().join("proc/sys/net/ipv4/tcp_tw_reuse");
    let findings = probe(&machine.roots, &SIZE, &["net".into()]);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let report = apply(
        &machine.roots,
        &findings,
        &machine.record(),
        Extent::default(),
    )
    .unwrap();
    assert!(matches!(
        done(&report, "net.ipv4.tcp_tw_reuse"),
        Done::Failed(_)
    ));
    assert_eq!(done(&report, TCP_MEM), &Done::Changed);
    assert!(report.has_failed());
    assert!(!machine.read(SYSCTL_FILE).contains("tw_reuse"));
    assert!(!machine.read("state/tune.json").contains("tw_reuse"));
}

#[test]
fn findings_say_why_something_is_not_there() {
    let machine = Machine::new(&[]);
    let note = |key: &str| look(&machine.roots, &SIZE, settings::find(key).unwrap()).note;
    assert_eq!(
        note("net.ipv4.tcp_migrate_req"),
        "this kernel is 5.10; the setting came with 5.14"
    );
    assert_eq!(
        note("net.netfilter.nf_conntrack_max"),
        "the module nf_conntrack is not loaded"
    );
    assert!(note("net.core.rmem_max").contains("namespace"));
    let group = look(&machine.roots, &SIZE, settings::find("pids.max").unwrap());
    assert_eq!((group.now.as_str(), group.verdict), ("64", Verdict::Low));
    let unit = look(&machine.roots, &SIZE, settings::find(LIMIT_NOFILE).unwrap());
    assert_eq!(unit.now, "1024 524288");
    let tasks = look(&machine.roots, &SIZE, settings::find(TASKS_MAX).unwrap());
    assert_eq!(
        (tasks.now.as_str(), tasks.verdict),
        ("4915", Verdict::Holds)
    );
}

#[test]
fn the_units_own_lines_and_its_drop_ins_count() {
    let machine = Machine::new(&[
        (
            "usr/lib/systemd/system/fleet-supervisor.service",
            "[Service]\nLimitNOFILE=1048576\nTasksMax=infinity\n",
        ),
        (
            "etc/systemd/system/fleet-supervisor.service.d/10-x.conf",
            "[Service]\nTasksMax=20\n",
        ),
    ]);
    let of = |key: &str| look(&machine.roots, &SIZE, settings::find(key).unwrap());
    assert_eq!(of(LIMIT_NOFILE).verdict, Verdict::Holds);
    assert_eq!(of(TASKS_MAX).now, "20");
    machine.apply(&["Tasks"], Extent::default());
    assert_eq!(of(TASKS_MAX).now, "1056");
    assert!(!machine.read(DROP_IN_FILE).contains("LimitNOFILE"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Whatever a kernel says, it comes back after any two sizes, and nothing is lowered between.
    #[test]
    fn any_machine_comes_back(
        somaxconn in 1..100_000_u64, low in 1..30_000_u64, high in 30_000..65_535_u64, mem in 1..1_000_000_u64, hosts in 1..500_000_u64,
    ) {
        let machine = Machine::new(&[
            ("proc/sys/net/core/somaxconn", &format!("{somaxconn}\n")),
            ("proc/sys/net/ipv4/ip_local_port_range", &format!("{low}\t{high}\n")),
            ("proc/sys/net/ipv4/tcp_mem", &format!("{mem}\t{mem}\t{mem}\n")),
        ]);
        let before = machine.snapshot();
        for hosts in [hosts, hosts * 2] {
            let size = Size { hosts, connections: hosts, ..SIZE };
            let findings = probe(&machine.roots, &size, &[]);
            apply(&machine.roots, &findings, &machine.record(), Extent::default()).unwrap();
            for finding in probe(&machine.roots, &size, &["net".into()]) {
                prop_assert!(finding.verdict.is_good(), "{finding:?}");
            }
            let now = value::parse(&machine.read("proc/sys/net/core/somaxconn")).unwrap();
            prop_assert!(now[0] >= somaxconn);
        }
        revert(&machine.roots, &machine.record(), false).unwrap();
        prop_assert_eq!(machine.snapshot(), before);
    }
}
