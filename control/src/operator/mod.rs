//! What operators and monitoring speak to: two Unix sockets with HTTP/1.1, one for remote clients (through a worker's
//! tunnel), who must be signed in, one for local operators, trusted by their uid.
//!
//! Owns the turn of whoever applies documents and, in memory, who is signed in; accounts and sessions are the store's. Invariants: both sockets serve the same table of routes
//! (`routes.rs`), and a guard stands before each route, which asks for the role that the table says; every refusal is a
//! JSON object with an `error` member; nothing is changed unless all of a request is right.

mod access;
mod activities;
mod actor;
mod addresses;
mod agent_options;
mod apply;
mod audit;
mod campaigns;
mod carves;
mod check;
mod conversation;
mod debug;
pub(crate) mod draft;
mod events;
mod fault;
mod guard;
mod health;
mod host_filter;
mod host_names;
mod hosts;
mod labels;
mod listen;
mod live_query;
mod live_request;
mod live_room;
mod login;
mod login_limit;
mod members;
mod openapi;
mod pack;
mod packs;
mod pages;
mod passwords;
mod payload;
mod plan;
mod queries;
mod results_message;
mod results_socket;
mod roles;
mod routes;
mod session_cache;
mod sessions;
mod settings;
mod spec;
mod specs;
mod targets;
mod telling;
mod users;
mod version;
mod viewing;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use fleet_protocol::config::Config;
use fleet_protocol::limits::VIEWERS_MAX;
use fleet_protocol::slot::Gateway;
use fleet_protocol::trusted_proxies::TrustedProxies;
use tokio::net::UnixListener;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};

use crate::agents::Agents;
use crate::bus::Bus;
use crate::carve::Carves;
use crate::journal::Journal;
use crate::store::Store;

use audit::Audit;
use fault::Fault;
use guard::Guard;
use host_names::HostNames;
use listen::{Door, Side};
use login_limit::LoginLimit;
use passwords::Hasher;

/// Largest request body, bytes.
pub(crate) const BODY_BYTES_MAX: usize = 16 << 20;

/// Blocks of carves that are read for operators at a time; each may have some megabytes.
const BLOCKS_MAX: usize = 4;

/// Requests that change something, at a time.
const DEEDS_MAX: u32 = 1024;
/// Those of them whose clients are gone get this long when control drains.
const DEEDS_DEADLINE: Duration = Duration::from_secs(5);

/// What this side needs of the rest of control.
pub(crate) struct Deps {
    pub(crate) config: Arc<Config>,
    pub(crate) store: Arc<Store>,
    pub(crate) bus: Arc<Bus>,
    pub(crate) agents: Arc<Agents>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) carves: Arc<Carves>,
    /// Last word of the supervisor.
    pub(crate) gateway: watch::Receiver<Gateway>,
    /// Text of `/metrics`, made anew each time.
    pub(crate) metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// WebSockets that have not said yet who they are.
const STRANGERS_MAX: usize = 512;

/// What handlers share.
struct Office {
    deps: Deps,
    /// One plan is made and carried out at a time, so that it fits what it was made for.
    turn: Mutex<()>,
    /// Blocks of carves that are in memory at a time.
    blocks: Semaphore,
    guard: Guard,
    audit: Audit,
    hasher: Hasher,
    logins: std::sync::Mutex<LoginLimit>,
    names: HostNames,
    /// One for each viewer of a live query.
    viewers: Arc<Semaphore>,
    /// One for each WebSocket that has not said yet who it is.
    strangers: Arc<Semaphore>,
    /// Bytes of rows that live queries hold until they answer.
    live_room: Arc<Semaphore>,
    /// One for each request that changes something.
    deeds: Arc<Semaphore>,
    /// This process ends: streams end, and their viewers come again.
    drain: watch::Sender<bool>,
}

impl Office {
    fn new(deps: Deps) -> Self {
        Self {
            guard: Guard::new(Arc::clone(&deps.store), &deps.config.session),
            audit: Audit::new(Arc::clone(&deps.store)),
            names: HostNames::new(Arc::clone(&deps.store)),
            deps,
            turn: Mutex::new(()),
            blocks: Semaphore::new(BLOCKS_MAX),
            hasher: Hasher::new(),
            logins: std::sync::Mutex::default(),
            viewers: Arc::new(Semaphore::new(VIEWERS_MAX)),
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            live_room: live_room::shared(),
            deeds: Arc::new(Semaphore::new(usize::try_from(DEEDS_MAX).unwrap_or(1))),
            drain: watch::Sender::new(false),
        }
    }

    /// A place among the viewers of live queries.
    fn viewer_permit(&self) -> Result<OwnedSemaphorePermit, Fault> {
        let permit = Arc::clone(&self.viewers).try_acquire_owned();
        permit.map_err(|_| Fault::unavailable("too many viewers of live queries; come again"))
    }

    /// A place among those that are heard for a moment, so that they take none of a viewer.
    fn stranger_permit(&self) -> Result<OwnedSemaphorePermit, Fault> {
        let permit = Arc::clone(&self.strangers).try_acquire_owned();
        permit.map_err(|_| Fault::unavailable("too many WebSockets begin at once; come again"))
    }

    /// Waits for the end of this process.
    async fn drained(&self) {
        let mut drain = self.drain.subscribe();
        // The sender is ours, so that this is no error.
        let _ = drain.wait_for(|is_draining| *is_draining).await;
    }

    /// Waits, for a moment, for changes that are under way.
    async fn settle(&self) {
        let all = self.deeds.acquire_many(DEEDS_MAX);
        if tokio::time::timeout(DEEDS_DEADLINE, all).await.is_err() {
            tracing::warn!(
                "requests that change something were cut off by the end of this process"
            );
        }
    }

    /// Tells streams when this process ends.
    async fn follow(&self, mut drain: watch::Receiver<bool>) {
        // A sender that is gone says the same.
        let _ = drain.wait_for(|is_draining| *is_draining).await;
        self.drain.send_replace(true);
    }
}

/// Serves both sockets until `drain` turns true and open requests have had a moment to finish.
pub(crate) async fn serve(
    tunnel: UnixListener,
    operator: UnixListener,
    deps: Deps,
    drain: watch::Receiver<bool>,
) {
    let server = &deps.config.server;
    let path_prefix = server.path_prefix();
    // The supervisor has validated it; what it cannot read believes nobody.
    let trusted_proxies: TrustedProxies = server.trusted_proxies.parse().unwrap_or_default();
    let is_shared = !server.tls || trusted_proxies != TrustedProxies::Nobody;
    let office = Arc::new(Office::new(deps));
    let remote = Door {
        side: Side::Tunnel,
        router: routes::router(Arc::clone(&office), Side::Tunnel),
        path_prefix,
        trusted_proxies,
        is_shared,
    };
    let local = Door {
        side: Side::Operator,
        router: routes::router(Arc::clone(&office), Side::Operator),
        path_prefix: String::new(),
        trusted_proxies: TrustedProxies::Nobody,
        is_shared: false,
    };
    tokio::join!(
        remote.serve(tunnel, drain.clone()),
        local.serve(operator, drain.clone()),
        office.guard.keep(&office.audit, drain.clone()),
        office.follow(drain)
    );
    office.settle().await;
}
