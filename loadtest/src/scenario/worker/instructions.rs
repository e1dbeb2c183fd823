//! Instructions of user space, counted by callgrind: the difference between a short and a long run, so that start and
//! end cancel out.
//!
//! What cryptography and libc execute depends on the processor's extensions (and on which of them valgrind knows); the
//! rest does not, and is what is compared with the accepted counts.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::process::{Process, Under};
use super::{Client, Options, Unit};

/// How many of each unit the runs have beyond the warm-up.
const SHORT: u32 = 20;
const LONG: u32 = 220;
/// A count may grow by this part before it is a failure.
const GROWTH_PERCENT_MAX: u64 = 5;
/// Hosts that the worker knows: how many there are does not show in the counts.
const HOSTS: u32 = 1000;

/// Instructions of one unit, or of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Count {
    /// The worker, rustls, the runtime, and everything else that is compiled from Rust.
    pub(super) own: u64,
    /// AWS-LC.
    pub(super) crypto: u64,
    /// The C library.
    pub(super) libc: u64,
}

/// The accepted counts, as they stand in the repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Accepted {
    /// `rustc --version` of the build: another compiler makes other instructions.
    rustc: String,
    exchange: Count,
    request: Count,
}

/// Counts, prints and compares; whether the counts are within their bounds.
pub(super) async fn run(options: &Options) -> anyhow::Result<bool> {
    let counted = Accepted {
        rustc: rustc_version(),
        exchange: count(options, Unit::Exchange).await?,
        request: count(options, Unit::Request).await?,
    };
    println!("{}", serde_json::to_string_pretty(&counted)?);
    let Some(path) = &options.accepted else {
        return Ok(true);
    };
    if options.accept {
        let text = serde_json::to_string_pretty(&counted)? + "\n";
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
        return Ok(true);
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let accepted: Accepted =
        serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
    Ok(compare(&accepted, &counted))
}

/// Prints how the counts stand; whether they may.
fn compare(accepted: &Accepted, counted: &Accepted) -> bool {
    let rows = [
        ("exchange", accepted.exchange.own, counted.exchange.own),
        ("request", accepted.request.own, counted.request.own),
    ];
    let mut is_within = true;
    for (name, accepted, counted) in rows {
        let is_more = is_beyond(accepted, counted);
        is_within &= !is_more;
        eprintln!(
            "{name}: {counted} instructions outside of cryptography and libc, accepted {accepted}{}",
            if is_more { ": TOO MANY" } else { "" }
        );
    }
    if accepted.rustc != counted.rustc {
        eprintln!(
            "not judged: accepted with {}, built with {}",
            accepted.rustc, counted.rustc
        );
        return true;
    }
    is_within
}

fn is_beyond(accepted: u64, counted: u64) -> bool {
    counted * 100 > accepted * (100 + GROWTH_PERCENT_MAX)
}

async fn count(options: &Options, unit: Unit) -> anyhow::Result<Count> {
    let short = one_run(options, unit, SHORT).await?;
    let long = one_run(options, unit, LONG).await?;
    let each = |short: u64, long: u64| long.saturating_sub(short) / u64::from(LONG - SHORT);
    Ok(Count {
        own: each(short.own, long.own),
        crypto: each(short.crypto, long.crypto),
        libc: each(short.libc, long.libc),
    })
}

async fn one_run(options: &Options, unit: Unit, count: u32) -> anyhow::Result<Count> {
    let dir = tempfile::tempdir().context("make a temporary directory")?;
    let out = dir.path().join("callgrind.out");
    let under = Under::Callgrind(out.clone());
    let process = Process::start(&options.program, HOSTS, &under).await?;
    let client = Client::new(&process, options.tls)?;
    client.perform(unit, super::WARM_UP + count).await?;
    process.end().await?;
    read(&out)
}

fn read(path: &Path) -> anyhow::Result<Count> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("read {}; is valgrind installed?", path.display()))?;
    let count = sum(&text);
    if count.own == 0 || count.crypto == 0 {
        bail!("callgrind's counts cannot be told apart: a program without line tables?");
    }
    Ok(count)
}

/// Adds up each function's own cost, by where its source lies.
fn sum(text: &str) -> Count {
    let (mut files, mut objects) = (Names::default(), Names::default());
    let mut count = Count::default();
    let mut is_of_call = false;
    for line in text.lines() {
        if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            // The line after a call tells what the callee cost, which the callee tells itself.
            if std::mem::take(&mut is_of_call) {
                continue;
            }
            let cost: u64 = line
                .split(' ')
                .nth(1)
                .and_then(|cost| cost.parse().ok())
                .unwrap_or(0);
            if objects.current.contains("libc.so") || objects.current.contains("ld-linux") {
                count.libc += cost;
            } else if files.current.contains("/aws-lc/") {
                count.crypto += cost;
            } else {
                count.own += cost;
            }
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        match key {
            "fl" | "fi" | "fe" => files.select(value),
            "cfi" | "cfl" => _ = files.learn(value),
            "ob" => objects.select(value),
            "cob" => _ = objects.learn(value),
            "calls" => is_of_call = true,
            _ => {}
        }
    }
    count
}

/// callgrind tells a name once, as `(7) name`, and then `(7)`.
#[derive(Default)]
struct Names<'a> {
    known: HashMap<&'a str, &'a str>,
    current: &'a str,
}

impl<'a> Names<'a> {
    fn select(&mut self, value: &'a str) {
        self.current = self.learn(value);
    }

    fn learn(&mut self, value: &'a str) -> &'a str {
        match value.split_once(' ') {
            Some((number, name)) => {
                self.known.insert(number, name);
                name
            }
            None => self.known.get(value).copied().unwrap_or_default(),
        }
    }
}

fn rustc_version() -> String {
    let output = Command::new("rustc").arg("--version").output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_costs_are_told_apart_and_callees_counted_once() {
        let text = "\
events: Ir

ob=(1) /bin/worker
fl=(1) src/session.rs
fn=(1) turn
0 10
cob=(2) /lib/libc.so.6
cfi=(2) ???
cfn=(2) memcpy
calls=3 0
0 300
+3 5
cfi=(3) /aws-lc/sha.c
cfn=(3) sha
calls=1 0
* 1000

fl=(3)
fn=(3)
0 1000

ob=(2)
fl=(2)
fn=(2)
0 300
";
        let wanted = Count {
            own: 15,
            crypto: 1000,
            libc: 300,
        };
        assert_eq!(sum(text), wanted);
    }

    #[test]
    fn a_twentieth_more_is_too_many() {
        assert!(!is_beyond(1000, 1050));
        assert!(is_beyond(1000, 1051));
        assert!(!is_beyond(1000, 10));
    }
}
