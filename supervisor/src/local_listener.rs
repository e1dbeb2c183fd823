//! The Unix sockets in `STATE/run`. The supervisor keeps them open for its whole life, so that workers and operators wait
//! in the kernel while control is replaced.

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use fleet_protocol::upgrade::ItemKind;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::exit::Failure;
use crate::state_dir::StateDir;
use crate::upgrade::Inheritance;

/// Workers and operators that may wait while control restarts.
const LOCAL_BACKLOG: i32 = 1024;

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

    /// Takes all four from the supervisor before us; `None` when one is missing.
    pub(crate) fn adopt(inherited: &mut Inheritance) -> Option<Self> {
        let mut take = |kind| inherited.take(kind).map(Socket::from);
        Some(Self {
            link: take(ItemKind::Link)?,
            tunnel: take(ItemKind::Tunnel)?,
            operator: take(ItemKind::Operator)?,
            admin: take(ItemKind::Admin)?,
        })
    }

    /// All four, to hand over.
    pub(crate) fn items(&self) -> [(ItemKind, &Socket); 4] {
        [
            (ItemKind::Link, &self.link),
            (ItemKind::Tunnel, &self.tunnel),
            (ItemKind::Operator, &self.operator),
            (ItemKind::Admin, &self.admin),
        ]
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
    use super::*;

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
