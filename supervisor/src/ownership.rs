//! Files that children work with are theirs; everything else in the state directory stays ours.
//!
//! Invariants: only what this program has made is handed over, by name; no link is followed, and no file that has a second
//! name somewhere. Keys, the enroll secret and the lock belong to root and cannot be put aside by control: the directory is
//! root's, and sticky.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{
    MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, lchown,
};
use std::path::{Path, PathBuf};

use fleet_protocol::config::Config;
use fleet_protocol::sandbox::User;
use nix::libc;
use nix::unistd::Uid;

use crate::exit::Failure;
use crate::state_dir::StateDir;
use crate::users::{Rights, Users};

const ROOT: User = User { uid: 0, gid: 0 };
/// The store, what SQLite keeps beside it, and results that wait for a store.
const FILES: [&str; 5] = [
    "store.sqlite",
    "store.sqlite-wal",
    "store.sqlite-shm",
    "store.sqlite-journal",
    "results.spool",
];
/// With all that is in them.
const TREES: [&str; 2] = ["log", "carves"];
/// Of a tree: series, then segments.
const DEPTH_MAX: u32 = 4;

/// Gives control and workers what is theirs; also what earlier runs left to somebody else. Only root can, and need.
pub(crate) fn hand_over(state: &StateDir, users: &Users) -> Result<(), Failure> {
    if !gives_away() {
        return Ok(());
    }
    let path = state.path();
    let failed = |what: &Path, error: io::Error| {
        Failure::fatal(format!("cannot hand {} over: {error}", what.display()))
    };
    let control = users.control.user.unwrap_or(ROOT);
    let mode = if control == ROOT { 0o700 } else { 0o1770 };
    directory(path, control.gid, mode).map_err(|error| failed(path, error))?;
    let worker = users.worker.user.unwrap_or(ROOT);
    let run = path.join("run");
    directory(&run, worker.gid, 0o710).map_err(|error| failed(&run, error))?;
    for name in ["control.sock", "tunnel.sock"] {
        let socket = state.run_path(name);
        // Made by us a moment ago, in a directory that only root can write to.
        lchown(&socket, Some(worker.uid), Some(worker.gid))
            .map_err(|error| failed(&socket, error))?;
    }
    for name in FILES {
        let file = path.join(name);
        take(&file, control, 0).map_err(|error| failed(&file, error))?;
    }
    for name in TREES {
        let tree = path.join(name);
        take(&tree, control, DEPTH_MAX).map_err(|error| failed(&tree, error))?;
    }
    Ok(())
}

/// A directory of root's that a group may use.
fn directory(path: &Path, gid: u32, mode: u32) -> io::Result<()> {
    let open = open(path)?;
    fchown(&open, Some(0), Some(gid))?;
    open.set_permissions(Permissions::from_mode(mode))
}

fn gives_away() -> bool {
    Uid::effective().is_root() && Rights::own().user
}

/// Whether control and workers would be whom they are in the server that uses the directory now. Changes nothing: that
/// server serves on if they would not.
pub(crate) fn check_same(path: &Path, users: &Users) -> Result<(), Failure> {
    if !gives_away() {
        return Ok(());
    }
    let control = users.control.user.unwrap_or(ROOT);
    let worker = users.worker.user.unwrap_or(ROOT);
    let of_control = FILES
        .iter()
        .chain(&TREES)
        .map(|name| (path.join(name), control));
    let of_worker = ["control.sock", "tunnel.sock"];
    let of_worker = of_worker.map(|name| (path.join("run").join(name), worker));
    let other = of_control
        .chain(of_worker)
        .find(|(path, user)| belongs_to_another(path, *user));
    let is_of_group = fs::metadata(path).is_ok_and(|of| of.gid() == control.gid);
    let of_other = match other {
        Some((path, _)) => path,
        None if !is_of_group => path.to_owned(),
        None => return Ok(()),
    };
    Err(Failure::config(format!(
        "control or workers would run as another user than now: {} is not theirs; stop and start instead",
        of_other.display()
    )))
}

/// What is not there, or is none of ours, belongs to nobody.
fn belongs_to_another(path: &Path, user: User) -> bool {
    fs::symlink_metadata(path).is_ok_and(|of| {
        let is_ours = !of.is_symlink() && (of.is_dir() || of.nlink() == 1);
        is_ours && (of.uid(), of.gid()) != (user.uid, user.gid)
    })
}

/// Makes those outside the state directory, which a confined process cannot make; gives those. Whoever is to write to one
/// can reach it, whatever mask this process has.
pub(crate) fn make_log_directories(
    config: &Config,
    state_dir: &Path,
) -> Result<Vec<PathBuf>, Failure> {
    let mut missing = fleet_control::log_directories(config, state_dir);
    missing.retain(|path| !path.starts_with(state_dir) && !path.exists());
    missing.sort();
    for path in &missing {
        make_passable(path).map_err(|error| {
            Failure::config(format!(
                "cannot make the directory {}: {error}",
                path.display()
            ))
        })?;
    }
    Ok(missing)
}

/// A directory, and what is missing above it.
fn make_passable(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path
        .ancestors()
        .take_while(|above| !above.as_os_str().is_empty() && !above.exists())
        .collect();
    for above in missing.into_iter().rev() {
        fs::create_dir(above)?;
        fs::set_permissions(above, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Gives control the directories that were made for its logs. Others than its group need not read them.
pub(crate) fn give_log_directories(made: &[PathBuf], users: &Users) -> Result<(), Failure> {
    let failed = |path: &Path, error: io::Error| {
        Failure::config(format!("cannot hand {} over: {error}", path.display()))
    };
    for path in made {
        fs::set_permissions(path, Permissions::from_mode(0o750))
            .map_err(|error| failed(path, error))?;
    }
    let Some(user) = users.control.user else {
        return Ok(());
    };
    // The inner ones first: in one that is given away another may do what it likes.
    for path in made.iter().rev() {
        lchown(path, Some(user.uid), Some(user.gid)).map_err(|error| failed(path, error))?;
    }
    Ok(())
}

/// Hands a file over, or a directory with what is in it down to `depth`. What is not there needs nothing.
fn take(path: &Path, user: User, depth: u32) -> io::Result<()> {
    let file = match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // A link, which is none of ours.
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Ok(()),
        opened => opened?,
    };
    let metadata = file.metadata()?;
    let is_ours = metadata.is_dir() || (metadata.is_file() && metadata.nlink() == 1);
    if !is_ours {
        return Ok(());
    }
    if (metadata.uid(), metadata.gid()) != (user.uid, user.gid) {
        fchown(&file, Some(user.uid), Some(user.gid))?;
    }
    if !metadata.is_dir() || depth == 0 {
        return Ok(());
    }
    // By the descriptor, so that it is this very directory whatever its name leads to meanwhile.
    let through =
        Path::new("/proc/self/fd").join(std::os::fd::AsRawFd::as_raw_fd(&file).to_string());
    for entry in fs::read_dir(&through)? {
        take(&through.join(entry?.file_name()), user, depth - 1)?;
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    // Not blocking: a pipe would wait for its writer.
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without root only the own user is there to hand over to: what is left alone shows all the same.
    fn someone() -> User {
        match Uid::effective().is_root() {
            true => User {
                uid: 4242,
                gid: 4242,
            },
            false => User {
                uid: Uid::effective().as_raw(),
                gid: nix::unistd::getegid().as_raw(),
            },
        }
    }

    #[test]
    fn what_is_inside_is_taken_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("log/osquery_result")).unwrap();
        fs::write(path("log/osquery_result/a.log"), "x").unwrap();
        for name in ["secret", "twice"] {
            fs::write(path(name), "x").unwrap();
        }
        std::os::unix::fs::symlink(path("secret"), path("log/link")).unwrap();
        fs::hard_link(path("twice"), path("log/twice")).unwrap();
        let before = fs::metadata(path("secret")).unwrap().uid();
        let user = someone();
        take(&path("log"), user, DEPTH_MAX).unwrap();
        let owner = |name: &str| fs::metadata(path(name)).unwrap().uid();
        for name in ["log", "log/osquery_result", "log/osquery_result/a.log"] {
            assert_eq!(owner(name), user.uid, "{name}");
        }
        for name in ["secret", "twice"] {
            assert_eq!(owner(name), before, "{name}");
        }
        take(&path("absent"), user, 1).unwrap();
    }

    #[test]
    fn what_another_user_has_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.sqlite");
        let own = fs::metadata(dir.path()).unwrap();
        let user = User {
            uid: own.uid(),
            gid: own.gid(),
        };
        let other = User {
            uid: own.uid() + 1,
            ..user
        };
        assert!(!belongs_to_another(&path, other), "it is not there");
        fs::write(&path, "x").unwrap();
        assert!(!belongs_to_another(&path, user));
        assert!(belongs_to_another(&path, other));
        let link = dir.path().join("results.spool");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(!belongs_to_another(&link, other));
    }

    #[test]
    fn directories_for_logs_can_be_passed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c");
        make_passable(&path).unwrap();
        for made in [path.as_path(), path.parent().unwrap()] {
            let mode = fs::metadata(made).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o755);
        }
        make_passable(&path).unwrap();
    }
}
