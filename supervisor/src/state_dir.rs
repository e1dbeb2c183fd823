//! The state directory: where it is, that it is private, and that one supervisor alone uses it.
//!
//! The lock is a `flock` on `STATE/lock`. Children inherit it, so that after the supervisor's sudden death the next one
//! waits until they have finished with the journal and the ports. It belongs to the open file and not to a process: in an
//! upgrade the new supervisor is handed that file and holds the lock with the old one. So nobody unlocks it; it is gone
//! when the last of them closes it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fleet_protocol::config::Config;
use fleet_protocol::limits::DRAIN_DEADLINE;
use fleet_sysctl::disk;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;

use crate::exit::Failure;

const SYSTEM_DIR: &str = "/var/lib/fleet-supervisor";
const LOCAL_DIR: &str = "fleet-state";
/// Longest path of a Unix socket.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Children of a dead supervisor are waited for so long.
const LEFT_OVER_WAIT: Duration = DRAIN_DEADLINE.saturating_add(Duration::from_secs(4));

/// The locked directory.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    lock: File,
}

/// Where `start` keeps its state.
pub(crate) fn for_start(config: &Config) -> PathBuf {
    if !config.state.dir.as_os_str().is_empty() {
        return config.state.dir.clone();
    }
    if Uid::effective().is_root() && is_service() {
        return SYSTEM_DIR.into();
    }
    LOCAL_DIR.into()
}

/// Where the other commands look for a running server: as `start`, but without its environment.
pub(crate) fn for_client(config: &Config) -> PathBuf {
    if !config.state.dir.as_os_str().is_empty() {
        return config.state.dir.clone();
    }
    let candidates = [LOCAL_DIR, SYSTEM_DIR].map(PathBuf::from);
    candidates
        .into_iter()
        .find(|path| run_path(path, "admin.sock").exists())
        .unwrap_or_else(|| for_start(config))
}

/// Where `tune` keeps its record `name`: where one is already, else with a running or installed server, else as `start`.
pub(crate) fn for_tune(config: &Config, name: &str) -> PathBuf {
    if !config.state.dir.as_os_str().is_empty() {
        return config.state.dir.clone();
    }
    let known = [LOCAL_DIR, SYSTEM_DIR].map(PathBuf::from);
    if let Some(path) = known.into_iter().find(|path| path.join(name).exists()) {
        return path;
    }
    match for_client(config) {
        // Settings belong to the machine; a directory that root happens to stand in is a poor place for them.
        path if path == Path::new(LOCAL_DIR) && !path.exists() && Uid::effective().is_root() => {
            SYSTEM_DIR.into()
        }
        path => path,
    }
}

/// Where the state is in an image that is being made.
pub(crate) fn for_image(config: &Config) -> PathBuf {
    if config.state.dir.as_os_str().is_empty() {
        return SYSTEM_DIR.into();
    }
    config.state.dir.clone()
}

/// `STATE/run/NAME`
pub(crate) fn run_path(state_dir: &Path, name: &str) -> PathBuf {
    state_dir.join("run").join(name)
}

/// Whether systemd started this very process, as opposed to a shell in one of its units.
fn is_service() -> bool {
    let own = std::process::id().to_string();
    std::env::var_os("INVOCATION_ID").is_some()
        && std::env::var("SYSTEMD_EXEC_PID").map_or(true, |pid| pid == own)
}

impl StateDir {
    /// Makes what is missing and takes the lock.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        make_private(path)?;
        let path = path
            .canonicalize()
            .map_err(|error| Failure::config(format!("{}: {error}", path.display())))?;
        let bytes = run_path(&path, "operator.sock").as_os_str().len();
        if bytes > SOCKET_PATH_BYTES_MAX {
            let excess = bytes - SOCKET_PATH_BYTES_MAX;
            return Err(Failure::config(format!(
                "state.dir: {} is {excess} bytes too long for the sockets in it; choose a shorter path",
                path.display()
            )));
        }
        for name in ["run", "tls"] {
            make_private(&path.join(name))?;
        }
        let lock = lock(&path)?;
        Ok(Self { path, lock })
    }

    /// The directory at `path`, which another supervisor has locked and whose lock it has handed over.
    pub(crate) fn adopt(path: PathBuf, lock: OwnedFd) -> io::Result<Self> {
        let lock = File::from(lock);
        lock.try_lock()?;
        Ok(Self { path, lock })
    }

    /// Writes down that this process is the one that uses it.
    pub(crate) fn own(&self) -> io::Result<()> {
        write_owner(&self.lock)
    }

    /// A descriptor of the lock, to hand over.
    pub(crate) fn lock_duplicate(&self) -> io::Result<OwnedFd> {
        Ok(self.lock.try_clone()?.into())
    }

    /// Absolute.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// `STATE/run/NAME`
    pub(crate) fn run_path(&self, name: &str) -> PathBuf {
        run_path(&self.path, name)
    }

    /// The lock, for children to inherit.
    pub(crate) fn lock_fd(&self) -> RawFd {
        self.lock.as_raw_fd()
    }
}

fn make_private(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let mut builder = DirBuilder::new();
    builder
        .mode(0o700)
        .recursive(true)
        .create(path)
        .map_err(|error| Failure::config(format!("cannot make the directory {shown}: {error}")))?;
    let metadata = fs::metadata(path)
        .map_err(|error| Failure::config(format!("cannot use the directory {shown}: {error}")))?;
    // Where children have a user of their own, its group makes files in a directory of root's and removes its own alone.
    let is_shared = metadata.uid() == 0 && metadata.mode() & 0o1022 == 0o1020;
    if metadata.mode() & 0o022 != 0 && !is_shared {
        return Err(Failure::config(format!(
            "{shown} can be written by other users; run: chmod 700 {shown}"
        )));
    }
    let own = Uid::effective();
    if metadata.uid() != own.as_raw() && !own.is_root() {
        return Err(Failure::config(format!(
            "{shown} belongs to another user (uid {})",
            metadata.uid()
        )));
    }
    Ok(())
}

fn lock(state_dir: &Path) -> Result<File, Failure> {
    let path = state_dir.join("lock");
    let trouble =
        |error: io::Error| Failure::fatal(format!("cannot lock {}: {error}", path.display()));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(trouble)?;
    let deadline = Instant::now() + LEFT_OVER_WAIT;
    let mut is_told = false;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(trouble(error)),
        }
        let owner = owner(&mut file);
        if let Some(pid) = owner.filter(|pid| holds(*pid, &path)) {
            return Err(Failure::fatal(format!(
                "{} is in use by the supervisor with pid {pid}; stop it first, or give this one another --state_dir",
                state_dir.display()
            )));
        }
        if Instant::now() >= deadline {
            return Err(Failure::fatal(format!(
                "processes of an earlier run still use {}; end them first",
                state_dir.display()
            )));
        }
        if !is_told {
            is_told = true;
            eprintln!(
                "fleet-supervisor: waiting for processes of an earlier run to finish (at most {} s)",
                LEFT_OVER_WAIT.as_secs()
            );
        }
        sleep(Duration::from_millis(50));
    }
    write_owner(&file).map_err(trouble)?;
    Ok(file)
}

fn write_owner(mut lock: &File) -> io::Result<()> {
    let pid = format!("{}\n", std::process::id());
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(pid.as_bytes())
}

fn owner(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Whether the process has the file open. A process that merely got the old one's number has not.
fn holds(pid: u32, path: &Path) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        // Not ours to look into, but alive: then it is another user's supervisor.
        return Path::new(&format!("/proc/{pid}")).exists();
    };
    entries
        .flatten()
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path))
}

/// Waits until no process uses the directory; `false` when some still do at the deadline.
pub(crate) fn wait_until_free(state_dir: &Path, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let Ok(file) = File::open(state_dir.join("lock")) else {
            return true;
        };
        if Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(Duration::from_millis(20));
    }
}

/// Puts `contents` in place of a file, whole or not at all, readable by the owner alone. Control's user may write to the
/// directory: nothing that lies there under the name of the temporary file is opened, be it a link or not.
pub(crate) fn write_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    disk::replace(path, contents, 0o600)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::exit;

    #[test]
    fn it_is_private_and_locked() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        let state = StateDir::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let failure = StateDir::open(&path).unwrap_err();
        assert_eq!(failure.code(), exit::FATAL);
        let pid = std::process::id().to_string();
        assert!(failure.to_string().contains(&pid), "{failure}");
        assert!(!wait_until_free(&path, Duration::ZERO));
        drop(state);
        assert!(wait_until_free(&path, Duration::ZERO));
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_lock_that_was_handed_over_holds_on() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        let old = StateDir::open(&path).unwrap();
        let new = StateDir::adopt(path.clone(), old.lock_duplicate().unwrap()).unwrap();
        drop(old);
        assert!(!wait_until_free(&path, Duration::ZERO));
        new.own().unwrap();
        drop(new);
        assert!(wait_until_free(&path, Duration::ZERO));
    }

    #[test]
    fn an_open_directory_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let failure = StateDir::open(&path).unwrap_err();
        assert_eq!(failure.code(), exit::CONFIG);
        assert!(failure.to_string().contains("chmod 700"), "{failure}");
    }

    #[test]
    fn a_long_path_is_refused_with_a_reason() {
        let parent = tempfile::tempdir().unwrap();
        let failure = StateDir::open(&parent.path().join("x".repeat(100))).unwrap_err();
        assert!(failure.to_string().contains("too long"), "{failure}");
    }

    #[test]
    fn private_files_are_replaced_whole() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("secret");
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_link_that_lies_in_wait_is_not_written_through() {
        let parent = tempfile::tempdir().unwrap();
        let path = |name: &str| parent.path().join(name);
        fs::write(path("other"), b"keep").unwrap();
        let names = [
            "secret.new".to_owned(),
            format!("secret.{}.new", std::process::id()),
        ];
        for name in names {
            std::os::unix::fs::symlink(path("other"), path(&name)).unwrap();
        }
        write_private(&path("secret"), b"one").unwrap();
        assert_eq!(fs::read(path("other")).unwrap(), b"keep");
        assert!(fs::symlink_metadata(path("secret")).unwrap().is_file());
    }
}
