//! Campaigns from the store into memory: at the start, when changes tell of them, and when Redis comes back.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;

use fleet_protocol::ids::UnixSeconds;
use futures_util::future::join_all;

use super::ring::Ring;
use super::shared;
use super::state::{Known, News};
use super::{Campaigns, Error};
use crate::agents::{lock, now};
use crate::model::campaign::{Campaign, CampaignId, Status};

/// One that this node did not know may be so young that it is not in Redis yet.
const YOUNG_S: u32 = 10;

/// After so long every replica of the store has what began.
const SETTLED_S: u32 = 60;

const LOST_HERE: &str =
    "the results before this one were lost with the gateway's restart; hosts are asked again";

impl Campaigns {
    /// Everything that runs; what this process believes to run and does not, has ended.
    pub(crate) async fn load(&self) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        let running = self.store.campaigns_running().await?;
        let ids: BTreeSet<CampaignId> = running.iter().map(|campaign| campaign.id).collect();
        let gone: BTreeSet<CampaignId> = {
            let state = lock(&self.state);
            state.running().difference(&ids).copied().collect()
        };
        self.take_up(running).await?;
        let ended = self.store.campaigns_by_ids(&gone).await?;
        let found: BTreeSet<CampaignId> = ended.iter().map(|campaign| campaign.id).collect();
        self.take_up(ended).await?;
        self.end_missing(gone.difference(&found).copied());
        Ok(())
    }

    /// The store has no record of these: it was replaced, or they ended long ago.
    fn end_missing(&self, ids: impl Iterator<Item = CampaignId>) {
        let now = now();
        let mut state = lock(&self.state);
        for id in ids {
            let known = state.known.get(&id);
            let began_at = known.map_or(now, |known| known.campaign.created_at);
            if now.0.saturating_sub(began_at.0) < SETTLED_S {
                continue;
            }
            tracing::warn!(%id, "the store has no record of a live query that ran here; it ends");
            state.end(id, Status::Stopped, now);
        }
    }

    /// These began or ended.
    pub(crate) async fn reload(&self, ids: &BTreeSet<CampaignId>) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        let campaigns = self.store.campaigns_by_ids(ids).await?;
        self.take_up(campaigns).await
    }

    async fn take_up(&self, campaigns: Vec<Campaign>) -> Result<(), Error> {
        for campaign in campaigns {
            let (id, status, ended_at) = (campaign.id, campaign.status, campaign.ended_at);
            let is_known = lock(&self.state).known.contains_key(&id);
            if status != Status::Running {
                lock(&self.state).end(id, status, ended_at);
            } else if !is_known {
                let targets = self.store.campaign_targets(id).await?.unwrap_or_default();
                let mut ring = self.new_ring();
                if let Some(ring) = &mut ring {
                    ring.push_lost(LOST_HERE);
                    self.counters.lost.fetch_add(1, Relaxed);
                }
                let age_s = now().0.saturating_sub(campaign.created_at.0);
                let is_young = age_s < YOUNG_S;
                let mut known = Known::new(campaign, targets, ring, now());
                known.must_extend = true;
                let is_there = self.bus.is_shared();
                lock(&self.state).add(known);
                if is_there {
                    // Redis that is away now is asked when it comes back.
                    let _ = self.ask_standing(id, is_young).await;
                }
            }
        }
        self.stir();
        Ok(())
    }

    /// Asks Redis how the campaigns that run stand: it may have restarted.
    pub(super) async fn renew_all(&self) {
        let ids: Vec<CampaignId> = lock(&self.state).running().iter().copied().collect();
        for ids in ids.chunks(32) {
            join_all(ids.iter().map(|id| self.renew(*id))).await;
        }
        self.stir();
    }

    /// Asks Redis how a campaign stands. If Redis lost it, it begins again.
    pub(super) async fn renew(&self, id: CampaignId) -> Result<(), Error> {
        self.ask_standing(id, false).await
    }

    async fn ask_standing(&self, id: CampaignId, is_young: bool) -> Result<(), Error> {
        let before = {
            let state = lock(&self.state);
            let known = state.known.get(&id);
            known.map(|known| {
                let answered = known.ledger.answered().clone();
                (known.campaign.created_at, answered)
            })
        };
        let Some((began_at, answered_before)) = before else {
            return Ok(());
        };
        let standing = shared::standing(&self.bus, id, began_at, is_young).await?;
        let mut state = lock(&self.state);
        let Some(known) = state.known.get(&id).filter(|known| known.is_running()) else {
            return Ok(());
        };
        let hosts = standing.answered.iter();
        let hosts = hosts
            .filter_map(|place| known.ledger.host_at(*place))
            .collect();
        let mut news = News {
            answered: hosts,
            tally: standing.tally,
            is_lost: standing.is_new,
        };
        // Another node may have begun it again, and this one has not heard: who has answered is what Redis says. Who
        // answers while it is asked is not in what it says.
        news.is_lost |= !answered_before.is_subset(&news.answered);
        state.hear(id, &news, now());
        if standing.is_new {
            tracing::warn!(%id, "Redis lost the results of a live query; its hosts are asked again");
            self.counters.lost.fetch_add(1, Relaxed);
            state.news.insert(id, news);
        }
        drop(state);
        self.stir();
        Ok(())
    }

    /// Redis lost a campaign: asks it again, in the background.
    pub(super) fn begin_again(&self, id: CampaignId) {
        lock(&self.state).lost.insert(id);
        self.stir();
    }

    pub(super) fn new_ring(&self) -> Option<Ring> {
        (!self.bus.is_shared()).then(|| Ring::new(self.began_ms))
    }

    /// Ends a campaign, in the store first. With `overdue_at`, only if its time is over by then. False when it had ended.
    pub(super) async fn end(
        &self,
        id: CampaignId,
        status: Status,
        overdue_at: Option<UnixSeconds>,
    ) -> Result<bool, Error> {
        let known = lock(&self.state).known.get(&id).map(|known| known.tally);
        let tally = match known {
            Some(tally) => tally,
            None if self.bus.is_shared() => shared::tally(&self.bus, id).await?,
            None => Default::default(),
        };
        let ended_at = now();
        let ended = self
            .store
            .campaign_end(id, status, &tally, ended_at, overdue_at);
        if !ended.await? {
            return Ok(false);
        }
        self.bus.publish_wake(self.store.newest_known());
        lock(&self.state).end(id, status, ended_at);
        self.stir();
        if self.bus.is_shared() {
            // If it fails, they expire with the longest life of a campaign.
            let _ = shared::end(&self.bus, id).await;
        }
        tracing::info!(%id, status = status.label(), answered = tally.answered, truncated = tally.is_truncated(), "live query ended");
        Ok(true)
    }
}
