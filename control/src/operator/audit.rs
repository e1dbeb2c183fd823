//! The audit log: every change that somebody makes, and who signed in or tried to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use fleet_protocol::ids::UnixSeconds;
use serde_json::{Map, Value, json};

use super::actor::Actor;
use crate::agents::now;
use crate::model::activity::NewActivity;
use crate::store::{self, Store};

/// Entries are kept for a year.
const AGE_S: u32 = 365 * 24 * 3600;
/// Entries that anybody can make many of are kept only among the newest so many of all, so that none of them pushes out
/// what tells of a change.
const NOISY_MAX: u32 = 1_000_000;
/// Those.
const NOISY: [&str; 6] = [
    "refetched_host",
    "user_failed_login",
    "user_logged_in",
    "user_logged_out",
    "live_query",
    "stopped_live_query",
];
/// Of a document before or after a change, bytes; what is larger is left out, and its size told.
const DOCUMENT_BYTES_MAX: usize = 64 << 10;

/// What somebody did.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Deed {
    kind: &'static str,
    subject_kind: &'static str,
    subject_name: String,
    subject_id: u32,
    details: Map<String, Value>,
}

impl Deed {
    /// `kind` as Fleet calls it, where Fleet has it.
    pub(super) fn of(kind: &'static str) -> Self {
        Self {
            kind,
            subject_kind: "",
            subject_name: String::new(),
            subject_id: 0,
            details: Map::new(),
        }
    }

    /// A document got another name.
    pub(super) fn renamed(kind: &'static str, before: &str, after: &str) -> Self {
        let deed = Self::of("renamed_document").to(kind, after);
        deed.before(before.into()).after(after.into())
    }

    /// To what it was done.
    pub(super) fn to(mut self, kind: &'static str, name: impl Into<String>) -> Self {
        self.subject_kind = kind;
        self.subject_name = name.into();
        self
    }

    /// The kind and the name of that.
    pub(super) fn subject(&self) -> (&'static str, &str) {
        (self.subject_kind, &self.subject_name)
    }

    /// The number of that.
    pub(super) fn numbered(mut self, id: u32) -> Self {
        self.subject_id = id;
        self
    }

    /// A detail; no secrets.
    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.into(), value.into());
        self
    }

    /// The document as it was.
    pub(super) fn before(self, document: Value) -> Self {
        self.with("before", bounded(document))
    }

    /// The document as it is.
    pub(super) fn after(self, document: Value) -> Self {
        self.with("after", bounded(document))
    }
}

fn bounded(document: Value) -> Value {
    let bytes = document.to_string().len();
    if bytes <= DOCUMENT_BYTES_MAX {
        return document;
    }
    json!({ "omitted_bytes": bytes })
}

/// The log's writer.
pub(super) struct Audit {
    store: Arc<Store>,
    /// Entries that the store did not take; they are in our own log.
    lost: AtomicU64,
}

impl Audit {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            lost: AtomicU64::new(0),
        }
    }

    /// Writes what was done. A store that fails does not undo the deed: the entry then goes to our own log.
    pub(super) async fn record(&self, actor: &Actor, deed: Deed) {
        self.record_all(actor, vec![deed]).await;
    }

    /// The same for many at once.
    pub(super) async fn record_all(&self, actor: &Actor, deeds: Vec<Deed>) {
        if deeds.is_empty() {
            return;
        }
        let at = now();
        let entries: Vec<_> = deeds
            .into_iter()
            .map(|deed| entry(actor, deed, at))
            .collect();
        let Err(error) = self.store.add_activities(&entries).await else {
            return;
        };
        for entry in entries {
            let lost = self.lost.fetch_add(1, Relaxed) + 1;
            tracing::error!(
                %error, lost, kind = entry.kind, actor = entry.actor_name, address = entry.address,
                subject = entry.subject_name, "an activity could not be stored"
            );
        }
    }

    /// Deletes what is too old or too much; some of it. True when there may be more.
    pub(super) async fn prune(&self) -> Result<bool, store::Error> {
        let before = UnixSeconds(now().0.saturating_sub(AGE_S));
        let gone = self
            .store
            .prune_activities(before, &NOISY, NOISY_MAX)
            .await?;
        Ok(gone > 0)
    }
}

fn entry(actor: &Actor, deed: Deed, at: UnixSeconds) -> NewActivity {
    NewActivity {
        at,
        actor: actor.user.unwrap_or_default(),
        actor_name: actor.name.clone(),
        actor_email: actor.email.clone(),
        address: actor
            .address
            .map(|address| address.to_string())
            .unwrap_or_default(),
        kind: deed.kind,
        subject_kind: deed.subject_kind,
        subject_name: deed.subject_name,
        subject_id: deed.subject_id,
        details: Value::Object(deed.details),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_documents_are_left_out() {
        let small = json!({"query": "SELECT 1"});
        assert_eq!(bounded(small.clone()), small);
        let large = json!({"query": "x".repeat(DOCUMENT_BYTES_MAX)});
        let bytes = large.to_string().len();
        assert_eq!(bounded(large), json!({ "omitted_bytes": bytes }));
    }
}
