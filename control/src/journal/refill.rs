//! What was stored in the last minute before the start, from the indexes.
//!
//! A record alone proves nothing: that of a group that was refused may stay in the index of a file that was put away after
//! a failed sync, and taking it for stored would lose the lines when their agent sends them again. The active segment's
//! were judged when it was opened; those of the segment before count only if its bytes match them.

use std::fs::File;
use std::io;

use fleet_protocol::config::LogCompression;

use super::closed;
use super::medium::Medium as _;
use super::place::Place;
use super::record::{Kind, Record};
use super::recovery::{fingerprint, recent};
use super::repeats::{Key, REPEAT_WINDOW, REPEATS_MAX, window};
use super::segment::Segment;
use super::verify::{self, Log};

/// Bytes of the segment before that are read, unpacked. What would need more is not known again and may be stored twice.
const COMPARED_BYTES_MAX: u64 = 256 << 20;

/// Oldest first. The minute ends with the newest record, not now: agents could not come again while nobody served. The
/// segment before is looked at when the active one is younger than that.
pub(super) fn keys(segment: &Segment, place: &Place) -> io::Result<Vec<Key>> {
    let age_ms = u64::try_from(REPEAT_WINDOW.as_millis()).unwrap_or(u64::MAX);
    let (index, length) = segment.paired().index();
    let sequence = segment.sequence();
    let (mut records, is_all) = recent(index, length, sequence, None, age_ms, REPEATS_MAX)?;
    let before = sequence.saturating_sub(1);
    if is_all && before > 0 {
        let newest = records.first().map(|record| record.stored_ms);
        let room = REPEATS_MAX.saturating_sub(records.len());
        match stored_before(place, before, newest, age_ms, room) {
            Ok(more) => records.extend(more),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, "cannot tell what the last log segment holds; what comes again may be stored twice");
            }
        }
    }
    let newest_ms = records.first().map_or(0, |record| record.stored_ms);
    let keys = records.iter().rev();
    Ok(keys.filter_map(|record| key(record, newest_ms)).collect())
}

/// Newest first.
fn stored_before(
    place: &Place,
    sequence: u64,
    newest_ms: Option<u64>,
    age_ms: u64,
    count_max: usize,
) -> io::Result<Vec<Record>> {
    let index = File::open(place.index(sequence))?;
    let length = index.length()?;
    let (records, _) = recent(&index, length, sequence, newest_ms, age_ms, count_max)?;
    let mut closed = closed::list(place)?;
    closed.retain(|closed| closed.name.sequence == sequence);
    // Both forms of a segment may be there; plain is cheaper.
    let is_packed = |closed: &closed::Closed| closed.name.packing != LogCompression::None;
    closed.sort_by_key(is_packed);
    match closed.first() {
        None => Ok(Vec::new()),
        Some(plain) if !is_packed(plain) => in_plain(&File::open(&plain.path)?, records),
        Some(packed) => {
            let log = verify::open(&packed.path, packed.name.packing)?;
            in_packed(Log::new(log), records)
        }
    }
}

/// Those whose bytes are there, as far as the bound goes.
fn in_plain(log: &File, records: Vec<Record>) -> io::Result<Vec<Record>> {
    let length = log.length()?;
    let mut left = COMPARED_BYTES_MAX;
    let mut matching = Vec::new();
    for record in records {
        left = match left.checked_sub(record.length.into()) {
            Some(left) => left,
            None => break,
        };
        if record.end() <= length
            && fingerprint(log, record.offset, record.end())? == record.fingerprint
        {
            matching.push(record);
        }
    }
    Ok(matching)
}

/// The same for what can only be read from its beginning.
fn in_packed(mut log: Log, mut records: Vec<Record>) -> io::Result<Vec<Record>> {
    records.retain(|record| record.end() <= COMPARED_BYTES_MAX);
    records.sort_by_key(|record| record.offset);
    let mut matching = Vec::new();
    let mut at = 0;
    for record in records {
        if record.offset < at {
            continue;
        }
        log.skip_to(record.offset)?;
        let (length, found) = log.hash(record.length.into())?;
        if length == u64::from(record.length) && found == record.fingerprint {
            matching.push(record);
        }
        at = record.end();
    }
    matching.reverse();
    Ok(matching)
}

/// `None` for what is no batch, and for one that would be forgotten by now.
fn key(record: &Record, newest_ms: u64) -> Option<Key> {
    let Kind::Batch(log_type) = record.kind else {
        return None;
    };
    let age_ms = newest_ms.saturating_sub(record.stored_ms);
    (u128::from(age_ms) <= window(log_type).as_millis()).then_some(Key {
        host: record.host,
        log_type,
        fingerprint: record.fingerprint,
    })
}
