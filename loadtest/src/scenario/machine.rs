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
    /// As lines over tables.
    pub(super) fn lines(&self) -> String {
        format!(
            "{}\n{}; {} cores; {} GiB; Linux {}; {}\n$ {}",
            self.generator,
            self.cpu,
            self.cores,
            self.memory_gib,
            self.kernel,
            self.date,
            self.command
        )
    }

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
    let words: Vec<String> = without_secrets(args)
        .enumerate()
        .map(|(index, word)| match word.rsplit_once('/') {
            Some((_, program)) if index == 0 => program.to_owned(),
            _ => word,
        })
        .collect();
    words.join(" ")
}

/// A command line in which the values of secret options are stars, those handed on to a server too.
pub(super) fn without_secrets(args: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    let mut is_secret = false;
    args.map(move |word| {
        let shown = match secret_name(&word) {
            _ if is_secret => "***".to_owned(),
            Some(name) if name.len() < word.len() => format!("{name}=***"),
            _ => word.clone(),
        };
        is_secret = !is_secret && secret_name(&word).is_some_and(|name| name == word);
        shown
    })
}

/// The part of an option up to its secret value: `--a-secret` of `--a-secret=x`, `--flag=--b_password` of
/// `--flag=--b_password=x`. `None` when it has none; the names of files are no secrets.
fn secret_name(word: &str) -> Option<&str> {
    let mut end = 0;
    for part in word.split('=') {
        end += part.len();
        let name = part.to_ascii_lowercase();
        let is_option = part.starts_with('-');
        let is_path = ["file", "path"].iter().any(|tail| name.ends_with(tail));
        let is_secret = ["secret", "password", "token"]
            .iter()
            .any(|tail| name.ends_with(tail));
        if is_option && is_secret && !is_path {
            return word.get(..end);
        }
        end += 1;
    }
    None
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
        let args = [
            "fleet-loadtest",
            "--enroll-secret=hun=ter2",
            "--server-flag=--mysql_password=hunter2",
            "--server-flag",
            "--redis_password=hunter2",
            "--enroll-secret-file=f",
            "--seconds=3",
        ];
        assert_eq!(
            command(args.into_iter().map(str::to_owned)),
            "fleet-loadtest --enroll-secret=*** --server-flag=--mysql_password=*** \
             --server-flag --redis_password=*** --enroll-secret-file=f --seconds=3"
        );
    }

    #[test]
    fn values_are_found() {
        assert_eq!(value("model name\t: X y\n", "model name"), "X y");
        assert!(Machine::read().cores > 0);
    }
}
