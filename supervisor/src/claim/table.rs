//! The kernel's addresses, which of them are ours, and which go when one of ours goes. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};

use super::record::Entry;

/// What the kernel keeps beside our addresses from 5.18 on (IFA_PROTO): a number that nobody else uses.
pub(crate) const PROTOCOL: u8 = 0xf1;
/// Longest interface name or label (IFNAMSIZ without the end).
const LABEL_BYTES_MAX: usize = 15;

/// One address of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Assigned {
    /// With the length of its prefix.
    pub(crate) address: IpNet,
    /// The interface's number.
    pub(crate) index: u32,
    /// All that the kernel says, to put it back as it was.
    pub(crate) message: AddressMessage,
}

impl Assigned {
    /// None for what is no unicast address.
    pub(crate) fn from_message(message: AddressMessage) -> Option<Self> {
        let (mut local, mut peer) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => peer = Some(*ip),
                _ => {}
            }
        }
        // They differ where an interface has one peer; the local one is the machine's.
        let address = IpNet::new(local.or(peer)?, message.header.prefix_len).ok()?;
        Some(Self {
            address,
            index: message.header.index,
            message,
        })
    }

    /// Whether an IPv4 address goes with the first one of its network.
    pub(crate) fn is_secondary(&self) -> bool {
        let mut attributes = self.message.attributes.iter();
        self.address.addr().is_ipv4()
            && attributes.any(|attribute| match attribute {
                AddressAttribute::Flags(flags) => flags.contains(AddressFlags::Secondary),
                _ => false,
            })
    }

    fn label(&self) -> Option<&str> {
        let mut attributes = self.message.attributes.iter();
        attributes.find_map(|attribute| match attribute {
            AddressAttribute::Label(label) => Some(label.as_str()),
            _ => None,
        })
    }

    fn protocol(&self) -> Option<u8> {
        let mut attributes = self.message.attributes.iter();
        attributes.find_map(|attribute| match attribute {
            AddressAttribute::Protocol(protocol) => Some(u8::from(*protocol)),
            _ => None,
        })
    }
}

/// Of our IPv4 addresses: `eth0:fleet`, cut to what fits. Tools expect it to begin with the interface's name.
pub(crate) fn label(interface: &str) -> String {
    let whole = format!("{interface}:fleet");
    whole.chars().take(LABEL_BYTES_MAX).collect()
}

/// Every address of the machine.
#[derive(Debug)]
pub(crate) struct Table(pub(crate) Vec<Assigned>);

impl Table {
    /// On whatever interface.
    pub(crate) fn find(&self, ip: IpAddr) -> Option<&Assigned> {
        self.0.iter().find(|assigned| assigned.address.addr() == ip)
    }

    /// The address of an entry, if it is still there, still where we put it, and not put there by somebody else since.
    pub(crate) fn ours(&self, entry: &Entry) -> Option<&Assigned> {
        let is_there = |assigned: &&Assigned| {
            assigned.address == entry.address && assigned.index == entry.index
        };
        self.0
            .iter()
            .find(is_there)
            .filter(|assigned| self.has_our_mark(assigned, &entry.interface))
    }

    /// The kernel's mark decides; without one, the label; without that, the record alone, which is all there is for
    /// IPv6 on kernels before 5.18. Newer ones mark their own addresses, too, so that they can be told apart.
    fn has_our_mark(&self, assigned: &Assigned, interface: &str) -> bool {
        if let Some(protocol) = assigned.protocol() {
            return protocol == PROTOCOL;
        }
        // The kernel renames labels with their interface and keeps what follows the colon.
        let mark = label(interface);
        let (_, suffix) = mark.split_once(':').unwrap_or_default();
        if assigned.address.addr().is_ipv4() && !suffix.is_empty() {
            let found = assigned.label().and_then(|found| found.split_once(':'));
            return found.is_some_and(|(_, found)| found == suffix);
        }
        !self.0.iter().any(|other| other.protocol().is_some())
    }

    /// What the kernel may remove together with an IPv4 address: the secondary ones of the same network, unless the
    /// interface promotes them (net.ipv4.conf.*.promote_secondaries).
    pub(crate) fn dependents(&self, going: &Assigned) -> Vec<&Assigned> {
        if going.is_secondary() || going.address.addr().is_ipv6() {
            return Vec::new();
        }
        let is_dependent = |other: &&Assigned| {
            other.index == going.index
                && other.is_secondary()
                && other.address.trunc() == going.address.trunc()
        };
        self.0.iter().filter(is_dependent).collect()
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::address::AddressProtocol;

    use super::*;

    fn assigned(address: &str, attributes: &[AddressAttribute]) -> Assigned {
        let address: IpNet = address.parse().unwrap();
        let mut message = AddressMessage::default();
        message.header.index = 2;
        message.header.prefix_len = address.prefix_len();
        message.attributes = vec![AddressAttribute::Address(address.addr())];
        message.attributes.extend_from_slice(attributes);
        Assigned::from_message(message).unwrap()
    }

    fn entry(address: &str, interface: &str) -> Entry {
        Entry {
            address: address.parse().unwrap(),
            interface: interface.into(),
            index: 2,
        }
    }

    fn is_ours(address: &str, interface: &str, table: Vec<Assigned>) -> bool {
        Table(table).ours(&entry(address, interface)).is_some()
    }

    fn protocol(number: u8) -> AddressAttribute {
        AddressAttribute::Protocol(AddressProtocol::Other(number))
    }

    fn labelled(text: &str) -> AddressAttribute {
        AddressAttribute::Label(text.into())
    }

    #[test]
    fn labels_fit() {
        assert_eq!(label("eth0"), "eth0:fleet");
        assert_eq!(label("enp129s0f1np1"), "enp129s0f1np1:f");
        assert_eq!(label("fifteen-letters"), "fifteen-letters");
    }

    #[test]
    fn ours_is_what_bears_our_mark() {
        let (v4, v6) = ("192.0.2.1/24", "2001:db8::1/64");
        let kernels = assigned(
            "::1/128",
            &[AddressAttribute::Protocol(AddressProtocol::Loopback)],
        );
        for (address, attributes, expected) in [
            (v4, vec![protocol(PROTOCOL), labelled("eth0:fleet")], true),
            (v4, vec![protocol(4), labelled("eth0:fleet")], false),
            // Kernels before 5.18, and an interface that was renamed.
            (v4, vec![labelled("eth0:fleet")], true),
            (v4, vec![labelled("lan0:fleet")], true),
            (v4, vec![labelled("eth0")], false),
            (v4, vec![labelled("eth0:1")], false),
            (v4, vec![], false),
            (v6, vec![protocol(PROTOCOL)], true),
            (v6, vec![protocol(4)], false),
        ] {
            let found = assigned(address, &attributes);
            assert_eq!(
                is_ours(address, "eth0", vec![found]),
                expected,
                "{attributes:?}"
            );
        }
        // Without any mark the record counts, unless the kernel is one that would show marks.
        assert!(is_ours(v6, "eth0", vec![assigned(v6, &[])]));
        assert!(!is_ours(v6, "eth0", vec![assigned(v6, &[]), kernels]));
        let cut = "fifteen-letters";
        assert!(is_ours(v4, cut, vec![assigned(v4, &[labelled(cut)])]));
    }

    #[test]
    fn another_interface_or_prefix_is_not_ours() {
        let found = assigned("192.0.2.1/24", &[protocol(PROTOCOL)]);
        assert!(!is_ours("192.0.2.1/25", "eth0", vec![found.clone()]));
        assert!(!is_ours("192.0.2.2/24", "eth0", vec![found.clone()]));
        let mut elsewhere = entry("192.0.2.1/24", "eth0");
        elsewhere.index = 3;
        assert!(Table(vec![found]).ours(&elsewhere).is_none());
    }

    #[test]
    fn secondaries_depend_on_the_first_of_their_network() {
        let secondary = [AddressAttribute::Flags(AddressFlags::Secondary)];
        let first = assigned("192.0.2.1/24", &[]);
        let second = assigned("192.0.2.2/24", &secondary);
        let others = [
            assigned("192.0.2.3/25", &[]),
            assigned("192.0.2.4/25", &secondary),
            assigned("198.51.100.1/24", &secondary),
            assigned("192.0.2.5/24", &[]),
        ];
        let mut all = vec![first.clone(), second.clone()];
        all.extend(others);
        let table = Table(all);
        assert_eq!(table.dependents(&first), [&second]);
        assert!(table.dependents(&second).is_empty());
        assert_eq!(table.find("192.0.2.2".parse().unwrap()), Some(&second));
    }
}
