//! `/metrics`: everything that the supervisor told us of the slots, and our own counters, as OpenMetrics text.
//!
//! Names begin with the process that counts: `fleet_gateway_` (supervisor), `fleet_worker_`, `fleet_control_`. Labels
//! come from enums, slot numbers and statement names only, so that no request can make a new series. Counters of a
//! worker begin at zero with each of its lives, hence the slot label on all of them.

mod addresses;
mod admission;
mod certificates;
mod control;
mod kernel;
mod live;
mod storage;
mod text;
mod workers;

use std::sync::Arc;

use fleet_protocol::slot::Gateway;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::agents::Agents;
use crate::bus::Bus;
use crate::carve::Carves;
use crate::dispatch::Dispatch;
use crate::journal::Journal;
use crate::server::LinkCounters;
use crate::store::Store;

/// Whose counters are shown.
#[derive(Clone)]
pub(crate) struct Sources {
    /// Last word of the supervisor.
    pub(crate) gateway: watch::Receiver<Gateway>,
    pub(crate) store: Arc<Store>,
    pub(crate) bus: Arc<Bus>,
    pub(crate) agents: Arc<Agents>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) carves: Arc<Carves>,
    pub(crate) dispatch: Arc<Dispatch>,
    pub(crate) links: Arc<LinkCounters>,
}

/// The whole text, ended by `# EOF`.
pub(crate) fn render(sources: &Sources) -> String {
    let mut registry = Registry::default();
    let gateway = sources.gateway.borrow().clone();
    registry.register_collector(Box::new(workers::Workers(gateway)));
    registry.register_collector(Box::new(control::Control::read(sources)));
    let mut text = String::new();
    if let Err(error) = encode(&mut text, &registry) {
        // Writing to a string does not fail; a label that cannot be encoded would be a bug.
        tracing::error!(%error, "metrics cannot be encoded");
    }
    text
}

#[cfg(test)]
mod tests;
