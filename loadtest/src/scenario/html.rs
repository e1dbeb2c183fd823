//! The report as a page: plots first, then every table, then the machine.

mod axis;
mod bars;
mod latency;
mod number;
mod page;
mod plot;
mod servers;
mod timeline;

pub(super) use bars::Bar;
pub(super) use latency::{Curve, figure as curves};
pub(super) use number::{bytes, count, number};
pub(super) use page::{Page, Tile};
pub(super) use servers::{of_bars as bars, spread_bar};

use super::report::Report;
use super::tally::RouteRow;

/// The page of a run.
pub(super) fn render(report: &Report) -> String {
    let machine = &report.machine;
    let mut page = Page::new(
        &format!("Load test: {}", report.scenario),
        &format!(
            "{} · {}, {} cores · Linux {}",
            machine.date, machine.cpu, machine.cores, machine.kernel
        ),
    );
    page.tiles(&tiles(report));
    timeline::add(&mut page, &report.timeline);
    latency::add(&mut page, report);
    servers::add(&mut page, report);
    if !report.findings.is_empty() {
        let rows: Vec<Vec<String>> = report
            .findings
            .rows()
            .map(|(name, value)| vec![name, value])
            .collect();
        page.section("Findings", "");
        page.table(report.scenario, &["", ""], &rows);
    }
    if !report.notes.is_empty() {
        page.section("Notes", "");
        page.list(&report.notes);
    }
    page.machine(machine);
    page.finish()
}

/// The sum over all routes of the last phase that had exchanges: the one that was measured for.
fn measured_row(report: &Report) -> Option<&RouteRow> {
    let last = |phase: &'_ super::tally::Phase| phase.routes.iter().any(|row| row.exchanges > 0);
    report
        .phases
        .iter()
        .rev()
        .find(|phase| last(phase))?
        .routes
        .iter()
        .rev()
        .find(|row| row.route == "all")
}

fn tiles(report: &Report) -> Vec<Tile> {
    let mut tiles = Vec::new();
    let mut add = |name: &str, value: String, is_bad: bool| {
        tiles.push(Tile {
            value,
            name: name.to_owned(),
            is_bad,
        });
    };
    if let [first, ..] = report.rounds.as_slice() {
        let rate = super::report::Spread::of(&first.exchanges_per_s).median;
        add("exchanges a second", number(rate), false);
        add("failed", count(first.failed), first.failed > 0);
        add("p50", format!("{} ms", number(first.latency_ms.p50)), false);
        add("p99", format!("{} ms", number(first.latency_ms.p99)), false);
    } else if let Some(row) = measured_row(report) {
        add("exchanges a second", number(row.exchanges_per_s), false);
        add("failed", count(row.failed), row.failed > 0);
        add("p50", format!("{} ms", number(row.latency_ms.p50)), false);
        add("p99", format!("{} ms", number(row.latency_ms.p99)), false);
    }
    if let Some(held) = &report.idle {
        let is_less = held.open_at_end < held.wanted;
        add("connections held", count(held.open_at_end), is_less);
        let each = number(held.server_bytes_per_connection);
        add("server memory each", format!("{each} B"), false);
    } else if let Some(servers) = servers::measured(report) {
        let cost = number(servers.cpu_us_per_exchange);
        add("server CPU an exchange", format!("{cost} µs"), false);
    }
    tiles
}

#[cfg(test)]
mod tests {
    use super::super::report::{Held, Rounds, Servers};
    use super::super::tally::{Percentiles, Phase};
    use super::super::timeline::Moment;
    use super::*;

    fn moment(second: u32) -> Moment {
        let at_s = f64::from(second);
        Moment {
            at_s,
            exchanges_per_s: 2_400.0 + (at_s / 3.0).sin() * 100.0,
            failed_per_s: if second == 40 { 12.0 } else { 0.0 },
            p50_ms: 2.5,
            p99_ms: 20.0 + (at_s / 7.0).cos() * 5.0,
            max_ms: 60.0,
            in_flight: 12,
            open: 20_000,
            server_cpu_percent: 52.0,
            server_rss_bytes: 109 << 20,
        }
    }

    fn row(route: &str) -> RouteRow {
        let percentiles = Percentiles {
            p50: 2.5,
            p90: 6.0,
            p99: 22.8,
            p999: 40.0,
            max: 83.0,
        };
        RouteRow {
            route: route.to_owned(),
            exchanges: 100_000,
            exchanges_per_s: 2_400.0,
            failed: 1,
            late_over_16s: 0,
            resent: 0,
            connections: 100_001,
            sent_bytes: 1,
            received_bytes: 1,
            latency_ms: percentiles,
            service_ms: percentiles,
            curve: vec![(0.0, 1.0), (50.0, 2.5), (99.0, 22.8), (100.0, 83.0)],
        }
    }

    fn report() -> Report {
        let mut report = Report::new("steady");
        report.timeline = (1..=120).map(moment).collect();
        report.phases.push(Phase {
            name: "steady".to_owned(),
            seconds: 120.0,
            routes: vec![row("read <odd> & \"quoted\""), row("all")],
            failures: [("read closed".to_owned(), 1)].into(),
            details: Default::default(),
        });
        let sample = super::super::procfs::sample(std::process::id()).unwrap();
        let samples = [sample];
        report
            .servers
            .push(Servers::between("server", &samples, &samples, 100, 1.0));
        report.notes.push("a < b & c".to_owned());
        report.findings.count("hosts_served", 3);
        report
    }

    fn parsed(text: &str) -> roxmltree::Document<'_> {
        let options = roxmltree::ParsingOptions {
            allow_dtd: true,
            ..Default::default()
        };
        roxmltree::Document::parse_with_options(text, options).unwrap()
    }

    fn headings<'a>(page: &'a roxmltree::Document<'_>) -> Vec<&'a str> {
        page.descendants()
            .filter(|node| node.has_tag_name("h3"))
            .filter_map(|node| node.text())
            .collect()
    }

    #[test]
    fn a_run_over_time_is_well_formed_and_whole() {
        let text = render(&report());
        let page = parsed(&text);
        for heading in [
            "Latency",
            "Exchanges",
            "Failures",
            "CPU of the server",
            "Percentiles, steady",
            "CPU an exchange, server",
        ] {
            assert!(headings(&page).contains(&heading), "{heading}: {text}");
        }
        let drawings = page.descendants().filter(|node| node.has_tag_name("svg"));
        assert!(drawings.count() >= 8);
        assert!(text.contains("2,400") && text.contains("tile bad"));
        assert!(text.contains("hosts served") && text.contains("a &lt; b &amp; c"));
    }

    #[test]
    fn rounds_and_held_connections_have_their_own_pictures() {
        let mut report = Report::new("exchange");
        let rounds = |name: &str, cpu: [f64; 3]| Rounds {
            name: name.to_owned(),
            exchanges: 100,
            exchanges_per_s: vec![3_900.0; 3],
            cpu_us_per_exchange: cpu.to_vec(),
            failed: 0,
            latency_ms: row("all").latency_ms,
            curve: row("all").curve,
        };
        report.rounds.push(rounds("server", [165.0, 167.0, 169.0]));
        report.rounds.push(rounds("nginx", [433.0, 435.0, 444.0]));
        report.idle = Some(Held {
            wanted: 100,
            opened: 100,
            refused_reuse: 0,
            failed: 0,
            open_at_end: 99,
            server_bytes_per_connection: 4_827.0,
            generator_bytes_per_connection: 600.0,
        });
        let text = render(&report);
        let page = parsed(&text);
        assert!(headings(&page).contains(&"CPU an exchange, by server"));
        assert!(headings(&page).contains(&"Memory of a held connection"));
        assert!(text.contains("167 µs (165 – 169)"), "{text}");
    }

    #[test]
    fn an_empty_report_is_a_page_too() {
        let text = render(&Report::new("steady"));
        assert!(headings(&parsed(&text)).is_empty());
    }
}
