//! Descriptor numbers from the supervisor become sockets. The only unsafe code in this crate.
#![expect(
    unsafe_code,
    reason = "a descriptor that was inherited by number has no owner yet"
)]

use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use fleet_protocol::slot::CHANNEL_FD;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{getsockopt, sockopt};

/// The socket to the supervisor. To be called once.
pub(crate) fn channel() -> io::Result<UnixStream> {
    let stream = UnixStream::from(take(CHANNEL_FD, false)?);
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// An inherited listening Unix socket. To be called once for each number.
pub(crate) fn listener(fd: i32) -> io::Result<UnixListener> {
    let listener = UnixListener::from(take(fd, true)?);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn take(fd: i32, is_listening: bool) -> io::Result<OwnedFd> {
    let describe = |error: io::Error| {
        io::Error::new(error.kind(), format!("inherited descriptor {fd}: {error}"))
    };
    // 0 to 2 belong to the standard streams.
    if fd < CHANNEL_FD {
        return Err(describe(io::ErrorKind::InvalidInput.into()));
    }
    // SAFETY: the supervisor names each number once and nobody else in this process uses it, so it has no other owner.
    // A number that is not open is found by the next call; its drop then closes nothing.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    let checked = fcntl(owned.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .and_then(|_| getsockopt(&owned, sockopt::AcceptConn));
    match checked {
        Ok(listens) if listens == is_listening => Ok(owned),
        Ok(_) => Err(describe(io::Error::other(
            "not the expected kind of socket",
        ))),
        Err(errno) => {
            // Not ours to close: it is not open, or not a socket.
            std::mem::forget(owned);
            Err(describe(errno.into()))
        }
    }
}
