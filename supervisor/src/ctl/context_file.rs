//! The file of contexts on disk: only its owner may read it, and a write replaces all of it or nothing.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::Failure;
use super::contexts::Contexts;

/// Below the home directory, as fleetctl has it.
const PLACE: &str = ".fleet/config";

/// Where the file is unless told otherwise.
pub(super) fn default_path() -> PathBuf {
    let home = std::env::home_dir().unwrap_or_else(|| PathBuf::from("."));
    home.join(PLACE)
}

/// A file that is not there holds no contexts.
pub(super) fn load(path: &Path) -> Result<Contexts, Failure> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(problem(path, error)),
    };
    Contexts::parse(&text).map_err(|reason| problem(path, reason))
}

/// Replaces the file; the directory is made for its owner alone.
pub(super) fn save(path: &Path, contexts: &Contexts) -> Result<(), Failure> {
    // A link stays a link: what it leads to is replaced.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    write(&path, &contexts.text()).map_err(|error| problem(&path, error))
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = directory.join(name);
    let written = fill(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    File::open(directory)?.sync_all()
}

fn fill(temporary: &Path, text: &str) -> std::io::Result<()> {
    // Left by a process of the same number that was killed.
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn problem(path: &Path, reason: impl std::fmt::Display) -> Failure {
    Failure::Usage(format!("{}: {reason}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use serde_json::json;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn only_the_owner_may_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".fleet/config");
        let mut contexts = load(&path).unwrap();
        contexts.set("default", "token", json!("t"));
        save(&path, &contexts).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        save(&path, &contexts).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(
            load(&path).unwrap().value("default", "token").as_deref(),
            Some("t")
        );
        let names = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(names, 1, "nothing temporary stays");
    }

    #[test]
    fn a_link_stays_one() {
        let directory = tempfile::tempdir().unwrap();
        let (kept, link) = (directory.path().join("kept"), directory.path().join("link"));
        fs::write(&kept, "contexts: {}").unwrap();
        symlink(&kept, &link).unwrap();
        let mut contexts = load(&link).unwrap();
        contexts.set("default", "email", json!("a"));
        save(&link, &contexts).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::read_to_string(&kept).unwrap().contains("email"));
    }

    #[test]
    fn a_broken_file_is_named_and_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        fs::write(&path, "contexts: [").unwrap();
        let failure = load(&path).map(|_| ()).unwrap_err();
        assert!(failure.text().contains("config: "), "{}", failure.text());
    }
}
