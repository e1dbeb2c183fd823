//! What of a segment counts when it is opened, told from its index. Reads, decides, changes nothing.
//!
//! Takes no longer for a long segment: it looks at the index's tail, at the last group and at what lies behind it.
//! Everything before the last group was on disk before that group's records were written. The last group is judged batch
//! by batch by its checksums: from the first that does not match on, it was never acknowledged (or is damaged). Lines
//! behind the last record have lost their records to a power cut and may have been acknowledged; they stay if they are
//! whole. Without an index only a last line without an end is cut off.

use std::io;

use memchr::memchr2_iter;
use xxhash_rust::xxh3::Xxh3;

use super::medium::Medium;
use super::record::{Header, RECORD_BYTES, Record};

/// Lines behind the last record are read up to here: more than is written between two syncs of an index.
pub(super) const TAIL_BYTES_MAX: u64 = 128 << 20;
/// How far back from its end a file is searched for the start of a torn line.
const TORN_LINE_BYTES_MAX: u64 = 64 << 20;
/// How far back from its end an index is searched for a record that was not lost.
const LOST_RECORDS_BYTES_MAX: u64 = 16 << 20;
/// Records of one group; what a writer puts into one is less.
const GROUP_RECORDS_MAX: u64 = 8192;
const CHUNK_BYTES: u64 = 64 << 10;
const RECORD_LENGTH: u64 = RECORD_BYTES as u64;

/// Whether the index may belong to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// As far as anybody knows.
    Index,
    /// No: somebody put another file in its place, or cut it.
    Nothing,
}

/// How the index was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IndexState {
    /// As it should be, but for a tail that a crash explains.
    Good,
    /// There is none, or it is not to be trusted; a new one begins.
    Absent,
    /// It is not this segment's, or its tail is garbage; a new one begins.
    Unreadable,
    /// The file lacks bytes that were on disk; a new index begins.
    Short {
        /// How many.
        missing: u64,
    },
}

/// What to do with a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Findings {
    /// Length of the file.
    pub(super) length: u64,
    /// Bytes that stay.
    pub(super) keep: u64,
    /// There is no line break where one must be: add one.
    pub(super) is_endless: bool,
    pub(super) index: IndexState,
    /// Bytes of the index that stay; 0 when a new one begins.
    pub(super) index_keep: u64,
    /// Whole lines without a record.
    pub(super) found: Option<Found>,
}

/// Lines to be entered into the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) line_count: u32,
    pub(super) fingerprint: u128,
}

/// Looks at a segment.
pub(super) fn examine<F: Medium>(
    log: &F,
    index: &F,
    sequence: u64,
    trust: Trust,
) -> io::Result<Findings> {
    let length = log.length()?;
    let index_length = index.length()?;
    if trust == Trust::Nothing || index_length == 0 {
        return without_index(log, length, IndexState::Absent);
    }
    let Some(header) = header(index, index_length, sequence)? else {
        return without_index(log, length, IndexState::Unreadable);
    };
    let Some((place, last)) = last_record(index, index_length, sequence)? else {
        return if index_length > RECORD_LENGTH + LOST_RECORDS_BYTES_MAX {
            without_index(log, length, IndexState::Unreadable)
        } else if length < header.base {
            let missing = header.base - length;
            without_index(log, length, IndexState::Short { missing })
        } else {
            behind(log, length, header.base, RECORD_LENGTH)
        };
    };
    if length < last.group {
        let missing = last.group - length;
        return without_index(log, length, IndexState::Short { missing });
    }
    let group = group_records(index, place, &last, sequence)?;
    let first_place = group.first().map_or(place, |(place, _)| *place);
    let (mut at, mut index_keep) = (last.group, first_place);
    for (place, record) in group {
        let cut = |keep| Findings {
            length,
            keep,
            is_endless: false,
            index: IndexState::Good,
            index_keep,
            found: None,
        };
        if record.offset > at {
            // Records were lost in the middle of the group.
            let scan = whole_lines(log, at, record.offset.min(length))?;
            if scan.end != record.offset {
                return Ok(cut(scan.end));
            }
        }
        let is_intact = record.offset >= at
            && record.end() <= length
            && fingerprint(log, record.offset, record.end())? == record.fingerprint;
        if !is_intact {
            return Ok(cut(at.max(record.offset.min(length))));
        }
        at = record.end();
        index_keep = place + RECORD_LENGTH;
    }
    behind(log, length, at, index_keep)
}

/// Records that are younger than `age_ms` before the newest, newest first, at most `count_max`; and whether the index
/// has none that is older.
pub(super) fn recent<F: Medium>(
    index: &F,
    length: u64,
    sequence: u64,
    newest_ms: Option<u64>,
    age_ms: u64,
    count_max: usize,
) -> io::Result<(Vec<Record>, bool)> {
    let mut recent = Vec::new();
    let mut newest_ms = newest_ms;
    let mut end = whole_records(length);
    while end > RECORD_LENGTH {
        let start = end.saturating_sub(CHUNK_BYTES).max(RECORD_LENGTH);
        let chunk = read(index, start, end)?;
        for bytes in chunk.rchunks_exact(RECORD_BYTES) {
            let Some(record) = Record::decode(bytes, sequence) else {
                continue;
            };
            let newest = *newest_ms.get_or_insert(record.stored_ms);
            if newest.saturating_sub(record.stored_ms) > age_ms || recent.len() >= count_max {
                return Ok((recent, false));
            }
            recent.push(record);
        }
        end = start;
    }
    Ok((recent, true))
}

/// Judges whole lines from `from` on, which no record covers.
fn behind<F: Medium>(log: &F, length: u64, from: u64, index_keep: u64) -> io::Result<Findings> {
    let mut findings = Findings {
        length,
        keep: length,
        is_endless: false,
        index: IndexState::Good,
        index_keep,
        found: None,
    };
    if length <= from {
        findings.keep = length;
    } else if length - from > TAIL_BYTES_MAX {
        // Somebody else wrote it: it is kept as far as it has lines, and stays without records.
        let kept = without_index(log, length, IndexState::Good)?;
        findings.keep = kept.keep;
        findings.is_endless = kept.is_endless;
    } else {
        let scan = whole_lines(log, from, length)?;
        findings.keep = scan.end;
        if scan.end > from {
            findings.found = Some(Found {
                offset: from,
                length: u32::try_from(scan.end - from).unwrap_or(0),
                line_count: scan.line_count,
                fingerprint: fingerprint(log, from, scan.end)?,
            });
        }
    }
    Ok(findings)
}

fn without_index<F: Medium>(log: &F, length: u64, index: IndexState) -> io::Result<Findings> {
    let keep = last_line_break(log, length)?;
    Ok(Findings {
        length,
        keep: keep.unwrap_or(length),
        is_endless: keep.is_none(),
        index,
        index_keep: 0,
        found: None,
    })
}

fn header<F: Medium>(index: &F, length: u64, sequence: u64) -> io::Result<Option<Header>> {
    if length < RECORD_LENGTH {
        return Ok(None);
    }
    let bytes = read(index, 0, RECORD_LENGTH)?;
    Ok(Header::decode(&bytes, sequence))
}

/// The last record that can be read, and its place.
fn last_record<F: Medium>(
    index: &F,
    length: u64,
    sequence: u64,
) -> io::Result<Option<(u64, Record)>> {
    let mut end = whole_records(length);
    let floor = end
        .saturating_sub(LOST_RECORDS_BYTES_MAX)
        .max(RECORD_LENGTH);
    while end > floor {
        let start = end.saturating_sub(CHUNK_BYTES).max(floor);
        let chunk = read(index, start, end)?;
        let mut place = end;
        for bytes in chunk.rchunks_exact(RECORD_BYTES) {
            place -= RECORD_LENGTH;
            if let Some(record) = Record::decode(bytes, sequence) {
                return Ok(Some((place, record)));
            }
        }
        end = start;
    }
    Ok(None)
}

/// Records of the last group with their places, in order. What cannot be read between them is left out.
fn group_records<F: Medium>(
    index: &F,
    place: u64,
    last: &Record,
    sequence: u64,
) -> io::Result<Vec<(u64, Record)>> {
    let mut group = vec![(place, *last)];
    let start = place
        .saturating_sub(GROUP_RECORDS_MAX * RECORD_LENGTH)
        .max(RECORD_LENGTH);
    let chunk = read(index, start, place)?;
    let mut at = place;
    for bytes in chunk.rchunks_exact(RECORD_BYTES) {
        at -= RECORD_LENGTH;
        match Record::decode(bytes, sequence) {
            Some(record) if record.group == last.group => group.push((at, record)),
            Some(_) => break,
            None => {}
        }
    }
    group.reverse();
    Ok(group)
}

struct Scan {
    /// One past the last line break before the first byte that no line can hold.
    end: u64,
    line_count: u32,
}

/// Whole lines in a range. A zero byte is what a power cut leaves where nothing was written; JSON has none.
fn whole_lines<F: Medium>(log: &F, from: u64, to: u64) -> io::Result<Scan> {
    let mut scan = Scan {
        end: from,
        line_count: 0,
    };
    let mut start = from;
    while start < to {
        let end = (start + CHUNK_BYTES).min(to);
        let chunk = read(log, start, end)?;
        for at in memchr2_iter(0, b'\n', &chunk) {
            if chunk.get(at) == Some(&0) {
                return Ok(scan);
            }
            scan.end = start + at as u64 + 1;
            scan.line_count += 1;
        }
        start = end;
    }
    Ok(scan)
}

/// Bytes up to and with the last line break; `None` when there is none within the bound.
fn last_line_break<F: Medium>(log: &F, length: u64) -> io::Result<Option<u64>> {
    let floor = length.saturating_sub(TORN_LINE_BYTES_MAX);
    let mut end = length;
    while end > floor {
        let start = end.saturating_sub(CHUNK_BYTES).max(floor);
        let chunk = read(log, start, end)?;
        if let Some(at) = chunk.iter().rposition(|byte| *byte == b'\n') {
            return Ok(Some(start + at as u64 + 1));
        }
        end = start;
    }
    Ok((floor == 0).then_some(0))
}

pub(super) fn fingerprint<F: Medium>(log: &F, from: u64, to: u64) -> io::Result<u128> {
    let mut hash = Xxh3::new();
    let mut start = from;
    while start < to {
        let end = (start + CHUNK_BYTES).min(to);
        hash.update(&read(log, start, end)?);
        start = end;
    }
    Ok(hash.digest128())
}

fn read<F: Medium>(from: &F, start: u64, end: u64) -> io::Result<Vec<u8>> {
    // Callers ask for chunks.
    let mut bytes = vec![0; usize::try_from(end.saturating_sub(start)).unwrap_or(0)];
    from.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}

/// An index may end in a part of a record.
fn whole_records(length: u64) -> u64 {
    length - length % RECORD_LENGTH
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
