//! Results as viewers see them, and the memory that holds them when there is no Redis. Pure.
//!
//! Invariants: cursors only grow; whoever goes on from a cursor misses nothing that is held after it.

use std::fmt;
use std::str::FromStr;

use fleet_protocol::agent::QueryResult;
use fleet_protocol::ids::HostId;
use serde_json::value::RawValue;

/// What an event costs besides its texts.
const EVENT_BYTES: u64 = 64;
/// Bytes of one batch of events, about.
const BATCH_BYTES: u64 = 1 << 20;
/// Events of one batch.
pub(crate) const BATCH_EVENTS: usize = 256;

/// A place in a campaign's results, as text `MILLISECONDS-NUMBER`, which is Redis' form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cursor {
    /// When the memory of the results began, or when the event came.
    pub(crate) ms: u64,
    pub(crate) number: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.number)
    }
}

/// A text that is no cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no cursor of results")]
pub(crate) struct BadCursor;

impl FromStr for Cursor {
    type Err = BadCursor;

    fn from_str(text: &str) -> Result<Self, BadCursor> {
        let number = |text: &str| {
            let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| is_plain).ok_or(BadCursor)
        };
        let (ms, rest) = text.split_once('-').ok_or(BadCursor)?;
        Ok(Self {
            ms: number(ms)?,
            number: number(rest)?,
        })
    }
}

/// What one host answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostResult {
    pub(crate) cursor: Cursor,
    pub(crate) host: HostId,
    /// 0: the query ran.
    pub(crate) status: i64,
    /// Why it did not; empty when it did.
    pub(crate) message: String,
    /// A JSON array of objects, as the host sent it.
    pub(crate) rows: String,
    pub(crate) row_count: u64,
    /// A JSON object, or empty.
    pub(crate) stats: String,
}

impl HostResult {
    /// From what a host sent. Rows that are no JSON array are an error of the host.
    pub(crate) fn of(host: HostId, result: QueryResult) -> Self {
        let mut taken = Self {
            cursor: Cursor::default(),
            host,
            status: result.status,
            message: result.message,
            rows: result.rows,
            row_count: 0,
            stats: result.stats,
        };
        if taken.rows.trim().is_empty() {
            "[]".clone_into(&mut taken.rows);
        }
        match serde_json::from_str::<Vec<&RawValue>>(&taken.rows) {
            Ok(rows) => taken.row_count = u64::try_from(rows.len()).unwrap_or(u64::MAX),
            Err(_) => {
                "[]".clone_into(&mut taken.rows);
                if !taken.is_failed() {
                    taken.status = 1;
                    "the host's rows are not readable".clone_into(&mut taken.message);
                }
            }
        }
        taken
    }

    /// The query did not run.
    pub(crate) fn is_failed(&self) -> bool {
        self.status != 0
    }

    /// What it costs to keep.
    pub(crate) fn bytes(&self) -> u64 {
        let texts = self.rows.len() + self.message.len() + self.stats.len();
        EVENT_BYTES.saturating_add(u64::try_from(texts).unwrap_or(u64::MAX))
    }
}

/// What a viewer is told, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A host answered.
    Result(HostResult),
    /// Earlier results are gone, and hosts are asked again.
    Lost {
        cursor: Cursor,
        /// For people.
        reason: String,
    },
}

impl Entry {
    pub(crate) fn cursor(&self) -> Cursor {
        match self {
            Self::Result(result) => result.cursor,
            Self::Lost { cursor, .. } => *cursor,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Result(result) => result.bytes(),
            Self::Lost { .. } => EVENT_BYTES,
        }
    }
}

/// The events of one campaign, in memory. Nothing gives way: what is beyond the campaign's bounds is not put in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ring {
    /// Stands in every cursor; larger than that of an earlier process.
    began_ms: u64,
    entries: Vec<Entry>,
    bytes: u64,
}

impl Ring {
    pub(crate) fn new(began_ms: u64) -> Self {
        Self {
            began_ms,
            ..Self::default()
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn push(&mut self, result: HostResult) {
        let cursor = self.next();
        self.put(Entry::Result(HostResult { cursor, ..result }));
    }

    pub(crate) fn push_lost(&mut self, reason: &str) {
        let (cursor, reason) = (self.next(), reason.to_owned());
        self.put(Entry::Lost { cursor, reason });
    }

    /// The next events after a cursor; none when there are none yet.
    pub(crate) fn after(&self, cursor: Cursor) -> Vec<Entry> {
        let from = self
            .entries
            .partition_point(|entry| entry.cursor() <= cursor);
        let rest = self.entries.get(from..).unwrap_or_default();
        let mut bytes = 0;
        rest.iter()
            .take(BATCH_EVENTS)
            .take_while(|entry| {
                let is_fitting = bytes < BATCH_BYTES;
                bytes += entry.bytes();
                is_fitting
            })
            .cloned()
            .collect()
    }

    fn next(&self) -> Cursor {
        Cursor {
            ms: self.began_ms,
            number: u64::try_from(self.entries.len()).unwrap_or(u64::MAX) + 1,
        }
    }

    fn put(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        self.entries.push(entry);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn result(host: u32, rows: &str) -> HostResult {
        let result = QueryResult {
            name: "q".into(),
            status: 0,
            message: String::new(),
            rows: rows.into(),
            stats: String::new(),
        };
        HostResult::of(HostId(host), result)
    }

    #[test]
    fn cursors_are_texts() {
        let cursor: Cursor = "1700000000000-3".parse().unwrap();
        assert_eq!(cursor.to_string(), "1700000000000-3");
        for bad in [
            "",
            "1",
            "-",
            "1-",
            "-1",
            "1-2-3",
            "+1-2",
            "a-1",
            "99999999999999999999-1",
        ] {
            assert_eq!(bad.parse::<Cursor>(), Err(BadCursor), "{bad}");
        }
    }

    #[test]
    fn rows_are_counted_and_checked() {
        assert_eq!(result(1, r#"[{"a":"]"},{"a":"1"}]"#).row_count, 2);
        assert_eq!(result(1, "").rows, "[]");
        let bad = result(1, "{}");
        assert!(bad.is_failed() && bad.row_count == 0 && bad.rows == "[]");
    }

    proptest! {
        #[test]
        fn whoever_goes_on_sees_everything_once(
            pushes in prop::collection::vec((1_u32..9, 0_usize..400_000), 1..60),
            pauses in prop::collection::vec(0_usize..4, 1..60),
        ) {
            let mut ring = Ring::new(7);
            let (mut cursor, mut seen) = (Cursor { ms: 6, number: 99 }, Vec::new());
            let mut look = |ring: &Ring| loop {
                let batch = ring.after(cursor);
                let Some(last) = batch.last() else { break };
                cursor = last.cursor();
                seen.extend(batch.into_iter().filter_map(|entry| match entry {
                    Entry::Result(result) => Some(result.host.0),
                    Entry::Lost { .. } => None,
                }));
            };
            let mut told = Vec::new();
            for ((host, size), pause) in pushes.into_iter().zip(pauses) {
                ring.push(result(host, &format!("[\"{}\"]", "x".repeat(size))));
                told.push(host);
                if pause == 0 {
                    look(&ring);
                }
            }
            look(&ring);
            prop_assert_eq!(seen, told);
        }
    }
}
