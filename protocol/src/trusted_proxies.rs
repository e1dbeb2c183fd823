//! The client's address behind balancers that speak HTTP: whose headers are believed, and what they say. Pure.
//!
//! Work is bounded: of a list of addresses the last [`HOPS_MAX`] are looked at, and what is no address ends the search.
//! Nothing is allocated, because this runs for every request behind such a balancer.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::networks::Networks;

/// Proxies in a row; entries of `X-Forwarded-For` beyond are not looked at.
pub const HOPS_MAX: u8 = 32;

const FORWARDED_FOR: &str = "X-Forwarded-For";
/// Headers with one address, before the list, in the order in which they are believed.
const SINGLE: [&str; 2] = ["True-Client-IP", "X-Real-IP"];

/// Whose word about a client's address is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TrustedProxies {
    /// Nobody's: the peer is the client.
    #[default]
    Nobody,
    /// Of whoever sends this header with one address.
    Header(String),
    /// Of whoever sends `X-Forwarded-For`: the entry of this number, counted from the right and from 1.
    Hops(u8),
    /// Of peers in these networks, whose `X-Forwarded-For` is read from the right up to the first address outside.
    Networks(Networks),
}

/// Text that is no such rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// In none of the forms.
    #[error(
        "{0:?} is neither a list of networks such as 10.0.0.0/8, nor a header's name such as True-Client-IP, nor a number of hops from 1 to {HOPS_MAX}"
    )]
    Form(String),
    /// A header with a list, of which nobody knows which entry to believe.
    #[error(
        "{0} holds a list of addresses; give the number of proxies in front, or their networks"
    )]
    ListHeader(String),
    /// A list of networks that is none.
    #[error(transparent)]
    Networks(#[from] crate::networks::Error),
}

impl FromStr for TrustedProxies {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if text.is_empty() || text.eq_ignore_ascii_case("none") {
            return Ok(Self::Nobody);
        }
        let malformed = || Error::Form(text.to_owned());
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            let hops = text
                .parse()
                .ok()
                .filter(|hops| (1..=HOPS_MAX).contains(hops));
            return hops.map(Self::Hops).ok_or_else(malformed);
        }
        if text.contains([',', '.', ':', '/']) {
            let networks = Networks::parse(text.split(','))?;
            return if networks.is_empty() {
                Err(malformed())
            } else {
                Ok(Self::Networks(networks))
            };
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if text.len() > 64 || !text.bytes().all(is_name) {
            return Err(malformed());
        }
        if text.eq_ignore_ascii_case(FORWARDED_FOR) || text.eq_ignore_ascii_case("Forwarded") {
            return Err(Error::ListHeader(text.to_owned()));
        }
        Ok(Self::Header(text.to_owned()))
    }
}

impl TrustedProxies {
    /// Whether a peer is known to be a proxy by its address.
    pub fn knows(&self, peer: IpAddr) -> bool {
        matches!(self, Self::Networks(networks) if networks.contains(peer))
    }

    /// Whether a peer may tell whom it speaks for, and so speak for many clients on one connection.
    pub fn believes(&self, peer: IpAddr) -> bool {
        match self {
            Self::Nobody => false,
            Self::Header(_) | Self::Hops(_) => true,
            Self::Networks(networks) => networks.contains(peer),
        }
    }

    /// The client's address. `values_of` gives the values of all fields of a name, in the order of the request; names
    /// compare without case.
    pub fn client_address<'a, I>(&'a self, peer: IpAddr, values_of: impl Fn(&'a str) -> I) -> IpAddr
    where
        I: DoubleEndedIterator<Item = &'a [u8]>,
    {
        let entries = || {
            let fields = values_of(FORWARDED_FOR).rev();
            let entries = fields.flat_map(|field| field.rsplit(|byte| *byte == b','));
            entries.map(address_of).take(usize::from(HOPS_MAX))
        };
        let single = |name: &'a str| values_of(name).next_back().and_then(address_of);
        match self {
            Self::Nobody => peer,
            Self::Header(name) => single(name).unwrap_or(peer),
            Self::Hops(hops) => {
                let entry = entries().nth(usize::from(*hops) - 1).flatten();
                entry.unwrap_or(peer)
            }
            Self::Networks(networks) if networks.contains(peer) => {
                if let Some(address) = SINGLE.into_iter().find_map(single) {
                    return address;
                }
                let mut client = peer;
                for entry in entries() {
                    let Some(address) = entry else {
                        break;
                    };
                    client = address;
                    if !networks.contains(address) {
                        break;
                    }
                }
                client
            }
            Self::Networks(_) => peer,
        }
    }
}

/// An address as proxies write it: alone, or with a port, IPv6 with or without brackets.
fn address_of(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text.trim_ascii()).ok()?;
    let address = if let Ok(address) = text.parse::<IpAddr>() {
        address
    } else if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let is_port = |port: &str| port.parse::<u16>().is_ok();
        if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
            return None;
        }
        address.parse::<Ipv6Addr>().ok()?.into()
    } else {
        text.parse::<std::net::SocketAddrV4>()
            .ok()
            .map(|of| IpAddr::V4(*of.ip()))?
    };
    Some(address.to_canonical()).filter(|address| !address.is_unspecified())
}

#[cfg(test)]
#[path = "trusted_proxies_tests.rs"]
mod tests;
