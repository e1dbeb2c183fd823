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
            slots: vec![slot(0, SlotState::Ready), slot(127, SlotState::Parked)],
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
        },
    }
}

#[test]
fn it_fits_into_eighty_columns() {
    for width in [80, 100] {
        let text = text(&status(), width, false);
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
        ] {
            assert!(text.contains(part), "{part} not in:\n{text}");
        }
        assert!(!text.contains('\x1b'));
    }
    assert!(super::text(&status(), 80, true).contains('\x1b'));
}
