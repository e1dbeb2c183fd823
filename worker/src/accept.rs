//! Takes connections off the listening sockets. Never waits for a peer, only for room and for descriptors.
//!
//! Owner of state: [`Door`] counts the open connections; each of them owns a [`Permit`].

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::SockFlag;
use socket2::Socket;
use tokio::sync::Notify;

use crate::listening::Listening;
use crate::session::Session;
use crate::{Worker, inherit};

/// Connections taken before those that are open get their turn.
const BURST: usize = 64;
/// Time for connections to close when the process has no descriptors left.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(50);

/// How many connections are open, and how many may be.
pub(crate) struct Door {
    open: Cell<u32>,
    open_max: u32,
    /// Set at the maximum, cleared at nine tenths of it, so that a worker at its bound does not flicker.
    is_shut: Cell<bool>,
    changed: Notify,
}

impl Door {
    pub(crate) fn new(open_max: u32) -> Self {
        Self {
            open: Cell::new(0),
            open_max,
            is_shut: Cell::new(false),
            changed: Notify::new(),
        }
    }

    pub(crate) fn open(&self) -> u32 {
        self.open.get()
    }

    /// Whether connections must wait for others to end.
    pub(crate) fn is_shut(&self) -> bool {
        self.is_shut.get()
    }

    /// Whether some may stay open without a need: a tenth is left for those that come.
    pub(crate) fn has_spare(&self) -> bool {
        u64::from(self.open.get()) <= u64::from(self.open_max) * 9 / 10
    }

    /// True when that shuts the door.
    fn enter(&self) -> bool {
        self.open.set(self.open.get() + 1);
        self.open.get() >= self.open_max && !self.is_shut.replace(true)
    }

    fn leave(&self) {
        self.open.set(self.open.get().saturating_sub(1));
        if self.is_shut.get() && self.has_spare() {
            self.is_shut.set(false);
            self.changed.notify_waiters();
        }
        if self.open.get() == 0 {
            self.changed.notify_waiters();
        }
    }

    async fn room(&self) {
        while self.is_shut.get() {
            self.changed.notified().await;
        }
    }

    /// Returns when no connection is open.
    pub(crate) async fn empty(&self) {
        while self.open.get() > 0 {
            self.changed.notified().await;
        }
    }
}

/// The right to be open.
pub(crate) struct Permit {
    worker: Rc<Worker>,
    pub(crate) listening: Rc<Listening>,
}

impl Permit {
    fn new(worker: &Rc<Worker>, listening: &Rc<Listening>) -> Self {
        if worker.door.enter() {
            // A read that is held for nothing keeps nobody out.
            worker.state.holds.borrow().wake_all();
        }
        listening.enter();
        Self {
            worker: Rc::clone(worker),
            listening: Rc::clone(listening),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.listening.leave();
        self.worker.door.leave();
    }
}

/// What a burst of accepts ended with.
enum Burst {
    /// Nobody waits any more.
    Empty,
    /// There may be more.
    More,
    /// The process or the system has no descriptors, or no memory for them.
    Exhausted,
}

/// Why a listener is accepted from no more.
#[derive(Debug)]
pub(crate) enum End {
    /// The drain has begun, or the address was withdrawn.
    AsTold,
    /// The listener fails.
    Broken,
}

/// Accepts until the drain begins or the address is withdrawn, then what is queued already, and ends.
pub(crate) async fn run(worker: Rc<Worker>, listening: Rc<Listening>, listener: Socket) -> End {
    let listener = match inherit::watch(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "listener cannot be watched");
            return End::Broken;
        }
    };
    // The queue outlives workers, and fills while the door is shut or descriptors are lacking.
    let mut is_unwatched = true;
    loop {
        is_unwatched |= worker.door.is_shut();
        tokio::select! {
            biased;
            () = worker.drain.begun() => break,
            () = listening.withdrawn() => break,
            () = worker.door.room() => {}
        }
        if std::mem::take(&mut is_unwatched) && has_waiting(listener.get_ref()) {
            listening.disturb(Instant::now());
        }
        let mut ready = tokio::select! {
            biased;
            () = worker.drain.begun() => break,
            () = listening.withdrawn() => break,
            ready = listener.readable() => match ready {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, "listener fails");
                    return End::Broken;
                }
            },
        };
        match accept_burst(&worker, &listening, listener.get_ref()) {
            Ok(Burst::Empty) => ready.clear_ready(),
            Ok(Burst::More) => tokio::task::yield_now().await,
            Ok(Burst::Exhausted) => {
                tokio::time::sleep(DESCRIPTOR_PAUSE).await;
                is_unwatched = true;
            }
            Err(error) => {
                tracing::error!(%error, "listener fails");
                return End::Broken;
            }
        }
    }
    loop {
        match accept_burst(&worker, &listening, listener.get_ref()) {
            Ok(Burst::More) if worker.door.is_shut.get() => tokio::select! {
                biased;
                // The end of the process does not wait for room.
                () = worker.drain.begun() => break,
                () = worker.door.room() => {}
            },
            Ok(Burst::More) => tokio::task::yield_now().await,
            Ok(Burst::Exhausted) => tokio::time::sleep(DESCRIPTOR_PAUSE).await,
            Ok(Burst::Empty) | Err(_) => break,
        }
    }
    End::AsTold
}

/// Whether somebody is in the queue; if that cannot be told, there may be.
fn has_waiting(listener: &Socket) -> bool {
    let mut polled = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO) != Ok(0)
}

fn accept_burst(
    worker: &Rc<Worker>,
    listening: &Rc<Listening>,
    listener: &Socket,
) -> io::Result<Burst> {
    let flags = (SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC).bits();
    for _ in 0..BURST {
        if worker.door.is_shut.get() {
            return Ok(Burst::More);
        }
        let (socket, peer) = match listener.accept4(flags) {
            Ok(accepted) => accepted,
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAGAIN) => return Ok(Burst::Empty),
                Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                    worker.state.stats.borrow_mut().accept_errors += 1;
                    return Ok(Burst::Exhausted);
                }
                // The listener itself is no longer one.
                Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EOPNOTSUPP) => {
                    return Err(error);
                }
                // A connection that failed in the queue.
                _ => continue,
            },
        };
        let Some(peer) = peer.as_socket() else {
            continue;
        };
        worker.state.stats.borrow_mut().accepted += 1;
        let permit = Permit::new(worker, listening);
        let session = Session::new(worker, socket.into(), peer, permit);
        tokio::task::spawn_local(session.serve());
    }
    Ok(Burst::More)
}
