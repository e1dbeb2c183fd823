//! Warnings and errors of this process, counted by where they come from: what is to be seen when nobody kept the log.
//!
//! Owner of one list for the process. Invariants: it has at most [`ENTRIES_MAX`] entries, each of bounded size; nothing is in
//! it that was not written to the log, so no secret is.

use std::fmt::{self, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Different ones that are kept; the one that is silent for longest gives way.
const ENTRIES_MAX: usize = 256;
/// Of a message, and of its values together.
const TEXT_BYTES_MAX: usize = 512;

static RECENT: Mutex<Vec<Recent>> = Mutex::new(Vec::new());

/// A warning or an error, as often as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recent {
    /// `ERROR` or `WARN`.
    pub level: &'static str,
    /// Without values.
    pub message: String,
    /// Names and values of the last time.
    pub values: String,
    /// The module that said it.
    pub module: &'static str,
    /// How often, since the start or since it was forgotten.
    pub count: u64,
    /// Seconds since 1970.
    pub first_at: u64,
    /// Seconds since 1970.
    pub last_at: u64,
}

/// What came, the latest first.
pub fn list() -> Vec<Recent> {
    sorted(entries().clone())
}

/// The same, and forgets it.
pub fn take() -> Vec<Recent> {
    sorted(std::mem::take(&mut *entries()))
}

fn sorted(mut list: Vec<Recent>) -> Vec<Recent> {
    list.sort_by_key(|entry| std::cmp::Reverse(entry.last_at));
    list
}

fn entries() -> MutexGuard<'static, Vec<Recent>> {
    RECENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts every warning and error of the log into the list.
pub(crate) struct Keeper;

impl<S: Subscriber> Layer<S> for Keeper {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let level = match *metadata.level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARN",
            _ => return,
        };
        let mut texts = Texts::default();
        event.record(&mut texts);
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let entry = Recent {
            level,
            message: texts.message,
            values: texts.values,
            module: metadata.target(),
            count: 1,
            first_at: 0,
            last_at: since.unwrap_or_default().as_secs(),
        };
        keep(&mut entries(), entry);
    }
}

/// Pure.
fn keep(list: &mut Vec<Recent>, new: Recent) {
    let is_same = |old: &&mut Recent| {
        (old.level, old.module) == (new.level, new.module) && old.message == new.message
    };
    if let Some(old) = list.iter_mut().find(is_same) {
        old.count = old.count.saturating_add(1);
        (old.values, old.last_at) = (new.values, new.last_at);
        return;
    }
    if list.len() >= ENTRIES_MAX {
        let oldest = (list.iter().enumerate()).min_by_key(|(_, entry)| entry.last_at);
        if let Some((index, _)) = oldest {
            list.swap_remove(index);
        }
    }
    list.push(Recent {
        first_at: new.last_at,
        ..new
    });
}

#[derive(Default)]
struct Texts {
    message: String,
    values: String,
}

impl Visit for Texts {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
            cut(&mut self.message);
        } else {
            let space = if self.values.is_empty() { "" } else { " " };
            let _ = write!(self.values, "{space}{}={value:?}", field.name());
            cut(&mut self.values);
        }
    }
}

fn cut(text: &mut String) {
    if text.len() > TEXT_BYTES_MAX {
        let is_whole = |end: &usize| text.is_char_boundary(*end);
        let end = (0..=TEXT_BYTES_MAX).rev().find(is_whole);
        text.truncate(end.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn entry(message: &str, at: u64) -> Recent {
        Recent {
            level: "WARN",
            message: message.into(),
            values: format!("at={at}"),
            module: "test",
            count: 1,
            first_at: 0,
            last_at: at,
        }
    }

    #[test]
    fn equal_ones_are_counted_and_the_oldest_give_way() {
        let mut list = Vec::new();
        for at in 1..=3 {
            keep(&mut list, entry("same", at));
        }
        assert_eq!(list.len(), 1);
        let same = &list[0];
        assert_eq!((same.count, same.first_at, same.last_at), (3, 1, 3));
        assert_eq!(same.values, "at=3");
        for number in 0..ENTRIES_MAX as u64 {
            keep(&mut list, entry(&format!("other {number}"), 10 + number));
        }
        assert_eq!(list.len(), ENTRIES_MAX);
        assert!(list.iter().all(|entry| entry.message != "same"));
    }

    #[test]
    fn warnings_of_the_log_are_kept_and_bounded() {
        let subscriber = tracing_subscriber::registry().with(Keeper);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("nothing to keep");
            for number in 0..2 {
                tracing::warn!(number, long = "ä".repeat(600), "a test's own warning");
            }
        });
        let kept = list();
        assert!(kept.iter().all(|entry| entry.message != "nothing to keep"));
        let own = kept
            .iter()
            .find(|entry| entry.message == "a test's own warning");
        let own = own.unwrap();
        assert_eq!((own.level, own.count), ("WARN", 2));
        assert!(own.values.starts_with("number=1 long="), "{}", own.values);
        assert!(own.values.len() <= TEXT_BYTES_MAX);
    }
}
