//! Where agents may connect.

use fleet_protocol::address::{AddressState, AddressView};
use fleet_protocol::ids::SlotIndex;
use fleet_protocol::slot::{Gateway, SlotState, SlotView};
use fleet_protocol::stats::WorkerStats;

use super::*;

fn slot(state: SlotState) -> SlotView {
    SlotView {
        slot: SlotIndex(0),
        state,
        pid: None,
        uptime_s: 0,
        restarts: 0,
        exchanges_per_s: 0.0,
        stats: WorkerStats::default(),
        last_end: String::new(),
        hangs: 0,
        parked_for: String::new(),
        retry_in_s: None,
        is_leaving: false,
    }
}

#[tokio::test]
async fn addresses_are_listed_as_the_supervisor_sees_them() {
    let mut bench = Bench::new().await;
    let path = "/gateway/addresses";
    let body = bench.get(path).await;
    assert_eq!(
        body,
        serde_json::json!({"addresses": [], "draining": false, "weight": 0})
    );
    let view = AddressView {
        address: ([192, 0, 2, 1], 8080).into(),
        state: AddressState::Serving,
        reason: String::new(),
        is_claimed: true,
        is_proxied: false,
        open: 12,
        accepted: 3456,
        accepts_per_s: 7.123_456,
        refused: 2,
        share: 1.0 / 3.0,
        foreign_listeners: 0,
    };
    let lost = AddressView {
        address: "[2001:db8::1]:8080".parse().unwrap(),
        state: AddressState::Degraded,
        reason: "not an address of this machine".into(),
        ..view.clone()
    };
    let gateway = Gateway {
        slots: [SlotState::Ready, SlotState::Ready, SlotState::Parked]
            .map(slot)
            .to_vec(),
        addresses: vec![view, lost],
        ..Gateway::default()
    };
    let office = Arc::get_mut(&mut bench.office).unwrap();
    office.deps.gateway = watch::channel(gateway).1;
    let body = bench.get(path).await;
    assert_eq!(
        body["addresses"][0],
        serde_json::json!({
            "address": "192.0.2.1:8080", "state": "serving", "reason": "", "claimed": true, "proxy_protocol": false,
            "open": 12, "accepted": 3456, "accepts_per_s": 7.123, "refused": 2, "share": 0.333
        })
    );
    assert_eq!(body["addresses"][1]["address"], "[2001:db8::1]:8080");
    assert_eq!(body["addresses"][1]["state"], "degraded");
    assert_eq!(body["weight"], 66);
    let (status, _) = bench
        .local(Method::GET, "/api/v1/fleet/gateway/addresses", Value::Null)
        .await;
    assert_eq!(status, StatusCode::OK);
    let (status, _) = bench
        .remote(Method::GET, "/api/latest/fleet/gateway/addresses")
        .await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}
