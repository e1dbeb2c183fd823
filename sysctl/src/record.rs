//! What was there before us, so that it can be put back: `tune.json` in the state directory.
//!
//! Invariants: the first value that is remembered stays until it is restored; nothing is changed that is not remembered
//! on disk first; only keys of the table and the three files are ever restored, and only from a record that nobody but
//! its reader or root can write, since whoever may write it decides what root sets.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::Uid;
use serde::{Deserialize, Serialize};

use crate::render::FILES;
use crate::{disk, probe, settings};

/// Its name in the state directory.
pub const RECORD_FILE: &str = "tune.json";
const VERSION: u32 = 1;

/// The whole record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// Running values, in the order in which they were changed first.
    pub settings: Vec<Former>,
    /// Files, likewise.
    pub files: Vec<FormerFile>,
}

/// A running value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Former {
    /// Such as `net.core.somaxconn`.
    pub key: String,
    /// What it was.
    pub former: String,
    /// What we made of it last.
    pub applied: String,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FormerFile {
    /// One of [`FILES`].
    pub path: String,
    /// What stood there; `None`: no file.
    pub former: Option<Contents>,
    /// Directories that we made for it, innermost first, absolute below the root of files.
    pub made: Vec<PathBuf>,
}

/// A file as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    /// Its text.
    pub text: String,
    /// Its permission bits.
    pub mode: u32,
}

/// Why a record cannot be used or kept.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Reading or writing failed.
    #[error("cannot {0} {path}: {error}", path = .1.display(), error = .2)]
    Io(&'static str, PathBuf, io::Error),
    /// Somebody else could have written it.
    #[error("{path} could have been written by another user, so its values are not restored; its owner must be root or you, and nobody else may write it", path = .0.display())]
    Foreign(PathBuf),
    /// It is no record of ours.
    #[error("{path} is not a record of this program: {1}", path = .0.display())]
    Malformed(PathBuf, String),
}

impl Default for Record {
    fn default() -> Self {
        Self {
            version: VERSION,
            settings: Vec::new(),
            files: Vec::new(),
        }
    }
}

impl Record {
    /// Reads it; an absent one is empty.
    pub fn load(path: &Path) -> Result<Self, RecordError> {
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(RecordError::Io("read", path.to_owned(), error)),
        };
        let is_ours = metadata.uid() == 0 || metadata.uid() == Uid::effective().as_raw();
        if !metadata.is_file() || !is_ours || metadata.mode() & 0o022 != 0 {
            return Err(RecordError::Foreign(path.to_owned()));
        }
        let text = probe::read_text(path)
            .map_err(|error| RecordError::Io("read", path.to_owned(), error))?;
        Self::parse(&text).map_err(|reason| RecordError::Malformed(path.to_owned(), reason))
    }

    /// From JSON; keys and files that are not ours are refused.
    pub fn parse(text: &str) -> Result<Self, String> {
        let record: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if record.version != VERSION {
            return Err(format!("version {}, not {VERSION}", record.version));
        }
        for former in &record.settings {
            let is_known = settings::find(&former.key).is_some_and(settings::Setting::is_sysctl);
            if !is_known {
                return Err(format!("{} is no setting that is changed here", former.key));
            }
        }
        for file in &record.files {
            if !FILES.contains(&file.path.as_str()) {
                return Err(format!("{} is no file that is written here", file.path));
            }
        }
        Ok(record)
    }

    /// Keeps it on disk, for its owner alone; an empty one is no file.
    pub fn save(&self, path: &Path) -> Result<(), RecordError> {
        let trouble = |error| RecordError::Io("write", path.to_owned(), error);
        if self.settings.is_empty() && self.files.is_empty() {
            return disk::remove(path).map_err(trouble);
        }
        let text = serde_json::to_string_pretty(self).map_err(|error| trouble(error.into()))?;
        disk::make_parents(path, 0o700).map_err(trouble)?;
        disk::replace(path, (text + "\n").as_bytes(), 0o600).map_err(trouble)
    }

    /// Remembers a value that is about to be changed; whether it is the first.
    pub fn remember(&mut self, key: &str, former: &str, applied: &str) -> bool {
        if let Some(known) = self.settings.iter_mut().find(|known| known.key == key) {
            known.applied = applied.into();
            return false;
        }
        self.settings.push(Former {
            key: key.into(),
            former: former.into(),
            applied: applied.into(),
        });
        true
    }

    /// Takes back what was said of a value that was not changed after all.
    pub fn put_back(&mut self, key: &str, before: &Self) {
        self.settings.retain(|known| known.key != key);
        let known = before.settings.iter().filter(|known| known.key == key);
        self.settings.extend(known.cloned());
    }

    /// Takes back what was said of a file that was not written after all.
    pub fn forget_file(&mut self, path: &str) {
        self.files.retain(|known| known.path != path);
    }

    /// Remembers a file that is about to be written; the first time counts.
    pub fn remember_file(&mut self, path: &str, former: Option<Contents>) {
        if self.file(path).is_none() {
            self.files.push(FormerFile {
                path: path.into(),
                former,
                made: Vec::new(),
            });
        }
    }

    /// The file as it was, if it was written.
    pub fn file(&self, path: &str) -> Option<&FormerFile> {
        self.files.iter().find(|known| known.path == path)
    }

    /// Adds directories that were made for a file.
    pub fn remember_dirs(&mut self, path: &str, made: Vec<PathBuf>) {
        if let Some(known) = self.files.iter_mut().find(|known| known.path == path) {
            known.made.extend(made);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;
    use crate::render::SYSCTL_FILE;

    #[test]
    fn the_first_value_stays() {
        let mut record = Record::default();
        assert!(record.remember(settings::SOMAXCONN, "128", "4096"));
        assert!(!record.remember(settings::SOMAXCONN, "4096", "16384"));
        assert_eq!(record.settings[0].former, "128");
        assert_eq!(record.settings[0].applied, "16384");
        record.remember_file(SYSCTL_FILE, None);
        let later = Contents {
            text: "x".into(),
            mode: 0o644,
        };
        record.remember_file(SYSCTL_FILE, Some(later));
        assert_eq!(record.file(SYSCTL_FILE).unwrap().former, None);
    }

    #[test]
    fn it_is_private_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state").join(RECORD_FILE);
        let mut record = Record::default();
        assert_eq!(Record::load(&path).unwrap(), record);
        record.remember("net.ipv4.tcp_mem", "1 2 3", "4 5 6");
        record.save(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Record::load(&path).unwrap(), record);
        record.put_back("net.ipv4.tcp_mem", &Record::default());
        record.save(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn what_others_could_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RECORD_FILE);
        let mut record = Record::default();
        record.remember(settings::SOMAXCONN, "1", "2");
        record.save(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(Record::load(&path), Err(RecordError::Foreign(_))));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(Record::load(&link), Err(RecordError::Foreign(_))));
    }

    #[test]
    fn other_keys_and_files_are_refused() {
        let with = |settings: &str, files: &str| {
            Record::parse(&format!(
                r#"{{"version":1,"settings":[{settings}],"files":[{files}]}}"#
            ))
        };
        let good = r#"{"key":"net.core.somaxconn","former":"1","applied":"2"}"#;
        assert!(with(good, "").is_ok());
        for key in [
            "kernel.core_pattern",
            "../../etc/passwd",
            "nofile",
            "transparent_hugepage",
        ] {
            let bad = good.replace("net.core.somaxconn", key);
            assert!(with(&bad, "").is_err(), "{key}");
        }
        assert!(with("", r#"{"path":"/etc/shadow","former":null,"made":[]}"#).is_err());
        assert!(Record::parse(r#"{"version":2,"settings":[],"files":[]}"#).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_a_panic(text in ".*") {
            let _ = Record::parse(&text);
        }
    }
}
