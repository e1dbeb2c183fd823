//! Counters of what was decided about hosts, for metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use fleet_protocol::agent::Answer;
use fleet_protocol::ids::FeedSeq;
use fleet_protocol::reject::Reject;

use crate::model::enrollment::Identity;
use crate::pacer::PacerStatistics;
use crate::results::Tally;

/// Counters since the process started, and gauges now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AgentsStatistics {
    pub(crate) is_loaded: bool,
    /// Hosts in the directory.
    pub(crate) hosts: u64,
    /// Distinct configs in use.
    pub(crate) answers: u64,
    /// Position of the feed.
    pub(crate) feed_seq: FeedSeq,
    pub(crate) subscribers: u64,
    /// Subscribers that fell behind.
    pub(crate) subscribers_dropped: u64,
    /// Seen marks that wait to be written.
    pub(crate) seen_waiting: u64,
    /// How due work is handed out.
    pub(crate) pacer: PacerStatistics,
    /// Enrolments by outcome: `enrolled`, or the refusal's label.
    pub(crate) enrollments: Vec<(&'static str, u64)>,
    /// Enrolments by identity: `new`, `same`, `taken_over`, `clone`.
    pub(crate) identities: Vec<(&'static str, u64)>,
    /// Distributed results by outcome.
    pub(crate) results: Vec<(&'static str, u64)>,
    /// Results of hosts that the store will never take.
    pub(crate) writes_lost: u64,
    /// Queries handed out.
    pub(crate) queries_handed_out: u64,
    /// Calls of the store that failed.
    pub(crate) store_failures: u64,
    /// Hosts that share their identifier with others, as counted last.
    pub(crate) clone_hosts: u64,
    /// Changes in the store that a newer build wrote.
    pub(crate) unknown_changes: u64,
}

/// Counters that many tasks add to.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    enrolled: AtomicU64,
    enroll_refused: [AtomicU64; Reject::ALL.len()],
    identities: [AtomicU64; 4],
    results: [AtomicU64; 6],
    writes_lost: AtomicU64,
    queries_handed_out: AtomicU64,
    store_failures: AtomicU64,
    clone_hosts: AtomicU64,
    unknown_changes: AtomicU64,
}

impl Counters {
    pub(crate) fn count_unknown_changes(&self, changes: u64) {
        self.unknown_changes.fetch_add(changes, Relaxed);
    }

    pub(crate) fn count_enrollment(&self, answer: &Answer) {
        match answer {
            Answer::Enrolled { .. } => {
                self.enrolled.fetch_add(1, Relaxed);
            }
            Answer::Refused(reject) => {
                if let Some(counter) = self.enroll_refused.get(reject.index()) {
                    counter.fetch_add(1, Relaxed);
                }
            }
            _ => {}
        }
    }

    pub(crate) fn count_identity(&self, identity: Identity) {
        let [new, same, taken_over, clone] = &self.identities;
        match identity {
            Identity::New => new,
            Identity::Same => same,
            Identity::TakenOver => taken_over,
            Identity::Clone => clone,
        }
        .fetch_add(1, Relaxed);
    }

    pub(crate) fn count_results(&self, tally: &Tally) {
        let counts = [
            tally.taken,
            tally.failed,
            tally.no_table,
            tally.denylisted,
            tally.unasked,
            tally.unknown,
        ];
        for (counter, count) in self.results.iter().zip(counts) {
            counter.fetch_add(count, Relaxed);
        }
    }

    pub(crate) fn count_lost_write(&self) {
        self.writes_lost.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_handed_out(&self, queries: usize) {
        self.queries_handed_out.fetch_add(queries as u64, Relaxed);
    }

    pub(crate) fn count_store_failure(&self) {
        self.store_failures.fetch_add(1, Relaxed);
    }

    pub(crate) fn set_clone_hosts(&self, hosts: u64) {
        self.clone_hosts.store(hosts, Relaxed);
    }

    /// Clones that enrolled for the first time.
    pub(crate) fn clones_enrolled(&self) -> u64 {
        let [.., clone] = &self.identities;
        clone.load(Relaxed)
    }

    pub(crate) fn fill(&self, statistics: &mut AgentsStatistics) {
        let named = |names: &[&'static str], counters: &[AtomicU64]| {
            names
                .iter()
                .zip(counters)
                .map(|(name, counter)| (*name, counter.load(Relaxed)))
                .collect::<Vec<_>>()
        };
        statistics.enrollments = named(&Reject::ALL.map(Reject::label), &self.enroll_refused);
        statistics.enrollments.retain(|(_, count)| *count > 0);
        statistics
            .enrollments
            .push(("enrolled", self.enrolled.load(Relaxed)));
        statistics.identities = named(&["new", "same", "taken_over", "clone"], &self.identities);
        let outcomes = [
            "taken",
            "failed",
            "no_table",
            "denylisted",
            "unasked",
            "unknown",
        ];
        statistics.results = named(&outcomes, &self.results);
        statistics.writes_lost = self.writes_lost.load(Relaxed);
        statistics.queries_handed_out = self.queries_handed_out.load(Relaxed);
        statistics.clone_hosts = self.clone_hosts.load(Relaxed);
        statistics.unknown_changes = self.unknown_changes.load(Relaxed);
        statistics.store_failures = self.store_failures.load(Relaxed);
    }
}
