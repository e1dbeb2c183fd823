//! Where a spool goes that cannot be read: beside it, as `results.spool.damaged`, then `.damaged.1` and so on. The number
//! only grows, so none is overwritten; beyond [`FILES_MAX`] the oldest goes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::durable::sync_directory;

/// Files that are kept.
pub(super) const FILES_MAX: usize = 4;
const SUFFIX: &str = ".damaged";

/// Gives the spool a new name, which is returned.
pub(super) fn rename(spool: &Path) -> io::Result<PathBuf> {
    let directory = spool.parent().unwrap_or(Path::new("."));
    let earlier = earlier(spool, directory)?;
    let aside = next(spool, &earlier);
    std::fs::rename(spool, &aside)?;
    sync_directory(directory)?;
    remove_oldest(spool, &earlier);
    Ok(aside)
}

/// Copies what stands in the spool from `place` on to a file of its own, whose name is returned.
pub(super) fn copy(mut from: &File, place: u64, spool: &Path) -> io::Result<PathBuf> {
    let directory = spool.parent().unwrap_or(Path::new("."));
    let earlier = earlier(spool, directory)?;
    let aside = next(spool, &earlier);
    let mut to = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)?;
    let length = from.metadata()?.len();
    from.seek(SeekFrom::Start(place))?;
    let copied = io::copy(&mut from.take(length.saturating_sub(place)), &mut to)
        .and_then(|_| to.sync_all())
        .and_then(|()| sync_directory(directory));
    if let Err(error) = copied {
        // The spool still has it, and the next try makes it anew.
        let _ = std::fs::remove_file(&aside);
        return Err(error);
    }
    remove_oldest(spool, &earlier);
    Ok(aside)
}

fn named(spool: &Path, number: u64) -> PathBuf {
    let mut name = spool.as_os_str().to_owned();
    name.push(SUFFIX);
    if number > 0 {
        name.push(format!(".{number}"));
    }
    name.into()
}

fn next(spool: &Path, earlier: &[u64]) -> PathBuf {
    let number = earlier.last().map_or(0, |last| last.saturating_add(1));
    named(spool, number)
}

/// Numbers of those that are there, ascending.
fn earlier(spool: &Path, directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.rsplit_once(SUFFIX))
            .map(|(_, number)| number.strip_prefix('.').unwrap_or("0"))
            .and_then(|number| number.parse().ok());
        if let Some(number) = number
            && named(spool, number) == path
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// One was added to these.
fn remove_oldest(spool: &Path, earlier: &[u64]) {
    let count = (earlier.len() + 1).saturating_sub(FILES_MAX);
    for number in earlier.iter().take(count) {
        let path = named(spool, *number);
        match std::fs::remove_file(&path) {
            Ok(()) => tracing::warn!(file = %path.display(), "removed the oldest damaged spool"),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "cannot remove the oldest damaged spool");
            }
        }
    }
}
