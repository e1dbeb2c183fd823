//! The thread that writes one series: gathers what waits, writes and syncs once, acknowledges, rotates.
//!
//! Owner of the state: this thread, for the lock, the open segment and the sequence number.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant, SystemTime};

use fleet_protocol::config::Filesystem;
use hashbrown::HashSet;

use super::paired::Failure;
use super::place::Place;
use super::record::{Kind, Record};
use super::repeats::Key;
use super::segment::{self, Segment, Standing, unix_ms};
use super::series::{Append, Entry, Message, Shared};
use super::{Error, LogStatistics, room};

/// A group takes no more appends beyond this, so that the first of them does not wait for ever.
const GROUP_BYTES_MAX: u64 = 16 << 20;
/// Parts of one group; what the kernel takes in one vectored write.
const GROUP_SLICES_MAX: usize = 1024;
/// While unhealthy and idle, room is looked for this often: behind a load balancer that watches our health, no append
/// might ever come to find out.
const TRIAL_INTERVAL: Duration = Duration::from_secs(2);
const TRIAL_BYTES: usize = 64 << 10;
/// A rotation that failed is tried again after this time.
const ROTATION_RETRY: Duration = Duration::from_secs(30);
/// Records are on disk at the latest this long after their lines.
const INDEX_SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Longest sleep; the age of a segment is looked at after each.
const IDLE_MAX: Duration = Duration::from_secs(10);
const IDLE_MIN: Duration = Duration::from_millis(10);

pub(super) struct Writer {
    pub(super) place: Place,
    /// Size at which a segment is closed.
    bytes_max: Option<u64>,
    /// Age at which a segment is closed.
    age_max: Option<Duration>,
    pub(super) shared: Arc<Shared>,
    archive_wakes: SyncSender<()>,
    pub(super) lock: Option<File>,
    pub(super) segment: Option<Segment>,
    /// Of the active segment.
    pub(super) sequence: Option<u64>,
    /// The active file must not be written again.
    pub(super) is_suspect: bool,
    /// What the last life stored is known.
    pub(super) is_refilled: bool,
    /// Stored by the last life, and under way again before that was known.
    pub(super) stored_before: HashSet<Key>,
    index_synced_at: Instant,
    rotate_not_before: Instant,
}

impl Writer {
    pub(super) fn new(
        place: Place,
        options: &Filesystem,
        shared: Arc<Shared>,
        archive_wakes: SyncSender<()>,
    ) -> Self {
        let rotates = options.enable_log_rotation;
        Self {
            place,
            bytes_max: rotates.then(|| options.max_size.saturating_mul(1 << 20)),
            age_max: (rotates && !options.segment_age.is_zero()).then_some(options.segment_age),
            shared,
            archive_wakes,
            lock: None,
            segment: None,
            sequence: None,
            is_suspect: false,
            is_refilled: false,
            stored_before: HashSet::new(),
            index_synced_at: Instant::now(),
            rotate_not_before: Instant::now(),
        }
    }

    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        if let Err(error) = self.ready_segment() {
            self.set_fault(&error);
        }
        loop {
            match messages.recv_timeout(self.idle_wait()) {
                Ok(Message::Append(first)) => {
                    let is_last = self.take_group(first, messages);
                    self.sync_index_when_due();
                    self.rotate_when_due();
                    if is_last {
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.idle(),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // What came in beside the stop is still stored; later ones find the queue gone.
        while let Ok(message) = messages.try_recv() {
            if let Message::Append(first) = message {
                self.take_group(first, messages);
            }
        }
        self.sync_index();
    }

    /// Stores one append and those that wait behind it; true when told to stop.
    fn take_group(&mut self, first: Append, messages: &Receiver<Message>) -> bool {
        let (mut slices, mut bytes) = (first.entries.len(), first.bytes);
        let mut group = vec![first];
        let mut is_last = false;
        while bytes < GROUP_BYTES_MAX && slices < GROUP_SLICES_MAX {
            match messages.try_recv() {
                Ok(Message::Append(append)) => {
                    slices += append.entries.len();
                    bytes += append.bytes;
                    group.push(append);
                }
                Ok(Message::Stop) => {
                    is_last = true;
                    break;
                }
                Err(_) => break,
            }
        }
        self.commit(group);
        is_last
    }

    fn commit(&mut self, group: Vec<Append>) {
        let begun = Instant::now();
        let result = self.store(&group);
        let ended = Instant::now();
        let sync_us = micros(ended - begun);
        let fate = result
            .as_ref()
            .map(|_| ())
            .map_err(|error| Error::Storage(error.to_string().into()));
        {
            let mut statistics = self.shared.statistics();
            for append in &group {
                statistics
                    .append_us
                    .observe_us(micros(ended - append.arrived));
                if fate.is_ok() {
                    statistics.appends += 1;
                } else {
                    statistics.failures += 1;
                }
            }
            if let Ok(stored) = result {
                statistics.lines += stored.lines;
                statistics.bytes += stored.bytes;
                statistics.syncs += stored.syncs;
                statistics.sync_us.observe_us(sync_us);
                statistics.duplicate_batches += stored.duplicate_batches;
                statistics.duplicate_lines += stored.duplicate_lines;
                statistics.segment_bytes = self.segment.as_ref().map_or(0, Segment::length);
            }
        }
        match result {
            Ok(_) => self.clear_fault(),
            Err(error) => self.set_fault(&error),
        }
        self.shared
            .end(group.iter().flat_map(|append| &append.entries), &fate);
        for append in group {
            self.shared
                .waiting_bytes
                .fetch_sub(append.bytes, Ordering::Relaxed);
            // A caller whose deadline passed is gone; its lines are stored all the same.
            let _ = append.ack.send(fate.clone());
        }
    }

    /// After a sync that failed the group goes once to a new file: the kernel has dropped what it could not write and would
    /// report success for the old one. See [`Failure::is_suspect`].
    fn store(&mut self, group: &[Append]) -> io::Result<Stored> {
        match self.try_store(group) {
            Err(failure) if failure.is_suspect => {
                tracing::warn!(file = %self.place.active().display(), error = %failure.error, "a write was lost; the lines go to a new file");
                self.try_store(group).map_err(|failure| failure.error)
            }
            result => result.map_err(|failure| failure.error),
        }
    }

    fn try_store(&mut self, group: &[Append]) -> Result<Stored, Failure> {
        let sound = |error| Failure {
            error,
            is_suspect: false,
        };
        self.ready_segment().map_err(sound)?;
        let entries = || group.iter().flat_map(|append| &append.entries);
        let mut stored = Stored::default();
        let mut fresh: Vec<&Entry> = Vec::new();
        for entry in entries() {
            if self.stored_before.contains(&entry.key) {
                stored.duplicate_batches += 1;
                stored.duplicate_lines += u64::from(entry.line_count);
            } else {
                stored.bytes += entry.lines.len() as u64;
                stored.lines += u64::from(entry.line_count);
                fresh.push(entry);
            }
        }
        if !fresh.is_empty() {
            room::ensure(self.place.directory(), stored.bytes).map_err(sound)?;
            self.append(&fresh)?;
            stored.syncs = 1;
        }
        for entry in entries() {
            self.stored_before.remove(&entry.key);
        }
        Ok(stored)
    }

    fn append(&mut self, entries: &[&Entry]) -> Result<(), Failure> {
        let Some(segment) = &mut self.segment else {
            return Ok(());
        };
        let group = segment.length();
        let stored_ms = unix_ms(SystemTime::now());
        let mut offset = group;
        let mut slices = Vec::with_capacity(entries.len());
        let mut records = Vec::with_capacity(entries.len());
        for entry in entries {
            slices.push(IoSlice::new(&entry.lines));
            records.push(Record {
                group,
                offset,
                // A request is bounded by the size of a frame.
                length: u32::try_from(entry.lines.len()).unwrap_or(u32::MAX),
                line_count: entry.line_count,
                stored_ms,
                host: entry.key.host,
                fingerprint: entry.key.fingerprint,
                kind: Kind::Batch(entry.key.log_type),
            });
            offset += entry.lines.len() as u64;
        }
        if !segment.paired().is_index_unsynced() {
            self.index_synced_at = Instant::now();
        }
        let result = segment.append(&mut slices, &records);
        if let Err(failure) = &result {
            self.segment = None;
            self.is_suspect |= failure.is_suspect;
        }
        result
    }

    fn sync_index_when_due(&mut self) {
        let is_due = self.segment.as_ref().is_some_and(|segment| {
            let paired = segment.paired();
            paired.must_sync_index()
                || (paired.is_index_unsynced()
                    && self.index_synced_at.elapsed() >= INDEX_SYNC_INTERVAL)
        });
        if is_due {
            self.sync_index();
        }
    }

    /// Nobody waits for it. When it fails, nothing that was acknowledged is lost, but the file is not written again.
    fn sync_index(&mut self) {
        let Some(segment) = &mut self.segment else {
            return;
        };
        if let Err(error) = segment.sync_index() {
            tracing::warn!(file = %self.place.active().display(), %error, "the log's index cannot be synced; the next lines go to a new file");
            self.segment = None;
            self.is_suspect = true;
        }
    }

    fn idle_wait(&self) -> Duration {
        if !self.shared.statistics().is_healthy {
            return TRIAL_INTERVAL;
        }
        let until_sync = self
            .segment
            .as_ref()
            .filter(|segment| segment.paired().is_index_unsynced())
            .map_or(IDLE_MAX, |_| {
                INDEX_SYNC_INTERVAL.saturating_sub(self.index_synced_at.elapsed())
            })
            .max(IDLE_MIN);
        let until_due = self.age_max.and_then(|age_max| {
            let segment = self.segment.as_ref()?;
            (segment.length() > 0).then(|| age_max.saturating_sub(age_of(segment)))
        });
        match until_due {
            // A rotation that failed is not tried in a tight loop.
            Some(wait) => wait
                .max(
                    self.rotate_not_before
                        .saturating_duration_since(Instant::now()),
                )
                .clamp(IDLE_MIN, IDLE_MAX),
            None => IDLE_MAX,
        }
        .min(until_sync)
    }

    fn idle(&mut self) {
        self.sync_index_when_due();
        if self.shared.statistics().is_healthy {
            self.rotate_when_due();
            return;
        }
        match self.try_room() {
            Ok(()) => self.clear_fault(),
            Err(error) => self.set_fault(&error),
        }
    }

    /// Whether lines could be stored, without storing any.
    fn try_room(&mut self) -> io::Result<()> {
        self.ready_segment()?;
        room::ensure(self.place.directory(), TRIAL_BYTES as u64)?;
        let path = self.place.trial();
        let result = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(&[0; TRIAL_BYTES])?;
                file.sync_data()
            });
        // Absent when the open failed; else the next trial truncates it.
        let _ = std::fs::remove_file(&path);
        result
    }

    fn rotate_when_due(&mut self) {
        let Some(segment) = &self.segment else {
            return;
        };
        let is_large = self
            .bytes_max
            .is_some_and(|bytes_max| segment.length() >= bytes_max);
        let is_old = self
            .age_max
            .is_some_and(|age_max| age_of(segment) >= age_max);
        if segment.length() == 0 || !(is_large || is_old) || Instant::now() < self.rotate_not_before
        {
            return;
        }
        if let Err(error) = self.rotate() {
            self.rotate_not_before = Instant::now() + ROTATION_RETRY;
            tracing::warn!(file = %self.place.active().display(), %error, "could not close the log segment; it grows on");
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let Some(segment) = &self.segment else {
            return Ok(());
        };
        if segment.standing(&self.place)? != Standing::Ours {
            // The next append opens what stands there now.
            self.segment = None;
            return Ok(());
        }
        let sequence = segment.sequence();
        self.sync_index();
        if self.segment.is_none() {
            // Closed by the next append.
            return Ok(());
        }
        segment::close(
            &self.place,
            &self.place.closed_name(SystemTime::now(), sequence),
        )?;
        self.sequence = Some(sequence + 1);
        self.segment = None;
        self.shared.statistics().rotations += 1;
        // Full means that a wake is pending already.
        let _ = self.archive_wakes.try_send(());
        // A failure here is found, and told, by the next append.
        if let Err(error) = self.ready_segment() {
            self.set_fault(&error);
        }
        Ok(())
    }

    fn set_fault(&self, error: &io::Error) {
        let mut statistics = self.shared.statistics();
        let was_healthy = std::mem::replace(&mut statistics.is_healthy, false);
        statistics.detail = error.to_string();
        drop(statistics);
        if was_healthy {
            tracing::error!(file = %self.place.active().display(), %error, "cannot store log lines; agents keep them and try again");
        }
    }

    fn clear_fault(&self) {
        let mut statistics = self.shared.statistics();
        let LogStatistics {
            is_healthy, detail, ..
        } = &mut *statistics;
        let was_healthy = std::mem::replace(is_healthy, true);
        detail.clear();
        drop(statistics);
        if !was_healthy {
            tracing::info!(file = %self.place.active().display(), "log lines can be stored again");
        }
    }
}

/// What became of a group.
#[derive(Clone, Copy, Debug, Default)]
struct Stored {
    lines: u64,
    bytes: u64,
    syncs: u64,
    duplicate_batches: u64,
    duplicate_lines: u64,
}

fn age_of(segment: &Segment) -> Duration {
    // A clock that was set back makes a segment young again, never a loop of rotations.
    SystemTime::now()
        .duration_since(segment.begun())
        .unwrap_or_default()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
