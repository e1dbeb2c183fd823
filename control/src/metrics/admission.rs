//! What workers let in, and what not.

use std::fmt::Error;

use fleet_protocol::stats::{DoorCap, Shed};

use super::text::{Name, Page};
use super::workers::{Slots, each};

pub(super) fn write(page: &mut Page<'_>, slots: &Slots<'_>) -> Result<(), Error> {
    page.gauge(
        Name {
            name: "fleet_worker_handshakes_in_progress",
            help: "Connections whose TLS handshake goes on.",
            labels: ["slot"],
        },
        None,
        each(slots, |view| u64::from(view.stats.handshaking)),
    )?;
    page.gauge(
        Name {
            name: "fleet_worker_open_connections_max",
            help: "Connections that may be open.",
            labels: ["slot"],
        },
        None,
        each(slots, |view| u64::from(view.stats.open_connections_max)),
    )?;
    page.counter(
        Name {
            name: "fleet_worker_deferred_turns",
            help: "Turns of handshakes that waited until everything else had had one.",
            labels: ["slot"],
        },
        None,
        each(slots, |view| view.stats.deferred_turns),
    )?;
    page.counter(
        Name {
            name: "fleet_worker_door_shut",
            help: "Times that the worker ceased to accept, by the bound that it had reached.",
            labels: ["slot", "cap"],
        },
        None,
        slots.iter().flat_map(|(slot, view)| {
            DoorCap::ALL
                .into_iter()
                .zip(view.stats.door_shut)
                .map(|(cap, count)| ([slot.as_str(), cap.label()], count))
        }),
    )?;
    page.counter(
        Name {
            name: "fleet_worker_refused",
            help: "Connections and requests that were not admitted, by reason.",
            labels: ["slot", "reason"],
        },
        None,
        slots.iter().flat_map(|(slot, view)| {
            Shed::ALL
                .into_iter()
                .zip(view.stats.shed)
                .map(|(shed, count)| ([slot.as_str(), shed.label()], count))
        }),
    )
}
