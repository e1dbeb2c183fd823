//! Addresses that this server adds to an interface while it runs (`addresses.claim`).
//!
//! Invariants: an address is noted on disk before it is added, and forgotten after it is removed; what is removed is
//! ours by the record and by the mark that the kernel keeps with it; an address that somebody else configured is used
//! and never removed; nobody on the link had an address when it was added.

mod announce;
mod link_socket;
#[cfg(test)]
mod namespace;
mod netlink;
mod packet;
mod probe;
mod record;
mod refusal;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use fleet_protocol::config;
use ipnet::IpNet;
use nix::libc;

pub(crate) use self::refusal::Refusal;

use self::netlink::{Link, Netlink};
use self::record::{Entry, Record};
use self::table::{Assigned, Table};
use crate::exit::Failure;

/// For all of one call, the probes included, which take a tenth of it.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// How an address comes to be on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claimed {
    /// By us; it goes when we go.
    Added,
    /// By somebody else; it stays.
    Present,
}

/// An outcome for each address that was wanted.
pub(crate) type Outcomes = Vec<(IpNet, Result<Claimed, Refusal>)>;

/// The addresses of one server on one interface.
#[derive(Debug)]
pub(crate) struct Claims {
    interface: String,
    record: Record,
}

impl Claims {
    /// Removes what an earlier life with this state directory added and could not remove. What cannot be removed now
    /// is reported in the log and stays noted.
    pub(crate) async fn open(config: &config::Claim, state_dir: &Path) -> Result<Self, Failure> {
        let mut claims = Self {
            interface: config.interface.clone(),
            record: Record::open(state_dir)?,
        };
        if !claims.record.entries().is_empty() {
            tracing::info!("removing addresses that an earlier run added");
            claims.release_all().await;
        }
        Ok(claims)
    }

    /// Takes over what the supervisor before this one added, which has noted it and adds no more.
    pub(crate) fn adopt(config: &config::Claim, state_dir: &Path) -> Result<Self, Failure> {
        Ok(Self {
            interface: config.interface.clone(),
            record: Record::open(state_dir)?,
        })
    }

    /// Adds what is not there yet, and gives an outcome for each address, in order. May be called again at any time,
    /// for those that were refused or have vanished. Takes at most 11 s, and 1.1 s when the kernel answers.
    pub(crate) async fn take(&mut self, wanted: &[IpNet]) -> Outcomes {
        let changed: Vec<IpAddr> = wanted
            .iter()
            .filter(|wanted| {
                let noted = self.record.find(wanted.addr());
                noted.is_some_and(|entry| entry.address != **wanted)
            })
            .map(IpNet::addr)
            .collect();
        self.release(&changed).await;
        let mut results = match self.try_take(wanted).await {
            Ok(results) => results,
            Err(refusal) => wanted
                .iter()
                .map(|wanted| (wanted.addr(), Err(refusal.clone())))
                .collect(),
        };
        wanted
            .iter()
            .map(|wanted| {
                let result = results.remove(&wanted.addr());
                (*wanted, result.unwrap_or(Err(Refusal::NoAnswer)))
            })
            .collect()
    }

    async fn try_take(
        &mut self,
        wanted: &[IpNet],
    ) -> Result<HashMap<IpAddr, Result<Claimed, Refusal>>, Refusal> {
        let mut results = HashMap::new();
        if wanted.is_empty() {
            return Ok(results);
        }
        let netlink = Netlink::open(CALL_LIMIT).map_err(|error| Refusal::of(&error))?;
        let table = netlink
            .addresses()
            .await
            .map_err(|error| Refusal::of(&error))?;
        let mut missing = Vec::new();
        for wanted in wanted {
            let ip = wanted.addr();
            match (self.is_ours(&table, ip), table.find(ip)) {
                (true, _) => _ = results.insert(ip, Ok(Claimed::Added)),
                (false, Some(_)) => _ = results.insert(ip, Ok(Claimed::Present)),
                (false, None) if is_host(wanted) => missing.push(*wanted),
                (false, None) => _ = results.insert(ip, Err(Refusal::NotAHost(*wanted))),
            }
        }
        if !missing.is_empty() {
            let added = match self.usable_link(&netlink).await {
                Ok(link) => self.add_free(&netlink, &link, &missing).await,
                Err(refusal) => Err(refusal),
            };
            match added {
                Ok(added) => results.extend(added),
                Err(refusal) => results.extend(
                    missing
                        .iter()
                        .map(|missing| (missing.addr(), Err(refusal.clone()))),
                ),
            }
        }
        // Ours once, somebody else's or nobody's now.
        let not_ours: Vec<IpAddr> = results
            .iter()
            .filter(|(_, result)| !matches!(result, Ok(Claimed::Added) | Err(Refusal::NoAnswer)))
            .map(|(ip, _)| *ip)
            .collect();
        self.forget(&not_ours);
        Ok(results)
    }

    fn is_ours(&self, table: &Table, ip: IpAddr) -> bool {
        let entry = self.record.find(ip);
        entry.is_some_and(|entry| table.ours(entry).is_some())
    }

    async fn usable_link(&self, netlink: &Netlink) -> Result<Link, Refusal> {
        let links = netlink.links().await.map_err(|error| Refusal::of(&error))?;
        let names = links.iter().map(|link| link.name.clone()).collect();
        let found = links.into_iter().find(|link| link.name == self.interface);
        let link = found.ok_or_else(|| Refusal::MissingInterface {
            interface: self.interface.clone(),
            present: names,
        })?;
        if !link.is_up {
            return Err(Refusal::InterfaceDown(link.name));
        }
        if !link.has_carrier {
            return Err(Refusal::NoCarrier(link.name));
        }
        Ok(link)
    }

    /// Adds those of `missing` that nobody on the link has.
    async fn add_free(
        &mut self,
        netlink: &Netlink,
        link: &Link,
        missing: &[IpNet],
    ) -> Result<HashMap<IpAddr, Result<Claimed, Refusal>>, Refusal> {
        let addresses: Vec<IpAddr> = missing.iter().map(IpNet::addr).collect();
        let taken = match link.mac {
            Some(own) => probe::probe(link, own, &addresses)
                .await
                .map_err(|error| Refusal::of(&error))?,
            None => HashMap::new(),
        };
        let mut free = missing.to_vec();
        free.retain(|address| !taken.contains_key(&address.addr()));
        let entries = free.iter().map(|address| Entry {
            address: *address,
            interface: link.name.clone(),
            index: link.index,
        });
        if !free.is_empty() {
            self.record
                .add(entries)
                .map_err(|error| Refusal::Unrecorded(error.to_string()))?;
        }
        let mut results: HashMap<_, _> = taken
            .into_iter()
            .map(|(ip, mac)| (ip, Err(Refusal::InUse(mac))))
            .collect();
        let mut added = Vec::new();
        for address in free {
            let result = match netlink.add(link, &address).await {
                Ok(()) => {
                    added.push(address.addr());
                    Ok(Claimed::Added)
                }
                // Somebody was quicker.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Claimed::Present),
                Err(error) => Err(Refusal::of_adding(&error, &address, &link.name)),
            };
            results.insert(address.addr(), result);
        }
        if let Some(own) = link.mac
            && !added.is_empty()
        {
            announce::announce(link, own, added).await;
        }
        Ok(results)
    }

    /// Removes those of ours among `addresses`. Let it finish: it may have to put back what the kernel removed with
    /// them.
    pub(crate) async fn release(&mut self, addresses: &[IpAddr]) {
        let entries: Vec<Entry> = addresses
            .iter()
            .filter_map(|ip| self.record.find(*ip).cloned())
            .collect();
        if entries.is_empty() {
            return;
        }
        match remove(&entries).await {
            Ok(gone) => self.forget(&gone),
            Err(error) => {
                tracing::error!(%error, "claimed addresses stay: the kernel does not answer")
            }
        }
    }

    /// Removes all of ours.
    pub(crate) async fn release_all(&mut self) {
        let entries = self.record.entries().iter();
        let all: Vec<IpAddr> = entries.map(|entry| entry.address.addr()).collect();
        self.release(&all).await;
    }

    /// Those of ours that are really there.
    #[cfg(test)]
    pub(crate) async fn present(&self) -> io::Result<Vec<IpAddr>> {
        let entries = self.record.entries();
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let table = Netlink::open(CALL_LIMIT)?.addresses().await?;
        Ok(entries
            .iter()
            .filter(|entry| table.ours(entry).is_some())
            .map(|entry| entry.address.addr())
            .collect())
    }

    fn forget(&mut self, gone: &[IpAddr]) {
        if let Err(error) = self.record.forget(gone) {
            tracing::warn!(%error, "claimed.json in the state directory is out of date");
        }
    }
}

/// Whether one machine can have it: not the network's own address, nor its broadcast address, nor of a wider scope.
fn is_host(address: &IpNet) -> bool {
    let ip = address.addr();
    let spare_bits = address.max_prefix_len() - address.prefix_len();
    let is_edge = match ip {
        IpAddr::V4(_) => ip == address.network() || ip == address.broadcast(),
        IpAddr::V6(_) => ip == address.network(),
    };
    let is_special = match ip {
        IpAddr::V4(ip) => ip.is_broadcast(),
        // Nobody can connect to one without naming an interface.
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    address.prefix_len() > 0
        && !(is_edge && spare_bits > 1)
        && !(is_special || ip.is_unspecified() || ip.is_multicast() || ip.is_loopback())
}

/// Removes addresses and gives those that are not there any more, or not ours.
async fn remove(entries: &[Entry]) -> io::Result<Vec<IpAddr>> {
    let netlink = Netlink::open(CALL_LIMIT)?;
    let table = netlink.addresses().await?;
    let mut gone = Vec::new();
    let mut going: Vec<&Assigned> = Vec::new();
    for entry in entries {
        match table.ours(entry) {
            Some(assigned) => going.push(assigned),
            None => gone.push(entry.address.addr()),
        }
    }
    // The first of a network last, so that none of ours goes along.
    going.sort_by_key(|assigned| !assigned.is_secondary());
    for assigned in &going {
        match netlink.remove(assigned).await {
            Err(error) if error.raw_os_error() != Some(libc::EADDRNOTAVAIL) => {
                let address = assigned.address;
                tracing::error!(%address, %error, "a claimed address stays; to remove it: ip addr del");
                continue;
            }
            _ => gone.push(assigned.address.addr()),
        }
        let mut others = table.dependents(assigned);
        others.retain(|other| !going.contains(other));
        put_back(&netlink, &others).await;
    }
    Ok(gone)
}

/// Where the kernel does not promote the secondary addresses of a network whose first one is removed, it removes them.
async fn put_back(netlink: &Netlink, addresses: &[&Assigned]) {
    for assigned in addresses {
        let address = assigned.address;
        match netlink.put_back(assigned).await {
            Ok(()) => {
                tracing::info!(%address, "put back: the kernel had removed it with a claimed address")
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                tracing::error!(%address, %error, "removed by the kernel with a claimed address")
            }
        }
    }
}
