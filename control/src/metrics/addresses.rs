//! The addresses that agents connect to, as the supervisor counts them. Their number is bounded by the configuration.

use std::fmt::Error;

use fleet_protocol::address::{AddressState, AddressView};
use fleet_protocol::slot::Gateway;

use super::text::{Name, Page, by, plain};

/// Writes their families.
pub(super) fn write(page: &mut Page<'_>, gateway: &Gateway) -> Result<(), Error> {
    let addresses: Vec<(String, &AddressView)> = gateway
        .addresses
        .iter()
        .map(|view| (view.address.to_string(), view))
        .collect();
    let each = |value: fn(&AddressView) -> u64| {
        addresses
            .iter()
            .map(move |(address, view)| ([address.as_str()], value(view)))
    };
    page.gauge(
        by(
            "fleet_gateway_address_open_connections",
            "Connections open now on this address.",
            "address",
        ),
        None,
        each(|view| view.open),
    )?;
    page.counter(
        by(
            "fleet_gateway_address_accepted",
            "Connections accepted on this address.",
            "address",
        ),
        None,
        each(|view| view.accepted),
    )?;
    page.counter(
        by(
            "fleet_gateway_address_refused",
            "Requests and connections refused on this address.",
            "address",
        ),
        None,
        each(|view| view.refused),
    )?;
    page.gauge(
        by(
            "fleet_gateway_address_foreign_listeners",
            "Sockets of other programs that listen on this address, too.",
            "address",
        ),
        None,
        each(|view| u64::from(view.foreign_listeners)),
    )?;
    page.gauge(
        Name {
            name: "fleet_gateway_address_state",
            help: "1 for the state that the address is in.",
            labels: ["address", "state"],
        },
        None,
        addresses.iter().flat_map(|(address, view)| {
            AddressState::ALL.into_iter().map(|state| {
                (
                    [address.as_str(), state.label()],
                    u64::from(state == view.state),
                )
            })
        }),
    )?;
    page.gauge(
        plain(
            "fleet_gateway_draining",
            "1 while the whole server finishes.",
        ),
        None,
        [([], u64::from(gateway.is_draining))],
    )
}
