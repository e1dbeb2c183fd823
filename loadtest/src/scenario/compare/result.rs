//! What came out: contests, their sides, and the ratios between them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::machine::Machine;
use super::super::report::Spread;
use super::super::tally::{Percentiles, as_f64, curve};
use super::load::{Memory, Round, Seen};

/// A generator that is this busy, in percent of its core, limits the rate.
const BUSY_PERCENT: f64 = 93.0;

/// A whole comparison.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Comparison {
    /// Where and how.
    pub(super) machine: Machine,
    /// `compare`.
    pub(super) scenario: &'static str,
    /// Statements about the run, for people.
    pub(super) notes: Vec<String>,
    /// Each contest.
    pub(super) contests: Vec<Contest>,
}

/// One way of using servers, all of them in alternated rounds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Contest {
    /// What clients did.
    pub(super) name: String,
    /// What is compared, with its unit.
    pub(super) quantity: &'static str,
    /// Unit alone.
    pub(super) unit: &'static str,
    /// The gateway first.
    pub(super) sides: Vec<Side>,
}

/// One server in a contest; lists hold one value for each round.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Side {
    /// Its name.
    pub(super) name: &'static str,
    /// What is compared: microseconds of CPU, or bytes.
    pub(super) cost: Vec<f64>,
    /// The gateway's cost for each unit of this one's, by pairs of the same round; none for the gateway itself.
    pub(super) ratio: Option<Spread>,
    /// Exchanges or requests a second; empty for held connections.
    pub(super) per_s: Vec<f64>,
    /// CPU of the client, percent of a core; empty for held connections.
    pub(super) generator_percent: Vec<f64>,
    /// Growth of the share of resident memory, bytes a connection; empty unless connections were held.
    pub(super) pss_bytes: Vec<f64>,
    /// From start to end, all rounds.
    pub(super) latency_ms: Option<Percentiles>,
    /// The same by percentile.
    pub(super) curve: Vec<(f64, f64)>,
    /// Exchanges or requests behind the latencies.
    pub(super) values: u64,
    /// Failures by text.
    pub(super) failures: BTreeMap<String, u64>,
}

impl Side {
    /// Of rounds under load.
    pub(super) fn of_rounds(name: &'static str, rounds: &[Round]) -> Self {
        let mut seen = Seen::default();
        for round in rounds {
            seen.merge(&round.seen);
        }
        let each = |part: fn(&Round) -> f64| rounds.iter().map(part).collect();
        Self {
            name,
            cost: each(|round| round.cost_us),
            ratio: None,
            per_s: each(|round| round.per_s),
            generator_percent: each(|round| round.generator_percent),
            pss_bytes: Vec::new(),
            latency_ms: Some(Percentiles::of(&seen.latency_us)),
            curve: curve(&seen.latency_us),
            values: seen.latency_us.len(),
            failures: seen.failures,
        }
    }

    /// Of held connections.
    pub(super) fn of_memory(name: &'static str, rounds: &[Memory]) -> Self {
        Self {
            name,
            cost: rounds.iter().map(|memory| memory.rss).collect(),
            ratio: None,
            per_s: Vec::new(),
            generator_percent: Vec::new(),
            pss_bytes: rounds.iter().map(|memory| memory.pss).collect(),
            latency_ms: None,
            curve: Vec::new(),
            values: 0,
            failures: BTreeMap::new(),
        }
    }

    /// Failures of all kinds.
    pub(super) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Whether the client, not this server, set the rate.
    pub(super) fn is_limited_by_client(&self) -> bool {
        Spread::of(&self.generator_percent).median >= BUSY_PERCENT
    }
}

impl Contest {
    /// With the ratios to the first side.
    pub(super) fn new(
        name: String,
        quantity: &'static str,
        unit: &'static str,
        mut sides: Vec<Side>,
    ) -> Self {
        let ours = sides
            .first()
            .map_or_else(Vec::new, |side| side.cost.clone());
        for side in sides.iter_mut().skip(1) {
            side.ratio = ratio(&ours, &side.cost);
        }
        Self {
            name,
            quantity,
            unit,
            sides,
        }
    }

    /// The peer that comes closest to the gateway, or is furthest ahead of it.
    pub(super) fn hardest(&self) -> Option<(&Side, Spread)> {
        self.sides
            .iter()
            .filter_map(|side| Some((side, side.ratio?)))
            .max_by(|a, b| a.1.median.total_cmp(&b.1.median))
    }
}

impl Comparison {
    /// Failures of all servers.
    pub(super) fn failed(&self) -> u64 {
        let sides = self.contests.iter().flat_map(|contest| &contest.sides);
        sides.map(Side::failed).sum()
    }
}

/// Ours for each unit of theirs, round by round: what the machine did to both falls out. `None` without a pair.
fn ratio(ours: &[f64], theirs: &[f64]) -> Option<Spread> {
    let pairs: Vec<f64> = ours
        .iter()
        .zip(theirs)
        .filter(|(_, theirs)| **theirs > 0.0)
        .map(|(ours, theirs)| ours / theirs)
        .collect();
    (!pairs.is_empty()).then(|| Spread::of(&pairs))
}

/// `0.39 (0.38 – 0.40)`.
pub(super) fn shown(ratio: Spread) -> String {
    format!("{:.2} ({:.2} – {:.2})", ratio.median, ratio.min, ratio.max)
}

/// Failures with the number of values that succeeded.
pub(super) fn failure_note(contest: &str, side: &Side) -> Option<String> {
    (side.failed() > 0).then(|| {
        let kinds: Vec<String> = side
            .failures
            .iter()
            .map(|(text, count)| format!("{count} x {text}"))
            .collect();
        let share = 100.0 * as_f64(side.failed()) / as_f64(side.failed() + side.values);
        format!(
            "{contest}, {}: {share:.2} % failed: {}",
            side.name,
            kinds.join("; ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(name: &'static str, cost: &[f64]) -> Side {
        let rounds: Vec<Memory> = cost
            .iter()
            .map(|rss| Memory {
                rss: *rss,
                pss: *rss,
            })
            .collect();
        Side::of_memory(name, &rounds)
    }

    #[test]
    fn ratios_are_of_pairs_of_the_same_round() {
        // The machine was half as fast in the second round: that must not show.
        let ratio = ratio(&[100.0, 200.0, 110.0], &[400.0, 800.0, 400.0]).unwrap();
        assert!((ratio.min - 0.25).abs() < 1e-9 && (ratio.median - 0.25).abs() < 1e-9);
        assert!((ratio.max - 0.275).abs() < 1e-9);
        assert_eq!(shown(ratio), "0.25 (0.25 – 0.28)");
    }

    #[test]
    fn rounds_without_a_value_have_no_ratio() {
        assert!(ratio(&[1.0], &[]).is_none());
        assert!(ratio(&[1.0], &[0.0]).is_none());
        let ratio = ratio(&[1.0, 3.0], &[0.0, 6.0]).unwrap();
        assert!((ratio.median - 0.5).abs() < 1e-9);
    }

    #[test]
    fn the_hardest_peer_has_the_largest_ratio() {
        let sides = vec![
            side("ours", &[10.0]),
            side("a", &[40.0]),
            side("b", &[8.0]),
            side("c", &[20.0]),
        ];
        let contest = Contest::new("idle".to_owned(), "memory", "bytes", sides);
        let (hardest, ratio) = contest.hardest().unwrap();
        assert_eq!(hardest.name, "b");
        assert!((ratio.median - 1.25).abs() < 1e-9);
        assert!(contest.sides[0].ratio.is_none());
    }

    #[test]
    fn failures_are_named_with_their_share() {
        let mut side = side("nginx", &[1.0]);
        assert!(failure_note("idle", &side).is_none());
        side.failures.insert("closed".to_owned(), 1);
        side.values = 99;
        assert_eq!(
            failure_note("exchange", &side).unwrap(),
            "exchange, nginx: 1.00 % failed: 1 x closed"
        );
    }
}
