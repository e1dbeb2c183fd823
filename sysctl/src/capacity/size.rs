//! Machines, workers, memory, connections, store and network for a load.

use fleet_protocol::config::Config;
use fleet_protocol::limits::BatchLimits;
use fleet_protocol::link::BatchKind;
use fleet_protocol::measured::Figure;
use serde::Serialize;

use super::fact::{
    BURST, HEADER_BYTES, HOST_CONTROL_BYTES, HOST_WORKER_BYTES, KERNEL_CONNECTION_BYTES,
    MACHINE_CORES_MAX, OPEN_S, SEEN_ROWS, UTILISATION,
};
use super::load::Load;
use super::{
    Certificate, Demand, EMBEDDED_STORE_HOSTS_MAX, Error, Figures, addresses, as_f64, ceil,
};

/// Workers at least: one serves while the other starts again.
const WORKERS_MIN: u64 = 2;
/// Workers of one gateway at most, as the configuration has it.
const WORKERS_MAX: u64 = 1024;
/// Descriptors of a worker that are no agent's connection: listeners apart, channel, link, tunnels, timers, libraries.
pub const DESCRIPTORS_RESERVE: u64 = 256;
/// Advised limits of connections are multiples of this.
const CONNECTIONS_STEP: u64 = 1000;

/// What one gateway should be configured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// Machines, each with a gateway; all values below are for one.
    pub machines: u64,
    /// Hosts of each.
    pub hosts: u64,
    /// `workers.count`.
    pub workers: u64,
    /// `server.connections_per_worker_max`.
    pub connections_per_worker: u64,
    /// Addresses for a balancer or NAT in front that has one address itself.
    pub addresses: u64,
    /// Use MySQL and Redis.
    pub has_stores: bool,
}

/// The size of everything. Values are for all machines together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) load: Load,
    pub(super) cores: u64,
    pub(super) machines: u64,
    /// Of each machine.
    pub(super) workers: u64,
    pub(super) open: f64,
    /// For each worker.
    pub(super) connections_max: u64,
    pub(super) descriptors: u64,
    pub(super) base_bytes: f64,
    pub(super) hosts_bytes: f64,
    pub(super) connections_bytes: f64,
    pub(super) queues_bytes: f64,
    pub(super) statements: f64,
    pub(super) log_bytes: f64,
    pub(super) in_bits: f64,
    pub(super) out_bits: f64,
    pub(super) nat_hosts: f64,
    pub(super) nat_hosts_default: f64,
    pub(super) balancer_addresses: u64,
    pub(super) balancer_addresses_default: u64,
}

impl Size {
    pub(super) fn of(demand: &Demand, load: Load, figures: &Figures<'_>) -> Result<Self, Error> {
        let worker_cores = (load.busy_cores - load.control_cores).max(0.0);
        let cores = ceil(load.busy_cores / UTILISATION).max(WORKERS_MIN);
        let machines = cores.div_ceil(MACHINE_CORES_MAX);
        let workers =
            ceil(worker_cores / UTILISATION / as_f64(machines)).clamp(WORKERS_MIN, WORKERS_MAX);
        let all_workers = as_f64(workers * machines);
        // Little's law: arrivals a second times the seconds that each stays.
        let open = load.requests() * OPEN_S + load.held;
        let wanted = ceil(open * BURST / all_workers);
        let default = u64::from(Config::default().server.connections_per_worker_max);
        let connections_max = wanted
            .div_ceil(CONNECTIONS_STEP)
            .saturating_mul(CONNECTIONS_STEP)
            .max(default);
        let hosts = as_f64(demand.hosts);
        let per_connection = figures.get(Figure::Connection)? + KERNEL_CONNECTION_BYTES;
        // Each worker of a machine knows all hosts of the database, whichever machine they connect to.
        let hosts_bytes =
            hosts * (as_f64(machines) * HOST_CONTROL_BYTES + 2.0 * all_workers * HOST_WORKER_BYTES);
        let log_bytes = load.lines * f64::from(demand.line_bytes);
        let (in_bytes, out_bytes) = traffic(demand, &load, log_bytes, figures)?;
        let needed = |ports, rest_s| addresses::needed(&load, ports, rest_s);
        let nat_rest_s = addresses::NAT_PORT_REST_S;
        let per_host = addresses::occupied(load.requests(), load.held, nat_rest_s) / hosts;
        Ok(Self {
            load,
            cores,
            machines,
            workers,
            open,
            connections_max,
            descriptors: connections_max + DESCRIPTORS_RESERVE,
            base_bytes: as_f64(machines)
                * (figures.get(Figure::BaseSupervisor)? + figures.get(Figure::BaseControl)?)
                + all_workers * figures.get(Figure::BaseWorker)?,
            hosts_bytes,
            // What the advised configuration lets in, so that no load within it needs more memory than is advised.
            connections_bytes: as_f64(connections_max) * all_workers * per_connection,
            queues_bytes: all_workers * queue_bytes_max(),
            statements: statements(demand, &load, machines, figures)?,
            log_bytes,
            in_bits: in_bytes * 8.0,
            out_bits: out_bytes * 8.0,
            nat_hosts: addresses::PORTS_ALL / per_host,
            nat_hosts_default: addresses::PORTS_DEFAULT / per_host,
            balancer_addresses: needed(
                addresses::PORTS_ALL * UTILISATION,
                addresses::REUSED_PORT_REST_S,
            ),
            balancer_addresses_default: needed(addresses::PORTS_DEFAULT, addresses::PORT_REST_S),
        })
    }

    /// Everything that memory is needed for.
    pub(super) fn memory_bytes(&self) -> f64 {
        self.base_bytes + self.hosts_bytes + self.connections_bytes + self.queues_bytes
    }

    pub(super) fn advice(&self, demand: &Demand) -> Advice {
        Advice {
            machines: self.machines,
            hosts: demand.hosts.div_ceil(self.machines),
            workers: self.workers,
            connections_per_worker: self.connections_max,
            addresses: self.balancer_addresses.div_ceil(self.machines),
            has_stores: demand.hosts > EMBEDDED_STORE_HOSTS_MAX || self.machines > 1,
        }
    }
}

/// What may wait in one worker when store or disk stand still.
fn queue_bytes_max() -> f64 {
    let bytes = BatchKind::ALL.iter().map(|kind| BatchLimits::of(*kind));
    as_f64(
        bytes
            .map(|limits| u64::try_from(limits.waiting_bytes_max).unwrap_or(u64::MAX))
            .sum(),
    )
}

/// Statements a second of all machines.
fn statements(
    demand: &Demand,
    load: &Load,
    machines: u64,
    figures: &Figures<'_>,
) -> Result<f64, Error> {
    let seen_s = Config::default().osquery.seen_interval.as_secs_f64();
    // A host is marked once an interval, and not more often than it comes.
    let polls = load.read + load.config;
    let seen = (as_f64(demand.hosts) / seen_s).min(polls) / SEEN_ROWS;
    Ok(as_f64(machines) * figures.get(Figure::StoreIdle)?
        + seen
        + load.write * figures.get(Figure::StoreDetails)?)
}

/// Bytes a second to and from the agents, headers of all layers included.
fn traffic(
    demand: &Demand,
    load: &Load,
    log_bytes: f64,
    figures: &Figures<'_>,
) -> Result<(f64, f64), Error> {
    let get = |figure| figures.get(figure);
    let more = match demand.certificate {
        Certificate::Ecdsa => 0.0,
        Certificate::Rsa => (get(Figure::ReadDownRsa)? - get(Figure::ReadDown)?).max(0.0),
    };
    let headers = load.requests() * get(Figure::Segments)? * HEADER_BYTES / 2.0;
    let up = load.read * get(Figure::ReadUp)?
        + load.config * get(Figure::ConfigUp)?
        + load.log * get(Figure::LogUp)?
        + load.write * get(Figure::DetailsUp)?
        + log_bytes
        + headers;
    let down = load.read * get(Figure::ReadDown)?
        + load.config * get(Figure::ConfigDown)?
        + load.log * get(Figure::LogDown)?
        + load.write * get(Figure::DetailsDown)?
        + load.requests() * more
        + headers;
    Ok((up, down))
}
