//! The command line.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use fleet_protocol::secret::Secret;

use super::backlog::Backlog;
use super::churn::Churn;
use super::held::Held;
use super::idle::Idle;
use super::lane::raise_descriptor_limit;
use super::slow::Slow;
use super::steady::Steady;
use super::storm::Storm;
use crate::agent::{Paths, Settings};
use crate::client::Dialer;
use crate::target::{Sources, Target};
use crate::tls::{KeyShares, Trust, Versions, client_config_with};

/// Simulated osquery agents: load scenarios and their report.
#[derive(Debug, Parser)]
#[command(name = "fleet-loadtest", version, max_term_width = 100)]
pub(super) struct Options {
    /// What to do.
    #[command(subcommand)]
    pub(super) scenario: Scenario,
}

/// The scenarios.
#[derive(Debug, Subcommand)]
pub(super) enum Scenario {
    /// Hosts that enroll and then poll at their intervals (open loop: the schedule does not wait for the server).
    Steady(Steady),
    /// Full handshake, one POST, close, as fast as it goes (closed loop); CPU per exchange, beside a peer if wanted.
    Exchange(Exchange),
    /// Connections that are opened, used once and then held, some of them in use; memory per connection.
    Idle(Idle),
    /// Every host at once, as after an outage, and what follows from it.
    Storm(Storm),
    /// Reads that the server holds open; memory for each.
    Held(Held),
    /// Every host comes back with a backlog of log lines.
    Backlog(Backlog),
    /// Hosts that appear, live for a while, vanish and are installed again.
    Churn(Churn),
    /// Connections that send a byte a second, beside agents that do not.
    Slow(Slow),
    /// Finds what a server takes and offers a multiple of it; what becomes of both sides, and of the time after.
    Overload(super::overload::Overload),
    /// Starts a server, measures what `fleet-supervisor plan` counts with, and writes the figures to a file.
    Calibrate(Calibrate),
    /// One worker process alone: CPU or instructions for an exchange and for a request, and memory for a known host.
    Worker(super::worker::Options),
    /// Starts a gateway and its peers (nginx, HAProxy, node, hyper), measures them in alternated rounds with one client
    /// and prints ratios.
    Compare(super::compare::Options),
}

/// Options of every scenario.
#[derive(Clone, Debug, Args)]
pub(super) struct Common {
    /// Server addresses, https://HOST[:PORT], separated by commas; hosts use them in turn.
    #[arg(long, value_delimiter = ',', required = true)]
    pub(super) server: Vec<String>,
    /// Resolve the server's name for every connection, as osquery does, and try its addresses in turn; through the
    /// system's resolver, which costs this program a thread and a query each.
    #[arg(long)]
    pub(super) resolve_each: bool,
    /// Source addresses: a list, ranges (127.0.0.2-127.0.0.50) or blocks (127.9.0.0/24). Toward loopback 64 from
    /// 127.0.0.2 on, and more when one source would need more than 14,000 ports toward one server address.
    #[arg(long)]
    pub(super) source: Option<String>,
    /// Certificates that the server's is checked against, PEM.
    #[arg(long)]
    pub(super) ca: Option<PathBuf>,
    /// Check neither certificate nor signature.
    #[arg(long)]
    pub(super) insecure: bool,
    /// Send the same X25519 key share in every handshake: saves this program CPU, costs the server as much.
    #[arg(long)]
    pub(super) one_key_share: bool,
    /// TLS versions to offer.
    #[arg(long, value_enum, default_value = "both")]
    pub(super) tls: Versions,
    /// File that holds the enroll secret.
    #[arg(long)]
    pub(super) enroll_secret_file: Option<PathBuf>,
    /// The enroll secret. Prefer the file or the environment: arguments are visible to everybody.
    #[arg(
        long,
        env = "FLEET_LOADTEST_ENROLL_SECRET",
        hide_env_values = true,
        conflicts_with = "enroll_secret_file"
    )]
    pub(super) enroll_secret: Option<String>,
    /// Use /api/osquery/… instead of /api/v1/osquery/….
    #[arg(long)]
    pub(super) unversioned: bool,
    /// Hosts follow from it: the same seed gives the same hosts.
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// Threads, each with a runtime and a descriptor table of its own; 0 is as many as the descriptors need.
    #[arg(long, visible_alias = "processes", default_value_t = 0)]
    pub(super) threads: usize,
    /// Pid of the server's first process: CPU and memory of it and its descendants are reported.
    #[arg(long)]
    pub(super) server_tree: Vec<u32>,
    /// Pids of server processes.
    #[arg(long, value_delimiter = ',')]
    pub(super) server_pids: Vec<u32>,
    /// Print the report as JSON, or write it to FILE beside the tables.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub(super) json: Option<PathBuf>,
    /// Write the report as one page with plots, which needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
}

/// What `exchange` sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ExchangeRoute {
    /// Distributed read with nothing due, of an enrolled host.
    Read,
    /// Config, of an enrolled host.
    Config,
    /// A read to a server that knows no enrolment.
    Raw,
}

/// Options of `exchange`.
#[derive(Clone, Debug, Args)]
pub(super) struct Exchange {
    /// Common options.
    #[command(flatten)]
    pub(super) common: Common,
    /// Exchanges at the same time.
    #[arg(long, default_value_t = 16)]
    pub(super) connections: u32,
    /// Measured seconds for each server.
    #[arg(long, default_value_t = 30)]
    pub(super) seconds: u64,
    /// Seconds of one round; with --compare, rounds alternate.
    #[arg(long, default_value_t = 5)]
    pub(super) round: u64,
    /// What to send.
    #[arg(long, value_enum, default_value = "read")]
    pub(super) route: ExchangeRoute,
    /// Another server to measure in the same run, such as nginx with a static answer (see peers/nginx.sh).
    #[arg(long)]
    pub(super) compare: Option<String>,
    /// What the report calls it.
    #[arg(long, default_value = "peer")]
    pub(super) compare_name: String,
    /// CA file of the other server; default: the same.
    #[arg(long)]
    pub(super) compare_ca: Option<PathBuf>,
    /// Pid of the other server's first process.
    #[arg(long)]
    pub(super) compare_tree: Vec<u32>,
}

/// Options of `calibrate`.
#[derive(Clone, Debug, Args)]
pub(super) struct Calibrate {
    /// The program to measure: fleet-supervisor, a release build.
    #[arg(long, value_name = "PATH")]
    pub(super) server_binary: PathBuf,
    /// File to write, JSON; without it the figures are printed only.
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
    /// A further flag for the servers, such as --server-flag=--mysql_address=HOST:PORT; may be given several times.
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    pub(super) server_flag: Vec<String>,
    /// Measured seconds of each step.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(super) seconds: u64,
    /// Exchanges at the same time.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) connections: u32,
    /// Hosts to enroll at most; fewer when that takes more than six times --seconds.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) hosts: u32,
    /// Idle connections to hold.
    #[arg(long, default_value_t = 8_000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    pub(super) idle_connections: u32,
    /// A sentence that belongs beside the figures, such as what else ran on the machine; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(super) note: Vec<String>,
}

impl Common {
    /// Parsed and resolved `--server`.
    pub(super) fn targets(&self) -> anyhow::Result<Vec<Arc<Target>>> {
        self.server
            .iter()
            .map(|url| {
                let target = Target::parse(url)?;
                Ok(Arc::new(if self.resolve_each {
                    target.resolving_each()
                } else {
                    target
                }))
            })
            .collect()
    }

    /// Where connections come from.
    pub(super) fn sources(&self, targets: &[Arc<Target>], sockets: u32) -> anyhow::Result<Sources> {
        match &self.source {
            Some(text) => Sources::parse(text).context("--source"),
            None => Ok(Sources::default_for(targets, sockets)),
        }
    }

    /// How connections are made, with `ca` in place of `--ca`.
    pub(super) fn dialer(&self, sources: &Sources, ca: Option<&PathBuf>) -> anyhow::Result<Dialer> {
        let trust = match ca.or(self.ca.as_ref()) {
            _ if self.insecure => Trust::Nothing,
            Some(path) => Trust::CaFile(path.clone()),
            None => anyhow::bail!("give --ca FILE, or --insecure to check nothing"),
        };
        let key_shares = if self.one_key_share {
            KeyShares::One
        } else {
            KeyShares::Fresh
        };
        let tls = client_config_with(&trust, self.tls, key_shares)?;
        Ok(Dialer::new(tls, sources.clone()))
    }

    /// The agents' flags.
    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        let secret = match (&self.enroll_secret_file, &self.enroll_secret) {
            (Some(path), _) => std::fs::read_to_string(path)
                .with_context(|| format!("read enroll secret {}", path.display()))?
                .trim()
                .to_owned(),
            (None, Some(secret)) => secret.clone(),
            (None, None) => String::new(),
        };
        let mut settings = Settings::new(Secret::new(secret));
        if self.unversioned {
            settings.paths = Paths::fleet_unversioned();
        }
        Ok(settings)
    }

    /// Threads for that many sockets at a time: each has the limit of open files for itself.
    pub(super) fn threads_for(&self, sockets: u32) -> usize {
        /// Descriptors that a thread needs besides.
        const OTHERS: u64 = 200;
        let each = raise_descriptor_limit().saturating_sub(OTHERS).max(1);
        match self.threads {
            0 => usize::try_from(u64::from(sockets).div_ceil(each).max(1)).unwrap_or(1),
            threads => threads,
        }
    }
}
