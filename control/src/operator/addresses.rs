//! `GET …/gateway/addresses`: where agents may connect now, for scripts that keep a balancer or a DNS zone.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use fleet_protocol::address::AddressView;
use fleet_protocol::slot::Gateway;
use fleet_protocol::weight::Standing;
use serde_json::{Value, json};

use super::Office;

/// The handler. Before the supervisor's first word, which comes within a second of the start, the list is empty.
pub(super) async fn list(State(office): State<Arc<Office>>) -> Json<Value> {
    let connections_per_worker_max = office.deps.config.server.connections_per_worker_max;
    Json(render(
        &office.deps.gateway.borrow(),
        connections_per_worker_max,
    ))
}

fn render(gateway: &Gateway, connections_per_worker_max: u32) -> Value {
    let addresses: Vec<Value> = gateway.addresses.iter().map(address).collect();
    json!({
        "addresses": addresses,
        "draining": gateway.is_draining,
        "weight": Standing::of(gateway, connections_per_worker_max).percent(),
    })
}

fn address(view: &AddressView) -> Value {
    json!({
        "address": view.address.to_string(),
        "state": view.state.label(),
        "reason": view.reason,
        "claimed": view.is_claimed,
        "proxy_protocol": view.is_proxied,
        "open": view.open,
        "accepted": view.accepted,
        "accepts_per_s": rounded(view.accepts_per_s),
        "refused": view.refused,
        "share": rounded(view.share),
    })
}

/// Three digits behind the point say all that there is to say.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
