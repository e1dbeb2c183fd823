//! A live query as one viewer is told it: results with names, and how it stands.
//!
//! Owns nothing that could grow: results wait where they are kept until the viewer has taken those before.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fleet_protocol::ids::HostId;
use tokio::time::{Instant, sleep_until};

use super::Office;
use super::results_message;
use super::telling::{Dialect, Kind, Message, Telling};
use crate::campaigns::{Cursor, Error, Event, HostResult, Viewer};
use crate::model::campaign::CampaignId;

/// How it stands is told this often, if it has changed.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);
/// And that much less often for each target, because they are counted for it: a million of them every 12 s.
const PROGRESS_PAUSE: Duration = Duration::from_micros(10);

/// A viewer that waits for its next event. It is not given up for anything else, since it would read again from where
/// results are kept when it begins anew.
pub(super) struct Looking(Pin<Box<dyn Future<Output = (Viewer, Option<Event>)> + Send>>);

impl Looking {
    pub(super) fn begin(mut viewer: Viewer) -> Self {
        Self(Box::pin(async move {
            let event = viewer.next().await;
            (viewer, event)
        }))
    }

    /// The next event; `None` after the end. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Event> {
        let (viewer, event) = self.0.as_mut().await;
        *self = Self::begin(viewer);
        event
    }
}

/// See the module.
pub(super) struct Viewing {
    office: Arc<Office>,
    campaign: CampaignId,
    looking: Looking,
    telling: Telling,
    ready: VecDeque<Message>,
    /// Results whose hosts' names are still to be looked up.
    nameless: Vec<HostResult>,
    progress_at: Instant,
    is_over: bool,
}

impl Viewing {
    /// Begins at the beginning, or after what a viewer saw last.
    pub(super) async fn begin(
        office: Arc<Office>,
        campaign: CampaignId,
        from: Option<Cursor>,
        dialect: Dialect,
    ) -> Result<Self, Error> {
        let viewer = office.deps.agents.campaigns.view(campaign, from).await?;
        Ok(Self {
            office,
            campaign,
            looking: Looking::begin(viewer),
            telling: Telling::new(dialect),
            ready: VecDeque::new(),
            nameless: Vec::new(),
            progress_at: Instant::now(),
            is_over: false,
        })
    }

    /// The next message; `None` after the last one. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            if !self.nameless.is_empty() {
                self.name_results().await;
                continue;
            }
            if self.is_over {
                return None;
            }
            if self.progress_at <= Instant::now() {
                let campaigns = &self.office.deps.agents.campaigns;
                let mut pause = PROGRESS_INTERVAL;
                // A campaign that is forgotten meanwhile ends in the viewer.
                if let Ok(progress) = campaigns.progress(self.campaign).await {
                    let targets = u32::try_from(progress.targeted).unwrap_or(u32::MAX);
                    pause += PROGRESS_PAUSE.saturating_mul(targets);
                    self.ready.extend(self.telling.progress(&progress));
                }
                self.progress_at = Instant::now() + pause;
                continue;
            }
            let event = tokio::select! {
                event = self.looking.next() => event,
                () = sleep_until(self.progress_at) => continue,
            };
            match event {
                Some(Event::Results(results)) => self.nameless = results,
                Some(Event::Lost { cursor, reason }) => {
                    self.ready.push_back(self.telling.lost(cursor, &reason));
                }
                Some(Event::Ended(progress)) => {
                    self.ready.extend(self.telling.ended(&progress));
                    self.is_over = true;
                }
                None => self.is_over = true,
            }
        }
    }

    async fn name_results(&mut self) {
        let hosts: Vec<HostId> = self.nameless.iter().map(|result| result.host).collect();
        // The results are taken after the wait, so that nothing is lost when it is given up.
        let names = self.office.names.of(&hosts).await;
        for (result, name) in std::mem::take(&mut self.nameless).iter().zip(&names) {
            if self.telling.shows(result.host) {
                self.ready.push_back(Message {
                    kind: Kind::Result,
                    data: results_message::result(self.campaign, name, result),
                    cursor: Some(result.cursor),
                });
            }
        }
        self.ready.extend(self.telling.after_results());
    }
}
