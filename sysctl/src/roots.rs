//! Where files and running values are.

use std::path::{Path, PathBuf};

/// Two roots, since a package or a test writes its files below a directory while there is one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// Above `etc`, `usr`, `var`.
    pub files: PathBuf,
    /// Above `proc` and `sys`.
    pub running: PathBuf,
}

impl Roots {
    /// This machine.
    pub fn system() -> Self {
        Self::under(Path::new("/"))
    }

    /// Files below `dir`; running values, too, if it has a `proc/sys` of its own, else those of this machine.
    pub fn under(dir: &Path) -> Self {
        let running = if dir.join("proc/sys").is_dir() {
            dir
        } else {
            Path::new("/")
        };
        Self {
            files: dir.to_owned(),
            running: running.to_owned(),
        }
    }

    /// Whether files go where this machine reads them.
    pub fn is_system(&self) -> bool {
        self.files == Path::new("/")
    }

    /// The file of a key such as `net.core.somaxconn`.
    pub fn sysctl(&self, key: &str) -> PathBuf {
        self.running.join("proc/sys").join(key.replace('.', "/"))
    }

    /// `path` below the root of files.
    pub fn file(&self, path: &Path) -> PathBuf {
        self.files.join(path.strip_prefix("/").unwrap_or(path))
    }
}
