//! The PROXY protocol's version 2: how a balancer tells a worker, and a worker tells control, whom a connection speaks
//! for. Pure and bounded.
//!
//! Source of the format: HAProxy's `doc/proxy-protocol.txt`, section 2.2. Nothing of a header is believed before all of
//! it is there; what a sender may not say is refused; what it may leave open (LOCAL, no or another family) leaves the
//! connection's own addresses in place.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// What every header begins with. No TLS record and no HTTP request does.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes before the addresses.
pub const PREFIX_BYTES: usize = 16;
/// Longest header that is read: the prefix, addresses, and TLVs. A first segment of any network holds it.
pub const HEADER_BYTES_MAX: usize = 536;

const VERSION: u8 = 2;
const COMMAND_LOCAL: u8 = 0;
const COMMAND_PROXY: u8 = 1;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const IPV4_BYTES: usize = 12;
const IPV6_BYTES: usize = 36;
/// Highest families and transports that have a meaning: `AF_UNIX`, datagrams.
const FAMILY_MAX: u8 = 3;
const TRANSPORT_MAX: u8 = 2;
/// Type and length of a TLV.
const TLV_PREFIX_BYTES: usize = 3;
const TLV_CRC32C: u8 = 3;

/// Why bytes are not a header that we take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Its CRC32c is another than that of its bytes.
    #[error("the PROXY header's checksum is wrong")]
    Checksum,
    /// Neither LOCAL nor PROXY.
    #[error("unknown PROXY command")]
    Command,
    /// A family or transport that no sender may name.
    #[error("unknown PROXY address family or transport")]
    Family,
    /// Longer than [`HEADER_BYTES_MAX`], or too short for its addresses.
    #[error("bad PROXY header length")]
    Length,
    /// Something else altogether.
    #[error("not a PROXY header")]
    Signature,
    /// Its TLVs do not fill it exactly.
    #[error("malformed TLV in a PROXY header")]
    Tlv,
    /// Another version than 2.
    #[error("unknown PROXY version")]
    Version,
}

/// Whom a connection speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// For its own peer: a health check, or a client of whom the sender cannot tell.
    Peer,
    /// For a client that connected to the sender.
    Client {
        /// The client; IPv4 in its own form.
        source: SocketAddr,
        /// Where it connected to.
        destination: SocketAddr,
    },
}

/// A header that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whom the connection speaks for.
    pub origin: Origin,
    /// Bytes of the header; what follows it is the client's.
    pub length: usize,
}

/// The header for a client at `source` that reached us at `destination`. Mixed families travel as IPv6.
pub fn encode(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut header = Vec::with_capacity(PREFIX_BYTES + IPV6_BYTES);
    header.extend_from_slice(&SIGNATURE);
    header.push(VERSION << 4 | COMMAND_PROXY);
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

/// Reads a header off the front of `input`; `None` when more bytes are needed, which is never so once there are
/// [`HEADER_BYTES_MAX`] of them.
pub fn decode(input: &[u8]) -> Result<Option<Header>, Error> {
    let seen = input.len().min(SIGNATURE.len());
    if input.get(..seen) != SIGNATURE.get(..seen) {
        return Err(Error::Signature);
    }
    let Some(&[version_and_command, family, high, low]) = input.get(SIGNATURE.len()..PREFIX_BYTES)
    else {
        return Ok(None);
    };
    if version_and_command >> 4 != VERSION {
        return Err(Error::Version);
    }
    let command = version_and_command & 0x0f;
    if !matches!(command, COMMAND_LOCAL | COMMAND_PROXY) {
        return Err(Error::Command);
    }
    let length = PREFIX_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if length > HEADER_BYTES_MAX {
        return Err(Error::Length);
    }
    // Of a LOCAL header the rest means nothing, its family included.
    let is_local = command == COMMAND_LOCAL;
    if !is_local && (family >> 4 > FAMILY_MAX || family & 0x0f > TRANSPORT_MAX) {
        return Err(Error::Family);
    }
    let Some(header) = input.get(..length) else {
        return Ok(None);
    };
    let origin = if is_local {
        Origin::Peer
    } else {
        read_origin(header, family)?
    };
    Ok(Some(Header { origin, length }))
}

/// The addresses of a whole header, whose TLVs are checked.
fn read_origin(header: &[u8], family: u8) -> Result<Origin, Error> {
    let body = header.get(PREFIX_BYTES..).unwrap_or_default();
    let (from, to, ports) = match family {
        TCP_OVER_IPV4 => {
            let [from, to] = [0, 4].map(|at| field(body, at).map(|ip: [u8; 4]| ip.into()));
            (from, to, IPV4_BYTES - 4)
        }
        TCP_OVER_IPV6 => {
            let address = |ip: [u8; 16]| Ipv6Addr::from(ip).to_canonical();
            let [from, to] = [0, 16].map(|at| field(body, at).map(address));
            (from, to, IPV6_BYTES - 4)
        }
        // No family, a socket of the sender's machine, datagrams: nothing that could be a TCP client's address.
        _ => return Ok(Origin::Peer),
    };
    let address = |ip: Option<IpAddr>, port_at| {
        let port = field(body, port_at).ok_or(Error::Length)?;
        let ip = ip.ok_or(Error::Length)?;
        Ok(SocketAddr::new(ip, u16::from_be_bytes(port)))
    };
    let origin = Origin::Client {
        source: address(from, ports)?,
        destination: address(to, ports + 2)?,
    };
    check_tlvs(header, PREFIX_BYTES + ports + 4)?;
    Ok(origin)
}

fn field<const N: usize>(body: &[u8], at: usize) -> Option<[u8; N]> {
    body.get(at..at + N)?.try_into().ok()
}

/// TLVs stand from `at` to the end. Only a checksum means something to us.
fn check_tlvs(header: &[u8], mut at: usize) -> Result<(), Error> {
    let mut has_checksum = false;
    while at < header.len() {
        let [kind, high, low] = field(header, at).ok_or(Error::Tlv)?;
        let start = at + TLV_PREFIX_BYTES;
        at = start + usize::from(u16::from_be_bytes([high, low]));
        let value = header.get(start..at).ok_or(Error::Tlv)?;
        if kind != TLV_CRC32C {
            continue;
        }
        let given: [u8; 4] = value.try_into().map_err(|_| Error::Tlv)?;
        if std::mem::replace(&mut has_checksum, true) {
            return Err(Error::Tlv);
        }
        if u32::from_be_bytes(given) != checksum(header, start) {
            return Err(Error::Checksum);
        }
    }
    Ok(())
}

/// CRC32c of a header whose four bytes at `zeroed_at`, where the checksum itself stands, count as zeros.
pub fn checksum(header: &[u8], zeroed_at: usize) -> u32 {
    let zeroed = zeroed_at..zeroed_at.saturating_add(4);
    let bytes = header.iter().enumerate();
    let sum = bytes.fold(u32::MAX, |sum, (index, byte)| {
        let byte = if zeroed.contains(&index) { 0 } else { *byte };
        let index = (sum ^ u32::from(byte)) & 0xff;
        let entry = CRC32C.get(index as usize).copied().unwrap_or_default();
        sum >> 8 ^ entry
    });
    !sum
}

/// Castagnoli's polynomial, bits reversed (RFC 9260, appendix A).
const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0_u32;
    while index < 256 {
        let (mut entry, mut bit) = (index, 0);
        while bit < 8 {
            entry = if entry & 1 == 1 {
                entry >> 1 ^ 0x82f6_3b78
            } else {
                entry >> 1
            };
            bit += 1;
        }
        #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
        {
            table[index as usize] = entry;
        }
        index += 1;
    }
    table
};

#[cfg(test)]
#[path = "proxy_header_tests.rs"]
mod tests;
