//! Somebody who looks at a campaign's results.
//!
//! Invariants: a viewer reads at its own pace from where the results are kept, so that it never keeps agents waiting and
//! misses nothing; while one is there the campaign goes on.

use std::sync::Arc;
use std::time::Duration;

use fleet_protocol::limits::REPLAY_TIME;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::ring::{Cursor, Entry, HostResult};
use super::state::Known;
use super::{Campaigns, Error, Progress, shared};
use crate::agents::{lock, now};
use crate::model::campaign::{Campaign, CampaignId, Status};

/// A viewer looks this often though nobody told it to: news may get lost.
const LOOK_INTERVAL: Duration = Duration::from_secs(20);
/// Once a viewer has seen everything it reads again after so long at the soonest: hosts answer one by one.
const READ_GAP: Duration = Duration::from_millis(100);
/// Redis is away.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What a viewer is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Some hosts have answered.
    Results(Vec<HostResult>),
    /// What was told before may be told again, and may differ: results were lost, and hosts are asked again.
    Lost {
        cursor: Cursor,
        /// For people.
        reason: String,
    },
    /// There will be no more.
    Ended(Progress),
}

/// One viewer. Dropping it says that it looks no more.
pub(crate) struct Viewer {
    campaigns: Arc<Campaigns>,
    id: CampaignId,
    cursor: Cursor,
    changed: watch::Receiver<u64>,
    /// Read and not yet told.
    ahead: std::collections::VecDeque<Entry>,
    /// The next read is not before this.
    reads_from: Instant,
    has_ended: bool,
}

impl Campaigns {
    /// Looks at a campaign from the beginning, or from what a viewer saw last. Those that ended can be looked at for
    /// ten minutes.
    pub(crate) async fn view(
        self: &Arc<Self>,
        id: CampaignId,
        from: Option<Cursor>,
    ) -> Result<Viewer, Error> {
        if !lock(&self.state).known.contains_key(&id) {
            self.know_ended(id).await?;
        }
        let mut state = lock(&self.state);
        let known = state.known.get_mut(&id).ok_or(Error::NotFound)?;
        known.viewers += 1;
        known.must_extend = true;
        let changed = known.changed.subscribe();
        drop(state);
        self.stir();
        Ok(Viewer {
            campaigns: Arc::clone(self),
            id,
            cursor: from.unwrap_or_default(),
            changed,
            ahead: std::collections::VecDeque::new(),
            reads_from: Instant::now(),
            has_ended: false,
        })
    }

    /// One that ended on another node; Redis still has its results for a while.
    async fn know_ended(&self, id: CampaignId) -> Result<(), Error> {
        let campaign: Campaign = self.store.campaign(id).await?.ok_or(Error::NotFound)?;
        if campaign.status == Status::Running {
            // It began a moment ago, elsewhere.
            return self.reload(&[id].into()).await;
        }
        let age_s = now().0.saturating_sub(campaign.ended_at.0);
        if !self.bus.is_shared() || u64::from(age_s) >= REPLAY_TIME.as_secs() {
            return Err(Error::NotFound);
        }
        let targets = self.store.campaign_targets(id).await?.unwrap_or_default();
        let known = Known::new(campaign, targets, None, now());
        lock(&self.state).add(known);
        Ok(())
    }
}

impl Viewer {
    pub(crate) fn campaign(&self) -> CampaignId {
        self.id
    }

    /// Where it is: everything up to here was told.
    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// What comes next; `None` after the end. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        while !self.has_ended {
            if let Some(event) = self.told() {
                return Some(event);
            }
            sleep_until(self.reads_from).await;
            let version = *self.changed.borrow_and_update();
            let was_running = self.is_running();
            match self.read().await {
                Ok(entries) if !entries.is_empty() => self.ahead.extend(entries),
                // What came between the last read and the end was read now.
                Ok(_) if !was_running => return self.end().await,
                Ok(_) => {
                    // Not those of before the read.
                    let changed = self.changed.wait_for(|now| *now != version);
                    // Many that begin together must not look together.
                    let wait = LOOK_INTERVAL.mul_f64(1.0 + fastrand::f64() / 2.0);
                    if matches!(timeout(wait, changed).await, Ok(Err(_))) {
                        // Forgotten, long after its end.
                        return self.end().await;
                    }
                }
                Err(_) => sleep(RETRY_PAUSE).await,
            }
        }
        None
    }

    /// What is kept and was not told yet; `None` when there is nothing more now. Ends without an [`Event::Ended`].
    pub(crate) async fn kept(&mut self) -> Result<Option<Event>, Error> {
        if self.ahead.is_empty() {
            let entries = self.read().await?;
            self.ahead.extend(entries);
        }
        Ok(self.told())
    }

    fn told(&mut self) -> Option<Event> {
        let mut results = Vec::new();
        while let Some(entry) = self.ahead.pop_front() {
            match entry {
                Entry::Result(result) => results.push(result),
                Entry::Lost { cursor, reason } if results.is_empty() => {
                    self.cursor = cursor;
                    return Some(Event::Lost { cursor, reason });
                }
                lost @ Entry::Lost { .. } => {
                    self.ahead.push_front(lost);
                    break;
                }
            }
        }
        self.cursor = results.last()?.cursor;
        Some(Event::Results(results))
    }

    async fn read(&mut self) -> Result<Vec<Entry>, Error> {
        let count = {
            let state = lock(&self.campaigns.state);
            let Some(known) = state.known.get(&self.id) else {
                return Ok(Vec::new());
            };
            if let Some(ring) = &known.ring {
                return Ok(ring.after(self.cursor));
            }
            shared::count_of(&known.tally)
        };
        if !self.campaigns.bus.is_shared() {
            return Ok(Vec::new());
        }
        let entries = shared::read(&self.campaigns.bus, self.id, self.cursor, count).await?;
        if entries.len() < count {
            self.reads_from = Instant::now() + READ_GAP;
        }
        Ok(entries)
    }

    fn is_running(&self) -> bool {
        let state = lock(&self.campaigns.state);
        state.known.get(&self.id).is_some_and(Known::is_running)
    }

    async fn end(&mut self) -> Option<Event> {
        let progress = self.campaigns.progress(self.id).await;
        self.has_ended = true;
        progress.ok().map(Event::Ended)
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        if let Some(known) = lock(&self.campaigns.state).known.get_mut(&self.id) {
            known.viewers = known.viewers.saturating_sub(1);
            // Somebody looked until now.
            known.must_extend = true;
        }
    }
}
