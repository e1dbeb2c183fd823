//! The bound on open files: raised as far as the system allows, and what that means for the workers.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors of a worker that are no agent's connection: listeners apart, channel, link, tunnels, timers, libraries.
const RESERVE: u64 = 256;

/// Raises the soft limit to the hard one, which children inherit, and gives the limit that now holds.
pub(crate) fn raise() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

/// Connections that a worker can hold open: `wanted`, or what fits under `limit` beside `listeners`. Never 0.
pub(crate) fn connections(wanted: u32, limit: u64, listeners: usize) -> u32 {
    let reserve = RESERVE.saturating_add(listeners as u64);
    let fitting = u32::try_from(limit.saturating_sub(reserve)).unwrap_or(u32::MAX);
    wanted.min(fitting).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_under_the_limit() {
        assert_eq!(connections(15_000, 1 << 20, 4), 15_000);
        assert_eq!(connections(15_000, 1024, 4), 1024 - 256 - 4);
        assert_eq!(connections(15_000, 100, 4), 1);
        assert_eq!(connections(15_000, u64::MAX, 4), 15_000);
    }
}
