//! What is the same for all connections of a worker.

use std::cell::Cell;
use std::time::Duration;

use anyhow::Context as _;
use fleet_protocol::config::Server;
use fleet_protocol::trusted_proxies::TrustedProxies;

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
}

impl Policy {
    pub(crate) fn of(server: &Server) -> anyhow::Result<Self> {
        Ok(Self {
            path_prefix: server.path_prefix(),
            may_reuse: Cell::new(server.keepalive),
            keep_alive_idle: server.keepalive_idle,
            trusted_proxies: server
                .trusted_proxies
                .parse()
                .context("server.trusted_proxies")?,
        })
    }
}
