//! When a host's details and labels are due. Pure: `now` is an argument, and nothing is remembered here.
//!
//! Invariants: what was handed out is not handed out again before [`REDELIVER_AFTER_S`] have passed without an answer.
//! A host's place within the jitter depends on its id alone, so it is the same after a restart and on every node.
//! How many of those that are due get their work in a second is decided in `pacer.rs`.

use std::time::Duration;

use fleet_protocol::config::Osquery;
use fleet_protocol::ids::{HostId, UnixSeconds};

/// Agents may run queries for minutes before they answer.
pub(crate) const REDELIVER_AFTER_S: u32 = 300;
/// A host that has not told its name or platform polls faster for this long.
pub(crate) const ACCELERATE_S: u32 = 10;
/// What is due this soon goes out with what is due now: one read and one write instead of two.
const EARLY_S: u32 = 60;

/// The intervals in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Seconds between two runs of the detail queries.
    pub(crate) detail_interval_s: u32,
    /// Seconds between two runs of the label queries.
    pub(crate) label_interval_s: u32,
    /// Part of the intervals over which hosts are spread.
    pub(crate) jitter_percent: u8,
}

/// What decides about one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WorkState {
    /// Which host.
    pub(crate) host: HostId,
    /// Last details; 0 is never.
    pub(crate) detail_updated_at: UnixSeconds,
    /// Last labels; 0 is never.
    pub(crate) label_updated_at: UnixSeconds,
    /// An operator wants both now.
    pub(crate) is_refetch: bool,
    /// When detail queries were handed out that are not answered yet; 0 is not.
    pub(crate) detail_handed_at: UnixSeconds,
    /// When label queries were handed out that are not answered yet; 0 is not.
    pub(crate) label_handed_at: UnixSeconds,
}

/// What the label queries for a host's platform ask of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LabelDemand {
    /// When the youngest of these queries came or changed.
    pub(crate) changed_at: UnixSeconds,
    /// Seconds over which the hosts that it makes due are spread.
    pub(crate) herd_s: u32,
}

/// What is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// The detail queries.
    pub(crate) details: bool,
    /// The label queries.
    pub(crate) labels: bool,
}

impl Due {
    /// Whether something is.
    pub(crate) fn is_any(self) -> bool {
        self.details || self.labels
    }
}

impl Schedule {
    /// From the options.
    pub(crate) fn of(options: &Osquery) -> Self {
        Self {
            detail_interval_s: whole_seconds(options.detail_update_interval),
            label_interval_s: whole_seconds(options.label_update_interval),
            jitter_percent: options.max_jitter_percent,
        }
    }

    /// What to hand out at `now`. `demand` is `None` when no label query is for this host.
    pub(crate) fn due(
        &self,
        host: &WorkState,
        demand: Option<LabelDemand>,
        now: UnixSeconds,
    ) -> Due {
        let details_at = self.detail_due_at(host);
        let labels_at = demand.map(|demand| self.label_due_at(host, demand));
        let is_any = details_at <= now || labels_at.is_some_and(|at| at <= now);
        let is_due = |at: UnixSeconds, handed_at: UnixSeconds| {
            at <= now || (is_any && handed_at.0 == 0 && at <= after(now, EARLY_S))
        };
        Due {
            details: is_due(details_at, host.detail_handed_at),
            labels: labels_at.is_some_and(|at| is_due(at, host.label_handed_at)),
        }
    }

    /// When the host must ask control again.
    pub(crate) fn next_due_at(&self, host: &WorkState, demand: Option<LabelDemand>) -> UnixSeconds {
        let details = self.detail_due_at(host);
        demand.map_or(details, |demand| {
            details.min(self.label_due_at(host, demand))
        })
    }

    /// Since when a host's work has been due, as far as this gives it a place before others: what an operator asked
    /// for goes first, and a host that enrolled has waited since then.
    pub(crate) fn waiting_since(
        &self,
        host: &WorkState,
        demand: Option<LabelDemand>,
        enrolled_at: UnixSeconds,
    ) -> UnixSeconds {
        let due_at = self.next_due_at(host, demand);
        if host.is_refetch && host.detail_updated_at.0 != 0 {
            return due_at;
        }
        due_at.max(enrolled_at)
    }

    /// Whether details that arrive now were asked for, by us or, for a host that is due, by another node or an earlier
    /// life of this one.
    pub(crate) fn expects_details(&self, host: &WorkState, now: UnixSeconds) -> bool {
        host.detail_handed_at.0 != 0 || self.detail_due_at(host) <= now
    }

    /// The same for labels.
    pub(crate) fn expects_labels(
        &self,
        host: &WorkState,
        demand: Option<LabelDemand>,
        now: UnixSeconds,
    ) -> bool {
        host.label_handed_at.0 != 0
            || demand.is_some_and(|demand| self.label_due_at(host, demand) <= now)
    }

    fn detail_due_at(&self, host: &WorkState) -> UnixSeconds {
        let due_at = if host.is_refetch {
            UnixSeconds(0)
        } else {
            self.cycle(host.host, host.detail_updated_at, self.detail_interval_s)
        };
        not_before_redelivery(due_at, host.detail_handed_at)
    }

    fn label_due_at(&self, host: &WorkState, demand: LabelDemand) -> UnixSeconds {
        let mut due_at = if host.is_refetch {
            UnixSeconds(0)
        } else {
            self.cycle(host.host, host.label_updated_at, self.label_interval_s)
        };
        if demand.changed_at >= host.label_updated_at {
            let wait_s = spread(host.host, demand.herd_s, Salt::Herd);
            due_at = due_at.min(after(demand.changed_at, wait_s));
        }
        not_before_redelivery(due_at, host.label_handed_at)
    }

    fn cycle(&self, host: HostId, updated_at: UnixSeconds, interval_s: u32) -> UnixSeconds {
        if updated_at.0 == 0 {
            return UnixSeconds(0);
        }
        let width = u64::from(interval_s) * u64::from(self.jitter_percent.min(100)) / 100;
        let width = u32::try_from(width).unwrap_or(u32::MAX);
        after(
            updated_at,
            // The same place for both, so that they stay together.
            interval_s.saturating_add(spread(host, width, Salt::Cycle)),
        )
    }
}

/// `seconds` after `at`.
pub(crate) fn after(at: UnixSeconds, seconds: u32) -> UnixSeconds {
    UnixSeconds(at.0.saturating_add(seconds))
}

fn not_before_redelivery(due_at: UnixSeconds, handed_at: UnixSeconds) -> UnixSeconds {
    if handed_at.0 == 0 {
        due_at
    } else {
        due_at.max(after(handed_at, REDELIVER_AFTER_S))
    }
}

/// Keeps the spreads of one host independent of each other.
#[derive(Clone, Copy)]
pub(crate) enum Salt {
    /// Within the jitter of an interval.
    Cycle = 1,
    /// Among hosts that one change makes due.
    Herd = 2,
    /// Among hosts that have waited equally long.
    Turn = 3,
}

/// A stable number in `0..=width`, evenly spread over host ids.
pub(crate) fn spread(host: HostId, width: u32, salt: Salt) -> u32 {
    // Finalizer of splitmix64: neighbouring ids land far apart.
    let mut hash = u64::from(host.0) | ((salt as u64) << 32);
    hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    let scaled = ((hash >> 32) * (u64::from(width) + 1)) >> 32;
    u32::try_from(scaled).unwrap_or(width)
}

fn whole_seconds(span: Duration) -> u32 {
    u32::try_from(span.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SCHEDULE: Schedule = Schedule {
        detail_interval_s: 3600,
        label_interval_s: 3600,
        jitter_percent: 10,
    };
    const NOW: UnixSeconds = UnixSeconds(1_800_000_000);

    fn demand(changed_at: u32, herd_s: u32) -> Option<LabelDemand> {
        Some(LabelDemand {
            changed_at: UnixSeconds(changed_at),
            herd_s,
        })
    }

    fn fresh(host: u32) -> WorkState {
        WorkState {
            host: HostId(host),
            detail_updated_at: NOW,
            label_updated_at: NOW,
            ..WorkState::default()
        }
    }

    #[test]
    fn a_new_host_is_due_for_both_once() {
        let mut host = WorkState {
            host: HostId(7),
            ..WorkState::default()
        };
        let due = SCHEDULE.due(&host, demand(1, 0), NOW);
        assert_eq!(
            due,
            Due {
                details: true,
                labels: true
            }
        );
        assert!(!SCHEDULE.due(&host, None, NOW).labels);
        (host.detail_handed_at, host.label_handed_at) = (NOW, NOW);
        for wait in [0, 1, REDELIVER_AFTER_S - 1] {
            assert_eq!(
                SCHEDULE.due(&host, demand(1, 0), after(NOW, wait)),
                Due::default()
            );
        }
        assert_eq!(
            SCHEDULE.next_due_at(&host, demand(1, 0)),
            after(NOW, REDELIVER_AFTER_S)
        );
        assert!(
            SCHEDULE
                .due(&host, demand(1, 0), after(NOW, REDELIVER_AFTER_S))
                .details
        );
        assert!(SCHEDULE.expects_details(&host, NOW));
    }

    #[test]
    fn refetch_makes_both_due() {
        let host = WorkState {
            is_refetch: true,
            ..fresh(3)
        };
        let due = SCHEDULE.due(&host, demand(1, 0), NOW);
        assert!(due.details && due.labels);
    }

    #[test]
    fn unasked_details_are_not_expected() {
        assert!(!SCHEDULE.expects_details(&fresh(3), after(NOW, 60)));
        assert!(!SCHEDULE.expects_labels(&fresh(3), demand(1, 0), after(NOW, 60)));
        assert!(!SCHEDULE.expects_labels(&fresh(3), None, after(NOW, 86_400)));
        assert!(SCHEDULE.expects_details(&fresh(3), after(NOW, 4000)));
    }

    #[test]
    fn a_new_label_is_due_at_once_in_a_small_fleet_and_spread_in_a_large_one() {
        let changed_at = NOW.0 + 100;
        let small = SCHEDULE.next_due_at(&fresh(3), demand(changed_at, 0));
        assert_eq!(small, UnixSeconds(changed_at));
        let large: Vec<u32> = (0..2000)
            .map(|host| {
                SCHEDULE
                    .next_due_at(&fresh(host), demand(changed_at, 500))
                    .0
            })
            .collect();
        assert!(
            large
                .iter()
                .all(|at| (changed_at..=changed_at + 500).contains(at))
        );
        let first_half = large.iter().filter(|at| **at < changed_at + 250).count();
        assert!((800..1200).contains(&first_half), "{first_half}");
    }

    #[test]
    fn a_label_that_changed_in_the_same_second_is_not_missed() {
        assert!(SCHEDULE.due(&fresh(3), demand(NOW.0, 0), NOW).labels);
        assert!(!SCHEDULE.due(&fresh(3), demand(NOW.0 - 1, 0), NOW).labels);
    }

    #[test]
    fn labels_go_out_with_details_that_are_due() {
        let mut host = fresh(3);
        host.label_updated_at = after(NOW, 30);
        let due_at = SCHEDULE.next_due_at(&host, demand(1, 0));
        let both = Due {
            details: true,
            labels: true,
        };
        assert_eq!(SCHEDULE.due(&host, demand(1, 0), due_at), both);
        host.label_handed_at = UnixSeconds(due_at.0 - REDELIVER_AFTER_S + 30);
        assert!(!SCHEDULE.due(&host, demand(1, 0), due_at).labels);
        host.label_handed_at = UnixSeconds(0);
        host.label_updated_at = after(NOW, EARLY_S + 1);
        assert!(!SCHEDULE.due(&host, demand(1, 0), due_at).labels);
    }

    proptest! {
        #[test]
        fn cycles_stay_within_their_bounds(
            host in any::<u32>(),
            interval_s in 60_u32..1_000_000,
            jitter_percent in 0_u8..=100,
        ) {
            let schedule = Schedule { detail_interval_s: interval_s, label_interval_s: interval_s, jitter_percent };
            let due_at = schedule.next_due_at(&fresh(host), None);
            prop_assert_eq!(due_at, schedule.next_due_at(&fresh(host), None));
            let width = u64::from(interval_s) * u64::from(jitter_percent) / 100;
            prop_assert!(due_at >= after(NOW, interval_s));
            prop_assert!(u64::from(due_at.0) <= u64::from(NOW.0) + u64::from(interval_s) + width);
        }

        #[test]
        fn next_due_is_when_something_is_due(
            host in any::<u32>(),
            updated in 0_u32..20_000,
            labelled in 0_u32..20_000,
            handed in prop::option::of(0_u32..600),
            changed in 0_u32..20_000,
            is_refetch in any::<bool>(),
        ) {
            let before = |seconds| UnixSeconds(NOW.0 - seconds);
            let host = WorkState {
                host: HostId(host),
                detail_updated_at: before(updated),
                label_updated_at: before(labelled),
                is_refetch,
                detail_handed_at: handed.map_or(UnixSeconds(0), before),
                label_handed_at: UnixSeconds(0),
            };
            let demand = demand(NOW.0 - changed, 60);
            let next = SCHEDULE.next_due_at(&host, demand);
            prop_assert_eq!(SCHEDULE.due(&host, demand, NOW) == Due::default(), next > NOW);
            prop_assert!(SCHEDULE.due(&host, demand, next) != Due::default());
        }
    }

    #[test]
    fn neighbours_spread_evenly() {
        let mut buckets = [0_u32; 10];
        for host in 0..10_000 {
            let place = spread(HostId(host), 99, Salt::Cycle);
            buckets[(place / 10) as usize] += 1;
        }
        assert!(
            buckets.iter().all(|count| (850..1150).contains(count)),
            "{buckets:?}"
        );
    }
}
