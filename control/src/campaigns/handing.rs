//! Batches of reads and of results, as far as campaigns are concerned.
//!
//! Invariants: one wait for all claims of a batch, one for all its results, and no lock over it; Redis that is away costs
//! agents nothing but the live queries.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use fleet_protocol::agent::{Query, QueryResult, Write};
use fleet_protocol::ids::{HostId, RequestId};
use fleet_protocol::reject::Reject;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::ledger::{Claim, Heard};
use super::ring::HostResult;
use super::shared::{self, Taken};
use super::state::{Incoming, News, campaign_of_name};
use super::{Campaigns, Counted};
use crate::agents::{lock, now};
use crate::bus;
use crate::model::campaign::{CampaignId, Tally};

/// Campaigns that this node does not know yet and that one batch looks up; results of others come again.
const UNKNOWN_MAX: usize = 16;
/// Redis did not answer: reads do not wait for it for so long.
const PAUSE: Duration = Duration::from_secs(2);
/// Agents wait for so long at most, and the last piece, until their results are with Redis.
const TAKE_TIME: Duration = Duration::from_secs(2);

/// Takes the results of live queries out of writes, but not those of hosts that are refused: they go another way than
/// details and labels.
pub(crate) fn take_live(
    requests: &mut [(RequestId, Write)],
    refusals: &HashMap<HostId, Reject>,
) -> Vec<Incoming> {
    let mut live = Vec::new();
    for (_, write) in requests {
        let host = write.host;
        if refusals.contains_key(&host) {
            continue;
        }
        let (of_campaigns, others) = std::mem::take(&mut write.results)
            .into_iter()
            .partition(|result: &QueryResult| campaign_of_name(&result.name).is_some());
        write.results = others;
        live.extend(of_campaigns.into_iter().filter_map(|result| {
            let campaign = campaign_of_name(&result.name)?;
            Some(Incoming {
                campaign,
                host,
                result,
            })
        }));
    }
    live
}

impl Campaigns {
    /// Whether no campaign runs, so that nobody need ask.
    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.state).running().is_empty()
    }

    /// The queries for these hosts but those refused, which are claimed by that.
    pub(crate) async fn hand_out(
        &self,
        hosts: &[HostId],
        refusals: &HashMap<HostId, Reject>,
    ) -> HashMap<HostId, Vec<Query>> {
        let mut granted = HashMap::new();
        let mut wanted = lock(&self.state).wanted(hosts);
        if !refusals.is_empty() {
            for (_, hosts) in &mut wanted {
                hosts.retain(|host| !refusals.contains_key(&HostId(*host)));
            }
        }
        let is_ready = !self.bus.is_shared() || *lock(&self.asks_from) <= Instant::now();
        if wanted.is_empty() || !is_ready {
            return granted;
        }
        let claims: Vec<(CampaignId, Vec<(u32, Claim)>)> = if self.bus.is_shared() {
            let asked = wanted
                .into_iter()
                .map(|(id, hosts)| self.claim_shared(id, hosts));
            join_all(asked).await
        } else {
            let mut state = lock(&self.state);
            let claimed = wanted
                .into_iter()
                .map(|(id, hosts)| (id, state.claim(id, &hosts, now())));
            claimed.collect()
        };
        let state = lock(&self.state);
        for (id, claims) in claims {
            // It may have ended while Redis was asked.
            let Some(query) = state.query(id) else {
                continue;
            };
            for (host, claim) in claims {
                let counter = match claim {
                    Claim::First => &self.counters.handed,
                    Claim::Again => &self.counters.handed_again,
                    _ => continue,
                };
                counter.fetch_add(1, Relaxed);
                granted
                    .entry(HostId(host))
                    .or_insert_with(Vec::new)
                    .push(query.clone());
            }
        }
        granted
    }

    /// These hosts have read, and are called no more: who still has something outstanding is called again.
    pub(crate) fn have_read(&self, hosts: &[HostId]) {
        let mut state = lock(&self.state);
        state.call_again(hosts.iter().map(|host| host.0));
        let is_waiting = !state.calls.is_empty();
        drop(state);
        if is_waiting {
            self.stir();
        }
    }

    /// Takes results; returns the hosts that must send theirs again.
    pub(crate) async fn take(&self, incoming: Vec<Incoming>) -> BTreeSet<HostId> {
        let mut again = BTreeSet::new();
        if incoming.is_empty() {
            return again;
        }
        let looked_up = self.learn_of(&incoming).await;
        let mut by_campaign: BTreeMap<CampaignId, Vec<HostResult>> = BTreeMap::new();
        {
            let state = lock(&self.state);
            for one in incoming {
                let judged = match state.judge(&one) {
                    Some(judged) => judged,
                    None if looked_up.contains(&one.campaign) => Counted::Unasked,
                    // Whether it was asked for is in the store.
                    None => Counted::Deferred,
                };
                if judged == Counted::Deferred {
                    again.insert(one.host);
                }
                match judged {
                    Counted::Taken => {
                        let results = by_campaign.entry(one.campaign).or_default();
                        results.push(HostResult::of(one.host, one.result));
                    }
                    other => self.counters.count(other, 1),
                }
            }
        }
        if self.bus.is_shared() {
            let taken = by_campaign
                .into_iter()
                .map(|(id, results)| self.take_shared(id, results));
            for hosts in join_all(taken).await {
                again.extend(hosts);
            }
        } else {
            self.take_here(by_campaign);
        }
        self.stir();
        again
    }

    fn take_here(&self, by_campaign: BTreeMap<CampaignId, Vec<HostResult>>) {
        let mut state = lock(&self.state);
        for (id, results) in by_campaign {
            let before = state
                .known
                .get(&id)
                .map_or(Tally::default(), |known| known.tally);
            for result in results {
                self.counters
                    .count(state.take(id, result, &self.options), 1);
            }
            let after = state.known.get(&id).map_or(before, |known| known.tally);
            self.count_growth(&before, &after);
        }
    }

    /// What was read of Redis lies behind what other nodes write, so a growth may be theirs in part.
    fn count_growth(&self, before: &Tally, after: &Tally) {
        let of = &self.counters;
        of.rows
            .fetch_add(after.rows.saturating_sub(before.rows), Relaxed);
        of.bytes
            .fetch_add(after.bytes.saturating_sub(before.bytes), Relaxed);
        let cut = after.hosts_cut.saturating_sub(before.hosts_cut);
        of.cut.fetch_add(cut, Relaxed);
    }

    async fn claim_shared(
        &self,
        id: CampaignId,
        hosts: Vec<u32>,
    ) -> (CampaignId, Vec<(u32, Claim)>) {
        let places: Vec<(u32, u64)> = {
            let state = lock(&self.state);
            let known = state.known.get(&id);
            let place = |host: &u32| known?.ledger.rank(*host).map(|rank| (*host, rank));
            hosts.iter().filter_map(place).collect()
        };
        let ranks: Vec<u64> = places.iter().map(|(_, rank)| *rank).collect();
        let asked = shared::claim(&self.bus, id, &ranks).await;
        let claims: Vec<(u32, Claim)> = match asked {
            Ok(Some(claims)) => {
                let hosts = places.into_iter().map(|(host, _)| host);
                hosts.zip(claims).collect()
            }
            Ok(None) => {
                self.begin_again(id);
                Vec::new()
            }
            Err(_) => {
                *lock(&self.asks_from) = Instant::now() + PAUSE;
                let count = ranks.len() as u64;
                self.counters.claims_failed.fetch_add(count, Relaxed);
                Vec::new()
            }
        };
        lock(&self.state).note_claims(id, &claims, now());
        (id, claims)
    }

    /// Brings results to Redis, piece by piece; returns the hosts of those that did not get there.
    async fn take_shared(&self, id: CampaignId, results: Vec<HostResult>) -> Vec<HostId> {
        let results: Vec<(u64, HostResult)> = {
            let state = lock(&self.state);
            let known = state.known.get(&id);
            let place = |result: HostResult| {
                let rank = known?.ledger.rank(result.host.0)?;
                Some((rank, result))
            };
            results.into_iter().filter_map(place).collect()
        };
        let until = Instant::now() + TAKE_TIME;
        let mut again = Vec::new();
        for piece in shared::pieces(results) {
            // What has arrived is kept, so that the next try has less to bring.
            let is_time = again.is_empty() && Instant::now() < until;
            if !is_time || !self.take_piece(id, &piece).await {
                self.counters.count(Counted::Deferred, piece.len() as u64);
                again.extend(piece.iter().map(|(_, result)| result.host));
            }
        }
        again
    }

    /// Whether Redis took them.
    async fn take_piece(&self, id: CampaignId, results: &[(u64, HostResult)]) -> bool {
        let mut taken = shared::take(&self.bus, id, results, &self.options).await;
        if taken == Ok(Taken::Lost) && self.renew(id).await.is_ok() {
            // These were not lost; they are the first of the new beginning.
            taken = shared::take(&self.bus, id, results, &self.options).await;
        }
        let (heard, tally) = match taken {
            Ok(Taken::Heard(heard, tally)) => (heard, tally),
            Ok(Taken::Lost) | Err(bus::Error::Invalid(_) | bus::Error::Unavailable(_)) => {
                return false;
            }
        };
        let twice = heard.iter().filter(|heard| **heard != Heard::New).count() as u64;
        self.counters.count(Counted::Twice, twice);
        self.counters
            .count(Counted::Taken, heard.len() as u64 - twice);
        let mut news = News {
            tally,
            ..News::default()
        };
        news.answered
            .extend(results.iter().map(|(_, result)| result.host.0));
        let mut state = lock(&self.state);
        let before = state.known.get(&id).map_or(tally, |known| known.tally);
        self.count_growth(&before, &tally);
        state.hear(id, &news, now());
        let waiting = state.news.entry(id).or_default();
        waiting.answered |= news.answered;
        waiting.tally = tally;
        true
    }

    /// Makes sure that campaigns that began on another node a moment ago are known. Answers those that were looked up,
    /// now or before; there are none when the store is away.
    async fn learn_of(&self, incoming: &[Incoming]) -> BTreeSet<CampaignId> {
        let (mut looked_up, unknown): (BTreeSet<_>, BTreeSet<_>) = {
            let state = lock(&self.state);
            let ids: BTreeSet<CampaignId> = incoming.iter().map(|one| one.campaign).collect();
            let unknown = ids.into_iter().filter(|id| !state.known.contains_key(id));
            unknown.partition(|id| state.is_gone(*id))
        };
        // Any of them, so that nobody keeps the others waiting by making up names.
        let chosen = fastrand::choose_multiple(unknown, UNKNOWN_MAX);
        let chosen: BTreeSet<CampaignId> = chosen.into_iter().collect();
        if !chosen.is_empty() && self.reload(&chosen).await.is_ok() {
            lock(&self.state).note_gone(&chosen);
            looked_up.extend(chosen);
        }
        looked_up
    }
}
