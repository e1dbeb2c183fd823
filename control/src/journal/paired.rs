//! A log and its index: opened by what `recovery` found, appended to in groups, cut back together.
//!
//! Invariants: records are in the index before their lines are in the log; a group counts once the log was synced after
//! it; after an error nothing of the group is meant to stay, and the pair must be dropped.

use std::io::{self, IoSlice};

use super::medium::Medium;
use super::record::{Header, RECORD_BYTES, Record};
use super::recovery::{Findings, Trust, examine};

/// Bytes of lines after which the index is synced; what a power cut may cost in records, not in lines.
const UNSYNCED_BYTES_MAX: u64 = 64 << 20;

/// The two, open.
#[derive(Debug)]
pub(super) struct Paired<F> {
    log: F,
    index: F,
    sequence: u64,
    /// Bytes of the log that are on disk and count.
    length: u64,
    index_length: u64,
    /// Bytes of the log whose records may not be on disk.
    unsynced_bytes: u64,
}

/// Why a group was not stored.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: io::Error,
    /// The kernel may have thrown away what it could not write and call the pages clean, so that another sync would
    /// succeed and mean nothing. What counts before the group was on disk earlier; the file must not be written again.
    pub(super) is_suspect: bool,
}

impl<F: Medium> Paired<F> {
    /// Looks, without changing anything.
    pub(super) fn examine(log: &F, index: &F, sequence: u64, trust: Trust) -> io::Result<Findings> {
        examine(log, index, sequence, trust)
    }

    /// Cuts and completes both as found. What is cut off must have been put elsewhere before.
    pub(super) fn adopt(
        log: F,
        index: F,
        sequence: u64,
        findings: &Findings,
        now_ms: u64,
    ) -> io::Result<Self> {
        if findings.keep < findings.length {
            log.cut(findings.keep)?;
        }
        if findings.is_endless {
            log.append(&mut [IoSlice::new(b"\n")])?;
        }
        // What a killed predecessor wrote and did not sync counts from now on.
        log.sync()?;
        let length = log.length()?;
        let mut bytes = Vec::new();
        index.cut(findings.index_keep)?;
        if findings.index_keep == 0 {
            let header = Header {
                sequence,
                base: length,
                begun_ms: now_ms,
            };
            header.encode(&mut bytes);
        }
        if let Some(found) = findings.found {
            let record = Record {
                group: found.offset,
                offset: found.offset,
                length: found.length,
                line_count: found.line_count,
                stored_ms: now_ms,
                host: fleet_protocol::ids::HostId(0),
                fingerprint: found.fingerprint,
                kind: super::record::Kind::Found,
            };
            record.encode(sequence, &mut bytes);
        }
        if !bytes.is_empty() {
            index.append(&mut [IoSlice::new(&bytes)])?;
        }
        index.sync()?;
        Ok(Self {
            index_length: index.length()?,
            log,
            index,
            sequence,
            length,
            unsynced_bytes: 0,
        })
    }

    /// Bytes of the log that count.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn index(&self) -> (&F, u64) {
        (&self.index, self.index_length)
    }

    #[cfg(test)]
    pub(super) fn into_parts(self) -> (F, F) {
        (self.log, self.index)
    }

    /// Whether records are not known to be on disk.
    pub(super) fn is_index_unsynced(&self) -> bool {
        self.unsynced_bytes > 0
    }

    pub(super) fn must_sync_index(&self) -> bool {
        self.unsynced_bytes >= UNSYNCED_BYTES_MAX
    }

    /// Writes all slices, described by `records`, and syncs them.
    pub(super) fn append(
        &mut self,
        slices: &mut [IoSlice<'_>],
        records: &[Record],
    ) -> Result<(), Failure> {
        let mut bytes = Vec::with_capacity(records.len() * RECORD_BYTES);
        for record in records {
            record.encode(self.sequence, &mut bytes);
        }
        let end = records.last().map_or(self.length, Record::end);
        let written = self
            .index
            .append(&mut [IoSlice::new(&bytes)])
            .and_then(|()| self.log.append(slices));
        let result = written
            .map_err(|error| Failure {
                is_suspect: !is_for_want_of_room(&error),
                error,
            })
            .and_then(|()| {
                self.log.sync().map_err(|error| Failure {
                    error,
                    is_suspect: true,
                })
            });
        match result {
            Ok(()) => {
                self.unsynced_bytes += end - self.length;
                self.length = end;
                self.index_length += bytes.len() as u64;
                Ok(())
            }
            Err(failure) => {
                let cut = self
                    .log
                    .cut(self.length)
                    .and_then(|()| self.index.cut(self.index_length));
                if let Err(error) = cut {
                    tracing::warn!(%error, "could not cut the journal back; the next opening does");
                }
                Err(failure)
            }
        }
    }

    /// Puts the records on disk.
    pub(super) fn sync_index(&mut self) -> io::Result<()> {
        self.index.sync()?;
        self.unsynced_bytes = 0;
        Ok(())
    }
}

/// A file that was refused room is as good as before.
fn is_for_want_of_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
