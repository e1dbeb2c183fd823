//! Takes connections off the listening sockets. Never waits for a peer, only for room and for descriptors.
//!
//! Owner of state: [`Door`] counts the open connections; each of them owns a [`Permit`].

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use fleet_protocol::limits::Allowed;
use fleet_protocol::stats::WorkerStats;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::SockFlag;
use socket2::Socket;
use tokio::sync::Notify;

use crate::admission::{self, Room};
use crate::listening::Listening;
use crate::session::Session;
use crate::turns::{Pass, TURNS_PER_LAP, Ticket};
use crate::{Worker, inherit};

/// Connections taken before those that are open get their turn.
const BURST: usize = TURNS_PER_LAP;
/// Time for connections to close when the process has no descriptors left.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(50);

/// Whether others may come in: open connections, and those whose handshake is in progress.
pub(crate) struct Door {
    connections: Cell<Room>,
    handshakes: Cell<Room>,
    changed: Notify,
}

impl Door {
    pub(crate) fn new(allowed: &Allowed) -> Self {
        Self {
            connections: Cell::new(Room::new(allowed.connections_per_worker)),
            handshakes: Cell::new(Room::new(allowed.handshakes_per_worker)),
            changed: Notify::new(),
        }
    }

    /// Who is inside stays.
    pub(crate) fn resize(&self, allowed: &Allowed) {
        let connections = in_room(&self.connections, |room| {
            room.resize(allowed.connections_per_worker)
        });
        let handshakes = in_room(&self.handshakes, |room| {
            room.resize(allowed.handshakes_per_worker)
        });
        if connections || handshakes {
            self.changed.notify_waiters();
        }
    }

    pub(crate) fn open(&self) -> u32 {
        self.connections.get().taken()
    }

    /// Whether connections must wait for others to end.
    pub(crate) fn is_shut(&self) -> bool {
        self.connections.get().is_shut()
    }

    /// Whether some may stay open without a need: a tenth is left for those that come.
    pub(crate) fn has_spare(&self) -> bool {
        self.connections.get().has_spare()
    }

    /// Whether nobody is accepted now.
    fn is_barred(&self) -> bool {
        self.is_shut() || self.handshakes.get().is_shut()
    }

    fn leave(&self, cap: &Cell<Room>) {
        let opens = in_room(cap, Room::leave);
        if opens || self.open() == 0 {
            self.changed.notify_waiters();
        }
    }

    async fn room(&self) {
        while self.is_barred() {
            self.changed.notified().await;
        }
    }

    /// Returns when no connection is open.
    pub(crate) async fn empty(&self) {
        while self.open() > 0 {
            self.changed.notified().await;
        }
    }

    /// Fills in what is counted here.
    pub(crate) fn report(&self, stats: &mut WorkerStats) {
        let (connections, handshakes) = (self.connections.get(), self.handshakes.get());
        stats.open_connections = connections.taken();
        stats.open_connections_max = connections.most();
        stats.handshaking = handshakes.taken();
        stats.is_full = connections.is_shut();
        // In the order of `DoorCap`.
        stats.door_shut = [connections.shut_count(), handshakes.shut_count()];
    }
}

fn in_room<T>(cell: &Cell<Room>, deed: impl FnOnce(&mut Room) -> T) -> T {
    let mut room = cell.get();
    let done = deed(&mut room);
    cell.set(room);
    done
}

/// The right to be open, and first to make a handshake.
pub(crate) struct Permit {
    worker: Rc<Worker>,
    pub(crate) listening: Rc<Listening>,
    /// Of the handshake.
    ticket: Cell<Ticket>,
}

impl Permit {
    fn new(worker: &Rc<Worker>, listening: &Rc<Listening>) -> Self {
        if in_room(&worker.door.connections, Room::enter) {
            // A read that is held for nothing keeps nobody out.
            worker.state.holds.borrow().wake_all();
        }
        in_room(&worker.door.handshakes, Room::enter);
        listening.enter();
        Self {
            worker: Rc::clone(worker),
            listening: Rc::clone(listening),
            ticket: Cell::new(Ticket::NONE),
        }
    }

    /// Whether the connection may have its turn now; its task is woken later if not.
    pub(crate) fn may_turn(&self, waker: &Waker) -> bool {
        let mut ticket = self.ticket.get();
        if ticket == Ticket::OVER {
            return true;
        }
        let pass = self.worker.turns.borrow_mut().pass(&mut ticket, waker);
        self.ticket.set(ticket);
        if pass == (Pass::Wait { is_first: true }) {
            self.worker.lap.notify_one();
        }
        pass == Pass::Now
    }

    /// The handshake is over, however it ended.
    pub(crate) fn end_handshake(&self) {
        if self.ticket.replace(Ticket::OVER) != Ticket::OVER {
            self.worker.door.leave(&self.worker.door.handshakes);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.listening.leave();
        self.end_handshake();
        self.worker.door.leave(&self.worker.door.connections);
    }
}

/// Calls the laps of handshakes that wait for their turn, one each time that everybody else was served.
pub(crate) async fn call_laps(worker: Rc<Worker>) {
    loop {
        worker.lap.notified().await;
        loop {
            // Comes back behind all that is ready, and after the sockets were looked at.
            tokio::task::yield_now().await;
            if !worker.turns.borrow_mut().begin_lap() {
                break;
            }
        }
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
    let mut have_waited = true;
    loop {
        is_unwatched |= worker.door.is_barred();
        tokio::select! {
            biased;
            () = worker.drain.begun() => break,
            () = listening.withdrawn() => break,
            () = worker.door.room() => {}
        }
        if std::mem::take(&mut is_unwatched) && has_waiting(listener.get_ref()) {
            listening.disturb(Instant::now());
            have_waited = true;
        }
        if worker.turns.borrow().has_waiting() {
            tokio::task::yield_now().await;
            continue;
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
        let burst = accept_burst(&worker, &listening, listener.get_ref(), have_waited);
        have_waited = !matches!(burst, Ok(Burst::Empty));
        match burst {
            Ok(Burst::Empty) => {
                listening.emptied();
                ready.clear_ready();
            }
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
    accept_rest(&worker, &listening, listener.get_ref()).await;
    End::AsTold
}

/// Takes what is queued already.
async fn accept_rest(worker: &Rc<Worker>, listening: &Rc<Listening>, listener: &Socket) {
    loop {
        if worker.turns.borrow().has_waiting() {
            tokio::task::yield_now().await;
            continue;
        }
        match accept_burst(worker, listening, listener, true) {
            Ok(Burst::More) if worker.door.is_barred() => tokio::select! {
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
}

/// Whether somebody is in the queue; if that cannot be told, there may be.
fn has_waiting(listener: &Socket) -> bool {
    let mut polled = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO) != Ok(0)
}

/// `have_waited`: whoever comes first was not waited for, so the kernel is asked how long each has been there. For the lone
/// request that call would cost more than it could tell.
fn accept_burst(
    worker: &Rc<Worker>,
    listening: &Rc<Listening>,
    listener: &Socket,
    have_waited: bool,
) -> io::Result<Burst> {
    let flags = (SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC).bits();
    worker.turns.borrow_mut().begin_lap_if_clear();
    for _ in 0..BURST {
        if worker.door.is_barred() {
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
        if !is_admitted(worker, listening, &socket, peer, have_waited) {
            // Its ClientHello is there and not read, so that closing it is one reset: no state is left behind on either
            // side, and the agent knows at once.
            listening.refuse();
            continue;
        }
        let permit = Permit::new(worker, listening);
        let session = Session::new(worker, socket.into(), peer, permit);
        tokio::task::spawn_local(session.serve());
    }
    Ok(Burst::More)
}

/// What can be decided before TLS. Who comes through a balancer's PROXY header is judged once that is read.
fn is_admitted(
    worker: &Worker,
    listening: &Listening,
    socket: &Socket,
    peer: SocketAddr,
    have_waited: bool,
) -> bool {
    if have_waited && let Some(waited) = inherit::waited(socket, worker.tls.borrow().is_some()) {
        let mut gate = worker.state.gate.borrow_mut();
        let age_max = listening.longest_wait(waited.age, gate.allowed());
        if let Some(shed) = admission::judge_wait(waited, age_max) {
            gate.count(shed);
            return false;
        }
    }
    let peer = peer.ip().to_canonical();
    listening.balancers.is_some() || worker.policy.admits_connection(peer, Instant::now())
}
