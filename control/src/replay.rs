//! Brings kept results into the store once it is back.
//!
//! Invariants: in the order in which they were kept; a batch leaves the spool after the store's commit, or when the store
//! refuses it for good; nothing here holds up requests.

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::agents::{Agents, lock, now};
use crate::spool::{self, Record};

/// Kept results are looked at this often.
const REPLAY_INTERVAL: Duration = Duration::from_secs(1);

impl Agents {
    /// Writes what the spool holds whenever the store is there, until the process drains.
    pub(crate) async fn replay(self: Arc<Self>) {
        let mut closing = self.is_closing.subscribe();
        while !*closing.borrow() {
            self.replay_once().await;
            tokio::select! {
                () = sleep(REPLAY_INTERVAL) => {}
                _ = closing.changed() => return,
            }
        }
    }

    /// Until the spool is empty or the store is away.
    pub(crate) async fn replay_once(&self) {
        while !*self.is_closing.borrow() {
            let kept = match self.spool.oldest().await {
                Ok(Some(kept)) => kept,
                Ok(None) => return,
                Err(error) => return self.warn_spool(&error),
            };
            let Some(outdated) = self.replay_record(&kept.record).await else {
                return;
            };
            if let Err(error) = self.spool.done(&kept, outdated).await {
                return self.warn_spool(&error);
            }
        }
    }

    /// How many of its results were left out; `None` when the store is away.
    async fn replay_record(&self, record: &Record) -> Option<u64> {
        match self.store.replay(&record.details, &record.labels).await {
            Ok(outdated) => return Some(outdated as u64),
            Err(error) if error.is_away() => return None,
            Err(error) => tracing::debug!(%error, "kept results are written one by one"),
        }
        // One bad host must not take the others' results with it, nor keep them waiting for ever.
        let mut outdated = 0;
        let parts = (record
            .details
            .iter()
            .map(|of| (slice::from_ref(of), &[][..])))
        .chain(
            record
                .labels
                .iter()
                .map(|of| (&[][..], slice::from_ref(of))),
        );
        for (details, labels) in parts {
            match self.store.replay(details, labels).await {
                Ok(count) => outdated += count as u64,
                Err(error) if error.is_away() => return None,
                Err(error) => {
                    tracing::error!(%error, "the store refuses a host's kept results; they are lost");
                    self.counters.count_lost_write();
                }
            }
        }
        Some(outdated)
    }

    fn warn_spool(&self, error: &spool::Error) {
        if lock(&self.warned).may_warn("read the spool", now()) {
            tracing::error!(%error, "kept results cannot be written to the store");
        }
    }
}
