//! The report: one structure, as tables for people and as JSON.

use std::path::Path;

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::machine::Machine;
use super::procfs::Sample;
use super::tally::{Percentiles, Phase, as_f64, ratio};
use super::timeline::Moment;

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// Where and how.
    pub(super) machine: Machine,
    /// The scenario's name.
    pub(super) scenario: &'static str,
    /// Statements about the run, for people.
    pub(super) notes: Vec<String>,
    /// Latencies and failures.
    pub(super) phases: Vec<Phase>,
    /// Server processes.
    pub(super) servers: Vec<Servers>,
    /// With `exchange`: each server's rounds.
    pub(super) rounds: Vec<Rounds>,
    /// With `idle`: the held connections.
    pub(super) idle: Option<Held>,
    /// What else the scenario found out.
    pub(super) findings: Findings,
    /// Second by second.
    pub(super) timeline: Vec<Moment>,
}

/// Figures of one scenario by name, in their order; the unit stands in the name.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub(super) struct Findings(serde_json::Map<String, serde_json::Value>);

impl Findings {
    /// Whether nothing was found out.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names and values for people.
    pub(super) fn rows(&self) -> impl Iterator<Item = (String, String)> {
        self.0
            .iter()
            .map(|(name, value)| (name.replace('_', " "), value.to_string()))
    }

    /// A whole number.
    pub(super) fn count(&mut self, name: impl Into<String>, count: u64) {
        self.0.insert(name.into(), count.into());
    }

    /// Any other number.
    pub(super) fn figure(&mut self, name: impl Into<String>, figure: f64) {
        let rounded = (figure * 1000.0).round() / 1000.0;
        self.0.insert(name.into(), rounded.into());
    }

    /// 50, 90, 99 % and the largest, as `NAME_p50_UNIT` and so on.
    pub(super) fn percentiles(&mut self, name: &str, unit: &str, of: &Percentiles) {
        for (at, value) in [
            ("p50", of.p50),
            ("p90", of.p90),
            ("p99", of.p99),
            ("max", of.max),
        ] {
            self.figure(format!("{name}_{at}_{unit}"), value);
        }
    }
}

/// CPU and memory of the processes of one server over one phase.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Servers {
    /// Which server and phase.
    pub(super) name: String,
    /// Seconds between the two samples.
    pub(super) seconds: f64,
    /// Exchanges between the two samples.
    pub(super) exchanges: u64,
    /// Each process.
    pub(super) processes: Vec<ProcessRow>,
    /// Sum of CPU over all processes, for each exchange.
    pub(super) cpu_us_per_exchange: f64,
}

/// One process over one phase.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ProcessRow {
    /// At the end.
    #[serde(flatten)]
    pub(super) end: Sample,
    /// CPU used in between.
    pub(super) used_us: u64,
    /// Of one core.
    pub(super) cpu_percent: f64,
    /// CPU for each exchange of the whole server.
    pub(super) cpu_us_per_exchange: f64,
    /// Growth of resident memory; negative when it shrank.
    pub(super) rss_growth_bytes: i64,
}

impl Servers {
    /// Compares two samples. Processes that began in between count from 0.
    pub(super) fn between(
        name: impl Into<String>,
        begin: &[Sample],
        end: &[Sample],
        exchanges: u64,
        seconds: f64,
    ) -> Self {
        let processes: Vec<ProcessRow> = end
            .iter()
            .map(|end| {
                let begin = begin.iter().find(|begin| begin.pid == end.pid);
                let used_us = end.cpu_us - begin.map_or(0, |begin| begin.cpu_us.min(end.cpu_us));
                let rss_before = begin.map_or(0, |begin| begin.rss_bytes);
                ProcessRow {
                    end: end.clone(),
                    used_us,
                    cpu_percent: ratio(used_us, seconds * 10_000.0),
                    cpu_us_per_exchange: ratio(used_us, as_f64(exchanges)),
                    rss_growth_bytes: end.rss_bytes.cast_signed() - rss_before.cast_signed(),
                }
            })
            .collect();
        let used_us = processes.iter().map(|process| process.used_us).sum();
        Self {
            name: name.into(),
            seconds,
            exchanges,
            processes,
            cpu_us_per_exchange: ratio(used_us, as_f64(exchanges)),
        }
    }
}

/// The rounds of one server.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Rounds {
    /// Its name.
    pub(super) name: String,
    /// Exchanges in all rounds.
    pub(super) exchanges: u64,
    /// Exchanges a second, each round.
    pub(super) exchanges_per_s: Vec<f64>,
    /// CPU of all its processes for each exchange, each round; empty when no process is watched.
    pub(super) cpu_us_per_exchange: Vec<f64>,
    /// Failed exchanges.
    pub(super) failed: u64,
    /// From start to end.
    pub(super) latency_ms: Percentiles,
    /// The same by percentile: `(0 to 100, milliseconds)`.
    pub(super) curve: Vec<(f64, f64)>,
}

/// The connections of `idle`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Held {
    /// Asked for.
    pub(super) wanted: u64,
    /// Opened and used.
    pub(super) opened: u64,
    /// Answers that said `Connection: close`, and so were not held.
    pub(super) refused_reuse: u64,
    /// Failed before they were held.
    pub(super) failed: u64,
    /// Still open at the end.
    pub(super) open_at_end: u64,
    /// Resident growth of all server processes for each connection that is open at the end.
    pub(super) server_bytes_per_connection: f64,
    /// Resident growth of this process for each connection that is open at the end.
    pub(super) generator_bytes_per_connection: f64,
}

impl Report {
    /// A report on nothing yet.
    pub(super) fn new(scenario: &'static str) -> Self {
        Self {
            machine: Machine::read(),
            scenario,
            notes: Vec::new(),
            phases: Vec::new(),
            servers: Vec::new(),
            rounds: Vec::new(),
            idle: None,
            findings: Findings::default(),
            timeline: Vec::new(),
        }
    }

    /// Prints tables, or JSON for `-`; writes JSON to any other path.
    pub(super) fn publish(&self, json: Option<&Path>) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        match json {
            Some(path) if path == Path::new("-") => println!("{text}"),
            Some(path) => {
                std::fs::write(path, text + "\n")
                    .with_context(|| format!("write {}", path.display()))?;
                println!("{}", self.tables());
            }
            None => println!("{}", self.tables()),
        }
        Ok(())
    }

    /// All tables.
    pub(super) fn tables(&self) -> String {
        let mut parts = vec![self.machine.lines()];
        parts.extend(self.phases.iter().map(phase_tables));
        if !self.rounds.is_empty() {
            parts.push(rounds_table(&self.rounds));
        }
        parts.extend(self.servers.iter().map(servers_table));
        if let Some(held) = &self.idle {
            parts.push(held_table(held));
        }
        if !self.findings.is_empty() {
            parts.push(findings_table(self.scenario, &self.findings));
        }
        parts.extend(self.notes.iter().cloned());
        parts.join("\n\n")
    }
}

pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.to_vec());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn phase_tables(phase: &Phase) -> String {
    let mut routes = table(&[
        "route",
        "exchanges",
        "per s",
        "failed",
        ">16 s",
        "resent",
        "p50 ms",
        "p90",
        "p99",
        "p99.9",
        "max",
        "served p50",
        "served p99",
    ]);
    for row in &phase.routes {
        let (latency, service) = (&row.latency_ms, &row.service_ms);
        routes.add_row(vec![
            row.route.clone(),
            row.exchanges.to_string(),
            format!("{:.1}", row.exchanges_per_s),
            row.failed.to_string(),
            row.late_over_16s.to_string(),
            row.resent.to_string(),
            ms(latency.p50),
            ms(latency.p90),
            ms(latency.p99),
            ms(latency.p999),
            ms(latency.max),
            ms(service.p50),
            ms(service.p99),
        ]);
    }
    let mut text = format!("{} ({:.1} s)\n{routes}", phase.name, phase.seconds);
    if phase.failures.is_empty() {
        text.push_str("\nno failure");
    } else {
        let mut failures = table(&["failure", "count"]);
        for (name, count) in phase.failures.iter().chain(&phase.details) {
            failures.add_row(vec![name.clone(), count.to_string()]);
        }
        text.push_str(&format!("\n{failures}"));
    }
    text
}

fn servers_table(servers: &Servers) -> String {
    let mut rows = table(&[
        "process",
        "pid",
        "CPU %",
        "us/exchange",
        "RSS MiB",
        "grown MiB",
        "anon MiB",
        "PSS MiB",
        "descriptors",
    ]);
    for process in &servers.processes {
        rows.add_row(vec![
            process.end.name.clone(),
            process.end.pid.to_string(),
            format!("{:.1}", process.cpu_percent),
            format!("{:.1}", process.cpu_us_per_exchange),
            mib(process.end.rss_bytes),
            format!("{:.2}", signed_mib(process.rss_growth_bytes)),
            mib(process.end.anonymous_bytes),
            mib(process.end.pss_bytes),
            process.end.descriptors.to_string(),
        ]);
    }
    format!(
        "{}: {} exchanges in {:.1} s, {:.1} us of CPU each\n{rows}",
        servers.name, servers.exchanges, servers.seconds, servers.cpu_us_per_exchange
    )
}

fn rounds_table(rounds: &[Rounds]) -> String {
    let mut rows = table(&[
        "server",
        "rounds",
        "exchanges/s",
        "min",
        "max",
        "CPU us/exchange",
        "min",
        "max",
        "failed",
        "p50 ms",
        "p99",
        "p99.9",
        "max",
    ]);
    for server in rounds {
        let rate = Spread::of(&server.exchanges_per_s);
        let cpu = Spread::of(&server.cpu_us_per_exchange);
        rows.add_row(vec![
            server.name.clone(),
            server.exchanges_per_s.len().to_string(),
            format!("{:.0}", rate.median),
            format!("{:.0}", rate.min),
            format!("{:.0}", rate.max),
            format!("{:.1}", cpu.median),
            format!("{:.1}", cpu.min),
            format!("{:.1}", cpu.max),
            server.failed.to_string(),
            ms(server.latency_ms.p50),
            ms(server.latency_ms.p99),
            ms(server.latency_ms.p999),
            ms(server.latency_ms.max),
        ]);
    }
    format!("full handshake, one POST, close (medians of rounds)\n{rows}")
}

fn held_table(held: &Held) -> String {
    let mut rows = table(&["idle connections", ""]);
    for (name, value) in [
        ("wanted", held.wanted.to_string()),
        ("opened", held.opened.to_string()),
        ("answered with close", held.refused_reuse.to_string()),
        ("failed", held.failed.to_string()),
        ("open at the end", held.open_at_end.to_string()),
        (
            "server bytes each",
            format!("{:.0}", held.server_bytes_per_connection),
        ),
        (
            "generator bytes each",
            format!("{:.0}", held.generator_bytes_per_connection),
        ),
    ] {
        rows.add_row(vec![name.to_owned(), value]);
    }
    rows.to_string()
}

fn findings_table(scenario: &str, findings: &Findings) -> String {
    let mut rows = table(&[scenario, ""]);
    for (name, value) in findings.rows() {
        rows.add_row(vec![name, value]);
    }
    rows.to_string()
}

/// Median, smallest and largest.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Spread {
    /// Middle.
    pub(super) median: f64,
    /// Smallest.
    pub(super) min: f64,
    /// Largest.
    pub(super) max: f64,
}

impl Spread {
    /// Of some values; zeros for none.
    pub(super) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) && middle > 0 {
            f64::midpoint(at(middle - 1), at(middle))
        } else {
            at(middle)
        };
        Self {
            median,
            min: at(0),
            max: at(sorted.len().saturating_sub(1)),
        }
    }
}

fn ms(value: f64) -> String {
    if value < 100.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1}", as_f64(bytes) / 1_048_576.0)
}

#[expect(clippy::cast_precision_loss, reason = "for printing")]
fn signed_mib(bytes: i64) -> f64 {
    bytes as f64 / 1_048_576.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(pid: u32, cpu_us: u64, rss_bytes: u64) -> Sample {
        Sample {
            pid,
            name: "worker --slot 0".into(),
            cpu_us,
            rss_bytes,
            anonymous_bytes: 0,
            pss_bytes: 0,
            descriptors: 3,
        }
    }

    #[test]
    fn cpu_is_divided_by_the_exchanges() {
        let begin = [sample(1, 1_000_000, 10 << 20)];
        let end = [sample(1, 3_000_000, 9 << 20), sample(2, 500_000, 1 << 20)];
        let servers = Servers::between("server", &begin, &end, 10_000, 10.0);
        assert!((servers.cpu_us_per_exchange - 250.0).abs() < 1e-9);
        assert!((servers.processes[0].cpu_percent - 20.0).abs() < 1e-9);
        assert_eq!(servers.processes[0].rss_growth_bytes, -(1 << 20));
        assert!(servers_table(&servers).contains("worker --slot 0"));
    }

    #[test]
    fn medians_are_medians() {
        assert!((Spread::of(&[3.0, 1.0, 2.0]).median - 2.0).abs() < 1e-9);
        assert!((Spread::of(&[4.0, 1.0, 2.0, 3.0]).median - 2.5).abs() < 1e-9);
        assert!(Spread::of(&[]).max.abs() < 1e-9);
    }
}
