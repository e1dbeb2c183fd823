//! `worker`: one worker process alone, with a table of known hosts and nothing else; what an exchange and a request cost
//! it, in CPU time for tables of several sizes, or in instructions, which do not depend on who else uses the machine.

mod control;
mod instructions;
mod process;

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use fleet_protocol::agent::Route;
use futures_util::future::try_join_all;
use serde::Serialize;
use tokio::task::LocalSet;
use tokio::time::Instant;

use self::process::{Process, Under};
use super::procfs;
use super::tally::{as_f64, as_u64, ratio};
use crate::agent::Paths;
use crate::bodies;
use crate::connection::{Connection, is_open};
use crate::host::Release;
use crate::http::Request;
use crate::target::{Sources, Target};
use crate::tls::{Trust, Versions, client_config};

/// Before anything is counted: caches, pools and shared buffers get their size.
const WARM_UP: u32 = 40;
/// Exchanges at the same time while CPU time is measured.
const CONNECTIONS: u32 = 8;
/// From the end of the held connections until memory is looked at.
const RETURN: Duration = Duration::from_secs(15);
/// The source addresses' ports rest a minute after use.
const SOURCES: &str = "127.0.0.2-127.0.0.33";

/// Options of `worker`.
#[derive(Clone, Debug, Args)]
pub(super) struct Options {
    /// A program that runs a worker when it is called as `PROGRAM worker --slot 0`: fleet-supervisor, a release build.
    #[arg(long, value_name = "PATH")]
    program: PathBuf,
    /// Known hosts, one run for each number.
    #[arg(long, value_delimiter = ',', default_value = "1000,1000000")]
    hosts: Vec<u32>,
    /// Measured seconds of each step.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Connections to hold open, idle after one request each, to see what each takes.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=14_000))]
    connections: u32,
    /// Count instructions with valgrind instead of measuring time.
    #[arg(long)]
    instructions: bool,
    /// With --instructions: compare with the accepted counts in this file; more than 5 % above them is a failure.
    #[arg(long, value_name = "FILE", requires = "instructions")]
    accepted: Option<PathBuf>,
    /// With --accepted: write what was counted to the file, as the new accepted counts.
    #[arg(long, requires = "accepted")]
    accept: bool,
    /// TLS versions to offer.
    #[arg(long, value_enum, default_value = "both")]
    tls: Versions,
    /// Print the figures as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Unit {
    /// TCP, full handshake, a read with nothing due, close.
    Exchange,
    /// A read with nothing due on a kept connection.
    Request,
}

/// CPU time and memory with one size of the table.
#[derive(Clone, Debug, Serialize)]
struct Row {
    hosts: u32,
    exchange_us: f64,
    exchanges: u64,
    request_us: f64,
    requests: u64,
    rss_bytes: u64,
    bytes_per_host: f64,
    bytes_per_connection: f64,
    /// A while after all connections were closed.
    rss_after_bytes: u64,
}

/// Runs the scenario; whether nothing failed, and no count is beyond its bound.
pub(super) fn run(options: &Options) -> anyhow::Result<bool> {
    super::lane::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    if options.instructions {
        return LocalSet::new().block_on(&runtime, instructions::run(options));
    }
    let rows = LocalSet::new().block_on(&runtime, measure(options))?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        println!("{}", table(&rows));
    }
    Ok(true)
}

async fn measure(options: &Options) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &hosts in &options.hosts {
        let process = Process::start(&options.program, hosts, &Under::Nothing).await?;
        let client = Client::new(&process, options.tls)?;
        let loaded = process.sample()?;
        let mut row = Row {
            hosts,
            exchange_us: 0.0,
            exchanges: 0,
            request_us: 0.0,
            requests: 0,
            rss_bytes: loaded.rss_bytes,
            bytes_per_host: ratio(
                loaded.rss_bytes.saturating_sub(process.empty_rss_bytes),
                as_f64(u64::from(hosts)),
            ),
            bytes_per_connection: 0.0,
            rss_after_bytes: 0,
        };
        for unit in [Unit::Exchange, Unit::Request] {
            let (us, count) = client.measure(&process, unit, options.seconds).await?;
            match unit {
                Unit::Exchange => (row.exchange_us, row.exchanges) = (us, count),
                Unit::Request => (row.request_us, row.requests) = (us, count),
            }
        }
        let before = process.sample()?.rss_bytes;
        let mut held = client.hold(options.connections).await?;
        let grown = process.sample()?.rss_bytes.saturating_sub(before);
        held.retain_mut(is_open);
        row.bytes_per_connection = ratio(grown, as_f64(as_u64(held.len())));
        drop(held);
        tokio::time::sleep(RETURN).await;
        row.rss_after_bytes = process.sample()?.rss_bytes;
        process.end().await?;
        rows.push(row);
    }
    Ok(rows)
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "known hosts",
        "exchange us",
        "exchanges",
        "request us",
        "requests",
        "RSS MiB",
        "bytes a host",
        "bytes a connection",
        "RSS after, MiB",
    ]);
    for row in rows {
        table.add_row([
            row.hosts.to_string(),
            format!("{:.1}", row.exchange_us),
            row.exchanges.to_string(),
            format!("{:.2}", row.request_us),
            row.requests.to_string(),
            format!("{:.1}", as_f64(row.rss_bytes) / 1_048_576.0),
            format!("{:.0}", row.bytes_per_host),
            format!("{:.0}", row.bytes_per_connection),
            format!("{:.1}", as_f64(row.rss_after_bytes) / 1_048_576.0),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Agents of all hosts that the worker knows.
struct Client {
    target: Target,
    tls: Arc<rustls::ClientConfig>,
    sources: Sources,
    hosts: u32,
}

impl Client {
    fn new(process: &Process, versions: Versions) -> anyhow::Result<Self> {
        Ok(Self {
            target: Target::parse(&format!("https://localhost:{}", process.address.port()))?,
            tls: client_config(&Trust::CaPem(process.certificate_pem.clone()), versions)?,
            sources: Sources::parse(SOURCES)?,
            hosts: process.hosts,
        })
    }

    /// A read of some host.
    fn request(&self, keep_alive: bool) -> Request {
        let key = control::node_key(fastrand::u32(..self.hosts.max(1)));
        Request {
            target: Paths::fleet().of(Route::Read).to_owned(),
            user_agent: Release::NEWEST.user_agent,
            body: bodies::key_only(&key),
            node_key: Some(key),
            is_gzip: false,
            accept_gzip: false,
            keep_alive,
        }
    }

    async fn open(&self) -> anyhow::Result<Connection> {
        Ok(Connection::open(&self.target, self.sources.next(), &self.tls).await?)
    }

    async fn ask(&self, connection: &mut Connection, keep_alive: bool) -> anyhow::Result<()> {
        let response = connection
            .exchange(&self.request(keep_alive), &self.target.host)
            .await?;
        anyhow::ensure!(
            response.status == 200 && response.body == b"{}",
            "a read is not answered alone: {} {}",
            response.status,
            String::from_utf8_lossy(&response.body)
        );
        Ok(())
    }

    async fn exchange(&self) -> anyhow::Result<()> {
        let mut connection = self.open().await?;
        self.ask(&mut connection, false).await?;
        connection.close();
        Ok(())
    }

    /// As many as are wanted, one after the other.
    async fn perform(&self, unit: Unit, count: u32) -> anyhow::Result<()> {
        match unit {
            Unit::Exchange => {
                for _ in 0..count {
                    self.exchange().await?;
                }
            }
            Unit::Request => {
                let mut connection = self.open().await?;
                for _ in 0..count {
                    self.ask(&mut connection, true).await?;
                }
                connection.close();
            }
        }
        Ok(())
    }

    /// Connections that have been used once, without what the client needs to use them again.
    async fn hold(&self, connections: u32) -> anyhow::Result<Vec<std::net::TcpStream>> {
        let left = Cell::new(connections);
        let lanes = (0..CONNECTIONS).map(|_| async {
            let mut sockets = Vec::new();
            while left.get() > 0 {
                left.set(left.get() - 1);
                let mut connection = self.open().await?;
                self.ask(&mut connection, true).await?;
                sockets.extend(connection.into_socket());
            }
            anyhow::Ok(sockets)
        });
        Ok(try_join_all(lanes).await?.into_iter().flatten().collect())
    }

    /// CPU microseconds of the worker for each, and how many there were.
    async fn measure(
        &self,
        process: &Process,
        unit: Unit,
        seconds: u64,
    ) -> anyhow::Result<(f64, u64)> {
        self.perform(unit, WARM_UP).await?;
        let (done, until) = (Cell::new(0), Instant::now() + Duration::from_secs(seconds));
        let before = process.sample()?;
        let lanes = (0..CONNECTIONS).map(|_| async {
            match unit {
                Unit::Exchange => {
                    while Instant::now() < until {
                        self.exchange().await?;
                        done.set(done.get() + 1);
                    }
                }
                Unit::Request => {
                    let mut connection = self.open().await?;
                    while Instant::now() < until {
                        self.ask(&mut connection, true).await?;
                        done.set(done.get() + 1);
                    }
                    connection.close();
                }
            }
            anyhow::Ok(())
        });
        try_join_all(lanes).await?;
        let after: procfs::Sample = process.sample()?;
        let us = ratio(after.cpu_us - before.cpu_us, as_f64(done.get()));
        Ok((us, done.get()))
    }
}
