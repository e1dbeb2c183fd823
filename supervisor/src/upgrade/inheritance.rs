//! The descriptors that a new supervisor was handed, each by what it is.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use fleet_protocol::upgrade::{Estate, Item, ItemKind};

/// See the module. Empty in a supervisor that starts by itself.
#[derive(Debug, Default)]
pub(crate) struct Inheritance {
    fds: HashMap<Item, OwnedFd>,
    /// In which they came.
    order: Vec<Item>,
    /// What came with them.
    pub(crate) estate: Option<Estate>,
}

impl Inheritance {
    /// Adds one. Two with one identity are a mistake of the other side.
    pub(crate) fn add(&mut self, item: Item, fd: OwnedFd) -> Result<(), String> {
        self.order.push(item);
        match self.fds.insert(item, fd) {
            None => Ok(()),
            Some(_) => Err(format!("{item:?} came twice")),
        }
    }

    /// How many are here.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.fds.len()).unwrap_or(u32::MAX)
    }

    /// One without address.
    pub(crate) fn take(&mut self, kind: ItemKind) -> Option<OwnedFd> {
        self.fds.remove(&Item {
            kind,
            address: None,
            slot: None,
        })
    }

    /// One with an address.
    pub(crate) fn take_at(&mut self, kind: ItemKind, address: SocketAddr) -> Option<OwnedFd> {
        self.fds.remove(&Item {
            kind,
            address: Some(address),
            slot: None,
        })
    }

    /// The listeners of an address by slot, in the order in which they came; empty when it is not among them.
    pub(crate) fn take_group(&mut self, address: SocketAddr) -> Vec<(usize, OwnedFd)> {
        let is_of = |item: &Item| item.kind == ItemKind::Agents && item.address == Some(address);
        let group: Vec<Item> = self
            .order
            .iter()
            .filter(|item| is_of(item))
            .copied()
            .collect();
        let take = |item: Item| {
            let slot = usize::from(item.slot?);
            Some((slot, self.fds.remove(&item)?))
        };
        group.into_iter().filter_map(take).collect()
    }

    /// Addresses of agents that nobody has taken.
    pub(crate) fn left(&self) -> Vec<SocketAddr> {
        let agents = self.fds.keys().filter(|item| item.kind == ItemKind::Agents);
        let mut left: Vec<_> = agents.filter_map(|item| item.address).collect();
        left.sort_unstable();
        left.dedup();
        left
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn fd() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn listeners_are_found_by_address_and_slot() {
        let (one, two): (SocketAddr, SocketAddr) = (
            "127.0.0.1:1".parse().unwrap(),
            "127.0.0.1:2".parse().unwrap(),
        );
        let mut all = Inheritance::default();
        for (address, slot) in [(one, 2), (two, 0), (one, 0)] {
            let item = Item {
                kind: ItemKind::Agents,
                address: Some(address),
                slot: Some(slot),
            };
            all.add(item, fd()).unwrap();
        }
        assert_eq!(all.count(), 3);
        let item = Item {
            kind: ItemKind::Agents,
            address: Some(two),
            slot: Some(0),
        };
        all.add(item, fd()).unwrap_err();
        let group: Vec<usize> = all.take_group(one).iter().map(|(slot, _)| *slot).collect();
        assert_eq!(group, [2, 0]);
        assert!(all.take_group(one).is_empty());
        assert_eq!(all.left(), [two]);
        assert!(all.take_at(ItemKind::DnsUdp, two).is_none());
        assert!(all.take(ItemKind::Lock).is_none());
    }
}
