//! The lines of a plan: what each value is called, and what it follows from.

use fleet_protocol::measured::Figure as F;

use super::fact::Fact;
use super::size::Size;
use super::{Certificate, Demand, Line, Source, Unit, as_f64};

/// One value of a column.
type Part = fn(&Size) -> f64;

/// Collects lines of two columns.
struct Page<'a> {
    at_once: &'a Size,
    held: &'a Size,
    lines: Vec<Line>,
}

impl Page<'_> {
    fn push(
        &mut self,
        group: &'static str,
        name: &'static str,
        unit: Unit,
        part: Part,
        sources: Vec<Source>,
    ) {
        self.lines.push(Line {
            group,
            name,
            unit,
            at_once: part(self.at_once),
            held: part(self.held),
            sources,
        });
    }
}

macro_rules! sources {
    ($($source:expr),+) => { vec![$(Source::from($source)),+] };
}

/// All of them.
pub(super) fn of(demand: &Demand, at_once: &Size, held: &Size) -> Vec<Line> {
    let mut page = Page {
        at_once,
        held,
        lines: Vec::new(),
    };
    load(&mut page);
    processors(&mut page, demand);
    connections(&mut page);
    memory(&mut page);
    stores(&mut page);
    network(&mut page, demand);
    addresses(&mut page);
    page.lines
}

fn load(page: &mut Page<'_>) {
    let unit = Unit::PerSecond;
    let group = "load";
    page.push(
        group,
        "config requests",
        unit,
        |size| size.load.config,
        sources![Fact::Given],
    );
    let read = sources![Fact::Given, Fact::Hold];
    page.push(group, "read requests", unit, |size| size.load.read, read);
    let log = sources![Fact::Given, Fact::LogTurns];
    page.push(group, "log requests", unit, |size| size.load.log, log);
    page.push(
        group,
        "write requests",
        unit,
        |size| size.load.write,
        sources![Fact::Hourly],
    );
    page.push(
        group,
        "all requests = TLS handshakes",
        unit,
        |size| size.load.requests(),
        sources![Fact::Sum, Fact::Handshake],
    );
}

fn processors(page: &mut Page<'_>, demand: &Demand) {
    let group = "processor";
    let mut busy = match demand.certificate {
        Certificate::Ecdsa => sources![F::ReadEcdsa, F::ConfigEcdsa],
        Certificate::Rsa => sources![F::ReadRsa, F::ConfigRsa, F::ReadEcdsa],
    };
    busy.extend(sources![
        F::LogRequest,
        F::LogLine,
        F::Details,
        Fact::Linear
    ]);
    page.push(
        group,
        "cores busy",
        Unit::Cores,
        |size| size.load.busy_cores,
        busy,
    );
    page.push(
        group,
        "of these control",
        Unit::Cores,
        |size| size.load.control_cores,
        sources![F::LogRequestControl, F::LogLineControl, F::DetailsControl],
    );
    page.push(
        group,
        "cores to have",
        Unit::Count,
        |size| as_f64(size.cores),
        sources![Fact::Headroom],
    );
    page.push(
        group,
        "machines",
        Unit::Count,
        |size| as_f64(size.machines),
        sources![Fact::Machine],
    );
    page.push(
        group,
        "workers on each",
        Unit::Count,
        |size| as_f64(size.workers),
        sources![Fact::Headroom],
    );
    let mut enroll = sources![F::Enroll, F::Details];
    if demand.certificate == Certificate::Rsa {
        enroll.extend(sources![F::ReadRsa, F::ReadEcdsa]);
    }
    page.push(
        group,
        "to enroll every host once",
        Unit::CoreMinutes,
        |size| size.load.enroll_s / 60.0,
        enroll,
    );
}

fn connections(page: &mut Page<'_>) {
    let group = "connections";
    page.push(
        group,
        "open at a time, mean",
        Unit::Count,
        |size| size.open,
        sources![Fact::OpenTime, Fact::Hold],
    );
    page.push(
        group,
        "limit of each worker",
        Unit::Count,
        |size| as_f64(size.connections_max),
        sources![Fact::Burst],
    );
    page.push(
        group,
        "descriptors of each worker",
        Unit::Count,
        |size| as_f64(size.descriptors),
        sources![Fact::Reserve],
    );
}

fn memory(page: &mut Page<'_>) {
    let group = "memory";
    let unit = Unit::Bytes;
    page.push(
        group,
        "processes",
        unit,
        |size| size.base_bytes,
        sources![F::BaseSupervisor, F::BaseControl, F::BaseWorker],
    );
    page.push(
        group,
        "known hosts",
        unit,
        |size| size.hosts_bytes,
        sources![Fact::HostTables, Fact::TwoTables],
    );
    page.push(
        group,
        "connections",
        unit,
        |size| size.connections_bytes,
        sources![F::Connection, Fact::KernelSocket, Fact::Permitted],
    );
    page.push(
        group,
        "queues, all full",
        unit,
        |size| size.queues_bytes,
        sources![Fact::Queues],
    );
    page.push(
        group,
        "memory to have",
        unit,
        Size::memory_bytes,
        sources![Fact::Sum],
    );
}

fn stores(page: &mut Page<'_>) {
    page.push(
        "store",
        "statements",
        Unit::PerSecond,
        |size| size.statements,
        sources![F::StoreIdle, F::StoreDetails, Fact::Seen],
    );
    page.push(
        "log",
        "to disk, not compressed",
        Unit::BytesPerSecond,
        |size| size.log_bytes,
        sources![Fact::Given],
    );
    page.push(
        "log",
        "in a day",
        Unit::Bytes,
        |size| size.log_bytes * 86_400.0,
        sources![Fact::Given],
    );
}

fn network(page: &mut Page<'_>, demand: &Demand) {
    let unit = Unit::BitsPerSecond;
    let up = sources![
        F::ReadUp,
        F::ConfigUp,
        F::LogUp,
        F::DetailsUp,
        F::Segments,
        Fact::Headers
    ];
    page.push("network", "from agents", unit, |size| size.in_bits, up);
    let mut down = sources![F::ReadDown, F::ConfigDown, F::LogDown, F::DetailsDown];
    if demand.certificate == Certificate::Rsa {
        down.extend(sources![F::ReadDownRsa]);
    }
    down.extend(sources![F::Segments, Fact::Headers]);
    page.push("network", "to agents", unit, |size| size.out_bits, down);
}

fn addresses(page: &mut Page<'_>) {
    let group = "addresses";
    let unit = Unit::Count;
    page.push(
        group,
        "agents direct: server addresses",
        unit,
        |_| 1.0,
        sources![Fact::Ports],
    );
    let nat = sources![Fact::Ports, Fact::NatRest, Fact::OpenTime];
    page.push(
        group,
        "hosts per NAT and server address",
        unit,
        |size| size.nat_hosts.floor(),
        nat.clone(),
    );
    page.push(
        group,
        "the same, 28,232 ports",
        unit,
        |size| size.nat_hosts_default.floor(),
        nat,
    );
    page.push(
        group,
        "one balancer address: server ones",
        unit,
        |size| as_f64(size.balancer_addresses),
        sources![Fact::Ports, Fact::Rest, Fact::Headroom],
    );
    page.push(
        group,
        "the same, balancer not tuned",
        unit,
        |size| as_f64(size.balancer_addresses_default),
        sources![Fact::Ports, Fact::Rest, Fact::OpenTime],
    );
}
