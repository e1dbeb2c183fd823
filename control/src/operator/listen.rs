//! Connections of the two operator sockets: who may connect, deadlines, bounds, and the graceful end.
//!
//! A tunnel's peer is a worker (its uid is checked), but it speaks for a remote client, whom the guard knows or not;
//! the client's address comes first, as a PROXY header. The operator socket's peer is a local operator by its uid.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, Uri};
use fleet_protocol::limits::{HEAD_DEADLINE, HELLO_DEADLINE, VIEWERS_MAX};
use fleet_protocol::proxy_header::{self, HEADER_BYTES_MAX, Origin, PREFIX_BYTES};
use fleet_protocol::trusted_proxies::TrustedProxies;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::peer;

/// Bytes of a request head that are buffered.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// A connection ends after this time, whatever it does.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(300);
/// The same where the answer is a stream without an end: whoever reads it comes again, and one who does not read is found
/// out.
const STREAM_DEADLINE: Duration = Duration::from_secs(3600);
/// Open requests get this long when control drains.
const FINISH_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after an accept that failed, so that a full descriptor table does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a peer without the right uid reads.
const STRANGER: &[u8] = b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\n\
    connection: close\r\ncontent-length: 94\r\n\r\n\
    {\"message\":\"Forbidden\",\"error\":\"only root and the server's own user may use this socket\"     }";

/// Which rules a socket's connections live by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// A remote client through a worker.
    Tunnel,
    /// A local operator.
    Operator,
}

impl Side {
    /// Connections at once; more wait in the socket's backlog.
    fn connections_max(self) -> usize {
        match self {
            // Viewers of live queries stay, and must leave room for requests.
            Self::Tunnel => VIEWERS_MAX + 256,
            Self::Operator => 256,
        }
    }
}

/// The address of a tunnel's client, or of whom a trusted proxy says that it asks for, as a request extension.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client(pub(super) IpAddr);

/// Marks a response, as an extension, whose body goes on for as long as somebody reads it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Endless;

/// One socket with its routes.
pub(super) struct Door {
    pub(super) side: Side,
    pub(super) router: Router,
    /// Taken off the front of a path that has it; `""` for none.
    pub(super) path_prefix: String,
    /// Whose headers are believed about a client's address.
    pub(super) trusted_proxies: TrustedProxies,
    /// Balancers in front send requests of many clients, agents among them, over one connection: a tunnel takes one
    /// request, so that the next one gets to the worker again.
    pub(super) is_shared: bool,
}

impl Door {
    /// Accepts until `drain` turns true, then lets open requests finish for a moment.
    pub(super) async fn serve(self, listener: UnixListener, mut drain: watch::Receiver<bool>) {
        let permits = Arc::new(Semaphore::new(self.side.connections_max()));
        let door = Arc::new(self);
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = accept(&listener, &permits) => accepted,
                _ = drain.wait_for(|is_draining| *is_draining) => break,
                Some(_) = connections.join_next() => continue,
            };
            let (Ok(permit), Ok((stream, _))) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (door, drain) = (Arc::clone(&door), drain.clone());
            connections.spawn(async move {
                door.converse(stream, drain).await;
                drop(permit);
            });
        }
        let all_finished = async { while connections.join_next().await.is_some() {} };
        // Whoever is still open after this is cut by dropping the set.
        let _ = timeout(FINISH_DEADLINE, all_finished).await;
    }

    async fn converse(&self, mut stream: UnixStream, drain: watch::Receiver<bool>) {
        let peer = stream.peer_cred();
        let is_allowed = peer.is_ok_and(|peer| match self.side {
            Side::Operator => peer::is_operator(peer.uid()),
            Side::Tunnel => peer::is_worker(peer.uid()),
        });
        if !is_allowed {
            tracing::warn!("operator socket: refused a peer with another uid");
            let _ = timeout(HELLO_DEADLINE, stream.write_all(STRANGER)).await;
            return;
        }
        let client = match self.side {
            Side::Operator => None,
            Side::Tunnel => match timeout(HELLO_DEADLINE, client_address(&mut stream)).await {
                Ok(Some(address)) => Some(address),
                _ => return,
            },
        };
        self.exchange(stream, client, drain).await;
    }

    /// Who asks.
    fn client_of(&self, peer: IpAddr, request: &Request<Incoming>) -> IpAddr {
        let headers = request.headers();
        self.trusted_proxies.client_address(peer, |name| {
            let values = headers.get_all(name).into_iter();
            values.map(HeaderValue::as_bytes)
        })
    }

    async fn exchange(
        &self,
        stream: UnixStream,
        peer: Option<IpAddr>,
        mut drain: watch::Receiver<bool>,
    ) {
        let router = TowerToHyperService::new(self.router.clone());
        let (is_endless, mut endless) = watch::channel(false);
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            let client = peer.map(|peer| self.client_of(peer, &request));
            if let Some(client) = client {
                request.extensions_mut().insert(Client(client));
            }
            let uri = without_prefix(request.uri(), &self.path_prefix);
            if let Some(uri) = uri {
                *request.uri_mut() = uri;
            }
            let (router, is_endless) = (router.clone(), is_endless.clone());
            async move {
                let response = answer(router, client, request.map(Body::new)).await?;
                if response.extensions().get::<Endless>().is_some() {
                    is_endless.send_replace(true);
                }
                Ok::<_, Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .max_buf_size(HEAD_BYTES_MAX)
            .keep_alive(!self.is_shared)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let began = Instant::now();
        let mut end = began + CONNECTION_DEADLINE;
        let mut is_finishing = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, ?peer, "operator connection broke");
                    }
                    return;
                }
                () = sleep_until(end) => return,
                Ok(()) = endless.changed() => end = began + STREAM_DEADLINE,
                _ = drain.wait_for(|is_draining| *is_draining), if !is_finishing => {
                    is_finishing = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

async fn answer(
    router: TowerToHyperService<Router>,
    client: Option<IpAddr>,
    request: Request<Body>,
) -> Result<Response<Body>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = hyper::service::Service::call(&router, request).await?;
    let status = response.status().as_u16();
    let client = client.map(tracing::field::display);
    tracing::debug!(client, %method, path, status, "operator request");
    Ok(response)
}

async fn accept(
    listener: &UnixListener,
    permits: &Arc<Semaphore>,
) -> (
    Result<tokio::sync::OwnedSemaphorePermit, tokio::sync::AcquireError>,
    std::io::Result<(UnixStream, tokio::net::unix::SocketAddr)>,
) {
    let permit = Arc::clone(permits).acquire_owned().await;
    (permit, listener.accept().await)
}

/// Reads the PROXY header and not a byte more.
async fn client_address(stream: &mut UnixStream) -> Option<IpAddr> {
    let mut header = [0; HEADER_BYTES_MAX];
    stream
        .read_exact(header.get_mut(..PREFIX_BYTES)?)
        .await
        .ok()?;
    // Refuses anything that is not the beginning of a header before its length is believed.
    proxy_header::decode(header.get(..PREFIX_BYTES)?).ok()?;
    let &[high, low] = header.get(PREFIX_BYTES - 2..PREFIX_BYTES)? else {
        return None;
    };
    let bytes = PREFIX_BYTES + usize::from(u16::from_be_bytes([high, low]));
    stream
        .read_exact(header.get_mut(PREFIX_BYTES..bytes)?)
        .await
        .ok()?;
    match proxy_header::decode(header.get(..bytes)?).ok()??.origin {
        Origin::Client { source, .. } => Some(source.ip()),
        Origin::Peer => None,
    }
}

/// The same URI with `prefix` taken off its path, when it is there.
fn without_prefix(uri: &Uri, prefix: &str) -> Option<Uri> {
    if prefix.is_empty() {
        return None;
    }
    let rest = uri.path_and_query()?.as_str().strip_prefix(prefix)?;
    let path = match rest.chars().next() {
        Some('/') => rest.to_owned(),
        None | Some('?') => format!("/{rest}"),
        Some(_) => return None,
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_taken_off_whole() {
        let strip = |uri: &str| without_prefix(&uri.parse().unwrap(), "/fleet");
        assert_eq!(
            strip("/fleet/healthz?check=redis").unwrap(),
            "/healthz?check=redis"
        );
        assert_eq!(strip("/fleet").unwrap(), "/");
        assert_eq!(strip("/fleet?x=1").unwrap(), "/?x=1");
        assert_eq!(strip("/fleetx/healthz"), None);
        assert_eq!(strip("/healthz"), None);
    }

    #[test]
    fn the_stranger_s_answer_is_whole() {
        let text = std::str::from_utf8(STRANGER).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{}",
            body.len()
        );
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(body["error"].is_string());
    }

    #[tokio::test]
    async fn the_client_s_address_is_read_and_nothing_more() {
        let (mut worker, mut control) = UnixStream::pair().unwrap();
        let client: std::net::SocketAddr = "192.0.2.7:51000".parse().unwrap();
        let mut bytes = proxy_header::encode(client, "198.51.100.1:8080".parse().unwrap());
        bytes.extend_from_slice(b"GET /");
        worker.write_all(&bytes).await.unwrap();
        assert_eq!(client_address(&mut control).await, Some(client.ip()));
        let mut rest = [0; 5];
        control.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"GET /");
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        for bytes in [
            &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
            &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"[..],
            b"\r\n",
        ] {
            let (mut worker, mut control) = UnixStream::pair().unwrap();
            worker.write_all(bytes).await.unwrap();
            drop(worker);
            assert_eq!(client_address(&mut control).await, None);
        }
    }
}
