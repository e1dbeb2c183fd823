//! What this machine is called, which addresses it has and which cores we may use.

use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::{Pid, gethostname};

/// Names and addresses that are put into a certificate.
const ADDRESSES_MAX: usize = 32;
/// A resolver may hang; then the name is taken as unknown.
const RESOLVE_LIMIT: Duration = Duration::from_secs(1);

/// The machine's name; `localhost` when it has none.
pub(crate) fn hostname() -> String {
    gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".into())
}

/// Addresses of its interfaces without loopback and link-local ones, in the system's order.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else {
        return Vec::new();
    };
    let mut addresses = Vec::new();
    for address in interfaces.filter_map(|interface| interface.address) {
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            (None, None) => continue,
        };
        let is_local = match ip {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        if !ip.is_loopback() && !is_local && !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    addresses.truncate(ADDRESSES_MAX);
    addresses
}

/// Whether `name` leads to this machine.
pub(crate) fn is_own_name(name: &str) -> bool {
    let (sender, receiver) = sync_channel(1);
    let target = (name.to_owned(), 0_u16);
    std::thread::spawn(move || {
        let found: Vec<IpAddr> = target
            .to_socket_addrs()
            .map(|all| all.map(|address| address.ip()).collect())
            .unwrap_or_default();
        let _ = sender.send(found);
    });
    let found = receiver.recv_timeout(RESOLVE_LIMIT).unwrap_or_default();
    let own = addresses();
    found.iter().any(|ip| ip.is_loopback() || own.contains(ip))
}

/// Cores that this process may run on.
pub(crate) fn cpus() -> Vec<u16> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else {
        return Vec::new();
    };
    (0..CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .filter_map(|cpu| u16::try_from(cpu).ok())
        .collect()
}

/// How many workers keep the machine busy; a container's quota counts.
pub(crate) fn parallelism() -> u16 {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(count).unwrap_or(u16::MAX)
}
