//! What `start` looks at before it binds anything: whether the kernel gives what the configuration needs.
//!
//! It warns in a few lines that end with the command which helps, and refuses only what cannot work.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use fleet_protocol::address_list;
use fleet_protocol::config::Config;
use fleet_protocol::slot::SettingView;
use fleet_sysctl::apply::{Done, Extent, Report, apply};
use fleet_sysctl::finding::{Finding, Verdict};
use fleet_sysctl::probe;
use fleet_sysctl::record::RECORD_FILE;
use fleet_sysctl::roots::Roots;
use fleet_sysctl::settings::{self, PORT_RANGE, SOMAXCONN, TCP_BYTES_PER_CONNECTION, TCP_MEM};

use crate::exit::Failure;
use crate::{descriptors, sizing};

/// An idle TLS connection in a worker, bytes; measured 5.6 kB (loadtest/RESULTS.md).
const WORKER_BYTES_PER_CONNECTION: u64 = 6 << 10;
/// Ports named in one warning, at most.
const PORTS_SHOWN_MAX: usize = 4;
/// Ports for outgoing connections besides those to the stores.
const PORTS_SPARE: u64 = 256;

/// What was found.
#[derive(Debug)]
pub(crate) struct Preflight {
    /// What a worker's descriptors allow.
    pub(crate) connections_per_worker: u32,
    /// For `status` and `/metrics`.
    pub(crate) settings: Vec<SettingView>,
    warnings: Vec<String>,
}

impl Preflight {
    /// Says what should be better.
    pub(crate) fn report(&self) {
        for warning in &self.warnings {
            tracing::warn!("{warning}");
        }
    }
}

/// Raises our limit on open files, changes settings if `tune.apply` says so, and looks. `options` finds the same
/// configuration again.
pub(crate) fn check(
    config: &Config,
    state_dir: &Path,
    options: &str,
) -> Result<Preflight, Failure> {
    let roots = Roots::system();
    let size = sizing::size(config, None, &roots);
    let mut findings = probe::probe(&roots, &size, &[]);
    if config.tune.apply {
        let is_low = |finding: &Finding| finding.verdict == Verdict::Low;
        if findings.iter().any(is_low) {
            change(&roots, &findings, state_dir);
        }
        let wanted =
            settings::find(settings::NOFILE).and_then(|nofile| (nofile.wanted)(&size).pop());
        descriptors::raise_to(wanted.unwrap_or(0));
    } else {
        descriptors::raise();
    }
    // Our own limit is another now, and so may be the rest.
    findings = probe::probe(&roots, &size, &[]);
    let open_files = descriptors::raise();
    let needs = Needs::of(config);
    let least = descriptors::least(needs.workers, needs.addresses);
    if open_files < least {
        return Err(Failure::fatal(format!(
            "{} addresses and {} workers need {least} open files, and only {open_files} are allowed; raise that \
             (LimitNOFILE= in a unit, ulimit -Hn in a shell), or take fewer addresses or workers",
            needs.addresses, needs.workers
        )));
    }
    let wanted = config.server.connections_per_worker_max;
    let addresses = usize::try_from(needs.addresses).unwrap_or(usize::MAX);
    let fitting = descriptors::connections(wanted, open_files, addresses);
    let has = Has::read(&roots, size.page_bytes, open_files);
    let mut warnings = needs.warnings(&has, fitting);
    warnings.extend(advice(&findings, size.hosts, options));
    Ok(Preflight {
        connections_per_worker: fitting,
        settings: findings.iter().filter_map(Finding::view).collect(),
        warnings,
    })
}

/// `tune.apply`: as `tune --apply`, into our log.
fn change(roots: &Roots, findings: &[Finding], state_dir: &Path) {
    match apply(
        roots,
        findings,
        &state_dir.join(RECORD_FILE),
        Extent::default(),
    ) {
        Ok(report) => tell(&report),
        Err(error) => tracing::warn!("tune.apply: {error}"),
    }
}

fn tell(report: &Report) {
    let mut failed: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for change in &report.changes {
        match &change.done {
            Done::Failed(reason) => failed.entry(reason).or_default().push(&change.key),
            Done::Kept(when) => tracing::info!(
                "tune.apply: {}: {} -> {} ({when})",
                change.key,
                change.from,
                change.to
            ),
            Done::Changed | Done::Would => {
                tracing::info!(
                    "tune.apply: {}: {} -> {}",
                    change.key,
                    change.from,
                    change.to
                );
            }
        }
    }
    for file in &report.files {
        match &file.done {
            Done::Failed(reason) => failed.entry(reason).or_default().push(&file.path),
            _ => tracing::info!("tune.apply: written: {}", file.path),
        }
    }
    for (reason, what) in failed {
        tracing::warn!("tune.apply: {} not changed: {reason}", what.join(", "));
    }
}

/// The line about the whole table.
fn advice(findings: &[Finding], hosts: u64, options: &str) -> Option<String> {
    let views: Vec<SettingView> = findings.iter().filter_map(Finding::view).collect();
    let low = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Low)
        .count();
    (low > 0).then(|| {
        let noun = if low == 1 { "is" } else { "are" };
        format!(
            "{low} of {} kernel settings {noun} not as {hosts} hosts want them. See them: fleet-supervisor tune{options}. \
             Change them: fleet-supervisor tune --apply{options}",
            views.len()
        )
    })
}

/// What the configuration needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Needs {
    workers: u64,
    addresses: u64,
    connections_per_worker: u64,
    backlog: u64,
    /// Chosen ports, each once.
    ports: Vec<u16>,
    /// Connections of ours to stores.
    outgoing: u64,
}

/// What the machine gives; `None` where it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Has {
    open_files: u64,
    somaxconn: Option<u64>,
    tcp_bytes: Option<u64>,
    memory_bytes: u64,
    /// First and last port of outgoing connections.
    ports: Option<(u64, u64)>,
    /// Ports that these leave out.
    reserved: String,
}

impl Needs {
    fn of(config: &Config) -> Self {
        let all = address_list::sockets(&config.server.address).unwrap_or_default();
        let mut ports: Vec<u16> = all.iter().map(std::net::SocketAddr::port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports.retain(|port| *port != 0);
        let store = match config.mysql.address.as_str() {
            "" => 0,
            _ => u64::from(config.mysql.max_open_conns),
        };
        Self {
            workers: u64::from(sizing::workers(config)),
            addresses: all.len().max(1) as u64,
            connections_per_worker: u64::from(config.server.connections_per_worker_max),
            backlog: u64::from(config.server.backlog),
            ports,
            outgoing: store + PORTS_SPARE,
        }
    }

    /// A sentence for each need that is not met; `fitting` is what a worker's descriptors allow.
    fn warnings(&self, has: &Has, fitting: u32) -> Vec<String> {
        let mut warnings = Vec::new();
        if u64::from(fitting) < self.connections_per_worker {
            warnings.push(format!(
                "server.connections_per_worker_max is lowered from {} to {fitting}: a process may have only {} open \
                 files (LimitNOFILE= in a unit, ulimit -Hn in a shell)",
                self.connections_per_worker, has.open_files
            ));
        }
        if let Some(most) = has.somaxconn.filter(|most| *most < self.backlog) {
            warnings.push(format!(
                "server.backlog is {}, but {SOMAXCONN} makes it {most}",
                self.backlog
            ));
        }
        let connections = self.workers * self.connections_per_worker.min(u64::from(fitting));
        let kernel_bytes = connections * TCP_BYTES_PER_CONNECTION;
        if let Some(bytes) = has.tcp_bytes.filter(|bytes| *bytes < kernel_bytes) {
            warnings.push(format!(
                "{TCP_MEM} gives all TCP sockets {} MiB; {connections} connections may need {} MiB",
                bytes >> 20,
                kernel_bytes >> 20
            ));
        }
        let bytes = kernel_bytes + connections * WORKER_BYTES_PER_CONNECTION;
        if has.memory_bytes > 0 && has.memory_bytes < bytes {
            warnings.push(format!(
                "{connections} connections may need {} MiB of memory, and this machine has {} MiB; lower \
                 server.connections_per_worker_max",
                bytes >> 20,
                has.memory_bytes >> 20
            ));
        }
        warnings.extend(self.port_warnings(has));
        warnings
    }

    fn port_warnings(&self, has: &Has) -> Vec<String> {
        let Some((first, last)) = has.ports else {
            return Vec::new();
        };
        let mut warnings = Vec::new();
        let count = (last + 1).saturating_sub(first);
        if count < self.outgoing {
            warnings.push(format!(
                "{PORT_RANGE} leaves {count} ports for connections to the stores, and {} may be needed",
                self.outgoing
            ));
        }
        let exposed: Vec<u16> = self
            .ports
            .iter()
            .copied()
            .filter(|port| (first..=last).contains(&u64::from(*port)))
            .filter(|port| !is_reserved(&has.reserved, *port))
            .collect();
        if !exposed.is_empty() {
            let mut shown = String::new();
            for port in exposed.iter().take(PORTS_SHOWN_MAX) {
                let _ = write!(shown, "{}{port}", if shown.is_empty() { "" } else { ", " });
            }
            if exposed.len() > PORTS_SHOWN_MAX {
                let _ = write!(shown, " and {} more", exposed.len() - PORTS_SHOWN_MAX);
            }
            warnings.push(format!(
                "port {shown} of server.address lies within {PORT_RANGE} ({first} to {last}): while this server is \
                 stopped, a client on this machine may take it; choose another port, or list it in \
                 net.ipv4.ip_local_reserved_ports"
            ));
        }
        warnings
    }
}

impl Has {
    fn read(roots: &Roots, page_bytes: u64, open_files: u64) -> Self {
        let pages = probe::numbers(roots, TCP_MEM).and_then(|triple| triple.last().copied());
        let ports = match probe::numbers(roots, PORT_RANGE).as_deref() {
            Some(&[first, last]) => Some((first, last)),
            _ => None,
        };
        Self {
            open_files,
            somaxconn: probe::number(roots, SOMAXCONN),
            tcp_bytes: pages.map(|pages| pages.saturating_mul(page_bytes)),
            memory_bytes: probe::memory_bytes(roots),
            ports,
            reserved: probe::text(roots, "net.ipv4.ip_local_reserved_ports").unwrap_or_default(),
        }
    }
}

/// Whether a list such as `8080,9000-9100` holds a port.
fn is_reserved(list: &str, port: u16) -> bool {
    list.trim().split(',').any(|entry| {
        let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
        match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&port),
            _ => false,
        }
    })
}

#[cfg(test)]
#[path = "preflight_tests.rs"]
mod tests;
