//! What the kernel is sized for, from the configuration and the machine.

use fleet_protocol::address_list;
use fleet_protocol::config::Config;
use fleet_protocol::limits::Allowed;
use fleet_sysctl::probe;
use fleet_sysctl::roots::Roots;
use fleet_sysctl::size::Size;

use crate::machine;

/// Worker processes of a configuration on this machine.
pub(crate) fn workers(config: &Config) -> u16 {
    match config.workers.count {
        0 => machine::parallelism().min(1024),
        count => count,
    }
}

/// The configuration with the limits that its zeros stand for on this machine.
pub(crate) fn resolved(config: &Config) -> Config {
    Allowed::of(config, workers(config)).shown_in(config)
}

/// Sizes for `hosts`, else for `tune.hosts`, else for as many as the workers may hold connections.
pub(crate) fn size(config: &Config, hosts: Option<u64>, roots: &Roots) -> Size {
    let cores = u64::from(workers(config));
    let connections_max = cores * u64::from(config.server.connections_per_worker_max);
    let addresses = address_list::sockets(&config.server.address).map_or(1, |all| all.len());
    let hosts = hosts
        .or((config.tune.hosts > 0).then_some(config.tune.hosts))
        .unwrap_or(connections_max);
    Size {
        hosts,
        cores,
        memory_bytes: probe::memory_bytes(roots),
        page_bytes: probe::page_bytes(),
        // An agent has one request at a time and closes after it.
        connections: hosts,
        listeners: cores * addresses as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_over_the_file_and_that_over_what_fits() {
        let mut config = Config::default();
        config.workers.count = 4;
        config.server.connections_per_worker_max = 1000;
        config.server.address = vec!["127.0.0.1-127.0.0.3:0".into()];
        let of = |config: &Config, hosts| size(config, hosts, &Roots::system());
        assert_eq!(of(&config, None).hosts, 4000);
        assert_eq!(of(&config, None).listeners, 12);
        config.tune.hosts = 77;
        assert_eq!(of(&config, None).hosts, 77);
        assert_eq!(of(&config, Some(5)).connections, 5);
        assert!(of(&config, None).memory_bytes > 1 << 20);
    }
}
