//! The head of a report: where, when and how it was measured.

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;

use crate::lines::calendar_time;

/// What every figure needs beside it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    /// CPU model.
    pub(super) cpu: String,
    /// Cores that the system shows.
    pub(super) cores: usize,
    /// Kernel release.
    pub(super) kernel: String,
    /// Memory.
    pub(super) memory_gib: u64,
    /// Start of the run.
    pub(super) date: String,
    /// The command line, without secrets.
    pub(super) command: String,
    /// This program, its TLS and what built it.
    pub(super) generator: String,
    /// Programs that were measured, with their own words about their version.
    pub(super) versions: BTreeMap<String, String>,
}

impl Machine {
    /// This machine now.
    pub(super) fn read() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let memory_kib: u64 = value(&meminfo, "MemTotal")
            .split(' ')
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or(0);
        Self {
            cpu: value(&cpuinfo, "model name").to_owned(),
            cores: cpuinfo
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            kernel: kernel.trim().to_owned(),
            memory_gib: memory_kib.div_ceil(1 << 20),
            date: calendar_time(crate::unix_now()),
            command: command(std::env::args()),
            generator: format!(
                "fleet-loadtest {}, rustls with aws-lc-rs, built by {} ({})",
                env!("CARGO_PKG_VERSION"),
                env!("FLEET_LOADTEST_RUSTC"),
                env!("FLEET_LOADTEST_PROFILE")
            ),
            versions: BTreeMap::new(),
        }
    }
}

fn value<'a>(text: &'a str, key: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.strip_prefix(key))
        .map_or("unknown", |rest| {
            rest.trim_start_matches([' ', '\t', ':']).trim()
        })
}

fn command(args: impl Iterator<Item = String>) -> String {
    let mut words = Vec::new();
    let mut is_secret = false;
    for (index, word) in args.enumerate() {
        let shown = if is_secret {
            "***".to_owned()
        } else if word.starts_with("--enroll-secret=") {
            "--enroll-secret=***".to_owned()
        } else if index == 0 {
            word.rsplit('/').next().unwrap_or_default().to_owned()
        } else {
            word.clone()
        };
        is_secret = word == "--enroll-secret";
        words.push(shown);
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_stand_in_the_command() {
        let args = [
            "/x/fleet-loadtest",
            "steady",
            "--enroll-secret",
            "hunter2",
            "--json",
        ];
        assert_eq!(
            command(args.into_iter().map(str::to_owned)),
            "fleet-loadtest steady --enroll-secret *** --json"
        );
        let args = ["fleet-loadtest", "--enroll-secret=hunter2"];
        assert!(!command(args.into_iter().map(str::to_owned)).contains("hunter2"));
    }

    #[test]
    fn values_are_found() {
        assert_eq!(value("model name\t: X y\n", "model name"), "X y");
        assert!(Machine::read().cores > 0);
    }
}
