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
use std::path::Path;

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
pub(crate) fn hand_over(config: &Config, state: &StateDir, users: &Users) -> Result<(), Failure> {
    make_log_directories(config, state, users)?;
    if !(Uid::effective().is_root() && Rights::own().user) {
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

/// Those outside the state directory, which a confined process cannot make.
fn make_log_directories(config: &Config, state: &StateDir, users: &Users) -> Result<(), Failure> {
    for path in fleet_control::log_directories(config, state.path()) {
        if path.starts_with(state.path()) || path.exists() {
            continue;
        }
        let made = fs::create_dir_all(&path).and_then(|()| match users.control.user {
            Some(user) => lchown(&path, Some(user.uid), Some(user.gid)),
            None => Ok(()),
        });
        made.map_err(|error| {
            Failure::config(format!(
                "cannot make the directory {}: {error}",
                path.display()
            ))
        })?;
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
}
