//! A server that takes part: the gateway, or a peer.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use fleet_protocol::agent::Route;
use fleet_protocol::secret::Secret;

use super::super::calibrate::server::{Identity as Shown, Program, Server};
use super::super::calibrate::steps::{self, Crowd};
use super::super::procfs::Watch;
use super::cores::Cores;
use super::options::Options;
use super::peers::{Identity, Peer, Process};
use crate::agent::{Agent, Settings};
use crate::bodies;
use crate::client::Dialer;
use crate::host::{Host, Release};
use crate::http::Request;
use crate::target::{Sources, Target};
use crate::tls::{Trust, Versions, client_config};

/// Hosts behind the requests.
const HOSTS: u32 = 16;
/// Connections that the gateway may need beside those that are held.
const OTHER_CONNECTIONS: u32 = 500;

/// Who is to take part: the peers with their programs.
pub(super) type Entrants = Vec<(Peer, PathBuf)>;

/// A running server with the client for it.
pub(super) struct Contestant {
    /// As the report calls it.
    pub(super) name: &'static str,
    /// Its processes.
    pub(super) watch: Watch,
    /// How it is connected to.
    pub(super) crowd: Crowd,
    /// Node keys that the gateway knows.
    pub(super) keys: Arc<[String]>,
    running: Running,
}

enum Running {
    Gateway(Box<Server>),
    /// Ends when it is dropped.
    Peer {
        _process: Process,
    },
}

/// The gateway first, then the peers, all with the gateway's certificate.
pub(super) async fn start_all(
    options: &Options,
    entrants: &Entrants,
    cores: Option<Cores>,
    tls: Versions,
    is_kept: bool,
) -> anyhow::Result<Vec<Contestant>> {
    if let Some(cores) = cores {
        cores.start_servers();
    }
    let started = start_each(options, entrants, tls, is_kept).await;
    if let Some(cores) = cores {
        cores.be_client();
    }
    let mut all = started?;
    let gateway = all.first().context("no gateway")?;
    let keys = gateway.enroll().await?;
    for contestant in &mut all {
        contestant.keys = keys.clone();
    }
    Ok(all)
}

async fn start_each(
    options: &Options,
    entrants: &Entrants,
    tls: Versions,
    is_kept: bool,
) -> anyhow::Result<Vec<Contestant>> {
    let most = options.idle_connections.max(10_000) + OTHER_CONNECTIONS;
    let mut flags = vec![
        format!("--server_connections_per_worker_max={most}"),
        // All that it can answer, of few hosts.
        "--limits_read_rate=1000000".to_owned(),
        "--limits_host_rate=1000000".to_owned(),
        "--limits_host_burst=1000000".to_owned(),
    ];
    flags.extend(options.server_flag.iter().cloned());
    let program = Program {
        server_binary: &options.server_binary,
        server_flag: &flags,
    };
    let server = Server::start(program, Shown::Default).await?;
    let identity = Identity {
        cert: server.ca(),
        key: server.key(),
    };
    let secret = Secret::new(server.enroll_secret()?);
    let crowd = |address| crowd(address, secret.clone(), tls);
    let mut all = vec![Contestant {
        name: "fleet-supervisor",
        watch: tree(server.pid()),
        crowd: crowd(server.address())?,
        keys: Arc::default(),
        running: Running::Gateway(Box::new(server)),
    }];
    for (peer, program) in entrants {
        let process = Process::start(*peer, program, &identity, is_kept).await?;
        all.push(Contestant {
            name: peer.name(),
            watch: tree(process.pid()),
            crowd: crowd(process.address())?,
            keys: Arc::default(),
            running: Running::Peer { _process: process },
        });
    }
    Ok(all)
}

fn tree(pid: u32) -> Watch {
    Watch {
        trees: vec![pid],
        pids: Vec::new(),
    }
}

/// Sockets that the client has at a time, at most, for the choice of its addresses.
const SOCKETS: u32 = 20_000;

/// The client: it checks no certificate, the same for all, so that it is quick enough for all.
fn crowd(address: SocketAddr, secret: Secret, tls: Versions) -> anyhow::Result<Crowd> {
    let target = Arc::new(Target::parse(&format!("https://{address}"))?);
    let sources = Sources::default_for(std::slice::from_ref(&target), SOCKETS);
    let config = client_config(&Trust::Nothing, tls)?;
    Ok(Crowd {
        dialer: Arc::new(Dialer::new(config, sources)),
        settings: Arc::new(Settings::new(secret)),
        target,
        connections: HOSTS,
    })
}

impl Contestant {
    /// Enrolls hosts and answers their first queries, so that nothing is due; gives their keys.
    async fn enroll(&self) -> anyhow::Result<Arc<[String]>> {
        let mut keys = Vec::new();
        for index in 0..HOSTS {
            let agent = Agent::new(
                Host::new(1, index).with_release(Release::NEWEST),
                self.crowd.settings.clone(),
                self.crowd.dialer.clone(),
                self.crowd.target.clone(),
            );
            steps::enroll(&agent).await?;
            steps::details(&agent).await?;
            agent.close().await;
            keys.push(agent.node_key());
        }
        Ok(keys.into())
    }

    /// The bytes of a read, for each host.
    pub(super) fn requests(&self, is_kept: bool) -> Arc<[Vec<u8>]> {
        let bytes = |key: &String| {
            let request = Request {
                target: self.crowd.settings.paths.of(Route::Read).to_owned(),
                user_agent: Release::NEWEST.user_agent,
                node_key: Some(key.clone()),
                is_gzip: false,
                accept_gzip: false,
                keep_alive: is_kept,
                body: bodies::key_only(key),
            };
            let mut bytes = request.head(&self.crowd.target.host).into_bytes();
            bytes.extend_from_slice(&request.body);
            bytes
        };
        self.keys.iter().map(bytes).collect()
    }

    /// Ends it.
    pub(super) async fn stop(self) {
        if let Running::Gateway(mut server) = self.running {
            server.stop().await;
        }
    }
}
