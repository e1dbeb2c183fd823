//! The listening TCP sockets of one address: one for each slot, in one SO_REUSEPORT group.
//!
//! Invariants: no other program shares the port with us (the first socket is bound without SO_REUSEPORT); sockets start to
//! listen only when all of them are bound; all close at exec.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::port_owner;

/// See the module.
#[derive(Debug)]
pub(crate) struct Group {
    address: SocketAddr,
    /// One for each slot, in order; none for a slot that is parked, or the kernel would give it connections.
    sockets: Vec<Option<Socket>>,
}

impl Group {
    /// Binds a socket for each slot that is not parked. [`explain`] says what an error means.
    pub(crate) fn bind(wanted: SocketAddr, is_parked: &[bool]) -> io::Result<Self> {
        let mut address = wanted;
        let mut sockets = Vec::new();
        let mut is_first = true;
        for is_parked in is_parked {
            if *is_parked {
                sockets.push(None);
                continue;
            }
            let socket = bind_one(address, is_first)?;
            if is_first && let Ok(Some(bound)) = socket.local_addr().map(|bound| bound.as_socket())
            {
                // With the port that the system chose if none was asked for.
                address = bound;
            }
            is_first = false;
            sockets.push(Some(socket));
        }
        Ok(Self { address, sockets })
    }

    /// Lets connections come.
    pub(crate) fn listen(&self, backlog: i32) -> io::Result<()> {
        let mut sockets = self.sockets.iter().flatten();
        sockets.try_for_each(|socket| socket.listen(backlog))
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The socket of a slot, by number, for a child that is about to be started.
    pub(crate) fn fd(&self, slot: usize) -> Option<RawFd> {
        Some(self.sockets.get(slot)?.as_ref()?.as_raw_fd())
    }

    /// Another descriptor of a slot's socket, for a child that runs already.
    pub(crate) fn duplicate(&self, slot: usize) -> io::Result<Option<OwnedFd>> {
        let socket = self.sockets.get(slot).and_then(Option::as_ref);
        socket
            .map(|socket| socket.try_clone().map(OwnedFd::from))
            .transpose()
    }

    /// Takes a slot's socket out of the group: the kernel gives new connections to the other slots.
    pub(crate) fn close_slot(&mut self, slot: usize) {
        let Some(socket) = self.sockets.get_mut(slot).and_then(Option::take) else {
            return;
        };
        if let Err(error) = socket.shutdown(std::net::Shutdown::Both) {
            tracing::error!(address = %self.address, %error, "a parked slot's socket stays open");
        }
    }
}

/// The first socket of an address is bound alone, which fails when anybody listens there already, and opens the group
/// for the others afterwards.
fn bind_one(address: SocketAddr, is_first: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of an earlier run that are still closing do not hold the port.
    socket.set_reuse_address(true)?;
    if !is_first {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    if is_first {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Why an address cannot be listened on, and what to do. Looks through all processes for one that has the port.
pub(crate) fn explain(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => port_owner::taken(port_owner::find(address), "server.address"),
        io::ErrorKind::AddrNotAvailable => "not an address of this machine".into(),
        io::ErrorKind::PermissionDenied => {
            "not permitted; ports below 1024 need root or CAP_NET_BIND_SERVICE".into()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    const BACKLOG: i32 = 128;

    fn group(address: &str, slots: usize) -> Group {
        let group = Group::bind(address.parse().unwrap(), &vec![false; slots]).unwrap();
        group.listen(BACKLOG).unwrap();
        group
    }

    fn accepted(group: &Group, slot: usize) -> usize {
        let socket = group.sockets[slot].as_ref().unwrap();
        std::iter::from_fn(|| socket.accept().ok()).count()
    }

    #[test]
    fn every_slot_gets_its_share_of_one_port() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let group = group(address, 4);
            assert_ne!(group.address().port(), 0);
            let _clients: Vec<_> = (0..200)
                .map(|_| TcpStream::connect(group.address()).unwrap())
                .collect();
            let shares: Vec<_> = (0..4).map(|slot| accepted(&group, slot)).collect();
            assert_eq!(shares.iter().sum::<usize>(), 200);
            assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
        }
    }

    #[test]
    fn a_closed_slot_gets_no_more_connections() {
        let mut closed = group("127.0.0.1:0", 2);
        closed.close_slot(0);
        let parked = Group::bind("127.0.0.1:0".parse().unwrap(), &[true, false]).unwrap();
        parked.listen(BACKLOG).unwrap();
        for group in [closed, parked] {
            let _clients: Vec<_> = (0..50)
                .map(|_| TcpStream::connect(group.address()).unwrap())
                .collect();
            assert_eq!(accepted(&group, 1), 50);
            assert_eq!(group.fd(0), None);
        }
    }

    #[test]
    fn what_cannot_be_bound_is_explained() {
        let first = group("127.0.0.1:0", 2);
        let nowhere = "203.0.113.1:0".parse().unwrap();
        for (address, part) in [
            (first.address(), "taken by"),
            (nowhere, "not an address of"),
        ] {
            let reason = explain(address, &Group::bind(address, &[false]).unwrap_err());
            assert!(reason.contains(part), "{reason}");
        }
    }
}
