//! Live queries: who is asked what now, and what they answer.
//!
//! The store is the truth of campaigns (`store/campaigns.rs`); who was handed the query and what was answered is in Redis
//! (`shared.rs`), or in this process when there is none (`ledger.rs`, `ring.rs`). A host with something outstanding is
//! called: workers are told that it has work, so that its read comes through control, and a held one at once. Who is not
//! called costs nothing, however many campaigns run. Invariants: a host gets the query of a campaign again only when it did
//! not answer; its rows are told to every viewer once; agents hear `Accepted` when the rows are where viewers read them.

mod calls;
mod handing;
mod ledger;
mod loading;
mod ring;
mod rounds;
mod shared;
#[cfg(test)]
mod shared_tests;
mod state;
mod targets;
#[cfg(test)]
mod tests;
mod viewer;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use fleet_protocol::config::Osquery;
use fleet_protocol::feed::CHANGES_PER_FEED_MAX;
use fleet_protocol::ids::{HostId, UnixSeconds};
use fleet_protocol::limits::OPEN_CAMPAIGNS_MAX;
use roaring::RoaringBitmap;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::agents::{Counts, lock, now};
use crate::bus::{self, Bus};
use crate::model::campaign::{Campaign, CampaignId, NewCampaign, Status, Tally, Targets};
use crate::model::label::LabelId;
use crate::roster::Roster;
use crate::store::{self, Store};
use state::{Known, State};

pub(crate) use handing::take_live;
#[allow(
    unused_imports,
    reason = "what viewers are told is for operators' doors"
)]
pub(crate) use ring::{Cursor, HostResult};
pub(crate) use targets::Groups;
#[allow(
    unused_imports,
    reason = "what viewers are told is for operators' doors"
)]
pub(crate) use viewer::{Event, Viewer};

/// Targets are counted by state this often at most, seconds; many viewers of large campaigns would count all day.
const COUNTS_AGE_S: u32 = 5;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("no hosts targeted")]
    NoTargets,
    #[error("the query is empty")]
    NoQuery,
    #[error("there are {0} live queries running already; stop some first")]
    TooMany(u32),
    /// Labels that do not exist.
    #[error("unknown labels")]
    UnknownLabels(Vec<LabelId>),
    /// There is none of this id, or its results are gone.
    #[error("no such live query, or it ended too long ago")]
    NotFound,
    #[error(transparent)]
    Bus(#[from] bus::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The options that decide here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) rows_max: u64,
    pub(crate) bytes_max: u64,
    /// A campaign at which nobody looks ends after so many seconds.
    pub(crate) linger_s: u32,
}

impl Options {
    pub(crate) fn of(options: &Osquery) -> Self {
        let linger_s = options.live_query_linger.as_secs();
        Self {
            rows_max: options.live_query_rows_max,
            bytes_max: options.live_query_bytes_max,
            linger_s: u32::try_from(linger_s).unwrap_or(u32::MAX),
        }
    }
}

/// How a campaign stands now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) status: Status,
    /// Targets by state; `enrolled` is how many of them there still are.
    pub(crate) counts: Counts,
    /// Hosts to be asked, as resolved at the beginning.
    pub(crate) targeted: u64,
    pub(crate) tally: Tally,
    /// Hosts that were asked as often as they may be, and said nothing; as far as this node knows.
    pub(crate) silent: u64,
    /// Redis is away: nobody is asked until it is back.
    pub(crate) is_waiting: bool,
}

/// What a result was counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    Taken,
    /// The host is no target, or there is no such campaign.
    Unasked,
    /// The campaign has ended.
    Late,
    /// The host has answered before.
    Twice,
    /// Redis or the store did not take it; the agent comes again.
    Deferred,
}

impl Counted {
    const ALL: [Self; 5] = [
        Self::Taken,
        Self::Unasked,
        Self::Late,
        Self::Twice,
        Self::Deferred,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Unasked => "unasked",
            Self::Late => "late",
            Self::Twice => "twice",
            Self::Deferred => "deferred",
        }
    }
}

/// Counters since the process started, and gauges now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CampaignsStatistics {
    /// Campaigns that run.
    pub(crate) open: u64,
    pub(crate) viewers: u64,
    /// Hosts that wait to be called.
    pub(crate) calls_waiting: u64,
    /// Bytes of results in memory.
    pub(crate) held_bytes: u64,
    /// Hosts that were called.
    pub(crate) called: u64,
    /// Queries handed out for the first time.
    pub(crate) handed: u64,
    /// Again, because no answer came.
    pub(crate) handed_again: u64,
    /// Hosts whose claim Redis did not answer; they are called again.
    pub(crate) claims_failed: u64,
    /// Results by what became of them.
    pub(crate) results: Vec<(&'static str, u64)>,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    /// Results whose rows were left out.
    pub(crate) cut: u64,
    /// Campaigns whose results Redis or a restart of control lost.
    pub(crate) lost: u64,
    /// News of other nodes that could not be read, or came too fast.
    pub(crate) news_missed: u64,
}

#[derive(Debug, Default)]
struct Counters {
    called: AtomicU64,
    handed: AtomicU64,
    handed_again: AtomicU64,
    claims_failed: AtomicU64,
    results: [AtomicU64; Counted::ALL.len()],
    rows: AtomicU64,
    bytes: AtomicU64,
    cut: AtomicU64,
    lost: AtomicU64,
    news_missed: AtomicU64,
}

impl Counters {
    fn count(&self, counted: Counted, results: u64) {
        if let Some(counter) = self.results.get(counted as usize) {
            counter.fetch_add(results, Relaxed);
        }
    }
}

/// There is something to call, to tell, to look at.
#[derive(Debug, Default)]
struct Wakes {
    calls: Notify,
    news: Notify,
    round: Notify,
}

/// See the module.
pub(crate) struct Campaigns {
    store: Arc<Store>,
    bus: Arc<Bus>,
    roster: Arc<Mutex<Roster>>,
    options: Options,
    state: Mutex<State>,
    /// Beginning and loading take turns, so that a campaign that began here is not taken for one of an earlier process.
    turn: tokio::sync::Mutex<()>,
    wakes: Wakes,
    is_closing: watch::Sender<bool>,
    /// In cursors of results in memory.
    began_ms: u64,
    /// Random; tells this node's news from those of others.
    node: u64,
    /// Claims fail at once until then: Redis did not answer the last ones.
    asks_from: Mutex<Instant>,
    counters: Counters,
}

impl Campaigns {
    /// Knows no campaigns yet, see [`Campaigns::load`].
    pub(crate) fn new(
        store: Arc<Store>,
        bus: Arc<Bus>,
        roster: Arc<Mutex<Roster>>,
        options: Options,
    ) -> Self {
        let began = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let began_ms = began.unwrap_or_default().as_millis();
        Self {
            store,
            bus,
            roster,
            options,
            state: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            wakes: Wakes::default(),
            node: fastrand::u64(..),
            asks_from: Mutex::new(Instant::now()),
            is_closing: watch::Sender::new(false),
            began_ms: u64::try_from(began_ms).unwrap_or(u64::MAX),
            counters: Counters::default(),
        }
    }

    /// The hosts behind targets, as they are now. Reads the labels from the store.
    pub(crate) async fn resolve(&self, targets: &Targets) -> Result<RoaringBitmap, Error> {
        let kinds: HashMap<_, _> = if targets.labels.is_empty() {
            HashMap::new()
        } else {
            let labels = self.store.label_specs().await?.into_iter();
            labels
                .map(|label| (label.id, label.spec.label_type))
                .collect()
        };
        let groups = Groups::of(targets, |label| kinds.get(&label).copied())
            .map_err(Error::UnknownLabels)?;
        let mut hosts = RoaringBitmap::new();
        if let Some(named) = groups.named_only() {
            let roster = lock(&self.roster);
            let is_known = |host: &u32| roster.directory().place_of(HostId(*host)).is_some();
            hosts.extend(named.iter().copied().filter(is_known));
            return Ok(hosts);
        }
        let mut from = 0;
        loop {
            {
                // In pieces, so that agents' requests get at the lock in between.
                let roster = lock(&self.roster);
                let directory = roster.directory();
                let to = from + CHANGES_PER_FEED_MAX;
                for entry in directory.walk(from, to) {
                    if groups.takes(entry.id.0, &directory.labels(entry.labels)) {
                        hosts.insert(entry.id.0);
                    }
                }
                if to >= directory.end() {
                    return Ok(hosts);
                }
                from = to;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Hosts of a set by state. `enrolled` counts those that there are.
    pub(crate) async fn counts(&self, hosts: &RoaringBitmap, now: UnixSeconds) -> Counts {
        let mut counts = Counts::default();
        let mut hosts = hosts.iter().peekable();
        while hosts.peek().is_some() {
            {
                let roster = lock(&self.roster);
                let directory = roster.directory();
                for host in hosts.by_ref().take(CHANGES_PER_FEED_MAX) {
                    let place = directory.place_of(HostId(host));
                    if let Some(entry) = place.and_then(|place| directory.get(place)) {
                        counts.add(entry, now);
                    }
                }
            }
            tokio::task::yield_now().await;
        }
        counts
    }

    /// Begins a campaign: its hosts are called from now on. It ends by itself when nobody looks for a while.
    pub(crate) async fn create(&self, new: NewCampaign) -> Result<Campaign, Error> {
        if new.targets.is_empty() {
            return Err(Error::NoTargets);
        }
        if new.sql.trim().is_empty() {
            return Err(Error::NoQuery);
        }
        let now = now();
        let _turn = self.turn.lock().await;
        if self.bus.is_shared() {
            self.bus.ping().await?;
        }
        let expires_at = UnixSeconds(now.0.saturating_add(self.options.linger_s));
        let begun = self
            .store
            .campaign_begin(&new, now, expires_at, OPEN_CAMPAIGNS_MAX);
        let id = begun.await?.ok_or(Error::TooMany(OPEN_CAMPAIGNS_MAX))?;
        let campaign = Campaign {
            id,
            name: new.name,
            query_id: new.query_id,
            sql: new.sql,
            user_id: new.user_id,
            user_name: new.user_name,
            created_at: now,
            expires_at,
            ended_at: UnixSeconds(0),
            status: Status::Running,
            target_count: new.targets.len(),
            tally: Tally::default(),
        };
        if self.bus.is_shared()
            && let Err(error) = shared::begin(&self.bus, id, now).await
        {
            let tally = Tally::default();
            let ended = self
                .store
                .campaign_end(id, Status::Stopped, &tally, now, None);
            ended.await?;
            return Err(error.into());
        }
        let known = Known::new(campaign.clone(), new.targets, self.new_ring(), now);
        lock(&self.state).add(known);
        // Other nodes read it in their next look at the store.
        self.bus.publish_wake(self.store.newest_known());
        self.stir();
        tracing::info!(%id, user = %campaign.user_name, hosts = campaign.target_count, "live query begins");
        Ok(campaign)
    }

    /// The youngest first; those that ended stay for some days.
    pub(crate) async fn list(&self) -> Result<Vec<Campaign>, Error> {
        let mut campaigns = self.store.campaigns().await?;
        for campaign in &mut campaigns {
            self.bring_up(campaign);
        }
        Ok(campaigns)
    }

    /// One of them.
    pub(crate) async fn get(&self, id: CampaignId) -> Result<Campaign, Error> {
        let known = lock(&self.state)
            .known
            .get(&id)
            .map(|known| known.campaign.clone());
        let mut campaign = match known {
            Some(campaign) => campaign,
            None => self.store.campaign(id).await?.ok_or(Error::NotFound)?,
        };
        self.bring_up(&mut campaign);
        Ok(campaign)
    }

    /// Ends a campaign; false when it had ended.
    pub(crate) async fn stop(&self, id: CampaignId) -> Result<bool, Error> {
        if self.store.campaign(id).await?.is_none() {
            return Err(Error::NotFound);
        }
        self.end(id, Status::Stopped, None).await
    }

    /// How it stands. Costs Redis nothing: nodes tell each other.
    pub(crate) async fn progress(&self, id: CampaignId) -> Result<Progress, Error> {
        let now = now();
        let targets = {
            let state = lock(&self.state);
            let known = state.known.get(&id);
            known.map(|known| {
                let is_fresh =
                    |(at, _): &(UnixSeconds, Counts)| now.0.saturating_sub(at.0) < COUNTS_AGE_S;
                let is_counted = known.counts.as_ref().is_some_and(is_fresh);
                (!is_counted).then(|| known.ledger.targets().clone())
            })
        };
        let Some(targets) = targets else {
            return self.progress_of_old(id).await;
        };
        let counts = match &targets {
            Some(targets) => Some(self.counts(targets, now).await),
            None => None,
        };
        let mut state = lock(&self.state);
        let known = state.known.get_mut(&id).ok_or(Error::NotFound)?;
        if let Some(counts) = counts {
            known.counts = Some((now, counts));
        }
        Ok(Progress {
            status: known.campaign.status,
            counts: known.counts.map(|(_, counts)| counts).unwrap_or_default(),
            targeted: known.campaign.target_count,
            tally: known.tally,
            silent: known.ledger.silent_count(),
            is_waiting: known.is_running() && !self.bus.is_healthy(),
        })
    }

    /// For metrics.
    pub(crate) fn statistics(&self) -> CampaignsStatistics {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let of = &self.counters;
        let state = lock(&self.state);
        CampaignsStatistics {
            open: u64::try_from(state.running().len()).unwrap_or(u64::MAX),
            viewers: state
                .known
                .values()
                .map(|known| u64::from(known.viewers))
                .sum(),
            calls_waiting: state.calls.len(),
            held_bytes: state.held_bytes,
            called: read(&of.called),
            handed: read(&of.handed),
            handed_again: read(&of.handed_again),
            claims_failed: read(&of.claims_failed),
            results: Counted::ALL
                .into_iter()
                .zip(&of.results)
                .map(|(counted, counter)| (counted.label(), read(counter)))
                .collect(),
            rows: read(&of.rows),
            bytes: read(&of.bytes),
            cut: read(&of.cut),
            lost: read(&of.lost),
            news_missed: read(&of.news_missed),
        }
    }

    /// Ends the background tasks.
    pub(crate) fn close(&self) {
        self.is_closing.send_replace(true);
    }

    /// Lets the background tasks look at once.
    fn stir(&self) {
        for wake in [&self.wakes.calls, &self.wakes.news, &self.wakes.round] {
            wake.notify_one();
        }
    }

    async fn progress_of_old(&self, id: CampaignId) -> Result<Progress, Error> {
        let campaign = self.store.campaign(id).await?.ok_or(Error::NotFound)?;
        Ok(Progress {
            status: campaign.status,
            counts: Counts::default(),
            targeted: campaign.target_count,
            tally: campaign.tally,
            silent: 0,
            is_waiting: false,
        })
    }

    /// The counts of a campaign that runs are not in the store yet.
    fn bring_up(&self, campaign: &mut Campaign) {
        if let Some(known) = lock(&self.state).known.get(&campaign.id) {
            campaign.tally = known.tally;
        }
    }
}
