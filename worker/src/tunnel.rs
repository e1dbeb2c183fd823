//! Everything that is no agent's request goes to control's socket: a PROXY v2 header with the client's address, then the
//! client's bytes from the first one on, copied both ways until a side closes. Upgrades and streams pass unseen.
//!
//! Owner of state: the task. A side that does not read stops the other: at most one buffer waits for either.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use fleet_protocol::limits::{CLOSE_DEADLINE, TUNNELS_PER_WORKER_MAX};
use fleet_protocol::proxy_header;
use fleet_protocol::reject::Reject;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::UnixStream;

use crate::Worker;
use crate::session::Session;

/// Bytes read from control at once.
const READ_BYTES_MAX: usize = 32 << 10;
/// While draining, a tunnel in which nothing moves for this long is idle and is closed.
const DRAIN_QUIET: Duration = Duration::from_secs(1);

/// A connection to control, and its place among those that are allowed.
struct Control {
    stream: UnixStream,
    worker: Rc<Worker>,
}

impl Drop for Control {
    fn drop(&mut self) {
        let mut stats = self.worker.state.stats.borrow_mut();
        stats.tunnels = stats.tunnels.saturating_sub(1);
    }
}

/// Connects to control, if another tunnel is allowed.
async fn open(worker: &Rc<Worker>) -> Result<Control, Reject> {
    if worker.state.stats.borrow().tunnels >= TUNNELS_PER_WORKER_MAX {
        return Err(Reject::Busy);
    }
    match UnixStream::connect(&worker.tunnel_path).await {
        Ok(stream) => {
            worker.state.stats.borrow_mut().tunnels += 1;
            let worker = Rc::clone(worker);
            Ok(Control { stream, worker })
        }
        Err(error) => {
            // The link says it aloud when control is gone; here every passer-by could fill the log.
            tracing::debug!(%error, path = %worker.tunnel_path.display(), "no tunnel");
            Err(Reject::ControlUnavailable)
        }
    }
}

/// Copies until both directions are over; gives the session back if there is no tunnel to be had.
pub(crate) async fn run(mut session: Box<Session>) -> Option<(Box<Session>, Reject)> {
    let control = match open(&session.worker).await {
        Ok(control) => control,
        Err(reject) => return Some((session, reject)),
    };
    let peer = session.connection.peer();
    let worker = Rc::clone(&session.worker);
    let local = session.stream.local_addr().unwrap_or(peer);
    if let Err(error) = session.stream.set_keepalive() {
        tracing::debug!(%peer, %error, "no keepalive");
    }
    let mut first = proxy_header::encode(peer, local);
    first.append(&mut session.connection.take_plain());
    let moved_at = Rc::new(Cell::new(Instant::now()));
    let mut copy = Copy {
        is_client_done: session.connection.is_peer_done(),
        session,
        control,
        to_control: Waiting::from(first),
        to_client: Waiting::default(),
        is_shut: false,
        is_control_done: false,
        moved_at: Rc::clone(&moved_at),
    };
    let result = tokio::select! {
        result = std::future::poll_fn(|context| copy.turn(context)) => result,
        () = quiet_drain(&worker, &moved_at) => return None,
    };
    match result {
        Ok(()) => copy.linger().await,
        Err(error) => tracing::debug!(%peer, %error, "tunnel breaks"),
    }
    None
}

/// Returns when the worker drains and nothing has moved for a while.
async fn quiet_drain(worker: &Worker, moved_at: &Cell<Instant>) {
    worker.drain.begun().await;
    while moved_at.get().elapsed() < DRAIN_QUIET {
        tokio::time::sleep(DRAIN_QUIET).await;
    }
}

/// Bytes that the other side has not taken yet.
#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    gone: usize,
}

impl From<Vec<u8>> for Waiting {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, gone: 0 }
    }
}

impl Waiting {
    fn rest(&self) -> Option<&[u8]> {
        self.bytes.get(self.gone..).filter(|rest| !rest.is_empty())
    }

    fn advance(&mut self, bytes: usize) {
        self.gone += bytes;
        if self.gone >= self.bytes.len() {
            *self = Self::default();
        }
    }
}

struct Copy {
    session: Box<Session>,
    control: Control,
    to_control: Waiting,
    to_client: Waiting,
    /// The client sends nothing more.
    is_client_done: bool,
    /// Control has been told so, or does not listen.
    is_shut: bool,
    /// Control sends nothing more, and the client has been told so.
    is_control_done: bool,
    moved_at: Rc<Cell<Instant>>,
}

impl Copy {
    /// Moves what can be moved now.
    fn turn(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let worker = Rc::clone(&self.session.worker);
        loop {
            let mut has_moved = self.read_client(context, &worker)?;
            has_moved |= self.write_control(context);
            has_moved |= self.read_control(context, &worker)?;
            has_moved |= self.write_client(context)?;
            if self.is_control_done && self.to_client.rest().is_none() {
                return Poll::Ready(Ok(()));
            }
            if !has_moved {
                return Poll::Pending;
            }
            self.moved_at.set(Instant::now());
        }
    }

    fn read_client(&mut self, context: &mut Context<'_>, worker: &Worker) -> io::Result<bool> {
        if self.is_client_done || self.is_control_done || self.to_control.rest().is_some() {
            return Ok(false);
        }
        let mut input = worker.input.borrow_mut();
        let length = match self.session.stream.poll_read(context, &mut input) {
            Poll::Pending => return Ok(false),
            Poll::Ready(length) => length?,
        };
        if length == 0 {
            self.is_client_done = true;
            return Ok(true);
        }
        let connection = &mut self.session.connection;
        let scratch = &mut *worker.scratch.borrow_mut();
        scratch.out.clear();
        let bytes = input.get_mut(..length).unwrap_or_default();
        connection.receive(bytes, scratch, Instant::now());
        // What TLS has to say by itself, such as an answer to a key update.
        self.to_client.bytes.append(&mut scratch.out);
        if connection.deadline().is_some() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.to_control.bytes.append(&mut connection.take_plain());
        self.is_client_done = connection.is_peer_done();
        Ok(true)
    }

    /// A control that does not listen any more may still have something to say.
    fn write_control(&mut self, context: &mut Context<'_>) -> bool {
        let stream = Pin::new(&mut self.control.stream);
        if let Some(rest) = self.to_control.rest() {
            match stream.poll_write(context, rest) {
                Poll::Pending => return false,
                Poll::Ready(Ok(length)) if length > 0 => self.to_control.advance(length),
                Poll::Ready(_) => {
                    self.to_control = Waiting::default();
                    self.is_client_done = true;
                    self.is_shut = true;
                }
            }
            return true;
        }
        if !self.is_client_done || self.is_shut {
            return false;
        }
        self.is_shut = stream.poll_shutdown(context).is_ready();
        self.is_shut
    }

    fn read_control(&mut self, context: &mut Context<'_>, worker: &Worker) -> io::Result<bool> {
        if self.is_control_done || self.to_client.rest().is_some() {
            return Ok(false);
        }
        let mut input = worker.input.borrow_mut();
        let room = input.len().min(READ_BYTES_MAX);
        let mut buffer = ReadBuf::new(input.get_mut(..room).unwrap_or_default());
        match Pin::new(&mut self.control.stream).poll_read(context, &mut buffer) {
            Poll::Pending => return Ok(false),
            Poll::Ready(result) => result?,
        }
        let (connection, out) = (&mut self.session.connection, &mut self.to_client.bytes);
        if buffer.filled().is_empty() {
            self.is_control_done = true;
            connection.end(out, Instant::now());
        } else {
            connection
                .send(buffer.filled(), out)
                .map_err(io::Error::other)?;
        }
        Ok(true)
    }

    fn write_client(&mut self, context: &mut Context<'_>) -> io::Result<bool> {
        let Some(rest) = self.to_client.rest() else {
            return Ok(false);
        };
        match self.session.stream.poll_write(context, rest) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0)) => Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(length) => {
                self.to_client.advance(length?);
                Ok(true)
            }
        }
    }

    /// Lets the client close first, so that it and not we remember the connection.
    async fn linger(mut self) {
        let worker = Rc::clone(&self.session.worker);
        let end = std::future::poll_fn(|context| {
            let mut input = worker.input.borrow_mut();
            loop {
                match std::task::ready!(self.session.stream.poll_read(context, &mut input)) {
                    Ok(0) | Err(_) => return Poll::Ready(()),
                    Ok(_) => {}
                }
            }
        });
        let _ = tokio::time::timeout(CLOSE_DEADLINE, end).await;
    }
}
