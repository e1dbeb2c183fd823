//! A client's socket. The runtime's poller hears of it only once there is something to wait for.
//!
//! Accept comes with the first bytes already there, so the first read and the first write go straight to the kernel.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;

/// Silence after which the peer of a tunnel is asked whether it is still there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 4;

/// See the module. The socket is non-blocking.
pub(crate) enum Stream {
    /// Not read yet.
    Fresh(std::net::TcpStream),
    /// Read once; it will have to be waited for.
    Read(std::net::TcpStream),
    /// Known to the poller.
    Polled(TcpStream),
    /// The poller refused it.
    Gone,
}

impl Stream {
    pub(crate) fn new(socket: std::net::TcpStream) -> Self {
        Self::Fresh(socket)
    }

    /// Bytes read into `buffer`; 0 at the end of the stream.
    pub(crate) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if let Self::Fresh(socket) = self {
            match socket.read(buffer) {
                Err(error) if is_not_ready(&error) => {}
                result => {
                    if let Self::Fresh(socket) = std::mem::replace(self, Self::Gone) {
                        *self = Self::Read(socket);
                    }
                    return Poll::Ready(result);
                }
            }
        }
        let stream = self.polled()?;
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(stream).poll_read(context, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    pub(crate) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Self::Fresh(socket) | Self::Read(socket) = self {
            match socket.write(bytes) {
                Err(error) if is_not_ready(&error) => {}
                result => return Poll::Ready(result),
            }
        }
        Pin::new(self.polled()?).poll_write(context, bytes)
    }

    /// The address that the client connected to.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Fresh(socket) | Self::Read(socket) => socket.local_addr(),
            Self::Polled(stream) => stream.local_addr(),
            Self::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// For connections without a deadline: the kernel finds out when the peer is gone.
    pub(crate) fn set_keepalive(&self) -> io::Result<()> {
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_AFTER)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_RETRIES);
        match self {
            Self::Fresh(socket) | Self::Read(socket) => {
                SockRef::from(socket).set_tcp_keepalive(&keepalive)
            }
            Self::Polled(stream) => SockRef::from(stream).set_tcp_keepalive(&keepalive),
            Self::Gone => Ok(()),
        }
    }

    /// Has the kernel acknowledge the client's next bytes at once.
    ///
    /// An agent sends the end of its handshake and its request in two segments, without `TCP_NODELAY`: the second one
    /// leaves only when the first is acknowledged. We send nothing in between (no tickets), so a delayed
    /// acknowledgement would cost every exchange 40 ms.
    pub(crate) fn acknowledge_at_once(&self) {
        // A socket that refuses is about to fail on its next read or write, where it is told.
        let _ = match self {
            Self::Fresh(socket) | Self::Read(socket) => {
                SockRef::from(socket).set_tcp_quickack(true)
            }
            Self::Polled(stream) => SockRef::from(stream).set_tcp_quickack(true),
            Self::Gone => Ok(()),
        };
    }

    fn polled(&mut self) -> io::Result<&mut TcpStream> {
        *self = match std::mem::replace(self, Self::Gone) {
            Self::Fresh(socket) | Self::Read(socket) => Self::Polled(TcpStream::from_std(socket)?),
            other => other,
        };
        match self {
            Self::Polled(stream) => Ok(stream),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

fn is_not_ready(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
