//! The bound on open files: raised as far as the system allows, and what that means for the workers.

use fleet_sysctl::capacity::DESCRIPTORS_RESERVE;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Those of them without which a worker does not serve a single agent.
const RESERVE_MIN: u64 = 48;
/// Descriptors of the supervisor that are no listener.
const SUPERVISOR_RESERVE: u64 = 64;
/// Descriptors of the supervisor for each child.
const PER_CHILD: u64 = 4;

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

/// Raises the hard limit to `wanted`, too, where we may; then as [`raise`].
pub(crate) fn raise_to(wanted: u64) -> u64 {
    let now = raise();
    if now < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_ok() {
        return wanted;
    }
    now
}

/// Connections that a worker can hold open: `wanted`, or what fits under `limit` beside `listeners`. Never 0.
pub(crate) fn connections(wanted: u32, limit: u64, listeners: usize) -> u32 {
    let reserve = DESCRIPTORS_RESERVE.saturating_add(listeners as u64);
    let fitting = u32::try_from(limit.saturating_sub(reserve)).unwrap_or(u32::MAX);
    wanted.min(fitting).max(1)
}

/// Below this limit nothing works: the supervisor holds every listener, a worker one for each address.
pub(crate) fn least(workers: u64, addresses: u64) -> u64 {
    let supervisor = workers * addresses + (workers + 1) * PER_CHILD + SUPERVISOR_RESERVE;
    supervisor.max(addresses + RESERVE_MIN)
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
