//! Files of carves: `ID.part` while blocks come, `ID.tar` or `ID.tar.zst` when all are there. Blocking; knows no store.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::durable::sync_directory;
use crate::model::carve::CarveId;

const PART: &str = "part";
const TAR: &str = "tar";
const TAR_ZSTD: &str = "tar.zst";
/// First bytes of every zstd frame.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

fn path(directory: &Path, id: CarveId, extension: &str) -> PathBuf {
    directory.join(format!("{}.{extension}", id.0))
}

/// The archive, if it is complete.
pub(crate) fn finished(directory: &Path, id: CarveId) -> Option<PathBuf> {
    [TAR, TAR_ZSTD]
        .into_iter()
        .map(|extension| path(directory, id, extension))
        .find(|path| path.is_file())
}

/// What is there of a carve, complete or not.
pub(crate) fn present(directory: &Path, id: CarveId) -> Option<PathBuf> {
    finished(directory, id)
        .or_else(|| Some(path(directory, id, PART)).filter(|path| path.is_file()))
}

/// The bytes from `offset` on, `length` of them or up to the end.
pub(crate) fn read_block(
    directory: &Path,
    id: CarveId,
    offset: u64,
    length: u64,
) -> io::Result<Vec<u8>> {
    let path = present(directory, id).ok_or(io::ErrorKind::NotFound)?;
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut data = Vec::new();
    file.take(length).read_to_end(&mut data)?;
    Ok(data)
}

/// Puts `data` at `offset`, which is where the stored blocks end; what a lost block left behind it is cut off.
/// On return the bytes are on disk.
pub(crate) fn write_block(
    directory: &Path,
    id: CarveId,
    offset: u64,
    data: &[u8],
) -> io::Result<()> {
    make_directory(directory)?;
    let part = path(directory, id, PART);
    // The last block was stored, but its row was not: take the archive back.
    if let Some(finished) = finished(directory, id) {
        std::fs::rename(finished, &part)?;
    }
    let file = OpenOptions::new()
        .write(true)
        .create(offset == 0)
        .mode(0o600)
        .open(&part)?;
    let length = file.metadata()?.len();
    if length < offset {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{} has {length} bytes, not {offset}", part.display()),
        ));
    }
    if length > offset {
        file.set_len(offset)?;
    }
    file.write_all_at(data, offset)?;
    file.sync_data()?;
    if offset == 0 {
        sync_directory(directory)?;
    }
    Ok(())
}

/// Gives a whole archive its name.
pub(crate) fn finish(directory: &Path, id: CarveId) -> io::Result<()> {
    let part = path(directory, id, PART);
    let mut magic = Vec::new();
    File::open(&part)?
        .take(ZSTD_MAGIC.len() as u64)
        .read_to_end(&mut magic)?;
    let extension = if magic == ZSTD_MAGIC { TAR_ZSTD } else { TAR };
    std::fs::rename(&part, path(directory, id, extension))?;
    sync_directory(directory)
}

/// Removes whatever there is of a carve.
pub(crate) fn remove(directory: &Path, id: CarveId) -> io::Result<()> {
    for extension in [PART, TAR, TAR_ZSTD] {
        match std::fs::remove_file(path(directory, id, extension)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Carves of which a file is here that was last written before.
pub(crate) fn ids_older(directory: &Path, before: SystemTime) -> io::Result<BTreeSet<CarveId>> {
    let mut ids = BTreeSet::new();
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ids),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let id = name
            .to_str()
            .and_then(|name| name.split_once('.'))
            .filter(|(_, extension)| [PART, TAR, TAR_ZSTD].contains(extension))
            .and_then(|(id, _)| id.parse().ok());
        if let Some(id) = id
            && entry.metadata()?.modified()? < before
        {
            ids.insert(CarveId(id));
        }
    }
    Ok(ids)
}

/// Room that is left for us on the disk.
pub(crate) fn free_bytes(directory: &Path) -> io::Result<u64> {
    make_directory(directory)?;
    let statistics = nix::sys::statvfs::statvfs(directory)?;
    Ok(statistics
        .blocks_available()
        .saturating_mul(statistics.fragment_size()))
}

fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
}
