//! The kernel's interfaces and addresses, over rtnetlink. One connection for each task, with one deadline.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressProtocol, CacheInfo,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::{Error, Handle};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::packet::Mac;
use super::table::{Assigned, PROTOCOL, Table, label};

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Its number.
    pub(crate) index: u32,
    /// Its name.
    pub(crate) name: String,
    /// Switched on.
    pub(crate) is_up: bool,
    /// Something is at the other end.
    pub(crate) has_carrier: bool,
    /// Its own address, where others can be asked by ARP and neighbour discovery. None for loopback, dummy, tunnels.
    pub(crate) mac: Option<Mac>,
}

impl Link {
    fn from_message(message: LinkMessage) -> Option<Self> {
        let (mut name, mut mac) = (None, None);
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text),
                LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes).ok().map(Mac),
                _ => {}
            }
        }
        let flags = message.header.flags;
        let has_neighbors = message.header.link_layer_type == LinkLayerType::Ether
            && !flags.intersects(LinkFlags::Noarp | LinkFlags::Loopback);
        Some(Self {
            index: message.header.index,
            name: name?,
            is_up: flags.contains(LinkFlags::Up),
            has_carrier: flags.contains(LinkFlags::LowerUp),
            mac: mac.filter(|_| has_neighbors),
        })
    }
}

/// A connection to the kernel.
#[derive(Debug)]
pub(crate) struct Netlink {
    handle: Handle,
    task: JoinHandle<()>,
    deadline: Instant,
}

impl Netlink {
    /// Nothing takes longer than until `limit` from now.
    pub(crate) fn open(limit: Duration) -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self {
            handle,
            task: tokio::spawn(connection),
            deadline: Instant::now() + limit,
        })
    }

    /// All interfaces.
    pub(crate) async fn links(&self) -> io::Result<Vec<Link>> {
        let messages = self.handle.link().get().execute();
        let found: Vec<LinkMessage> = self.bounded(messages.try_collect()).await?;
        Ok(found.into_iter().filter_map(Link::from_message).collect())
    }

    /// All addresses.
    pub(crate) async fn addresses(&self) -> io::Result<Table> {
        let messages = self.handle.address().get().execute();
        let found: Vec<_> = self.bounded(messages.try_collect()).await?;
        let assigned = found.into_iter().filter_map(Assigned::from_message);
        Ok(Table(assigned.collect()))
    }

    /// Adds an address with our mark; an error when it is there already.
    pub(crate) async fn add(&self, link: &Link, address: &IpNet) -> io::Result<()> {
        let ip = address.addr();
        let mut request = self
            .handle
            .address()
            .add(link.index, ip, address.prefix_len());
        let attributes = &mut request.message_mut().attributes;
        attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)));
        match ip {
            IpAddr::V4(_) => attributes.push(AddressAttribute::Label(label(&link.name))),
            IpAddr::V6(_) => {
                // We asked already; the kernel would hold the address back for two more seconds.
                attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
                // Not preferred: our own connections keep going out from the address that they went out from.
                let mut lifetime = CacheInfo::default();
                lifetime.ifa_preferred = 0;
                lifetime.ifa_valid = u32::MAX;
                attributes.push(AddressAttribute::CacheInfo(lifetime));
            }
        }
        self.bounded(request.execute()).await
    }

    /// Removes an address.
    pub(crate) async fn remove(&self, assigned: &Assigned) -> io::Result<()> {
        let request = self.handle.address().del(assigned.message.clone());
        self.bounded(request.execute()).await
    }

    /// Adds an address again as it was.
    pub(crate) async fn put_back(&self, assigned: &Assigned) -> io::Result<()> {
        let ip = assigned.address.addr();
        let prefix_len = assigned.address.prefix_len();
        let mut request = self.handle.address().add(assigned.index, ip, prefix_len);
        *request.message_mut() = assigned.message.clone();
        self.bounded(request.execute()).await
    }

    async fn bounded<T>(&self, work: impl Future<Output = Result<T, Error>>) -> io::Result<T> {
        match timeout_at(self.deadline, work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Error::NetlinkError(message))) => Err(message.to_io()),
            Ok(Err(error)) => Err(io::Error::other(error.to_string())),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}
