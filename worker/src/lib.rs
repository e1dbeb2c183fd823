//! One worker process: accept, TLS, HTTP, answer. Single-threaded; knows no SQL and no Redis.
//!
//! Everything here lives on one thread in one runtime, so what is shared is `Rc` and cells. A panic costs the connection
//! whose task it happens in.

mod accept;
mod admission;
mod answers;
mod batch;
mod body;
mod buckets;
mod buffers;
mod certificates;
mod channel;
mod client_certificate;
mod client_hello;
mod clock;
mod connection;
mod drain;
mod escape;
mod exchange;
#[cfg(test)]
mod fake_control;
mod feed;
mod holds;
mod hosts;
mod http;
mod inherit;
mod key_schedule;
mod latest_key;
mod link;
mod listening;
mod log_body;
mod negative;
mod pages;
mod phase;
mod policy;
mod queue;
mod request;
mod scan;
mod seen;
mod session;
mod state;
mod stats;
mod stream;
mod task;
mod terms;
mod ticketer;
mod tls;
mod tls_failure;
mod tunnel;
mod turns;
mod waiting;
mod window;

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fleet_child::confine::{self, Reach};
use fleet_child::{Calls, log};
use fleet_protocol::config::Logging;
use fleet_protocol::sandbox::Sandbox;
use fleet_protocol::slot::{EXIT_FATAL, FromChild, Listener, SlotLimits, StartWorker, ToChild};
use fleet_protocol::stats::ListenerStats;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::channel::Channel;

/// Bytes read from a socket at once, by whichever connection has its turn.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// For the supervisor's first message.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// What the tasks of this process share.
struct Worker {
    state: Rc<state::State>,
    /// None when TLS is ended elsewhere. A reload puts others in their place.
    tls: RefCell<Option<Rc<terms::Terms>>>,
    policy: Rc<policy::Policy>,
    clock: Rc<clock::Clock>,
    door: accept::Door,
    turns: RefCell<turns::Turns>,
    /// Handshakes wait for the next lap.
    lap: tokio::sync::Notify,
    drain: drain::Drain,
    /// In the order in which they came; those that were withdrawn until their last connection ends.
    listenings: RefCell<Vec<Rc<listening::Listening>>>,
    tunnel_path: PathBuf,
    input: RefCell<Box<[u8]>>,
    scratch: RefCell<buffers::Scratch>,
}

impl Worker {
    fn new(start: &StartWorker) -> anyhow::Result<Rc<Self>> {
        let server = &start.config.server;
        let tls = start
            .tls
            .as_ref()
            .map(|tls| terms::Terms::new(tls, &start.config))
            .transpose()?
            .map(Rc::new);
        let state = state::State::new(start);
        let allowed = *state.gate.borrow().allowed();
        let policy = policy::Policy::of(server, &state.gate)?;
        policy.set_deadlines(&allowed);
        Ok(Rc::new(Self {
            state,
            tls: RefCell::new(tls),
            policy: Rc::new(policy),
            clock: clock::Clock::new(Instant::now()),
            door: accept::Door::new(&allowed),
            turns: RefCell::default(),
            lap: tokio::sync::Notify::new(),
            drain: drain::Drain::default(),
            listenings: RefCell::default(),
            tunnel_path: start.tunnel_path.clone(),
            input: RefCell::new(vec![0; INPUT_BYTES_MAX].into_boxed_slice()),
            scratch: RefCell::default(),
        }))
    }

    /// Takes other limits; nobody who is inside is put out.
    fn set_limits(&self, limits: &SlotLimits) {
        let share = limits.allowed.share(limits.slots);
        tracing::debug!(slots = limits.slots, ?share, "limits");
        self.state.gate.borrow_mut().set(share, Instant::now());
        self.policy.set_deadlines(&share);
        self.door.resize(&share);
    }

    /// On which a connection that begins now speaks TLS.
    fn terms(&self) -> Option<Rc<terms::Terms>> {
        self.tls.borrow().clone()
    }

    /// Counts of all listeners. One that is over hands its counts to another of its address, or is reported a last time.
    fn report_listenings(&self) -> Vec<ListenerStats> {
        let mut listenings = self.listenings.borrow_mut();
        let stats = listenings.iter().map(|of| of.stats()).collect();
        let (over, kept) = std::mem::take(&mut *listenings)
            .into_iter()
            .partition::<Vec<_>, _>(|of| of.is_over());
        for of in over {
            if let Some(heir) = kept.iter().find(|heir| heir.address == of.address) {
                heir.inherit(&of);
            }
        }
        *listenings = kept;
        stats
    }
}

/// Runs this process as a worker: takes over what the supervisor passed, gives up what it does not need, serves, drains.
/// `threads` stops the threads of the process's allocator, told false, and lets them run, told true: a process that gives
/// something up has no threads then.
pub fn run(threads: fn(bool)) -> ExitCode {
    let mut inheritance = inherit::Inheritance::default();
    let started = inheritance
        .channel()
        .map_err(anyhow::Error::from)
        .and_then(|stream| {
            let mut channel = Channel::new(stream);
            match channel.read_blocking(START_DEADLINE)? {
                ToChild::StartWorker(start) => Ok((channel, start)),
                _ => anyhow::bail!("the supervisor's first message is none for a worker"),
            }
        });
    let (mut channel, start) = match started {
        Ok(started) => started,
        Err(error) => {
            // There is no channel to complain on, and no log yet.
            eprintln!("worker: {error:#}; only the supervisor can start a worker");
            return fatal_exit();
        }
    };
    init_log(&start.config.logging);
    let _span = tracing::info_span!("worker", slot = start.slot.0).entered();
    let prepared = Worker::new(&start).and_then(|worker| {
        let listeners = start.listeners.iter();
        let listeners = listeners
            .map(|listener| Ok((listener.clone(), inheritance.listener(listener)?)))
            .collect::<Result<Vec<_>, inherit::Error>>()?;
        Ok((worker, listeners))
    });
    let (worker, listeners) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            let reason = format!("{error:#}");
            tracing::error!(reason, "worker cannot serve");
            let _ = channel.write_blocking(&FromChild::Fatal { reason });
            return fatal_exit();
        }
    };
    if let Some(cpu) = start.cpu {
        pin(cpu);
    }
    threads(false);
    let sandbox = confine(&start);
    threads(true);
    let sandbox = match sandbox {
        Ok(sandbox) => sandbox,
        Err(error) => {
            let reason = error.to_string();
            tracing::error!(reason, "worker cannot be confined");
            let _ = channel.write_blocking(&FromChild::Fatal { reason });
            return fatal_exit();
        }
    };
    drop(start);
    match serve(worker, channel, listeners, sandbox) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "worker ends");
            ExitCode::FAILURE
        }
    }
}

fn serve(
    worker: Rc<Worker>,
    channel: Channel,
    listeners: Vec<(Listener, socket2::Socket)>,
    sandbox: Sandbox,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build_local(tokio::runtime::LocalOptions::default())
        .context("runtime")?;
    runtime.block_on(drain::serve(worker, channel, listeners, sandbox))
}

/// From here on it has what it holds open, and Unix sockets to control.
fn confine(start: &StartWorker) -> Result<Sandbox, confine::Error> {
    // The source of chance may open something the first time.
    let _ = aws_lc_rs::rand::fill(&mut [0; 1]);
    let reach = Reach {
        paths: Vec::new(),
        ports: Some(Vec::new()),
        sockets: Some(vec![start.link_path.clone(), start.tunnel_path.clone()]),
        calls: Calls::Worker,
    };
    confine::apply(&start.confine, &reach)
}

fn fatal_exit() -> ExitCode {
    ExitCode::from(u8::try_from(EXIT_FATAL).unwrap_or(1))
}

/// A worker that cannot be pinned still serves.
fn pin(cpu: u16) {
    let mut set = CpuSet::new();
    let pinned = set
        .set(cpu.into())
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        tracing::warn!(cpu, %error, "not pinned to its core");
    }
}

fn init_log(logging: &Logging) {
    let style = log::Style {
        is_coloured: false,
        directives: "",
        takes_environment: false,
    };
    log::init(logging, style, std::io::stderr);
    // The message of a panic may hold what a peer sent; its place does not.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "panic");
    }));
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
