//! The listening TCP sockets of one address: one for each slot, in one SO_REUSEPORT group.
//!
//! Invariants: no other program has the port when it is bound (the first socket is bound without SO_REUSEPORT); sockets
//! start to listen only when all of them are bound; all close at exec. `order` is the kernel's numbering of the group: who
//! begins to listen gets the next index, and when one ends, the last moves to its index.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::Once;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::stat::fstat;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{port_owner, steering};

/// What all groups have in common.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots {
    /// Which listen.
    pub(crate) is_open: Vec<bool>,
    /// Parts of all connections that each gets.
    pub(crate) weights: Vec<u32>,
    /// Connections that wait for each at most.
    pub(crate) backlog: i32,
}

/// Who is at an index of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    /// Ours, of this slot.
    Slot(usize),
    /// Another program's, by its inode.
    Foreign(u64),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Group {
    address: SocketAddr,
    /// By slot. One that does not listen keeps its socket, so that the port stays ours.
    sockets: Vec<Option<Socket>>,
    order: Vec<Member>,
    /// Weights by index that the kernel was told, since the order changed last.
    steered: Option<Vec<u32>>,
    is_steered: bool,
}

/// One sentence is enough, whatever the number of addresses.
static UNSTEERED: Once = Once::new();

impl Group {
    /// Binds a socket for each slot that listens. [`explain`] says what an error means.
    pub(crate) fn bind(wanted: SocketAddr, slots: &Slots) -> io::Result<Self> {
        // Alone for a moment: this fails when anybody listens there, and learns a port that the system chooses. A socket
        // that asked for no port by number would lose it when it stops to listen.
        let first = bind_one(wanted, false)?;
        let bound = first.local_addr()?.as_socket();
        first.set_reuse_port(true)?;
        let address = bound.unwrap_or(wanted);
        let bind = |is_open: &bool| is_open.then(|| bind_one(address, true)).transpose();
        let sockets = slots.is_open.iter().map(bind);
        Ok(Self {
            address,
            sockets: sockets.collect::<io::Result<_>>()?,
            order: Vec::new(),
            steered: None,
            is_steered: false,
        })
    }

    /// Takes sockets that listen already, of slots in the order in which they stand in the kernel's group. `None` without any.
    pub(crate) fn adopt(handed: Vec<(usize, OwnedFd)>) -> io::Result<Option<Self>> {
        let mut sockets = Vec::new();
        let mut order = Vec::new();
        for (slot, fd) in handed {
            if sockets.len() <= slot {
                sockets.resize_with(slot + 1, || None);
            }
            if let Some(place) = sockets.get_mut(slot) {
                *place = Some(Socket::from(fd));
                order.push(Member::Slot(slot));
            }
        }
        let Some(first) = sockets.iter().flatten().next() else {
            return Ok(None);
        };
        let address = first.local_addr()?.as_socket();
        let address = address.ok_or_else(|| io::Error::other("not a socket of the network"))?;
        Ok(Some(Self {
            address,
            sockets,
            order,
            steered: None,
            is_steered: false,
        }))
    }

    /// The slots that listen, in the kernel's order.
    pub(crate) fn slots(&self) -> Vec<usize> {
        let slots = self.order.iter().filter_map(|member| match member {
            Member::Slot(slot) => Some(*slot),
            Member::Foreign(_) => None,
        });
        slots.collect()
    }

    /// Lets those listen that shall and do not, and steers. Does nothing when all is as it shall be.
    pub(crate) fn listen(&mut self, slots: &Slots) -> io::Result<()> {
        let open = (0..).zip(&slots.is_open).filter(|(_, is_open)| **is_open);
        let opened = open
            .map(|(slot, _)| self.open(slot, slots.backlog))
            .fold(Ok(()), io::Result::and);
        self.steer(&slots.weights);
        opened
    }

    fn open(&mut self, slot: usize, backlog: i32) -> io::Result<()> {
        if self.is_listening(slot) {
            return Ok(());
        }
        if self.sockets.len() <= slot {
            self.sockets.resize_with(slot + 1, || None);
        }
        let Some(place) = self.sockets.get_mut(slot) else {
            return Ok(());
        };
        let socket = match place.take() {
            Some(socket) => socket,
            None => bind_one(self.address, true)?,
        };
        let listening = socket.listen(backlog);
        *place = Some(socket);
        listening?;
        self.order.push(Member::Slot(slot));
        self.steered = None;
        Ok(())
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    fn is_listening(&self, slot: usize) -> bool {
        self.order.contains(&Member::Slot(slot))
    }

    fn listener(&self, slot: usize) -> Option<&Socket> {
        let socket = self.sockets.get(slot)?.as_ref()?;
        self.is_listening(slot).then_some(socket)
    }

    /// The socket of a slot, by number, for a child that is about to be started.
    pub(crate) fn fd(&self, slot: usize) -> Option<RawFd> {
        self.listener(slot).map(|socket| socket.as_raw_fd())
    }

    /// Another descriptor of a slot's socket, for a child that runs already.
    pub(crate) fn duplicate(&self, slot: usize) -> io::Result<Option<OwnedFd>> {
        let duplicate = |socket: &Socket| socket.try_clone().map(OwnedFd::from);
        self.listener(slot).map(duplicate).transpose()
    }

    /// Whether somebody waits in a slot's queue; if that cannot be told, somebody may.
    pub(crate) fn is_waiting(&self, slot: usize) -> bool {
        self.listener(slot).is_some_and(|socket| {
            let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            poll(&mut polled, PollTimeout::ZERO) != Ok(0)
        })
    }

    /// Takes a slot out of the group. Where the kernel moves connections, it moves those that wait to the others;
    /// elsewhere it resets them. The socket can listen again.
    pub(crate) fn shut(&mut self, slot: usize) {
        let Some(socket) = self.listener(slot) else {
            return;
        };
        if let Err(error) = socket.shutdown(std::net::Shutdown::Both) {
            tracing::error!(address = %self.address, %error, "slot {slot} goes on listening");
            return;
        }
        self.forget(Member::Slot(slot));
    }

    /// Ends a slot's socket for good.
    pub(crate) fn close(&mut self, slot: usize) {
        self.shut(slot);
        if let Some(place) = self.sockets.get_mut(slot) {
            *place = None;
        }
        self.forget(Member::Slot(slot));
    }

    fn forget(&mut self, member: Member) {
        if let Some(index) = self.order.iter().position(|of| *of == member) {
            self.order.swap_remove(index);
            self.steered = None;
        }
    }

    /// Inodes of our sockets.
    pub(crate) fn inodes(&self) -> impl Iterator<Item = u64> {
        let sockets = self.sockets.iter().flatten();
        sockets.filter_map(|socket| Some(fstat(socket).ok()?.st_ino))
    }

    /// Hears which sockets of others listen here. Who has come since the last time is behind all of ours.
    pub(crate) fn meet(&mut self, inodes: &[u64]) {
        let gone = self.foreign().filter(|inode| !inodes.contains(inode));
        for inode in gone.collect::<Vec<_>>() {
            self.forget(Member::Foreign(inode));
        }
        for inode in inodes {
            let foreign = Member::Foreign(*inode);
            if !self.order.contains(&foreign) {
                self.order.push(foreign);
                self.steered = None;
            }
        }
    }

    fn foreign(&self) -> impl Iterator<Item = u64> {
        self.order.iter().filter_map(|member| match member {
            Member::Foreign(inode) => Some(*inode),
            Member::Slot(_) => None,
        })
    }

    /// Makes the kernel keep to these weights, given by slot. A kernel that does not take them chooses by itself.
    pub(crate) fn steer(&mut self, weights: &[u32]) {
        let weight = |member: &Member| match member {
            Member::Slot(slot) => weights.get(*slot).copied().unwrap_or_default(),
            Member::Foreign(_) => 0,
        };
        let wanted: Vec<u32> = self.order.iter().map(weight).collect();
        let listeners = (0..self.sockets.len()).find_map(|slot| self.listener(slot));
        let Some(socket) = listeners.filter(|_| self.steered.as_ref() != Some(&wanted)) else {
            return;
        };
        let attached = attach(socket, &wanted);
        self.is_steered = attached.is_ok() && wanted.iter().any(|weight| *weight > 0);
        self.steered = Some(wanted);
        if let Err(error) = attached {
            UNSTEERED.call_once(|| {
                tracing::warn!(%error, "the kernel does not let slots be chosen; each gets the same share, whatever it does");
            });
        }
    }

    /// Whether the kernel keeps to our weights, so that nobody else in the group gets a connection.
    pub(crate) fn is_steered(&self) -> bool {
        self.is_steered
    }
}

fn attach(socket: &Socket, weights: &[u32]) -> io::Result<()> {
    let mut program = steering::program(weights);
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_mut_ptr(),
    };
    Ok(setsockopt(socket, sockopt::AttachReusePortCbpf, &program)?)
}

fn bind_one(address: SocketAddr, is_shared: bool) -> io::Result<Socket> {
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
    socket.set_reuse_port(is_shared)?;
    socket.bind(&SockAddr::from(address))?;
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
#[path = "listener_tests.rs"]
mod tests;
