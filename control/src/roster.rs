//! What control knows of all hosts at this moment, and what it tells the workers of it. No IO, no clock.
//!
//! Owner of the directory, the composed answers, keys in grace and the feed's hub; lives behind one short mutex.
//! Invariants: every change of what workers see is published within the call that makes it; an answer is told before
//! the first host that uses it and dropped after the last; applying the same state twice changes nothing.

mod calls;
mod turns;

use std::sync::Arc;

use bytes::Bytes;
use fleet_protocol::agent::{Query, Work};
use fleet_protocol::feed::{self, CHANGES_PER_FEED_MAX, Change, Feed};
use fleet_protocol::ids::{AnswerId, FeedSeq, HostId, NodeKeyHash, UnixSeconds};
use roaring::RoaringBitmap;
use tokio::sync::mpsc;

use crate::answers::Answers;
use crate::detail_queries::DetailQuery;
use crate::directory::{Directory, Entry, Place, PlatformIndex};
use crate::feed::{Hub, Recent};
use crate::grace::GraceKeys;
use crate::host_config::{Composer, ConfigKey};
use crate::labels::{LabelPlan, PlatformClass, PlatformLabels, apply_memberships};
use crate::model::host::{HostColumns, HostState, shortest_interval_s};
use crate::model::label::LabelId;
use crate::pacer::{Pacer, Rate, Wait};
use crate::work::{ACCELERATE_S, Due, LabelDemand, Schedule};

/// What a host's results are judged by.
#[derive(Clone, Debug)]
pub(crate) struct Expectation {
    /// Detail results are wanted now.
    pub(crate) details: bool,
    /// The host's class.
    pub(crate) class: PlatformClass,
    /// Label results are wanted now, of these labels.
    pub(crate) labels: Option<Arc<PlatformLabels>>,
    /// When the label queries went out, if they did from here.
    pub(crate) label_handed_at: Option<UnixSeconds>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Roster {
    directory: Directory,
    schedule: Schedule,
    pacer: Pacer,
    plan: LabelPlan,
    answers: Answers,
    grace: GraceKeys,
    hub: Hub,
    /// Hosts that live queries call, see `roster/calls.rs`.
    called: RoaringBitmap,
    /// Of the call in progress.
    changes: Vec<Change>,
}

impl Roster {
    /// Empty.
    pub(crate) fn new(schedule: Schedule, rate: Rate) -> Self {
        Self {
            directory: Directory::default(),
            schedule,
            pacer: Pacer::new(rate),
            plan: LabelPlan::default(),
            answers: Answers::default(),
            grace: GraceKeys::default(),
            hub: Hub::default(),
            called: RoaringBitmap::new(),
            changes: Vec::new(),
        }
    }

    /// All hosts, for reading.
    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The feed's hub, for reading.
    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The feed starts at this position.
    pub(crate) fn restart_feed(&mut self, seq: FeedSeq, recent: Recent) {
        self.hub.restart(seq, recent);
    }

    /// Publishes what this call changed, with the position that it reached.
    pub(crate) fn publish(&mut self, position: Option<FeedSeq>) {
        let changes = std::mem::take(&mut self.changes);
        self.hub.publish(changes, position);
    }

    /// The configs in use, for reading.
    pub(crate) fn answers(&self) -> &Answers {
        &self.answers
    }

    /// As the feed tells a host.
    pub(crate) fn feed_host(&self, id: HostId) -> Option<feed::Host> {
        self.directory
            .place_of(id)
            .and_then(|place| self.directory.get(place))
            .map(feed_host)
    }

    /// The host behind a key, which may be in grace; the answer then has that key.
    pub(crate) fn find_key(&self, key: &NodeKeyHash) -> Option<feed::Host> {
        if let Some(place) = self.directory.place_of_key(key) {
            return self.directory.get(place).map(feed_host);
        }
        let host = self.feed_host(self.grace.host(key)?)?;
        Some(feed::Host { key: *key, ..host })
    }

    /// The store's state of a host. Publish afterwards.
    pub(crate) fn apply_host(&mut self, state: &HostState, now: UnixSeconds) {
        let platform = self.directory.platform(&state.platform);
        let Some(place) = self.directory.place_of(state.id) else {
            self.insert_host(state, platform);
            return;
        };
        self.set_names(place, state);
        let mut must_tell = false;
        if let Some(entry) = self.directory.get_mut(place) {
            let previous = entry.key;
            entry.platform = platform;
            entry.enrolled_at = state.enrolled_at;
            if state.interval_s > 0 {
                entry.interval_s = state.interval_s;
            }
            // Zero after an enrolment, else another node's answer: what was handed out is settled either way.
            if entry.detail_updated_at != state.detail_updated_at {
                entry.detail_updated_at = state.detail_updated_at;
                entry.detail_handed_at = UnixSeconds(0);
            }
            if entry.label_updated_at != state.label_updated_at {
                entry.label_updated_at = state.label_updated_at;
                entry.label_handed_at = UnixSeconds(0);
            }
            if state.refetch_requested && !entry.is_refetch {
                entry.detail_handed_at = UnixSeconds(0);
                entry.label_handed_at = UnixSeconds(0);
            }
            entry.is_refetch = state.refetch_requested;
            if previous != state.key {
                self.grace.add(previous, state.id, now);
                self.directory.set_key(place, state.key);
                must_tell = true;
            }
        }
        self.set_labels(place, &state.labels);
        self.settle(place, must_tell);
    }

    /// A host enrolled with its name: it needs no hurry any more.
    pub(crate) fn set_named(&mut self, id: HostId) {
        if let Some(place) = self.directory.place_of(id)
            && let Some(entry) = self.directory.get_mut(place)
        {
            entry.has_name = true;
        }
    }

    /// A key that stays valid for a while although another one took its place. Told again at the end of its time.
    pub(crate) fn add_grace(&mut self, key: NodeKeyHash, host: HostId, since: UnixSeconds) {
        if self.directory.place_of_key(&key).is_none() && self.grace.host(&key).is_none() {
            self.grace.add(key, host, since);
        }
    }

    /// A host is gone. Publish afterwards.
    pub(crate) fn remove_host(&mut self, id: HostId, key: Option<NodeKeyHash>) {
        let mut keys = self.grace.take_host(id);
        self.called.remove(id.0);
        if let Some(entry) = self.directory.remove(id) {
            self.pacer.leave(entry.wait);
            keys.push(entry.key);
            // Its label set may be gone, and the set's number be given to another one.
            self.answers.forget_set(entry.labels);
            self.changes.extend(keys.drain(..).map(Change::Forget));
            self.changes.extend(self.answers.release(entry.answer));
        }
        keys.extend(key);
        for key in keys {
            if self.directory.place_of_key(&key).is_none() {
                self.changes.push(Change::Forget(key));
            }
        }
    }

    /// Ends the grace of keys whose time is over, and publishes it.
    pub(crate) fn end_grace(&mut self, now: UnixSeconds) {
        for key in self.grace.take_ended(now) {
            if self.directory.place_of_key(&key).is_none() {
                self.changes.push(Change::Forget(key));
            }
        }
        self.publish(None);
    }

    /// Hosts were heard of.
    pub(crate) fn mark_seen(&mut self, id: HostId, now: UnixSeconds) -> bool {
        let Some(place) = self.directory.place_of(id) else {
            return false;
        };
        if let Some(entry) = self.directory.get_mut(place) {
            entry.seen_at = entry.seen_at.max(now);
        }
        true
    }

    /// What is due for a host, if it is its turn; `None` when there is no such host. Whoever called it must call it again
    /// if something is left. Publish afterwards.
    pub(crate) fn hand_out(&mut self, id: HostId, now: UnixSeconds) -> Option<Work> {
        let place = self.directory.place_of(id)?;
        self.called.remove(id.0);
        let labels = self.labels_for(place);
        let demand = self.demand(labels.as_deref());
        let platform = self
            .directory
            .platform_name(self.directory.get(place)?.platform);
        let entry = self.directory.get_mut(place)?;
        entry.seen_at = entry.seen_at.max(now);
        let mut due = self.schedule.due(&entry.work_state(), demand, now);
        let mut put_off_until = None;
        if due.is_any() {
            put_off_until = self.ask_turn(place, demand, now);
        }
        if put_off_until.is_some() {
            due = Due::default();
        }
        let entry = self.directory.get_mut(place)?;
        let mut work = Work::default();
        if due.details {
            entry.detail_handed_at = now;
            work.queries
                .extend(detail_queries(PlatformClass::of(&platform)));
        }
        if let Some(labels) = labels.filter(|_| due.labels) {
            entry.label_handed_at = now;
            work.queries.extend(labels.queries.iter().cloned());
        }
        let is_unnamed = !entry.has_name && entry.detail_updated_at.0 == 0;
        // Who is put off need not hurry.
        if put_off_until.is_none() && (platform.is_empty() || is_unnamed) {
            work.accelerate_s = Some(ACCELERATE_S);
        }
        let next_due_at = self.schedule.next_due_at(&entry.work_state(), demand);
        let at = put_off_until.unwrap_or(next_due_at);
        entry.due_told_at = at;
        self.changes.push(Change::WorkDue { host: id, at });
        Some(work)
    }

    /// Which results are wanted from a host now; `None` when there is no such host.
    pub(crate) fn expectation(&mut self, id: HostId, now: UnixSeconds) -> Option<Expectation> {
        let place = self.directory.place_of(id)?;
        let labels = self.labels_for(place);
        let demand = self.demand(labels.as_deref());
        let entry = self.directory.get(place)?;
        let state = entry.work_state();
        Some(Expectation {
            details: self.schedule.expects_details(&state, now),
            class: PlatformClass::of(&self.directory.platform_name(entry.platform)),
            labels: labels.filter(|_| self.schedule.expects_labels(&state, demand, now)),
            label_handed_at: Some(entry.label_handed_at).filter(|at| at.0 != 0),
        })
    }

    /// Details that the store has taken. Publish afterwards.
    pub(crate) fn details_stored(&mut self, id: HostId, columns: &HostColumns, at: UnixSeconds) {
        let Some(place) = self.directory.place_of(id) else {
            return;
        };
        let platform = columns
            .platform
            .as_deref()
            .map(|name| self.directory.platform(name));
        if let Some(entry) = self.directory.get_mut(place) {
            entry.detail_updated_at = at;
            entry.detail_handed_at = UnixSeconds(0);
            entry.is_refetch = false;
            entry.has_name |= columns.hostname.is_some();
            entry.platform = platform.unwrap_or(entry.platform);
            let interval_s =
                shortest_interval_s([columns.distributed_interval, columns.config_refresh]);
            if interval_s > 0 {
                entry.interval_s = interval_s;
            }
        }
        self.settle(place, false);
    }

    /// Memberships that the store has taken. Publish afterwards.
    pub(crate) fn labels_stored(
        &mut self,
        id: HostId,
        memberships: &[(LabelId, bool)],
        at: UnixSeconds,
    ) {
        let Some(place) = self.directory.place_of(id) else {
            return;
        };
        let Some(entry) = self.directory.get_mut(place) else {
            return;
        };
        entry.label_updated_at = at;
        entry.label_handed_at = UnixSeconds(0);
        let held = entry.labels;
        let labels = apply_memberships(&self.directory.labels(held), memberships);
        self.set_labels(place, &labels);
        self.settle(place, false);
    }

    /// The config of a host.
    #[cfg(test)]
    pub(crate) fn config_for(&self, id: HostId) -> Option<Bytes> {
        let host = self.feed_host(id)?;
        self.answers.config(host.answer).cloned()
    }

    /// New specs. Answers in use stay as they are until [`Roster::set_config`], hosts keep theirs until
    /// [`Roster::respec`] comes by.
    pub(crate) fn set_specs(&mut self, composer: Arc<Composer>, plan: LabelPlan) {
        self.answers.set_composer(composer);
        self.plan = plan.succeeding(&self.plan);
    }

    /// Configs in use that may be others under the specs now.
    pub(crate) fn configs_in_use(&self) -> Vec<(AnswerId, ConfigKey)> {
        self.answers.in_use()
    }

    /// New bytes for a config in use, published.
    pub(crate) fn set_config(&mut self, id: AnswerId, config: Bytes) {
        self.changes.extend(self.answers.set_config(id, config));
        self.publish(None);
    }

    /// Brings the hosts of some places up to the specs, published. `None` after the last place.
    pub(crate) fn respec(&mut self, from: usize) -> Option<usize> {
        let to = from + CHANGES_PER_FEED_MAX / 2;
        for place in self.directory.places(from, to) {
            self.settle(place, false);
        }
        self.publish(None);
        (to < self.directory.end()).then_some(to)
    }

    /// A queue of what is published from now on.
    pub(crate) fn subscribe(&mut self) -> mpsc::Receiver<Arc<Feed>> {
        self.hub.subscribe()
    }

    /// A host under each of its keys: those in grace need its answer too. The current one comes last, so that what is
    /// told by id later is told of it.
    pub(crate) fn told_hosts(&self, id: HostId) -> Vec<Change> {
        let Some(host) = self.feed_host(id) else {
            return Vec::new();
        };
        let keys = self.grace.keys_of(id).iter().copied();
        keys.filter(|key| *key != host.key)
            .chain([host.key])
            .map(|key| Change::Host(feed::Host { key, ..host }))
            .collect()
    }

    fn insert_host(&mut self, state: &HostState, platform: PlatformIndex) {
        let labels = self.directory.label_set(&state.labels);
        let answer = self.answers.id_for(&self.directory, platform, labels);
        self.changes.extend(self.answers.hold(answer));
        let entry = Entry {
            key: state.key,
            answer,
            id: state.id,
            labels,
            detail_updated_at: state.detail_updated_at,
            label_updated_at: state.label_updated_at,
            detail_handed_at: UnixSeconds(0),
            label_handed_at: UnixSeconds(0),
            seen_at: UnixSeconds(0),
            enrolled_at: state.enrolled_at,
            due_told_at: UnixSeconds(0),
            wait: Wait::default(),
            interval_s: state.interval_s,
            platform,
            is_refetch: state.refetch_requested,
            has_name: false,
        };
        match self.directory.insert(entry) {
            Some(place) => {
                self.set_names(place, state);
                self.settle(place, true);
            }
            None => self.changes.extend(self.answers.release(answer)),
        }
    }

    fn set_names(&mut self, place: Place, state: &HostState) {
        if let Some(names) = &state.names {
            self.directory.set_names(place, names);
        }
    }

    fn set_labels(&mut self, place: Place, labels: &[LabelId]) {
        let held = self.directory.get(place).map(|entry| entry.labels);
        if held.is_none_or(|held| *self.directory.labels(held) == *labels) {
            return;
        }
        if let Some(gone) = self.directory.set_labels(place, labels) {
            self.answers.forget_set(gone);
        }
    }

    /// Works out a host's answer and due time, and tells the workers what they do not know of it yet.
    fn settle(&mut self, place: Place, must_tell: bool) {
        let Some(entry) = self.directory.get(place) else {
            return;
        };
        let (id, previous, told_at) = (entry.id, entry.answer, entry.due_told_at);
        let (platform, set) = (entry.platform, entry.labels);
        let answer = self.answers.id_for(&self.directory, platform, set);
        let labels = self.labels_for(place);
        let demand = self.demand(labels.as_deref());
        let is_other = answer != previous;
        if is_other {
            self.changes.extend(self.answers.hold(answer));
        }
        let turn_told = self.turn_told(place, demand);
        let call = self.call_of(id);
        let Some(entry) = self.directory.get_mut(place) else {
            return;
        };
        let next_due_at = self.schedule.next_due_at(&entry.work_state(), demand);
        let at = call.or(turn_told).unwrap_or(next_due_at);
        entry.answer = answer;
        entry.due_told_at = at;
        if must_tell || is_other {
            let told = self.told_hosts(id);
            self.changes.extend(told);
        } else if at != told_at {
            self.changes.push(Change::WorkDue { host: id, at });
        }
        if is_other {
            self.changes.extend(self.answers.release(previous));
        }
    }

    fn labels_for(&mut self, place: Place) -> Option<Arc<PlatformLabels>> {
        let platform = self
            .directory
            .platform_name(self.directory.get(place)?.platform);
        self.plan.for_platform(&platform)
    }

    fn demand(&self, labels: Option<&PlatformLabels>) -> Option<LabelDemand> {
        labels.map(|labels| LabelDemand {
            changed_at: labels.changed_at,
            herd_s: self.pacer.rate().herd_s(self.host_count()),
        })
    }
}

/// As the feed tells a host.
pub(crate) fn feed_host(entry: &Entry) -> feed::Host {
    feed::Host {
        id: entry.id,
        key: entry.key,
        answer: entry.answer,
        work_due_at: entry.due_told_at,
    }
}

fn detail_queries(class: PlatformClass) -> impl Iterator<Item = Query> {
    DetailQuery::ALL
        .into_iter()
        .filter(move |query| query.is_for(class))
        .map(|query| Query {
            name: query.name(),
            sql: query.sql().to_owned(),
            discovery: query.discovery().to_owned(),
        })
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
