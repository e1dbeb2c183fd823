//! What operators want to know of many hosts at once, from memory: lists, counts, summaries, who is targeted.
//!
//! Invariant: the roster is locked for a piece of the directory at a time, so that agents get their turns in between.

use std::collections::BTreeMap;
use std::sync::Arc;

use fleet_protocol::feed::CHANGES_PER_FEED_MAX;
use fleet_protocol::ids::UnixSeconds;

use crate::agents::{Agents, Counts, lock};
use crate::campaigns::Groups;
use crate::directory::{Directory, Entry};
use crate::labels::PlatformClass;
use crate::model::host::{HostFilter, HostState, HostStatus, NEW_FOR_S};
use crate::model::label::LabelId;
use crate::roster::Roster;
use crate::selection::{Selection, Selector, silence_of};

/// Walks over all hosts at a time; each keeps a core busy for some tens of milliseconds per million hosts.
pub(crate) const WALKS_MAX: usize = 2;

/// All hosts at a glance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) counts: Counts,
    pub(crate) linux: u64,
    /// By name; empty: not known yet.
    pub(crate) platforms: BTreeMap<String, u64>,
}

impl Agents {
    /// The page of a filter; `None` while the hosts are not loaded, or for what only the store knows.
    pub(crate) async fn select(&self, filter: &HostFilter) -> Option<Selection> {
        if filter.is_clone {
            return None;
        }
        let mut selector = Selector::new(filter.clone());
        self.walked(move |walk| {
            walk(&mut |directory, from, to| selector.look(directory, from, to));
            selector.finish()
        })
        .await
    }

    /// All hosts at a glance; `None` while they are not loaded.
    pub(crate) async fn summary(&self, now: UnixSeconds) -> Option<Summary> {
        self.walked(move |walk| {
            let mut summary = Summary::default();
            walk(&mut |directory, from, to| {
                for host in directory.walk(from, to) {
                    summary.counts.add(host, now);
                    let platform = directory.platform_name(host.platform);
                    summary.linux +=
                        u64::from(PlatformClass::of(&platform) == PlatformClass::Linux);
                    match summary.platforms.get_mut(&*platform) {
                        Some(hosts) => *hosts += 1,
                        None => {
                            summary.platforms.insert(platform.to_string(), 1);
                        }
                    }
                }
            });
            summary
        })
        .await
    }

    /// How many hosts are targeted, by state; `None` while they are not loaded.
    pub(crate) async fn target_counts(&self, targets: Groups, now: UnixSeconds) -> Option<Counts> {
        self.walked(move |walk| {
            let mut counts = Counts::default();
            walk(&mut |directory, from, to| {
                for host in directory.walk(from, to) {
                    if targets.takes(host.id.0, &directory.labels(host.labels)) {
                        counts.add(host, now);
                    }
                }
            });
            counts
        })
        .await
    }

    /// Members of every label that has some; empty while the hosts are not loaded.
    pub(crate) fn label_counts(&self) -> BTreeMap<LabelId, u64> {
        let mut counts = BTreeMap::new();
        if !*self.is_loaded.borrow() {
            return counts;
        }
        let roster = lock(&self.roster);
        for (labels, hosts) in roster.directory().label_sets() {
            for label in labels {
                *counts.entry(*label).or_default() += u64::from(hosts);
            }
        }
        counts
    }

    /// Hosts that this process has deleted from the store.
    pub(crate) fn forget(&self, hosts: &[HostState]) {
        let mut roster = lock(&self.roster);
        for host in hosts {
            roster.remove_host(host.id, Some(host.key));
            lock(&self.seen).forget(host.id);
        }
        roster.publish(None);
    }

    /// Computes beside the runtime; `walk` shows every piece of the directory. `None` while the hosts are not loaded,
    /// and when the process ends.
    async fn walked<T: Send + 'static>(
        &self,
        compute: impl FnOnce(&mut dyn FnMut(Look<'_>)) -> T + Send + 'static,
    ) -> Option<T> {
        if !*self.is_loaded.borrow() {
            return None;
        }
        let _permit = self.walks.acquire().await.ok()?;
        let roster = Arc::clone(&self.roster);
        let computed =
            tokio::task::spawn_blocking(move || compute(&mut |look| walk(&roster, look)));
        computed.await.ok()
    }
}

type Look<'l> = &'l mut dyn FnMut(&Directory, usize, usize);

fn walk(roster: &std::sync::Mutex<Roster>, look: Look<'_>) {
    let mut from = 0;
    loop {
        let roster = lock(roster);
        let directory = roster.directory();
        look(directory, from, from + CHANGES_PER_FEED_MAX);
        from += CHANGES_PER_FEED_MAX;
        if from >= directory.end() {
            return;
        }
        drop(roster);
    }
}

impl Counts {
    /// One host more.
    pub(crate) fn add(&mut self, host: &Entry, now: UnixSeconds) {
        self.enrolled += 1;
        match silence_of(host, now) {
            HostStatus::Mia => self.mia += 1,
            HostStatus::Offline => self.offline += 1,
            HostStatus::Online | HostStatus::New => self.online += 1,
        }
        let age_s = now.0.saturating_sub(host.enrolled_at.0);
        self.new += u64::from(age_s < NEW_FOR_S);
    }
}
