//! Names that outlive a power cut: a file's sync keeps what is in it, its directory's keeps that it is there.

use std::fs::File;
use std::io;
use std::path::Path;

/// Makes names in a directory as durable as the files.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
