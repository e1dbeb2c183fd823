//! Counts statements by name.
//!
//! Owner of the counters; a lock is held only to add to them or to copy them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fleet_protocol::stats::Histogram;

use super::gate::GateStatistics;
use super::progress::Filling;
use super::replicas::ReplicaStatistics;

/// Counters of one statement.
#[derive(Clone, Debug)]
pub(crate) struct StatementStats {
    pub(crate) name: &'static str,
    /// Round trips, failed ones included.
    pub(crate) count: u64,
    pub(crate) errors: u64,
    pub(crate) latency_us: Histogram,
}

/// Counters and gauges of the store.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoreStatistics {
    /// By name; BEGIN and COMMIT included.
    pub(crate) statements: Vec<StatementStats>,
    /// Operations tried again after a deadlock or lock wait.
    pub(crate) retries: u64,
    /// Wait for a connection from the pool.
    pub(crate) acquire_us: Histogram,
    /// The breaker, and what is known of a demoted server.
    pub(crate) gate: GateStatistics,
    /// By address.
    pub(crate) replicas: Vec<ReplicaStatistics>,
    /// Backfills, by migration.
    pub(crate) fillings: Vec<Filling>,
    /// Connections open now.
    pub(crate) connections: u32,
    /// Of those, in no use.
    pub(crate) idle_connections: u32,
}

impl StoreStatistics {
    /// Statements of every name.
    #[cfg(test)]
    pub(crate) fn statements_total(&self) -> u64 {
        self.statements
            .iter()
            .map(|statement| statement.count)
            .sum()
    }
}

#[derive(Default)]
struct Counters {
    statements: BTreeMap<&'static str, StatementStats>,
    retries: u64,
    acquire_us: Histogram,
}

/// The live counters.
#[derive(Default)]
pub(super) struct Statistics(Mutex<Counters>);

impl Statistics {
    fn lock(&self) -> MutexGuard<'_, Counters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn statement(&self, name: &'static str, took: Duration, is_error: bool) {
        let mut counters = self.lock();
        let stats = counters
            .statements
            .entry(name)
            .or_insert_with(|| StatementStats {
                name,
                count: 0,
                errors: 0,
                latency_us: Histogram::default(),
            });
        stats.count += 1;
        stats.errors += u64::from(is_error);
        stats.latency_us.observe_us(micros(took));
    }

    pub(super) fn acquired(&self, took: Duration) {
        self.lock().acquire_us.observe_us(micros(took));
    }

    pub(super) fn retried(&self) {
        self.lock().retries += 1;
    }

    /// A copy, without the pools' gauges.
    pub(super) fn snapshot(&self) -> StoreStatistics {
        let counters = self.lock();
        StoreStatistics {
            statements: counters.statements.values().cloned().collect(),
            retries: counters.retries,
            acquire_us: counters.acquire_us.clone(),
            ..StoreStatistics::default()
        }
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
