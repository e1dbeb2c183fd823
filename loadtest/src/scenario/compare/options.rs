//! The command line of `compare`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::peers::Peer;
use crate::tls::Versions;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// TCP, a full handshake, one POST, close, as osquery does.
    Exchange,
    /// POST after POST on kept connections.
    Requests,
    /// Connections that were used once and are held.
    Idle,
}

/// Options of `compare`.
#[derive(Clone, Debug, Args)]
pub(in super::super) struct Options {
    /// The gateway: fleet-supervisor, a release build.
    #[arg(long, value_name = "PATH")]
    pub(super) server_binary: PathBuf,
    /// A further flag for the gateway, such as --server-flag=--tls_post_quantum=prefer; may be given several times.
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    pub(super) server_flag: Vec<String>,
    /// What it is compared with; those that are not installed are named and left out.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "nginx,haproxy,node,hyper,hyper-gateway"
    )]
    pub(super) peers: Vec<Peer>,
    /// The program peer-hyper; default: beside this program.
    #[arg(long, value_name = "PATH")]
    pub(super) hyper_binary: Option<PathBuf>,
    /// What is compared.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "exchange,requests,idle"
    )]
    pub(super) modes: Vec<Kind>,
    /// TLS versions that clients of `exchange` offer, one contest for each.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "both,1.2")]
    pub(super) tls: Vec<Versions>,
    /// Exchanges at the same time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) concurrency: u32,
    /// Connections of `requests`, one contest for each number.
    #[arg(long, value_delimiter = ',', default_value = "64,1000", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) connections: Vec<u32>,
    /// Connections to hold for `idle`.
    #[arg(long, default_value_t = 15_000, value_parser = clap::value_parser!(u32).range(10..=18_000))]
    pub(super) idle_connections: u32,
    /// Rounds of each server.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
    /// Rounds of `idle`, each with servers that were started anew.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) idle_rounds: u32,
    /// Measured seconds of a round.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(super) seconds: u64,
    /// Let the system place the processes; else servers get the first core and the client the last, if there are two.
    #[arg(long)]
    pub(super) no_pin: bool,
    /// Print the report as JSON, or write it to FILE beside the tables.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub(super) json: Option<PathBuf>,
    /// Write the report as one page with plots, which needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
}
