//! One worker: accepts, and lets hyper answer.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

const BACKLOG: i32 = 4096;
/// As much as nginx takes beside it.
const BODY_BYTES_MAX: usize = 16 << 20;
/// From an accept that failed until the next: the reason is a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// A thread's socket and what it does with connections.
pub(crate) struct Worker {
    listener: TcpListener,
    config: Arc<ServerConfig>,
    is_kept: bool,
}

impl Worker {
    /// Opens its socket.
    pub(crate) fn bind(
        address: SocketAddr,
        config: Arc<ServerConfig>,
        is_kept: bool,
    ) -> std::io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(Self {
            listener: socket.into(),
            config,
            is_kept,
        })
    }

    /// Serves until the process ends.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(self.accept())
    }

    async fn accept(self) -> anyhow::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let acceptor = TlsAcceptor::from(self.config);
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let acceptor = acceptor.clone();
            let is_kept = self.is_kept;
            tokio::spawn(async move {
                // An error is the client's end; there is nobody to tell.
                let _ = serve(stream, acceptor, is_kept).await;
            });
        }
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, is_kept: bool) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let served = http1::Builder::new()
        .keep_alive(is_kept)
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await;
    Ok(served?)
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_enrolment = request.uri().path().ends_with("/enroll");
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX);
    let (status, text): (_, &'static [u8]) = match body.collect().await {
        Err(_) => (StatusCode::BAD_REQUEST, br#"{"error":"no whole body"}"#),
        Ok(_) if is_enrolment => (
            StatusCode::OK,
            br#"{"node_key":"the-same-key-for-every-host-0001"}"#,
        ),
        Ok(_) => (StatusCode::OK, b"{}"),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text)));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    Ok(response)
}
