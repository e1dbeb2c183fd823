//! One server becomes another without a connection lost: a new supervisor, of another build or not, takes over every
//! descriptor, and the old one ends.
//!
//! The old side is [`handover`], a pure state machine, with [`successor`] for the process and its channel; the new side is
//! [`heir`]. Both speak `protocol/src/upgrade.rs` over [`channel`]. Invariants: until the new side has said that it serves,
//! its death or silence changes nothing for agents; at most one control process runs at any time; whoever is left alone
//! by the other's death serves on, or ends before it has touched anything.

pub(crate) mod channel;
pub(crate) mod handover;
pub(crate) mod heir;
mod inheritance;
pub(crate) mod successor;

pub(crate) use inheritance::Inheritance;

use std::path::{Path, PathBuf};

/// Tells a supervisor that it is started for an upgrade, and by whom: the number of that process.
const UPGRADES_PID: &str = "GATEWAY_UPGRADES_PID";
/// Of systemd: which process its watchdog means.
const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// Whether this process was started to take over from its parent.
pub(crate) fn is_wanted() -> bool {
    let parent = nix::unistd::getppid().as_raw().to_string();
    std::env::var_os(UPGRADES_PID).is_some_and(|pid| pid.to_str() == Some(&parent))
}

/// The supervisor that started this one for an upgrade, while it lives.
pub(crate) fn predecessor() -> Option<u32> {
    let parent = nix::unistd::getppid().as_raw();
    is_wanted().then(|| u32::try_from(parent).ok()).flatten()
}

/// Where the running program was started from, whatever stands there now.
pub(crate) fn own_path() -> std::io::Result<PathBuf> {
    let path = std::fs::read_link("/proc/self/exe")?;
    let text = path.to_string_lossy();
    Ok(match text.strip_suffix(" (deleted)") {
        Some(path) => PathBuf::from(path),
        None => path,
    })
}

/// Whether a process exists that has not ended. One that took over its number counts as well; so the wait for it needs a
/// bound.
pub(crate) fn is_alive(pid: u32) -> bool {
    let state = state_and_parent(pid).map(|(state, _)| state);
    !matches!(state, Some('Z' | 'X') | None)
}

/// Of a process that exists.
pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    state_and_parent(pid).map(|(_, parent)| parent)
}

fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let path = Path::new("/proc").join(pid.to_string()).join("stat");
    let stat = std::fs::read_to_string(path).ok()?;
    // The name in front may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut words = rest.split(' ');
    let state = words.next()?.chars().next()?;
    Some((state, words.next()?.parse().ok()?))
}
