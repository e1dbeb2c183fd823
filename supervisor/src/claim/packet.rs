//! The frames that ask who has an address and that say that we have it: ARP (RFC 826, RFC 5227) and neighbour discovery
//! (RFC 4861, RFC 4862) over Ethernet. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// Ethernet, IPv4, and the lengths of their addresses.
const ARP_HEADER: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ICMPV6: u8 = 58;
/// No router has passed it on, so its sender is on our link.
const HOP_LIMIT: u8 = 255;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
const ROUTER: u8 = 0x80;
const OVERRIDE: u8 = 0x20;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl Mac {
    const BROADCAST: Self = Self([0xff; 6]);

    /// Where Ethernet delivers an IPv6 group (RFC 2464 section 7).
    fn of_group(group: Ipv6Addr) -> Self {
        let [.., a, b, c, d] = group.octets();
        Self([0x33, 0x33, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The two forms of an ARP frame. Announced in both, because some equipment learns only from one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Who has it?
    Request = 1,
    /// I have it.
    Reply = 2,
}

/// Asks who has `target`, without a sender address, so that nobody learns anything from it.
pub(crate) fn arp_probe(own: Mac, target: Ipv4Addr) -> Vec<u8> {
    arp(
        own,
        Operation::Request,
        Ipv4Addr::UNSPECIFIED,
        Mac([0; 6]),
        target,
    )
}

/// Says that `own` has `address`.
pub(crate) fn arp_announcement(own: Mac, address: Ipv4Addr, operation: Operation) -> Vec<u8> {
    let target = match operation {
        Operation::Request => Mac([0; 6]),
        Operation::Reply => Mac::BROADCAST,
    };
    arp(own, operation, address, target, address)
}

fn arp(
    own: Mac,
    operation: Operation,
    sender: Ipv4Addr,
    target_mac: Mac,
    target: Ipv4Addr,
) -> Vec<u8> {
    let mut frame = ethernet(Mac::BROADCAST, own, ETHERTYPE_ARP);
    frame.extend(ARP_HEADER);
    frame.extend([0, operation as u8]);
    frame.extend(own.0);
    frame.extend(sender.octets());
    frame.extend(target_mac.0);
    frame.extend(target.octets());
    frame
}

/// The group in which whoever has `address` listens (RFC 4291 section 2.7.1).
pub(crate) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// Asks who has `target`, from the unspecified address: a probe for duplicates.
pub(crate) fn neighbor_solicitation(own: Mac, target: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    icmpv6(own, Ipv6Addr::UNSPECIFIED, solicited_node(target), message)
}

/// Says to all that `own` has `address`, in place of whoever had it. A router has to say that it is one.
pub(crate) fn neighbor_advertisement(own: Mac, address: Ipv6Addr, is_router: bool) -> Vec<u8> {
    let flags = if is_router {
        OVERRIDE | ROUTER
    } else {
        OVERRIDE
    };
    let mut message = vec![NEIGHBOR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    message.extend(address.octets());
    message.extend([TARGET_LINK_LAYER_ADDRESS, 1]);
    message.extend(own.0);
    icmpv6(own, address, ALL_NODES, message)
}

fn icmpv6(own: Mac, source: Ipv6Addr, destination: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let sum = checksum(source, destination, &message).to_be_bytes();
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum);
    }
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut frame = ethernet(Mac::of_group(destination), own, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, HOP_LIMIT]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(message);
    frame
}

fn ethernet(destination: Mac, source: Mac, kind: [u8; 2]) -> Vec<u8> {
    [&destination.0[..], &source.0[..], &kind[..]].concat()
}

/// Of ICMPv6 with its pseudo-header; 0 when the message holds the right one already.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let words = |bytes: &[u8]| -> u32 {
        let word = |pair: &[u8]| match pair {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            [high] => u32::from(*high) << 8,
            _ => 0,
        };
        bytes.chunks(2).map(word).fold(0, u32::wrapping_add)
    };
    let mut sum = words(&source.octets())
        .wrapping_add(words(&destination.octets()))
        .wrapping_add(words(&length.to_be_bytes()))
        .wrapping_add(u32::from(ICMPV6))
        .wrapping_add(words(message));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// The address that the sender of a frame has, or is about to take, and the sender. None for every other frame.
pub(crate) fn claimed_by(frame: &[u8]) -> Option<(IpAddr, Mac)> {
    let (_destination, rest) = frame.split_first_chunk::<6>()?;
    let (source, rest) = rest.split_first_chunk::<6>()?;
    let (kind, rest) = rest.split_first_chunk::<2>()?;
    match *kind {
        ETHERTYPE_ARP => claimed_by_arp(rest),
        ETHERTYPE_IPV6 => claimed_by_icmpv6(rest, Mac(*source)),
        _ => None,
    }
}

fn claimed_by_arp(packet: &[u8]) -> Option<(IpAddr, Mac)> {
    let rest = packet.strip_prefix(&ARP_HEADER)?;
    let (operation, rest) = rest.split_first_chunk::<2>()?;
    let (sender_mac, rest) = rest.split_first_chunk::<6>()?;
    let (sender, rest) = rest.split_first_chunk::<4>()?;
    let (_target_mac, rest) = rest.split_first_chunk::<6>()?;
    let (target, _padding) = rest.split_first_chunk::<4>()?;
    let sender = Ipv4Addr::from(*sender);
    let address = match operation {
        [0, 1 | 2] if !sender.is_unspecified() => sender,
        // Somebody else's probe.
        [0, 1] => Ipv4Addr::from(*target),
        _ => return None,
    };
    Some((address.into(), Mac(*sender_mac)))
}

fn claimed_by_icmpv6(packet: &[u8], sender: Mac) -> Option<(IpAddr, Mac)> {
    let ([version, ..], rest) = packet.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (next, rest) = rest.split_first_chunk::<2>()?;
    let (source, rest) = rest.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    let message = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
    let source = Ipv6Addr::from(*source);
    let is_whole = checksum(source, Ipv6Addr::from(*destination), message) == 0;
    if version >> 4 != 6 || *next != [ICMPV6, HOP_LIMIT] || !is_whole {
        return None;
    }
    let ([kind, code, ..], rest) = message.split_first_chunk::<8>()?;
    let (target, options) = rest.split_first_chunk::<16>()?;
    let target = Ipv6Addr::from(*target);
    match (*kind, *code) {
        (NEIGHBOR_SOLICITATION, 0) if source.is_unspecified() => Some((target.into(), sender)),
        (NEIGHBOR_SOLICITATION, 0) => Some((source.into(), sender)),
        (NEIGHBOR_ADVERTISEMENT, 0) => {
            let told = match options {
                [TARGET_LINK_LAYER_ADDRESS, 1, a, b, c, d, e, f, ..] => {
                    Mac([*a, *b, *c, *d, *e, *f])
                }
                _ => sender,
            };
            Some((target.into(), told))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);

    #[test]
    fn frames_are_as_the_standards_say() {
        let address = Ipv4Addr::new(192, 0, 2, 10);
        assert_eq!(
            arp_probe(OWN, address),
            [
                &[0xff; 6][..],
                &OWN.0,
                &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
                &OWN.0,
                &[0; 4],
                &[0; 6],
                &[192, 0, 2, 10]
            ]
            .concat()
        );
        let address: Ipv6Addr = "2001:db8::12:3456".parse().unwrap();
        assert_eq!(solicited_node(address).to_string(), "ff02::1:ff12:3456");
        let probe = neighbor_solicitation(OWN, address);
        assert_eq!(probe.len(), 14 + 40 + 24);
        assert_eq!(probe[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        let told = neighbor_advertisement(OWN, address, true);
        assert_eq!(told[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(told[14 + 40 + 4], 0xa0);
    }

    /// The example of a neighbour solicitation whose sum was worked out by hand: ff02::1:ff00:1 asked from ::.
    #[test]
    fn the_sum_is_right() {
        let probe = neighbor_solicitation(OWN, "fe80::1".parse().unwrap());
        // ff02 + 1 + ff00 + 1 (destination) + 24 (length) + 58 + 8700 (type) + fe80 + 1 (target), folded, inverted.
        let sum: u32 = 0xff02 + 1 + 0xff00 + 1 + 24 + 58 + 0x8700 + 0xfe80 + 1;
        let folded = (sum & 0xffff) + (sum >> 16);
        assert_eq!(
            u32::from(u16::from_be_bytes([probe[56], probe[57]])),
            0xffff - folded
        );
    }

    #[test]
    fn an_address_alone_is_shown_in_full() {
        assert_eq!(
            Mac([0xaa, 0xb, 0, 1, 2, 0xff]).to_string(),
            "aa:0b:00:01:02:ff"
        );
    }

    proptest! {
        #[test]
        fn what_is_sent_is_understood(mac in any::<[u8; 6]>(), v4 in 1_u32.., v6 in 1_u128.., is_router: bool) {
            let mac = Mac(mac);
            let (v4, v6) = (Ipv4Addr::from_bits(v4), Ipv6Addr::from_bits(v6));
            let expected = Some((IpAddr::from(v4), mac));
            prop_assert_eq!(claimed_by(&arp_probe(mac, v4)), expected);
            for operation in [Operation::Request, Operation::Reply] {
                prop_assert_eq!(claimed_by(&arp_announcement(mac, v4, operation)), expected);
            }
            let expected = Some((IpAddr::from(v6), mac));
            prop_assert_eq!(claimed_by(&neighbor_solicitation(mac, v6)), expected);
            prop_assert_eq!(claimed_by(&neighbor_advertisement(mac, v6, is_router)), expected);
        }

        #[test]
        fn no_bytes_panic(frame in proptest::collection::vec(any::<u8>(), 0..120), kind in 0..3_usize) {
            let mut frame = frame;
            if let Some(field) = frame.get_mut(12..14) {
                let kinds = [[0, 0], ETHERTYPE_ARP, ETHERTYPE_IPV6];
                field.copy_from_slice(&kinds[kind]);
            }
            let _ = claimed_by(&frame);
        }

        #[test]
        fn what_is_cut_or_damaged_says_nothing(cut in 0..86_usize, bit in 0..32 * 8_usize) {
            let address: Ipv6Addr = "2001:db8::1".parse().unwrap();
            let whole = neighbor_advertisement(OWN, address, false);
            prop_assert_eq!(whole.len(), 86);
            prop_assert_eq!(claimed_by(&whole[..cut]), None);
            let mut damaged = whole;
            damaged[54 + bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(claimed_by(&damaged), None);
            let probe = arp_probe(OWN, Ipv4Addr::LOCALHOST);
            if cut < probe.len() {
                prop_assert_eq!(claimed_by(&probe[..cut]), None);
            }
        }
    }
}
