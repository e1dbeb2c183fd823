//! The bytes of a kept batch: what it holds, its frame, and how a file of them is read. Pure.
//!
//! A frame is `FSP1`, the payload's length, the CRC-32 of length and payload (both little-endian), the payload as JSON.
//! JSON, because another build may read it: fields that it does not know are passed over, those that it misses are empty.
//!
//! For the same reason the checksum stays CRC-32, although the journal has XXH3: the reader may be an older build, which
//! serves on when an upgrade to this one fails. It would take frames of another kind for damage and put them aside,
//! acknowledged results and all.

use serde::{Deserialize, Serialize};

use crate::model::host::HostDetails;
use crate::model::label::LabelResult;

const MAGIC: [u8; 4] = *b"FSP1";
/// Bytes before the payload.
pub(super) const HEAD_BYTES: usize = 12;
/// Most bytes of one payload.
pub(super) const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// Results of agents that were acknowledged and are not in the store yet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Record {
    pub(crate) details: Vec<HostDetails>,
    pub(crate) labels: Vec<LabelResult>,
}

/// What a head says of the payload after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) length: usize,
    checksum: u32,
}

impl Record {
    /// The whole frame; `None` when it would be too large.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; HEAD_BYTES];
        serde_json::to_writer(&mut frame, self).ok()?;
        let payload = frame.get(HEAD_BYTES..)?;
        if payload.len() > PAYLOAD_BYTES_MAX {
            return None;
        }
        let length = u32::try_from(payload.len()).ok()?;
        let checksum = checksum(length, payload);
        let head = [MAGIC, length.to_le_bytes(), checksum.to_le_bytes()].concat();
        frame.get_mut(..HEAD_BYTES)?.copy_from_slice(&head);
        Some(frame)
    }

    /// `None` when the payload is not what was written.
    pub(super) fn decode(head: Head, payload: &[u8]) -> Option<Self> {
        if !head.fits(payload) {
            return None;
        }
        serde_json::from_slice(payload).ok()
    }
}

impl Head {
    /// `None` when no frame begins like this.
    pub(super) fn decode(bytes: &[u8; HEAD_BYTES]) -> Option<Self> {
        let [magic, length, checksum] = {
            let (words, _) = bytes.as_chunks::<4>();
            <[[u8; 4]; 3]>::try_from(words).ok()?
        };
        let length = usize::try_from(u32::from_le_bytes(length)).ok()?;
        (magic == MAGIC && length <= PAYLOAD_BYTES_MAX).then_some(Self {
            length,
            checksum: u32::from_le_bytes(checksum),
        })
    }

    /// Whether this is the payload that the head was made for.
    fn fits(self, payload: &[u8]) -> bool {
        u32::try_from(payload.len()).is_ok_and(|length| {
            payload.len() == self.length && checksum(length, payload) == self.checksum
        })
    }
}

/// Whether a frame may begin somewhere in these bytes.
pub(super) fn has_frame(bytes: &[u8]) -> bool {
    memchr::memmem::find(bytes, &MAGIC).is_some()
}

fn checksum(length: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use fleet_protocol::ids::{HostId, UnixSeconds};
    use proptest::prelude::*;
    use serde_json::{Map, json};

    use super::*;
    use crate::model::host::HostColumns;
    use crate::model::label::LabelId;

    fn record(host: u32, at: u32) -> Record {
        let mut details = Map::new();
        details.insert("uptime".into(), json!({"total_seconds": "9"}));
        Record {
            details: vec![HostDetails {
                host: HostId(host),
                at: UnixSeconds(at),
                columns: HostColumns {
                    uptime: Some(9),
                    ..HostColumns::default()
                },
                details,
            }],
            labels: vec![LabelResult {
                host: HostId(host),
                at: UnixSeconds(at),
                memberships: vec![(LabelId(7), true)],
            }],
        }
    }

    fn decode(frame: &[u8]) -> Option<Record> {
        let (head, payload) = frame.split_first_chunk::<HEAD_BYTES>()?;
        Record::decode(Head::decode(head)?, payload)
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let record = record(1, 100);
        assert_eq!(decode(&record.encode().unwrap()), Some(record));
    }

    #[test]
    fn every_build_writes_the_same_frame() {
        let frame = [
            &b"FSP1"[..],
            b"\x1a\0\0\0",
            b"\xd7\xca\x33\x87",
            br#"{"details":[],"labels":[]}"#,
        ]
        .concat();
        assert_eq!(Record::default().encode(), Some(frame.clone()));
        assert_eq!(decode(&frame), Some(Record::default()));
    }

    #[test]
    fn another_builds_fields_are_no_obstacle() {
        let payload = br#"{"details":[{"host":3,"at":9,"columns":{"uptime":1,"new":2},"details":{}}],"later":[]}"#;
        let length = u32::try_from(payload.len()).unwrap();
        let head = Head {
            length: payload.len(),
            checksum: checksum(length, payload),
        };
        let record = Record::decode(head, payload).unwrap();
        assert_eq!(record.details[0].columns.uptime, Some(1));
        assert!(record.labels.is_empty());
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_noticed(place in any::<prop::sample::Index>(), flip in 1_u8..) {
            let mut frame = record(1, 100).encode().unwrap();
            let place = place.index(frame.len());
            frame[place] ^= flip;
            prop_assert_eq!(decode(&frame), None);
        }

        #[test]
        fn whatever_is_read_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(decode(&bytes), None);
        }
    }
}
