//! Connections to the server: its operator socket, or TCP with TLS, through a proxy where the environment names one.
//!
//! A name is resolved once: whatever a command asks, it asks one machine.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::{HOST, HeaderValue, PROXY_AUTHORIZATION};
use hyper::{Method, Request, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::CertificateError;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Failure;
use super::contexts::Context;
use super::door::Endpoint;
use super::trust::{self, Trust};

/// For each address to connect, and for each handshake.
const STEP_LIMIT: Duration = Duration::from_secs(15);

/// Bytes in both directions.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(super) type Stream = Box<dyn Duplex>;

/// Makes connections to one server.
pub(super) enum Dialer {
    /// The operator socket of this machine.
    Socket(PathBuf),
    /// A server of a context.
    Network(Box<Network>),
}

/// How a server is reached over the network.
pub(super) struct Network {
    endpoint: Endpoint,
    tls: Option<TlsConnector>,
    proxy: Option<Intercept>,
    /// The address that answered first.
    peer: OnceLock<SocketAddr>,
}

impl Network {
    /// Reads what the context and the environment say; connects nowhere.
    pub(super) fn new(endpoint: Endpoint, context: &Context) -> Result<Self, String> {
        let trust = match (context.tls_skip_verify, context.rootca.as_str()) {
            (true, _) => Trust::Anybody,
            (_, "") => Trust::System,
            (_, path) => Trust::File(Path::new(path)),
        };
        let tls = endpoint
            .is_tls
            .then(|| trust::config(trust))
            .transpose()?
            .map(|config| TlsConnector::from(Arc::new(config)));
        // A proxy's own localhost is another machine.
        let uri: Option<Uri> = match endpoint.is_local() {
            true => None,
            false => endpoint.url().parse().ok(),
        };
        Ok(Self {
            proxy: uri.and_then(|uri| Matcher::from_env().intercept(&uri)),
            endpoint,
            tls,
            peer: OnceLock::new(),
        })
    }

    /// Whom bytes go to, if there was a connection yet.
    pub(super) fn peer(&self) -> Option<String> {
        let peer = self.peer.get()?;
        Some(match &self.proxy {
            None => peer.to_string(),
            Some(_) => format!("the proxy {peer}"),
        })
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn is_proxied(&self) -> bool {
        self.proxy.is_some()
    }

    /// Addresses of the server, or of the proxy before it.
    pub(super) async fn resolve(&self) -> Result<Vec<SocketAddr>, Failure> {
        if let Some(peer) = self.peer.get() {
            return Ok(vec![*peer]);
        }
        let (host, port) = match &self.proxy {
            None => (self.endpoint.host.as_str(), self.endpoint.port),
            Some(proxy) => proxy_address(proxy.uri())?,
        };
        let failed = |reason: String| {
            Failure::Unavailable(format!("cannot find the address of {host}: {reason}"))
        };
        let found = timeout(STEP_LIMIT, lookup_host((host, port))).await;
        let found = found.map_err(|_| failed("no answer from DNS".into()))?;
        let found: Vec<SocketAddr> = found.map_err(|error| failed(error.to_string()))?.collect();
        if found.is_empty() {
            return Err(failed("DNS knows none".into()));
        }
        Ok(found)
    }

    /// TCP to the first address that answers, which is used from then on.
    pub(super) async fn connect(&self, addresses: &[SocketAddr]) -> Result<TcpStream, Failure> {
        let mut reasons = Vec::new();
        for address in addresses {
            let reason = match timeout(STEP_LIMIT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    let _ = stream.set_nodelay(true);
                    let _ = self.peer.set(*address);
                    return Ok(stream);
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} s", STEP_LIMIT.as_secs()),
            };
            reasons.push(format!("cannot connect to {address}: {reason}"));
        }
        Err(Failure::Unavailable(reasons.join("\n       ")))
    }

    /// From TCP to what HTTP is spoken over; the TLS stream by itself, for who wants to look at it.
    pub(super) async fn secure(&self, stream: TcpStream) -> Result<Secured, Failure> {
        let stream: Stream = match &self.proxy {
            None => Box::new(stream),
            Some(proxy) => within(tunnel(stream, proxy, &self.endpoint), "the proxy").await?,
        };
        let Some(tls) = &self.tls else {
            return Ok(Secured::Clear(stream));
        };
        let name = ServerName::try_from(self.endpoint.host.clone())
            .map_err(|_| Failure::Usage(format!("{:?} is no host name", self.endpoint.host)))?;
        let handshake = async {
            let outcome = tls.connect(name, stream).await;
            outcome.map_err(|error| untrusted(&self.endpoint, &error))
        };
        let stream = within(handshake, "the TLS handshake").await?;
        Ok(Secured::Tls(Box::new(stream)))
    }
}

/// A connection that is ready for HTTP.
pub(super) enum Secured {
    Clear(Stream),
    Tls(Box<TlsStream<Stream>>),
}

impl Dialer {
    /// One more connection.
    pub(super) async fn dial(&self) -> Result<Stream, Failure> {
        match self {
            Self::Socket(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(unreachable_socket(path, &error)),
            },
            Self::Network(network) => {
                let addresses = network.resolve().await?;
                let stream = network.connect(&addresses).await?;
                Ok(match network.secure(stream).await? {
                    Secured::Clear(stream) => stream,
                    Secured::Tls(stream) => Box::new(stream),
                })
            }
        }
    }
}

async fn within<T>(
    step: impl Future<Output = Result<T, Failure>>,
    name: &str,
) -> Result<T, Failure> {
    let limit = STEP_LIMIT.as_secs();
    timeout(STEP_LIMIT, step).await.unwrap_or_else(|_| {
        Err(Failure::Unavailable(format!(
            "{name} was not done within {limit} s"
        )))
    })
}

fn proxy_address(uri: &Uri) -> Result<(&str, u16), Failure> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    if uri.scheme_str() != Some("http") || host.is_empty() {
        // What stands before the host may be a password.
        return Err(Failure::Usage(
            "HTTPS_PROXY must name an HTTP proxy, such as http://proxy:3128".into(),
        ));
    }
    Ok((host, uri.port_u16().unwrap_or(80)))
}

/// Asks the proxy for a way through (`CONNECT`).
async fn tunnel(
    stream: TcpStream,
    proxy: &Intercept,
    endpoint: &Endpoint,
) -> Result<Stream, Failure> {
    let failed = |reason: String| Failure::Unavailable(format!("the proxy: {reason}"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(error.to_string()))?;
    tokio::spawn(connection.with_upgrades());
    let host = match endpoint.host.as_str() {
        host if host.contains(':') => format!("[{host}]"),
        host => host.to_owned(),
    };
    let authority = format!("{host}:{}", endpoint.port);
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(&authority)
        .header(HOST, &authority);
    if let Some(credentials) = proxy.basic_auth() {
        let credentials: &HeaderValue = credentials;
        request = request.header(PROXY_AUTHORIZATION, credentials);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(error.to_string()))?;
    let response = sender.send_request(request).await;
    let response = response.map_err(|error| failed(error.to_string()))?;
    if !response.status().is_success() {
        return Err(failed(format!("answered {}", response.status())));
    }
    let upgraded = hyper::upgrade::on(response).await;
    let upgraded = upgraded.map_err(|error| failed(error.to_string()))?;
    Ok(Box::new(TokioIo::new(upgraded)))
}

fn untrusted(endpoint: &Endpoint, error: &std::io::Error) -> Failure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let server = endpoint.authority();
    Failure::Unavailable(match inner {
        // The second: by somebody of the same name as one who is trusted.
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => format!(
            "the certificate of {server} is signed by nobody whom this machine trusts; name the authority, or the \
             certificate itself, with `config set --rootca FILE`"
        ),
        Some(rustls::Error::InvalidCertificate(reason)) => {
            format!("the certificate of {server} is not good: {reason}")
        }
        Some(other) => format!("no TLS with {server}: {other}"),
        None if error.kind() == ErrorKind::UnexpectedEof => {
            format!(
                "{server} closed the connection in the TLS handshake; is it an https:// address?"
            )
        }
        None => format!("no TLS with {server}: {error}"),
    })
}

fn unreachable_socket(socket: &Path, error: &std::io::Error) -> Failure {
    let socket = socket.display();
    Failure::Unavailable(match error.kind() {
        ErrorKind::NotFound => format!(
            "no server has its state here: {socket} does not exist; start it with `fleet-supervisor start`, name its \
             state directory with --state_dir, or a server elsewhere with `ctl config set --address https://…`"
        ),
        ErrorKind::ConnectionRefused => format!(
            "the server is not running: nobody listens on {socket}; start it with `fleet-supervisor start`"
        ),
        ErrorKind::PermissionDenied => format!(
            "not allowed to open {socket}; run this as root or as the user that the server runs as"
        ),
        _ => format!("cannot connect to {socket}: {error}"),
    })
}
