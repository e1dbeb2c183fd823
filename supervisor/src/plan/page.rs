//! One plan on one page.

use std::fmt::Write as _;

use fleet_protocol::grouped::Grouped;
use fleet_protocol::measured::Measured;
use fleet_sysctl::capacity::{Certificate, Fact, Figure, Line, Plan, Source, Unit};

use super::WIDTH;

/// What a page refers to: figures by number, facts by letter, in the order of their first use.
#[derive(Default)]
struct Legend {
    figures: Vec<Figure>,
    facts: Vec<Fact>,
}

impl Legend {
    /// `[1 2 a]`
    fn refer(&mut self, sources: &[Source]) -> String {
        let marks: Vec<String> = sources
            .iter()
            .map(|source| match source {
                Source::Figure(figure) => (place(&mut self.figures, *figure) + 1).to_string(),
                Source::Fact(fact) => letter(place(&mut self.facts, *fact)).to_string(),
            })
            .collect();
        format!("[{}]", marks.join(" "))
    }

    fn text(&self, measured: &Measured) -> String {
        let machine = &measured.machine;
        let mut out = format!(
            "Measured {}, {} cores of {}, by fleet-loadtest calibrate:\n",
            measured.date,
            machine.cores,
            machine.cpu.replace("(R)", "").replace("(TM)", "")
        );
        let figures = self.figures.iter().enumerate().map(|(index, figure)| {
            let value = measured.value(*figure).unwrap_or_default();
            format!(
                "{} {} {}",
                index + 1,
                figure.id(),
                with_unit(*figure, value)
            )
        });
        out.push_str(&flow(figures));
        out.push_str("Facts and assumptions (deploy/capacity.md):\n");
        let facts = self.facts.iter().enumerate();
        out.push_str(&flow(
            facts.map(|(index, fact)| format!("{} {}", letter(index), fact.text())),
        ));
        out
    }
}

/// A measured value, its unit as short as it can be.
fn with_unit(figure: Figure, value: f64) -> String {
    match figure.unit() {
        "bytes" if value >= 1e5 => scaled(value, "B"),
        "bytes" => format!("{} B", significant(value)),
        "statements/s" => format!("{}/s", significant(value)),
        "µs" => format!("{} µs", significant(value)),
        // Counts, of what the name says.
        _ => significant(value),
    }
}

fn place<T: PartialEq + Copy>(known: &mut Vec<T>, item: T) -> usize {
    match known.iter().position(|other| *other == item) {
        Some(index) => index,
        None => {
            known.push(item);
            known.len() - 1
        }
    }
}

fn letter(index: usize) -> char {
    ('a'..='z').nth(index).unwrap_or('?')
}

/// Items one after the other, as many as fit into a line.
fn flow(items: impl Iterator<Item = String>) -> String {
    let mut out = String::new();
    let mut column = 0;
    for item in items {
        let length = item.chars().count();
        if column > 0 && column + 3 + length > WIDTH {
            out.push('\n');
            column = 0;
        }
        if column > 0 {
            out.push_str(" · ");
            column += 3;
        } else {
            out.push_str("  ");
            column += 2;
        }
        out.push_str(&item);
        column += length;
    }
    out.push('\n');
    out
}

/// The page without the configuration.
pub(super) fn text(plan: &Plan, profile: &str, measured: &Measured) -> String {
    let demand = &plan.demand;
    let intervals = demand.intervals;
    let certificate = match demand.certificate {
        Certificate::Ecdsa => "ECDSA P-256",
        Certificate::Rsa => "RSA-2048",
    };
    let mut out = format!(
        "Plan for {} hosts, profile {profile}: config {} s, read {} s, log {} s; {certificate};\n\
         {} log lines of {} bytes a host and hour. HELD: with osquery.distributed_hold, the default.\n",
        count(demand.hosts),
        intervals.config_s,
        intervals.read_s,
        intervals.log_s,
        significant(demand.lines_per_host_hour),
        count(u64::from(demand.line_bytes)),
    );
    let mut legend = Legend::default();
    let _ = writeln!(
        out,
        "{:<12}{:<34}{:>15}{:>15}  FROM",
        "", "", "AT ONCE", "HELD"
    );
    let mut group = "";
    for line in &plan.lines {
        let heading = if line.group == group { "" } else { line.group };
        group = line.group;
        let _ = writeln!(
            out,
            "{heading:<12}{:<34}{:>15}{:>15}  {}",
            line.name,
            shown(line, line.at_once),
            shown(line, line.held),
            legend.refer(&line.sources)
        );
    }
    out.push('\n');
    out.push_str(&legend.text(measured));
    out
}

/// A value with its unit. What is counted in whole things is rounded up.
pub(super) fn shown(line: &Line, value: f64) -> String {
    match line.unit {
        Unit::Count => whole(value.ceil()),
        Unit::PerSecond => format!("{}/s", plain(value)),
        Unit::Cores => plain(value),
        Unit::Bytes => scaled(value, "B"),
        Unit::BytesPerSecond => scaled(value, "B/s"),
        Unit::BitsPerSecond => scaled(value, "bit/s"),
        Unit::CoreMinutes => format!("{} core min", plain(value)),
    }
}

/// Whole from 100 on; below, as many digits as a plan deserves.
fn plain(value: f64) -> String {
    if value >= 100.0 {
        whole(value.round())
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else if value > 0.0 && value < 0.005 {
        "< 0.01".to_owned()
    } else {
        format!("{value:.2}")
    }
}

/// Three digits and a decimal prefix.
pub(super) fn scaled(value: f64, unit: &str) -> String {
    let mut rest = value;
    for prefix in ["", "k", "M", "G", "T"] {
        // What would be rounded to 1,000 belongs to the next prefix.
        if rest < 999.5 {
            return format!("{} {prefix}{unit}", significant(rest));
        }
        rest /= 1000.0;
    }
    format!("{} P{unit}", significant(rest))
}

/// Three digits, more for whole numbers beyond.
fn significant(value: f64) -> String {
    if value >= 99.95 || value.fract() == 0.0 {
        whole(value.round())
    } else if value >= 9.995 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// A whole number for people.
pub(super) fn count(number: u64) -> String {
    Grouped(number).to_string()
}

fn whole(value: f64) -> String {
    let digits = format!("{value:.0}");
    digits.parse().map_or(digits, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(whole(1_234_567.0), "1,234,567");
        assert_eq!(scaled(999.6, "B"), "1.00 kB");
        assert_eq!(scaled(1_234_567.0, "B/s"), "1.23 MB/s");
        assert_eq!(scaled(42e12, "B"), "42 TB");
        assert_eq!(plain(0.0123), "0.01");
        assert_eq!(plain(0.001), "< 0.01");
        assert_eq!(plain(0.0), "0.00");
        assert_eq!(plain(35_000.4), "35,000");
        assert_eq!(significant(12.0), "12");
        assert_eq!(significant(0.5), "0.50");
    }

    #[test]
    fn text_flows_into_lines() {
        let items = (0..40).map(|index| format!("item number {index}"));
        let text = flow(items);
        assert!(text.lines().count() > 3);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
    }
}
