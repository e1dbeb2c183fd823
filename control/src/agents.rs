//! Everything that decides about hosts, in one place: the batches of agents' requests, the feed, and what operators
//! want to know of hosts now.
//!
//! Owner of the [`Roster`], the seen marks, the enroll secrets. The store is the truth; this is its image, kept by
//! `watch.rs`. Invariants: no lock is held over an await but those that put enrolments, and flushes, in a row; a store
//! that is away, or read-only and so perhaps behind, never makes a key invalid.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleet_protocol::agent::{Answer, Request};
use fleet_protocol::config::{Config, HostIdentifier};
use fleet_protocol::feed::CHANGES_PER_FEED_MAX;
use fleet_protocol::ids::{FeedSeq, HostId, NodeKeyHash, RequestId, UnixSeconds};
use fleet_protocol::link::BatchKind;
use fleet_protocol::reject::Reject;
use tokio::sync::{Notify, Semaphore, watch};

pub(crate) use crate::agent_counters::AgentsStatistics;
use crate::agent_counters::Counters;
use crate::bus::Bus;
use crate::campaigns::{self, Campaigns};
use crate::enroll::{IssuedKeys, SecretSet};
use crate::feed::Subscription;
use crate::host_config::{self, Specs};
use crate::lists::WALKS_MAX;
use crate::pacer;
use crate::results::Warned;
use crate::roster::Roster;
use crate::seen::SeenMarks;
use crate::spool::Spool;
use crate::store::Store;
use crate::work::Schedule;

/// Locks; a panic of another holder does not spread, since no state is left half-changed on purpose.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The clock of this process.
pub(crate) fn now() -> UnixSeconds {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixSeconds(u32::try_from(since.as_secs()).unwrap_or(u32::MAX))
}

/// The options that decide here.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) node_key_size: u16,
    pub(crate) host_identifier: HostIdentifier,
    pub(crate) seen_interval: Duration,
}

/// Hosts by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// All of them.
    pub(crate) enrolled: u64,
    /// Heard of within their interval and a minute.
    pub(crate) online: u64,
    /// Neither online nor missing.
    pub(crate) offline: u64,
    /// Silent for 30 days.
    pub(crate) mia: u64,
    /// Enrolled within 24 hours; each is in one of the other states too.
    pub(crate) new: u64,
}

/// See the module.
pub(crate) struct Agents {
    pub(crate) store: Arc<Store>,
    pub(crate) bus: Arc<Bus>,
    pub(crate) spool: Arc<Spool>,
    pub(crate) options: Options,
    pub(crate) roster: Arc<Mutex<Roster>>,
    pub(crate) campaigns: Arc<Campaigns>,
    pub(crate) secrets: Mutex<SecretSet>,
    pub(crate) enrolling: tokio::sync::Mutex<IssuedKeys>,
    pub(crate) seen: Mutex<SeenMarks>,
    pub(crate) flushing: tokio::sync::Mutex<()>,
    /// Hosts that this process wrote since `watch` looked last; what it read before is older than what we know.
    pub(crate) own_writes: Mutex<HashSet<HostId>>,
    pub(crate) warned: Mutex<Warned>,
    pub(crate) counters: Counters,
    pub(crate) is_loaded: watch::Sender<bool>,
    pub(crate) is_closing: watch::Sender<bool>,
    pub(crate) is_store_away: AtomicBool,
    pub(crate) poke: Notify,
    pub(crate) walks: Semaphore,
}

impl Agents {
    /// Loads the directory and composes the answers. A store that is away is no error: [`Agents::watch`] loads when it
    /// is back, and until then nothing is fed to workers, so that they keep what they know.
    pub(crate) async fn load(
        store: Arc<Store>,
        bus: Arc<Bus>,
        spool: Arc<Spool>,
        config: &Config,
    ) -> anyhow::Result<Arc<Self>> {
        let schedule = Schedule::of(&config.osquery);
        let rate = pacer::rate_of(&schedule, config.osquery.due_per_second, store.engine());
        let roster = Arc::new(Mutex::new(Roster::new(schedule, rate)));
        let campaigns = Arc::new(Campaigns::new(
            Arc::clone(&store),
            Arc::clone(&bus),
            Arc::clone(&roster),
            campaigns::Options::of(&config.osquery),
        ));
        let agents = Arc::new(Self {
            store,
            bus,
            spool,
            campaigns,
            options: Options {
                node_key_size: config.osquery.node_key_size,
                host_identifier: config.osquery.host_identifier,
                seen_interval: config.osquery.seen_interval,
            },
            roster,
            secrets: Mutex::default(),
            enrolling: tokio::sync::Mutex::default(),
            seen: Mutex::default(),
            flushing: tokio::sync::Mutex::default(),
            own_writes: Mutex::default(),
            warned: Mutex::default(),
            counters: Counters::default(),
            is_loaded: watch::Sender::new(false),
            is_closing: watch::Sender::new(false),
            is_store_away: AtomicBool::new(false),
            poke: Notify::new(),
            walks: Semaphore::new(WALKS_MAX),
        });
        agents.first_load().await?;
        Ok(agents)
    }

    /// Answers a batch of agents' requests, in its order.
    pub(crate) async fn run(
        self: Arc<Self>,
        kind: BatchKind,
        requests: Vec<(RequestId, Request)>,
    ) -> Vec<(RequestId, Answer)> {
        self.run_at(kind, requests, now()).await
    }

    /// The same at a given time.
    pub(crate) async fn run_at(
        &self,
        kind: BatchKind,
        requests: Vec<(RequestId, Request)>,
        now: UnixSeconds,
    ) -> Vec<(RequestId, Answer)> {
        let order: Vec<RequestId> = requests.iter().map(|(id, _)| *id).collect();
        let mut answers: HashMap<RequestId, Answer> = match kind {
            BatchKind::Lookup => {
                let keys = pick(requests, |request| match request {
                    Request::Lookup(key) => Some(key),
                    _ => None,
                });
                self.lookup_batch(keys, now).await
            }
            BatchKind::Enroll => {
                let is_adopt =
                    |(_, request): &(RequestId, Request)| matches!(request, Request::Adopt(_));
                let (adoptions, enrollments): (Vec<_>, Vec<_>) =
                    requests.into_iter().partition(is_adopt);
                let adoptions = pick(adoptions, |request| match request {
                    Request::Adopt(adopt) => Some(*adopt),
                    _ => None,
                });
                let enrollments = pick(enrollments, |request| match request {
                    Request::Enroll(enroll) => Some(*enroll),
                    _ => None,
                });
                let mut answers = self.adopt_batch(adoptions, now).await;
                answers.extend(self.enroll_batch(enrollments, now).await);
                answers
            }
            BatchKind::Read => {
                let hosts = pick(requests, |request| match request {
                    Request::Read(host) => Some(host),
                    _ => None,
                });
                self.read_batch(hosts, now).await
            }
            BatchKind::Write => {
                let writes = pick(requests, |request| match request {
                    Request::Write(write) => Some(write),
                    _ => None,
                });
                self.write_batch(writes, now).await
            }
            BatchKind::Seen => {
                let marks = pick(requests, |request| match request {
                    Request::Seen(hosts) => Some(hosts),
                    _ => None,
                });
                self.seen_batch(marks, now)
            }
            BatchKind::Log | BatchKind::Carve => Vec::new(),
        }
        .into_iter()
        .collect();
        // A request of another kind than its batch is the worker's mistake; it hears so instead of nothing.
        order
            .into_iter()
            .map(|id| {
                let answer = answers.remove(&id);
                (id, answer.unwrap_or(Answer::Refused(Reject::Internal)))
            })
            .collect()
    }

    /// The feed for one link: the load or what it missed, then what comes.
    pub(crate) fn subscribe(&self, feed_after: Option<FeedSeq>) -> Subscription {
        Subscription::new(
            Arc::clone(&self.roster),
            self.is_loaded.subscribe(),
            feed_after,
        )
    }

    /// Something was written to the store that agents should hear of at once.
    pub(crate) fn poke(&self) {
        self.poke.notify_one();
    }

    /// Whether agents will take what these specs give. One place for the rule, used before specs are stored.
    pub(crate) fn compose_check(specs: &Specs) -> Result<(), String> {
        host_config::check(specs)
    }

    /// Hosts by state at `now`.
    pub(crate) fn counts(&self, now: UnixSeconds) -> Counts {
        let mut counts = Counts::default();
        let mut from = 0;
        loop {
            // In pieces, so that requests get at the lock in between.
            let roster = lock(&self.roster);
            let directory = roster.directory();
            for host in directory.walk(from, from + CHANGES_PER_FEED_MAX) {
                counts.add(host, now);
            }
            from += CHANGES_PER_FEED_MAX;
            if from >= directory.end() {
                return counts;
            }
        }
    }

    /// When a host was last heard of, as far as this process knows; enrolment counts.
    pub(crate) fn seen_at(&self, host: HostId) -> Option<UnixSeconds> {
        let roster = lock(&self.roster);
        let place = roster.directory().place_of(host)?;
        let entry = roster.directory().get(place)?;
        Some(entry.seen_at.max(entry.enrolled_at))
    }

    /// Hands out nothing in this second if there are hosts: an earlier process may have.
    pub(crate) fn skip_second(&self, now: UnixSeconds) {
        let mut roster = lock(&self.roster);
        if roster.host_count() > 0 {
            roster.skip_second(now);
        }
    }

    /// The config that a host is given.
    #[cfg(test)]
    pub(crate) fn config_for(&self, host: HostId) -> Option<bytes::Bytes> {
        lock(&self.roster).config_for(host)
    }

    /// For metrics and status.
    pub(crate) fn statistics(&self) -> AgentsStatistics {
        let mut statistics = AgentsStatistics {
            is_loaded: *self.is_loaded.borrow(),
            seen_waiting: lock(&self.seen).len(),
            ..AgentsStatistics::default()
        };
        let roster = lock(&self.roster);
        let (subscribers, dropped) = roster.hub().subscriber_counts();
        statistics.hosts = roster.directory().len() as u64;
        statistics.answers = roster.answers().len() as u64;
        statistics.feed_seq = roster.hub().seq();
        statistics.pacer = roster.pacer_statistics();
        statistics.subscribers = subscribers as u64;
        statistics.subscribers_dropped = dropped;
        drop(roster);
        self.counters.fill(&mut statistics);
        statistics
    }

    pub(crate) async fn lookup_batch(
        &self,
        requests: Vec<(RequestId, NodeKeyHash)>,
        now: UnixSeconds,
    ) -> Vec<(RequestId, Answer)> {
        let unknown: BTreeSet<NodeKeyHash> = {
            let roster = lock(&self.roster);
            requests
                .iter()
                .map(|(_, key)| *key)
                .filter(|key| roster.find_key(key).is_none())
                .collect()
        };
        let mut refusal = None;
        if !unknown.is_empty() {
            // Another node may have enrolled them a moment ago.
            let keys: Vec<NodeKeyHash> = unknown.into_iter().collect();
            let was_read_only = self.store.is_read_only();
            match self.store.hosts_by_keys(&keys).await {
                Ok(states) => {
                    let may_be_behind = was_read_only || self.store.is_read_only();
                    let mut roster = lock(&self.roster);
                    for state in &states {
                        // A lagging replica knows less of a known host than we do, such as its key of before.
                        if !may_be_behind || roster.directory().place_of(state.id).is_none() {
                            roster.apply_host(state, now);
                        }
                    }
                    roster.publish(None);
                    refusal = may_be_behind.then_some(Reject::StoreUnavailable);
                }
                Err(error) => refusal = Some(self.store_failed("look up node keys", &error)),
            }
        }
        let roster = lock(&self.roster);
        requests
            .into_iter()
            .map(|(id, key)| {
                let answer = match (roster.find_key(&key), refusal) {
                    (Some(host), _) => Answer::Host(Some(host)),
                    (None, None) => Answer::Host(None),
                    (None, Some(reject)) => Answer::Refused(reject),
                };
                (id, answer)
            })
            .collect()
    }

    async fn read_batch(
        &self,
        requests: Vec<(RequestId, HostId)>,
        now: UnixSeconds,
    ) -> Vec<(RequestId, Answer)> {
        let hosts: Vec<HostId> = requests.iter().map(|(_, host)| *host).collect();
        let refusals = self.resolve_hosts(&hosts, now).await;
        let mut live = self.campaigns.hand_out(&hosts, &refusals).await;
        let mut roster = lock(&self.roster);
        let answers: Vec<(RequestId, Answer)> = requests
            .into_iter()
            .map(|(id, host)| {
                let answer = match (refusals.get(&host), roster.hand_out(host, now)) {
                    (Some(reject), _) => Answer::Refused(*reject),
                    (None, Some(mut work)) => {
                        work.queries.extend(live.remove(&host).unwrap_or_default());
                        Answer::Work(work)
                    }
                    (None, None) => Answer::Refused(Reject::NodeKeyUnknown),
                };
                (id, answer)
            })
            .collect();
        roster.publish(None);
        drop(roster);
        self.campaigns.have_read(&hosts);
        let handed_out: usize = answers
            .iter()
            .map(|(_, answer)| match answer {
                Answer::Work(work) => work.queries.len(),
                _ => 0,
            })
            .sum();
        self.counters.count_handed_out(handed_out);
        answers
    }

    fn seen_batch(
        &self,
        requests: Vec<(RequestId, Vec<HostId>)>,
        now: UnixSeconds,
    ) -> Vec<(RequestId, Answer)> {
        let mut answers = Vec::with_capacity(requests.len());
        for (id, hosts) in requests {
            for hosts in hosts.chunks(CHANGES_PER_FEED_MAX) {
                let mut roster = lock(&self.roster);
                let known: Vec<HostId> = hosts
                    .iter()
                    .copied()
                    .filter(|host| roster.mark_seen(*host, now))
                    .collect();
                drop(roster);
                lock(&self.seen).mark(known, now);
            }
            answers.push((id, Answer::Accepted));
        }
        answers
    }

    /// Why some of these hosts cannot be served: the store does not know them, or does not answer. Those that only the
    /// store knew are known afterwards.
    pub(crate) async fn resolve_hosts(
        &self,
        hosts: &[HostId],
        now: UnixSeconds,
    ) -> HashMap<HostId, Reject> {
        let unknown: BTreeSet<HostId> = {
            let roster = lock(&self.roster);
            let directory = roster.directory();
            hosts
                .iter()
                .copied()
                .filter(|host| directory.place_of(*host).is_none())
                .collect()
        };
        if unknown.is_empty() {
            return HashMap::new();
        }
        let ids: Vec<HostId> = unknown.iter().copied().collect();
        let mut refusals: HashMap<HostId, Reject>;
        let was_read_only = self.store.is_read_only();
        match self.store.hosts_by_ids(&ids).await {
            Ok(states) => {
                let missing = if was_read_only || self.store.is_read_only() {
                    Reject::StoreUnavailable
                } else {
                    Reject::NodeKeyUnknown
                };
                refusals = ids.iter().map(|id| (*id, missing)).collect();
                let mut roster = lock(&self.roster);
                for state in &states {
                    roster.apply_host(state, now);
                    refusals.remove(&state.id);
                }
                roster.publish(None);
            }
            Err(error) => {
                let reject = self.store_failed("look up hosts", &error);
                refusals = ids.iter().map(|id| (*id, reject)).collect();
            }
        }
        refusals
    }
}

/// The requests of the batch's kind.
fn pick<T>(
    requests: Vec<(RequestId, Request)>,
    of: impl Fn(Request) -> Option<T>,
) -> Vec<(RequestId, T)> {
    requests
        .into_iter()
        .filter_map(|(id, request)| of(request).map(|request| (id, request)))
        .collect()
}

#[cfg(test)]
#[path = "agents_tests.rs"]
mod tests;
