//! Who may use our local sockets: ourselves, root, and, for links and tunnels, the user that workers run as.

use std::sync::OnceLock;

use fleet_protocol::hello::is_uid_allowed;

static WORKERS: OnceLock<u32> = OnceLock::new();

/// Told by the supervisor, once, before anything is served.
pub(crate) fn set_workers(uid: u32) {
    let _ = WORKERS.set(uid);
}

/// Whether a peer may speak for operators.
pub(crate) fn is_operator(uid: u32) -> bool {
    is_uid_allowed(uid, nix::unistd::geteuid().as_raw())
}

/// Whether a peer may be a worker.
pub(crate) fn is_worker(uid: u32) -> bool {
    is_operator(uid) || WORKERS.get() == Some(&uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_no_operators() {
        let other = nix::unistd::geteuid().as_raw() + 1;
        assert!(!is_worker(other));
        set_workers(other);
        assert!(is_worker(other) && !is_operator(other));
    }
}
