//! Distributed results: from names back to details and labels, and on to the store, a batch at a time.
//!
//! Invariants: a batch costs the store at most one call for details and one for labels; what was not asked for is
//! counted and dropped; what an unavailable store cannot take goes into the spool, and only when that cannot take it
//! either agents keep their results, since anything else would make them send the same for ever.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use fleet_protocol::agent::{Answer, QueryResult, Write};
use fleet_protocol::ids::{HostId, RequestId, UnixSeconds};
use fleet_protocol::reject::Reject;

use crate::agents::{Agents, lock};
use crate::campaigns::take_live;
use crate::detail_queries::{DETAIL_PREFIX, DetailQuery};
use crate::details::Facts;
use crate::labels::{LABEL_PREFIX, has_rows, label_of_tail};
use crate::model::host::HostDetails;
use crate::model::label::{LabelId, LabelResult};
use crate::roster::Expectation;
use crate::spool::Record;
use crate::store;

/// The same warning is written once in this time, seconds.
const WARN_EVERY_S: u32 = 3600;
/// Warnings that are remembered.
const WARNINGS_MAX: usize = 1024;

/// What became of single results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Taken.
    pub(crate) taken: u64,
    /// The query failed on the host; the old value stays.
    pub(crate) failed: u64,
    /// The host lacks the table; expected on some.
    pub(crate) no_table: u64,
    /// Refused by the agent after it died in that query.
    pub(crate) denylisted: u64,
    /// Known by name, but nobody asked.
    pub(crate) unasked: u64,
    /// Not a name of ours.
    pub(crate) unknown: u64,
}

/// What one host's results of a batch come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Routed {
    /// Some detail query was answered.
    pub(crate) facts: Option<Facts>,
    /// Label queries that were answered.
    pub(crate) memberships: BTreeMap<LabelId, bool>,
    /// Some label query was answered, if only by failing.
    pub(crate) has_labels: bool,
    /// Where the latest came from.
    pub(crate) address: Option<IpAddr>,
    /// Names of queries that the agent refuses.
    pub(crate) denylisted: Vec<String>,
    /// Counts.
    pub(crate) tally: Tally,
}

impl Routed {
    /// Takes the results of one write.
    pub(crate) fn take(&mut self, results: &[QueryResult], expectation: &Expectation) {
        for result in results {
            self.take_one(result, expectation);
        }
    }

    fn take_one(&mut self, result: &QueryResult, expectation: &Expectation) {
        let detail = result
            .name
            .strip_prefix(DETAIL_PREFIX)
            .and_then(DetailQuery::of_tail);
        if let Some(query) = detail {
            if !expectation.details || !query.is_for(expectation.class) {
                self.tally.unasked += 1;
                return;
            }
            let facts = self.facts.get_or_insert_default();
            if result.status == 0 {
                // No rows are an answer too: a host may have no address.
                facts.take(query, result);
                self.tally.taken += 1;
            } else {
                self.count_failure(result);
            }
            return;
        }
        let label = result
            .name
            .strip_prefix(LABEL_PREFIX)
            .and_then(label_of_tail);
        let Some(label) = label else {
            self.tally.unknown += 1;
            return;
        };
        let is_asked = expectation
            .labels
            .as_ref()
            .is_some_and(|labels| labels.ids.binary_search(&label).is_ok());
        if !is_asked {
            self.tally.unasked += 1;
            return;
        }
        self.has_labels = true;
        if result.status == 0 {
            self.memberships.insert(label, has_rows(&result.rows));
            self.tally.taken += 1;
        } else {
            self.count_failure(result);
        }
    }

    fn count_failure(&mut self, result: &QueryResult) {
        if result.message.contains("no such table") {
            self.tally.no_table += 1;
        } else if result.message.contains("denylisted") {
            self.tally.denylisted += 1;
            self.denylisted.push(result.name.clone());
        } else {
            self.tally.failed += 1;
        }
    }
}

/// Keeps the log from repeating itself.
#[derive(Debug, Default)]
pub(crate) struct Warned {
    last: HashMap<String, UnixSeconds>,
}

impl Warned {
    /// Whether it is time to say this again.
    pub(crate) fn may_warn(&mut self, what: &str, now: UnixSeconds) -> bool {
        let is_old = |at: UnixSeconds| now.0.saturating_sub(at.0) >= WARN_EVERY_S;
        if self.last.get(what).is_some_and(|at| !is_old(*at)) {
            return false;
        }
        if self.last.len() >= WARNINGS_MAX {
            self.last.retain(|_, at| !is_old(*at));
        }
        if self.last.len() >= WARNINGS_MAX {
            return false;
        }
        self.last.insert(what.to_owned(), now);
        true
    }

    /// What was wrong is right again: the next time is worth a word.
    pub(crate) fn clear(&mut self, what: &str) {
        self.last.remove(what);
    }
}

/// What the store is asked to write for a batch.
#[derive(Default)]
struct Writes {
    details: Vec<HostDetails>,
    labels: Vec<LabelResult>,
}

/// Which of them are on a disk, here or in the store.
#[derive(Clone, Copy, Debug)]
struct Stored {
    details: bool,
    labels: bool,
}

impl Agents {
    /// Answers a batch of results.
    pub(crate) async fn write_batch(
        &self,
        mut requests: Vec<(RequestId, Write)>,
        now: UnixSeconds,
    ) -> Vec<(RequestId, Answer)> {
        let hosts: Vec<HostId> = requests.iter().map(|(_, write)| write.host).collect();
        let refusals = self.resolve_hosts(&hosts, now).await;
        let live = take_live(&mut requests, &refusals);
        let writes = self.route(&requests, &refusals, now);
        let (stored, again) = tokio::join!(self.store_writes(&writes), self.campaigns.take(live));
        self.apply(&writes, stored);
        let failed = |host: HostId| {
            let in_details = writes.details.iter().any(|details| details.host == host);
            let in_labels = writes.labels.iter().any(|result| result.host == host);
            (in_details && !stored.details) || (in_labels && !stored.labels)
        };
        let is_all_stored = stored.details && stored.labels;
        requests
            .into_iter()
            .map(|(id, write)| {
                let answer = match refusals.get(&write.host) {
                    Some(reject) => Answer::Refused(*reject),
                    None if again.contains(&write.host)
                        || (!is_all_stored && failed(write.host)) =>
                    {
                        Answer::Refused(Reject::StoreUnavailable)
                    }
                    None => Answer::Accepted,
                };
                (id, answer)
            })
            .collect()
    }

    fn route(
        &self,
        requests: &[(RequestId, Write)],
        refusals: &HashMap<HostId, Reject>,
        now: UnixSeconds,
    ) -> Writes {
        let mut by_host: BTreeMap<HostId, (Routed, Expectation)> = BTreeMap::new();
        let mut roster = lock(&self.roster);
        for (_, write) in requests {
            if refusals.contains_key(&write.host) {
                continue;
            }
            if let Some((routed, expectation)) = by_host.get_mut(&write.host) {
                routed.take(&write.results, expectation);
                routed.address = Some(write.address);
            } else if let Some(expectation) = roster.expectation(write.host, now) {
                roster.mark_seen(write.host, now);
                let mut routed = Routed {
                    address: Some(write.address),
                    ..Routed::default()
                };
                routed.take(&write.results, &expectation);
                by_host.insert(write.host, (routed, expectation));
            }
        }
        drop(roster);
        let mut writes = Writes::default();
        for (host, (routed, expectation)) in by_host {
            self.counters.count_results(&routed.tally);
            for name in &routed.denylisted {
                if lock(&self.warned).may_warn(name, now) {
                    tracing::warn!(%host, query = %name, "an agent refuses this query: it died while running it");
                }
            }
            if let Some(mut facts) = routed.facts {
                facts.columns.public_ip = routed.address.map(|address| address.to_string());
                writes.details.push(HostDetails {
                    host,
                    at: now,
                    columns: facts.columns,
                    details: facts.details,
                });
            }
            if routed.has_labels {
                writes.labels.push(LabelResult {
                    host,
                    // A label that came after the hand-out must make the host due again.
                    at: expectation.label_handed_at.unwrap_or(now),
                    memberships: routed.memberships.into_iter().collect(),
                });
            }
        }
        writes
    }

    /// Into the store, or else into the spool: what is acknowledged is on a disk.
    async fn store_writes(&self, writes: &Writes) -> Stored {
        let details = self.store_details(&writes.details).await.is_ok();
        // What kept the details out would keep the labels waiting as long.
        let labels = details && self.store_labels(&writes.labels).await.is_ok();
        if details && labels {
            return Stored { details, labels };
        }
        let record = Record {
            details: if details {
                Vec::new()
            } else {
                writes.details.clone()
            },
            labels: writes.labels.clone(),
        };
        let kept = self.spool.append(&record).await;
        if let Err(error) = &kept
            && lock(&self.warned).may_warn("spool", crate::agents::now())
        {
            tracing::warn!(%error, "results cannot be kept for the store: agents are told to come again");
        }
        Stored {
            details: details || kept.is_ok(),
            labels: kept.is_ok(),
        }
    }

    async fn store_details(&self, batch: &[HostDetails]) -> Result<(), Reject> {
        if batch.is_empty() {
            return Ok(());
        }
        match self.store.update_details(batch).await {
            Ok(()) => Ok(()),
            Err(store::Error::Failed(_) | store::Error::Invalid(_)) => {
                // One bad host must not take the others' results with it, nor come again for ever.
                for details in batch {
                    let stored = self
                        .store
                        .update_details(std::slice::from_ref(details))
                        .await;
                    self.keep_or_lose("update details", stored)?;
                }
                Ok(())
            }
            Err(error) => Err(self.store_failed("update details", &error)),
        }
    }

    async fn store_labels(&self, batch: &[LabelResult]) -> Result<(), Reject> {
        if batch.is_empty() {
            return Ok(());
        }
        match self.store.update_labels(batch).await {
            Ok(_) => Ok(()),
            Err(store::Error::Failed(_) | store::Error::Invalid(_)) => {
                for result in batch {
                    let stored = self.store.update_labels(std::slice::from_ref(result)).await;
                    self.keep_or_lose("update labels", stored.map(drop))?;
                }
                Ok(())
            }
            Err(error) => Err(self.store_failed("update labels", &error)),
        }
    }

    fn keep_or_lose(
        &self,
        what: &'static str,
        stored: Result<(), store::Error>,
    ) -> Result<(), Reject> {
        match stored.map_err(|error| self.store_failed(what, &error)) {
            Err(Reject::StoreUnavailable) => Err(Reject::StoreUnavailable),
            Err(_) => {
                self.counters.count_lost_write();
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn apply(&self, writes: &Writes, stored: Stored) {
        let mut roster = lock(&self.roster);
        let mut own_writes = lock(&self.own_writes);
        if stored.details {
            for details in &writes.details {
                roster.details_stored(details.host, &details.columns, details.at);
                own_writes.insert(details.host);
            }
        }
        if stored.labels {
            for result in &writes.labels {
                roster.labels_stored(result.host, &result.memberships, result.at);
                own_writes.insert(result.host);
            }
        }
        drop(own_writes);
        roster.publish(None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::labels::{PlatformClass, PlatformLabels};

    fn result(name: &str, status: i64, message: &str, rows: &str) -> QueryResult {
        QueryResult {
            name: name.into(),
            status,
            message: message.into(),
            rows: rows.into(),
            stats: String::new(),
        }
    }

    fn expectation(details: bool, labels: &[u32]) -> Expectation {
        let plan = PlatformLabels {
            ids: labels.iter().copied().map(LabelId).collect(),
            ..PlatformLabels::default()
        };
        Expectation {
            details,
            class: PlatformClass::Linux,
            labels: (!labels.is_empty()).then(|| Arc::new(plan)),
            label_handed_at: None,
        }
    }

    #[test]
    fn names_find_their_place() {
        let mut routed = Routed::default();
        let results = [
            result(
                "fleet_detail_query_uptime",
                0,
                "",
                r#"[{"total_seconds":"9"}]"#,
            ),
            result("fleet_detail_query_disk_space_windows", 0, "", "[{}]"),
            result("fleet_detail_query_users", 0, "", "[{}]"),
            result("fleet_label_query_7", 0, "", r#"[{"1":"1"}]"#),
            result("fleet_label_query_8", 0, "", "[]"),
            result("fleet_label_query_9", 0, "", "[{}]"),
            result("fleet_label_query_x", 0, "", "[{}]"),
            result("other", 0, "", "[{}]"),
        ];
        routed.take(&results, &expectation(true, &[7, 8]));
        assert_eq!(routed.facts.as_ref().unwrap().columns.uptime, Some(9));
        assert_eq!(
            routed.memberships,
            BTreeMap::from([(LabelId(7), true), (LabelId(8), false)])
        );
        let expected = Tally {
            taken: 3,
            unasked: 2,
            unknown: 3,
            ..Tally::default()
        };
        assert_eq!(routed.tally, expected);
    }

    #[test]
    fn failures_keep_the_old_value_and_are_counted() {
        let mut routed = Routed::default();
        let results = [
            result(
                "fleet_detail_query_uptime",
                1,
                "no such table: uptime",
                "[]",
            ),
            result(
                "fleet_label_query_7",
                1,
                "distributed query is denylisted",
                "[]",
            ),
            result("fleet_label_query_8", 1, "near \"x\": syntax error", "[]"),
        ];
        routed.take(&results, &expectation(true, &[7, 8]));
        assert_eq!(routed.facts, Some(Facts::default()));
        assert!(routed.has_labels && routed.memberships.is_empty());
        assert_eq!(routed.denylisted, ["fleet_label_query_7"]);
        assert_eq!(
            (
                routed.tally.no_table,
                routed.tally.denylisted,
                routed.tally.failed
            ),
            (1, 1, 1)
        );
    }

    #[test]
    fn what_nobody_asked_for_is_dropped() {
        let mut routed = Routed::default();
        let results = [
            result(
                "fleet_detail_query_uptime",
                0,
                "",
                r#"[{"total_seconds":"9"}]"#,
            ),
            result("fleet_label_query_7", 0, "", "[{}]"),
        ];
        routed.take(&results, &expectation(false, &[]));
        assert_eq!(routed.facts, None);
        assert!(!routed.has_labels);
        assert_eq!(routed.tally.unasked, 2);
    }

    #[test]
    fn warnings_do_not_repeat() {
        let mut warned = Warned::default();
        assert!(warned.may_warn("a", UnixSeconds(10)));
        assert!(!warned.may_warn("a", UnixSeconds(3609)));
        assert!(warned.may_warn("a", UnixSeconds(3610)));
        for number in 0..2 * WARNINGS_MAX {
            warned.may_warn(&number.to_string(), UnixSeconds(3611));
        }
        assert!(warned.last.len() <= WARNINGS_MAX);
    }
}
