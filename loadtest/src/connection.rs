//! One TCP connection, usually with TLS over it, as osquery opens, uses and drops it.
//!
//! Faithful on purpose: the second flight of the handshake and the request are two writes, Nagle's algorithm stays on
//! (osquery never sets `TCP_NODELAY`), TCP keepalive is on, and the end is a TCP shutdown without close_notify.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::{ClientConfig, ClientConnection};
use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

use crate::http::{Request, Response, ResponseReader};
use crate::target::Target;
use crate::verdict::Failure;

/// Bytes read from a socket at once.
const READ_BYTES: usize = 32 << 10;

thread_local! {
    /// Shared by all connections of a thread; borrowed only inside one poll.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// An open connection.
pub struct Connection {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Connection {
    /// Connects, and shakes hands in full.
    pub async fn open(
        target: &Target,
        source: Option<IpAddr>,
        config: &Arc<ClientConfig>,
    ) -> Result<Self, Failure> {
        let stream = connect(target, source).await?;
        let tls = if target.is_tls {
            let tls = ClientConnection::new(config.clone(), target.server_name.clone())
                .map_err(tls_failure)?;
            Some(Box::new(tls))
        } else {
            None
        };
        let mut connection = Self { stream, tls };
        connection.handshake().await?;
        Ok(connection)
    }

    /// Connects only; what is sent and received goes over TCP as it is.
    pub async fn open_bare(target: &Target, source: Option<IpAddr>) -> Result<Self, Failure> {
        let stream = connect(target, source).await?;
        Ok(Self { stream, tls: None })
    }

    /// Sends a request and reads the whole answer.
    pub async fn exchange(&mut self, request: &Request, host: &str) -> Result<Response, Failure> {
        self.ask(request, host).await?;
        self.receive().await
    }

    /// Sends a request.
    pub async fn ask(&mut self, request: &Request, host: &str) -> Result<(), Failure> {
        let head = request.head(host);
        let mut bytes = Vec::with_capacity(head.len() + request.body.len());
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(&request.body);
        self.send(&bytes).await
    }

    /// Writes plain bytes.
    pub async fn send(&mut self, mut plain: &[u8]) -> Result<(), Failure> {
        use std::io::Write as _;
        let Some(tls) = &mut self.tls else {
            return Ok(self.stream.write_all(plain).await?);
        };
        while !plain.is_empty() {
            // Takes as much as its buffer may hold.
            let taken = tls.writer().write(plain)?;
            plain = plain.get(taken..).unwrap_or_default();
            flush(tls, &mut self.stream).await?;
        }
        Ok(())
    }

    /// Reads one answer.
    pub async fn receive(&mut self) -> Result<Response, Failure> {
        let mut reader = ResponseReader::default();
        let mut input = Vec::new();
        loop {
            let is_end = !self.fill(&mut input).await?;
            if let Some(response) = reader.read(&input, is_end)? {
                return Ok(response);
            }
        }
    }

    /// Appends what arrives next to `input`; false at the proper end (close_notify; end of file without TLS).
    pub async fn fill(&mut self, input: &mut Vec<u8>) -> Result<bool, Failure> {
        let Self { stream, tls } = self;
        poll_fn(|cx| poll_fill(stream, tls.as_deref_mut(), cx, input)).await
    }

    /// Closes as osquery does.
    pub fn close(self) {
        close(&self.stream);
    }

    /// Gives up the TLS state and keeps the bare socket open.
    pub fn into_socket(self) -> Option<std::net::TcpStream> {
        // Out of the runtime: nobody waits for this socket, and what arrives must not wake anybody.
        self.stream.into_std().ok()
    }

    async fn handshake(&mut self) -> Result<(), Failure> {
        let Self { stream, tls } = self;
        let Some(tls) = tls.as_deref_mut() else {
            return Ok(());
        };
        let mut early = Vec::new();
        loop {
            flush(tls, stream).await?;
            if !tls.is_handshaking() {
                return Ok(());
            }
            let is_open = poll_fn(|cx| poll_fill(stream, Some(tls), cx, &mut early)).await?;
            if !is_open {
                return Err(Failure::Closed);
            }
        }
    }
}

/// Whether the peer has not ended a socket of [`Connection::into_socket`]. Reads away what arrived (tickets, perhaps a
/// close_notify) up to the end, if there is one.
pub fn is_open(socket: &mut std::net::TcpStream) -> bool {
    use std::io::Read as _;
    let mut bytes = [0; 4096];
    // Tokio's sockets are non-blocking, and stay so.
    loop {
        match socket.read(&mut bytes) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

/// The first flight of a handshake, as it would go over TCP.
pub fn client_hello(target: &Target, config: &Arc<ClientConfig>) -> Result<Vec<u8>, Failure> {
    let mut tls =
        ClientConnection::new(config.clone(), target.server_name.clone()).map_err(tls_failure)?;
    let mut bytes = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut bytes)?;
    }
    Ok(bytes)
}

/// TCP shutdown of both directions; the descriptor goes with its owner.
fn close(stream: &TcpStream) {
    // An error means that the peer was faster.
    let _ = socket2::SockRef::from(stream).shutdown(Shutdown::Both);
}

async fn connect(target: &Target, source: Option<IpAddr>) -> Result<TcpStream, Failure> {
    let mut last = None;
    for address in target.addresses().await? {
        match connect_to(address, source).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    let nothing = || std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    Err(last.unwrap_or_else(nothing).into())
}

async fn connect_to(address: SocketAddr, source: Option<IpAddr>) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_keepalive(true)?;
    if let Some(source) = source {
        // The port is chosen at connect, when the destination is known: the same port may serve several.
        nix::sys::socket::setsockopt(
            &socket,
            nix::sys::socket::sockopt::IpBindAddressNoPort,
            &true,
        )
        .map_err(std::io::Error::from)?;
        socket.bind((source, 0).into())?;
    }
    socket.connect(address).await
}

async fn flush(tls: &mut ClientConnection, stream: &mut TcpStream) -> Result<(), Failure> {
    if !tls.wants_write() {
        return Ok(());
    }
    let mut output = Vec::with_capacity(1024);
    while tls.wants_write() {
        tls.write_tls(&mut output)?;
    }
    Ok(stream.write_all(&output).await?)
}

/// Reads once from the socket. Ready with true when plain bytes were appended or the handshake moved.
fn poll_fill(
    stream: &mut TcpStream,
    mut tls: Option<&mut ClientConnection>,
    cx: &mut Context<'_>,
    plain: &mut Vec<u8>,
) -> Poll<Result<bool, Failure>> {
    SCRATCH.with_borrow_mut(|scratch| {
        loop {
            if let Some(tls) = tls.as_deref_mut()
                && let Some(is_open) = drain(tls, plain)?
            {
                return Poll::Ready(Ok(is_open));
            }
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
            let mut bytes = buffer.filled();
            let Some(tls) = tls.as_deref_mut() else {
                plain.extend_from_slice(bytes);
                return Poll::Ready(Ok(!bytes.is_empty()));
            };
            if bytes.is_empty() {
                return Poll::Ready(Err(Failure::Closed));
            }
            let was_handshaking = tls.is_handshaking();
            let mut is_open = None;
            while !bytes.is_empty() {
                tls.read_tls(&mut bytes)?;
                if let Err(error) = tls.process_new_packets() {
                    return Poll::Ready(Err(tls_failure(error)));
                }
                is_open = drain(tls, plain)?.or(is_open);
            }
            if let Some(is_open) = is_open {
                return Poll::Ready(Ok(is_open));
            }
            if was_handshaking {
                return Poll::Ready(Ok(true));
            }
        }
    })
}

/// Moves decrypted bytes out: true when there were some, false at close_notify, `None` when more must be read.
fn drain(tls: &mut ClientConnection, plain: &mut Vec<u8>) -> Result<Option<bool>, Failure> {
    use std::io::Read as _;
    let before = plain.len();
    match tls.reader().read_to_end(plain) {
        Ok(_) => Ok(Some(plain.len() > before)),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            Ok((plain.len() > before).then_some(true))
        }
        Err(error) => Err(error.into()),
    }
}

fn tls_failure(error: rustls::Error) -> Failure {
    Failure::Tls(error.to_string())
}
