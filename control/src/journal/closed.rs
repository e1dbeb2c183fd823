//! Closed segments: compressed and removed in the background.
//!
//! Owner of the state: the archive thread; the directory itself is the only record. Invariant: at every moment each
//! segment is there whole, plain or packed; the plain one goes only after the packed one is on disk under its name.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use fleet_protocol::config::{Filesystem, LogCompression};

use crate::durable::sync_directory;

use super::place::{ClosedName, Place, parse_index, parse_torn};

const CHUNK_BYTES: usize = 128 << 10;
const ZSTD_LEVEL: i32 = 3;
const TEMPORARY_SUFFIX: &str = ".packing";

/// A closed segment in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) name: ClosedName,
    pub(super) path: PathBuf,
}

/// The number of the active segment: above all closed ones, also above those that somebody removed but whose index is
/// there.
pub(super) fn next_sequence(place: &Place) -> io::Result<u64> {
    let of_index = beside(place)?.iter().map(|(sequence, _)| *sequence).max();
    let last_closed = list(place)?.last().map_or(0, |closed| closed.name.sequence);
    Ok((last_closed + 1).max(of_index.unwrap_or(0)))
}

/// Indexes and what was cut off, by the number of their segment.
fn beside(place: &Place) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(place.index_directory())? {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(name) = name.to_str()
            && let Some(sequence) = parse_index(name).or_else(|| parse_torn(name))
        {
            all.push((sequence, entry.path()));
        }
    }
    Ok(all)
}

/// Removes what stands beside segments that are gone. `beside` was listed before the segments, so that none of those that
/// were closed meanwhile is missed; the highest number is the active segment's.
fn remove_strays(beside: Vec<(u64, PathBuf)>, kept: &[Closed]) {
    let active = beside.iter().map(|(sequence, _)| *sequence).max();
    for (sequence, path) in beside {
        let is_kept = kept.iter().any(|closed| closed.name.sequence == sequence);
        if !is_kept && Some(sequence) != active {
            // Only wastes room; the next round tries again.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes what is too old or too much, then packs what is not packed. Problems are logged, and met again next time.
pub(super) fn tidy(place: &Place, options: &Filesystem, now: SystemTime, stop: &AtomicBool) {
    let beside = beside(place).unwrap_or_default();
    let closed = match list(place) {
        Ok(closed) => closed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            tracing::warn!(directory = %place.directory().display(), %error, "cannot list closed log segments");
            return;
        }
    };
    remove_temporaries(place);
    let age_max =
        (options.max_age > 0).then(|| Duration::from_secs(u64::from(options.max_age) * 24 * 3600));
    let segments_max = (options.max_backups > 0).then_some(options.max_backups as usize);
    let (expired, kept) = split_expired(closed, now, age_max, segments_max);
    for closed in expired {
        match std::fs::remove_file(&closed.path) {
            Ok(()) => tracing::info!(file = %closed.path.display(), "removed an old log segment"),
            Err(error) => {
                tracing::warn!(file = %closed.path.display(), %error, "cannot remove an old log segment");
            }
        }
    }
    remove_strays(beside, &kept);
    if options.enable_log_compression == LogCompression::None {
        return;
    }
    for closed in kept {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if closed.name.packing != LogCompression::None {
            continue;
        }
        if let Err(error) = pack(&closed, place, options.enable_log_compression, stop)
            && !stop.load(Ordering::Relaxed)
        {
            tracing::warn!(file = %closed.path.display(), %error, "cannot compress a log segment");
        }
    }
}

/// Sorted by sequence.
pub(super) fn list(place: &Place) -> io::Result<Vec<Closed>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(place.directory())? {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(name) = name.to_str().and_then(|name| place.parse_closed(name)) {
            all.push(Closed {
                name,
                path: entry.path(),
            });
        }
    }
    all.sort_by_key(|closed| closed.name.sequence);
    Ok(all)
}

/// Those to remove and those to keep. `all` is sorted by sequence; both forms of one segment count once.
fn split_expired(
    all: Vec<Closed>,
    now: SystemTime,
    age_max: Option<Duration>,
    segments_max: Option<usize>,
) -> (Vec<Closed>, Vec<Closed>) {
    let mut sequences: Vec<u64> = all.iter().map(|closed| closed.name.sequence).collect();
    sequences.dedup();
    let first_kept = segments_max
        .and_then(|segments_max| sequences.len().checked_sub(segments_max))
        .and_then(|index| sequences.get(index).copied());
    all.into_iter().partition(|closed| {
        let age = now.duration_since(closed.name.at).unwrap_or_default();
        age_max.is_some_and(|age_max| age > age_max)
            || first_kept.is_some_and(|first| closed.name.sequence < first)
    })
}

fn remove_temporaries(place: &Place) {
    let Ok(entries) = std::fs::read_dir(place.directory()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| {
            name.strip_prefix('.')
                .and_then(|name| name.strip_suffix(TEMPORARY_SUFFIX))
                .is_some_and(|name| place.parse_closed(name).is_some())
        });
        if is_ours {
            // Only wastes room; the next round tries again.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn pack(
    closed: &Closed,
    place: &Place,
    packing: LogCompression,
    stop: &AtomicBool,
) -> io::Result<()> {
    let Some(name) = closed.path.file_name().and_then(|name| name.to_str()) else {
        return Ok(());
    };
    let packed_name = match packing {
        LogCompression::None => return Ok(()),
        LogCompression::Gzip => format!("{name}.gz"),
        LogCompression::Zstd => format!("{name}.zst"),
    };
    let packed = place.directory().join(&packed_name);
    // There already: a crash came between the rename and the removal.
    if !packed.try_exists()? {
        let temporary = place
            .directory()
            .join(format!(".{packed_name}{TEMPORARY_SUFFIX}"));
        let source = File::open(&closed.path)?;
        let target = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        let target = match packing {
            LogCompression::None => target,
            LogCompression::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(target, flate2::Compression::default());
                copy(source, &mut encoder, stop)?;
                encoder.finish()?
            }
            LogCompression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(target, ZSTD_LEVEL)?;
                copy(source, &mut encoder, stop)?;
                encoder.finish()?
            }
        };
        target.sync_all()?;
        std::fs::rename(&temporary, &packed)?;
        sync_directory(place.directory())?;
    }
    std::fs::remove_file(&closed.path)?;
    sync_directory(place.directory())
}

fn copy(mut from: impl Read, to: &mut impl Write, stop: &AtomicBool) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(io::Error::new(
                io::ErrorKind::Interrupted,
                "given up, the process ends",
            ));
        }
        let count = from.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(chunk.get(..count).unwrap_or_default())?;
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn closed(sequence: u64, packing: LogCompression) -> Closed {
        Closed {
            name: ClosedName {
                at: UNIX_EPOCH + Duration::from_secs(sequence * 1000),
                sequence,
                packing,
            },
            path: PathBuf::from(format!("{sequence}")),
        }
    }

    fn sequences(of: &[Closed]) -> Vec<u64> {
        of.iter().map(|closed| closed.name.sequence).collect()
    }

    #[test]
    fn old_and_surplus_segments_expire() {
        let all = || {
            vec![
                closed(1, LogCompression::Gzip),
                closed(2, LogCompression::None),
                closed(2, LogCompression::Gzip),
                closed(3, LogCompression::None),
                closed(4, LogCompression::None),
            ]
        };
        let now = UNIX_EPOCH + Duration::from_secs(5000);
        let (expired, kept) = split_expired(all(), now, None, None);
        assert!(expired.is_empty());
        assert_eq!(kept.len(), 5);
        let (expired, _) = split_expired(all(), now, Some(Duration::from_secs(2500)), None);
        assert_eq!(sequences(&expired), [1, 2, 2]);
        let (expired, kept) = split_expired(all(), now, None, Some(3));
        assert_eq!(sequences(&expired), [1]);
        assert_eq!(sequences(&kept), [2, 2, 3, 4]);
        let (expired, _) = split_expired(all(), now, None, Some(9));
        assert!(expired.is_empty());
    }
}
