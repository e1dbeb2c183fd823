//! Results that were acknowledged while the store was away: a bounded file in the state directory, written to the store
//! in order once it is back, also by a later life of this process.
//!
//! Owner of the file, by a lock: during an upgrade the process that serves still has it, and its successor takes what is
//! left. Invariants: an append returns after `fdatasync`, or leaves the file as it was; what is read again
//! was written before, by its checksum; the file is emptied only when all of it is in the store. Replaying twice is
//! harmless, because the store takes nothing that is older than what it has. What cannot be read is put aside, never cut
//! off with whatever stands behind it: nobody can tell whether that was acknowledged.

mod aside;
mod record;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fleet_protocol::limits::SPOOL_BYTES_MAX;

use crate::durable::sync_directory;

pub(crate) use record::Record;
use record::{HEAD_BYTES, Head};

/// Name in the state directory.
const FILE_NAME: &str = "results.spool";
/// A file that cannot be read is tried this often, once a second, before it is put aside: what stands behind it, and what
/// comes, must not wait for ever.
const READ_TRIES_MAX: u32 = 5;

/// Why nothing was kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The bound is reached.
    #[error("the spool is full")]
    Full,
    /// The file system failed.
    #[error("the spool: {0}")]
    Storage(#[from] io::Error),
}

/// Counters since start, and gauges now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpoolStatistics {
    /// Batches that wait for the store.
    pub(crate) waiting: u64,
    /// Their bytes, and those of batches written since the file was last empty.
    pub(crate) bytes: u64,
    /// Batches kept.
    pub(crate) kept: u64,
    /// Batches written to the store.
    pub(crate) replayed: u64,
    /// Hosts of those whose results were not written, because the store had newer ones or had lost the host.
    pub(crate) outdated: u64,
    /// Batches that were not kept because there was no room.
    pub(crate) refused: u64,
    /// Batches that were not kept because the file system failed.
    pub(crate) failed: u64,
    /// Batches that could not be read again, ends that were cut off, and files that were put aside (each for as many
    /// batches as were known to wait in it, at least one).
    pub(crate) damaged: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Spool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Held while the disk works; only blocking threads wait for it.
    state: Mutex<State>,
    /// As of the last work.
    shown: Mutex<Shown>,
}

#[derive(Clone, Debug, Default)]
struct Shown {
    is_owned: bool,
    statistics: SpoolStatistics,
}

#[derive(Debug)]
struct State {
    path: PathBuf,
    /// Locked and counted; `None` while there is none, or another process has it.
    file: Option<File>,
    /// Where the next batch is written.
    length: u64,
    /// Where the first batch begins that is not in the store.
    next: u64,
    bytes_max: u64,
    /// Tries to read that failed, one after the other.
    failed_reads: u32,
    statistics: SpoolStatistics,
}

/// What stands at a place of the file.
enum Found {
    /// A frame; its payload may be damaged.
    Frame(Head, Vec<u8>),
    /// The file ends here.
    End,
    /// The beginning of a frame whose end was never written.
    Torn,
    /// Neither.
    Damaged,
}

/// A batch to write, and where the next begins.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) record: Record,
    end: u64,
}

impl Spool {
    /// Finds what an earlier life left. Reads the whole file once.
    pub(crate) fn open(state_dir: &Path) -> Self {
        Self::open_bounded(state_dir, SPOOL_BYTES_MAX)
    }

    fn open_bounded(state_dir: &Path, bytes_max: u64) -> Self {
        let mut state = State {
            path: state_dir.join(FILE_NAME),
            file: None,
            length: 0,
            next: 0,
            bytes_max,
            failed_reads: 0,
            statistics: SpoolStatistics::default(),
        };
        if let Err(error) = state.own(false) {
            let path = state.path.display();
            tracing::warn!(%error, %path, "results of an earlier life cannot be had yet");
        }
        let shown = Mutex::new(state.shown());
        let state = Mutex::new(state);
        Self(Arc::new(Shared { state, shown }))
    }

    /// Returns once the batch is on disk.
    pub(crate) async fn append(&self, record: &Record) -> Result<(), Error> {
        let frame = record.encode();
        self.blocking(move |state| state.append(frame.as_deref()))
            .await?
    }

    /// The oldest batch that is not in the store; `None` when all are.
    pub(crate) async fn oldest(&self) -> Result<Option<Kept>, Error> {
        let shown = lock(&self.0.shown).clone();
        if shown.is_owned && shown.statistics.waiting == 0 {
            return Ok(None);
        }
        Ok(self.blocking(State::oldest).await??)
    }

    /// The batch is in the store, or never will be; `outdated` of its hosts had nothing new.
    pub(crate) async fn done(&self, kept: &Kept, outdated: u64) -> Result<(), Error> {
        let end = kept.end;
        Ok(self
            .blocking(move |state| state.done(end, outdated))
            .await??)
    }

    pub(crate) fn statistics(&self) -> SpoolStatistics {
        lock(&self.0.shown).statistics.clone()
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let shared = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || {
            let mut state = lock(&shared.state);
            let outcome = work(&mut state);
            *lock(&shared.shown) = state.shown();
            outcome
        });
        done.await
            .map_err(|error| Error::Storage(io::Error::other(error)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn shown(&self) -> Shown {
        Shown {
            is_owned: self.file.is_some(),
            statistics: SpoolStatistics {
                bytes: self.length,
                ..self.statistics.clone()
            },
        }
    }

    /// Takes the file, and makes it if `creates`. Nothing is lost by a failure, and the next call tries again.
    fn own(&mut self, creates: bool) -> io::Result<()> {
        if self.file.is_some() {
            return Ok(());
        }
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(creates)
            .truncate(false)
            .mode(0o600)
            .open(&self.path);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !creates => return Ok(()),
            opened => opened?,
        };
        file.try_lock().map_err(|error| match error {
            TryLockError::Error(error) => error,
            TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::WouldBlock,
                "another process has it, which is about to end",
            ),
        })?;
        // Its last owner may have put it aside since we opened it.
        let (ours, named) = (file.metadata()?, std::fs::metadata(&self.path)?);
        if (ours.dev(), ours.ino()) != (named.dev(), named.ino()) {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "another process has just put it aside",
            ));
        }
        if creates && let Some(directory) = self.path.parent() {
            sync_directory(directory)?;
        }
        if let Err(error) = self.recover(&file) {
            // Appends may come by the thousand in a second; they are no tries.
            return if creates {
                Err(error)
            } else {
                self.reading_failed(error)
            };
        }
        self.failed_reads = 0;
        self.file = Some(file);
        Ok(())
    }

    /// Counts what is there, and cuts off an end that was never acknowledged. What is neither is kept beside.
    fn recover(&mut self, file: &File) -> io::Result<()> {
        let length = file.metadata()?.len();
        let (mut place, mut waiting) = (0, 0);
        let end = loop {
            match read(file, place, length)? {
                Found::Frame(head, _) => {
                    waiting += 1;
                    place += frame_bytes(head);
                }
                end => break end,
            }
        };
        if place < length {
            let bytes = length - place;
            if matches!(end, Found::Torn) {
                tracing::warn!(bytes, "cut the end off the spool: it is no whole batch");
            } else {
                let aside = aside::copy(file, place, &self.path)?;
                tracing::error!(bytes, aside = %aside.display(), "the end of the spool cannot be read; it may hold acknowledged results and was put aside");
            }
            file.set_len(place)?;
            file.sync_data()?;
            self.statistics.damaged += 1;
        }
        if waiting > 0 {
            tracing::info!(
                batches = waiting,
                bytes = place,
                "found results that are not in the store yet"
            );
        }
        (self.length, self.next, self.statistics.waiting) = (place, 0, waiting);
        Ok(())
    }

    /// The error, unless it came too often: then the file is put aside.
    fn reading_failed(&mut self, error: io::Error) -> io::Result<()> {
        self.failed_reads += 1;
        if self.failed_reads < READ_TRIES_MAX {
            return Err(error);
        }
        self.put_aside(&error.to_string())
    }

    /// Gives the file another name, for an operator to look at. The next append makes a new one.
    fn put_aside(&mut self, reason: &str) -> io::Result<()> {
        let aside = aside::rename(&self.path)?;
        let batches = self.statistics.waiting;
        tracing::error!(batches, reason, aside = %aside.display(), "the spool cannot be read any further and was put aside; results in it are not in the store");
        self.statistics.damaged += batches.max(1);
        self.statistics.waiting = 0;
        self.file = None;
        (self.length, self.next, self.failed_reads) = (0, 0, 0);
        Ok(())
    }

    /// No frame: the batch is too large for one.
    fn append(&mut self, frame: Option<&[u8]>) -> Result<(), Error> {
        let Some(frame) = frame else {
            self.statistics.refused += 1;
            return Err(Error::Full);
        };
        if let Err(error) = self.own(true) {
            self.statistics.failed += 1;
            return Err(error.into());
        }
        let end = self.length + frame.len() as u64;
        if end > self.bytes_max {
            self.statistics.refused += 1;
            return Err(Error::Full);
        }
        if let Err(error) = self.write(frame) {
            self.statistics.failed += 1;
            return Err(error.into());
        }
        self.length = end;
        self.statistics.kept += 1;
        self.statistics.waiting += 1;
        Ok(())
    }

    fn write(&self, frame: &[u8]) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let written = file
            .write_all_at(frame, self.length)
            .and_then(|()| file.sync_data());
        if written.is_err() {
            // What is left of it is overwritten by the next, or cut off at the next start.
            let _ = file.set_len(self.length);
        }
        written
    }

    fn oldest(&mut self) -> io::Result<Option<Kept>> {
        self.own(false)?;
        loop {
            let Some(file) = &self.file else {
                return Ok(None);
            };
            let (head, payload) = match read(file, self.next, self.length) {
                Ok(Found::Frame(head, payload)) => (head, payload),
                Ok(Found::End) => {
                    self.empty()?;
                    return Ok(None);
                }
                Ok(Found::Torn | Found::Damaged) => {
                    self.put_aside("no batch begins where one must")?;
                    return Ok(None);
                }
                Err(error) => {
                    self.reading_failed(error)?;
                    return Ok(None);
                }
            };
            self.failed_reads = 0;
            let end = self.next + frame_bytes(head);
            if let Some(record) = Record::decode(head, &payload) {
                return Ok(Some(Kept { record, end }));
            }
            tracing::error!(
                bytes = payload.len(),
                "results in the spool are damaged and are left out"
            );
            self.next = end;
            self.statistics.damaged += 1;
            self.statistics.waiting = self.statistics.waiting.saturating_sub(1);
        }
    }

    fn done(&mut self, end: u64, outdated: u64) -> io::Result<()> {
        self.next = end;
        self.statistics.waiting = self.statistics.waiting.saturating_sub(1);
        self.statistics.replayed += 1;
        self.statistics.outdated += outdated;
        if self.next >= self.length {
            self.empty()?;
        }
        Ok(())
    }

    fn empty(&mut self) -> io::Result<()> {
        self.statistics.waiting = 0;
        if let Some(file) = &self.file {
            file.set_len(0)?;
            file.sync_data()?;
        }
        (self.length, self.next) = (0, 0);
        Ok(())
    }
}

/// What stands at `place`, in a file of `length` bytes.
fn read(file: &File, place: u64, length: u64) -> io::Result<Found> {
    let left = length.saturating_sub(place);
    if left == 0 {
        return Ok(Found::End);
    }
    if left < HEAD_BYTES as u64 {
        return Ok(Found::Torn);
    }
    let mut head = [0; HEAD_BYTES];
    file.read_exact_at(&mut head, place)?;
    let Some(head) = Head::decode(&head) else {
        return Ok(Found::Damaged);
    };
    let is_whole = frame_bytes(head) <= left;
    // Less than one frame, and so bounded.
    let payload_bytes = left.min(frame_bytes(head)) - HEAD_BYTES as u64;
    let mut payload = vec![0; usize::try_from(payload_bytes).unwrap_or(0)];
    file.read_exact_at(&mut payload, place + HEAD_BYTES as u64)?;
    Ok(if is_whole {
        Found::Frame(head, payload)
    } else if record::has_frame(&payload) {
        // The length is wrong, not the end.
        Found::Damaged
    } else {
        Found::Torn
    })
}

fn frame_bytes(head: Head) -> u64 {
    (HEAD_BYTES + head.length) as u64
}

#[cfg(test)]
mod tests;
