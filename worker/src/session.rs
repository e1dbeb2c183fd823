//! One connection's task: moves bytes between the socket and [`Connection`], requests to the exchange, answers back.
//!
//! Owner of state: the task. The shared buffers are borrowed for one turn at a time and never over an await. Whatever is
//! open when a session is dropped is counted as broken.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use fleet_protocol::agent::Route;
use fleet_protocol::reject::Reject;
use fleet_protocol::stats::{HoldEnd, Outcome, ProxyHeader};

use crate::Worker;
use crate::accept::Permit;
use crate::buffers::Scratch;
use crate::clock::Alarm;
use crate::connection::Connection;
use crate::exchange::{self, Early, Head, Pending, Reply, Response};
use crate::holds::{Hold, Verdict};
use crate::phase::Step;
use crate::state::State;
use crate::stream::Stream;
use crate::tunnel;

/// See the module.
pub(crate) struct Session {
    pub(crate) worker: Rc<Worker>,
    pub(crate) stream: Stream,
    pub(crate) connection: Connection,
    /// What the socket did not take yet.
    unwritten: Vec<u8>,
    /// The answer that is waited for.
    pending: Option<Pending>,
    /// The read that is held. Boxed: most sessions hold none.
    hold: Option<Box<Hold>>,
    exchange: Option<OpenExchange>,
    alarm: Alarm,
    permit: Permit,
}

/// Why a session's turns are over.
enum End {
    Closed,
    Tunnel,
}

/// A request that is not answered yet.
struct OpenExchange {
    state: Rc<State>,
    route: Route,
    /// End of its head, then of the whole request, then of its hold.
    since: Instant,
    /// Counted when dropped.
    outcome: Outcome,
    /// What it becomes once the answer is written.
    answered: Outcome,
}

impl OpenExchange {
    fn new(state: &Rc<State>, route: Route, since: Instant) -> Self {
        Self {
            state: Rc::clone(state),
            route,
            since,
            outcome: Outcome::Broken,
            answered: Outcome::Broken,
        }
    }
}

impl Drop for OpenExchange {
    fn drop(&mut self) {
        let mut stats = self.state.stats.borrow_mut();
        let (route, outcome) = (self.route.index(), self.outcome as usize);
        if let Some(count) = stats
            .exchanges
            .get_mut(route)
            .and_then(|counts| counts.get_mut(outcome))
        {
            *count += 1;
        }
        // Nobody heard an answer whose latency there could be.
        if matches!(self.outcome, Outcome::Broken | Outcome::Abandoned) {
            return;
        }
        let elapsed = self.since.elapsed().as_micros();
        if let Some(histogram) = stats.exchange_us.get_mut(route) {
            histogram.observe_us(u64::try_from(elapsed).unwrap_or(u64::MAX));
        }
    }
}

/// What the head alone decides; no body is longer than it may be, whatever it decides. A client that a proxy at `peer` speaks
/// for is known only now.
fn early(worker: &Worker, head: &Head<'_>, peer: IpAddr, now: Instant) -> Early {
    if head.client != peer && !worker.policy.admits_request(head.client, now) {
        return Early::Refuse(Reject::TooManyRequests);
    }
    match exchange::begin(&worker.state, head, now) {
        Early::ReadBody { bytes_max } if head.content_length > bytes_max as u64 => {
            Early::Refuse(Reject::BodyTooLarge)
        }
        early => early,
    }
}

impl Session {
    pub(crate) fn new(
        worker: &Rc<Worker>,
        socket: std::net::TcpStream,
        peer: SocketAddr,
        permit: Permit,
    ) -> Box<Self> {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let policy = Rc::clone(&worker.policy);
        let (balancers, now) = (permit.listening.balancers.as_ref(), Instant::now());
        Box::new(Self {
            worker: Rc::clone(worker),
            stream: Stream::new(socket),
            connection: Connection::new(worker.terms().as_ref(), policy, peer, balancers, now),
            unwritten: Vec::new(),
            pending: None,
            hold: None,
            exchange: None,
            alarm: Alarm::new(&worker.clock),
            permit,
        })
    }

    /// Runs the connection to its end.
    ///
    /// Boxed, because a future holds what it is called with twice.
    pub(crate) async fn serve(mut self: Box<Self>) {
        loop {
            match std::future::poll_fn(|context| self.turn(context)).await {
                End::Closed => return,
                // A tunnel is rare and large: kept out of this future, it costs agents nothing.
                End::Tunnel => match Box::pin(tunnel::run(self)).await {
                    None => return,
                    Some((session, reject)) => {
                        self = session;
                        self.refuse_tunnel(reject);
                    }
                },
            }
        }
    }

    /// Everything that can be done now.
    fn turn(&mut self, context: &mut Context<'_>) -> Poll<End> {
        if !self.permit.may_turn(context.waker()) {
            return Poll::Pending;
        }
        let worker = Rc::clone(&self.worker);
        let mut scratch = worker.scratch.borrow_mut();
        let now = Instant::now();
        // A session that panicked may have left its bytes here.
        scratch.out.clear();
        let result = self.advance(context, &worker, &mut scratch, now);
        if let Some(outcome) = self.connection.take_proxy_header() {
            self.count_proxy_header(&worker, outcome);
        }
        self.connection.count_tls(&worker.state.stats);
        self.connection.settle(&mut scratch);
        scratch.trim();
        if !self.connection.is_before_request() {
            self.permit.end_handshake();
        }
        if result.is_pending()
            && let Some(deadline) = self.next_look(now)
        {
            self.alarm.set(deadline, context.waker());
        }
        result
    }

    fn count_proxy_header(&self, worker: &Worker, outcome: ProxyHeader) {
        let mut stats = worker.state.stats.borrow_mut();
        if let Some(count) = stats.proxy_headers.get_mut(outcome as usize) {
            *count += 1;
        }
        if outcome.is_refused() {
            let (peer, outcome) = (self.connection.peer(), outcome.label());
            tracing::debug!(%peer, outcome, "connection refused for its PROXY header");
            self.permit.listening.refuse();
        }
    }

    fn count_forwarded(&self) {
        if self.connection.is_forwarded() {
            self.worker.state.stats.borrow_mut().forwarded_requests += 1;
        }
    }

    fn advance(
        &mut self,
        context: &mut Context<'_>,
        worker: &Worker,
        scratch: &mut Scratch,
        now: Instant,
    ) -> Poll<End> {
        loop {
            match self.flush(context, scratch, now) {
                Poll::Ready(Ok(())) => {}
                // Peers vanish as they like; what was open is counted as broken.
                Poll::Ready(Err(_)) => return Poll::Ready(End::Closed),
                Poll::Pending if self.is_late(now) => return Poll::Ready(End::Closed),
                Poll::Pending => return Poll::Pending,
            }
            let peer = self.connection.peer().ip();
            match self.connection.step(scratch, now) {
                Step::Wait => {}
                Step::Closed => return Poll::Ready(End::Closed),
                Step::Tunnel => return Poll::Ready(End::Tunnel),
                Step::Head(head) => {
                    let route = head.route;
                    self.exchange = Some(OpenExchange::new(&worker.state, route, now));
                    let early = early(worker, &head, peer, now);
                    self.count_forwarded();
                    match early {
                        Early::ReadBody { bytes_max } => self.connection.admit(bytes_max, scratch),
                        Early::Refuse(reject) => self.refuse(Some(route), reject, scratch, now),
                    }
                    continue;
                }
                Step::Request(head, body) => {
                    if let Some(exchange) = &mut self.exchange {
                        exchange.since = now;
                    }
                    match exchange::answer(&worker.state, &head, body, now) {
                        Reply::Now(response) => self.respond(response, scratch, now),
                        Reply::Later(pending) => {
                            self.pending = Some(pending);
                            self.connection.hold();
                        }
                        Reply::Idle(read) => self.hold_or_answer(read, context, scratch, now),
                    }
                    continue;
                }
                Step::Refuse(route, reject) => {
                    self.pending = None;
                    self.end_hold(HoldEnd::Expired, now);
                    self.refuse(route, reject, scratch, now);
                    continue;
                }
            }
            if !scratch.out.is_empty() {
                continue;
            }
            if let Some(pending) = &mut self.pending
                && let Poll::Ready(response) = Pin::new(pending).poll(context)
            {
                self.pending = None;
                self.respond(response, scratch, now);
                continue;
            }
            if let Some(Verdict::Ends(end)) = self.judge_hold(now) {
                self.resume(end, scratch, now);
                continue;
            }
            if !self.connection.wants_input() {
                return Poll::Pending;
            }
            let mut input = worker.input.borrow_mut();
            match ready!(self.stream.poll_read(context, &mut input)) {
                Ok(0) | Err(_) => self.connection.receive_end(),
                Ok(length) => {
                    let bytes = input.get_mut(..length).unwrap_or_default();
                    self.connection.receive(bytes, scratch, now);
                }
            }
        }
    }

    fn respond(&mut self, response: Response, scratch: &mut Scratch, now: Instant) {
        self.note(&response);
        self.connection.respond(response, scratch, now);
    }

    fn refuse(
        &mut self,
        route: Option<Route>,
        reject: Reject,
        scratch: &mut Scratch,
        now: Instant,
    ) {
        let client = self.connection.client();
        tracing::debug!(%client, reject = reject.label(), "request refused");
        let response = exchange::refuse(&self.worker.state, route, reject);
        self.note(&response);
        self.connection.refuse(response, scratch, now);
    }

    /// A cut is what the exchange came to; every other outcome holds only once it is written.
    fn note(&mut self, response: &Response) {
        if response.outcome == Outcome::Refused {
            self.permit.listening.refuse();
        }
        if let Some(exchange) = &mut self.exchange {
            exchange.answered = response.outcome;
            if response.must_cut {
                exchange.outcome = response.outcome;
            }
        }
    }

    fn is_late(&self, now: Instant) -> bool {
        self.connection
            .deadline()
            .is_some_and(|deadline| now >= deadline)
    }

    fn refuse_tunnel(&mut self, reject: Reject) {
        let worker = Rc::clone(&self.worker);
        let mut scratch = worker.scratch.borrow_mut();
        scratch.out.clear();
        let now = Instant::now();
        self.refuse(None, reject, &mut scratch, now);
        self.unwritten.append(&mut scratch.out);
    }

    /// Brings everything that was said into the socket.
    fn flush(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut Scratch,
        now: Instant,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.unwritten.is_empty() {
                let mut earlier = std::mem::take(&mut self.unwritten);
                earlier.append(&mut scratch.out);
                scratch.out.append(&mut earlier);
            }
            let mut written = 0;
            while let Some(rest) = scratch.out.get(written..).filter(|rest| !rest.is_empty()) {
                match self.stream.poll_write(context, rest) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(length)) => written += length,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        self.unwritten = rest.to_vec();
                        scratch.out.clear();
                        return Poll::Pending;
                    }
                }
            }
            scratch.out.clear();
            if written > 0 && self.connection.awaits_finished_and_request() {
                self.stream.acknowledge_at_once();
            }
            if self.connection.flushed(now)
                && let Some(mut exchange) = self.exchange.take()
            {
                exchange.outcome = exchange.answered;
            }
            self.connection.produce(scratch, now);
            if scratch.out.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

#[path = "session_hold.rs"]
mod hold;
