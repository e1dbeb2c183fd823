//! Every listening socket: one TCP socket per address and slot, and the local ones. The supervisor keeps them open for
//! its whole life, so that connections wait in the kernel while a worker or control is replaced.
//!
//! Invariants: no other program shares a TCP port with us (the first socket of each address is bound without
//! SO_REUSEPORT); sockets start to listen only when all of them are bound; all close at exec.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use fleet_protocol::config::Server;
use fleet_protocol::slot;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::exit::Failure;
use crate::port_owner;
use crate::state_dir::StateDir;

/// Workers and operators that may wait while control restarts.
const LOCAL_BACKLOG: i32 = 1024;

/// The sockets of one address.
#[derive(Debug)]
pub(crate) struct Address {
    /// With the port that the system chose if none was asked for.
    pub(crate) address: SocketAddr,
    /// One for each slot, in order.
    sockets: Vec<Socket>,
}

/// All addresses.
#[derive(Debug)]
pub(crate) struct TcpListeners {
    addresses: Vec<Address>,
}

impl TcpListeners {
    /// Binds every (address, slot) and begins to listen.
    pub(crate) fn bind(server: &Server, slots: u16) -> Result<Self, Failure> {
        let mut addresses = Vec::new();
        for text in &server.address {
            let wanted: SocketAddr = text
                .parse()
                .map_err(|_| Failure::config(format!("server.address: {text:?} is not IP:port")))?;
            addresses.push(bind_address(wanted, slots)?);
        }
        let backlog = i32::try_from(server.backlog).unwrap_or(i32::MAX);
        for Address { address, sockets } in &addresses {
            for socket in sockets {
                socket
                    .listen(backlog)
                    .map_err(|error| refusal(*address, &error))?;
            }
        }
        Ok(Self { addresses })
    }

    /// The addresses, in the order of the configuration.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.iter().map(|of| of.address).collect()
    }

    /// What the worker of a slot inherits. Descriptors keep their numbers.
    pub(crate) fn of_slot(&self, slot: usize) -> Vec<slot::Listener> {
        self.addresses
            .iter()
            .filter_map(|of| {
                Some(slot::Listener {
                    address: of.address,
                    fd: of.sockets.get(slot)?.as_raw_fd(),
                    is_proxied: false,
                })
            })
            .collect()
    }

    /// Takes a slot's sockets out of their groups: the kernel gives new connections to the other slots.
    pub(crate) fn close_slot(&self, slot: usize) {
        for of in &self.addresses {
            if let Some(socket) = of.sockets.get(slot)
                && let Err(error) = socket.shutdown(std::net::Shutdown::Both)
            {
                tracing::error!(address = %of.address, %error, "a parked slot's socket stays open");
            }
        }
    }
}

fn bind_address(wanted: SocketAddr, slots: u16) -> Result<Address, Failure> {
    let mut address = wanted;
    let mut sockets = Vec::new();
    for index in 0..slots {
        let socket = bind_one(address, index == 0).map_err(|error| refusal(address, &error))?;
        if index == 0 {
            let bound = socket.local_addr().map(|bound| bound.as_socket());
            if let Ok(Some(bound)) = bound {
                address = bound;
            }
        }
        sockets.push(socket);
    }
    Ok(Address { address, sockets })
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

fn refusal(address: SocketAddr, error: &io::Error) -> Failure {
    let reason = match error.kind() {
        io::ErrorKind::AddrInUse => match port_owner::find(address) {
            Some(owner) => format!(
                "taken by pid {} ({}); stop it, or choose another server.address",
                owner.pid, owner.program
            ),
            None => "taken by another program; stop it, or choose another server.address".into(),
        },
        io::ErrorKind::AddrNotAvailable => "not an address of this machine".into(),
        io::ErrorKind::PermissionDenied => {
            "not permitted; ports below 1024 need root or CAP_NET_BIND_SERVICE".into()
        }
        _ => error.to_string(),
    };
    Failure::fatal(format!("cannot listen on {address}: {reason}"))
}

/// The sockets in `STATE/run`.
#[derive(Debug)]
pub(crate) struct LocalListeners {
    /// Workers' links; for control.
    pub(crate) link: Socket,
    /// Workers' tunnels; for control.
    pub(crate) tunnel: Socket,
    /// Local operators; for control.
    pub(crate) operator: Socket,
    /// Ours.
    pub(crate) admin: Socket,
}

impl LocalListeners {
    /// Binds all four, in place of what an earlier run left. The state directory is locked, so nobody uses that.
    pub(crate) fn bind(state: &StateDir) -> Result<Self, Failure> {
        let bind = |name: &str| {
            let path = state.run_path(name);
            bind_local(&path).map_err(|error| {
                Failure::fatal(format!(
                    "cannot make the socket {}: {error}",
                    path.display()
                ))
            })
        };
        Ok(Self {
            link: bind("control.sock")?,
            tunnel: bind("tunnel.sock")?,
            operator: bind("operator.sock")?,
            admin: bind("admin.sock")?,
        })
    }

    /// What control inherits, in the order link, tunnel, operator.
    pub(crate) fn for_control(&self) -> [RawFd; 3] {
        [&self.link, &self.tunnel, &self.operator].map(|socket| socket.as_raw_fd())
    }

    /// A second handle of the admin socket, for the runtime.
    pub(crate) fn admin(&self) -> io::Result<UnixListener> {
        Ok(self.admin.try_clone()?.into())
    }
}

fn bind_local(path: &Path) -> io::Result<Socket> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    socket.listen(LOCAL_BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::exit;

    fn server(addresses: &[&str]) -> Server {
        Server {
            address: addresses.iter().map(|text| (*text).to_owned()).collect(),
            ..Server::default()
        }
    }

    fn accepted(socket: &Socket) -> usize {
        std::iter::from_fn(|| socket.accept().ok()).count()
    }

    #[test]
    fn every_slot_gets_its_share_of_one_port() {
        let listeners = TcpListeners::bind(&server(&["127.0.0.1:0", "[::1]:0"]), 4).unwrap();
        let addresses = listeners.addresses();
        assert!(addresses.iter().all(|address| address.port() != 0));
        let _clients: Vec<_> = (0..200)
            .map(|_| TcpStream::connect(addresses[0]).unwrap())
            .collect();
        let shares: Vec<_> = listeners.addresses[0]
            .sockets
            .iter()
            .map(accepted)
            .collect();
        assert_eq!(shares.iter().sum::<usize>(), 200);
        assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
    }

    #[test]
    fn a_closed_slot_gets_no_more_connections() {
        let listeners = TcpListeners::bind(&server(&["127.0.0.1:0"]), 2).unwrap();
        listeners.close_slot(0);
        let address = listeners.addresses()[0];
        let _clients: Vec<_> = (0..50)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        assert_eq!(accepted(&listeners.addresses[0].sockets[1]), 50);
    }

    #[test]
    fn a_taken_port_is_refused_with_its_owner() {
        let first = TcpListeners::bind(&server(&["127.0.0.1:0"]), 2).unwrap();
        let address = first.addresses()[0].to_string();
        let failure = TcpListeners::bind(&server(&[&address]), 2).unwrap_err();
        let text = failure.to_string();
        assert!(text.contains(&address), "{text}");

        let twice = server(&["127.0.0.2:0", "127.0.0.2:0"]);
        TcpListeners::bind(&twice, 1).unwrap();
        let failure = TcpListeners::bind(&server(&["192.0.2.1:0"]), 1).unwrap_err();
        assert_eq!(failure.code(), exit::FATAL);
        assert!(
            failure.to_string().contains("not an address of"),
            "{failure}"
        );
    }

    #[test]
    fn a_stale_local_socket_is_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let state = StateDir::open(&parent.path().join("state")).unwrap();
        drop(LocalListeners::bind(&state).unwrap());
        let listeners = LocalListeners::bind(&state).unwrap();
        std::os::unix::net::UnixStream::connect(state.run_path("admin.sock")).unwrap();
        assert_eq!(listeners.for_control().len(), 3);
    }
}
