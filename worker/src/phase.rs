//! What a connection is doing, and what it asks of its session.

use std::rc::Rc;

use fleet_protocol::agent::Route;
use fleet_protocol::reject::Reject;

use crate::exchange::{Head, Response};
use crate::request::Request;
use crate::terms::Terms;

/// What the session has to do next.
pub(crate) enum Step<'a> {
    /// Wait for bytes, an answer or the deadline.
    Wait,
    /// A head on an agent path: [`Connection::admit`] or [`Connection::refuse`].
    Head(Head<'a>),
    /// A whole request: [`Connection::respond`], now or later.
    Request(Head<'a>, &'a mut [u8]),
    /// Answer with this refusal through [`Connection::refuse`].
    Refuse(Option<Route>, Reject),
    /// Not an agent's request: everything from its first byte on goes through a tunnel.
    Tunnel,
    /// Nothing more comes of it.
    Closed,
}

/// What a connection is doing.
pub(crate) enum Phase {
    /// A balancer's PROXY header is due.
    Preface {
        /// For what follows; `None` when TLS is ended elsewhere.
        tls: Option<Rc<Terms>>,
    },
    /// The ClientHello is due; TLS has no state yet.
    Hello {
        terms: Rc<Terms>,
    },
    Handshake,
    /// A reused connection between two requests.
    Idle,
    Head {
        scanned: usize,
    },
    /// The session decides by the head.
    Deciding(Request),
    Body(Request),
    /// A refused body is read to its end, so that the answer is heard.
    Discarding {
        request: Request,
        response: Response,
        discarded: u64,
    },
    Answering(Request),
    /// The rest of an answer waits for room in the socket.
    Writing {
        is_kept_alive: bool,
    },
    Tunnel,
    /// Everything is said; the peer closes first.
    Closing,
    Closed,
}
