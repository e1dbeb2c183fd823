//! Results that were acknowledged while the store was away: a bounded file in the state directory, written to the store
//! in order once it is back, also by a later life of this process.
//!
//! Owner of the file, by a lock: during an upgrade the process that serves still has it, and its successor takes what is
//! left. Invariants: an append returns after `fdatasync`, or leaves the file as it was; what is read again
//! was written before, by its checksum; the file is emptied only when all of it is in the store. Replaying twice is
//! harmless, because the store takes nothing that is older than what it has.

mod record;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fleet_protocol::limits::SPOOL_BYTES_MAX;

pub(crate) use record::Record;
use record::{HEAD_BYTES, Head};

/// Name in the state directory.
const FILE_NAME: &str = "results.spool";

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
    /// Batches that could not be read again, and ends that were cut off.
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
    statistics: SpoolStatistics,
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
        if creates && let Some(directory) = self.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        self.recover(&file)?;
        self.file = Some(file);
        Ok(())
    }

    /// Counts what is there, and cuts off an end that was never acknowledged.
    fn recover(&mut self, file: &File) -> io::Result<()> {
        let length = file.metadata()?.len();
        let (mut place, mut waiting) = (0, 0);
        while let Some((head, _)) = read(file, place, length)? {
            waiting += 1;
            place += frame_bytes(head);
        }
        if place < length {
            self.statistics.damaged += 1;
            let bytes = length - place;
            tracing::warn!(bytes, "cut the end off the spool: it is no whole batch");
            file.set_len(place)?;
            file.sync_data()?;
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
        let Some(file) = &self.file else {
            return Ok(None);
        };
        let mut kept = None;
        while kept.is_none() {
            let Some((head, payload)) = read(file, self.next, self.length)? else {
                break;
            };
            let end = self.next + frame_bytes(head);
            match Record::decode(head, &payload) {
                Some(record) => kept = Some(Kept { record, end }),
                None => {
                    tracing::error!(
                        bytes = payload.len(),
                        "results in the spool are damaged and are left out"
                    );
                    self.next = end;
                    self.statistics.damaged += 1;
                    self.statistics.waiting = self.statistics.waiting.saturating_sub(1);
                }
            }
        }
        if kept.is_none() {
            self.empty()?;
        }
        Ok(kept)
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

/// The frame at `place`; `None` when there is no whole one before `length`.
fn read(file: &File, place: u64, length: u64) -> io::Result<Option<(Head, Vec<u8>)>> {
    if place + HEAD_BYTES as u64 > length {
        return Ok(None);
    }
    let mut head = [0; HEAD_BYTES];
    file.read_exact_at(&mut head, place)?;
    let Some(head) = Head::decode(&head) else {
        return Ok(None);
    };
    if place + frame_bytes(head) > length {
        return Ok(None);
    }
    let mut payload = vec![0; head.length];
    file.read_exact_at(&mut payload, place + HEAD_BYTES as u64)?;
    Ok(Some((head, payload)))
}

fn frame_bytes(head: Head) -> u64 {
    (HEAD_BYTES + head.length) as u64
}

#[cfg(test)]
mod tests {
    use fleet_protocol::ids::{HostId, UnixSeconds};

    use super::*;
    use crate::model::LabelResult;

    fn record(host: u32) -> Record {
        Record {
            labels: vec![LabelResult {
                host: HostId(host),
                at: UnixSeconds(7),
                memberships: Vec::new(),
            }],
            ..Record::default()
        }
    }

    async fn drain(spool: &Spool) -> Vec<u32> {
        let mut hosts = Vec::new();
        while let Some(kept) = spool.oldest().await.unwrap() {
            hosts.extend(kept.record.labels.iter().map(|label| label.host.0));
            spool.done(&kept, 0).await.unwrap();
        }
        hosts
    }

    fn size(dir: &Path) -> u64 {
        std::fs::metadata(dir.join(FILE_NAME)).unwrap().len()
    }

    #[tokio::test]
    async fn batches_come_back_in_order_and_leave_an_empty_file() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path());
        assert!(spool.oldest().await.unwrap().is_none());
        assert!(!dir.path().join(FILE_NAME).exists());
        for host in 1..=3 {
            spool.append(&record(host)).await.unwrap();
        }
        // One is written, then the process ends; replaying it again is harmless.
        let kept = spool.oldest().await.unwrap().unwrap();
        spool.done(&kept, 0).await.unwrap();
        assert_eq!(spool.statistics().waiting, 2);
        drop(spool);
        let spool = Spool::open(dir.path());
        assert_eq!(spool.statistics().waiting, 3);
        spool.append(&record(4)).await.unwrap();
        assert_eq!(drain(&spool).await, [1, 2, 3, 4]);
        assert_eq!(size(dir.path()), 0);
        spool.append(&record(5)).await.unwrap();
        assert_eq!(drain(&spool).await, [5]);
        assert_eq!(spool.statistics().waiting, 0);
    }

    #[tokio::test]
    async fn a_full_spool_refuses_and_keeps_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let frame = record(1).encode().unwrap().len() as u64;
        let spool = Spool::open_bounded(dir.path(), 2 * frame);
        spool.append(&record(1)).await.unwrap();
        spool.append(&record(2)).await.unwrap();
        assert!(matches!(spool.append(&record(3)).await, Err(Error::Full)));
        assert_eq!(spool.statistics().refused, 1);
        assert_eq!(drain(&spool).await, [1, 2]);
        spool.append(&record(4)).await.unwrap();
        assert_eq!(drain(&spool).await, [4]);
    }

    #[tokio::test]
    async fn torn_ends_are_cut_and_damaged_batches_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let frames: Vec<Vec<u8>> = (1..=3).map(|host| record(host).encode().unwrap()).collect();
        let mut bytes = frames.concat();
        let in_second = frames[0].len() + HEAD_BYTES + 3;
        bytes[in_second] ^= 1;
        for torn in [
            &frames[0][..HEAD_BYTES - 1],
            &frames[0][..HEAD_BYTES + 1],
            b"x",
        ] {
            std::fs::write(&path, [&bytes, torn].concat()).unwrap();
            let spool = Spool::open(dir.path());
            assert_eq!(size(dir.path()), bytes.len() as u64);
            assert_eq!(drain(&spool).await, [1, 3]);
            assert_eq!(spool.statistics().damaged, 2);
        }
    }

    #[tokio::test]
    async fn one_process_at_a_time_has_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let first = Spool::open(dir.path());
        first.append(&record(1)).await.unwrap();
        let second = Spool::open(dir.path());
        let refused = second.append(&record(2)).await;
        assert!(matches!(refused, Err(Error::Storage(_))), "{refused:?}");
        assert!(second.oldest().await.is_err());
        first.append(&record(3)).await.unwrap();
        drop(first);
        assert_eq!(drain(&second).await, [1, 3]);
        second.append(&record(4)).await.unwrap();
        assert_eq!(drain(&second).await, [4]);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_made_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("missing"));
        let outcome = spool.append(&record(1)).await;
        assert!(matches!(outcome, Err(Error::Storage(_))), "{outcome:?}");
        assert_eq!(spool.statistics().failed, 1);
    }
}
