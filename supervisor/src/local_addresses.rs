//! Which addresses this machine has at the moment, and whether their interfaces are up.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// A look at the machine.
#[derive(Debug, Default)]
pub(crate) struct LocalAddresses {
    /// The interface's name, and whether it is up and has a carrier.
    interfaces: HashMap<IpAddr, (String, bool)>,
}

impl LocalAddresses {
    /// Looks. A machine that does not tell is taken to have every address.
    pub(crate) fn read() -> Self {
        let mut interfaces = HashMap::new();
        for interface in getifaddrs().into_iter().flatten() {
            let Some(address) = interface.address else {
                continue;
            };
            let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => IpAddr::V4(v4.ip()),
                (_, Some(v6)) => IpAddr::V6(v6.ip()),
                (None, None) => continue,
            };
            let up = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
            let is_up = interface.flags.contains(up);
            interfaces.insert(ip, (interface.interface_name, is_up));
        }
        Self { interfaces }
    }

    /// Why nobody can reach `ip` here; `None` when that is not so.
    pub(crate) fn trouble(&self, ip: IpAddr) -> Option<String> {
        if ip.is_unspecified() || ip.is_loopback() {
            return None;
        }
        match self.interfaces.get(&ip) {
            Some((_, true)) => None,
            Some((name, false)) => Some(format!("its interface {name} is down")),
            // Not on an interface, but the kernel may have a local route to it.
            None if is_local(ip) => None,
            None => Some("not an address of this machine any more".into()),
        }
    }
}

fn is_local(ip: IpAddr) -> bool {
    match UdpSocket::bind((ip, 0)) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_known_from_others() {
        let local = LocalAddresses::read();
        for own in ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::"] {
            assert_eq!(local.trouble(own.parse().unwrap()), None, "{own}");
        }
        let foreign = local.trouble("203.0.113.1".parse().unwrap());
        assert!(foreign.is_some_and(|reason| reason.contains("not an address")));
    }
}
