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
//! Invariants: an append is acknowledged only after `fdatasync` of all its lines. Appends that wait together share
//! one write and one sync; a lone one waits for nobody. After a failure the file is cut back to its length before the
//! write, everybody in the group is told, and the journal is unhealthy until something can be written again. A line
//! without its line break at the end of the file is cut off when the file is opened. Waiting appends are bounded in
//! number and bytes.

mod closed;
mod place;
mod segment;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use fleet_protocol::agent::{Log, LogType};
use fleet_protocol::config::Filesystem;
use fleet_protocol::stats::Histogram;
use tokio::sync::oneshot;

use place::Place;
use writer::Writer;

/// Appends that wait for one writer; beyond, an append is refused.
const WAITING_APPENDS_MAX: usize = 4096;
/// Bytes that wait for one writer; beyond, an append is refused.
const WAITING_BYTES_MAX: u64 = 256 << 20;
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
    /// Lines without an end that were cut off when a file was opened.
    pub(crate) torn_lines: u64,
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

/// Lines of one caller, and where to tell their fate.
struct Append {
    lines: Vec<Bytes>,
    line_count: u64,
    bytes: u64,
    arrived: Instant,
    ack: oneshot::Sender<Result<(), Error>>,
}

enum Message {
    Append(Append),
    Stop,
}

/// What a series' writer and its callers share.
struct Shared {
    statistics: Mutex<LogStatistics>,
    waiting_bytes: AtomicU64,
    is_closed: AtomicBool,
}

impl Shared {
    /// A panic elsewhere leaves counters, which are always consistent enough to go on with.
    fn statistics(&self) -> MutexGuard<'_, LogStatistics> {
        self.statistics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One writer thread and the way to it.
struct Series {
    shared: Arc<Shared>,
    queue: SyncSender<Message>,
    thread: Mutex<Option<JoinHandle<()>>>,
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
        let mut places = vec![
            Place::new(&options.result_log_file, state_dir, "osquery_result"),
            Place::new(&options.status_log_file, state_dir, "osquery_status"),
        ];
        places.dedup();
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

    /// Stores lines of one type. `Ok` only once they are on disk. Dropping the future does not take them back.
    pub(crate) async fn append(&self, log_type: LogType, logs: Vec<Log>) -> Result<(), Error> {
        let series = self.series(log_type).ok_or(Error::Closed)?;
        series.append(logs).await
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
            series.shared.is_closed.store(true, Ordering::Relaxed);
            // A writer that is gone has nothing to stop.
            let _ = series.queue.send(Message::Stop);
            join(&series.thread);
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

fn join(thread: &Mutex<Option<JoinHandle<()>>>) {
    let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(thread) = thread
        && thread.join().is_err()
    {
        tracing::error!("a journal thread panicked");
    }
}

impl Series {
    fn start(
        place: Place,
        options: &Filesystem,
        archive_wakes: SyncSender<()>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            statistics: Mutex::new(LogStatistics {
                is_healthy: true,
                segment: place.active().display().to_string(),
                ..LogStatistics::default()
            }),
            waiting_bytes: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
        });
        let (queue, appends) = sync_channel(WAITING_APPENDS_MAX);
        let name = format!("journal-{}", place.stem());
        let writer = Writer::new(place, options, Arc::clone(&shared), archive_wakes);
        let thread = std::thread::Builder::new()
            // The kernel keeps 15 bytes of it.
            .name(name.replace("osquery_", ""))
            .spawn(move || writer.run(&appends))?;
        Ok(Self {
            shared,
            queue,
            thread: Mutex::new(Some(thread)),
        })
    }

    async fn append(&self, logs: Vec<Log>) -> Result<(), Error> {
        let line_count = logs.iter().map(|log| u64::from(log.line_count)).sum();
        let lines: Vec<Bytes> = logs
            .into_iter()
            .map(|log| log.lines)
            .filter(|lines| !lines.is_empty())
            .collect();
        if lines.is_empty() {
            return Ok(());
        }
        if self.shared.is_closed.load(Ordering::Relaxed) {
            return Err(Error::Closed);
        }
        let bytes = lines.iter().map(|lines| lines.len() as u64).sum::<u64>();
        let waiting = self
            .shared
            .waiting_bytes
            .fetch_add(bytes, Ordering::Relaxed);
        let (ack, acked) = oneshot::channel();
        let append = Append {
            lines,
            line_count,
            bytes,
            arrived: Instant::now(),
            ack,
        };
        let sent = if waiting + bytes > WAITING_BYTES_MAX && waiting > 0 {
            Err(Error::Busy)
        } else {
            self.queue
                .try_send(Message::Append(append))
                .map_err(|error| match error {
                    TrySendError::Full(_) => Error::Busy,
                    TrySendError::Disconnected(_) => Error::Closed,
                })
        };
        if let Err(error) = sent {
            self.shared
                .waiting_bytes
                .fetch_sub(bytes, Ordering::Relaxed);
            return Err(error);
        }
        acked.await.unwrap_or(Err(Error::Closed))
    }

    fn statistics(&self) -> LogStatistics {
        LogStatistics {
            waiting_bytes: self.shared.waiting_bytes.load(Ordering::Relaxed),
            ..self.shared.statistics().clone()
        }
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

#[cfg(test)]
mod tests;
