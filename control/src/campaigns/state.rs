//! The campaigns that this node knows, in memory: those that run, and those that ended a while ago. No IO, no clock.
//!
//! Lives behind one short mutex. Invariant: a host that some running campaign has as pending is called, or waits in
//! `calls`; who takes it from there looks again afterwards.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use fleet_protocol::agent::{Query, QueryResult};
use fleet_protocol::ids::{HostId, UnixSeconds};
use fleet_protocol::limits::HELD_RESULT_BYTES_MAX;
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::calls::Calls;
use super::ledger::{Claim, Heard, Ledger};
use super::ring::{HostResult, Ring};
use super::{Counted, Options};
use crate::agents::Counts;
use crate::detail_queries::DISCOVERY_ALWAYS;
use crate::model::campaign::{Campaign, CampaignId, Status, Tally};

/// What a campaign's query is called on the wire; its id follows.
pub(crate) const CAMPAIGN_PREFIX: &str = "fleet_distributed_query_";
/// Ended campaigns that are remembered for viewers.
const ENDED_MAX: usize = 1000;
/// Campaigns that are over and forgotten, of which results still come: the store need not be asked for each.
const GONE_MAX: usize = 4096;

/// The campaign behind the name of a result.
pub(crate) fn campaign_of_name(name: &str) -> Option<CampaignId> {
    let tail = name.strip_prefix(CAMPAIGN_PREFIX)?;
    // `parse` alone would take "+7".
    let is_plain = tail.bytes().all(|byte| byte.is_ascii_digit());
    tail.parse().ok().filter(|_| is_plain).map(CampaignId)
}

/// A result on its way in.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    pub(crate) campaign: CampaignId,
    pub(crate) host: HostId,
    pub(crate) result: QueryResult,
}

/// What one node tells the others of a campaign.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct News {
    /// Hosts that have answered.
    pub(crate) answered: RoaringBitmap,
    pub(crate) tally: Tally,
    /// What was answered before is lost.
    pub(crate) is_lost: bool,
}

/// One campaign.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) campaign: Campaign,
    pub(crate) ledger: Ledger,
    query: Query,
    /// Without Redis.
    pub(crate) ring: Option<Ring>,
    pub(crate) tally: Tally,
    /// Changes whenever a viewer should look.
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) viewers: u32,
    /// The time in the store is to be moved on: somebody looks, or has until now.
    pub(crate) must_extend: bool,
    /// Targets by state, and when that was counted.
    pub(crate) counts: Option<(UnixSeconds, Counts)>,
}

impl Known {
    pub(crate) fn new(
        campaign: Campaign,
        targets: RoaringBitmap,
        ring: Option<Ring>,
        now: UnixSeconds,
    ) -> Self {
        Self {
            query: Query {
                name: format!("{CAMPAIGN_PREFIX}{}", campaign.id),
                sql: campaign.sql.clone(),
                discovery: DISCOVERY_ALWAYS.to_owned(),
            },
            tally: campaign.tally,
            campaign,
            ledger: Ledger::new(targets, now),
            ring,
            changed: watch::Sender::new(0),
            viewers: 0,
            must_extend: false,
            counts: None,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.campaign.status == Status::Running
    }

    pub(crate) fn tell_viewers(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    pub(crate) fn query(&self) -> Query {
        self.query.clone()
    }

    /// Keeps a result, or counts what is left out.
    fn keep(&mut self, result: HostResult, options: &Options, room: u64) {
        let (rows, bytes) = (result.row_count, result.bytes());
        let tally = &mut self.tally;
        tally.answered += 1;
        tally.failed += u64::from(result.is_failed());
        let is_fitting = tally.rows.saturating_add(rows) <= options.rows_max
            && tally.bytes.saturating_add(bytes) <= options.bytes_max
            && bytes <= room;
        match &mut self.ring {
            Some(ring) if is_fitting => {
                tally.rows += rows;
                tally.bytes += bytes;
                ring.push(result);
            }
            _ => {
                tally.hosts_cut += 1;
                tally.rows_cut += rows;
                tally.bytes_cut += bytes;
            }
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) known: BTreeMap<CampaignId, Known>,
    running: BTreeSet<CampaignId>,
    pub(crate) calls: Calls,
    /// Hosts that may be called for nothing.
    pub(crate) uncalls: RoaringBitmap,
    /// What the other nodes are to be told.
    pub(crate) news: BTreeMap<CampaignId, News>,
    /// Campaigns that Redis does not know any more.
    pub(crate) lost: BTreeSet<CampaignId>,
    /// Bytes of all rings.
    pub(crate) held_bytes: u64,
    /// Of those that are not known, some that will not run again.
    gone: BTreeSet<CampaignId>,
    /// The youngest that was ever heard of; an id above it may still begin.
    newest: CampaignId,
}

impl State {
    pub(crate) fn running(&self) -> &BTreeSet<CampaignId> {
        &self.running
    }

    pub(crate) fn running_mut(&mut self) -> impl Iterator<Item = (CampaignId, &mut Known)> {
        let known = self.known.iter_mut().map(|(id, known)| (*id, known));
        known.filter(|(_, known)| known.is_running())
    }

    /// A campaign that runs, or that ended and whose results may be looked at.
    pub(crate) fn add(&mut self, known: Known) {
        let id = known.campaign.id;
        if self.known.contains_key(&id) {
            return;
        }
        self.newest = self.newest.max(id);
        self.gone.remove(&id);
        if known.is_running() {
            self.running.insert(id);
            self.calls.push(known.ledger.pending());
        }
        self.held_bytes += known.ring.as_ref().map_or(0, Ring::bytes);
        self.known.insert(id, known);
    }

    /// Whether it is known not to run, now and ever after.
    pub(crate) fn is_gone(&self, id: CampaignId) -> bool {
        self.gone.contains(&id)
    }

    /// The store was asked for these: those that are still not known have ended, or never were.
    pub(crate) fn note_gone(&mut self, ids: &BTreeSet<CampaignId>) {
        for id in ids {
            if *id <= self.newest && !self.known.contains_key(id) {
                self.gone.insert(*id);
            }
        }
        while self.gone.len() > GONE_MAX {
            self.gone.pop_first();
        }
    }

    /// Of these hosts, those that each running campaign has to ask.
    pub(crate) fn wanted(&self, hosts: &[HostId]) -> Vec<(CampaignId, Vec<u32>)> {
        let mut wanted = Vec::new();
        for id in &self.running {
            let Some(known) = self.known.get(id) else {
                continue;
            };
            let pending = known.ledger.pending();
            if pending.is_empty() {
                continue;
            }
            let ids = hosts.iter().map(|host| host.0);
            let ids: Vec<u32> = ids.filter(|host| pending.contains(*host)).collect();
            if !ids.is_empty() {
                wanted.push((*id, ids));
            }
        }
        wanted
    }

    /// Whether some running campaign has this host to ask.
    pub(crate) fn is_pending(&self, host: u32) -> bool {
        let mut running = self.running.iter().filter_map(|id| self.known.get(id));
        running.any(|known| known.ledger.pending().contains(host))
    }

    /// Claims hosts here, where nobody else does.
    pub(crate) fn claim(
        &mut self,
        id: CampaignId,
        hosts: &[u32],
        now: UnixSeconds,
    ) -> Vec<(u32, Claim)> {
        let Some(known) = self.known.get_mut(&id).filter(|known| known.is_running()) else {
            return Vec::new();
        };
        let ledger = &mut known.ledger;
        // What is handed out now must count for the epoch of now.
        self.calls.push(&ledger.turn(now));
        hosts
            .iter()
            .map(|host| (*host, ledger.claim(*host)))
            .collect()
    }

    /// What Redis said of claims.
    pub(crate) fn note_claims(
        &mut self,
        id: CampaignId,
        claims: &[(u32, Claim)],
        now: UnixSeconds,
    ) {
        if let Some(known) = self.known.get_mut(&id).filter(|known| known.is_running()) {
            self.calls.push(&known.ledger.turn(now));
            for (host, claim) in claims {
                known.ledger.note(*host, *claim);
            }
        }
    }

    pub(crate) fn query(&self, id: CampaignId) -> Option<Query> {
        let known = self.known.get(&id).filter(|known| known.is_running());
        known.map(Known::query)
    }

    /// What a result would come to; `None` when the campaign is not known.
    pub(crate) fn judge(&self, incoming: &Incoming) -> Option<Counted> {
        let known = self.known.get(&incoming.campaign)?;
        Some(match known.ledger.judge(incoming.host.0) {
            Heard::Unasked => Counted::Unasked,
            _ if !known.is_running() => Counted::Late,
            Heard::Twice => Counted::Twice,
            Heard::New => Counted::Taken,
        })
    }

    /// Takes a result into this process's memory.
    pub(crate) fn take(
        &mut self,
        id: CampaignId,
        result: HostResult,
        options: &Options,
    ) -> Counted {
        self.make_room(result.bytes());
        let room = HELD_RESULT_BYTES_MAX.saturating_sub(self.held_bytes);
        let Some(known) = self.known.get_mut(&id) else {
            return Counted::Unasked;
        };
        if known.ledger.answer(result.host.0) != Heard::New {
            return Counted::Twice;
        }
        let before = known.ring.as_ref().map_or(0, Ring::bytes);
        known.keep(result, options, room);
        let after = known.ring.as_ref().map_or(0, Ring::bytes);
        self.held_bytes += after.saturating_sub(before);
        known.tell_viewers();
        Counted::Taken
    }

    /// What a node, perhaps this one, has heard.
    pub(crate) fn hear(&mut self, id: CampaignId, news: &News, now: UnixSeconds) {
        let Some(known) = self.known.get_mut(&id) else {
            return;
        };
        if news.is_lost && known.is_running() {
            known.ledger.restart(now);
            known.tally = Tally::default();
            self.calls.push(known.ledger.pending());
        }
        for host in &news.answered {
            known.ledger.answer(host);
        }
        if news.tally.answered >= known.tally.answered {
            known.tally = news.tally;
        }
        known.tell_viewers();
    }

    /// News that could not be told. What came meanwhile is newer.
    pub(crate) fn tell_later(&mut self, news: BTreeMap<CampaignId, News>) {
        for (id, old) in news {
            if !self.known.contains_key(&id) {
                continue;
            }
            match self.news.entry(id) {
                Entry::Vacant(entry) => {
                    entry.insert(old);
                }
                Entry::Occupied(mut entry) => {
                    let new = entry.get_mut();
                    // A loss takes with it what was answered before.
                    if !new.is_lost {
                        new.answered |= old.answered;
                        new.is_lost = old.is_lost;
                    }
                }
            }
        }
    }

    /// Puts hosts that still have something outstanding back, after they were taken from the called ones.
    pub(crate) fn call_again(&mut self, hosts: impl IntoIterator<Item = u32>) {
        if self.running.is_empty() {
            return;
        }
        let pending: Vec<u32> = hosts
            .into_iter()
            .filter(|host| self.is_pending(*host))
            .collect();
        for host in pending {
            self.calls.push_one(host);
        }
    }

    /// Those that did not answer in time are called again; how many.
    pub(crate) fn turn(&mut self, now: UnixSeconds) -> u64 {
        let mut again = RoaringBitmap::new();
        for (_, known) in self.running_mut() {
            again |= known.ledger.turn(now);
        }
        self.calls.push(&again);
        again.len()
    }

    /// A campaign has ended: its hosts need not come for it any more.
    pub(crate) fn end(&mut self, id: CampaignId, status: Status, ended_at: UnixSeconds) {
        self.newest = self.newest.max(id);
        self.running.remove(&id);
        let Some(known) = self.known.get_mut(&id).filter(|known| known.is_running()) else {
            return;
        };
        known.campaign.status = status;
        known.campaign.ended_at = ended_at;
        known.campaign.tally = known.tally;
        let pending = known.ledger.pending().clone();
        let targets = known.ledger.targets().clone();
        // Results that still come are told apart by the targets.
        known.ledger = Ledger::new(targets, ended_at);
        known.tell_viewers();
        self.uncalls |= pending;
    }

    /// Results of campaigns that run come before those that ended, at which nobody looks; the oldest go first.
    fn make_room(&mut self, bytes: u64) {
        while HELD_RESULT_BYTES_MAX.saturating_sub(self.held_bytes) < bytes {
            let ended = self.known.values().filter(|known| {
                let is_held = known.ring.as_ref().is_some_and(|ring| ring.bytes() > 0);
                is_held && !known.is_running() && known.viewers == 0
            });
            let oldest = ended.min_by_key(|known| (known.campaign.ended_at, known.campaign.id));
            let Some(id) = oldest.map(|known| known.campaign.id) else {
                return;
            };
            self.remove(id);
        }
    }

    fn remove(&mut self, id: CampaignId) {
        if let Some(known) = self.known.remove(&id) {
            let bytes = known.ring.as_ref().map_or(0, Ring::bytes);
            self.held_bytes = self.held_bytes.saturating_sub(bytes);
        }
    }

    /// Forgets campaigns that ended before and at which nobody looks; the oldest also when there are too many.
    pub(crate) fn forget(&mut self, before: UnixSeconds) {
        let mut ended: Vec<(UnixSeconds, CampaignId)> = self
            .known
            .values()
            .filter(|known| !known.is_running() && known.viewers == 0)
            .map(|known| (known.campaign.ended_at, known.campaign.id))
            .collect();
        ended.sort_unstable();
        let surplus = ended.len().saturating_sub(ENDED_MAX);
        for (index, (ended_at, id)) in ended.into_iter().enumerate() {
            if ended_at >= before && index >= surplus {
                continue;
            }
            self.remove(id);
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
