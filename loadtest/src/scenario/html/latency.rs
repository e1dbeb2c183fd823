//! Percentile curves, and the tables of phases and rounds.

use super::super::report::{Report, Rounds, Spread};
use super::super::tally::{Phase, RouteRow, as_f64};
use super::axis::Axis;
use super::page::{Figure, Page, colour};
use super::plot::{self, Series};
use super::{count, number};

/// Lines that one plot can hold.
const LINES_MAX: usize = 6;

/// Latencies of one thing by percentile.
pub(in super::super) struct Curve<'a> {
    /// For the legend.
    pub(in super::super) name: &'a str,
    /// How many there are.
    pub(in super::super) values: u64,
    /// `(percentile, milliseconds)`, ascending.
    pub(in super::super) points: &'a [(f64, f64)],
}

/// Adds the section, if there are latencies.
pub(super) fn add(page: &mut Page, report: &Report) {
    let mut figures: Vec<Figure> = report.phases.iter().filter_map(of_phase).collect();
    let rounds: Vec<Curve<'_>> = report
        .rounds
        .iter()
        .map(|side| Curve {
            name: &side.name,
            values: side.exchanges,
            points: &side.curve,
        })
        .collect();
    figures.extend(figure("Percentiles of all rounds", &rounds));
    if figures.is_empty() {
        return;
    }
    page.section(
        "Latency by percentile",
        "Each step to the right is one nine more: at 99, one of a hundred was slower.",
    );
    page.figures(&figures);
    for phase in &report.phases {
        phase_tables(page, phase);
    }
    if !report.rounds.is_empty() {
        rounds_table(page, &report.rounds);
    }
}

fn of_phase(phase: &Phase) -> Option<Figure> {
    // The sum stands last and comes first here: it is the one that is never left out.
    let lines: Vec<Curve<'_>> = phase
        .routes
        .iter()
        .rev()
        .map(|row| Curve {
            name: &row.route,
            values: row.exchanges,
            points: &row.curve,
        })
        .collect();
    figure(&format!("Percentiles, {}", phase.name), &lines)
}

/// Curves in one plot; `None` when all are empty.
pub(in super::super) fn figure(title: &str, curves: &[Curve<'_>]) -> Option<Figure> {
    let series: Vec<Series> = curves
        .iter()
        .filter(|curve| curve.values > 0)
        .take(LINES_MAX)
        .enumerate()
        .map(|(index, curve)| {
            let points = curve
                .points
                .iter()
                .map(|(percentile, ms)| (nines(*percentile, curve.values), *ms))
                .collect();
            Series::line(curve.name, colour(index), points)
        })
        .collect();
    let (low, high) = plot::range(&series);
    let largest = series
        .iter()
        .filter_map(|line| Some(line.points.last()?.0))
        .fold(0.0, f64::max);
    if high <= 0.0 {
        return None;
    }
    let y = Axis::of_latencies(low, high, "milliseconds");
    let svg = plot::draw(title, &Axis::of_percentiles(largest), &y, &series);
    Some(Figure::of_lines(title, "", &series, svg))
}

/// 1/(1-p); the largest of n values stands at n.
fn nines(percentile: f64, values: u64) -> f64 {
    let end = as_f64(values).max(1.0);
    (100.0 / (100.0 - percentile).max(1e-9)).min(end)
}

fn phase_tables(page: &mut Page, phase: &Phase) {
    let rows: Vec<Vec<String>> = phase.routes.iter().map(route_row).collect();
    page.table(
        &format!("{}, {:.1} s", phase.name, phase.seconds),
        &[
            "route",
            "exchanges",
            "per s",
            "failed",
            "> 16 s",
            "resent",
            "p50 ms",
            "p90",
            "p99",
            "p99.9",
            "max",
            "served p50 ms",
            "served p99",
        ],
        &rows,
    );
    let failures: Vec<Vec<String>> = phase
        .failures
        .iter()
        .chain(&phase.details)
        .map(|(name, failed)| vec![name.clone(), count(*failed)])
        .collect();
    if !failures.is_empty() {
        page.table(
            &format!("Failures, {}", phase.name),
            &["kind", "count"],
            &failures,
        );
    }
}

fn route_row(row: &RouteRow) -> Vec<String> {
    let latency = &row.latency_ms;
    vec![
        row.route.clone(),
        count(row.exchanges),
        number(row.exchanges_per_s),
        count(row.failed),
        count(row.late_over_16s),
        count(row.resent),
        number(latency.p50),
        number(latency.p90),
        number(latency.p99),
        number(latency.p999),
        number(latency.max),
        number(row.service_ms.p50),
        number(row.service_ms.p99),
    ]
}

fn rounds_table(page: &mut Page, rounds: &[Rounds]) {
    let rows: Vec<Vec<String>> = rounds
        .iter()
        .map(|side| {
            let rate = Spread::of(&side.exchanges_per_s);
            let cpu = Spread::of(&side.cpu_us_per_exchange);
            vec![
                side.name.clone(),
                side.exchanges_per_s.len().to_string(),
                number(rate.median),
                format!("{} – {}", number(rate.min), number(rate.max)),
                number(cpu.median),
                format!("{} – {}", number(cpu.min), number(cpu.max)),
                count(side.failed),
                number(side.latency_ms.p50),
                number(side.latency_ms.p99),
                number(side.latency_ms.p999),
                number(side.latency_ms.max),
            ]
        })
        .collect();
    page.table(
        "Rounds: full handshake, one POST, close (medians of rounds)",
        &[
            "server",
            "rounds",
            "exchanges/s",
            "range",
            "CPU µs an exchange",
            "range",
            "failed",
            "p50 ms",
            "p99",
            "p99.9",
            "max",
        ],
        &rows,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_value_stands_at_the_number_of_values() {
        assert!((nines(0.0, 1000) - 1.0).abs() < 1e-9);
        assert!((nines(99.0, 1000) - 100.0).abs() < 1e-6);
        assert!((nines(100.0, 1000) - 1000.0).abs() < 1e-6);
        assert!((nines(100.0, 0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn empty_curves_are_left_out() {
        let empty = || Curve {
            name: "a",
            values: 0,
            points: &[],
        };
        assert!(figure("t", &[empty()]).is_none());
        let full = Curve {
            name: "b",
            values: 200,
            points: &[(0.0, 1.0), (50.0, 2.0), (100.0, 40.0)],
        };
        let figure = figure("t", &[empty(), full]).unwrap();
        assert_eq!(figure.legend, [("c0", "b".to_owned())]);
        assert!(figure.svg.contains(">99<") && !figure.svg.contains(">99.9<"));
    }
}
