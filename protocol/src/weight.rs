//! How much of its full share of agents a gateway should get. HAProxy's agent-check and the list of addresses tell it.
//!
//! A pure function of what the supervisor knows. It falls with slots that cannot serve and with load beyond half of what
//! the ready slots hold, so that a balancer moves new connections away long before any is refused.

use crate::limits::BatchLimits;
use crate::link::BatchKind;
use crate::slot::{Gateway, SlotState, SlotView};
use crate::stats::WorkerStats;

/// What a balancer should do with this gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Send it this part of its full share.
    Up {
        /// 1 to 100.
        percent: u8,
    },
    /// Send nobody new; who is connected may finish. Said when an operator wants it, and when too few slots are left.
    Drain,
    /// It cannot serve now.
    Down,
    /// It cannot serve until it is started again: every slot is parked.
    Stopped,
}

impl Standing {
    /// Of a gateway whose workers hold so many connections each.
    pub fn of(gateway: &Gateway, connections_per_worker_max: u32) -> Self {
        if gateway.is_draining {
            return Self::Drain;
        }
        let slots = lasting(gateway);
        let parked = slots.iter().filter(|slot| is_parked(slot)).count();
        if parked > 0 && parked == slots.len() {
            return Self::Stopped;
        }
        let ready: Vec<&WorkerStats> = slots
            .iter()
            .filter(|slot| slot.state == SlotState::Ready)
            .map(|slot| &slot.stats)
            .collect();
        if ready.is_empty() || is_control_gone(&ready) || has_no_address(gateway) {
            return Self::Down;
        }
        if trouble(gateway).is_some() {
            return Self::Drain;
        }
        let load = connection_load(&ready, connections_per_worker_max).max(queue_load(&ready));
        let headroom = if load <= HALF {
            WHOLE
        } else {
            2 * (WHOLE - load)
        };
        let percent = 100 * count(&ready) * headroom / (count(&slots).max(1) * WHOLE);
        Self::Up {
            // Never 0 while it serves: to HAProxy that would be a drain.
            percent: u8::try_from(percent.clamp(1, 100)).unwrap_or(100),
        }
    }

    /// 0 unless it is up.
    pub fn percent(self) -> u8 {
        match self {
            Self::Up { percent } => percent,
            Self::Drain | Self::Down | Self::Stopped => 0,
        }
    }
}

/// Why nobody new should be sent to this gateway, if so: it is drained, or half of its slots are out of service, so that
/// what is wrong is likely to reach the others. Who comes all the same is served.
pub fn trouble(gateway: &Gateway) -> Option<String> {
    if gateway.is_draining {
        return Some("the gateway is drained".into());
    }
    let slots = lasting(gateway);
    let parked = slots.iter().filter(|slot| is_parked(slot)).count();
    (parked > 0 && 2 * parked >= slots.len())
        .then(|| format!("{parked} of {} slots are parked", slots.len()))
}

fn lasting(gateway: &Gateway) -> Vec<&SlotView> {
    let slots = gateway.slots.iter();
    slots.filter(|slot| !slot.is_leaving).collect()
}

fn is_parked(slot: &SlotView) -> bool {
    slot.state == SlotState::Parked
}

/// Loads are counted in thousandths.
const WHOLE: u64 = 1000;
const HALF: u64 = WHOLE / 2;

fn count<T>(items: &[T]) -> u64 {
    u64::try_from(items.len()).unwrap_or(u64::MAX)
}

/// Workers that have reported, and none of them has a link. One that has not reported yet says nothing about control.
fn is_control_gone(ready: &[&WorkerStats]) -> bool {
    let mut reported = ready.iter().filter(|stats| stats.rss_bytes > 0).peekable();
    reported.peek().is_some() && reported.all(|stats| !stats.is_linked)
}

fn has_no_address(gateway: &Gateway) -> bool {
    use crate::address::AddressState::Serving;
    let mut addresses = gateway.addresses.iter().peekable();
    addresses.peek().is_some() && addresses.all(|view| view.state != Serving)
}

fn connection_load(ready: &[&WorkerStats], connections_per_worker_max: u32) -> u64 {
    let open: u64 = ready
        .iter()
        // A held read ends as soon as its connection is wanted.
        .map(|stats| u64::from(stats.open_connections.saturating_sub(stats.held_reads)))
        .sum();
    // A reload may have changed it; a worker that has not reported yet has what the configuration said at start.
    let most = |stats: &&WorkerStats| match stats.open_connections_max {
        0 => u64::from(connections_per_worker_max),
        most => u64::from(most),
    };
    let capacity: u64 = ready.iter().map(most).sum();
    (open.saturating_mul(WHOLE) / capacity.max(1)).min(WHOLE)
}

/// How full the queues toward control are: of each worker the fullest, and of those the mean.
fn queue_load(ready: &[&WorkerStats]) -> u64 {
    let fullest = |stats: &WorkerStats| {
        let kinds = BatchKind::ALL.into_iter().zip(&stats.batches);
        kinds
            // One request a time, for which nobody waits.
            .filter(|(kind, _)| *kind != BatchKind::Seen)
            .map(|(kind, batches)| {
                let most = BatchLimits::of(kind).waiting_requests_max;
                let most = u64::try_from(most).unwrap_or(u64::MAX).max(1);
                (u64::from(batches.waiting) * WHOLE / most).min(WHOLE)
            })
            .max()
            .unwrap_or_default()
    };
    let sum: u64 = ready.iter().map(|stats| fullest(stats)).sum();
    sum / count(ready).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::address::{AddressState, AddressView};
    use crate::ids::SlotIndex;

    const PER_WORKER: u32 = 1000;

    fn slot(state: SlotState, open: u32, waiting_logs: u32, is_linked: bool) -> SlotView {
        let mut stats = WorkerStats {
            open_connections: open,
            rss_bytes: 1,
            is_linked,
            ..WorkerStats::default()
        };
        stats.batches[BatchKind::Log as usize].waiting = waiting_logs;
        SlotView {
            slot: SlotIndex(0),
            state,
            pid: None,
            uptime_s: 0,
            restarts: 0,
            exchanges_per_s: 0.0,
            stats,
            last_end: String::new(),
            hangs: 0,
            parked_for: String::new(),
            retry_in_s: None,
            is_leaving: false,
        }
    }

    fn leaving(mut slot: SlotView) -> SlotView {
        slot.is_leaving = true;
        slot
    }

    fn ready(open: u32) -> SlotView {
        slot(SlotState::Ready, open, 0, true)
    }

    fn holding(open: u32, held_reads: u32) -> SlotView {
        let mut slot = ready(open);
        slot.stats.held_reads = held_reads;
        slot
    }

    fn of(slots: Vec<SlotView>) -> Standing {
        let gateway = Gateway {
            slots,
            ..Gateway::default()
        };
        Standing::of(&gateway, PER_WORKER)
    }

    fn parked() -> SlotView {
        slot(SlotState::Parked, 0, 0, false)
    }

    #[test]
    fn half_of_the_slots_are_too_few() {
        for (slots, standing) in [
            (vec![ready(0), parked()], Standing::Drain),
            (vec![ready(0), parked(), parked()], Standing::Drain),
            (
                vec![ready(0), ready(0), parked()],
                Standing::Up { percent: 66 },
            ),
            (vec![parked(), parked()], Standing::Stopped),
        ] {
            let text = format!("{slots:?}");
            assert_eq!(of(slots), standing, "{text}");
        }
    }

    #[test]
    fn it_falls_with_slots_and_with_load_beyond_half() {
        for (slots, percent) in [
            (vec![ready(0), ready(0)], 100),
            (vec![ready(500), ready(500)], 100),
            (vec![ready(750), ready(750)], 50),
            (vec![ready(1000), ready(1000)], 1),
            (vec![holding(900, 400)], 100),
            (vec![holding(900, 150), ready(750)], 50),
            (vec![ready(5000)], 1),
            (vec![ready(0), slot(SlotState::Backoff, 0, 0, false)], 50),
            (vec![ready(0), ready(0), parked(), ready(0)], 75),
            (
                vec![ready(0), leaving(slot(SlotState::Draining, 9, 0, true))],
                100,
            ),
            (vec![ready(0), leaving(parked())], 100),
            (vec![slot(SlotState::Ready, 0, 3072, true)], 50),
            (vec![slot(SlotState::Ready, 0, 9000, true), ready(0)], 100),
        ] {
            let text = format!("{slots:?}");
            assert_eq!(of(slots), Standing::Up { percent }, "{text}");
        }
    }

    #[test]
    fn what_a_worker_says_of_its_bound_holds() {
        let mut lowered = ready(75);
        lowered.stats.open_connections_max = 100;
        assert_eq!(of(vec![lowered]), Standing::Up { percent: 50 });
    }

    #[test]
    fn what_cannot_serve_is_down() {
        let starting = || slot(SlotState::Starting, 0, 0, false);
        assert_eq!(of(vec![]), Standing::Down);
        assert_eq!(of(vec![starting(), starting()]), Standing::Down);
        assert_eq!(of(vec![parked(), starting()]), Standing::Down);
        assert_eq!(of(vec![parked(), parked()]), Standing::Stopped);
        let unlinked = || slot(SlotState::Ready, 0, 0, false);
        assert_eq!(of(vec![unlinked(), unlinked()]), Standing::Down);
        assert_eq!(
            of(vec![unlinked(), ready(0)]),
            Standing::Up { percent: 100 }
        );
        // Has not reported yet.
        let mut new = unlinked();
        new.stats = WorkerStats::default();
        assert_eq!(of(vec![new]), Standing::Up { percent: 100 });
        let mut gateway = Gateway {
            slots: vec![ready(0)],
            is_draining: true,
            ..Gateway::default()
        };
        assert_eq!(Standing::of(&gateway, PER_WORKER), Standing::Drain);
        gateway.is_draining = false;
        gateway.addresses = vec![AddressView {
            address: ([192, 0, 2, 1], 8080).into(),
            state: AddressState::Degraded,
            reason: "gone".into(),
            is_claimed: false,
            is_proxied: false,
            open: 0,
            accepted: 0,
            accepts_per_s: 0.0,
            refused: 0,
            share: 0.0,
            foreign_listeners: 0,
        }];
        assert_eq!(Standing::of(&gateway, PER_WORKER), Standing::Down);
    }

    proptest! {
        #[test]
        fn more_load_never_weighs_more_and_nothing_that_serves_weighs_nothing(
            open in proptest::collection::vec(0_u32..3000, 1..5),
            waiting in 0_u32..10_000,
            more in 0_u32..3000,
            per_worker in 0_u32..2000,
        ) {
            let slots = |more: u32| {
                open.iter().map(|open| slot(SlotState::Ready, open + more, waiting, true)).collect()
            };
            let percent = |more| {
                let gateway = Gateway { slots: slots(more), ..Gateway::default() };
                Standing::of(&gateway, per_worker).percent()
            };
            prop_assert!(percent(more) >= 1 && percent(0) <= 100);
            prop_assert!(percent(more) <= percent(0));
        }
    }
}
