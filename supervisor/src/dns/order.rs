//! Which addresses an answer holds, and in which order. Pure.

use std::net::IpAddr;

use fleet_protocol::address::{AddressState, AddressView};
use fleet_protocol::slot::Gateway;

/// The two kinds of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }
}

/// Open connections by which an address may be above the mean of all and still count as equal: agents come and go each
/// few milliseconds, and what is behind by a handful is not idle.
const SLACK_CONNECTIONS: u64 = 8;

/// The serving addresses of a family, the least loaded first. Addresses of about equal load take turns.
///
/// Strictly by load, everybody would be sent to the same address until the next report; so addresses up to an eighth
/// above the mean are one band, and the busier ones follow in steps of a quarter of the mean. Within a band the order
/// is that of the configuration, begun one later with each `turn`.
pub(crate) fn order(gateway: &Gateway, family: Family, turn: u64) -> Vec<IpAddr> {
    let loads = loads(gateway, family);
    let count = u64::try_from(loads.len()).unwrap_or(u64::MAX).max(1);
    let sum: u64 = loads.iter().map(|(_, open)| *open).sum();
    let mean = sum / count;
    let band = |open: u64| {
        let excess = open.saturating_sub(mean);
        if excess <= SLACK_CONNECTIONS.max(mean / 8) {
            0
        } else {
            1 + excess.saturating_mul(4) / mean.max(1)
        }
    };
    let mut banded: Vec<(u64, IpAddr)> = loads
        .into_iter()
        .map(|(ip, open)| (band(open), ip))
        .collect();
    // Stable: within a band the order of the configuration stays.
    banded.sort_by_key(|(band, _)| *band);
    for equals in banded.chunk_by_mut(|(one, _), (other, _)| one == other) {
        let count = u64::try_from(equals.len()).unwrap_or(u64::MAX);
        let first = usize::try_from(turn % count).unwrap_or_default();
        equals.rotate_left(first);
    }
    banded.into_iter().map(|(_, ip)| ip).collect()
}

/// Whether a family has nothing to tell that it should have: it is configured, or nothing serves in any family. Otherwise
/// an empty [`order`] is an absence.
pub(crate) fn is_lost(gateway: &Gateway, family: Family) -> bool {
    let has = |family, is_meant: fn(AddressState) -> bool| {
        views(gateway, family).any(|view| is_meant(view.state))
    };
    let serves = |family| has(family, |state| state == AddressState::Serving);
    let is_configured = has(family, |state| state != AddressState::Leaving);
    !serves(family) && (is_configured || ![Family::V4, Family::V6].into_iter().any(serves))
}

/// A wildcard is no address to connect to.
fn views(gateway: &Gateway, family: Family) -> impl Iterator<Item = &AddressView> {
    gateway.addresses.iter().filter(move |view| {
        let ip = view.address.ip();
        family.has(ip) && !ip.is_unspecified()
    })
}

/// Each address that can be told with its open connections, over all its ports.
fn loads(gateway: &Gateway, family: Family) -> Vec<(IpAddr, u64)> {
    let mut loads: Vec<(IpAddr, u64)> = Vec::new();
    let serving = views(gateway, family).filter(|view| view.state == AddressState::Serving);
    for view in serving {
        let ip = view.address.ip();
        match loads.iter_mut().find(|(known, _)| *known == ip) {
            Some((_, open)) => *open = open.saturating_add(view.open),
            None => loads.push((ip, view.open)),
        }
    }
    loads
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

    use proptest::prelude::*;

    use super::*;

    /// A serving address with so many connections.
    pub(crate) fn view(address: SocketAddr, open: u64) -> AddressView {
        AddressView {
            address,
            state: AddressState::Serving,
            reason: String::new(),
            is_claimed: false,
            is_proxied: false,
            open,
            accepted: 0,
            accepts_per_s: 0.0,
            refused: 0,
            share: 0.0,
            foreign_listeners: 0,
        }
    }

    fn v4(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    fn gateway(opens: &[u64]) -> Gateway {
        let addresses = (1..).zip(opens);
        Gateway {
            addresses: addresses
                .map(|(last, open)| view(SocketAddr::new(v4(last), 8080), *open))
                .collect(),
            ..Gateway::default()
        }
    }

    #[test]
    fn the_busy_come_last_and_equals_take_turns() {
        let gateway = gateway(&[100, 400, 110, 90, 250]);
        // The mean is 190.
        let orders: Vec<_> = (0..4)
            .map(|turn| order(&gateway, Family::V4, turn))
            .collect();
        assert_eq!(orders[0], [v4(1), v4(3), v4(4), v4(5), v4(2)]);
        assert_eq!(orders[1], [v4(3), v4(4), v4(1), v4(5), v4(2)]);
        assert_eq!(orders[2], [v4(4), v4(1), v4(3), v4(5), v4(2)]);
        assert_eq!(orders[3], orders[0]);
        assert_eq!(order(&gateway, Family::V6, 0), [] as [IpAddr; 0]);
    }

    #[test]
    fn only_what_can_be_connected_to_is_told() {
        let mut gateway = gateway(&[0, 0, 0]);
        gateway.addresses[0].state = AddressState::Degraded;
        gateway.addresses[1].state = AddressState::Leaving;
        gateway
            .addresses
            .push(view((Ipv4Addr::UNSPECIFIED, 8080).into(), 0));
        gateway
            .addresses
            .push(view((Ipv6Addr::LOCALHOST, 8080).into(), 0));
        // Another port of an address is the same address.
        gateway
            .addresses
            .push(view(SocketAddr::new(v4(3), 8081), 0));
        assert_eq!(order(&gateway, Family::V4, 0), [v4(3)]);
        assert_eq!(order(&gateway, Family::V6, 7), [Ipv6Addr::LOCALHOST]);
    }

    #[test]
    fn a_family_is_absent_only_when_nobody_wants_it() {
        let mut gateway = gateway(&[0, 0]);
        gateway
            .addresses
            .push(view((Ipv6Addr::UNSPECIFIED, 8080).into(), 0));
        let lost = |gateway: &Gateway| [Family::V4, Family::V6].map(|of| is_lost(gateway, of));
        // A wildcard is nothing to tell, so IPv6 is not configured.
        assert_eq!(lost(&gateway), [false, false]);
        gateway.addresses[0].state = AddressState::Degraded;
        assert_eq!(lost(&gateway), [false, false]);
        gateway.addresses[1].state = AddressState::Degraded;
        assert_eq!(lost(&gateway), [true, true]);
        gateway
            .addresses
            .push(view((Ipv6Addr::LOCALHOST, 8080).into(), 0));
        assert_eq!(lost(&gateway), [true, false]);
        for view in &mut gateway.addresses[..2] {
            view.state = AddressState::Leaving;
        }
        // Withdrawn for good, and IPv6 serves.
        assert_eq!(lost(&gateway), [false, false]);
        gateway.addresses.pop();
        assert_eq!(lost(&gateway), [true, true]);
    }

    proptest! {
        #[test]
        fn everyone_serving_is_told_once_and_nobody_waits_behind_a_busier_one(
            opens in proptest::collection::vec(0_u64..5000, 1..20),
            turn: u64,
        ) {
            let gateway = gateway(&opens);
            let found = order(&gateway, Family::V4, turn);
            let mut sorted = found.clone();
            sorted.sort();
            let all: Vec<_> = gateway.addresses.iter().map(|view| view.address.ip()).collect();
            prop_assert_eq!(sorted, all);
            let mean = opens.iter().sum::<u64>() / opens.len() as u64;
            let open = |ip: &IpAddr| {
                gateway.addresses.iter().find(|view| view.address.ip() == *ip).unwrap().open
            };
            for pair in found.windows(2) {
                let slack = SLACK_CONNECTIONS.max(mean / 8).max(mean / 4 + 1);
                prop_assert!(
                    open(&pair[0]) <= open(&pair[1]).max(mean) + slack,
                    "{:?} of {opens:?}", found
                );
            }
        }

        #[test]
        fn equals_are_first_equally_often(count in 1_usize..20, open in 0_u64..1000, from in 0_u64..1000) {
            let gateway = gateway(&vec![open; count]);
            let mut firsts: HashMap<IpAddr, usize> = HashMap::new();
            for turn in from..from + 3 * count as u64 {
                *firsts.entry(order(&gateway, Family::V4, turn)[0]).or_default() += 1;
            }
            prop_assert!(firsts.len() == count && firsts.values().all(|times| *times == 3), "{firsts:?}");
        }
    }
}
