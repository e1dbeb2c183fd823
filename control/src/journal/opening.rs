//! How a writer comes to an open segment: the lock, the file under the active name, its number, what the last life stored.

use std::fs::{OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Instant, SystemTime};

use super::recovery::{IndexState, Trust};
use super::segment::{self, Segment, Standing, make_directory};
use super::writer::Writer;
use super::{closed, refill};

impl Writer {
    /// The open segment that the active name leads to.
    pub(super) fn ready_segment(&mut self) -> io::Result<()> {
        self.ready_lock()?;
        if self.is_suspect {
            self.retire()?;
        }
        let mut trust = Trust::Index;
        if let Some(segment) = &self.segment {
            let standing = segment.standing(&self.place)?;
            if standing == Standing::Ours {
                return Ok(());
            }
            self.shared.statistics().displaced += 1;
            tracing::info!(file = %self.place.active().display(), ?standing, "log file was changed from outside; opening it again");
            self.segment = None;
            // If it was closed after all, its number is taken.
            self.sequence = None;
            trust = Trust::Nothing;
        }
        self.segment = Some(self.open_segment(trust)?);
        self.refill();
        Ok(())
    }

    fn open_segment(&mut self, trust: Trust) -> io::Result<Segment> {
        make_directory(&self.place.index_directory())?;
        let sequence = match self.sequence {
            Some(sequence) => sequence,
            None => closed::next_sequence(&self.place)?,
        };
        let opened = Segment::open(&self.place, sequence, trust)?;
        self.sequence = Some(sequence);
        let file = self.place.active();
        let mut statistics = self.shared.statistics();
        statistics.segment_bytes = opened.segment.length();
        if let Some(torn) = &opened.torn {
            statistics.torn_lines += 1;
            statistics.torn_bytes += torn.bytes;
            tracing::warn!(file = %file.display(), bytes = torn.bytes, aside = %torn.path.display(), "cut off what was never completed or does not match its checksum");
        }
        match opened.index {
            IndexState::Good | IndexState::Absent => {}
            IndexState::Unreadable => {
                statistics.index_faults += 1;
                tracing::warn!(file = %file.display(), bytes = opened.length, "the index of the log file cannot be read; a new one begins, and these bytes have no checksums");
            }
            IndexState::Short { missing } => {
                statistics.index_faults += 1;
                tracing::error!(file = %file.display(), missing, "the log file is shorter than what was stored in it: it was cut from outside, or the disk lost it");
            }
        }
        Ok(opened.segment)
    }

    /// Once: what the last life stored a moment ago is not stored again.
    fn refill(&mut self) {
        let Some(segment) = self.segment.as_ref().filter(|_| !self.is_refilled) else {
            return;
        };
        self.is_refilled = true;
        match refill::keys(segment, &self.place) {
            Ok(keys) => {
                let now = Instant::now();
                let mut repeats = self.shared.repeats();
                self.stored_before = keys
                    .into_iter()
                    .filter(|key| !repeats.remember(*key, now))
                    .collect();
            }
            Err(error) => {
                tracing::warn!(%error, "cannot tell what was stored before the start; what comes again may be stored twice");
            }
        }
    }

    /// Puts a file away whose last sync failed; what counts in it was on disk before.
    fn retire(&mut self) -> io::Result<()> {
        self.segment = None;
        let sequence = match self.sequence {
            Some(sequence) => sequence,
            None => closed::next_sequence(&self.place)?,
        };
        match std::fs::metadata(self.place.active()) {
            Ok(metadata) if metadata.len() == 0 => {
                std::fs::remove_file(self.place.active())?;
                // Only wastes room; the archive removes it, too.
                let _ = std::fs::remove_file(self.place.index(sequence));
            }
            Ok(_) => {
                segment::close(
                    &self.place,
                    &self.place.closed_name(SystemTime::now(), sequence),
                )?;
                self.shared.statistics().retired += 1;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.is_suspect = false;
        self.sequence = Some(sequence + 1);
        Ok(())
    }

    /// A predecessor that is still being killed may hold the lock for a moment; two writers would cut each other's
    /// lines.
    fn ready_lock(&mut self) -> io::Result<()> {
        if self.lock.is_some() {
            return Ok(());
        }
        make_directory(self.place.directory())?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.place.lock())?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::Error(error) => error,
            TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::WouldBlock,
                format!("another process holds {}", self.place.lock().display()),
            ),
        })?;
        self.lock = Some(lock);
        Ok(())
    }
}
