//! `lb haproxy` and `lb nginx`: a whole configuration of a balancer in front of these gateways.
//!
//! A balancer passes TCP through: agents open a connection for each request and the gateways end TLS, so there is nothing
//! that it could do with HTTP but pay for every handshake twice.

mod haproxy;
mod install;
mod nginx;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use fleet_protocol::address::AddressState;
use fleet_protocol::address_list;
use fleet_protocol::admin::{Reply, Request};
use fleet_protocol::config::{ClientAuth, Config, Server as ServerOptions};
use fleet_protocol::proxied::Proxied;

use crate::ask::ask;
use crate::exit::Failure;
use crate::sizing::workers;
use crate::{machine, spread};

/// A balancer has no more ports than that toward one address of a gateway (the system's default range,
/// `net.ipv4.ip_local_port_range`), so more connections cannot be open on it.
const CONNECTIONS_PER_ADDRESS_MAX: u64 = 28_000;
/// Connections that an osquery agent holds open at most: one for each of its threads.
const CONNECTIONS_PER_HOST: u64 = 4;

/// What to render.
#[derive(Clone, Debug, PartialEq, Eq, clap::Subcommand)]
pub(crate) enum Lb {
    /// For HAProxy 2.2 or newer: weights and drain by agent-check, health by TLS
    Haproxy {
        #[command(flatten)]
        common: Common,
        /// Socket for HAProxy's statistics and commands
        #[arg(long, value_name = "PATH", default_value = "/run/haproxy/admin.sock")]
        stats_socket: PathBuf,
        /// Verify the gateways' certificates in health checks against this file; it must be readable by HAProxy
        #[arg(long, value_name = "FILE")]
        ca_file: Option<PathBuf>,
        /// Check it, put it at /etc/haproxy/haproxy.cfg, keep the former file beside it, and start or reload HAProxy
        #[arg(long, conflicts_with = "output")]
        install: bool,
        /// Put it below this directory instead of /, and start nothing
        #[arg(long, value_name = "DIR", default_value = "/", requires = "install")]
        root: PathBuf,
    },
    /// For nginx with its stream module: no weights, no drain, health by failed connections
    Nginx {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub(crate) struct Common {
    /// Where the balancer listens: IP:port, or :port for every IPv4 address
    #[arg(long, value_name = "ADDRESS", default_value = ":443")]
    listen: String,
    /// A gateway's address, IP:port, with ,agent=IP:port for its agent-check and ,proxy if it wants PROXY v2; again for
    /// each. Without any, the addresses of this server
    #[arg(long, value_name = "GATEWAY")]
    gateway: Vec<String>,
    /// Connections that each address of --gateway may hold; without it, as many as this server's workers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    connections: Option<u32>,
    /// Write to this file instead of standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// An address behind the balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Server {
    address: SocketAddr,
    /// Where its agent-check answers.
    agent: Option<SocketAddr>,
    is_proxied: bool,
    connections_max: u64,
}

/// Everything that a configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layout {
    listen: Listen,
    servers: Vec<Server>,
    /// Connections in all.
    connections_max: u64,
    is_tls: bool,
    /// Nobody is heard by a gateway without a certificate of his own.
    needs_certificate: bool,
    /// In front of `/healthz`.
    path_prefix: String,
}

/// Where the balancer listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listen {
    EveryIpv4(u16),
    At(SocketAddr),
}

/// Runs the command.
pub(crate) fn run(lb: &Lb, config: &Config, state_dir: &Path) -> Result<(), Failure> {
    match lb {
        Lb::Haproxy {
            common,
            stats_socket,
            ca_file,
            install,
            root,
        } => {
            let layout = layout(common, config, state_dir)?;
            let extras = haproxy::Extras {
                stats_socket,
                ca_file: ca_file.as_deref(),
            };
            let text = haproxy::render(&layout, &extras)?;
            if *install {
                return install::install(&text, root);
            }
            deliver(&text, common.output.as_deref())
        }
        Lb::Nginx { common } => {
            let text = nginx::render(&layout(common, config, state_dir)?)?;
            deliver(&text, common.output.as_deref())
        }
    }
}

fn deliver(text: &str, output: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = output else {
        // A reader that has gone is no failure.
        let _ = std::io::stdout().lock().write_all(text.as_bytes());
        return Ok(());
    };
    install::write(path, text)
        .map_err(|error| Failure::fatal(format!("cannot write {}: {error}", path.display())))
}

fn layout(common: &Common, config: &Config, state_dir: &Path) -> Result<Layout, Failure> {
    let listen = parse_listen(&common.listen)?;
    let servers = if common.gateway.is_empty() {
        own(config, state_dir)?
    } else {
        let default =
            u64::from(workers(config)) * u64::from(config.server.connections_per_worker_max);
        let connections = common.connections.map_or(default, u64::from);
        let each = common.gateway.iter();
        each.map(|text| parse_gateway(text, connections))
            .collect::<Result<Vec<_>, _>>()?
    };
    if let Some(server) = servers.iter().find(|server| {
        matches!(listen, Listen::At(address) if address == server.address)
            || listen == Listen::EveryIpv4(server.address.port()) && is_here(server.address)
    }) {
        return Err(Failure::config(format!(
            "--listen: {} is a gateway's own address on this machine; the balancer needs another",
            server.address
        )));
    }
    let held: u64 = servers.iter().map(|server| server.connections_max).sum();
    let hosts = config.tune.hosts;
    let wanted = if hosts == 0 {
        held
    } else {
        hosts.saturating_mul(CONNECTIONS_PER_HOST)
    };
    Ok(Layout {
        listen,
        connections_max: held.min(wanted),
        servers,
        is_tls: config.server.tls,
        needs_certificate: config.server.tls
            && !config.server.client_ca.as_os_str().is_empty()
            && config.server.client_auth == ClientAuth::Require,
        path_prefix: config.server.path_prefix(),
    })
}

fn is_here(address: SocketAddr) -> bool {
    address.ip().is_loopback() || machine::addresses().contains(&address.ip())
}

/// This server's addresses: of the running one, or, if none runs, of the configuration.
fn own(config: &Config, state_dir: &Path) -> Result<Vec<Server>, Failure> {
    let (addresses, workers) = match ask(state_dir, &Request::Status) {
        Ok((Reply::Status(status), _)) => {
            let present = status.gateway.addresses.iter();
            let present = present.filter(|view| view.state != AddressState::Leaving);
            (
                present
                    .map(|view| (view.address, view.is_proxied))
                    .collect(),
                u64::try_from(status.gateway.slots.len()).unwrap_or(u64::MAX),
            )
        }
        _ => (configured(&config.server)?, u64::from(workers(config))),
    };
    let agent = &config.addresses.agent_check.listen;
    let agent: Option<SocketAddr> = (!agent.is_empty())
        .then(|| agent.parse())
        .transpose()
        .map_err(|_| Failure::config(format!("addresses.agent_check.listen: {agent:?}")))?;
    let capacity = workers.saturating_mul(config.server.connections_per_worker_max.into());
    let mut servers = Vec::new();
    for (address, is_proxied) in reachable(&addresses)? {
        servers.push(Server {
            address,
            agent: agent.map(|agent| {
                if agent.ip().is_unspecified() {
                    SocketAddr::new(address.ip(), agent.port())
                } else {
                    agent
                }
            }),
            is_proxied,
            connections_max: 0,
        });
    }
    let count = u64::try_from(servers.len()).unwrap_or(u64::MAX).max(1);
    for server in &mut servers {
        server.connections_max = bounded(capacity.div_ceil(count));
    }
    Ok(servers)
}

fn bounded(connections: u64) -> u64 {
    connections.clamp(1, CONNECTIONS_PER_ADDRESS_MAX)
}

/// Addresses of the configuration, and whether connections to them begin with a PROXY header.
fn configured(server: &ServerOptions) -> Result<Vec<(SocketAddr, bool)>, Failure> {
    let addresses = address_list::sockets(&server.address)
        .map_err(|error| Failure::config(format!("server.address: {error}")))?;
    let proxied = Proxied::of(server)
        .map_err(|error| Failure::config(format!("server.proxy_protocol: {error}")))?;
    let each = addresses.into_iter();
    Ok(each
        .map(|address| (address, proxied.contains(address)))
        .collect())
}

/// What a balancer can connect to: for a wildcard, this machine's first address of its family, or loopback when there is
/// none.
fn reachable(addresses: &[(SocketAddr, bool)]) -> Result<Vec<(SocketAddr, bool)>, Failure> {
    let mut all: Vec<(SocketAddr, bool)> = Vec::new();
    for (address, is_proxied) in addresses {
        if address.port() == 0 {
            return Err(Failure::config(format!(
                "server.address: the port of {address} is not known before the server runs; start it, or choose a port"
            )));
        }
        let mut reached = *address;
        if reached.ip().is_unspecified() {
            let ip = spread::expand(&[reached]).first().map(SocketAddr::ip);
            let loopback = if reached.is_ipv4() {
                std::net::Ipv4Addr::LOCALHOST.into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            };
            reached.set_ip(ip.unwrap_or(loopback));
        }
        if !all.iter().any(|(known, _)| *known == reached) {
            all.push((reached, *is_proxied));
        }
    }
    Ok(all)
}

fn parse_listen(text: &str) -> Result<Listen, Failure> {
    let parsed = match text.strip_prefix(':') {
        Some(port) => port.parse().ok().map(Listen::EveryIpv4),
        None => text.parse().ok().map(Listen::At),
    };
    let port = parsed.map(|listen| match listen {
        Listen::EveryIpv4(port) => port,
        Listen::At(address) => address.port(),
    });
    parsed.filter(|_| port != Some(0)).ok_or_else(|| {
        Failure::usage(format!(
            "--listen: {text:?} is not IP:port such as 192.0.2.1:443, nor :port"
        ))
    })
}

fn parse_gateway(text: &str, connections: u64) -> Result<Server, Failure> {
    let malformed = || {
        Failure::usage(format!(
            "--gateway: {text:?} is not IP:port such as 192.0.2.1:8080, or 192.0.2.1:8080,agent=192.0.2.1:9707,proxy"
        ))
    };
    let mut parts = text.split(',');
    let address = |part: &str| part.parse::<SocketAddr>().ok();
    let mut server = Server {
        address: parts
            .next()
            .and_then(address)
            .filter(|address| !address.ip().is_unspecified() && address.port() != 0)
            .ok_or_else(malformed)?,
        agent: None,
        is_proxied: false,
        connections_max: bounded(connections),
    };
    for part in parts {
        match part.strip_prefix("agent=") {
            Some(agent) => server.agent = Some(address(agent).ok_or_else(malformed)?),
            None if part == "proxy" => server.is_proxied = true,
            None => return Err(malformed()),
        }
    }
    Ok(server)
}

#[cfg(test)]
#[path = "lb/tests.rs"]
mod tests;
