//! The slots: what the supervisor sees and what each worker counted.

use std::fmt::Error;

use fleet_protocol::agent::Route;
use fleet_protocol::link::BatchKind;
use fleet_protocol::reject::Reject;
use fleet_protocol::slot::{Gateway, SlotState, SlotView};
use fleet_protocol::stats::{
    BatchStats, Handshake, Histogram, HoldEnd, Outcome, ProxyHeader, TlsFailure, TlsSession,
    WorkerStats,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;

use super::admission;
use super::kernel;
use super::text::{Name, Page};
use super::{addresses, certificates};

#[derive(Debug)]
pub(super) struct Workers(pub(super) Gateway);

/// A slot and its number as text.
pub(super) type Slots<'a> = [(String, &'a SlotView)];

impl Collector for Workers {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let page = &mut Page(encoder);
        let slots: Vec<(String, &SlotView)> = self
            .0
            .slots
            .iter()
            .map(|view| (view.slot.to_string(), view))
            .collect();
        self.gateway(page, &slots)?;
        addresses::write(page, &self.0)?;
        gauges(page, &slots)?;
        connections(page, &slots)?;
        admission::write(page, &slots)?;
        tls(page, &slots)?;
        exchanges(page, &slots)?;
        batches(page, &slots)
    }
}

impl Workers {
    fn gateway(&self, page: &mut Page<'_>, slots: &Slots<'_>) -> Result<(), Error> {
        page.counter(
            Name {
                name: "fleet_gateway_control_restarts",
                help: "Control processes that followed the first.",
                labels: [],
            },
            None,
            [([], self.0.control_restarts)],
        )?;
        page.counter(
            Name {
                name: "fleet_gateway_control_hangs",
                help: "Control processes that stood still and were ended for it.",
                labels: [],
            },
            None,
            [([], self.0.control_hangs)],
        )?;
        page.counter(
            Name {
                name: "fleet_gateway_slot_hangs",
                help: "Worker processes of this slot that stood still and were ended for it.",
                labels: ["slot"],
            },
            None,
            each(slots, |view| view.hangs),
        )?;
        page.counter(
            Name {
                name: "fleet_gateway_slot_restarts",
                help: "Worker processes that followed the first in this slot.",
                labels: ["slot"],
            },
            None,
            each(slots, |view| view.restarts),
        )?;
        page.gauge(
            Name {
                name: "fleet_gateway_slot_state",
                help: "1 for the state that the slot is in.",
                labels: ["slot", "state"],
            },
            None,
            slots.iter().flat_map(|(slot, view)| {
                SlotState::ALL.into_iter().map(|state| {
                    (
                        [slot.as_str(), state.label()],
                        u64::from(state == view.state),
                    )
                })
            }),
        )?;
        page.gauge(
            Name {
                name: "fleet_gateway_slot_uptime",
                help: "Time since the slot's process started.",
                labels: ["slot"],
            },
            Some(Unit::Seconds),
            each(slots, |view| view.uptime_s),
        )?;
        kernel::settings(page, &self.0.settings)?;
        certificates::write(page, &self.0)
    }
}

/// One series for each slot.
pub(super) fn each<'a>(
    slots: &'a Slots<'_>,
    value: impl Fn(&SlotView) -> u64 + 'a,
) -> impl Iterator<Item = ([&'a str; 1], u64)> + 'a {
    slots
        .iter()
        .map(move |(slot, view)| ([slot.as_str()], value(view)))
}

fn gauges(page: &mut Page<'_>, slots: &Slots<'_>) -> Result<(), Error> {
    type Gauge = (&'static str, &'static str, fn(&WorkerStats) -> u64);
    let gauges: [Gauge; 7] = [
        (
            "fleet_worker_open_connections",
            "Connections open now.",
            |stats| u64::from(stats.open_connections),
        ),
        (
            "fleet_worker_held_reads",
            "Distributed reads held open now, with nothing due.",
            |stats| u64::from(stats.held_reads),
        ),
        (
            "fleet_worker_open_tunnels",
            "Operator tunnels open now.",
            |stats| u64::from(stats.tunnels),
        ),
        (
            "fleet_worker_hosts",
            "Hosts in the worker's table.",
            |stats| u64::from(stats.hosts),
        ),
        (
            "fleet_worker_answers",
            "Configurations in the worker's table.",
            |stats| u64::from(stats.answers),
        ),
        (
            "fleet_worker_feed_position",
            "Position in the feed.",
            |stats| stats.feed_seq,
        ),
        (
            "fleet_worker_linked",
            "1 when the link to control stands.",
            |stats| u64::from(stats.is_linked),
        ),
    ];
    for (name, help, value) in gauges {
        let name = Name {
            name,
            help,
            labels: ["slot"],
        };
        page.gauge(name, None, each(slots, |view| value(&view.stats)))?;
    }
    page.gauge(
        Name {
            name: "fleet_worker_resident_memory",
            help: "Resident memory of the process.",
            labels: ["slot"],
        },
        Some(Unit::Bytes),
        each(slots, |view| view.stats.rss_bytes),
    )
}

fn connections(page: &mut Page<'_>, slots: &Slots<'_>) -> Result<(), Error> {
    type Counter = (&'static str, &'static str, fn(&WorkerStats) -> u64);
    let counters: [Counter; 6] = [
        (
            "fleet_worker_accepted_connections",
            "Connections accepted.",
            |stats| stats.accepted,
        ),
        (
            "fleet_worker_accept_errors",
            "Accepts that failed.",
            |stats| stats.accept_errors,
        ),
        (
            "fleet_worker_lost_requests",
            "Log and write requests dropped because they can never be accepted.",
            |stats| stats.lost_requests,
        ),
        (
            "fleet_worker_forwarded_requests",
            "Requests on agent paths whose client's address came from a trusted proxy's header.",
            |stats| stats.forwarded_requests,
        ),
        (
            "fleet_worker_links",
            "Links to control that were established.",
            |stats| stats.links,
        ),
        (
            "fleet_worker_link_oddities",
            "Messages on the link that made no sense.",
            |stats| stats.link_oddities,
        ),
    ];
    for (name, help, value) in counters {
        let name = Name {
            name,
            help,
            labels: ["slot"],
        };
        page.counter(name, None, each(slots, |view| value(&view.stats)))?;
    }
    page.counter(
        Name {
            name: "fleet_worker_proxy_headers",
            help: "PROXY headers by what came of them.",
            labels: ["slot", "outcome"],
        },
        None,
        slots.iter().flat_map(|(slot, view)| {
            ProxyHeader::ALL
                .into_iter()
                .zip(view.stats.proxy_headers)
                .map(|(outcome, count)| ([slot.as_str(), outcome.label()], count))
        }),
    )?;
    page.counter(
        Name {
            name: "fleet_worker_handshakes",
            help: "TLS handshakes by how they ended.",
            labels: ["slot", "outcome"],
        },
        None,
        slots.iter().flat_map(|(slot, view)| {
            Handshake::ALL
                .into_iter()
                .zip(view.stats.handshakes)
                .map(|(outcome, count)| ([slot.as_str(), outcome.label()], count))
        }),
    )
}

fn tls(page: &mut Page<'_>, slots: &Slots<'_>) -> Result<(), Error> {
    page.counter(
        Name {
            name: "fleet_gateway_tls_failures",
            help: "Connections that failed in TLS, by reason.",
            labels: ["slot", "kind"],
        },
        None,
        slots.iter().flat_map(|(slot, view)| {
            TlsFailure::ALL
                .into_iter()
                .zip(view.stats.tls_failures)
                .map(|(failure, count)| ([slot.as_str(), failure.label()], count))
        }),
    )?;
    page.counter(
        Name {
            name: "fleet_gateway_tls_handshakes",
            help: "TLS handshakes that were done, full or resumed from a ticket, by version.",
            labels: ["slot", "version", "kind"],
        },
        None,
        slots.iter().flat_map(|(slot, view)| {
            TlsSession::ALL
                .into_iter()
                .zip(view.stats.tls_sessions)
                .map(|(session, count)| {
                    ([slot.as_str(), session.version(), session.label()], count)
                })
        }),
    )
}

fn exchanges(page: &mut Page<'_>, slots: &Slots<'_>) -> Result<(), Error> {
    page.counter(
        Name {
            name: "fleet_worker_exchanges",
            help: "Requests on agent paths by how they ended.",
            labels: ["slot", "route", "outcome"],
        },
        None,
        slots.iter().flat_map(|(slot, view)| {
            Route::ALL
                .into_iter()
                .zip(&view.stats.exchanges)
                .flat_map(move |(route, counts)| {
                    Outcome::ALL
                        .into_iter()
                        .zip(counts)
                        .map(move |(outcome, count)| {
                            ([slot.as_str(), route.label(), outcome.label()], *count)
                        })
                })
        }),
    )?;
    page.durations(
        Name {
            name: "fleet_worker_exchange_duration",
            help: "From the end of a request, or of its hold, to the last byte of its answer.",
            labels: ["slot", "route"],
        },
        slots.iter().flat_map(|(slot, view)| {
            Route::ALL
                .into_iter()
                .zip(&view.stats.exchange_us)
                .map(|(route, histogram)| ([slot.as_str(), route.label()], histogram))
        }),
    )?;
    page.counter(
        Name {
            name: "fleet_worker_hold_ends",
            help: "Distributed reads with nothing due by what ended their hold, or kept them from being held.",
            labels: ["slot", "reason"],
        },
        None,
        slots.iter().flat_map(|(slot, view)| {
            HoldEnd::ALL
                .into_iter()
                .zip(view.stats.hold_ends)
                .map(|(end, count)| ([slot.as_str(), end.label()], count))
        }),
    )?;
    page.counter(
        Name {
            name: "fleet_worker_rejects",
            help: "Refusals by reason.",
            labels: ["slot", "reason"],
        },
        None,
        slots.iter().flat_map(|(slot, view)| {
            Reject::ALL
                .into_iter()
                .zip(view.stats.rejects)
                .map(|(reject, count)| ([slot.as_str(), reject.label()], count))
        }),
    )
}

/// One series for each slot and kind.
fn each_kind<'a, T>(
    slots: &'a Slots<'_>,
    value: impl Fn(&'a BatchStats) -> T + Copy + 'a,
) -> impl Iterator<Item = ([&'a str; 2], T)> + 'a {
    slots.iter().flat_map(move |(slot, view)| {
        BatchKind::ALL
            .into_iter()
            .zip(&view.stats.batches)
            .map(move |(kind, stats)| ([slot.as_str(), kind.label()], value(stats)))
    })
}

fn batches(page: &mut Page<'_>, slots: &Slots<'_>) -> Result<(), Error> {
    let name = |name, help| Name {
        name,
        help,
        labels: ["slot", "kind"],
    };
    let requests: fn(&BatchStats) -> &Histogram = |stats| &stats.requests;
    page.counts(
        name("fleet_worker_batch_requests", "Requests in a batch."),
        each_kind(slots, requests),
    )?;
    let age: fn(&BatchStats) -> &Histogram = |stats| &stats.age_us;
    page.durations(
        name(
            "fleet_worker_batch_age",
            "Age of the oldest request when its batch was sent.",
        ),
        each_kind(slots, age),
    )?;
    let reply: fn(&BatchStats) -> &Histogram = |stats| &stats.reply_us;
    page.durations(
        name(
            "fleet_worker_batch_reply_duration",
            "From the sending of a batch to its reply.",
        ),
        each_kind(slots, reply),
    )?;
    page.gauge(
        name(
            "fleet_worker_batch_waiting_requests",
            "Requests that wait for credit.",
        ),
        None,
        each_kind(slots, |stats| u64::from(stats.waiting)),
    )?;
    page.gauge(
        name(
            "fleet_worker_batches_in_flight",
            "Batches sent and not answered.",
        ),
        None,
        each_kind(slots, |stats| u64::from(stats.in_flight)),
    )?;
    page.counter(
        name(
            "fleet_worker_batches_resent",
            "Batches sent again on a new link.",
        ),
        None,
        each_kind(slots, |stats| stats.resent),
    )
}
