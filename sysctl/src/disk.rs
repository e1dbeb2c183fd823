//! Files put in place whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Writes a file beside its place, with exactly this mode, and moves it there. The name of the temporary file is new, so
/// that a link which lies in wait for us is not followed. A link at `path` itself is replaced, not followed.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let parent = path.parent().unwrap_or_else(|| Path::new("/"));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = parent.join(name);
    // Ours of an interrupted run; another's stays in the way of `create_new` only if it comes back.
    let _ = fs::remove_file(&temporary);
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        // The mask must not decide who may read the system's files.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    if let Err(error) = write() {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    sync_dir(parent)
}

/// Removes a file; one that is not there is as good.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(path.parent().unwrap_or_else(|| Path::new("/"))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes the directories above `path` that are missing; gives them, innermost first.
pub(crate) fn make_parents(path: &Path, mode: u32) -> io::Result<Vec<PathBuf>> {
    let missing: Vec<PathBuf> = path
        .ancestors()
        .skip(1)
        .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists())
        .map(Path::to_owned)
        .collect();
    if let Some(parent) = missing.first() {
        DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(parent)?;
    }
    Ok(missing)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    #[test]
    fn files_are_replaced_whole_and_links_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file");
        let made = make_parents(&path, 0o755).unwrap();
        assert_eq!(made, [dir.path().join("a/b"), dir.path().join("a")]);
        assert!(make_parents(&path, 0o755).unwrap().is_empty());
        let target = dir.path().join("target");
        fs::write(&target, "untouched").unwrap();
        let trap = format!("file.{}.new", std::process::id());
        symlink(&target, dir.path().join("a/b").join(trap)).unwrap();
        replace(&path, b"one", 0o600).unwrap();
        replace(&path, b"two", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
        assert_eq!(fs::read(&target).unwrap(), b"untouched");
        assert_eq!(fs::read_dir(dir.path().join("a/b")).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
    }
}
