//! Tells the link that addresses are ours, so that what switches and neighbours remembered of a former owner is
//! replaced at once: gratuitous ARP, unsolicited neighbour advertisements.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::link_socket::{Kind, LinkSocket};
use super::netlink::{Link, Netlink};
use super::packet::{Mac, Operation, arp_announcement, neighbor_advertisement};

/// As RFC 5227 spaces its two announcements. Neighbours ignore a change less than a second after the last.
const REPEAT_AFTER: Duration = Duration::from_secs(2);
/// For sending to a full queue.
const SEND_LIMIT: Duration = Duration::from_secs(2);

/// Announces now, and once more later if the addresses are still there then. That nobody hears it is no reason to fail:
/// neighbours that know no former owner ask by themselves.
pub(crate) async fn announce(link: &Link, own: Mac, addresses: Vec<IpAddr>) {
    report(&link.name, send(link, own, &addresses).await);
    let link = link.clone();
    tokio::spawn(async move {
        sleep(REPEAT_AFTER).await;
        report(&link.name, repeat(&link, own, addresses).await);
    });
}

fn report(interface: &str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(interface, %error, "claimed addresses could not be announced");
    }
}

async fn repeat(link: &Link, own: Mac, mut addresses: Vec<IpAddr>) -> io::Result<()> {
    let table = Netlink::open(SEND_LIMIT)?.addresses().await?;
    addresses.retain(|ip| {
        table
            .find(*ip)
            .is_some_and(|found| found.index == link.index)
    });
    send(link, own, &addresses).await
}

async fn send(link: &Link, own: Mac, addresses: &[IpAddr]) -> io::Result<()> {
    let deadline = Instant::now() + SEND_LIMIT;
    if addresses.iter().any(IpAddr::is_ipv4) {
        let socket = LinkSocket::open(link, Kind::Arp)?;
        for address in addresses {
            let IpAddr::V4(address) = *address else {
                continue;
            };
            for operation in [Operation::Request, Operation::Reply] {
                let frame = arp_announcement(own, address, operation);
                socket.send(&frame, deadline).await?;
            }
        }
    }
    if addresses.iter().any(IpAddr::is_ipv6) {
        let socket = LinkSocket::open(link, Kind::NeighborDiscovery)?;
        let is_router = is_router(&link.name);
        for address in addresses {
            if let IpAddr::V6(address) = *address {
                let frame = neighbor_advertisement(own, address, is_router);
                socket.send(&frame, deadline).await?;
            }
        }
    }
    Ok(())
}

fn is_router(interface: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/forwarding");
    fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
}
