//! What was stored in the last minute before the start, from the indexes.

use std::fs::File;
use std::io;

use super::medium::Medium as _;
use super::place::Place;
use super::record::{Kind, Record};
use super::recovery::recent;
use super::repeats::{Key, REPEAT_WINDOW, REPEATS_MAX};
use super::segment::Segment;

/// Oldest first. The minute ends with the newest record, not now: agents could not come again while nobody served. The
/// segment before is looked at when the active one is younger than that.
pub(super) fn keys(segment: &Segment, place: &Place) -> io::Result<Vec<Key>> {
    let age_ms = u64::try_from(REPEAT_WINDOW.as_millis()).unwrap_or(u64::MAX);
    let (index, length) = segment.paired().index();
    let sequence = segment.sequence();
    let (mut records, is_all) = recent(index, length, sequence, None, age_ms, REPEATS_MAX)?;
    let before = sequence.saturating_sub(1);
    if is_all && before > 0 {
        match File::open(place.index(before)) {
            Ok(index) => {
                let newest = records.first().map(|record| record.stored_ms);
                let room = REPEATS_MAX.saturating_sub(records.len());
                let length = index.length()?;
                let (more, _) = recent(&index, length, before, newest, age_ms, room)?;
                records.extend(more);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(records.iter().rev().filter_map(key).collect())
}

fn key(record: &Record) -> Option<Key> {
    let Kind::Batch(log_type) = record.kind else {
        return None;
    };
    Some(Key {
        host: record.host,
        log_type,
        fingerprint: record.fingerprint,
    })
}
