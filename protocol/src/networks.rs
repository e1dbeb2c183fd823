//! Sets of networks: whose word is taken for something. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Most networks in one set; each is compared for every connection.
pub const NETWORKS_MAX: usize = 256;

/// Why a list is no set of networks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not in either form.
    #[error("{0:?} is not a network, such as 10.0.0.0/8 or 2001:db8::/32, nor an address")]
    Network(String),
    /// Too many.
    #[error("more than {NETWORKS_MAX} networks")]
    TooMany,
}

/// Networks of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// From entries such as `10.0.0.0/8`, `2001:db8::/32` and `192.0.2.7`; empty ones are skipped.
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        let mut networks = Vec::new();
        for entry in entries {
            let entry = entry.trim();
            if entry.is_empty() {
                continue;
            }
            if networks.len() == NETWORKS_MAX {
                return Err(Error::TooMany);
            }
            let network = entry.parse::<IpNet>();
            let alone = || entry.parse::<IpAddr>().map(IpNet::from);
            let network = network.or_else(|_| alone());
            networks.push(network.map_err(|_| Error::Network(entry.to_owned()))?);
        }
        Ok(Self(networks))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an address is in one of them; IPv4 in IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_single_addresses_of_both_families() {
        let networks = Networks::parse(["10.1.2.3/8", " 192.0.2.7", "", "2001:db8::/32"]).unwrap();
        for (address, is_in) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("::ffff:10.0.0.1", true),
            ("2001:db8:1::1", true),
            ("2001:db9::1", false),
        ] {
            assert_eq!(
                networks.contains(address.parse().unwrap()),
                is_in,
                "{address}"
            );
        }
        assert!(!Networks::default().contains("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn anything_else_is_named() {
        for entry in ["10.0.0.0/33", "10.0.0", "fleet.example.com", "10.0.0.1:80"] {
            assert_eq!(
                Networks::parse([entry]),
                Err(Error::Network(entry.to_owned()))
            );
        }
        let many = vec!["10.0.0.1"; NETWORKS_MAX + 1];
        assert_eq!(Networks::parse(many), Err(Error::TooMany));
    }
}
