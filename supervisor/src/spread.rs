//! What tells the world where agents may go: the DNS responder and HAProxy's agent-check.
//!
//! Their sockets are bound before the first child starts, so that one that cannot be had is said at once; their tasks
//! read the supervisor's last word on the gateway and never hold up its loop.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fleet_protocol::config::Config;
use fleet_protocol::slot::Gateway;
use fleet_protocol::upgrade::{Item, ItemKind};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::exit::Failure;
use crate::upgrade::Inheritance;
use crate::{agent_check, dns, machine, port_owner};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Everything, bound and not yet at work.
#[derive(Debug)]
pub(crate) struct Spread {
    dns: Option<dns::Responder>,
    agent_check: Option<agent_check::AgentCheck>,
}

/// Binds what the configuration asks for. `addresses` is where agents connect, `connections_per_worker` what each worker
/// holds.
pub(crate) fn open(
    config: &Config,
    addresses: &[SocketAddr],
    connections_per_worker: u32,
    inherited: &mut Inheritance,
) -> Result<Spread, Failure> {
    let options = &config.addresses.agent_check;
    let agent_check = agent_check::open(options, connections_per_worker, inherited)?;
    Ok(Spread {
        dns: dns::open(&config.addresses.dns, addresses, inherited)?,
        agent_check,
    })
}

impl Spread {
    /// Starts the tasks; they end with what is given back, hence after the drain. Must be called within a runtime.
    pub(crate) fn run(self, gateway: &watch::Receiver<Arc<Gateway>>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        if let Some(responder) = self.dns {
            responder.run(gateway, &mut tasks);
        }
        if let Some(agent_check) = self.agent_check {
            agent_check.run(gateway.clone(), &mut tasks);
        }
        tasks
    }

    /// Every socket by its identity, to hand over later.
    pub(crate) fn items(&self) -> io::Result<Vec<(Item, OwnedFd)>> {
        let mut items = Vec::new();
        if let Some(responder) = &self.dns {
            responder.add_items(&mut items)?;
        }
        if let Some(agent_check) = &self.agent_check {
            items.push(agent_check.item()?);
        }
        Ok(items)
    }
}

/// The identity of a socket that is no agents'.
pub(crate) fn item(kind: ItemKind, address: SocketAddr) -> Item {
    Item {
        kind,
        address: Some(address),
        slot: None,
    }
}

/// The addresses with each wildcard replaced by this machine's own.
pub(crate) fn expand(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let own = machine::addresses();
    let mut all: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        let ip = address.ip();
        let same_family = own.iter().filter(|own| own.is_ipv4() == ip.is_ipv4());
        let stands_for = if ip.is_unspecified() {
            same_family.copied().collect()
        } else {
            vec![ip]
        };
        for ip in stands_for {
            let address = SocketAddr::new(ip, address.port());
            if !all.contains(&address) {
                all.push(address);
            }
        }
    }
    all
}

/// A listener for the option's purpose: the one of the supervisor before us, or a new one.
pub(crate) fn bind_tcp(
    address: SocketAddr,
    kind: ItemKind,
    option: &str,
    inherited: &mut Inheritance,
) -> Result<TcpListener, Failure> {
    if let Some(fd) = inherited.take_at(kind, address) {
        return Ok(fd.into());
    }
    let bound = bind(address, Type::STREAM, Protocol::TCP).and_then(|socket| {
        socket.listen(BACKLOG)?;
        Ok(socket)
    });
    match bound {
        Ok(socket) => Ok(socket.into()),
        Err(error) => {
            let owner = port_owner::find(address);
            Err(refusal(address, "TCP", option, &error, owner))
        }
    }
}

/// A datagram socket for the option's purpose, likewise.
pub(crate) fn bind_udp(
    address: SocketAddr,
    kind: ItemKind,
    option: &str,
    inherited: &mut Inheritance,
) -> Result<UdpSocket, Failure> {
    if let Some(fd) = inherited.take_at(kind, address) {
        return Ok(fd.into());
    }
    match bind(address, Type::DGRAM, Protocol::UDP) {
        Ok(socket) => Ok(socket.into()),
        Err(error) => {
            let owner = port_owner::find_udp(address);
            Err(refusal(address, "UDP", option, &error, owner))
        }
    }
}

fn bind(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        // Connections of an earlier run that are still closing do not hold the port.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn refusal(
    address: SocketAddr,
    protocol: &str,
    option: &str,
    error: &io::Error,
    owner: Option<port_owner::Owner>,
) -> Failure {
    let reason = match error.kind() {
        io::ErrorKind::AddrInUse => port_owner::taken(owner, option),
        io::ErrorKind::AddrNotAvailable => {
            format!("not an address of this machine; choose another {option}")
        }
        io::ErrorKind::PermissionDenied => format!(
            "not permitted; ports below 1024 need root or CAP_NET_BIND_SERVICE, or choose another {option}"
        ),
        _ => error.to_string(),
    };
    Failure::fatal(format!("cannot listen on {address} ({protocol}): {reason}"))
}
