//! Keeps the roster true to the store: first load, changes of this and of other nodes, seen marks.
//!
//! Invariants: the position moves on only after everything up to it has been applied, and applying twice is harmless;
//! while the store is away or read-only, so perhaps behind, the roster stays as it is and agents are served from it.

mod digest;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use fleet_protocol::ids::{FeedSeq, HostId, UnixSeconds};
use roaring::RoaringBitmap;
use tokio::time::{Instant, sleep, sleep_until};

use crate::agents::{Agents, lock, now};
use crate::campaigns;
use crate::enroll::SecretSet;
use crate::host_config::{Composer, Specs};
use crate::labels::LabelPlan;
use crate::model::change::ChangeRow;
use crate::store::{self, Store};
use digest::{Digest, add_grace, recent, subject};

/// Changes are looked for this often when nobody wakes us.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Wakes that come faster share one look.
const POLL_GAP: Duration = Duration::from_millis(50);
/// Rows of one read of changes.
const CHANGES_LIMIT: usize = 4096;
/// Hosts of one read.
const HOSTS_LIMIT: usize = 2048;
/// Changes that are remembered over a restart, for workers that resume.
const RECENT_ROWS: u64 = 8192;
/// Looks between two checks whether the store was set back or has forgotten changes that we did not see.
const LOOKS_PER_CHECK: u32 = 60;
/// Looks between two counts of clones, which read an index of all hosts; new ones are counted at once.
const LOOKS_PER_COUNT: u32 = 600;
/// Changes are kept this long, seconds; a node that was away for longer loads everything again.
const CHANGES_KEPT_S: u32 = 3600;
/// Old changes are deleted this often.
const PRUNE_INTERVAL: Duration = Duration::from_secs(300);
/// A call that deleted this many rows may have left some.
const PRUNED_MANY: u64 = 65_536;
/// Longest wait for subscribers to take pieces, before the slow ones are left behind.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(5);
/// Free pieces that a walk over all hosts wants before it goes on.
const ROOM_PIECES: usize = 128;

/// Everything that configs are made of.
pub(crate) async fn read_specs(store: &Store) -> store::Result<Specs> {
    Ok(Specs {
        agent_options: store.agent_options().await?,
        packs: store.packs().await?,
        queries: store.queries().await?,
        labels: store.label_specs().await?,
    })
}

impl Agents {
    /// Loads once; a store that is away is left to [`Agents::watch`].
    pub(crate) async fn first_load(&self) -> anyhow::Result<()> {
        match self.load_all().await {
            Ok(()) => Ok(()),
            Err(error) if error.is_away() => {
                self.note_store(Err("load hosts"));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Follows the store until the process drains.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut wakes = self.bus.wakes();
        let mut closing = self.is_closing.subscribe();
        let mut again = BTreeSet::new();
        let mut looks = 0_u32;
        let mut is_bus_gone = false;
        let mut lost_from = 0;
        let mut clones_counted = None;
        while !*closing.borrow() {
            let began = Instant::now();
            let outcome = self
                .look(&mut again, looks.is_multiple_of(LOOKS_PER_CHECK))
                .await;
            looks = match &outcome {
                Ok(()) => looks.wrapping_add(1),
                // The first look after an outage checks the bounds.
                Err(_) => 0,
            };
            let is_ok = outcome.is_ok();
            self.note_store(outcome.map_err(|error| {
                if !error.is_away() {
                    tracing::error!(%error, "cannot follow the store's changes");
                }
                "follow changes"
            }));
            {
                let mut roster = lock(&self.roster);
                roster.end_grace(now());
                lost_from = roster.forget_lost(lost_from, now());
            }
            if is_ok {
                self.count_clones(&mut clones_counted, looks).await;
            }
            sleep(POLL_GAP).await;
            tokio::select! {
                () = sleep_until(began + POLL_INTERVAL) => {}
                changed = wakes.changed(), if is_ok && !is_bus_gone => is_bus_gone = changed.is_err(),
                () = self.poke.notified(), if is_ok => {}
                _ = closing.changed() => {}
            }
        }
    }

    /// Counts the hosts that share their identifier, if that may have changed. `counted`: the clones that had enrolled
    /// here before the last count.
    async fn count_clones(&self, counted: &mut Option<u64>, looks: u32) {
        let enrolled = self.counters.clones_enrolled();
        if *counted == Some(enrolled) && !looks.is_multiple_of(LOOKS_PER_COUNT) {
            return;
        }
        match self.store.clone_count().await {
            Ok(hosts) => {
                *counted = Some(enrolled);
                self.counters.set_clone_hosts(hosts);
            }
            Err(error) => {
                self.store_failed("count clones", &error);
            }
        }
    }

    /// Writes the seen marks at each interval, and deletes old changes, until the process drains.
    pub(crate) async fn flush_seen(self: Arc<Self>) {
        let mut closing = self.is_closing.subscribe();
        let mut pruned_at = Instant::now();
        while !*closing.borrow() {
            tokio::select! {
                () = sleep(self.options.seen_interval) => self.flush_seen_once().await,
                _ = closing.changed() => return,
            }
            if pruned_at.elapsed() >= PRUNE_INTERVAL {
                pruned_at = Instant::now();
                self.prune(UnixSeconds(now().0.saturating_sub(CHANGES_KEPT_S)))
                    .await;
            }
        }
    }

    /// Ends the background tasks and writes what waits.
    pub(crate) async fn finish(&self) {
        self.is_closing.send_replace(true);
        self.campaigns.close();
        self.flush_seen_once().await;
    }

    async fn prune(&self, before: UnixSeconds) {
        loop {
            match self.store.prune(before).await {
                Ok(rows) if rows >= PRUNED_MANY && !*self.is_closing.borrow() => {}
                Ok(_) => return,
                Err(error) => {
                    self.store_failed("prune changes", &error);
                    return;
                }
            }
        }
    }

    async fn flush_seen_once(&self) {
        // The last flush must wait for the one under way, whose marks are out of the set.
        let _flushing = self.flushing.lock().await;
        let mut groups = lock(&self.seen).take().into_iter();
        while let Some(group) = groups.next() {
            if let Err(error) = self.store.mark_seen(&group.host_ids(), group.at).await {
                self.store_failed("write seen times", &error);
                let failed = std::iter::once(group).chain(groups).collect();
                lock(&self.seen).put_back(failed);
                return;
            }
        }
    }

    /// One look at the store.
    pub(crate) async fn look(
        &self,
        again: &mut BTreeSet<HostId>,
        must_check: bool,
    ) -> store::Result<()> {
        if !*self.is_loaded.borrow() {
            return self.load_all().await;
        }
        if self.store.is_read_only() {
            return self.store.require_writable().await;
        }
        if must_check {
            let (oldest, newest) = self.store.change_bounds().await?;
            let seq = lock(&self.roster).hub().seq();
            if newest < seq || oldest.0 > seq.0 + 1 {
                self.store.require_writable().await?;
                tracing::warn!(%oldest, %newest, %seq, "changes were lost from sight; loading all hosts again");
                return self.load_all().await;
            }
        }
        loop {
            lock(&self.own_writes).clear();
            let seq = lock(&self.roster).hub().seq();
            let rows = self.store.changes_after(seq, CHANGES_LIMIT).await?;
            if rows.is_empty() && again.is_empty() {
                return Ok(());
            }
            self.apply_rows(&rows, again).await?;
            if rows.len() < CHANGES_LIMIT {
                return Ok(());
            }
        }
    }

    async fn apply_rows(
        &self,
        rows: &[ChangeRow],
        again: &mut BTreeSet<HostId>,
    ) -> store::Result<()> {
        let digest = Digest::of(rows, again);
        if digest.unknown > 0 {
            self.counters.count_unknown_changes(digest.unknown);
            if lock(&self.warned).may_warn("unknown changes", now()) {
                tracing::warn!(
                    "a newer version wrote changes to the store that this one does not know; skipped"
                );
            }
        }
        if !digest.campaigns.is_empty() {
            self.campaigns
                .reload(&digest.campaigns)
                .await
                .map_err(store_error)?;
        }
        if digest.has_secrets {
            let secrets = self.store.enroll_secrets().await?;
            *lock(&self.secrets) = SecretSet::of(&secrets);
        }
        if digest.has_specs {
            let specs = read_specs(&self.store).await?;
            self.respec(&specs).await;
        }
        let ids: Vec<HostId> = digest.hosts.iter().copied().collect();
        let mut left = BTreeSet::new();
        for ids in ids.chunks(HOSTS_LIMIT) {
            let states = self.store.hosts_by_ids(ids).await?;
            if states.len() < ids.len() {
                self.store.require_writable().await?;
            }
            let mut roster = lock(&self.roster);
            let own_writes = lock(&self.own_writes);
            let mut gone: BTreeSet<HostId> = ids.iter().copied().collect();
            for state in &states {
                gone.remove(&state.id);
                // Ours is younger than what was read; look again.
                if own_writes.contains(&state.id) {
                    left.insert(state.id);
                } else {
                    roster.apply_host(state, now());
                }
            }
            for id in gone {
                if !own_writes.contains(&id) {
                    roster.remove_host(id, None);
                    lock(&self.seen).forget(id);
                }
            }
            drop(own_writes);
            roster.publish(None);
        }
        let mut roster = lock(&self.roster);
        for row in &digest.deleted {
            if let Some(id) = subject(row) {
                roster.remove_host(id, row.key);
                lock(&self.seen).forget(id);
            }
        }
        add_grace(&mut roster, rows, now());
        roster.publish(rows.last().map(|row| row.seq));
        *again = left;
        Ok(())
    }

    /// Everything, from the store; what is known already stays in service meanwhile, and what the store lacks goes. From
    /// a server that takes no writes only the first load is taken, for there is nothing to serve else; and nothing goes.
    async fn load_all(&self) -> store::Result<()> {
        let began = Instant::now();
        let is_first = !*self.is_loaded.borrow();
        let (oldest, newest) = self.store.change_bounds().await?;
        let from = FeedSeq(
            newest
                .0
                .saturating_sub(RECENT_ROWS)
                .max(oldest.0.saturating_sub(1)),
        );
        let rows = self.store.changes_after(from, CHANGES_LIMIT * 2).await?;
        let secrets = self.store.enroll_secrets().await?;
        *lock(&self.secrets) = SecretSet::of(&secrets);
        let specs = read_specs(&self.store).await?;
        self.respec(&specs).await;
        let present = self.load_hosts().await?;
        self.load_seen().await?;
        self.campaigns.load().await.map_err(store_error)?;
        match self.store.require_writable().await {
            Ok(()) => self.remove_absent(&present),
            Err(_) if is_first => {}
            Err(error) => return Err(error),
        }
        let mut roster = lock(&self.roster);
        if is_first || newest < roster.hub().seq() {
            // What is newer than the bounds comes again by the first look.
            let rows = rows.iter().filter(|row| row.seq <= newest);
            roster.publish(None);
            roster.restart_feed(newest, recent(from, rows));
        } else {
            roster.publish(Some(newest));
        }
        add_grace(&mut roster, &rows, now());
        let (hosts, answers) = (roster.directory().len(), roster.answers().len());
        let lacking = roster.lacking_rate();
        drop(roster);
        if let Some(need) = lacking {
            tracing::warn!(
                hosts,
                need,
                "osquery.due_per_second is less than what these hosts make due in a second: details and labels fall \
                 behind their intervals"
            );
        }
        self.is_loaded.send_replace(true);
        tracing::info!(hosts, answers, elapsed = ?began.elapsed(), "hosts loaded");
        Ok(())
    }

    async fn load_hosts(&self) -> store::Result<RoaringBitmap> {
        let mut present = RoaringBitmap::new();
        let mut after = HostId(0);
        loop {
            let states = self.store.hosts_after(after, HOSTS_LIMIT).await?;
            let Some(last) = states.last() else {
                return Ok(present);
            };
            after = last.id;
            present.extend(states.iter().map(|state| state.id.0));
            let mut roster = lock(&self.roster);
            for state in &states {
                roster.apply_host(state, now());
            }
            roster.publish(None);
        }
    }

    async fn load_seen(&self) -> store::Result<()> {
        let mut after = HostId(0);
        loop {
            let marks = self.store.seen_after(after, HOSTS_LIMIT).await?;
            let Some((last, _)) = marks.last() else {
                return Ok(());
            };
            after = *last;
            let mut roster = lock(&self.roster);
            for (host, at) in marks {
                roster.mark_seen(host, at);
            }
        }
    }

    fn remove_absent(&self, present: &RoaringBitmap) {
        let mut roster = lock(&self.roster);
        let end = roster.directory().end();
        let absent: Vec<HostId> = roster
            .directory()
            .walk(0, end)
            .map(|host| host.id)
            .filter(|id| !present.contains(id.0))
            .filter(|id| !lock(&self.own_writes).contains(id))
            .collect();
        for id in absent {
            roster.remove_host(id, None);
        }
    }

    /// Brings answers and hosts up to new specs, in pieces.
    async fn respec(&self, specs: &Specs) {
        let composer = Arc::new(Composer::of(specs));
        let plan = LabelPlan::of(&specs.labels, now());
        let configs = {
            let mut roster = lock(&self.roster);
            roster.set_specs(Arc::clone(&composer), plan);
            roster.configs_in_use()
        };
        for (id, key) in configs {
            let config = composer.compose(&key);
            lock(&self.roster).set_config(id, config);
            tokio::task::yield_now().await;
        }
        let mut from = Some(0);
        let mut is_patient = true;
        while let Some(place) = from {
            // Who has not made room within the time will not; the others must not wait for each piece.
            is_patient = is_patient && self.wait_for_room().await;
            from = lock(&self.roster).respec(place);
            tokio::task::yield_now().await;
        }
    }

    /// Waits for subscribers to take pieces; false when some did not in time.
    async fn wait_for_room(&self) -> bool {
        let deadline = Instant::now() + ROOM_WAIT_MAX;
        while lock(&self.roster).hub().room() < ROOM_PIECES {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(Duration::from_millis(10)).await;
        }
        true
    }

    /// Says once that the store went away, and once that it is back.
    fn note_store(&self, outcome: Result<(), &'static str>) {
        let was_away = self.is_store_away.swap(outcome.is_err(), Relaxed);
        match outcome {
            Err(what) if !was_away => {
                tracing::warn!("store unavailable ({what}); agents are served from memory");
            }
            Ok(()) if was_away => {
                for what in [
                    "enroll",
                    "update details",
                    "update labels",
                    "write seen times",
                    "spool",
                ] {
                    lock(&self.warned).clear(what);
                }
                tracing::info!("store available again");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// Loading campaigns fails only with the store.
fn store_error(error: campaigns::Error) -> store::Error {
    match error {
        campaigns::Error::Store(error) => error,
        other => store::Error::Failed(other.to_string()),
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
