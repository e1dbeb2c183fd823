//! CPU for each exchange, and memory: bars and tables.

use super::super::report::{Held, ProcessRow, Report, Servers, Spread};
use super::super::tally::as_f64;
use super::bars::{self, Bar};
use super::page::{Figure, Page, colour};
use super::{bytes, count, number};

/// Processes that are shown as bars; the tables hold all.
const BARS_MAX: usize = 8;

/// The processes of the phase that was measured for: the last one, or of several servers the first.
pub(super) fn measured(report: &Report) -> Option<&Servers> {
    if report.rounds.is_empty() {
        report.servers.last()
    } else {
        report.servers.first()
    }
}

/// Adds the sections, if servers were watched or connections held.
pub(super) fn add(page: &mut Page, report: &Report) {
    let mut figures = Vec::new();
    let rounds: Vec<Bar> = report
        .rounds
        .iter()
        .enumerate()
        .filter(|(_, side)| !side.cpu_us_per_exchange.is_empty())
        .map(|(index, side)| spread_bar(index, &side.name, &side.cpu_us_per_exchange, "µs"))
        .collect();
    if !rounds.is_empty() {
        figures.push(of_bars(
            "CPU an exchange, by server",
            "User and system time of all its processes: median of the rounds, whiskers from smallest to largest.",
            &rounds,
        ));
    }
    for servers in &report.servers {
        let bars = process_bars(
            servers,
            |process| process.cpu_us_per_exchange,
            |value| format!("{} µs", number(value)),
        );
        figures.push(of_bars(
            &format!("CPU an exchange, {}", servers.name),
            "User and system time of each process, for each exchange of the whole server.",
            &bars,
        ));
    }
    figures.extend(report.idle.as_ref().map(per_connection));
    if let Some(servers) = measured(report) {
        let bars = process_bars(
            servers,
            |process| as_f64(process.end.rss_bytes),
            |value| format!("{} MiB", number(value / 1_048_576.0)),
        );
        figures.push(of_bars(
            &format!("Memory at the end, {}", servers.name),
            "Resident memory of each process.",
            &bars,
        ));
    }
    if figures.is_empty() {
        return;
    }
    page.section("What it cost", "");
    page.figures(&figures);
    for servers in &report.servers {
        table(page, servers);
    }
    if let Some(held) = &report.idle {
        held_table(page, held);
    }
}

/// A bar of the median, with its range.
pub(in super::super) fn spread_bar(index: usize, name: &str, values: &[f64], unit: &str) -> Bar {
    let spread = Spread::of(values);
    let range = if values.len() > 1 {
        format!(" ({} – {})", number(spread.min), number(spread.max))
    } else {
        String::new()
    };
    Bar {
        name: name.to_owned(),
        text: format!("{} {unit}{range}", number(spread.median)),
        colour: colour(index),
        value: spread.median,
        range: (values.len() > 1).then_some((spread.min, spread.max)),
    }
}

/// A figure of bars, which name themselves.
pub(in super::super) fn of_bars(title: &str, note: &str, bars: &[Bar]) -> Figure {
    Figure {
        title: title.to_owned(),
        note: note.to_owned(),
        legend: Vec::new(),
        svg: bars::draw(title, bars),
    }
}

/// The largest processes first.
fn process_bars(
    servers: &Servers,
    value: impl Fn(&ProcessRow) -> f64,
    text: impl Fn(f64) -> String,
) -> Vec<Bar> {
    let mut processes: Vec<(&str, f64)> = servers
        .processes
        .iter()
        .map(|process| (process.end.name.as_str(), value(process)))
        .collect();
    processes.sort_by(|a, b| b.1.total_cmp(&a.1));
    processes
        .into_iter()
        .take(BARS_MAX)
        .map(|(name, value)| Bar {
            name: name.to_owned(),
            text: text(value),
            colour: "c2",
            value,
            range: None,
        })
        .collect()
}

fn per_connection(held: &Held) -> Figure {
    let bars = [
        ("server", held.server_bytes_per_connection, "c0"),
        ("this generator", held.generator_bytes_per_connection, "c4"),
    ]
    .map(|(name, value, colour)| Bar {
        name: name.to_owned(),
        text: format!("{} bytes", number(value)),
        colour,
        value,
        range: None,
    });
    of_bars(
        "Memory of a held connection",
        "Growth of resident memory of all processes, divided by the connections; memory of the kernel is not in it.",
        &bars,
    )
}

fn table(page: &mut Page, servers: &Servers) {
    let rows: Vec<Vec<String>> = servers
        .processes
        .iter()
        .map(|process| {
            vec![
                process.end.name.clone(),
                process.end.pid.to_string(),
                number(process.cpu_percent),
                number(process.cpu_us_per_exchange),
                bytes(process.end.rss_bytes),
                bytes(process.end.anonymous_bytes),
                bytes(process.end.pss_bytes),
                count(process.end.descriptors),
            ]
        })
        .collect();
    page.table(
        &format!(
            "{}: {} exchanges in {:.1} s, {} µs of CPU each",
            servers.name,
            count(servers.exchanges),
            servers.seconds,
            number(servers.cpu_us_per_exchange)
        ),
        &[
            "process",
            "pid",
            "CPU %",
            "CPU µs an exchange",
            "resident",
            "anonymous",
            "PSS",
            "descriptors",
        ],
        &rows,
    );
}

fn held_table(page: &mut Page, held: &Held) {
    let rows = [
        ("wanted", count(held.wanted)),
        ("opened and used", count(held.opened)),
        ("answered with close", count(held.refused_reuse)),
        ("failed", count(held.failed)),
        ("open at the end", count(held.open_at_end)),
        (
            "server bytes each",
            number(held.server_bytes_per_connection),
        ),
        (
            "generator bytes each",
            number(held.generator_bytes_per_connection),
        ),
    ]
    .map(|(name, value)| vec![name.to_owned(), value]);
    page.table("Held connections", &["", ""], &rows);
}
