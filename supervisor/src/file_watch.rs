//! Whether files have changed on disk. Pure, but for [`marks`].
//!
//! A change is taken when it has stood still from one look to the next: who replaces a certificate and then its key is
//! given the time to do both.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What tells one content of a file from another without reading it, and who may read it from who may not; `None`: it is
/// not there.
type Mark = Option<Seen>;

/// Of a file that is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// Seconds and nanoseconds. A change of its owner or its mode counts.
    changed: (i64, i64),
}

/// Of all files.
pub(crate) type Marks = Vec<(PathBuf, Mark)>;

/// Asks the file system. Links are followed, as reading does.
pub(crate) fn marks(paths: &[PathBuf]) -> Marks {
    let mark = |path: &PathBuf| {
        let of = fs::metadata(path).ok()?;
        Some(Seen {
            device: of.dev(),
            inode: of.ino(),
            size: of.size(),
            modified: (of.mtime(), of.mtime_nsec()),
            changed: (of.ctime(), of.ctime_nsec()),
        })
    };
    paths
        .iter()
        .map(|path| (path.clone(), mark(path)))
        .collect()
}

/// Remembers what was read, and what was seen last.
#[derive(Debug, Default)]
pub(crate) struct FileWatch {
    read: Marks,
    seen: Marks,
}

impl FileWatch {
    /// The files are read now. `marks` are of just before.
    pub(crate) fn note_read(&mut self, marks: Marks) {
        self.seen.clone_from(&marks);
        self.read = marks;
    }

    /// Files whose marks are not those of the files that were read.
    pub(crate) fn differing(&self, marks: &Marks) -> Vec<PathBuf> {
        let differing = marks.iter().filter(|mark| !self.read.contains(mark));
        differing.map(|(path, _)| path.clone()).collect()
    }

    /// Whether files are to be read again. It says so once for each change.
    pub(crate) fn look(&mut self, marks: Marks) -> bool {
        let stands_still = marks == self.seen;
        self.seen = marks;
        if !stands_still || self.seen == self.read {
            return false;
        }
        self.read.clone_from(&self.seen);
        true
    }

    /// The files that are watched.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.read.iter().map(|(path, _)| path.as_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sizes: [u64; 2]) -> Marks {
        let mark = |size| {
            Some(Seen {
                size,
                ..Seen::default()
            })
        };
        let [cert, key] = sizes.map(mark);
        vec![("cert".into(), cert), ("key".into(), key)]
    }

    #[test]
    fn a_change_is_taken_once_and_when_it_stands_still() {
        let mut watch = FileWatch::default();
        watch.note_read(of([1, 1]));
        assert!(!watch.look(of([1, 1])));
        for half in [of([2, 1]), of([2, 2])] {
            assert!(!watch.look(half), "it has only just come");
        }
        assert!(watch.look(of([2, 2])));
        assert!(!watch.look(of([2, 2])));
        // Back to the former file is a change as well.
        assert!(!watch.look(of([1, 1])));
        assert!(watch.look(of([1, 1])));
    }

    #[test]
    fn a_file_that_is_replaced_has_another_mark() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cert.pem");
        let paths = [path.clone()];
        let none = marks(&paths);
        fs::write(&path, "one").unwrap();
        let first = marks(&paths);
        let other = dir.path().join("new");
        fs::write(&other, "two").unwrap();
        fs::rename(&other, &path).unwrap();
        let second = marks(&paths);
        assert!(none != first && first != second);
        assert_eq!(second, marks(&paths));
    }

    #[test]
    fn a_file_that_others_may_read_now_has_another_mark() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        fs::write(&path, "key").unwrap();
        let paths = [path.clone()];
        let first = marks(&paths);
        // The file system's clock has a grain: at the latest at its next tick the time is another.
        while marks(&paths) == first {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }
    }
}
