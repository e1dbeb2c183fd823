use std::collections::BTreeSet;

use fleet_protocol::address::{AddressState, AddressView};
use fleet_protocol::config::Config;
use fleet_protocol::ids::SlotIndex;
use fleet_protocol::slot::{CertificateView, SettingView, SlotState, SlotView};
use fleet_protocol::stats::{DoorCap, Shed, TlsFailure, TlsSession, WorkerStats};
use tempfile::TempDir;

use super::*;

async fn sources(state: &TempDir, gateway: Gateway) -> Sources {
    let config = Config::default();
    let store = Arc::new(Store::open(&config, state.path()).await.unwrap());
    let bus = Arc::new(Bus::open(&config).unwrap());
    let spool = Arc::new(crate::spool::Spool::open(state.path()));
    let agents = Agents::load(Arc::clone(&store), Arc::clone(&bus), spool, &config);
    let agents = agents.await.unwrap();
    let journal = Journal::open(&config.filesystem, state.path()).unwrap();
    let carves = Arc::new(Carves::new(
        Arc::clone(&store),
        &config.carver,
        state.path(),
    ));
    let dispatch = Arc::new(Dispatch::new(
        Arc::clone(&agents),
        Arc::clone(&journal),
        Arc::clone(&carves),
    ));
    Sources {
        gateway: watch::channel(gateway).1,
        store,
        bus,
        agents,
        journal,
        carves,
        dispatch,
        links: Arc::default(),
    }
}

fn gateway() -> Gateway {
    let mut stats = WorkerStats {
        open_connections: 12,
        held_reads: 9,
        hold_ends: [5, 4, 3, 2, 1, 6],
        rss_bytes: 3 << 20,
        ..WorkerStats::default()
    };
    stats.exchanges[2][0] = 1234;
    stats.exchange_us[2].observe_us(60);
    stats.exchange_us[2].observe_us(60);
    stats.exchange_us[2].observe_us(20_000_000);
    stats.batches[4]
        .requests
        .observe(3, &fleet_protocol::stats::BUCKET_BOUNDS_COUNT);
    stats.tls_failures[TlsFailure::AuthorityUnknown as usize] = 5;
    stats.tls_sessions[TlsSession::Resumed13 as usize] = 6;
    stats.shed[Shed::AddressRate as usize] = 21;
    stats.door_shut[DoorCap::Handshakes as usize] = 22;
    Gateway {
        slots: vec![SlotView {
            slot: SlotIndex(7),
            state: SlotState::Ready,
            pid: Some(1),
            uptime_s: 60,
            restarts: 2,
            exchanges_per_s: 1.5,
            stats,
            last_end: String::new(),
            hangs: 4,
            parked_for: String::new(),
            retry_in_s: None,
            is_leaving: false,
        }],
        control_restarts: 1,
        addresses: vec![AddressView {
            address: "[2001:db8::1]:8080".parse().unwrap(),
            state: AddressState::Degraded,
            reason: "gone".into(),
            is_claimed: false,
            is_proxied: false,
            open: 5,
            accepted: 77,
            accepts_per_s: 0.5,
            refused: 3,
            share: 1.0,
            foreign_listeners: 2,
        }],
        settings: [("a.b", Some(true)), ("c.d", Some(false)), ("e.f", None)]
            .map(|(key, holds)| SettingView {
                key: key.into(),
                now: "1".into(),
                wanted: "2".into(),
                holds,
            })
            .to_vec(),
        certificates: vec![CertificateView {
            file: "/etc/gateway.pem".into(),
            option: "server.cert".into(),
            not_after_s: 1_800_000_000,
        }],
        ..Gateway::default()
    }
}

#[tokio::test]
async fn slots_show_with_units_and_cumulative_buckets() {
    let state = TempDir::new().unwrap();
    let text = render(&sources(&state, gateway()).await);
    for line in [
        "fleet_gateway_control_restarts_total 1",
        r#"fleet_gateway_slot_restarts_total{slot="7"} 2"#,
        r#"fleet_gateway_slot_hangs_total{slot="7"} 4"#,
        "fleet_gateway_control_hangs_total 0",
        r#"fleet_gateway_address_foreign_listeners{address="[2001:db8::1]:8080"} 2"#,
        r#"fleet_gateway_slot_state{slot="7",state="ready"} 1"#,
        r#"fleet_gateway_kernel_setting_holds{key="a.b"} 1"#,
        r#"fleet_gateway_kernel_setting_holds{key="c.d"} 0"#,
        r#"fleet_gateway_slot_state{slot="7",state="parked"} 0"#,
        r#"fleet_worker_open_connections{slot="7"} 12"#,
        r#"fleet_worker_held_reads{slot="7"} 9"#,
        r#"fleet_worker_hold_ends_total{slot="7",reason="work"} 4"#,
        r#"fleet_worker_resident_memory_bytes{slot="7"} 3145728"#,
        r#"fleet_worker_exchanges_total{slot="7",route="read",outcome="alone"} 1234"#,
        r#"fleet_worker_exchange_duration_seconds_count{slot="7",route="read"} 3"#,
        r#"fleet_worker_exchange_duration_seconds_sum{slot="7",route="read"} 20.00012"#,
        r#"fleet_worker_exchange_duration_seconds_bucket{le="0.0001",slot="7",route="read"} 2"#,
        r#"fleet_worker_exchange_duration_seconds_bucket{le="16.0",slot="7",route="read"} 2"#,
        r#"fleet_worker_exchange_duration_seconds_bucket{le="+Inf",slot="7",route="read"} 3"#,
        r#"fleet_worker_batch_requests_bucket{le="4.0",slot="7",kind="log"} 1"#,
        r#"fleet_gateway_tls_failures_total{slot="7",kind="authority_unknown_to_client"} 5"#,
        r#"fleet_gateway_tls_failures_total{slot="7",kind="malformed"} 0"#,
        r#"fleet_gateway_tls_handshakes_total{slot="7",version="1.3",kind="resumed"} 6"#,
        r#"fleet_worker_refused_total{slot="7",reason="address_rate"} 21"#,
        r#"fleet_worker_door_shut_total{slot="7",cap="handshakes"} 22"#,
        r#"fleet_control_journal_healthy{log_type="result"} 1"#,
        r#"fleet_control_hosts{status="online"} 0"#,
        r#"fleet_gateway_address_open_connections{address="[2001:db8::1]:8080"} 5"#,
        r#"fleet_gateway_address_accepted_total{address="[2001:db8::1]:8080"} 77"#,
        r#"fleet_gateway_address_refused_total{address="[2001:db8::1]:8080"} 3"#,
        r#"fleet_gateway_address_state{address="[2001:db8::1]:8080",state="degraded"} 1"#,
        r#"fleet_gateway_address_state{address="[2001:db8::1]:8080",state="serving"} 0"#,
        r#"fleet_gateway_certificate_not_after_seconds{file="/etc/gateway.pem",option="server.cert"} 1800000000"#,
        "fleet_gateway_draining 0",
        "fleet_control_enrolled_hosts 0",
    ] {
        assert!(
            text.lines().any(|have| have == line),
            "{line} is not in\n{text}"
        );
    }
    assert!(!text.contains("e.f"), "it could not be judged:\n{text}");
    assert!(text.ends_with("# EOF\n"));
}

/// A format check of our own: every sample belongs to the family above it, no family or series comes twice.
#[tokio::test]
async fn the_text_is_well_formed() {
    let state = TempDir::new().unwrap();
    let text = render(&sources(&state, gateway()).await);
    let (mut families, mut series) = (BTreeSet::new(), BTreeSet::new());
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().unwrap().to_owned();
            assert!(families.insert(family.clone()), "{family} comes twice");
            assert!(family.starts_with("fleet"), "{family}");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with(&family), "{name} below {family}");
            assert!(value.parse::<f64>().unwrap() >= 0.0, "{line}");
            assert!(series.insert(name.to_owned()), "{name} comes twice");
        }
    }
    assert!(families.len() > 60, "{}", families.len());
}
