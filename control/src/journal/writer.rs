//! The thread that writes one series: gathers what waits, writes and syncs once, acknowledges, rotates.
//!
//! Owner of the state: this thread, for the lock, the open segment and the sequence number.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant, SystemTime};

use fleet_protocol::config::Filesystem;

use super::closed;
use super::place::Place;
use super::segment::{Segment, Standing, make_directory};
use super::{Append, Error, LogStatistics, Message, Shared};

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
/// Longest sleep; the age of a segment is looked at after each.
const IDLE_MAX: Duration = Duration::from_secs(10);
const IDLE_MIN: Duration = Duration::from_millis(10);

pub(super) struct Writer {
    place: Place,
    /// Size at which a segment is closed.
    bytes_max: Option<u64>,
    /// Age at which a segment is closed.
    age_max: Option<Duration>,
    shared: Arc<Shared>,
    archive_wakes: SyncSender<()>,
    lock: Option<File>,
    segment: Option<Segment>,
    /// Of the last closed segment.
    sequence: Option<u64>,
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
    }

    /// Stores one append and those that wait behind it; true when told to stop.
    fn take_group(&mut self, first: Append, messages: &Receiver<Message>) -> bool {
        let (mut slices, mut bytes) = (first.lines.len(), first.bytes);
        let mut group = vec![first];
        let mut is_last = false;
        while bytes < GROUP_BYTES_MAX && slices < GROUP_SLICES_MAX {
            match messages.try_recv() {
                Ok(Message::Append(append)) => {
                    slices += append.lines.len();
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
                    statistics.lines += append.line_count;
                } else {
                    statistics.failures += 1;
                }
            }
            if let Ok(bytes) = result {
                statistics.bytes += bytes;
                statistics.syncs += 1;
                statistics.sync_us.observe_us(sync_us);
                statistics.segment_bytes = self.segment.as_ref().map_or(0, Segment::length);
            }
        }
        match result {
            Ok(_) => self.clear_fault(),
            Err(error) => self.set_fault(&error),
        }
        for append in group {
            self.shared
                .waiting_bytes
                .fetch_sub(append.bytes, Ordering::Relaxed);
            // A caller whose deadline passed is gone; its lines are stored all the same.
            let _ = append.ack.send(fate.clone());
        }
    }

    /// Bytes written and synced.
    fn store(&mut self, group: &[Append]) -> io::Result<u64> {
        let mut bytes = 0_u64;
        let mut slices = Vec::with_capacity(group.len() * 2);
        for lines in group.iter().flat_map(|append| &append.lines) {
            bytes += lines.len() as u64;
            slices.push(IoSlice::new(lines));
            if lines.last() != Some(&b'\n') {
                bytes += 1;
                slices.push(IoSlice::new(b"\n"));
            }
        }
        let segment = self.ready_segment()?;
        let result = segment.append(&mut slices, bytes);
        if result.is_err() {
            self.segment = None;
        }
        result.map(|()| bytes)
    }

    /// The open segment that the active name leads to.
    fn ready_segment(&mut self) -> io::Result<&mut Segment> {
        self.ready_lock()?;
        if let Some(segment) = &self.segment {
            let standing = segment.standing(&self.place)?;
            if standing != Standing::Ours {
                self.shared.statistics().displaced += 1;
                tracing::info!(file = %self.place.active().display(), ?standing, "log file was changed from outside; opening it again");
                self.segment = None;
            }
        }
        let segment = match self.segment.take() {
            Some(segment) => segment,
            None => self.open_segment()?,
        };
        Ok(self.segment.insert(segment))
    }

    fn open_segment(&mut self) -> io::Result<Segment> {
        let opened = Segment::open(&self.place)?;
        if self.sequence.is_none() {
            self.sequence = Some(closed::last_sequence(&self.place)?);
        }
        let mut statistics = self.shared.statistics();
        statistics.segment_bytes = opened.segment.length();
        if opened.is_torn {
            statistics.torn_lines += 1;
            tracing::warn!(file = %self.place.active().display(), "cut off a line that was never completed");
        }
        Ok(opened.segment)
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

    fn idle_wait(&self) -> Duration {
        if !self.shared.statistics().is_healthy {
            return TRIAL_INTERVAL;
        }
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
    }

    fn idle(&mut self) {
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
        let sequence = self.sequence.unwrap_or(0) + 1;
        segment.close(
            &self.place,
            &self.place.closed_name(SystemTime::now(), sequence),
        )?;
        self.sequence = Some(sequence);
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

fn age_of(segment: &Segment) -> Duration {
    // A clock that was set back makes a segment young again, never a loop of rotations.
    SystemTime::now()
        .duration_since(segment.begun())
        .unwrap_or_default()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
