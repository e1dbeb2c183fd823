//! The way to one writer: what callers bring, what they are told.
//!
//! Owner of the state: this type, for the queue and for the memory of what was stored a moment ago. Invariant: a batch
//! that is under way is ended by the writer, or here when it did not get into the queue; never by a caller that went away.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use fleet_protocol::agent::Log;
use fleet_protocol::config::Filesystem;
use tokio::sync::oneshot;

use super::place::Place;
use super::record::fingerprint;
use super::repeats::{Key, Repeats, Verdict};
use super::writer::Writer;
use super::{Error, Fate, LogStatistics, join};

/// Appends that wait for one writer; beyond, an append is refused.
const WAITING_APPENDS_MAX: usize = 4096;
/// Bytes that wait for one writer; beyond, an append is refused.
const WAITING_BYTES_MAX: u64 = 256 << 20;
const DEAD: &str = "the writer of the log panicked; restart the gateway's control process";

/// Lines of one host, each ended by a line break; never empty.
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) lines: Bytes,
    pub(super) line_count: u32,
}

/// Entries of one caller, and where to tell their fate.
pub(super) struct Append {
    pub(super) entries: Vec<Entry>,
    pub(super) bytes: u64,
    pub(super) arrived: Instant,
    pub(super) ack: oneshot::Sender<Fate>,
}

pub(super) enum Message {
    Append(Append),
    Stop,
}

/// What a series' writer and its callers share.
pub(super) struct Shared {
    pub(super) statistics: Mutex<LogStatistics>,
    repeats: Mutex<Repeats<oneshot::Sender<Fate>>>,
    pub(super) waiting_bytes: AtomicU64,
    is_closed: AtomicBool,
    /// The writer panicked.
    is_dead: AtomicBool,
}

impl Shared {
    pub(super) fn new(place: &Place) -> Self {
        Self {
            statistics: Mutex::new(LogStatistics {
                is_healthy: true,
                segment: place.active().display().to_string(),
                ..LogStatistics::default()
            }),
            repeats: Mutex::default(),
            waiting_bytes: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
            is_dead: AtomicBool::new(false),
        }
    }

    /// Why nobody answered an append. Only a journal that was told to end may send agents elsewhere.
    fn silence(&self) -> Error {
        if self.is_closed.load(Ordering::Relaxed) {
            Error::Closed
        } else {
            Error::Storage(DEAD.into())
        }
    }

    /// Nobody writes any more: shows it, and tells everybody who waits. The queue is gone by now.
    fn die(&self) {
        self.is_dead.store(true, Ordering::Relaxed);
        let segment = {
            let mut statistics = self.statistics();
            statistics.is_healthy = false;
            DEAD.clone_into(&mut statistics.detail);
            statistics.segment.clone()
        };
        tracing::error!(
            file = segment,
            "cannot store log lines: {DEAD}; agents keep them and try again"
        );
        let abandoned = self.repeats().abandon();
        for waiter in abandoned {
            // A caller whose deadline passed is gone.
            let _ = waiter.send(Err(self.silence()));
        }
    }

    /// A panic elsewhere leaves counters, which are always consistent enough to go on with.
    pub(super) fn statistics(&self) -> MutexGuard<'_, LogStatistics> {
        self.statistics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn repeats(&self) -> MutexGuard<'_, Repeats<oneshot::Sender<Fate>>> {
        self.repeats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends entries that were under way and tells who waits for equal ones.
    pub(super) fn end<'a>(&self, entries: impl IntoIterator<Item = &'a Entry>, fate: &Fate) {
        let now = Instant::now();
        let mut waiters = Vec::new();
        {
            let mut repeats = self.repeats();
            for entry in entries {
                waiters.extend(repeats.finish(entry.key, fate.is_ok(), now));
            }
        }
        for waiter in waiters {
            // A caller whose deadline passed is gone.
            let _ = waiter.send(fate.clone());
        }
    }
}

/// What a writer thread takes from. Its end by a panic ends the series: a writer that starts again in the middle of what
/// made it panic cannot be trusted with files.
struct Queue {
    messages: Option<Receiver<Message>>,
    shared: Arc<Shared>,
}

impl Drop for Queue {
    fn drop(&mut self) {
        // What waits in it is answered by the loss of its acknowledgement; what comes finds it gone, and ends its own.
        self.messages = None;
        if std::thread::panicking() {
            self.shared.die();
        }
    }
}

/// One writer thread and the way to it.
pub(super) struct Series {
    shared: Arc<Shared>,
    queue: SyncSender<Message>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// How the fate of one log is learnt.
enum Outlook {
    Known(Fate),
    /// With the others of this call.
    Own,
    /// With an equal one of another call.
    Equal(oneshot::Receiver<Fate>),
}

impl Series {
    pub(super) fn start(
        place: Place,
        options: &Filesystem,
        archive_wakes: SyncSender<()>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::new(&place));
        let name = format!("journal-{}", place.stem());
        let writer = Writer::new(place, options, Arc::clone(&shared), archive_wakes);
        Self::spawn(&name, shared, move |messages| writer.run(messages))
    }

    pub(super) fn spawn(
        name: &str,
        shared: Arc<Shared>,
        run: impl FnOnce(&Receiver<Message>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (queue, messages) = sync_channel(WAITING_APPENDS_MAX);
        let taken = Queue {
            messages: Some(messages),
            shared: Arc::clone(&shared),
        };
        let thread = std::thread::Builder::new()
            // The kernel keeps 15 bytes of it.
            .name(name.replace("osquery_", ""))
            .spawn(move || {
                if let Some(messages) = &taken.messages {
                    run(messages);
                }
            })?;
        Ok(Self {
            shared,
            queue,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// One fate for each log.
    pub(super) async fn append(&self, logs: Vec<Log>) -> Vec<Fate> {
        if self.shared.is_closed.load(Ordering::Relaxed) {
            return logs.iter().map(|_| Err(Error::Closed)).collect();
        }
        if self.shared.is_dead.load(Ordering::Relaxed) {
            return logs.iter().map(|_| Err(self.shared.silence())).collect();
        }
        let arrived = Instant::now();
        let line_counts: Vec<u64> = logs.iter().map(|log| log.line_count.into()).collect();
        let (entries, outlooks) = self.tell_apart(logs, arrived);
        let own = if entries.is_empty() {
            Ok(())
        } else {
            self.store(entries, arrived).await
        };
        let mut fates = Vec::with_capacity(outlooks.len());
        for (outlook, line_count) in outlooks.into_iter().zip(line_counts) {
            fates.push(match outlook {
                Outlook::Known(fate) => fate,
                Outlook::Own => own.clone(),
                Outlook::Equal(told) => {
                    let fate = told.await.unwrap_or_else(|_| Err(self.shared.silence()));
                    if fate.is_ok() {
                        self.count_duplicate(line_count);
                    }
                    fate
                }
            });
        }
        fates
    }

    /// Which logs must be stored, and how each one's fate is learnt.
    fn tell_apart(&self, logs: Vec<Log>, now: Instant) -> (Vec<Entry>, Vec<Outlook>) {
        let mut candidates = Vec::with_capacity(logs.len());
        for log in logs {
            let lines = with_line_break(log.lines);
            let key = Key {
                host: log.host,
                log_type: log.log_type,
                fingerprint: fingerprint(&lines),
            };
            candidates.push(Entry {
                key,
                lines,
                line_count: log.line_count,
            });
        }
        let mut entries = Vec::with_capacity(candidates.len());
        let mut outlooks = Vec::with_capacity(candidates.len());
        let mut repeats = self.shared.repeats();
        for entry in candidates {
            if entry.lines.is_empty() {
                outlooks.push(Outlook::Known(Ok(())));
                continue;
            }
            match repeats.begin(entry.key, now) {
                Verdict::Store => {
                    entries.push(entry);
                    outlooks.push(Outlook::Own);
                }
                Verdict::Wait => {
                    let (teller, told) = oneshot::channel();
                    repeats.wait(&entry.key, teller);
                    outlooks.push(Outlook::Equal(told));
                }
                Verdict::Stored => {
                    self.count_duplicate(entry.line_count.into());
                    outlooks.push(Outlook::Known(Ok(())));
                }
            }
        }
        (entries, outlooks)
    }

    async fn store(&self, entries: Vec<Entry>, arrived: Instant) -> Fate {
        let bytes = entries.iter().map(|entry| entry.lines.len() as u64).sum();
        let waiting = self
            .shared
            .waiting_bytes
            .fetch_add(bytes, Ordering::Relaxed);
        let (ack, acked) = oneshot::channel();
        let append = Append {
            entries,
            bytes,
            arrived,
            ack,
        };
        let refused = if waiting + bytes > WAITING_BYTES_MAX && waiting > 0 {
            Some((append, Error::Busy))
        } else {
            match self.queue.try_send(Message::Append(append)) {
                Ok(())
                | Err(
                    TrySendError::Full(Message::Stop) | TrySendError::Disconnected(Message::Stop),
                ) => None,
                Err(TrySendError::Full(Message::Append(append))) => Some((append, Error::Busy)),
                Err(TrySendError::Disconnected(Message::Append(append))) => {
                    Some((append, self.shared.silence()))
                }
            }
        };
        if let Some((append, error)) = refused {
            self.shared
                .waiting_bytes
                .fetch_sub(bytes, Ordering::Relaxed);
            let fate = Err(error);
            self.shared.end(&append.entries, &fate);
            return fate;
        }
        acked.await.unwrap_or_else(|_| Err(self.shared.silence()))
    }

    fn count_duplicate(&self, line_count: u64) {
        let mut statistics = self.shared.statistics();
        statistics.duplicate_batches += 1;
        statistics.duplicate_lines += line_count;
    }

    pub(super) fn statistics(&self) -> LogStatistics {
        let remembered = self.shared.repeats().remembered();
        // What a dead writer took with it was answered.
        let waiting_bytes = if self.shared.is_dead.load(Ordering::Relaxed) {
            0
        } else {
            self.shared.waiting_bytes.load(Ordering::Relaxed)
        };
        LogStatistics {
            waiting_bytes,
            remembered_batches: remembered as u64,
            ..self.shared.statistics().clone()
        }
    }

    /// Takes nothing new, stores what waits, ends the thread.
    pub(super) fn finish_blocking(&self) {
        self.shared.is_closed.store(true, Ordering::Relaxed);
        // A writer that is gone has nothing to stop.
        let _ = self.queue.send(Message::Stop);
        join(&self.thread);
    }
}

/// Workers end each line; a worker of another build may not.
fn with_line_break(lines: Bytes) -> Bytes {
    match lines.last() {
        None | Some(b'\n') => lines,
        Some(_) => {
            let mut ended = BytesMut::with_capacity(lines.len() + 1);
            ended.extend_from_slice(&lines);
            ended.extend_from_slice(b"\n");
            ended.freeze()
        }
    }
}
