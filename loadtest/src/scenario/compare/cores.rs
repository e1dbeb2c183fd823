//! Servers on one core, the client on another, so that neither takes the other's time.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Two different cores of those that this process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cores {
    server: usize,
    client: usize,
}

impl Cores {
    /// The first and the last; `None` when there is only one, or pinning is not possible.
    pub(super) fn pick() -> Option<Self> {
        let set = sched_getaffinity(Pid::from_raw(0)).ok()?;
        let mut allowed = (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false));
        let server = allowed.next()?;
        let client = allowed.next_back()?;
        pin(client).then_some(Self { server, client })
    }

    /// From now on this thread starts processes that stay on the server's core.
    pub(super) fn start_servers(self) {
        pin(self.server);
    }

    /// This thread is the client again.
    pub(super) fn be_client(self) {
        pin(self.client);
    }
}

impl std::fmt::Display for Cores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "servers on core {}, client on core {}",
            self.server, self.client
        )
    }
}

fn pin(core: usize) -> bool {
    let mut set = CpuSet::new();
    set.set(core)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .is_ok()
}
