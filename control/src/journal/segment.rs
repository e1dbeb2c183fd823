//! The active file of a series, opened: append with one sync, cut back on failure, close by renaming.
//!
//! Owner of the state: the writer thread. Invariants: the file ends with a line break whenever no append is under
//! way; the directory entry is on disk before the first append returns.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::SystemTime;

use super::place::Place;

/// How far back from its end a file is searched for the start of a torn line.
const TORN_LINE_BYTES_MAX: u64 = 64 << 20;
const CHUNK_BYTES: u64 = 64 << 10;

/// An open active file.
pub(super) struct Segment {
    file: File,
    /// Bytes that were acknowledged, or found at the opening.
    length: u64,
    begun: SystemTime,
    identity: (u64, u64),
}

/// What the opening found.
pub(super) struct Opened {
    pub(super) segment: Segment,
    /// A line without an end was cut off.
    pub(super) is_torn: bool,
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
    /// Opens or makes the active file, and cuts off a torn last line.
    pub(super) fn open(place: &Place) -> io::Result<Opened> {
        make_directory(place.directory())?;
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(place.active())?;
        sync_directory(place.directory())?;
        let length = file.metadata()?.len();
        let keep = whole_lines(&file, length)?;
        match keep {
            Some(keep) if keep < length => {
                file.set_len(keep)?;
                file.sync_all()?;
            }
            Some(_) => {}
            // No line can be that long: leave what is there, but let the next line begin on its own.
            None => {
                (&file).write_all(b"\n")?;
                file.sync_all()?;
            }
        }
        let metadata = file.metadata()?;
        Ok(Opened {
            segment: Self {
                length: metadata.len(),
                begun: metadata.created().or_else(|_| metadata.modified())?,
                identity: (metadata.dev(), metadata.ino()),
                file,
            },
            is_torn: keep != Some(length),
        })
    }

    /// Bytes in the file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// When the file was made.
    pub(super) fn begun(&self) -> SystemTime {
        self.begun
    }

    /// Whether the name still leads to this file.
    pub(super) fn standing(&self, place: &Place) -> io::Result<Standing> {
        match std::fs::metadata(place.active()) {
            Ok(metadata) if (metadata.dev(), metadata.ino()) == self.identity => {
                Ok(if metadata.len() == self.length {
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

    /// Writes all slices and syncs. On error nothing of them is meant to stay, and the segment must be dropped: what
    /// the page cache holds after a failed sync is not known.
    pub(super) fn append(&mut self, mut slices: &mut [IoSlice<'_>], bytes: u64) -> io::Result<()> {
        let result = write_all(&self.file, &mut slices).and_then(|()| self.file.sync_data());
        match result {
            Ok(()) => {
                self.length += bytes;
                Ok(())
            }
            Err(error) => {
                if let Err(cut_error) = self.file.set_len(self.length) {
                    tracing::warn!(error = %cut_error, "could not cut the journal back; complete lines may appear twice");
                }
                Err(error)
            }
        }
    }

    /// Gives the file its closed name. The next one is made by the next [`Segment::open`].
    pub(super) fn close(&self, place: &Place, closed_name: &str) -> io::Result<()> {
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
}

fn write_all(mut file: &File, slices: &mut &mut [IoSlice<'_>]) -> io::Result<()> {
    while !slices.is_empty() {
        match file.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(slices, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Bytes up to and with the last line break; `None` when there is none within the bound. Looks only at the tail, so it
/// takes no longer for a long file.
fn whole_lines(file: &File, length: u64) -> io::Result<Option<u64>> {
    let floor = length.saturating_sub(TORN_LINE_BYTES_MAX);
    let mut end = length;
    let mut chunk = Vec::new();
    while end > floor {
        let start = end.saturating_sub(CHUNK_BYTES).max(floor);
        // At most CHUNK_BYTES.
        chunk.resize(usize::try_from(end - start).unwrap_or(0), 0);
        file.read_exact_at(&mut chunk, start)?;
        if let Some(at) = chunk.iter().rposition(|byte| *byte == b'\n') {
            return Ok(Some(start + at as u64 + 1));
        }
        end = start;
    }
    Ok((floor == 0).then_some(0))
}

/// Makes the directory and those above it, for us alone.
pub(super) fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    for parent in directory.ancestors().skip(1).take(3) {
        if !parent.as_os_str().is_empty() {
            sync_directory(parent)?;
        }
    }
    Ok(())
}

/// Makes names in a directory as durable as the files.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
