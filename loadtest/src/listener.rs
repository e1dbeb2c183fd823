//! A small TLS server for testing the simulator: it records what a client does and answers what it is told to.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// One request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Head without the empty line.
    pub head: String,
    /// Path with query string.
    pub path: String,
    /// Body.
    pub body: Vec<u8>,
    /// Which connection, counted from 0.
    pub connection: usize,
}

/// What the server does with a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A whole answer with this status, these header lines (each ended by CRLF) and this body.
    Answer {
        /// Status code.
        status: u16,
        /// Extra headers.
        headers: &'static str,
        /// Body; its length is announced.
        body: Vec<u8>,
    },
    /// These bytes, then the end with close_notify.
    Raw(Vec<u8>),
    /// These bytes, then the end without close_notify.
    Torn(Vec<u8>),
    /// Nothing, for this long; then the end.
    Silence(Duration),
    /// Nothing, for this long; then 200 with `Connection: close` and this body.
    Held(Duration, Vec<u8>),
}

impl Reply {
    /// 200 with `Connection: close`.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::status(200, body)
    }

    /// Any status with `Connection: close`.
    pub fn status(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::Answer {
            status,
            headers: "Connection: close\r\n",
            body: body.into(),
        }
    }

    /// 200 without a word about the connection.
    pub fn open(body: impl Into<Vec<u8>>) -> Self {
        Self::Answer {
            status: 200,
            headers: "",
            body: body.into(),
        }
    }
}

/// How a connection was, once it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Which connection, counted from 0.
    pub connection: usize,
    /// Server name in the hello.
    pub server_name: Option<String>,
    /// The handshake was full, without ALPN.
    pub is_full: bool,
    /// Requests on it.
    pub requests: usize,
    /// The client said close_notify.
    pub has_close_notify: bool,
}

type Responder = dyn Fn(&Received) -> Reply + Send + Sync;

#[derive(Default)]
struct Record {
    accepted: AtomicUsize,
    received: Mutex<Vec<Received>>,
    ended: Mutex<Vec<Ended>>,
}

/// The server; it ends when dropped.
pub struct Listener {
    address: SocketAddr,
    record: Arc<Record>,
    task: JoinHandle<()>,
}

impl Listener {
    /// Listens on a free port of 127.0.0.1 with this certificate.
    pub async fn start(
        cert_pem: &str,
        key_pem: &str,
        respond: impl Fn(&Received) -> Reply + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(cert_pem.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).context("key")?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain.context("certificate")?, key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let record = Arc::new(Record::default());
        let respond: Arc<Responder> = Arc::new(respond);
        let task = tokio::spawn(accept(listener, acceptor, record.clone(), respond));
        Ok(Self {
            address,
            record,
            task,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.record.accepted.load(Ordering::SeqCst)
    }

    /// Requests so far.
    pub fn received(&self) -> Vec<Received> {
        let received = self.record.received.lock();
        received.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connections that have ended.
    pub fn ended(&self) -> Vec<Ended> {
        let ended = self.record.ended.lock();
        ended.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    record: Arc<Record>,
    respond: Arc<Responder>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let connection = record.accepted.fetch_add(1, Ordering::SeqCst);
        let (acceptor, record, respond) = (acceptor.clone(), record.clone(), respond.clone());
        tokio::spawn(async move {
            let mut ended = Ended {
                connection,
                ..Ended::default()
            };
            // An error is the client's end of the connection; what was seen until then counts.
            let _ = serve(stream, acceptor, &record, respond.as_ref(), &mut ended).await;
            let mut all = record.ended.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(ended);
        });
    }
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    record: &Record,
    respond: &Responder,
    ended: &mut Ended,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = acceptor.accept(stream).await?;
    let session = stream.get_ref().1;
    ended.server_name = session.server_name().map(str::to_owned);
    ended.is_full = session.handshake_kind() == Some(rustls::HandshakeKind::Full)
        && session.alpn_protocol().is_none();
    let mut input = Vec::new();
    loop {
        let Some(received) = cut_request(&mut input, ended.connection) else {
            let mut chunk = [0; 16 << 10];
            let count = stream.read(&mut chunk).await?;
            if count == 0 {
                ended.has_close_notify = true;
                return Ok(());
            }
            input.extend_from_slice(chunk.get(..count).unwrap_or_default());
            continue;
        };
        ended.requests += 1;
        let mut reply = respond(&received);
        record.keep(received);
        if let Reply::Held(duration, body) = reply {
            tokio::time::sleep(duration).await;
            reply = Reply::ok(body);
        }
        match reply {
            Reply::Answer {
                status,
                headers,
                body,
            } => {
                let mut bytes = format!(
                    "HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\n\r\n",
                    body.len()
                )
                .into_bytes();
                bytes.extend_from_slice(&body);
                stream.write_all(&bytes).await?;
            }
            Reply::Raw(bytes) => {
                stream.write_all(&bytes).await?;
                return stream.shutdown().await;
            }
            Reply::Torn(bytes) => {
                stream.write_all(&bytes).await?;
                stream.flush().await?;
                return stream.get_mut().0.shutdown().await;
            }
            Reply::Silence(duration) | Reply::Held(duration, _) => {
                tokio::time::sleep(duration).await;
                return Ok(());
            }
        }
    }
}

impl Record {
    fn keep(&self, received: Received) {
        let mut all = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(received);
    }
}

/// Takes one whole request off the front of `input`.
fn cut_request(input: &mut Vec<u8>, connection: usize) -> Option<Received> {
    let head_end = input.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(input.get(..head_end)?).into_owned();
    let length: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .and_then(|length| length.parse().ok())
        .unwrap_or(0);
    let end = head_end + 4 + length;
    let body = input.get(head_end + 4..end)?.to_vec();
    input.drain(..end);
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    Some(Received {
        head,
        path,
        body,
        connection,
    })
}
