//! `peer-hyper`: what an ordinary Rust server costs, to measure the gateway beside.
//!
//! hyper 1 on tokio-rustls with aws-lc-rs and jemalloc; one single-threaded runtime and one SO_REUSEPORT socket for each
//! worker. Every POST is read to its end and answered with a static object. It knows no hosts and keeps nothing.

mod serve;
mod tls;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::Context as _;
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use serve::Worker;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A static answer from hyper on tokio-rustls.
#[derive(Debug, Parser)]
#[command(name = "peer-hyper", version)]
struct Options {
    /// Port on 127.0.0.1.
    #[arg(long)]
    port: u16,
    /// Certificate chain, PEM.
    #[arg(long)]
    cert: PathBuf,
    /// Private key, PEM.
    #[arg(long)]
    key: PathBuf,
    /// Threads, each with a runtime and a listening socket of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// Keep connections for further requests; without it every answer closes.
    #[arg(long)]
    keepalive: bool,
    /// TLS versions to take.
    #[arg(long, value_enum, default_value = "both")]
    tls: tls::Versions,
    /// Which suite is taken.
    #[arg(long, value_enum, default_value = "shipped")]
    suites: tls::Suites,
    /// TLS 1.3 session tickets after each handshake; 2 is what rustls does by itself.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=8))]
    tickets: u8,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // With fewer descriptors it holds fewer connections, and the load generator says so.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let config = tls::server_config(&options)?;
    let workers: Vec<Worker> = (0..options.workers)
        .map(|_| {
            let address = (Ipv4Addr::LOCALHOST, options.port).into();
            Worker::bind(address, Arc::clone(&config), options.keepalive)
        })
        .collect::<Result<_, _>>()
        .with_context(|| format!("listen on port {}", options.port))?;
    println!("pid={}", std::process::id());
    let threads = workers
        .into_iter()
        .map(|worker| thread::Builder::new().spawn(move || worker.run()))
        .collect::<Result<Vec<_>, _>>()
        .context("start a thread")?;
    for thread in threads {
        thread
            .join()
            .unwrap_or_else(|_| anyhow::bail!("a worker panicked"))?;
    }
    Ok(())
}
