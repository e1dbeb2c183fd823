//! Counts and latencies by route.

use std::collections::BTreeMap;

use fleet_protocol::agent::Route;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::Instant;

use crate::agent::Exchange;
use crate::client::DEADLINE;

/// Largest latency that is told apart, microseconds.
const LATENCY_US_MAX: u64 = 600_000_000;
/// The row of reads that the server held open on purpose.
pub(super) const READ_HELD: &str = "read (held)";
/// Different texts of failures that are kept.
const DETAILS_MAX: usize = 50;

/// What happened on one route.
#[derive(Clone, Debug)]
pub(super) struct RouteTally {
    /// From the intended time to the end, microseconds.
    latency_us: Histogram<u64>,
    /// From the start to the end, microseconds.
    service_us: Histogram<u64>,
    failures: BTreeMap<&'static str, u64>,
    details: BTreeMap<String, u64>,
    late: u64,
    resent: u64,
    connections: u64,
    sent_bytes: u64,
    received_bytes: u64,
}

impl Default for RouteTally {
    fn default() -> Self {
        Self {
            latency_us: histogram(),
            service_us: histogram(),
            failures: BTreeMap::new(),
            details: BTreeMap::new(),
            late: 0,
            resent: 0,
            connections: 0,
            sent_bytes: 0,
            received_bytes: 0,
        }
    }
}

/// An empty histogram of microseconds.
#[expect(clippy::expect_used, reason = "constant bounds that the crate takes")]
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("valid bounds")
}

impl RouteTally {
    /// Counts an exchange.
    pub(super) fn record(&mut self, exchange: &Exchange, intended_at: Instant) {
        let service = exchange.ended_at - exchange.started_at;
        let latency = exchange.ended_at - intended_at.min(exchange.started_at);
        self.latency_us.saturating_record(micros(latency));
        self.service_us.saturating_record(micros(service));
        if latency > DEADLINE {
            self.late += 1;
        }
        self.resent += u64::from(exchange.is_resent);
        self.connections += u64::from(exchange.connections);
        self.sent_bytes += as_u64(exchange.sent_bytes);
        self.received_bytes += as_u64(exchange.body.len());
        let Some(failure) = exchange.failure() else {
            return;
        };
        *self.failures.entry(failure.kind()).or_default() += 1;
        if let Some(detail) = failure.detail() {
            let detail = format!("{}: {detail}", failure.kind());
            if self.details.len() < DETAILS_MAX || self.details.contains_key(&detail) {
                *self.details.entry(detail).or_default() += 1;
            }
        }
    }

    /// Adds another tally of the same route.
    pub(super) fn merge(&mut self, other: &Self) {
        // Same bounds: adding cannot fail.
        let _ = self.latency_us.add(&other.latency_us);
        let _ = self.service_us.add(&other.service_us);
        for (kind, count) in &other.failures {
            *self.failures.entry(kind).or_default() += count;
        }
        for (detail, count) in &other.details {
            *self.details.entry(detail.clone()).or_default() += count;
        }
        self.late += other.late;
        self.resent += other.resent;
        self.connections += other.connections;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
    }

    /// A phase that shows only the failures; `None` without any.
    pub(super) fn failures_phase(&self, name: &str, seconds: f64) -> Option<Phase> {
        let named = |(text, count): (&str, u64)| (format!("{name} {text}"), count);
        (!self.failures.is_empty()).then(|| Phase {
            name: format!("failures, {name}"),
            seconds,
            routes: vec![self.row("all", seconds)],
            failures: self.failures.iter().map(|(k, c)| named((k, *c))).collect(),
            details: self.details.iter().map(|(k, c)| named((k, *c))).collect(),
        })
    }

    /// The row of the report.
    pub(super) fn row(&self, route: &str, seconds: f64) -> RouteRow {
        let exchanges = self.latency_us.len();
        RouteRow {
            route: route.to_owned(),
            exchanges,
            exchanges_per_s: ratio(exchanges, seconds),
            failed: self.failures.values().sum(),
            late_over_16s: self.late,
            resent: self.resent,
            connections: self.connections,
            sent_bytes: self.sent_bytes,
            received_bytes: self.received_bytes,
            latency_ms: Percentiles::of(&self.latency_us),
            service_ms: Percentiles::of(&self.service_us),
            curve: curve(&self.latency_us),
        }
    }
}

/// What happened on every route in one phase.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    routes: [RouteTally; Route::ALL.len()],
    /// Reads that the server held open on purpose.
    held: RouteTally,
}

impl Tally {
    /// Counts an exchange.
    pub(super) fn record(&mut self, exchange: &Exchange, intended_at: Instant) {
        if let Some(route) = self.routes.get_mut(exchange.route.index()) {
            route.record(exchange, intended_at);
        }
    }

    /// Counts a read that the server held: neither slow nor part of the sum of latencies.
    pub(super) fn record_held(&mut self, exchange: &Exchange, intended_at: Instant) {
        self.held.record(exchange, intended_at);
    }

    /// The part of the report on this phase.
    pub(super) fn phase(&self, name: &str, seconds: f64) -> Phase {
        let mut total = RouteTally::default();
        let mut rows = Vec::new();
        let (mut failures, mut details) = (BTreeMap::new(), BTreeMap::new());
        for (route, tally) in Route::ALL.into_iter().zip(&self.routes) {
            if tally.latency_us.is_empty() {
                continue;
            }
            rows.push(tally.row(route.label(), seconds));
            total.merge(tally);
            for (kind, count) in &tally.failures {
                failures.insert(format!("{} {kind}", route.label()), *count);
            }
            for (detail, count) in &tally.details {
                details.insert(format!("{} {detail}", route.label()), *count);
            }
        }
        if !self.held.latency_us.is_empty() {
            rows.push(self.held.row(READ_HELD, seconds));
        }
        rows.push(total.row("all", seconds));
        Phase {
            name: name.to_owned(),
            seconds,
            routes: rows,
            failures,
            details,
        }
    }
}

/// A phase of a run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Phase {
    /// Name.
    pub(super) name: String,
    /// Length.
    pub(super) seconds: f64,
    /// By route, the sum last. Reads that were held are a row of their own and not in the sum.
    pub(super) routes: Vec<RouteRow>,
    /// By route and kind.
    pub(super) failures: BTreeMap<String, u64>,
    /// By route, kind and text.
    pub(super) details: BTreeMap<String, u64>,
}

/// A route's numbers.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RouteRow {
    /// Route, or `all`.
    pub(super) route: String,
    /// Logical requests that ended.
    pub(super) exchanges: u64,
    /// Rate.
    pub(super) exchanges_per_s: f64,
    /// Of those, what an agent takes for failed.
    pub(super) failed: u64,
    /// Ended more than 16 s after the intended time.
    pub(super) late_over_16s: u64,
    /// Sent a second time.
    pub(super) resent: u64,
    /// Connections.
    pub(super) connections: u64,
    /// Request bodies.
    pub(super) sent_bytes: u64,
    /// Answer bodies.
    pub(super) received_bytes: u64,
    /// From the intended time, which corrects for coordinated omission.
    pub(super) latency_ms: Percentiles,
    /// From the start.
    pub(super) service_ms: Percentiles,
    /// Latency by percentile: `(0 to 100, milliseconds)`, both ascending, denser toward 100; empty without exchanges.
    pub(super) curve: Vec<(f64, f64)>,
}

/// Points of a curve between one halving of what is slower and the next.
const CURVE_POINTS: u32 = 5;

/// A histogram of microseconds by percentile.
pub(super) fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = histogram
        .iter_quantiles(CURVE_POINTS)
        .map(|step| {
            (
                step.quantile_iterated_to() * 100.0,
                as_f64(step.value_iterated_to().min(histogram.max())) / 1000.0,
            )
        })
        .collect();
    // The steps of values that fall together say the same.
    points.dedup_by(|later, earlier| later.0 <= earlier.0);
    points
}

/// Percentiles of a latency, milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Percentiles {
    /// Median.
    pub(super) p50: f64,
    /// 90 %.
    pub(super) p90: f64,
    /// 99 %.
    pub(super) p99: f64,
    /// 99.9 %.
    pub(super) p999: f64,
    /// Largest.
    pub(super) max: f64,
}

impl Percentiles {
    /// Of microseconds.
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile: f64| as_f64(histogram.value_at_quantile(quantile)) / 1000.0;
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: as_f64(histogram.max()) / 1000.0,
        }
    }
}

/// For a histogram.
pub(super) fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A length as a count.
pub(super) fn as_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// For printing and dividing; counts stay far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub(super) fn as_f64(number: u64) -> f64 {
    number as f64
}

/// Count per second, or any other quotient; 0 when there is nothing to divide by.
pub(super) fn ratio(count: u64, by: f64) -> f64 {
    if by > 0.0 { as_f64(count) / by } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::verdict::{Failure, Object};

    fn exchange(started_at: Instant, took: Duration, failure: Option<Failure>) -> Exchange {
        Exchange {
            route: Route::Read,
            verdict: failure.map_or(Ok(Object::new()), Err),
            status: 200,
            headers: Vec::new(),
            body: b"{}".to_vec(),
            connections: 1,
            is_resent: false,
            waited: std::time::Duration::ZERO,
            sent_bytes: 36,
            started_at,
            ended_at: started_at + took,
        }
    }

    #[test]
    fn latency_counts_from_the_intended_time() {
        let intended = Instant::now();
        let started = intended + Duration::from_millis(90);
        let mut tally = Tally::default();
        tally.record(
            &exchange(started, Duration::from_millis(10), None),
            intended,
        );
        let phase = tally.phase("steady", 2.0);
        let all = phase.routes.last().unwrap();
        assert!((all.latency_ms.p50 - 100.0).abs() < 1.0, "{all:?}");
        assert!((all.service_ms.p50 - 10.0).abs() < 0.1, "{all:?}");
        assert_eq!((all.exchanges, all.failed, all.late_over_16s), (1, 0, 0));
        assert!((all.exchanges_per_s - 0.5).abs() < 1e-9);
    }

    #[test]
    fn held_reads_are_not_in_the_sum() {
        let now = Instant::now();
        let mut tally = Tally::default();
        tally.record(&exchange(now, Duration::from_millis(2), None), now);
        tally.record_held(&exchange(now, Duration::from_secs(10), None), now);
        let phase = tally.phase("steady", 1.0);
        let row = |name: &str| phase.routes.iter().find(|row| row.route == name).unwrap();
        assert_eq!(row("all").exchanges, 1);
        assert!(row("all").latency_ms.max < 3.0);
        assert_eq!(row(READ_HELD).exchanges, 1);
        assert!(row(READ_HELD).service_ms.p50 > 9_000.0);
    }

    #[test]
    fn curves_rise_to_the_largest_value() {
        let mut values = histogram();
        assert!(curve(&values).is_empty());
        for ms in 1..=10_000 {
            values.record(ms * 1000).unwrap();
        }
        let points = curve(&values);
        assert!(points.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
        assert!((20..200).contains(&points.len()), "{}", points.len());
        let (last, largest) = points[points.len() - 1];
        assert!((last - 100.0).abs() < 1e-9 && (largest - 10_000.0).abs() < 10.0);
        for (percentile, ms) in points {
            // A value of a uniform distribution stands at its share; the histogram keeps three digits.
            assert!((ms - percentile * 100.0).abs() < 30.0, "{percentile}: {ms}");
        }
    }

    #[test]
    fn failures_count_by_kind_and_text() {
        let now = Instant::now();
        let took = Duration::from_secs(17);
        let mut tally = Tally::default();
        tally.record(
            &exchange(now, took, Some(Failure::Error("busy".into()))),
            now,
        );
        tally.record(
            &exchange(now, took, Some(Failure::Error("busy".into()))),
            now,
        );
        let phase = tally.phase("steady", 1.0);
        assert_eq!(phase.failures["read error_object"], 2);
        assert_eq!(phase.details["read error_object: busy"], 2);
        assert_eq!(phase.routes.last().unwrap().late_over_16s, 2);
    }
}
