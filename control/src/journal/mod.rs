//! The journal of log lines: what is on disk here is what agents may forget.
//!
//! One log type is one series of JSON-lines files in one directory. Lines are appended to a file with a fixed name,
//! such as `osquery_result.log`; that is what `tail -F` and shippers follow. A segment is closed by renaming it to
//! `osquery_result-20261121T101500Z-000001.log` (UTC, then a number that only grows) and beginning a new file under
//! the fixed name. A shipper that follows inodes loses nothing by that; one that is given a pattern takes
//! `osquery_result*.log`, which leaves out the compressed ones (`.log.gz`, `.log.zst`). Names sort by age.
//! Renaming or removing the active file from outside (logrotate) is noticed before the next write, and a new file is
//! begun.
//!
//! Owner of the state: one writer thread for each series owns its file, holds the lock `.osquery_result.lock` beside it,
//! and is the only one that writes, renames or cuts. One thread for all series compresses and removes closed segments.
//!
//! Beside the lines stands an index with a checksum for each batch (`record.rs`), in a hidden directory. It tells what
//! a crash left unfinished, lets `journal verify` find damage, and brings back what `repeats` knew.
//!
//! Invariants: an append is acknowledged only after `fdatasync` of all its lines. Appends that wait together share
//! one write and one sync; a lone one waits for nobody. After a failure the file is cut back to its length before the
//! write, everybody in the group is told, and the journal is unhealthy until something can be written again. A file
//! whose sync failed is closed, and the group goes to a new one. What a crash left unfinished is put aside when the file is
//! opened, counted and told. Equal batches of one host within a minute (status logs: 16 s) are stored once. Waiting appends are bounded in number
//! and bytes, and room is left on the disk for what else lives there.

mod closed;
mod medium;
mod opening;
mod paired;
mod place;
mod record;
mod recovery;
mod refill;
mod repeats;
mod room;
mod segment;
mod series;
#[cfg(test)]
mod tape;
mod verify;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use fleet_protocol::agent::{Log, LogType};
use fleet_protocol::config::Filesystem;
use fleet_protocol::stats::Histogram;

use place::Place;
use series::Series;
pub(crate) use verify::verify;
pub use verify::{DamagedRange, JournalReport, SegmentReport};

/// Closed segments are looked at this often, and whenever one is added.
const ARCHIVE_INTERVAL: Duration = Duration::from_secs(600);

/// Why lines were not stored. None of them may be taken for success.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Error {
    /// Too much waits already.
    #[error("the journal's queue is full")]
    Busy,
    /// The journal is shutting down.
    #[error("the journal is closed")]
    Closed,
    /// The file system refused; nothing of the append counts as stored.
    #[error("{0}")]
    Storage(Arc<str>),
}

/// What became of a log.
pub(crate) type Fate = Result<(), Error>;

/// Counters of one series since start, and its state now.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogStatistics {
    /// Appends acknowledged.
    pub(crate) appends: u64,
    /// Lines acknowledged.
    pub(crate) lines: u64,
    /// Bytes acknowledged.
    pub(crate) bytes: u64,
    /// Syncs, each for one group of appends.
    pub(crate) syncs: u64,
    /// Appends refused because the file system failed.
    pub(crate) failures: u64,
    /// Times that an unfinished end was cut off when a file was opened.
    pub(crate) torn_lines: u64,
    /// Bytes that were cut off, and put aside.
    pub(crate) torn_bytes: u64,
    /// Times that an index was unreadable or knew more than the file had.
    pub(crate) index_faults: u64,
    /// Files that were closed because a sync had failed.
    pub(crate) retired: u64,
    /// Batches that came again and were not stored again; acknowledged all the same.
    pub(crate) duplicate_batches: u64,
    /// Lines in them.
    pub(crate) duplicate_lines: u64,
    /// Stored batches that are remembered now.
    pub(crate) remembered_batches: u64,
    /// Segments closed by size or age.
    pub(crate) rotations: u64,
    /// Times that the active file was renamed, removed or cut from outside.
    pub(crate) displaced: u64,
    /// From arrival to acknowledgement, microseconds.
    pub(crate) append_us: Histogram,
    /// One write and one sync, microseconds.
    pub(crate) sync_us: Histogram,
    /// Bytes that wait for the writer now.
    pub(crate) waiting_bytes: u64,
    /// Bytes in the active segment.
    pub(crate) segment_bytes: u64,
    /// The active segment.
    pub(crate) segment: String,
    /// Whether the last write, or the last trial after a failure, succeeded.
    pub(crate) is_healthy: bool,
    /// Why not; empty when healthy.
    pub(crate) detail: String,
}

/// All series. Shared by `Arc`.
pub(crate) struct Journal {
    /// One, or one for each log type.
    series: Vec<Series>,
    archive_wakes: SyncSender<()>,
    archive_stop: Arc<AtomicBool>,
    archive: Mutex<Option<JoinHandle<()>>>,
}

impl Journal {
    /// Starts the threads. A directory that cannot be written makes the journal unhealthy, not absent, so that agents
    /// get their configuration all the same; the only error is that of starting a thread.
    pub(crate) fn open(options: &Filesystem, state_dir: &Path) -> std::io::Result<Arc<Self>> {
        let places = places(options, state_dir);
        let (archive_wakes, woken) = sync_channel(1);
        let archive_stop = Arc::new(AtomicBool::new(false));
        let mut series = Vec::with_capacity(places.len());
        for place in &places {
            series.push(Series::start(
                place.clone(),
                options,
                archive_wakes.clone(),
            )?);
        }
        let archive = {
            let (options, stop) = (options.clone(), Arc::clone(&archive_stop));
            std::thread::Builder::new()
                .name("journal-archive".into())
                .spawn(move || archive_loop(&woken, &places, &options, &stop))?
        };
        Ok(Arc::new(Self {
            series,
            archive_wakes,
            archive_stop,
            archive: Mutex::new(Some(archive)),
        }))
    }

    /// Stores lines of one type; one fate for each log, in order. `Ok` only once the lines are on disk, from this call or
    /// from an equal log a moment ago. Dropping the future does not take them back.
    pub(crate) async fn append(&self, log_type: LogType, logs: Vec<Log>) -> Vec<Fate> {
        match self.series(log_type) {
            Some(series) => series.append(logs).await,
            None => logs.iter().map(|_| Err(Error::Closed)).collect(),
        }
    }

    /// Counters of a log type's series.
    pub(crate) fn statistics(&self, log_type: LogType) -> LogStatistics {
        self.series(log_type)
            .map(Series::statistics)
            .unwrap_or_default()
    }

    /// The reason when some series cannot store.
    pub(crate) fn fault(&self) -> Option<String> {
        LogType::ALL.into_iter().find_map(|log_type| {
            let statistics = self.statistics(log_type);
            (!statistics.is_healthy).then(|| {
                format!(
                    "{} log {}: {}",
                    log_type.label(),
                    statistics.segment,
                    statistics.detail
                )
            })
        })
    }

    /// Takes nothing new, stores what waits, ends the threads. Compression under way is given up.
    pub(crate) async fn finish(self: Arc<Self>) {
        let ended = tokio::task::spawn_blocking(move || self.finish_blocking()).await;
        if let Err(error) = ended {
            tracing::error!(%error, "journal did not end in order");
        }
    }

    fn finish_blocking(&self) {
        self.archive_stop.store(true, Ordering::Relaxed);
        // Full means that a wake is pending already, and the flag is looked at after each.
        let _ = self.archive_wakes.try_send(());
        for series in &self.series {
            series.finish_blocking();
        }
        join(&self.archive);
    }

    fn series(&self, log_type: LogType) -> Option<&Series> {
        // With one path for both types there is one series for both.
        let index = match log_type {
            LogType::Result => 0,
            LogType::Status => self.series.len().saturating_sub(1),
        };
        self.series.get(index)
    }
}

/// Of all series: one for each log type, or one for both.
fn places(options: &Filesystem, state_dir: &Path) -> Vec<Place> {
    let mut places = vec![
        Place::new(&options.result_log_file, state_dir, "osquery_result"),
        Place::new(&options.status_log_file, state_dir, "osquery_status"),
    ];
    places.dedup();
    places
}

fn join(thread: &Mutex<Option<JoinHandle<()>>>) {
    let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(thread) = thread
        && thread.join().is_err()
    {
        tracing::error!("a journal thread panicked");
    }
}

fn archive_loop(woken: &Receiver<()>, places: &[Place], options: &Filesystem, stop: &AtomicBool) {
    loop {
        for place in places {
            closed::tidy(place, options, SystemTime::now(), stop);
        }
        if stop.load(Ordering::Relaxed)
            || woken.recv_timeout(ARCHIVE_INTERVAL) == Err(RecvTimeoutError::Disconnected)
            || stop.load(Ordering::Relaxed)
        {
            return;
        }
    }
}

/// Where the segments of results and of status logs are written.
pub(crate) fn directories(options: &Filesystem, state_dir: &Path) -> Vec<PathBuf> {
    let places = places(options, state_dir);
    let directories = places.iter().map(Place::directory);
    directories.map(Path::to_owned).collect()
}

#[cfg(test)]
mod bench_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod twice_tests;
#[cfg(test)]
mod verify_tests;
