//! What is the same for all connections of a worker.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fleet_protocol::config::Server;
use fleet_protocol::limits::{self, Allowed};
use fleet_protocol::trusted_proxies::TrustedProxies;

use crate::admission::Gate;

/// See the module.
pub(crate) struct Policy {
    /// In front of every path.
    pub(crate) path_prefix: String,
    /// Whether clients that ask for it may send another request; off while draining.
    pub(crate) may_reuse: Cell<bool>,
    /// How long a connection waits for another request.
    pub(crate) keep_alive_idle: Duration,
    /// Whose HTTP headers are believed about a client's address.
    pub(crate) trusted_proxies: TrustedProxies,
    /// From accept to the end of the handshake.
    pub(crate) handshake_deadline: Cell<Duration>,
    /// From there to the end of the head.
    pub(crate) head_deadline: Cell<Duration>,
    gate: Rc<RefCell<Gate>>,
}

impl Policy {
    pub(crate) fn of(server: &Server, gate: &Rc<RefCell<Gate>>) -> anyhow::Result<Self> {
        Ok(Self {
            path_prefix: server.path_prefix(),
            may_reuse: Cell::new(server.keepalive),
            keep_alive_idle: server.keepalive_idle,
            trusted_proxies: server
                .trusted_proxies
                .parse()
                .context("server.trusted_proxies")?,
            handshake_deadline: Cell::new(limits::HANDSHAKE_DEADLINE),
            head_deadline: Cell::new(limits::HEAD_DEADLINE),
            gate: Rc::clone(gate),
        })
    }

    /// For phases that begin from now on.
    pub(crate) fn set_deadlines(&self, allowed: &Allowed) {
        self.handshake_deadline.set(allowed.handshake_deadline);
        self.head_deadline.set(allowed.head_deadline);
    }

    /// Whether one more connection of this client is let in. Who may speak for others is judged by each request.
    pub(crate) fn admits_connection(&self, client: IpAddr, now: Instant) -> bool {
        self.trusted_proxies.believes(client) || self.admits_request(client, now)
    }

    /// Whether one more request is let in of a client that a proxy speaks for.
    pub(crate) fn admits_request(&self, client: IpAddr, now: Instant) -> bool {
        self.gate.borrow_mut().admit_address(client, now)
    }
}
