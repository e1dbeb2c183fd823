//! Control's own counters: hosts, store, bus, journal, batches, links, carves.

use std::fmt::Error;
use std::sync::atomic::{AtomicU64, Ordering};

use fleet_protocol::agent::LogType;
use fleet_protocol::link::BatchKind;
use fleet_protocol::reject::Reject;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Unit;

use super::text::{Page, by, plain};
use super::{Sources, live, storage};
use crate::agents::{self, AgentsStatistics, Counts};
use crate::bus::BusStatistics;
use crate::campaigns::CampaignsStatistics;
use crate::carve::CarveStatistics;
use crate::dispatch::DispatchStatistics;
use crate::journal::LogStatistics;
use crate::server::LinkCounters;
use crate::spool::SpoolStatistics;
use crate::store::StoreStatistics;

/// Everything at one moment.
#[derive(Debug)]
pub(super) struct Control {
    hosts: Counts,
    agents: AgentsStatistics,
    live: CampaignsStatistics,
    called: u64,
    engine: &'static str,
    store: StoreStatistics,
    spool: SpoolStatistics,
    bus_engine: &'static str,
    is_bus_healthy: bool,
    bus: BusStatistics,
    /// By [`LogType`].
    logs: Vec<(&'static str, LogStatistics)>,
    carves: CarveStatistics,
    batches: DispatchStatistics,
    links: [(&'static str, u64); 7],
    open_links: u64,
    feed_pieces: u64,
    link_bytes: [(&'static str, u64); 2],
    resident_bytes: u64,
}

impl Control {
    pub(super) fn read(sources: &Sources) -> Self {
        let links: &LinkCounters = &sources.links;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            hosts: sources.agents.counts(agents::now()),
            agents: sources.agents.statistics(),
            live: sources.agents.campaigns.statistics(),
            called: agents::lock(&sources.agents.roster).called_count(),
            engine: sources.store.engine().label(),
            store: sources.store.statistics(),
            spool: sources.agents.spool.statistics(),
            bus_engine: sources.bus.engine(),
            is_bus_healthy: sources.bus.is_healthy(),
            bus: sources.bus.statistics(),
            logs: LogType::ALL
                .into_iter()
                .map(|log_type| (log_type.label(), sources.journal.statistics(log_type)))
                .collect(),
            carves: sources.carves.statistics_now(),
            batches: sources.dispatch.statistics_now(),
            links: [
                ("accepted", count(&links.accepted)),
                ("refused", count(&links.refused)),
                ("violation", count(&links.violations)),
                ("dead", count(&links.dead)),
                ("behind", count(&links.behind)),
                ("repeated_batch", count(&links.repeated)),
                ("lost", count(&links.lost)),
            ],
            open_links: count(&links.open),
            feed_pieces: count(&links.feed_pieces),
            link_bytes: [
                ("read", count(&links.read_bytes)),
                ("written", count(&links.written_bytes)),
            ],
            resident_bytes: fleet_child::memory::resident_bytes(),
        }
    }
}

impl Collector for Control {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        let help = "The running build.";
        let info = encoder.encode_descriptor("fleet", help, None, MetricType::Info)?;
        build.encode(info)?;
        let page = &mut Page(encoder);
        self.hosts(page)?;
        self.agents(page)?;
        live::live(page, &self.live, self.called)?;
        storage::store(page, self.engine, &self.store)?;
        storage::spool(page, &self.spool)?;
        storage::bus(page, self.bus_engine, self.is_bus_healthy, &self.bus)?;
        storage::journal(page, &self.logs)?;
        self.batches(page)?;
        self.links(page)?;
        self.carves(page)
    }
}

impl Control {
    fn hosts(&self, page: &mut Page<'_>) -> Result<(), Error> {
        page.gauge(
            plain("fleet_control_enrolled_hosts", "Hosts enrolled."),
            None,
            [([], self.hosts.enrolled)],
        )?;
        page.gauge(
            by(
                "fleet_control_hosts",
                "Hosts by state; new ones are in another state too.",
                "status",
            ),
            None,
            [
                (["online"], self.hosts.online),
                (["offline"], self.hosts.offline),
                (["mia"], self.hosts.mia),
                (["new"], self.hosts.new),
            ],
        )?;
        page.gauge(
            plain(
                "fleet_control_resident_memory",
                "Resident memory of the control process.",
            ),
            Some(Unit::Bytes),
            [([], self.resident_bytes)],
        )
    }

    fn agents(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let agents = &self.agents;
        for (name, help, value) in [
            (
                "fleet_control_directory_loaded",
                "1 when the directory was loaded from the store.",
                u64::from(agents.is_loaded),
            ),
            (
                "fleet_control_answers",
                "Distinct configurations in use.",
                agents.answers,
            ),
            (
                "fleet_control_feed_position",
                "Position of the feed.",
                agents.feed_seq.0,
            ),
            (
                "fleet_control_unknown_changes",
                "Changes that a newer build wrote to the store, skipped since this one started.",
                agents.unknown_changes,
            ),
            (
                "fleet_control_seen_waiting",
                "Seen marks that wait to be written.",
                agents.seen_waiting,
            ),
            (
                "fleet_clone_hosts",
                "Hosts that share their identifier with others.",
                agents.clone_hosts,
            ),
            (
                "fleet_due_per_second",
                "Hosts that get due work in a second, at most.",
                u64::from(agents.pacer.rate),
            ),
            (
                "fleet_due_peak",
                "Most hosts that got due work in one second since control started.",
                u64::from(agents.pacer.peak),
            ),
            (
                "fleet_due_waiting_hosts",
                "Hosts that asked for due work and wait for their turn.",
                u64::from(agents.pacer.waiting),
            ),
        ] {
            page.gauge(plain(name, help), None, [([], value)])?;
        }
        self.agent_events(page)
    }

    fn agent_events(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let agents = &self.agents;
        for (name, help, label, counts) in [
            (
                "fleet_control_enrollments",
                "Enrolments by outcome.",
                "outcome",
                &agents.enrollments,
            ),
            (
                "fleet_control_enrollment_identities",
                "Enrolments by what the host turned out to be.",
                "identity",
                &agents.identities,
            ),
            (
                "fleet_control_query_results",
                "Distributed results by outcome.",
                "outcome",
                &agents.results,
            ),
        ] {
            let series = counts.iter().map(|(value, count)| ([*value], *count));
            page.counter(by(name, help, label), None, series)?;
        }
        for (name, help, value) in [
            (
                "fleet_control_lost_writes",
                "Results of hosts that the store will never take.",
                agents.writes_lost,
            ),
            (
                "fleet_due_served",
                "Reads that got due work.",
                agents.pacer.served,
            ),
            (
                "fleet_due_put_off",
                "Reads with due work that were told to come later.",
                agents.pacer.put_off,
            ),
            (
                "fleet_control_queries_handed_out",
                "Queries handed out in reads.",
                agents.queries_handed_out,
            ),
            (
                "fleet_control_store_failures",
                "Calls of the store that failed.",
                agents.store_failures,
            ),
            (
                "fleet_control_dropped_subscribers",
                "Links whose feed fell behind.",
                agents.subscribers_dropped,
            ),
        ] {
            page.counter(plain(name, help), None, [([], value)])?;
        }
        Ok(())
    }

    fn batches(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let kinds = || BatchKind::ALL.into_iter().zip(&self.batches.kinds);
        page.counts(
            by(
                "fleet_control_batch_requests",
                "Requests in a batch.",
                "kind",
            ),
            kinds().map(|(kind, of)| ([kind.label()], &of.requests)),
        )?;
        page.durations(
            by(
                "fleet_control_batch_duration",
                "From the arrival of a batch to its reply.",
                "kind",
            ),
            kinds().map(|(kind, of)| ([kind.label()], &of.run_us)),
        )?;
        page.gauge(
            by(
                "fleet_control_running_batches",
                "Batches running now.",
                "kind",
            ),
            None,
            kinds().map(|(kind, of)| ([kind.label()], of.running)),
        )?;
        page.counter(
            by(
                "fleet_control_refused_requests",
                "Requests refused.",
                "reason",
            ),
            None,
            Reject::ALL
                .into_iter()
                .zip(self.batches.refused)
                .map(|(reject, count)| ([reject.label()], count)),
        )?;
        page.counter(
            plain("fleet_control_panics", "Batches that panicked."),
            None,
            [([], self.batches.panics)],
        )
    }

    fn links(&self, page: &mut Page<'_>) -> Result<(), Error> {
        page.gauge(
            plain("fleet_control_open_links", "Links to workers."),
            None,
            [([], self.open_links)],
        )?;
        page.counter(
            by(
                "fleet_control_link_events",
                "What happened to links.",
                "event",
            ),
            None,
            self.links.iter().map(|(event, count)| ([*event], *count)),
        )?;
        page.counter(
            plain("fleet_control_feed_pieces", "Feed pieces written to links."),
            None,
            [([], self.feed_pieces)],
        )?;
        page.counter(
            by("fleet_control_link", "Bytes on links.", "direction"),
            Some(Unit::Bytes),
            self.link_bytes
                .iter()
                .map(|(direction, count)| ([*direction], *count)),
        )
    }

    fn carves(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let carves = &self.carves;
        page.counter(
            by(
                "fleet_control_carve_events",
                "What happened to carves.",
                "event",
            ),
            None,
            [
                (["begun"], carves.begun),
                (["block"], carves.blocks),
                (["completed"], carves.completed),
                (["expired"], carves.expired),
                (["failed"], carves.failed),
                (["refused"], carves.refused),
            ],
        )?;
        page.counter(
            plain(
                "fleet_control_carve_stored",
                "Bytes of carve blocks stored.",
            ),
            Some(Unit::Bytes),
            [([], carves.bytes)],
        )
    }
}
