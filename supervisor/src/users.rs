//! Whom children become when the server is started as root.
//!
//! Workers always become the user: they see nothing of the file system but `STATE/run`. Control becomes it when that user
//! can reach everything that control needs; else it stays root, without any of root's rights.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use fleet_protocol::config::Config;
use fleet_protocol::sandbox::{Confine, User};
use nix::unistd::Uid;

use crate::exit::Failure;

/// In this order, when none is named.
const USUAL: [&str; 3] = ["fleet", "fleet-supervisor", "nobody"];
/// Of a system without any of these.
const NOBODY: User = User {
    uid: 65_534,
    gid: 65_534,
};

/// Which of root's rights this process has; a container may have taken some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    /// To become another user, and to give files away.
    pub(crate) user: bool,
    /// To see a directory as the root.
    pub(crate) root: bool,
}

impl Rights {
    /// Asks the kernel.
    pub(crate) fn own() -> Self {
        use caps::Capability as Cap;
        let has = |all: &[Cap]| {
            let mut all = all.iter();
            all.all(|of| caps::has_cap(None, caps::CapSet::Effective, *of).unwrap_or(false))
        };
        Self {
            user: has(&[
                Cap::CAP_SETUID,
                Cap::CAP_SETGID,
                Cap::CAP_CHOWN,
                Cap::CAP_KILL,
            ]),
            root: has(&[Cap::CAP_SYS_CHROOT]),
        }
    }
}

/// Whom children become.
#[derive(Clone, Debug, Default)]
pub(crate) struct Users {
    /// For each worker.
    pub(crate) worker: Confine,
    /// For control.
    pub(crate) control: Confine,
    /// What the operator should know, and whether that is loud.
    notes: Vec<(bool, String)>,
}

impl Users {
    /// By the options, who we are, and what control must reach. It is to get the directories that were `made` for it.
    pub(crate) fn choose(
        config: &Config,
        state_dir: &Path,
        made: &[PathBuf],
    ) -> Result<Self, Failure> {
        let server = &config.server;
        let confine = Confine {
            is_on: server.sandbox,
            user: None,
            root: None,
            may_dump: server.core_dumps,
        };
        let mut users = Self {
            worker: confine.clone(),
            control: confine,
            notes: Vec::new(),
        };
        if !server.sandbox {
            users.note(
                true,
                "server.sandbox is off: workers and control may do all that their user may",
            );
        }
        if !Uid::effective().is_root() {
            return Ok(users);
        }
        let (name, user) = find(&server.user)?;
        let rights = Rights::own();
        let has_root = server.sandbox && rights.root;
        users.worker.root = has_root.then(|| state_dir.join("run"));
        if user.uid != 0 && !(rights.user && is_known_here(user)) {
            users.note(true, &format!(
                "workers and control stay root, without root's rights: this container or unit lets nobody become {name}"
            ));
            return Ok(users);
        }
        if user.uid == 0 {
            users.note(true, "server.user is root: workers and control run as root, though without its rights; a user of their own is safer");
            return Ok(users);
        }
        users.worker.user = Some(user);
        if let Some(path) = first_barred(&needed(config, state_dir, made), user) {
            let shown = path.display();
            users.note(true, &format!(
                "control stays root, without root's rights, because user {name} cannot use {shown}; another --state_dir, such \
                 as /var/lib/fleet-supervisor, or other rights on that directory change it"
            ));
        } else {
            users.control.user = Some(user);
        }
        if server.user.is_empty() && name == "nobody" {
            users.note(false, "workers and control run as nobody, whom other programs may share; a system user named fleet is taken instead when there is one");
        }
        Ok(users)
    }

    fn note(&mut self, is_loud: bool, text: &str) {
        self.notes.push((is_loud, text.to_owned()));
    }

    /// Says what the operator should know.
    pub(crate) fn report(&self) {
        for (is_loud, text) in &self.notes {
            if *is_loud {
                tracing::warn!("{text}");
            } else {
                tracing::info!("{text}");
            }
        }
    }

    /// A path in `STATE/run` as a worker sees it.
    pub(crate) fn worker_path(&self, path: &Path) -> PathBuf {
        let inside = self.worker.root.as_ref();
        match inside.and_then(|root| path.strip_prefix(root).ok()) {
            Some(rest) => Path::new("/").join(rest),
            None => path.to_owned(),
        }
    }
}

fn find(named: &str) -> Result<(String, User), Failure> {
    let lookup = |name: &str| {
        let found = match name.parse() {
            Ok(uid) => nix::unistd::User::from_uid(Uid::from_raw(uid)),
            Err(_) => nix::unistd::User::from_name(name),
        };
        let found = found.ok().flatten()?;
        let (uid, gid) = (found.uid.as_raw(), found.gid.as_raw());
        Some((found.name, User { uid, gid }))
    };
    if named.is_empty() {
        let found = USUAL.iter().find_map(|name| lookup(name));
        return Ok(found.unwrap_or_else(|| ("nobody".to_owned(), NOBODY)));
    }
    lookup(named)
        .ok_or_else(|| Failure::config(format!("server.user: there is no user {named:?} here")))
}

/// Whether a namespace of users has this one.
fn is_known_here(User { uid, gid }: User) -> bool {
    let all = [("/proc/self/uid_map", uid), ("/proc/self/gid_map", gid)];
    all.iter().all(|(path, id)| {
        // A kernel without such namespaces knows everybody.
        fs::read_to_string(path).map_or(true, |map| is_mapped(&map, *id))
    })
}

/// Pure. A line has the first number inside, the first outside, and how many.
fn is_mapped(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        match (numbers.next(), numbers.nth(1)) {
            (Some(Ok(first)), Some(Ok(count))) => {
                (first..first.saturating_add(count)).contains(&u64::from(id))
            }
            _ => false,
        }
    })
}

/// A path, and what is needed of it as bits of its mode: 4 to read, 2 to write, 1 to pass.
type Need = (PathBuf, u32);

/// What control uses outside of what is handed over to it.
fn needed(config: &Config, state_dir: &Path, made: &[PathBuf]) -> Vec<Need> {
    let parent = state_dir.parent().unwrap_or(Path::new("/"));
    let mut needed = vec![(parent.to_owned(), 1)];
    for path in fleet_control::log_directories(config, state_dir) {
        if !path.starts_with(state_dir) {
            let bits = if made.contains(&path) { 1 } else { 7 };
            needed.push((path, bits));
        }
    }
    let files = fleet_control::store_files(config);
    needed.extend(files.into_iter().map(|path| (path, 4)));
    needed
}

/// The first directory or file that bars the way.
fn first_barred(needed: &[Need], user: User) -> Option<PathBuf> {
    needed.iter().find_map(|(path, bits)| {
        // What is not there is looked for in vain by any user.
        let path = path.canonicalize().ok()?;
        let above = path.ancestors().skip(1).map(|above| (above, 1));
        let mut all = above.chain([(path.as_path(), *bits)]);
        let barred = all.find(|(path, bits)| {
            let found = fs::metadata(path);
            found.is_ok_and(|of| !allows(of.mode(), (of.uid(), of.gid()), user, *bits))
        });
        barred.map(|(path, _)| path.to_owned())
    })
}

/// As the kernel decides for a user without rights of its own and without further groups. Pure.
fn allows(mode: u32, (uid, gid): (u32, u32), user: User, bits: u32) -> bool {
    let shift = match () {
        () if uid == user.uid => 6,
        () if gid == user.gid => 3,
        () => 0,
    };
    (mode >> shift) & bits == bits
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const USER: User = User { uid: 10, gid: 20 };

    #[test]
    fn the_first_class_that_fits_decides() {
        for (mode, owner, bits, allowed) in [
            (0o700, (10, 0), 7, true),
            (0o077, (10, 20), 1, false),
            (0o050, (0, 20), 5, true),
            (0o057, (0, 20), 7, false),
            (0o001, (0, 0), 1, true),
            (0o770, (0, 0), 1, false),
        ] {
            assert_eq!(
                allows(mode, owner, USER, bits),
                allowed,
                "{mode:o} {owner:?}"
            );
        }
    }

    #[test]
    fn a_closed_directory_above_bars_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().canonicalize().unwrap().join("inner");
        fs::create_dir(&inner).unwrap();
        let open = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        open(&inner, 0o755);
        open(dir.path(), 0o700);
        let user = User {
            uid: u32::MAX - 1,
            gid: u32::MAX - 1,
        };
        let need = [(inner.clone(), 1)];
        assert_eq!(first_barred(&need, user).as_deref(), inner.parent());
        open(inner.parent().unwrap(), 0o711);
        assert_eq!(first_barred(&need, user), None);
        assert_eq!(first_barred(&[(inner.clone(), 7)], user), Some(inner));
    }

    #[test]
    fn a_namespace_knows_those_that_it_maps() {
        let map = "         0       1000          1\n     65534     165534          2\n";
        for (id, known) in [
            (0, true),
            (1, false),
            (65_534, true),
            (65_535, true),
            (65_536, false),
        ] {
            assert_eq!(is_mapped(map, id), known, "{id}");
        }
    }

    #[test]
    fn workers_see_sockets_at_their_root() {
        let mut users = Users::default();
        let socket = Path::new("/s/run/control.sock");
        assert_eq!(users.worker_path(socket), socket);
        users.worker.root = Some("/s/run".into());
        assert_eq!(users.worker_path(socket), Path::new("/control.sock"));
    }

    #[test]
    fn an_unknown_user_is_refused() {
        let failure = find("no-such-user-here").unwrap_err();
        assert!(failure.to_string().contains("server.user"), "{failure}");
        assert_eq!(find("root").unwrap().1, User { uid: 0, gid: 0 });
        assert_ne!(find("").unwrap().1.uid, 0);
    }
}
