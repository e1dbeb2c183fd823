//! The table fits and says what matters.

use fleet_protocol::admin::ControlView;
use fleet_protocol::ids::SlotIndex;
use fleet_protocol::slot::Gateway;
use fleet_protocol::stats::{ControlStats, Dependency, WorkerStats};

use super::*;

fn slot(index: u16, state: SlotState) -> SlotView {
    let pid = matches!(state, SlotState::Ready | SlotState::Starting).then_some(4_000_123);
    SlotView {
        slot: SlotIndex(index),
        state,
        pid,
        uptime_s: 93_784,
        restarts: 12,
        exchanges_per_s: 12_345.6,
        stats: WorkerStats {
            open_connections: 15_000,
            hosts: 300_000,
            is_linked: true,
            rss_bytes: 900 << 20,
            ..WorkerStats::default()
        },
        last_end: String::new(),
        hangs: 0,
        parked_for: String::new(),
        retry_in_s: None,
        is_leaving: false,
    }
}

fn status() -> Status {
    let dependency = |name: &str, is_healthy, detail: &str| Dependency {
        name: name.into(),
        is_healthy,
        detail: detail.into(),
    };
    Status {
        version: "0.1.0".into(),
        pid: 4_000_001,
        uptime_s: 59,
        is_draining: false,
        addresses: vec!["https://0.0.0.0:8080".into(), "https://[::]:8080".into()],
        state_dir: "/var/lib/fleet-supervisor".into(),
        gateway: Gateway {
            slots: vec![
                slot(0, SlotState::Ready),
                SlotView {
                    parked_for: "it died again and again, last by SIGKILL".into(),
                    retry_in_s: Some(299),
                    ..slot(127, SlotState::Parked)
                },
            ],
            control_restarts: 1,
            ..Gateway::default()
        },
        control: ControlView {
            state: SlotState::Ready,
            pid: Some(4_000_002),
            uptime_s: 3_700,
            restarts: 1,
            stats: ControlStats {
                dependencies: vec![
                    dependency("mysql", true, "db.example:3306/fleet"),
                    dependency("redis", false, &"connection refused ".repeat(8)),
                ],
                hosts: 300_000,
                links: 2,
                rss_bytes: 12 << 30,
            },
            last_end: "no report for 5 s, ended by SIGKILL".into(),
            hangs: 1,
        },
    }
}

#[test]
fn it_fits_into_eighty_columns() {
    for width in [80, 100] {
        let mut status = status();
        if let Some(slot) = status.gateway.slots.first_mut() {
            slot.stats.shed = [4_000_000, 0, 3, 5_000_000, 7, 8, 9, 1_000_000, 2];
        }
        let text = text(&status, width, false);
        for line in text.lines() {
            assert!(line.chars().count() <= usize::from(width), "{line:?}");
        }
        for part in [
            "parked",
            "4000123",
            "1d 2h",
            "1h 1m",
            "failing",
            "db.example:3306",
            "12 GiB",
            "4m 59s",
            "last by SIGKILL",
            "no report for 5 s",
            "refused: 5000000 host_rate 4000000 queue_age",
        ] {
            assert!(text.contains(part), "{part} not in:\n{text}");
        }
        assert!(!text.contains('\x1b'));
    }
    let usual = super::text(&status(), 80, true);
    assert!(usual.contains('\x1b') && !usual.contains("refused:"));
}

fn address(index: u8, state: AddressState, reason: &str) -> AddressView {
    AddressView {
        address: format!("[2001:db8:aaaa:bbbb:cccc:dddd:eeee:{index:x}]:8080")
            .parse()
            .unwrap(),
        state,
        reason: reason.into(),
        is_claimed: true,
        is_proxied: true,
        open: 123_456,
        accepted: 1 << 40,
        accepts_per_s: 12_345.6,
        refused: 99_999,
        share: 0.333,
        foreign_listeners: 0,
    }
}

#[test]
fn addresses_show_what_is_wrong_with_them() {
    let mut status = status();
    let gone = address(200, AddressState::Degraded, "its interface eth0 is down");
    status.gateway.addresses = vec![gone.clone()];
    for width in [80, 100, 160] {
        let text = text(&status, width, false);
        assert!(
            text.lines()
                .all(|line| line.chars().count() <= width.into())
        );
        for part in ["degraded", "33 %", "12346"] {
            assert!(text.contains(part), "{part} not in:\n{text}");
        }
    }
    let mut many: Vec<_> = (0..100)
        .map(|index| address(index, AddressState::Serving, ""))
        .collect();
    many.push(gone);
    status.gateway.addresses = many;
    let text = text(&status, 160, false);
    assert!(text.contains("its interface eth0 is down"), "{text}");
    assert!(text.contains("and 81 more"), "{text}");
}

#[test]
fn one_address_that_serves_needs_no_table() {
    let mut status = status();
    status.gateway.addresses = vec![address(1, AddressState::Serving, "")];
    let text = text(&status, 100, false);
    assert!(text.contains("https://0.0.0.0:8080") && !text.contains("ACCEPTS"));
}
