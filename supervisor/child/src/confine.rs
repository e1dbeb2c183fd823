//! What a process may still do once it serves. It gives up the rest itself, before it has threads and before it has heard
//! anything from the network, in layers that do not depend on each other: user and capabilities, Landlock, seccomp.
//!
//! Landlock and capabilities are a thread's own, and its later threads have them from it: [`apply`] is for a process that
//! has one thread. seccomp and the user hold for all threads whatever their number.

use std::io;
use std::path::{Path, PathBuf};

use caps::{CapSet, runtime};
use fleet_protocol::sandbox::{Confine, Level, Sandbox, User};
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, NetPort,
    PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _,
    RulesetStatus, Scope,
};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, chdir, chroot, geteuid, setgroups, setresgid, setresuid};

use crate::calls::{self, Calls};

/// What a process may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Files and directories with all below them. What is not there is left out.
    pub paths: Vec<(PathBuf, Right)>,
    /// TCP ports to connect to; `None`: all.
    pub ports: Option<Vec<u16>>,
    /// Unix sockets by path, where the kernel can tell them apart; `None`: all.
    pub sockets: Option<Vec<PathBuf>>,
    /// System calls.
    pub calls: Calls,
}

/// What may be done below a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Read files and directories.
    Read,
    /// Make, change and remove files and directories, too.
    Write,
}

/// Why a process cannot be confined, although the kernel could.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot become uid {uid}: {error}")]
    User { uid: u32, error: nix::Error },
    #[error("cannot make {path} the root: {error}")]
    Root { path: PathBuf, error: nix::Error },
    #[error("cannot give up capabilities: {0}")]
    Capabilities(String),
    #[error("system calls cannot be filtered: {0}")]
    Calls(String),
}

/// Core dumps hold keys: none from here on, and no other process of the user may look into this one.
pub fn forbid_dumps() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)?;
    Ok(())
}

/// Confines this process for good. What an old kernel cannot do is left out and named; what it can and does not is an
/// error, and the process must not serve.
pub fn apply(confine: &Confine, reach: &Reach) -> Result<Sandbox, Error> {
    let mut lacks = Vec::new();
    // What it needs later on is opened.
    crate::memory::resident_bytes();
    if confine.is_on {
        let threads = threads();
        if threads != Some(1) {
            lacks.push("it had threads before, which Landlock does not hold".to_owned());
        }
        // Paths are opened while they can be.
        let rules = rules(reach, confine.root.is_some(), &mut lacks);
        give_up_bounding(&mut lacks);
        become_user(confine)?;
        give_up_capabilities()?;
        no_dumps(confine, &mut lacks);
        prctl::set_no_new_privs().map_err(|error| Error::Capabilities(error.to_string()))?;
        restrict(rules, &mut lacks);
        calls::forbid(&reach.calls).map_err(Error::Calls)?;
    } else {
        become_user(confine)?;
        no_dumps(confine, &mut lacks);
        lacks.push("it is off".to_owned());
    }
    let level = match (confine.is_on, lacks.is_empty()) {
        (false, _) => Level::None,
        (true, false) => Level::Partial,
        (true, true) => Level::Full,
    };
    Ok(Sandbox {
        level,
        uid: geteuid().as_raw(),
        lacks,
    })
}

/// After the change of the user, which undoes it.
fn no_dumps(confine: &Confine, lacks: &mut Vec<String>) {
    if !confine.may_dump && forbid_dumps().is_err() {
        lacks.push("core dumps are not off".to_owned());
    }
}

/// How many there are; `None` when that cannot be told.
fn threads() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/task").ok()?.count())
}

fn become_user(confine: &Confine) -> Result<(), Error> {
    if let Some(root) = &confine.root {
        let failed = |error| Error::Root {
            path: root.clone(),
            error,
        };
        chroot(root).and_then(|()| chdir("/")).map_err(failed)?;
    }
    let Some(User { uid, gid }) = confine.user else {
        return Ok(());
    };
    let failed = |error| Error::User { uid, error };
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&[])
        .and_then(|()| setresgid(group, group, group))
        .and_then(|()| setresuid(user, user, user))
        .map_err(failed)
}

/// Nothing that is ever executed here gets any of them back. Without the right to do so there is nothing to lose either:
/// no_new_privs says the same.
fn give_up_bounding(lacks: &mut Vec<String>) {
    let can = caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP);
    if !can.unwrap_or(false) {
        return;
    }
    for capability in runtime::thread_all_supported() {
        if let Err(error) = caps::drop(None, CapSet::Bounding, capability) {
            lacks.push(format!("{capability} may be gained: {error}"));
        }
    }
}

fn give_up_capabilities() -> Result<(), Error> {
    let failed = |error: caps::errors::CapsError| Error::Capabilities(error.to_string());
    // A kernel without ambient capabilities has none to give up.
    let _ = caps::clear(None, CapSet::Ambient);
    for set in [CapSet::Effective, CapSet::Inheritable, CapSet::Permitted] {
        caps::clear(None, set).map_err(failed)?;
    }
    Ok(())
}

/// Rules as Landlock keeps them, with every path opened.
fn rules(reach: &Reach, has_own_root: bool, lacks: &mut Vec<String>) -> Option<Rules> {
    let made = base_rules(reach);
    let base = match made {
        Ok(rules) => rules,
        Err(error) => {
            lacks.push(format!("Landlock: {error}"));
            return None;
        }
    };
    // With a root of its own nothing but these sockets is there to connect to.
    let sockets = match (&reach.sockets, has_own_root) {
        (Some(sockets), false) => socket_rules(sockets).ok(),
        _ => None,
    };
    Some(Rules { base, sockets })
}

struct Rules {
    base: RulesetCreated,
    sockets: Option<RulesetCreated>,
}

/// What kernels from 6.12 on know.
fn base_rules(reach: &Reach) -> Result<RulesetCreated, landlock::RulesetError> {
    let abi = ABI::V6;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::AbstractUnixSocket)?
        .scope(Scope::Signal)?;
    if reach.ports.is_some() {
        ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?;
    }
    let mut created = ruleset.create()?;
    for (path, right) in &reach.paths {
        if let Some(beneath) = beneath(path, right.access(abi)) {
            created = created.add_rule(beneath)?;
        }
    }
    for port in reach.ports.iter().flatten() {
        created = created.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    Ok(created)
}

/// What kernels from 7.1 on know.
fn socket_rules(sockets: &[PathBuf]) -> Result<RulesetCreated, landlock::RulesetError> {
    let mut created = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::ResolveUnix)?
        .create()?;
    for path in sockets {
        if let Some(beneath) = beneath(path, AccessFs::ResolveUnix.into()) {
            created = created.add_rule(beneath)?;
        }
    }
    Ok(created)
}

fn beneath(path: &Path, access: BitFlags<AccessFs>) -> Option<PathBeneath<PathFd>> {
    let is_directory = path.metadata().ok()?.is_dir();
    let access = if is_directory {
        access
    } else {
        access & (AccessFs::from_file(ABI::V6) | AccessFs::ResolveUnix)
    };
    Some(PathBeneath::new(PathFd::new(path).ok()?, access))
}

impl Right {
    fn access(self, abi: ABI) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        match self {
            Self::Read => read,
            // No devices, links or programs.
            Self::Write => {
                let never = AccessFs::MakeChar
                    | AccessFs::MakeBlock
                    | AccessFs::MakeFifo
                    | AccessFs::MakeSock
                    | AccessFs::MakeSym
                    | AccessFs::IoctlDev
                    | AccessFs::Execute;
                read | (AccessFs::from_write(abi) & !never)
            }
        }
    }
}

fn restrict(rules: Option<Rules>, lacks: &mut Vec<String>) {
    let Some(Rules { base, sockets }) = rules else {
        return;
    };
    match base.restrict_self() {
        Ok(status) if status.ruleset == RulesetStatus::FullyEnforced => {}
        Ok(status) if status.ruleset == RulesetStatus::PartiallyEnforced => {
            lacks.push("this kernel's Landlock is older than 6.12".to_owned());
        }
        Ok(_) => lacks.push("this kernel has no Landlock".to_owned()),
        Err(error) => lacks.push(format!("Landlock: {error}")),
    }
    let Some(sockets) = sockets else {
        return;
    };
    let is_enforced = sockets
        .restrict_self()
        .is_ok_and(|status| status.ruleset == RulesetStatus::FullyEnforced);
    if !is_enforced {
        lacks.push(
            "Unix sockets that this user may connect to stay reachable; started as root they would not be".to_owned(),
        );
    }
}

#[cfg(test)]
#[path = "confine_tests.rs"]
mod tests;
