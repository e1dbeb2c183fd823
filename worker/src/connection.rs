//! One connection as a pure state machine: bytes in, bytes out, requests out, answers in, a deadline. No socket, no clock.
//!
//! Owner of state: the session, which feeds it and does what [`Connection::step`] says. Invariants: an idle connection
//! holds no buffer; a request is handed out once and answered once, now or later; every phase but a tunnel has an
//! absolute deadline; after a refusal of its framing a connection takes no further request.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fleet_protocol::limits;
use fleet_protocol::networks::Networks;
use fleet_protocol::reject::Reject;
use fleet_protocol::stats::{Handshake, ProxyHeader, TlsFailure, TlsSession};

use crate::buffers::{self, Scratch};
use crate::client_certificate::{Certified, NamesNobody};
use crate::exchange::Response;
use crate::http::{self, Malformed};
use crate::phase::{Phase, Step};
use crate::policy::Policy;
use crate::request::{Request, Sender};
use crate::terms::Terms;
use crate::tls::{self, Layer};

/// Bytes of later requests that may wait while one is answered.
const PIPELINED_BYTES_MAX: usize = 64 << 10;

/// See the module.
pub(crate) struct Connection {
    layer: Layer,
    policy: Rc<Policy>,
    /// Whom the connection speaks for; behind a balancer that passes connections through, its client.
    peer: SocketAddr,
    /// Who sent the latest request; behind a balancer that speaks HTTP, its client.
    client: IpAddr,
    /// What the peer has shown, unless the latest request came through a proxy. Boxed, since agents that enroll have none.
    certificate: Option<Box<Result<Certified, NamesNobody>>>,
    phase: Phase,
    deadline: Instant,
    /// When the whole exchange must be over.
    exchange_end: Instant,
    /// Decrypted and not consumed.
    plain: Vec<u8>,
    /// Rest of an answer.
    unsent: Bytes,
    /// The last byte of an answer or alert is on its way, and [`Connection::flushed`] not yet called.
    is_flushing: bool,
    /// The peer has closed its side, in TLS.
    is_peer_done: bool,
    handshake: Option<Handshake>,
    tls_session: Option<TlsSession>,
    tls_failure: Option<TlsFailure>,
    proxy_header: Option<ProxyHeader>,
}

impl Connection {
    /// `tls` is `None` when TLS is ended elsewhere. `balancers`: it must begin with a PROXY header of one
    /// of them.
    pub(crate) fn new(
        tls: Option<&Rc<Terms>>,
        policy: Rc<Policy>,
        peer: SocketAddr,
        balancers: Option<&Networks>,
        now: Instant,
    ) -> Self {
        let mut connection = Self {
            layer: Layer::Plain,
            policy,
            peer,
            client: peer.ip(),
            certificate: None,
            phase: Phase::Closed,
            deadline: now + limits::PROXY_HEADER_DEADLINE,
            exchange_end: now + limits::EXCHANGE_DEADLINE,
            plain: Vec::new(),
            unsent: Bytes::new(),
            is_flushing: false,
            is_peer_done: false,
            handshake: None,
            tls_session: None,
            tls_failure: None,
            proxy_header: None,
        };
        match balancers {
            Some(balancers) => connection.expect_header(tls, balancers),
            None => connection.begin(tls, now),
        }
        connection
    }

    /// Whom it speaks for.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Who sent the latest request.
    pub(crate) fn client(&self) -> IpAddr {
        self.client
    }

    /// Whether that is what a proxy said of it.
    pub(crate) fn is_forwarded(&self) -> bool {
        self.client != self.peer.ip()
    }

    /// When [`Connection::step`] must be called again at the latest; `None` in a tunnel.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        (!matches!(self.phase, Phase::Tunnel)).then_some(self.deadline)
    }

    /// Whether the end of the handshake and the request will come in two segments with nothing of ours in between, as in
    /// TLS 1.3; in TLS 1.2 the server has the last word of the handshake.
    pub(crate) fn awaits_finished_and_request(&self) -> bool {
        matches!(self.phase, Phase::Handshake) && self.layer.is_tls13()
    }

    /// Whether the handshake still goes on.
    pub(crate) fn is_handshaking(&self) -> bool {
        matches!(self.phase, Phase::Hello { .. } | Phase::Handshake)
    }

    /// Whether the handshake, or what comes before it, still goes on.
    pub(crate) fn is_before_request(&self) -> bool {
        matches!(self.phase, Phase::Preface { .. }) || self.is_handshaking()
    }

    /// How the handshake ended, once.
    pub(crate) fn take_handshake(&mut self) -> Option<Handshake> {
        self.handshake.take()
    }

    /// Takes bytes from the peer, and decrypts them in place.
    pub(crate) fn receive(&mut self, bytes: &mut [u8], scratch: &mut Scratch, now: Instant) {
        if matches!(self.phase, Phase::Closing | Phase::Closed) {
            return;
        }
        let bytes = self.receive_preface(bytes, scratch, now);
        if bytes.is_empty() {
            return;
        }
        if matches!(self.phase, Phase::Hello { .. }) {
            self.receive_hello(bytes, scratch, now);
        } else {
            self.receive_records(bytes, scratch, now);
        }
    }

    fn receive_records(&mut self, bytes: &mut [u8], scratch: &mut Scratch, now: Instant) {
        let request_end = match &self.phase {
            Phase::Body(request) => request.end(),
            _ => None,
        };
        scratch.lend(&mut self.plain, bytes.len(), request_end);
        let opened = self.layer.open(bytes, &mut self.plain, &mut scratch.out);
        match opened {
            Ok(opened) => self.is_peer_done |= opened.is_end,
            Err(error) => {
                self.fail_tls(&error, now);
                return;
            }
        }
        if matches!(self.phase, Phase::Handshake) && !self.layer.is_handshaking() {
            self.handshake = Some(Handshake::Done);
            self.tls_session = self.layer.session();
            self.read_certificate();
            self.phase = Phase::Head { scanned: 0 };
            self.deadline = self.exchange_end.min(now + self.policy.head_deadline.get());
        }
    }

    /// The peer's end of stream, or a broken socket.
    pub(crate) fn receive_end(&mut self) {
        self.is_peer_done = true;
        match self.phase {
            Phase::Tunnel => {}
            Phase::Preface { .. } => self.end_preface(ProxyHeader::Abandoned),
            Phase::Hello { .. } | Phase::Handshake => {
                self.handshake = Some(Handshake::Abandoned);
                self.phase = Phase::Closed;
            }
            _ => self.phase = Phase::Closed,
        }
    }

    /// What to do next. Called again after everything that changes this connection, until it says [`Step::Wait`].
    pub(crate) fn step(&mut self, scratch: &mut Scratch, now: Instant) -> Step<'_> {
        if now >= self.deadline && !matches!(self.phase, Phase::Tunnel) {
            return self.expire(scratch, now);
        }
        if matches!(self.phase, Phase::Idle) {
            self.leave_idle(scratch, now);
        }
        match &mut self.phase {
            Phase::Head { .. } => self.step_head(scratch, now),
            Phase::Body(_) => self.step_body(scratch, now),
            Phase::Discarding { .. } => {
                self.step_discarding(scratch, now);
                self.wait()
            }
            Phase::Tunnel => Step::Tunnel,
            _ => self.wait(),
        }
    }

    fn wait(&self) -> Step<'static> {
        if matches!(self.phase, Phase::Closed) {
            return Step::Closed;
        }
        Step::Wait
    }

    /// Reads the body, of at most `bytes_max`.
    pub(crate) fn admit(&mut self, bytes_max: usize, scratch: &mut Scratch) {
        let Phase::Deciding(mut request) = std::mem::replace(&mut self.phase, Phase::Closed) else {
            return;
        };
        request.bytes_max = bytes_max;
        let has_body = self.plain.len() > request.head.head_bytes;
        if request.head.expects_continue && !has_body {
            let sealed = self.layer.seal(http::CONTINUE, &mut scratch.out);
            if sealed.is_err() {
                return;
            }
        }
        self.deadline = self.exchange_end;
        self.phase = Phase::Body(request);
    }

    /// Answers without having read the body, which is dropped first where the client would not listen before.
    pub(crate) fn refuse(&mut self, response: Response, scratch: &mut Scratch, now: Instant) {
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Deciding(request) | Phase::Body(request)
                if !request.head.expects_continue || self.plain.len() > request.head.head_bytes =>
            {
                if request.body_bytes() > limits::DISCARDED_BODY_BYTES_MAX || response.must_cut {
                    return;
                }
                self.deadline = self.exchange_end;
                self.phase = Phase::Discarding {
                    request,
                    response,
                    discarded: 0,
                };
                self.step_discarding(scratch, now);
            }
            Phase::Answering(request) => {
                self.phase = Phase::Answering(request);
                self.respond(response, scratch, now);
            }
            Phase::Closing | Phase::Closed => {}
            _ => self.write_answer(response, false, scratch, now),
        }
    }

    /// The answer to the request that was handed out comes later; its bytes are let go now.
    pub(crate) fn hold(&mut self) {
        if let Phase::Answering(request) = &mut self.phase {
            let end = request.release().unwrap_or(self.plain.len());
            buffers::consume(&mut self.plain, end);
        }
    }

    /// Answers the request that was handed out.
    pub(crate) fn respond(&mut self, response: Response, scratch: &mut Scratch, now: Instant) {
        let Phase::Answering(request) = std::mem::replace(&mut self.phase, Phase::Closed) else {
            return;
        };
        let end = request.end().unwrap_or(self.plain.len());
        buffers::consume(&mut self.plain, end);
        let is_kept_alive = request.head.wants_keep_alive
            && self.policy.may_reuse.get()
            && !self.is_peer_done
            && now < self.exchange_end;
        self.write_answer(response, is_kept_alive, scratch, now);
    }

    /// Whether more bytes may come in. A client that pipelines without end waits for its answers.
    pub(crate) fn wants_input(&self) -> bool {
        match self.phase {
            Phase::Answering(_) | Phase::Writing { .. } => self.plain.len() < PIPELINED_BYTES_MAX,
            Phase::Closed => false,
            _ => true,
        }
    }

    /// Gives borrowed buffers back at the end of a turn.
    pub(crate) fn settle(&mut self, scratch: &mut Scratch) {
        scratch.settle(&mut self.plain);
    }

    /// In a tunnel: the decrypted bytes that have arrived since the last call.
    pub(crate) fn take_plain(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.plain)
    }

    /// In a tunnel: encrypts bytes for the client.
    pub(crate) fn send(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), tls::Error> {
        self.layer.seal(bytes, out)
    }

    /// In a tunnel: says that nothing more follows.
    pub(crate) fn end(&mut self, out: &mut Vec<u8>, now: Instant) {
        let _ = self.layer.close(out);
        self.finish(now);
    }

    /// In a tunnel: the client has said that it sends nothing more.
    pub(crate) fn is_peer_done(&self) -> bool {
        self.is_peer_done
    }

    /// The phase is over its time.
    fn expire(&mut self, scratch: &mut Scratch, now: Instant) -> Step<'_> {
        match &self.phase {
            Phase::Answering(request) => {
                // The refusal is asked for once; what follows is bounded by the end of the exchange.
                let route = request.head.route;
                if self.deadline < self.exchange_end {
                    self.deadline = self.exchange_end;
                    return Step::Refuse(route, Reject::DeadlineExceeded);
                }
                self.phase = Phase::Closed;
            }
            Phase::Idle => self.close(scratch, now),
            Phase::Preface { .. } => self.end_preface(ProxyHeader::Late),
            Phase::Hello { .. } | Phase::Handshake => {
                self.handshake = Some(Handshake::Late);
                self.phase = Phase::Closed;
            }
            _ => self.phase = Phase::Closed,
        }
        self.wait()
    }

    fn leave_idle(&mut self, scratch: &mut Scratch, now: Instant) {
        if !self.plain.is_empty() {
            self.phase = Phase::Head { scanned: 0 };
            self.exchange_end = now + limits::EXCHANGE_DEADLINE;
            self.deadline = now + self.policy.head_deadline.get();
        } else if self.is_peer_done || !self.policy.may_reuse.get() {
            self.close(scratch, now);
        }
    }

    fn step_head(&mut self, scratch: &mut Scratch, now: Instant) -> Step<'_> {
        let Phase::Head { scanned } = &mut self.phase else {
            return self.wait();
        };
        // An empty line before a request is noise that old clients leave behind a body.
        while self.plain.starts_with(b"\r\n") {
            self.plain.drain(..2);
            *scanned = 0;
        }
        let mut head = match http::parse_head(&self.plain, &self.policy.path_prefix, scanned) {
            Ok(Some(head)) => head,
            Ok(None) => {
                if self.is_peer_done {
                    self.close(scratch, now);
                }
                return self.wait();
            }
            Err(Malformed) => return Step::Refuse(None, Reject::HeadMalformed),
        };
        let Some(route) = head.route else {
            self.phase = Phase::Tunnel;
            return Step::Tunnel;
        };
        self.read_forwarding(&mut head);
        let is_post = head.is_post;
        self.phase = Phase::Deciding(Request::new(head));
        match &self.phase {
            Phase::Deciding(request) if is_post => {
                let sender = Sender {
                    client: self.client,
                    certificate: self.certificate.as_deref(),
                };
                Step::Head(request.view(route, &self.plain, sender))
            }
            _ => Step::Refuse(Some(route), Reject::MethodNotAllowed),
        }
    }

    fn step_body(&mut self, scratch: &mut Scratch, now: Instant) -> Step<'_> {
        let Phase::Body(mut request) = std::mem::replace(&mut self.phase, Phase::Closed) else {
            return Step::Closed;
        };
        let is_whole = request.advance(&mut self.plain);
        let Some(route) = request.head.route else {
            return Step::Closed;
        };
        if is_whole.is_err() {
            // Where this request ends is unknown, so nothing behind it can be read.
            request.head.wants_keep_alive = false;
            self.phase = Phase::Answering(request);
            return Step::Refuse(Some(route), Reject::BodyMalformed);
        }
        let is_too_large = request.body_bytes() > request.bytes_max as u64;
        if is_too_large || is_whole == Ok(false) {
            self.phase = Phase::Body(request);
            if is_too_large {
                return Step::Refuse(Some(route), Reject::BodyTooLarge);
            }
            if self.is_peer_done {
                self.close(scratch, now);
            }
            return self.wait();
        }
        // A request that is whole late still gets its moment.
        self.deadline = self
            .exchange_end
            .checked_sub(limits::EXCHANGE_DEADLINE - limits::ANSWER_DEADLINE)
            .unwrap_or(self.exchange_end)
            .max(now + Duration::from_millis(1));
        self.phase = Phase::Answering(request);
        match &self.phase {
            Phase::Answering(request) => {
                let sender = Sender {
                    client: self.client,
                    certificate: self.certificate.as_deref(),
                };
                let (head, body) = request.parts(route, &mut self.plain, sender);
                Step::Request(head, body)
            }
            _ => Step::Closed,
        }
    }

    /// Drops what has arrived of a refused body, and answers at its end.
    fn step_discarding(&mut self, scratch: &mut Scratch, now: Instant) {
        let Phase::Discarding {
            mut request,
            response,
            mut discarded,
        } = std::mem::replace(&mut self.phase, Phase::Closed)
        else {
            return;
        };
        match request.advance(&mut self.plain) {
            Ok(true) => {
                self.phase = Phase::Answering(request);
                self.respond(response, scratch, now);
            }
            Ok(false) => {
                discarded += request.discard(&mut self.plain);
                if discarded > limits::DISCARDED_BODY_BYTES_MAX {
                    return;
                }
                self.phase = Phase::Discarding {
                    request,
                    response,
                    discarded,
                };
                if self.is_peer_done {
                    self.close(scratch, now);
                }
            }
            Err(Malformed) => {}
        }
    }
}

#[path = "connection_answer.rs"]
mod answer;
#[path = "connection_preface.rs"]
mod preface;
#[path = "connection_tls.rs"]
mod tls_begin;

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
