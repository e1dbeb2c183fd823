//! Descriptors that the supervisor hands over by number become sockets here, and nowhere else.
//!
//! The only unsafe code of this crate. Descriptors are claimed before the process opens any of its own, so that a number
//! that the supervisor names can only stand for what it passed, or for nothing.

#![allow(
    unsafe_code,
    reason = "a descriptor's number is all that an exec leaves"
)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use fleet_protocol::slot;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use socket2::{Domain, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::admission::Waited;

/// The kernel holds a connection back until its first bytes are there, up to this time.
const DEFER_ACCEPT: Duration = Duration::from_secs(3);

/// The kernel's `tcp_states`: reset, and closed by the peer alone.
const TCP_CLOSE: u8 = 7;
const TCP_CLOSE_WAIT: u8 = 8;

/// Why an inherited descriptor cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("descriptor {fd} listens on {found}, not on {address}")]
    Address {
        fd: RawFd,
        found: String,
        address: SocketAddr,
    },
    #[error("descriptor {0} was handed over twice, or is none that can be")]
    Claimed(RawFd),
    #[error("descriptor {fd}: {error}")]
    Io { fd: RawFd, error: io::Error },
    #[error("descriptor {fd} is no {wanted}")]
    Kind { fd: RawFd, wanted: &'static str },
}

/// What has been taken over so far.
#[derive(Default)]
pub(crate) struct Inheritance {
    claimed: Vec<RawFd>,
}

impl Inheritance {
    /// The channel to the supervisor.
    pub(crate) fn channel(&mut self) -> Result<UnixStream, Error> {
        let fd = slot::CHANNEL_FD;
        let socket = self.socket(fd)?;
        let at = |error| Error::Io { fd, error };
        if socket.domain().map_err(at)? != Domain::UNIX
            || socket.r#type().map_err(at)? != Type::STREAM
        {
            return Err(Error::Kind {
                fd,
                wanted: "Unix stream socket",
            });
        }
        Ok(UnixStream::from(OwnedFd::from(socket)))
    }

    /// A listening TCP socket, set up so that what it accepts needs no further call.
    pub(crate) fn listener(&mut self, listener: &slot::Listener) -> Result<Socket, Error> {
        prepare(self.socket(listener.fd)?, listener)
    }

    fn socket(&mut self, fd: RawFd) -> Result<Socket, Error> {
        if fd < slot::CHANNEL_FD || self.claimed.contains(&fd) {
            return Err(Error::Claimed(fd));
        }
        // SAFETY: the number is only asked about; if it is not open, the kernel says so.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let at = |error: io::Error| Error::Io { fd, error };
        fcntl(borrowed, FcntlArg::F_GETFD).map_err(|errno| at(errno.into()))?;
        self.claimed.push(fd);
        // SAFETY: it is open, nothing in this process has opened it, and `claimed` lets it be taken only once.
        let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.set_cloexec(true).map_err(at)?;
        Ok(socket)
    }
}

/// A descriptor that the kernel has just put into this process, out of a message.
pub(crate) fn received(fd: RawFd) -> OwnedFd {
    // SAFETY: `recvmsg` gave out this number, once, for a descriptor that nobody else in this process owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Checks that `socket` is what it is said to be, and sets it up so that what it accepts needs no further call.
pub(crate) fn prepare(socket: Socket, listener: &slot::Listener) -> Result<Socket, Error> {
    let fd = socket.as_raw_fd();
    let at = |error| Error::Io { fd, error };
    let is_tcp = matches!(socket.domain().map_err(at)?, Domain::IPV4 | Domain::IPV6)
        && socket.r#type().map_err(at)? == Type::STREAM;
    if !is_tcp || !socket.is_listener().map_err(at)? {
        return Err(Error::Kind {
            fd,
            wanted: "listening TCP socket",
        });
    }
    let found = socket.local_addr().map_err(at)?.as_socket();
    if found != Some(listener.address) {
        return Err(Error::Address {
            fd,
            found: found.map_or_else(|| "no IP address".to_owned(), |found| found.to_string()),
            address: listener.address,
        });
    }
    socket.set_nonblocking(true).map_err(at)?;
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true).map_err(at)?;
    set_defer_accept(&socket).map_err(at)?;
    Ok(socket)
}

/// Makes the runtime's poller know a listener.
pub(crate) fn watch(listener: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a socket owns its descriptor, gives out the same one until it is dropped, and is dropped with the `AsyncFd`.
    let watched = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) };
    Ok(watched?)
}

/// An accept then finds the ClientHello there; a connection that never speaks costs no descriptor for a while.
fn set_defer_accept(socket: &Socket) -> io::Result<()> {
    let seconds = libc::c_int::try_from(DEFER_ACCEPT.as_secs()).unwrap_or(1);
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
    // SAFETY: the pointer and the length describe `seconds`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// How long an accepted connection has waited, and whether its peer is still there; `None` when the kernel does not tell. A
/// client of TLS never closes one direction alone, a plain one may.
pub(crate) fn waited(socket: &Socket, has_tls: bool) -> Option<Waited> {
    // SAFETY: a structure of integers, of which all zeros are a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
    // SAFETY: the pointers describe `info` and its length, which outlive the call; the kernel writes no more than that.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    let is_half_closed = info.tcpi_state == TCP_CLOSE_WAIT;
    (result == 0).then(|| Waited {
        age: Duration::from_millis(info.tcpi_last_data_recv.into()),
        is_peer_gone: info.tcpi_state == TCP_CLOSE || (is_half_closed && has_tls),
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn takes_a_listener_once_and_prepares_it() {
        let bound = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = bound.local_addr().unwrap();
        let fd = bound.into_raw_fd();
        let mut inheritance = Inheritance::default();
        let claim = slot::Listener {
            address,
            fd,
            balancers: None,
        };
        let socket = inheritance.listener(&claim).unwrap();
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.nonblocking().unwrap());
        assert!(matches!(
            inheritance.listener(&claim),
            Err(Error::Claimed(_))
        ));
    }

    /// What `accept` rests on: with `TCP_DEFER_ACCEPT` too, the age counts from the peer's latest bytes.
    #[test]
    fn the_kernel_tells_how_long_a_connection_has_waited() {
        use std::io::Write as _;
        let bound = TcpListener::bind("127.0.0.1:0").unwrap();
        set_defer_accept(&Socket::from(bound.try_clone().unwrap())).unwrap();
        let connect = || {
            let mut stream = std::net::TcpStream::connect(bound.local_addr().unwrap()).unwrap();
            stream.write_all(b"hello").unwrap();
            stream
        };
        let (stays, goes) = (connect(), connect());
        drop(goes);
        let reset = connect();
        socket2::SockRef::from(&reset)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(reset);
        let pause = Duration::from_millis(300);
        std::thread::sleep(pause);
        let accepted: Vec<Socket> = (0..3).map(|_| bound.accept().unwrap().0.into()).collect();
        let waited = |index: usize, has_tls| waited(&accepted[index], has_tls).unwrap();
        assert!(waited(0, true).age + Duration::from_millis(20) >= pause);
        assert!(!waited(0, true).is_peer_gone);
        assert!(waited(1, true).is_peer_gone);
        assert!(
            !waited(1, false).is_peer_gone,
            "a plain client may still read"
        );
        assert!(waited(2, false).is_peer_gone);
        drop(stays);
    }

    #[test]
    fn refuses_what_is_not_what_is_claimed() {
        let mut inheritance = Inheritance::default();
        let mut claim = |fd, address: &str| {
            let address = address.parse().unwrap();
            inheritance.listener(&slot::Listener {
                address,
                fd,
                balancers: None,
            })
        };
        // All open before the first is taken and closed, so that no number comes back.
        let bound = TcpListener::bind("127.0.0.1:0").unwrap().into_raw_fd();
        let file = std::fs::File::open("/dev/null").unwrap().into_raw_fd();
        let (left, _right) = UnixStream::pair().unwrap();
        assert!(matches!(
            claim(bound, "127.0.0.1:1"),
            Err(Error::Address { .. })
        ));
        assert!(matches!(claim(file, "127.0.0.1:1"), Err(Error::Io { .. })));
        assert!(matches!(
            claim(left.into_raw_fd(), "127.0.0.1:1"),
            Err(Error::Kind { .. })
        ));
        for fd in [-1, 0, 2] {
            assert!(matches!(claim(fd, "127.0.0.1:1"), Err(Error::Claimed(_))));
        }
        assert!(matches!(claim(19_999, "[::1]:1"), Err(Error::Io { .. })));
    }
}
