//! A socket for whole Ethernet frames of one kind on one interface. Needs CAP_NET_RAW.

use std::io;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::sys::socket::{LinkAddr, bind, recvfrom};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, timeout_at};

use super::netlink::Link;
use crate::sys;

/// Frames of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// All of it.
    Arp,
    /// Neighbour solicitations and advertisements.
    NeighborDiscovery,
}

/// While the device's queue is full.
const FULL_QUEUE_WAIT: Duration = Duration::from_millis(1);

/// The socket.
#[derive(Debug)]
pub(crate) struct LinkSocket {
    socket: AsyncFd<Socket>,
    index: usize,
}

impl LinkSocket {
    /// Opens one on `link`.
    pub(crate) fn open(link: &Link, kind: Kind) -> io::Result<Self> {
        let ethertype = match kind {
            Kind::Arp => libc::ETH_P_ARP,
            Kind::NeighborDiscovery => libc::ETH_P_IPV6,
        };
        let ethertype = u16::try_from(ethertype).map_err(io::Error::other)?;
        let protocol = Protocol::from(i32::from(ethertype.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        // The kernel keeps the socket's protocol, because the address that is bound names none.
        let address = link_address(link)?;
        bind(socket.as_raw_fd(), &address)?;
        if kind == Kind::NeighborDiscovery {
            socket.attach_filter(&neighbor_discovery())?;
        }
        Ok(Self {
            socket: sys::watch(socket)?,
            index: address.ifindex(),
        })
    }

    /// Sends a frame.
    pub(crate) async fn send(&self, frame: &[u8], deadline: Instant) -> io::Result<()> {
        loop {
            let sending = self
                .socket
                .async_io(Interest::WRITABLE, |socket| socket.send(frame));
            match timeout_at(deadline, sending).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    if Instant::now() >= deadline {
                        return Err(error);
                    }
                    sleep(FULL_QUEUE_WAIT).await;
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// Waits for a frame; `None` when there is none until `deadline`.
    pub(crate) async fn receive<'a>(
        &self,
        buffer: &'a mut [u8],
        deadline: Instant,
    ) -> io::Result<Option<&'a [u8]>> {
        let reading = self
            .socket
            .async_io(Interest::READABLE, |socket| self.read(socket, buffer));
        match timeout_at(deadline, reading).await {
            Ok(Ok(bytes)) => Ok(buffer.get(..bytes)),
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(None),
        }
    }

    fn read(&self, socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
        let (bytes, sender) = recvfrom::<LinkAddr>(socket.as_raw_fd(), buffer)?;
        // Before it was bound, the socket heard all interfaces.
        let is_here = sender.is_some_and(|sender| sender.ifindex() == self.index);
        Ok(if is_here { bytes } else { 0 })
    }
}

/// The interface as a socket address.
fn link_address(link: &Link) -> io::Result<LinkAddr> {
    getifaddrs()?
        .filter_map(|interface| interface.address)
        .filter_map(|address| address.as_link_addr().copied())
        .find(|address| u32::try_from(address.ifindex()) == Ok(link.index))
        .ok_or_else(|| Errno::ENODEV.into())
}

/// Lets neighbour solicitations and advertisements through, so that a busy interface's other packets cost nothing.
fn neighbor_discovery() -> [SockFilter; 7] {
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    // Ethernet's 14 bytes, then IPv6's 40, whose seventh says what follows them.
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 14 + 6),
        SockFilter::new(JUMP_IF_EQUAL, 0, 4, 58),
        SockFilter::new(LOAD_BYTE, 0, 0, 14 + 40),
        SockFilter::new(JUMP_IF_EQUAL, 1, 0, 135),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, 136),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}
