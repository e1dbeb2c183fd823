//! The worker's report to the supervisor.

use fleet_protocol::link::BatchKind;
use fleet_protocol::stats::WorkerStats;

use crate::state::State;

/// All counters, with the gauges that this half of the worker knows filled in (batches, held reads, table, link, memory);
/// open connections and tunnels stay as the caller left them in `state.stats`.
pub(crate) fn report(state: &State) -> WorkerStats {
    let mut stats = state.stats.borrow().clone();
    let waiting = state.waiting.borrow();
    for (kind, batch) in BatchKind::ALL.into_iter().zip(&mut stats.batches) {
        batch.waiting = gauge(waiting.queued(kind));
        batch.in_flight = gauge(waiting.window.in_flight(kind));
    }
    let holds = state.holds.borrow();
    stats.held_reads = gauge(holds.len());
    stats.hold_ends = holds.ends();
    stats.shed = state.gate.borrow().shed();
    let table = state.table.borrow();
    stats.hosts = gauge(table.hosts_len());
    stats.answers = gauge(table.answers_len());
    stats.feed_seq = table.position().unwrap_or_default().0;
    stats.rss_bytes = fleet_child::memory::resident_bytes();
    stats
}

fn gauge(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use fleet_protocol::agent::Request;
    use fleet_protocol::ids::HostId;
    use std::time::Instant;

    use super::*;
    use crate::hosts::test_host;
    use crate::state::test_state;

    #[test]
    fn gauges_are_filled_in() {
        let state = test_state("/nowhere".into());
        state.table.borrow_mut().insert_host(test_host(1, "one"));
        let _ticket = state.ask(Request::Read(HostId(1)), Instant::now()).ok();
        let stats = report(&state);
        assert_eq!(stats.hosts, 1);
        assert_eq!(stats.batches[BatchKind::Read.index()].waiting, 1);
        assert!(stats.rss_bytes > 0);
        assert!(!stats.is_linked);
    }
}
