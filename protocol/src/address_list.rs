//! Lists of addresses as people write them: single ones, ranges and networks.
//!
//! Pure. The number of addresses is bounded before any list is made.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// Most addresses that one server listens on. Each costs a descriptor for every worker in the supervisor.
pub const ADDRESSES_MAX: usize = 1024;

/// Why an entry is no address, range or network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not in any of the forms.
    #[error(
        "{0:?} is not IP:port, such as 0.0.0.0:8080 or [::]:8080, nor a range 192.0.2.10-192.0.2.19:8080, nor a network 192.0.2.0/28:8080"
    )]
    Socket(String),
    /// Not in any of the forms without a port.
    #[error("{0:?} is not an address, such as 192.0.2.10/24, nor a range 192.0.2.10-192.0.2.19/24")]
    Claim(String),
    /// The end stands before the start, or they are of different families.
    #[error("{0:?}: the range ends before it begins, or mixes IPv4 and IPv6")]
    Range(String),
    /// Twice in the list.
    #[error("{0} is listed twice")]
    Twice(String),
    /// Too many.
    #[error("more than {ADDRESSES_MAX} addresses")]
    TooMany,
}

/// The addresses of entries such as `192.0.2.1:8080`, `192.0.2.10-192.0.2.19:8080`, `192.0.2.0/28:8080`,
/// `[2001:db8::1]:8080`, `[2001:db8::1-2001:db8::9]:8080` and `[2001:db8::/124]:8080`, in order.
///
/// Of a network, the addresses that a host can have: without network and broadcast address for IPv4, and without the
/// routers' anycast address for IPv6. Port 0 may stand several times: each gets a port of its own.
pub fn sockets<S: AsRef<str>>(entries: &[S]) -> Result<Vec<SocketAddr>, Error> {
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.as_ref().trim();
        let malformed = || Error::Socket(entry.to_owned());
        let (hosts, port) = split_port(entry).ok_or_else(malformed)?;
        for ip in hosts_of(hosts, entry, malformed)? {
            let address = SocketAddr::new(ip, port);
            if port != 0 && all.contains(&address) {
                return Err(Error::Twice(address.to_string()));
            }
            if all.len() == ADDRESSES_MAX {
                return Err(Error::TooMany);
            }
            all.push(address);
        }
    }
    Ok(all)
}

/// The addresses of entries such as `192.0.2.10/24` and `192.0.2.10-192.0.2.19/24`, each with the length of its
/// network's prefix; without one, the address alone (32 or 128).
pub fn claims<S: AsRef<str>>(entries: &[S]) -> Result<Vec<IpNet>, Error> {
    let mut all: Vec<IpNet> = Vec::new();
    for entry in entries {
        let entry = entry.as_ref().trim();
        let malformed = || Error::Claim(entry.to_owned());
        let (hosts, length) = match entry.rsplit_once('/') {
            Some((hosts, length)) => (hosts, Some(length.parse::<u8>().map_err(|_| malformed())?)),
            None => (entry, None),
        };
        for ip in hosts_of(hosts, entry, malformed)? {
            let alone = if ip.is_ipv4() { 32 } else { 128 };
            let claim = IpNet::new(ip, length.unwrap_or(alone)).map_err(|_| malformed())?;
            if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
                return Err(malformed());
            }
            if all.iter().any(|other| other.addr() == ip) {
                return Err(Error::Twice(ip.to_string()));
            }
            if all.len() == ADDRESSES_MAX {
                return Err(Error::TooMany);
            }
            all.push(claim);
        }
    }
    Ok(all)
}

/// Takes the port off the end; IPv6 stands in brackets.
fn split_port(entry: &str) -> Option<(&str, u16)> {
    let (hosts, port) = entry.rsplit_once(':')?;
    let port = port.parse().ok()?;
    match hosts.strip_prefix('[') {
        Some(rest) => Some((rest.strip_suffix(']')?, port)),
        None => (!hosts.contains(':')).then_some((hosts, port)),
    }
}

fn hosts_of(hosts: &str, entry: &str, malformed: impl Fn() -> Error) -> Result<Vec<IpAddr>, Error> {
    if let Some((first, last)) = hosts.split_once('-') {
        let first: IpAddr = first.trim().parse().map_err(|_| malformed())?;
        let last: IpAddr = last.trim().parse().map_err(|_| malformed())?;
        return range(first, last).ok_or_else(|| Error::Range(entry.to_owned()))?;
    }
    if hosts.contains('/') {
        let network: IpNet = hosts.parse().map_err(|_| malformed())?;
        let spare_bits = network.max_prefix_len() - network.prefix_len();
        // Even of a large network no more are made than are then refused.
        if u32::from(spare_bits) > ADDRESSES_MAX.ilog2() + 1 {
            return Err(Error::TooMany);
        }
        let is_anycast = |ip: &IpAddr| ip.is_ipv6() && spare_bits > 1 && *ip == network.network();
        return Ok(network.hosts().filter(|ip| !is_anycast(ip)).collect());
    }
    Ok(vec![hosts.parse().map_err(|_| malformed())?])
}

/// `None` when it is no range; an error when it is too long.
fn range(first: IpAddr, last: IpAddr) -> Option<Result<Vec<IpAddr>, Error>> {
    let (from, to) = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            (u128::from(first.to_bits()), u128::from(last.to_bits()))
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => (first.to_bits(), last.to_bits()),
        _ => return None,
    };
    let more = to.checked_sub(from)?;
    if more >= ADDRESSES_MAX as u128 {
        return Some(Err(Error::TooMany));
    }
    let address = |bits: u128| match u32::try_from(bits) {
        Ok(bits) if first.is_ipv4() => IpAddr::V4(Ipv4Addr::from_bits(bits)),
        _ => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    };
    Some(Ok((from..=to).map(address).collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(entries: &[&str]) -> Vec<String> {
        let all = sockets(entries).unwrap();
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_form_is_read() {
        assert_eq!(
            texts(&["0.0.0.0:8080", "[::1]:1"]),
            ["0.0.0.0:8080", "[::1]:1"]
        );
        assert_eq!(
            texts(&["192.0.2.255-192.0.3.1:9"]),
            ["192.0.2.255:9", "192.0.3.0:9", "192.0.3.1:9"]
        );
        assert_eq!(texts(&["192.0.2.4/30:9"]), ["192.0.2.5:9", "192.0.2.6:9"]);
        assert_eq!(texts(&["192.0.2.4/31:9"]), ["192.0.2.4:9", "192.0.2.5:9"]);
        assert_eq!(texts(&["192.0.2.4/32:9"]), ["192.0.2.4:9"]);
        assert_eq!(
            texts(&["[2001:db8::/126]:9"]),
            ["[2001:db8::1]:9", "[2001:db8::2]:9", "[2001:db8::3]:9"]
        );
        assert_eq!(
            texts(&["[2001:db8::9-2001:db8::a]:9"]),
            ["[2001:db8::9]:9", "[2001:db8::a]:9"]
        );
        assert_eq!(texts(&["127.0.0.1:0", "127.0.0.1:0"]).len(), 2);
        assert_eq!(sockets(&["10.0.0.0-10.0.3.255:1"]).unwrap().len(), 1024);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for entry in [
            "",
            "8080",
            ":8080",
            "localhost:8080",
            "192.0.2.1",
            "192.0.2.1:65536",
            "::1:8080",
            "192.0.2.1-:8080",
            "192.0.2.0/33:1",
            "[192.0.2.1",
            "192.0.2.1-9:8080",
        ] {
            assert_eq!(
                sockets(&[entry]),
                Err(Error::Socket(entry.into())),
                "{entry}"
            );
        }
        for entry in ["192.0.2.9-192.0.2.1:1", "[192.0.2.1-::1]:1"] {
            assert_eq!(
                sockets(&[entry]),
                Err(Error::Range(entry.into())),
                "{entry}"
            );
        }
        for entry in [
            "10.0.0.0-10.0.4.0:1",
            "10.0.0.0/21:1",
            "0.0.0.0/0:1",
            "[::/0]:1",
            "[::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:1",
        ] {
            assert_eq!(sockets(&[entry]), Err(Error::TooMany), "{entry}");
        }
        assert_eq!(
            sockets(&["192.0.2.0/30:1", "192.0.2.1:1"]),
            Err(Error::Twice("192.0.2.1:1".into()))
        );
    }

    #[test]
    fn claims_have_a_network() {
        let all = claims(&["192.0.2.10/24", "192.0.2.11-192.0.2.12/24", "2001:db8::1"]).unwrap();
        let texts: Vec<_> = all.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "192.0.2.10/24",
                "192.0.2.11/24",
                "192.0.2.12/24",
                "2001:db8::1/128"
            ]
        );
        for entry in [
            "192.0.2.1/33",
            "x",
            "192.0.2.1/",
            "0.0.0.0",
            "127.0.0.1/8",
            "224.0.0.1",
        ] {
            assert_eq!(claims(&[entry]), Err(Error::Claim(entry.into())), "{entry}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_or_makes_too_many(text in "[0-9a-f.:/\\[\\]-]{0,60}") {
            if let Ok(all) = sockets(&[&text]) {
                prop_assert!(all.len() <= ADDRESSES_MAX);
            }
            if let Ok(all) = claims(&[&text]) {
                prop_assert!(all.len() <= ADDRESSES_MAX);
            }
        }
    }
}
