//! osquery's HTTP client of one thread: a new connection for each request, the old one held until then.
//!
//! Owns at most one socket between requests. Invariants: no logical request lasts longer than its deadline, resend
//! and redirects included; there is at most one resend.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};

use crate::connection::Connection;
use crate::http::{Request, Response};
use crate::target::{Sources, Target};
use crate::verdict::Failure;

/// Bound of a logical request in osquery; not configurable there.
pub const DEADLINE: Duration = Duration::from_secs(16);
/// Redirects that are followed.
const REDIRECTS_MAX: u32 = 10;

/// How connections are made; shared by many clients.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// TLS offer and trust.
    pub tls: Arc<ClientConfig>,
    /// Source addresses.
    pub sources: Sources,
    /// [`DEADLINE`], or shorter in tests.
    pub deadline: Duration,
    /// Keep the connection for the next request, as osquery 4.0 did and a fixed one may.
    pub reuse: bool,
    /// Sockets that clients of this dialer have open now.
    pub open: Arc<AtomicU64>,
    /// Connections that were not to be had, also where the second try was served.
    pub shut_out: Arc<ShutOut>,
}

/// Connections that failed before a request could be sent.
#[derive(Debug, Default)]
pub struct ShutOut {
    /// Nobody listened.
    pub refused: AtomicU64,
    /// Connected, then reset or closed before the handshake was done.
    pub cut: AtomicU64,
}

impl ShutOut {
    fn count(&self, failure: &Failure) {
        let counter = match failure {
            Failure::Refused => &self.refused,
            Failure::Reset | Failure::Closed => &self.cut,
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Dialer {
    /// A faithful one.
    pub fn new(tls: Arc<ClientConfig>, sources: Sources) -> Self {
        Self {
            tls,
            sources,
            deadline: DEADLINE,
            reuse: false,
            open: Arc::default(),
            shut_out: Arc::default(),
        }
    }
}

/// Counts one open socket for as long as it lives.
struct OpenSocket(Arc<AtomicU64>);

impl OpenSocket {
    fn count(open: &Arc<AtomicU64>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(open.clone())
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is left of the last request.
#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    /// An open socket that will not be used again.
    Socket(std::net::TcpStream),
    /// With `reuse`.
    Connection(Box<Connection>),
}

/// The client of one thread of one agent.
#[derive(Default)]
pub struct Client {
    held: Held,
    /// Of the socket in `held`, or in the request under way.
    open: Option<OpenSocket>,
    /// How long the last answer took once its request was sent.
    waited: Duration,
}

/// A logical request's end.
#[derive(Debug)]
pub struct Outcome {
    /// The answer, or why there is none.
    pub result: Result<Response, Failure>,
    /// Connections that were opened or tried.
    pub connections: u32,
    /// Whether the request was sent a second time.
    pub is_resent: bool,
    /// From the request's last byte to the answer's, on the last connection; zero without an answer.
    pub waited: Duration,
}

impl Client {
    /// Sends a request: within the deadline, with one immediate resend unless the failure is the timeout.
    pub async fn request(
        &mut self,
        dialer: &Dialer,
        target: &Target,
        request: &Request,
    ) -> Outcome {
        let deadline = Instant::now() + dialer.deadline;
        let mut outcome = Outcome {
            result: Err(Failure::Timeout),
            connections: 0,
            is_resent: false,
            waited: Duration::ZERO,
        };
        loop {
            let attempt = self.attempt(dialer, target, request, &mut outcome.connections);
            // The timer is for the whole: connect, handshake, upload, wait, download, redirects, resend.
            outcome.result = timeout_at(deadline, Box::pin(attempt))
                .await
                .unwrap_or(Err(Failure::Timeout));
            outcome.waited = std::mem::take(&mut self.waited);
            if !self.is_holding() {
                self.open = None;
            }
            match &outcome.result {
                Err(failure) if failure.is_resent() && !outcome.is_resent => {
                    outcome.is_resent = true;
                }
                _ => return outcome,
            }
        }
    }

    /// Whether a socket is held open.
    pub fn is_holding(&self) -> bool {
        !matches!(self.held, Held::Nothing)
    }

    /// Closes what is held, as at the end of the thread.
    pub fn close(&mut self) {
        self.open = None;
        match std::mem::take(&mut self.held) {
            Held::Nothing => {}
            Held::Socket(socket) => {
                // An error means that the peer was faster.
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
            Held::Connection(connection) => connection.close(),
        }
    }

    async fn attempt(
        &mut self,
        dialer: &Dialer,
        target: &Target,
        request: &Request,
        connections: &mut u32,
    ) -> Result<Response, Failure> {
        let mut elsewhere: Option<(Target, Request)> = None;
        for _ in 0..=REDIRECTS_MAX {
            let (target, sent) = match &elsewhere {
                Some((target, request)) => (target, request),
                None => (target, request),
            };
            let mut connection = self.connection(dialer, target, connections).await?;
            // `Host` keeps its first value after a redirect to another host.
            connection.ask(sent, &target.host).await?;
            let asked_at = Instant::now();
            let response = connection.receive().await?;
            self.waited = asked_at.elapsed();
            self.keep(dialer, connection, &response);
            if !response.is_redirect() {
                return Ok(response);
            }
            let location = response
                .header("location")
                .filter(|location| !location.is_empty())
                .ok_or(Failure::Redirect("no Location"))?;
            let next = redirected(target, sent, location)?;
            if next.0.address != target.address {
                self.close();
            }
            elsewhere = Some(next);
        }
        Err(Failure::Redirect("more than 10"))
    }

    /// A kept connection, or a new one once the old socket is closed.
    async fn connection(
        &mut self,
        dialer: &Dialer,
        target: &Target,
        connections: &mut u32,
    ) -> Result<Box<Connection>, Failure> {
        if matches!(self.held, Held::Connection(_))
            && let Held::Connection(connection) = std::mem::take(&mut self.held)
        {
            return Ok(connection);
        }
        self.close();
        *connections += 1;
        let opened = Connection::open(target, dialer.sources.next(), &dialer.tls)
            .await
            .inspect_err(|failure| dialer.shut_out.count(failure))?;
        self.open = Some(OpenSocket::count(&dialer.open));
        Ok(Box::new(opened))
    }

    fn keep(&mut self, dialer: &Dialer, connection: Box<Connection>, response: &Response) {
        self.held = if response.says_close() {
            connection.close();
            Held::Nothing
        } else if dialer.reuse {
            Held::Connection(connection)
        } else {
            connection.into_socket().map_or(Held::Nothing, Held::Socket)
        };
    }
}

/// The same POST with the same body toward `location`.
fn redirected(
    target: &Target,
    request: &Request,
    location: &str,
) -> Result<(Target, Request), Failure> {
    let mut request = request.clone();
    if location.starts_with('/') {
        request.target = location.to_owned();
        return Ok((target.clone(), request));
    }
    let mut to = Target::parse(location).map_err(|_| Failure::Redirect("bad Location"))?;
    request.target = if to.prefix.is_empty() {
        "/".to_owned()
    } else {
        std::mem::take(&mut to.prefix)
    };
    to.host.clone_from(&target.host);
    Ok((to, request))
}
