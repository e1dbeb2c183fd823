//! What the index of a segment is made of. Pure.
//!
//! A segment's lines stay plain text. What is known of them stands beside, in `.STEM.index/NUMBER.idx`, where `NUMBER`
//! is the one that the segment has, or will have, in its closed name. So nothing but the segment is renamed when it is
//! closed. An index is a header and then records, each [`RECORD_BYTES`] long, little endian:
//!
//! | bytes | header | record |
//! |---|---|---|
//! | 0–7 | `FLTJIDX1` | start of the group: everything before it was on disk when this was written |
//! | 8–15 | number of the segment | start of the batch |
//! | 16–23 | where the index begins: what stood in the file before it was begun is not covered | bytes (4), lines (4) |
//! | 24–31 | when it was begun, Unix milliseconds | when it was stored, Unix milliseconds |
//! | 32–39 | 0 | host |
//! | 40–55 | 0 | XXH3-128 of the bytes |
//! | 56–59 | 0 | kind (1 result, 2 status, 3 found at a start), then 0 |
//! | 60–63 | low half of XXH3-64 of the 60 bytes before, seeded with the number | the same |
//!
//! Offsets are of the uncompressed segment. Records of a group are written before its lines, and are not synced with
//! them: the group's own sync is the only one that an agent waits for. So after a crash the last group is judged by its
//! checksums, and lines behind the last record by being whole; see `recovery.rs`. A killed process loses nothing of the
//! index, so what it stored without answering is known again to its successor; after a power cut that holds for all but
//! the last second.

use fleet_protocol::agent::LogType;
use fleet_protocol::ids::HostId;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

/// Length of the header, and of each record.
pub(super) const RECORD_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"FLTJIDX1";
const SUM_AT: usize = RECORD_BYTES - 4;

/// First part of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Of the segment.
    pub(super) sequence: u64,
    /// Bytes of the segment that the index does not cover, at its beginning.
    pub(super) base: u64,
    /// Unix milliseconds.
    pub(super) begun_ms: u64,
}

/// What a record stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One request of an agent.
    Batch(LogType),
    /// Whole lines without a record, met when the segment was opened.
    Found,
}

/// One batch of lines of one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Start of the first batch of the same write.
    pub(super) group: u64,
    /// First byte.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) length: u32,
    /// Lines.
    pub(super) line_count: u32,
    /// Unix milliseconds.
    pub(super) stored_ms: u64,
    /// Whose; 0 when not known.
    pub(super) host: HostId,
    /// Of the bytes; both checksum and name.
    pub(super) fingerprint: u128,
    pub(super) kind: Kind,
}

/// 128 bits, so that two batches of one host never share it by chance.
pub(super) fn fingerprint(bytes: &[u8]) -> u128 {
    xxh3_128(bytes)
}

impl Header {
    pub(super) fn encode(&self, into: &mut Vec<u8>) {
        let begin = into.len();
        into.extend_from_slice(MAGIC);
        into.extend_from_slice(&self.sequence.to_le_bytes());
        into.extend_from_slice(&self.base.to_le_bytes());
        into.extend_from_slice(&self.begun_ms.to_le_bytes());
        into.resize(begin + SUM_AT, 0);
        add_sum(into, begin, self.sequence);
    }

    /// `None` when these bytes are none of this segment's header.
    pub(super) fn decode(bytes: &[u8], sequence: u64) -> Option<Self> {
        let bytes = summed(bytes, sequence)?;
        let header = Self {
            sequence: u64_at(bytes, 8)?,
            base: u64_at(bytes, 16)?,
            begun_ms: u64_at(bytes, 24)?,
        };
        (bytes.starts_with(MAGIC) && header.sequence == sequence).then_some(header)
    }
}

impl Record {
    /// One past the last byte.
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.length))
    }

    pub(super) fn encode(&self, sequence: u64, into: &mut Vec<u8>) {
        let begin = into.len();
        into.extend_from_slice(&self.group.to_le_bytes());
        into.extend_from_slice(&self.offset.to_le_bytes());
        into.extend_from_slice(&self.length.to_le_bytes());
        into.extend_from_slice(&self.line_count.to_le_bytes());
        into.extend_from_slice(&self.stored_ms.to_le_bytes());
        into.extend_from_slice(&u64::from(self.host.0).to_le_bytes());
        into.extend_from_slice(&self.fingerprint.to_le_bytes());
        into.push(match self.kind {
            Kind::Batch(LogType::Result) => 1,
            Kind::Batch(LogType::Status) => 2,
            Kind::Found => 3,
        });
        into.resize(begin + SUM_AT, 0);
        add_sum(into, begin, sequence);
    }

    /// `None` when these bytes are none of this segment's records.
    pub(super) fn decode(bytes: &[u8], sequence: u64) -> Option<Self> {
        let bytes = summed(bytes, sequence)?;
        let record = Self {
            group: u64_at(bytes, 0)?,
            offset: u64_at(bytes, 8)?,
            length: u32_at(bytes, 16)?,
            line_count: u32_at(bytes, 20)?,
            stored_ms: u64_at(bytes, 24)?,
            host: HostId(u64_at(bytes, 32)?.try_into().ok()?),
            fingerprint: u128::from_le_bytes(bytes.get(40..56)?.try_into().ok()?),
            kind: match bytes.get(56)? {
                1 => Kind::Batch(LogType::Result),
                2 => Kind::Batch(LogType::Status),
                3 => Kind::Found,
                _ => return None,
            },
        };
        (record.group <= record.offset).then_some(record)
    }
}

fn sum(bytes: &[u8], sequence: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = xxh3_64_with_seed(bytes, sequence).to_le_bytes();
    [a, b, c, d]
}

fn add_sum(into: &mut Vec<u8>, begin: usize, sequence: u64) {
    let sum = sum(into.get(begin..).unwrap_or_default(), sequence);
    into.extend_from_slice(&sum);
}

fn summed(bytes: &[u8], sequence: u64) -> Option<&[u8]> {
    let (content, found) = bytes.get(..RECORD_BYTES)?.split_at(SUM_AT);
    (found == sum(content, sequence)).then_some(content)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![
            Just(Kind::Batch(LogType::Result)),
            Just(Kind::Batch(LogType::Status)),
            Just(Kind::Found),
        ]
    }

    proptest! {
        #[test]
        fn records_are_read_back_and_no_other_bytes_are(
            group in any::<u32>(), offset in any::<u32>(), length in any::<u32>(), fingerprint in any::<u128>(),
            host in any::<u32>(), kind in kinds(), sequence in any::<u64>(), flipped in 0..RECORD_BYTES * 8,
        ) {
            let record = Record {
                group: group.into(),
                offset: u64::from(group) + u64::from(offset),
                length,
                line_count: 7,
                stored_ms: 1_795_256_100_000,
                host: HostId(host),
                fingerprint,
                kind,
            };
            let mut bytes = Vec::new();
            record.encode(sequence, &mut bytes);
            prop_assert_eq!(bytes.len(), RECORD_BYTES);
            prop_assert_eq!(Record::decode(&bytes, sequence), Some(record));
            prop_assert_eq!(Record::decode(&bytes, sequence.wrapping_add(1)), None);
            bytes[flipped / 8] ^= 1 << (flipped % 8);
            prop_assert_eq!(Record::decode(&bytes, sequence), None);
            let header = Header { sequence, base: group.into(), begun_ms: 5 };
            let mut bytes = Vec::new();
            header.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), RECORD_BYTES);
            prop_assert_eq!(Header::decode(&bytes, sequence), Some(header));
            bytes[flipped / 8] ^= 1 << (flipped % 8);
            prop_assert_eq!(Header::decode(&bytes, sequence), None);
        }
    }

    #[test]
    fn nothing_is_no_record() {
        for sequence in 0..1000 {
            assert_eq!(Record::decode(&[0; RECORD_BYTES], sequence), None);
        }
        assert_eq!(Record::decode(&[1; RECORD_BYTES - 1], 1), None);
    }
}
