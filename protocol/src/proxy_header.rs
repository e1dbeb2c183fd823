//! PROXY protocol v2: how a worker tells control whom a tunnel speaks for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_AND_PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// Bytes before the addresses.
pub const PREFIX_BYTES: usize = 16;
/// Longest header that is read: the prefix, IPv6 addresses, and TLVs.
pub const HEADER_BYTES_MAX: usize = 536;

/// Why bytes are not a header that we take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not TCP over IPv4 or IPv6, or not the PROXY command.
    #[error("unsupported PROXY command or address family")]
    Family,
    /// Longer than [`HEADER_BYTES_MAX`], or too short for its addresses.
    #[error("bad PROXY header length")]
    Length,
    /// Something else altogether.
    #[error("not a PROXY v2 header")]
    Signature,
}

/// The header for a client at `source` that reached us at `destination`. Mixed families travel as IPv6.
pub fn encode(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut header = Vec::with_capacity(PREFIX_BYTES + 36);
    header.extend_from_slice(&SIGNATURE);
    header.push(VERSION_AND_PROXY);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.extend_from_slice(&[TCP_OVER_IPV4, 0, 12]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
        }
        (from, to) => {
            header.extend_from_slice(&[TCP_OVER_IPV6, 0, 36]);
            header.extend_from_slice(&as_v6(from).octets());
            header.extend_from_slice(&as_v6(to).octets());
        }
    }
    header.extend_from_slice(&source.port().to_be_bytes());
    header.extend_from_slice(&destination.port().to_be_bytes());
    header
}

fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// Reads a header off the front of `input`: the client's address and the header's length; `None` when more bytes are
/// needed.
pub fn decode(input: &[u8]) -> Result<Option<(SocketAddr, usize)>, Error> {
    let seen = input.len().min(SIGNATURE.len());
    if input.get(..seen) != SIGNATURE.get(..seen) {
        return Err(Error::Signature);
    }
    let Some(&[version, family, high, low]) = input.get(SIGNATURE.len()..PREFIX_BYTES) else {
        return Ok(None);
    };
    if version != VERSION_AND_PROXY {
        return Err(Error::Family);
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if PREFIX_BYTES + length > HEADER_BYTES_MAX {
        return Err(Error::Length);
    }
    let Some(body) = input.get(PREFIX_BYTES..PREFIX_BYTES + length) else {
        return Ok(None);
    };
    let source = match family {
        TCP_OVER_IPV4 => {
            let ip: [u8; 4] = field(body, 0).ok_or(Error::Length)?;
            let port: [u8; 2] = field(body, 8).ok_or(Error::Length)?;
            SocketAddr::new(Ipv4Addr::from(ip).into(), u16::from_be_bytes(port))
        }
        TCP_OVER_IPV6 => {
            let ip: [u8; 16] = field(body, 0).ok_or(Error::Length)?;
            let port: [u8; 2] = field(body, 32).ok_or(Error::Length)?;
            SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), u16::from_be_bytes(port))
        }
        _ => return Err(Error::Family),
    };
    Ok(Some((source, PREFIX_BYTES + length)))
}

fn field<const N: usize>(body: &[u8], at: usize) -> Option<[u8; N]> {
    body.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn round_trips() {
        for (from, to) in [
            ("192.0.2.7:51000", "198.51.100.1:8080"),
            ("[2001:db8::7]:51000", "[2001:db8::1]:8080"),
            ("192.0.2.7:51000", "[2001:db8::1]:8080"),
        ] {
            let from: SocketAddr = from.parse().unwrap();
            let header = encode(from, to.parse().unwrap());
            assert_eq!(decode(&header), Ok(Some((from, header.len()))));
            for cut in 0..header.len() {
                assert_eq!(decode(&header[..cut]), Ok(None), "cut at {cut}");
            }
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&bytes);
            let mut signed = SIGNATURE.to_vec();
            signed.extend_from_slice(&bytes);
            let _ = decode(&signed);
        }
    }
}
