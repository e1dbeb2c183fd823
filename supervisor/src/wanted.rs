//! The addresses that a configuration asks for. Pure.

use std::net::{IpAddr, SocketAddr};

use fleet_protocol::address_list;
use fleet_protocol::config::Config;
use fleet_protocol::networks::Networks;
use fleet_protocol::proxied::Proxied;
use ipnet::IpNet;

use crate::exit::Failure;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Where to listen; port 0 for one of the system's choice.
    pub(crate) address: SocketAddr,
    /// Who may connect, each time with a PROXY v2 header; none: anybody, without one.
    pub(crate) balancers: Option<Networks>,
    /// With its network, when we add it to an interface.
    pub(crate) claim: Option<IpNet>,
}

/// All, in the order of `server.address`.
pub(crate) fn wanted(config: &Config) -> Result<Vec<Wanted>, Failure> {
    let addresses = address_list::sockets(&config.server.address)
        .map_err(|error| Failure::config(format!("server.address: {error}")))?;
    let claims = claims(config)?;
    let proxied = Proxied::of(&config.server)
        .map_err(|error| Failure::config(format!("server.proxy_protocol: {error}")))?;
    let balancers = config
        .server
        .balancers()
        .map_err(|error| Failure::config(format!("server.proxy_protocol_networks: {error}")))?;
    let of = |address: SocketAddr| Wanted {
        address,
        balancers: proxied.contains(address).then(|| balancers.clone()),
        claim: claims
            .iter()
            .copied()
            .find(|claim| claim.addr() == address.ip()),
    };
    Ok(addresses.into_iter().map(of).collect())
}

/// Their IP addresses.
pub(crate) fn ips(wanted: &[Wanted]) -> Vec<IpAddr> {
    wanted.iter().map(|of| of.address.ip()).collect()
}

/// What is to be added to the interface.
pub(crate) fn claims(config: &Config) -> Result<Vec<IpNet>, Failure> {
    address_list::claims(&config.addresses.claim.addresses)
        .map_err(|error| Failure::config(format!("addresses.claim.addresses: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claimed_addresses_are_known() {
        let mut config = Config::default();
        config.server.address = vec!["192.0.2.1-192.0.2.2:8080".into(), "[::1]:8080".into()];
        config.addresses.claim.addresses = vec!["192.0.2.2/24".into()];
        let all = wanted(&config).unwrap();
        let claims: Vec<_> = all.iter().map(|of| of.claim).collect();
        assert_eq!(claims, [None, "192.0.2.2/24".parse().ok(), None]);
    }
}
