//! What goes on by itself while campaigns run: calls, news, ends. Nothing of it happens while there are none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use fleet_protocol::ids::UnixSeconds;
use fleet_protocol::limits::{CALL_INTERVAL, CAMPAIGN_AGE_MAX, CAMPAIGN_KEPT, REPLAY_TIME};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep, timeout};

use super::state::News;
use super::{Campaigns, Error, shared};
use crate::agents::{lock, now};
use crate::model::campaign::{CampaignId, Status};

/// What has to be looked after without an occasion.
const ROUND_INTERVAL: Duration = Duration::from_secs(5);
/// Occasions that come faster share a round.
const ROUND_GAP: Duration = Duration::from_millis(50);
/// A campaign that somebody looks at is extended this often, or three times in what it has left if that is more often.
const EXTEND_EVERY_S: u32 = 20;
/// Results that somebody looks at are kept again this often, after the end.
const KEEP_EVERY_S: u32 = 120;
/// Times that are over are looked for this often.
const SWEEP_EVERY_S: u32 = 10;
/// News are gathered for so long.
const NEWS_INTERVAL: Duration = Duration::from_millis(100);
/// Redis did not take them.
const NEWS_RETRY: Duration = Duration::from_secs(1);
/// Between deletions, so that others get at the store.
const PRUNE_GAP: Duration = Duration::from_millis(100);
/// Records of campaigns are deleted this often.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// When what was done last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    extended_at: UnixSeconds,
    swept_at: UnixSeconds,
    kept_at: UnixSeconds,
}

impl Campaigns {
    /// Runs until [`Campaigns::close`].
    pub(crate) async fn run(self: Arc<Self>) {
        let mut closing = self.is_closing.subscribe();
        let all = async {
            tokio::join!(
                self.call_forever(),
                self.look_after(),
                self.tell_forever(),
                self.hear_forever(),
                self.prune_forever(),
            )
        };
        tokio::select! {
            _ = all => {}
            _ = closing.wait_for(|is_closing| *is_closing) => {}
        }
    }

    /// Calls hosts, slice by slice. While Redis is away nobody could be handed anything, so they wait.
    async fn call_forever(&self) {
        loop {
            let is_called = self.bus.is_healthy() && self.call_slice();
            let is_uncalled = self.uncall_slice();
            if is_called || is_uncalled {
                sleep(CALL_INTERVAL).await;
            } else {
                // Woken by who puts hosts there; Redis' return wakes nobody here.
                let _ = timeout(Duration::from_secs(1), self.wakes.calls.notified()).await;
            }
        }
    }

    /// Whether there was somebody to call.
    pub(super) fn call_slice(&self) -> bool {
        let slice = {
            let mut state = lock(&self.state);
            let mut slice = state.calls.slice();
            let done: Vec<u32> = slice
                .iter()
                .filter(|host| !state.is_pending(*host))
                .collect();
            for host in done {
                slice.remove(host);
            }
            slice
        };
        if slice.is_empty() {
            return !lock(&self.state).calls.is_empty();
        }
        self.counters.called.fetch_add(slice.len(), Relaxed);
        let mut roster = lock(&self.roster);
        roster.call(&slice);
        roster.publish(None);
        true
    }

    /// Hosts that were called for a campaign that ended. Whether there were some.
    pub(super) fn uncall_slice(&self) -> bool {
        let slice = {
            let mut state = lock(&self.state);
            let slice: Vec<u32> = state.uncalls.iter().take(4096).collect();
            for host in &slice {
                state.uncalls.remove(*host);
            }
            slice
        };
        if slice.is_empty() {
            return false;
        }
        let called: Vec<u32> = {
            let mut roster = lock(&self.roster);
            let called = slice
                .into_iter()
                .filter(|host| roster.uncall(*host))
                .collect();
            roster.publish(None);
            called
        };
        // Others may still want them, and may have called them a moment ago.
        lock(&self.state).call_again(called);
        true
    }

    async fn look_after(&self) {
        let mut done = Done::default();
        loop {
            let _ = timeout(self.round_interval(), self.wakes.round.notified()).await;
            self.round(&mut done, now()).await;
            sleep(ROUND_GAP).await;
        }
    }

    fn extend_every_s(&self) -> u32 {
        EXTEND_EVERY_S.min(self.options.linger_s / 3).max(1)
    }

    fn round_interval(&self) -> Duration {
        let extend_every = Duration::from_secs(u64::from(self.extend_every_s()));
        // A bit shorter, so that a round is not just too early.
        ROUND_INTERVAL.min(extend_every / 2)
    }

    /// One look at everything.
    pub(super) async fn round(&self, done: &mut Done, now: UnixSeconds) {
        let (lost, complete) = {
            let mut state = lock(&self.state);
            if state.known.is_empty() {
                return;
            }
            state.turn(now);
            let kept_s = u32::try_from(REPLAY_TIME.as_secs()).unwrap_or(u32::MAX);
            state.forget(UnixSeconds(now.0.saturating_sub(kept_s)));
            let lost = std::mem::take(&mut state.lost);
            let complete: Vec<CampaignId> = state
                .running_mut()
                .filter(|(_, known)| known.ledger.is_complete())
                .map(|(id, _)| id)
                .collect();
            (lost, complete)
        };
        for id in lost {
            if self.renew(id).await.is_err() {
                lock(&self.state).lost.insert(id);
            }
        }
        for id in complete {
            if let Err(error) = self.end(id, Status::Finished, None).await {
                tracing::debug!(%id, %error, "a live query cannot be ended yet");
            }
        }
        self.extend(done, now).await;
        self.keep_viewed(done, now).await;
        self.sweep(done, now).await;
        self.wakes.calls.notify_one();
    }

    async fn extend(&self, done: &mut Done, now: UnixSeconds) {
        let is_time = now.0.saturating_sub(done.extended_at.0) >= self.extend_every_s();
        let ids: BTreeSet<CampaignId> = {
            let mut state = lock(&self.state);
            let is_due = |must_extend: bool, viewers: u32| must_extend || (is_time && viewers > 0);
            let running = state.running_mut();
            let seen = running.filter(|(_, known)| is_due(known.must_extend, known.viewers));
            seen.map(|(id, known)| {
                known.must_extend = false;
                id
            })
            .collect()
        };
        if is_time {
            done.extended_at = now;
        }
        if ids.is_empty() {
            return;
        }
        let until = UnixSeconds(now.0.saturating_add(self.options.linger_s));
        let age_max_s = u32::try_from(CAMPAIGN_AGE_MAX.as_secs()).unwrap_or(u32::MAX);
        if let Err(error) = self.store.campaigns_extend(&ids, until, age_max_s).await {
            tracing::debug!(%error, "live queries cannot be extended");
            let mut state = lock(&self.state);
            let running = state.running_mut().filter(|(id, _)| ids.contains(id));
            running.for_each(|(_, known)| known.must_extend = true);
        }
    }

    /// Redis keeps the results of those that ended for as long as somebody reads them.
    async fn keep_viewed(&self, done: &mut Done, now: UnixSeconds) {
        let is_time = now.0.saturating_sub(done.kept_at.0) >= KEEP_EVERY_S;
        if !is_time || !self.bus.is_shared() {
            return;
        }
        done.kept_at = now;
        let viewed: Vec<CampaignId> = {
            let state = lock(&self.state);
            let known = state.known.values();
            let viewed = known.filter(|known| !known.is_running() && known.viewers > 0);
            viewed.map(|known| known.campaign.id).collect()
        };
        for id in viewed {
            // If it fails there are several more tries within their life.
            let _ = shared::end(&self.bus, id).await;
        }
    }

    /// Ends what nobody looked at. Every node does; the store lets one of them.
    async fn sweep(&self, done: &mut Done, now: UnixSeconds) {
        if now.0.saturating_sub(done.swept_at.0) < SWEEP_EVERY_S || self.is_idle() {
            return;
        }
        done.swept_at = now;
        let overdue = match self.store.campaigns_overdue(now).await {
            Ok(overdue) => overdue,
            Err(error) => {
                tracing::debug!(%error, "the store cannot be asked for live queries to end");
                return;
            }
        };
        for id in overdue {
            // One that is seen here was extended in vain: its longest time is over, or the store was away.
            if let Err(error) = self.end(id, Status::Expired, Some(now)).await {
                tracing::debug!(%id, %error, "a live query cannot be ended yet");
            }
        }
    }

    /// Tells the other nodes what was answered here, gathered.
    async fn tell_forever(&self) {
        loop {
            self.wakes.news.notified().await;
            let news = std::mem::take(&mut lock(&self.state).news);
            if news.is_empty() {
                continue;
            }
            match serde_json::to_vec(&(self.node, &news)) {
                Ok(text) => {
                    if self.bus.tell(&text).await.is_err() {
                        lock(&self.state).tell_later(news);
                        sleep(NEWS_RETRY).await;
                        self.wakes.news.notify_one();
                    }
                }
                Err(error) => tracing::error!(%error, "news of live queries cannot be written"),
            }
            sleep(NEWS_INTERVAL).await;
        }
    }

    async fn hear_forever(&self) {
        if !self.bus.is_shared() {
            return;
        }
        let mut news = self.bus.news();
        let mut connects = self.bus.connects();
        // What was told, and who connected, before this listened.
        self.renew_all().await;
        loop {
            tokio::select! {
                heard = news.recv() => match heard {
                    Ok(text) => self.hear(&text),
                    Err(RecvError::Lagged(missed)) => {
                        self.counters.news_missed.fetch_add(missed, Relaxed);
                        self.renew_all().await;
                    }
                    Err(RecvError::Closed) => return,
                },
                changed = connects.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.renew_all().await;
                }
            }
        }
    }

    pub(super) fn hear(&self, text: &[u8]) {
        let Ok((node, news)) = serde_json::from_slice::<(u64, BTreeMap<CampaignId, News>)>(text)
        else {
            self.counters.news_missed.fetch_add(1, Relaxed);
            return;
        };
        if node == self.node {
            return;
        }
        let mut state = lock(&self.state);
        for (id, news) in news {
            state.hear(id, &news, now());
        }
        drop(state);
        self.stir();
    }

    /// Deletes those that ended before, some at a time.
    async fn prune(&self, before: UnixSeconds) -> Result<(), Error> {
        while self.store.campaigns_prune(before).await? > 0 {
            sleep(PRUNE_GAP).await;
        }
        Ok(())
    }

    async fn prune_forever(&self) {
        let mut pruned_at: Option<Instant> = None;
        loop {
            if pruned_at.is_none_or(|at| at.elapsed() >= PRUNE_INTERVAL) {
                pruned_at = Some(Instant::now());
                let kept_s = u32::try_from(CAMPAIGN_KEPT.as_secs()).unwrap_or(u32::MAX);
                let before = UnixSeconds(now().0.saturating_sub(kept_s));
                if let Err(error) = self.prune(before).await {
                    tracing::debug!(%error, "old live queries cannot be deleted");
                }
            }
            sleep(PRUNE_INTERVAL / 60).await;
        }
    }
}
