//! The active file of a series, opened with its index; and closed, by renaming.
//!
//! Owner of the state: the writer thread. Invariants: the log ends with a line break whenever no append is under way;
//! the directory entries of both files are on disk before the first append returns; what is cut off is on disk elsewhere
//! before it is cut.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::durable::sync_directory;

use super::paired::{Failure, Paired};
use super::place::Place;
use super::record::Record;
use super::recovery::{Findings, IndexState, Trust};

/// An open active file.
pub(super) struct Segment {
    paired: Paired<File>,
    sequence: u64,
    begun: SystemTime,
    identity: (u64, u64),
}

/// What the opening found.
pub(super) struct Opened {
    pub(super) segment: Segment,
    /// What was cut off.
    pub(super) torn: Option<Torn>,
    pub(super) index: IndexState,
    /// Bytes that were in the file.
    pub(super) length: u64,
}

/// Bytes that no longer are in the log.
pub(super) struct Torn {
    pub(super) bytes: u64,
    /// Where they are.
    pub(super) path: PathBuf,
}

/// How the name stands to the open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Same file, and as long as we left it.
    Ours,
    /// Same file, of another length: cut (copytruncate) or added to.
    Resized,
    /// Another file, or none.
    Displaced,
}

impl Segment {
    /// Opens or makes the active file, which is to be closed under this number, and its index.
    pub(super) fn open(place: &Place, sequence: u64, trust: Trust) -> io::Result<Opened> {
        make_directory(place.directory())?;
        make_directory(&place.index_directory())?;
        let log = open_for_append(&place.active())?;
        let index = open_for_append(&place.index(sequence))?;
        sync_directory(&place.index_directory())?;
        sync_directory(place.directory())?;
        let findings = Paired::examine(&log, &index, sequence, trust)?;
        let torn = set_aside(&log, &findings, place, sequence)?;
        let metadata = log.metadata()?;
        Ok(Opened {
            segment: Self {
                begun: metadata.created().or_else(|_| metadata.modified())?,
                identity: (metadata.dev(), metadata.ino()),
                paired: Paired::adopt(log, index, sequence, &findings, unix_ms(SystemTime::now()))?,
                sequence,
            },
            torn,
            index: findings.index,
            length: findings.length,
        })
    }

    /// Bytes in the file.
    pub(super) fn length(&self) -> u64 {
        self.paired.length()
    }

    /// When the file was made.
    pub(super) fn begun(&self) -> SystemTime {
        self.begun
    }

    /// The number under which it is closed.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(super) fn paired(&self) -> &Paired<File> {
        &self.paired
    }

    /// Whether the name still leads to this file.
    pub(super) fn standing(&self, place: &Place) -> io::Result<Standing> {
        match std::fs::metadata(place.active()) {
            Ok(metadata) if (metadata.dev(), metadata.ino()) == self.identity => {
                Ok(if metadata.len() == self.length() {
                    Standing::Ours
                } else {
                    Standing::Resized
                })
            }
            Ok(_) => Ok(Standing::Displaced),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Standing::Displaced),
            Err(error) => Err(error),
        }
    }

    /// Writes all slices and syncs. On error the segment must be dropped.
    pub(super) fn append(
        &mut self,
        slices: &mut [IoSlice<'_>],
        records: &[Record],
    ) -> Result<(), Failure> {
        self.paired.append(slices, records)
    }

    /// Puts the index on disk.
    pub(super) fn sync_index(&mut self) -> io::Result<()> {
        self.paired.sync_index()
    }
}

/// Gives the active file its closed name. The next one is made by the next [`Segment::open`].
pub(super) fn close(place: &Place, closed_name: &str) -> io::Result<()> {
    let closed = place.directory().join(closed_name);
    if closed.try_exists()? {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("{closed_name} exists"),
        ));
    }
    std::fs::rename(place.active(), closed)?;
    sync_directory(place.directory())
}

fn open_for_append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// Copies what is about to be cut off to a file of its own.
fn set_aside(
    log: &File,
    findings: &Findings,
    place: &Place,
    sequence: u64,
) -> io::Result<Option<Torn>> {
    let bytes = findings.length.saturating_sub(findings.keep);
    if bytes == 0 {
        return Ok(None);
    }
    let path = place.torn(sequence, findings.keep);
    let mut aside = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)?;
    let mut from = log;
    from.seek(SeekFrom::Start(findings.keep))?;
    io::copy(&mut from.take(bytes), &mut aside)?;
    aside.sync_all()?;
    sync_directory(&place.index_directory())?;
    Ok(Some(Torn { bytes, path }))
}

/// Makes the directory and those above it, for us alone.
pub(super) fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.is_dir();
    let missing: Vec<&Path> = directory.ancestors().take_while(is_missing).collect();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    // What stood before is not ours to open.
    for parent in missing.iter().filter_map(|path| path.parent()) {
        if !parent.as_os_str().is_empty() {
            sync_directory(parent)?;
        }
    }
    Ok(())
}

/// Unix milliseconds.
pub(super) fn unix_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
