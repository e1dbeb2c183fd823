//! Where connections go and where they come from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, bail};
use rustls_pki_types::ServerName;

/// One server address, as the parts of `https://host[:port][/prefix]`.
#[derive(Clone, Debug)]
pub struct Target {
    /// The first address of the name, as it was when the target was parsed.
    pub address: SocketAddr,
    /// The name and port to resolve for each connection, as osquery does; none: `address` is used throughout.
    pub resolve_each: Option<(String, u16)>,
    /// Host part of the URL; sent as server name and checked against the certificate.
    pub server_name: ServerName<'static>,
    /// `Host` header: without the port when it is 443.
    pub host: String,
    /// False for `http://`, for a server behind something that ends TLS.
    pub is_tls: bool,
    /// Path prefix, without a slash at the end.
    pub prefix: String,
}

impl Target {
    /// Parses and resolves a URL. `https://` may be left out, as in `tls_hostname`.
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        let (is_tls, rest) = match url.split_once("://") {
            None => (true, url),
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            Some((scheme, _)) => bail!("{url}: scheme {scheme} is neither https nor http"),
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let default_port = if is_tls { 443 } else { 80 };
        let (name, port) = split_port(authority, default_port)
            .with_context(|| format!("{url}: cannot read host and port"))?;
        let address = (name, port)
            .to_socket_addrs()
            .with_context(|| format!("{url}: cannot resolve {name}"))?
            .next()
            .with_context(|| format!("{url}: {name} has no address"))?;
        let server_name = ServerName::try_from(name.to_owned())
            .with_context(|| format!("{url}: {name} is no server name"))?;
        let host = if port == default_port {
            name.to_owned()
        } else {
            format!("{name}:{port}")
        };
        Ok(Self {
            address,
            resolve_each: None,
            server_name,
            host,
            is_tls,
            prefix: path.trim_end_matches('/').to_owned(),
        })
    }
}

impl Target {
    /// Has the name resolved for every connection.
    pub fn resolving_each(mut self) -> Self {
        let name = self.server_name.to_str().into_owned();
        self.resolve_each = Some((name, self.address.port()));
        self
    }

    /// Where a connection may go, best first: osquery tries one after the other.
    pub async fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        match &self.resolve_each {
            None => Ok(vec![self.address]),
            Some((name, port)) => {
                let found = tokio::net::lookup_host((name.as_str(), *port)).await?;
                Ok(found.collect())
            }
        }
    }
}

fn split_port(authority: &str, default_port: u16) -> Option<(&str, u16)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (name, tail) = rest.split_once(']')?;
        return match tail.strip_prefix(':') {
            Some(port) => Some((name, port.parse().ok()?)),
            None => tail.is_empty().then_some((name, default_port)),
        };
    }
    let (name, port) = match authority.split_once(':') {
        Some((name, port)) => (name, port.parse().ok()?),
        None => (authority, default_port),
    };
    (!name.is_empty()).then_some((name, port))
}

/// Source addresses, used in turn. Empty: the kernel chooses.
///
/// One source address gives about 28,000 ports toward one destination, and a closed connection keeps its port for a
/// minute; so a load of more than some 400 connections a second needs several.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    addresses: Arc<[IpAddr]>,
    next: Arc<AtomicUsize>,
}

/// Addresses that one range may name.
const SOURCES_MAX: u32 = 4096;
/// Used toward loopback even when few would do: a closed connection's port rests for a minute.
const SOURCES_MIN: u32 = 64;
/// Half of the usual range of 28,232: beyond it, connecting becomes slow.
const PORTS_PER_PAIR: u32 = 14_000;

impl Sources {
    /// Parses addresses, `a-b` ranges and CIDR blocks, separated by commas.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut addresses = Vec::new();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            match (part.split_once('-'), part.split_once('/')) {
                (Some((first, last)), _) => extend_range(&mut addresses, first, last)?,
                (None, Some((base, bits))) => extend_block(&mut addresses, base, bits)?,
                (None, None) => {
                    addresses.push(
                        part.parse()
                            .with_context(|| format!("{part}: no address"))?,
                    );
                }
            }
        }
        Ok(Self::from(addresses))
    }

    /// What is used when nothing is said. Toward loopback from 127.0.0.2 on: 64 addresses, or as many as that no pair of
    /// source and target needs more than [`PORTS_PER_PAIR`] ports for that many sockets at a time. Elsewhere the
    /// kernel's choice.
    pub fn default_for(targets: &[Arc<Target>], sockets: u32) -> Self {
        let is_loopback_v4 =
            |target: &Arc<Target>| target.address.is_ipv4() && target.address.ip().is_loopback();
        if targets.is_empty() || !targets.iter().all(is_loopback_v4) {
            return Self::default();
        }
        let pairs = sockets.div_ceil(PORTS_PER_PAIR);
        let targets = u32::try_from(targets.len()).unwrap_or(u32::MAX);
        let count = pairs.div_ceil(targets).clamp(SOURCES_MIN, SOURCES_MAX);
        let first = u32::from(Ipv4Addr::new(127, 0, 0, 2));
        let addresses: Vec<IpAddr> = (first..first + count)
            .map(|number| IpAddr::V4(Ipv4Addr::from(number)))
            .collect();
        Self::from(addresses)
    }

    /// The address for the `index`-th socket, when targets take turns too: every pair gets its share.
    pub fn for_pair(&self, index: usize, targets: usize) -> Option<IpAddr> {
        let round = index.checked_div(targets)?;
        let place = round.checked_rem(self.addresses.len())?;
        self.addresses.get(place).copied()
    }

    /// The next address in turn.
    pub fn next(&self) -> Option<IpAddr> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let index = turn.checked_rem(self.addresses.len())?;
        self.addresses.get(index).copied()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Whether the kernel chooses.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }
}

impl From<Vec<IpAddr>> for Sources {
    fn from(addresses: Vec<IpAddr>) -> Self {
        Self {
            addresses: addresses.into(),
            next: Arc::default(),
        }
    }
}

fn extend_range(addresses: &mut Vec<IpAddr>, first: &str, last: &str) -> anyhow::Result<()> {
    let from = u32::from(
        first
            .trim()
            .parse::<Ipv4Addr>()
            .with_context(|| first.to_owned())?,
    );
    // 127.0.0.2-50 means 127.0.0.2-127.0.0.50.
    let to = match last.trim().parse::<u8>() {
        Ok(octet) => (from & !0xff) | u32::from(octet),
        Err(_) => u32::from(
            last.trim()
                .parse::<Ipv4Addr>()
                .with_context(|| last.to_owned())?,
        ),
    };
    extend_numbers(addresses, from, to)
}

fn extend_block(addresses: &mut Vec<IpAddr>, base: &str, bits: &str) -> anyhow::Result<()> {
    let base = u32::from(base.parse::<Ipv4Addr>().with_context(|| base.to_owned())?);
    let bits: u32 = bits.parse().with_context(|| bits.to_owned())?;
    if !(16..=32).contains(&bits) {
        bail!("/{bits}: a block of sources must be /16 to /32");
    }
    let size = 1_u32 << (32 - bits);
    let from = base & !(size - 1);
    // Network and broadcast address are left out of real blocks.
    if size > 2 {
        extend_numbers(addresses, from + 1, from + (size - 2).min(SOURCES_MAX))
    } else {
        extend_numbers(addresses, from, from + (size - 1))
    }
}

fn extend_numbers(addresses: &mut Vec<IpAddr>, from: u32, to: u32) -> anyhow::Result<()> {
    if to < from || to - from >= SOURCES_MAX {
        bail!("a range of sources holds 1 to {SOURCES_MAX} addresses");
    }
    addresses.extend((from..=to).map(|number| IpAddr::V4(Ipv4Addr::from(number))));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_become_targets() {
        let target = Target::parse("https://127.0.0.1:8080/fleet/").unwrap();
        assert_eq!(target.address, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(target.host, "127.0.0.1:8080");
        assert_eq!(target.prefix, "/fleet");
        assert!(target.is_tls);
        assert_eq!(Target::parse("127.0.0.1").unwrap().host, "127.0.0.1");
        assert_eq!(Target::parse("https://[::1]:9").unwrap().address.port(), 9);
        assert!(!Target::parse("http://127.0.0.1").unwrap().is_tls);
        for bad in ["ftp://127.0.0.1", "https://", "https://127.0.0.1:x"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pair_never_needs_more_than_half_of_the_ports() {
        let target = |port: u32| {
            let url = format!("https://127.0.0.1:{port}");
            Arc::new(Target::parse(&url).unwrap())
        };
        let two = [target(1), target(2)];
        for (targets, sockets, count) in [
            (&two[..1], 1, 64),
            (&two[..1], 1_000_000, 72),
            (&two[..], 1_000_000, 64),
            (&two[..], 4_000_000, 143),
        ] {
            assert_eq!(Sources::default_for(targets, sockets).len(), count);
        }
        let elsewhere = [Arc::new(Target::parse("https://192.0.2.1").unwrap())];
        assert!(Sources::default_for(&elsewhere, 1_000_000).is_empty());
    }

    #[test]
    fn sources_come_as_lists_ranges_and_blocks() {
        for (text, count) in [
            ("", 0),
            ("127.0.0.2", 1),
            ("127.0.0.2-127.0.0.50", 49),
            ("127.0.0.2-50, 127.0.1.1", 50),
            ("127.9.0.0/24", 254),
            ("::1", 1),
        ] {
            assert_eq!(Sources::parse(text).unwrap().len(), count, "{text}");
        }
        for bad in ["x", "127.0.0.9-127.0.0.2", "10.0.0.0/8"] {
            assert!(Sources::parse(bad).is_err(), "{bad}");
        }
        let sources = Sources::parse("127.0.0.2-3").unwrap();
        let pairs: std::collections::BTreeSet<_> = (0..4)
            .map(|index| (index % 2, sources.for_pair(index, 2).unwrap()))
            .collect();
        assert_eq!(pairs.len(), 4, "two targets with two sources");
        let turns: Vec<_> = (0..3).map(|_| sources.next().unwrap()).collect();
        assert_eq!(turns[0], turns[2]);
        assert_ne!(turns[0], turns[1]);
    }
}
