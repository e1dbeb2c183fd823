//! The life of the process: start message, store, everything else, ready, drain.
//!
//! Owner of the channel to the supervisor and of the drain signal. Invariants: nothing is served before store and
//! directory are there, but the operator sockets answer, and the supervisor hears a sign of life each second; the end of
//! the channel means that the supervisor is gone and drains like its order. Signals are ignored: whoever stops the whole
//! group wants the workers to finish first, and only the supervisor knows when they have.

use std::io::Read as _;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use fleet_child::confine;
use fleet_protocol::config::Config;
use fleet_protocol::frame::{self, Decoder};
use fleet_protocol::ids::BootNonce;
use fleet_protocol::limits::{DRAIN_DEADLINE, STATS_INTERVAL};
use fleet_protocol::sandbox::Sandbox;
use fleet_protocol::slot::{EXIT_FATAL, FromChild, Gateway, StartControl, ToChild};
use fleet_protocol::stats::{ControlStats, Dependency};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use crate::assembly::{self, Assembly};
use crate::store::{self, Store, Tell};
use crate::{Prepared, inherit, journal, peer, reach, trace};

/// The supervisor speaks first, at once.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// A supervisor that does not read must not stop us.
const REPORT_DEADLINE: Duration = Duration::from_secs(2);
/// Blocking threads that are still busy at the end are left behind.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(2);
/// Blocking calls: carve files, and little else.
const BLOCKING_THREADS_MAX: usize = 32;
/// Files and statements do not need a core each; workers do.
const THREADS: std::ops::RangeInclusive<usize> = 2..=4;

/// Runs the control process to its end. Its first message is heard before it has threads, so that what it gives up then it
/// gives up for all of them.
pub(crate) fn run(threads: fn(bool)) -> ExitCode {
    let fatal = ExitCode::from(u8::try_from(EXIT_FATAL).unwrap_or(1));
    let channel = match inherit::channel() {
        Ok(channel) => channel,
        Err(error) => {
            trace::plain(&format!(
                "{error}; this command is started by `fleet-supervisor start`, not by hand"
            ));
            return fatal;
        }
    };
    let (start, rest) = match first_message(&channel) {
        Ok(found) => found,
        Err(reason) => {
            trace::plain(&reason);
            return ExitCode::FAILURE;
        }
    };
    trace::start(&start.config.logging);
    if let Some(uid) = start.worker_uid {
        peer::set_workers(uid);
    }
    threads(false);
    let sandbox = confine(&start);
    threads(true);
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            trace::plain(&format!("cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let end = runtime.block_on(live(channel, rest, *start, sandbox));
    runtime.shutdown_timeout(SHUTDOWN_DEADLINE);
    match end {
        End::Drained => ExitCode::SUCCESS,
        End::Broken => ExitCode::FAILURE,
        End::Fatal => fatal,
    }
}

/// What comes behind a message.
type Rest = (Decoder, BytesMut);

fn first_message(channel: &StdStream) -> Result<(Box<StartControl>, Rest), String> {
    let failed = |error: &dyn std::fmt::Display| format!("channel to the supervisor: {error}");
    channel
        .set_nonblocking(false)
        .and_then(|()| channel.set_read_timeout(Some(START_DEADLINE)))
        .map_err(|error| failed(&error))?;
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
    let mut chunk = [0; 4096];
    let mut reader = channel;
    loop {
        match decoder.decode(&mut input).map_err(|error| failed(&error))? {
            Some(ToChild::StartControl(start)) => return Ok((start, (decoder, input))),
            Some(_) => return Err("expected the start message, got another one".into()),
            None => {}
        }
        let length = reader.read(&mut chunk).map_err(|error| failed(&error))?;
        if length == 0 {
            return Err("expected the start message, got the end of the channel".into());
        }
        input.extend_from_slice(chunk.get(..length).unwrap_or_default());
    }
}

/// From here on it has its directory, its logs and its stores.
fn confine(start: &StartControl) -> Result<Sandbox, confine::Error> {
    let config = &start.config;
    let logs = journal::directories(&config.filesystem, &start.state_dir);
    let is_root = start.confine.user.is_none() && nix::unistd::geteuid().is_root();
    let reach = reach::reach(config, &start.state_dir, logs, is_root);
    confine::apply(&start.confine, &reach)
}

/// Brings the database up to date, beside servers that use it if it is not the embedded one.
pub(crate) fn prepare_db(
    config: &Config,
    state_dir: &Path,
    tell: Tell<'_>,
) -> Result<Prepared, String> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let opened = Store::open_as_it_is(config, state_dir).await;
        let store = opened.map_err(|error| error.to_string())?;
        let prepared = async {
            Ok(Prepared {
                migrations: store.prepare(tell).await?,
                rows: store.fill(store.company(), tell).await?,
            })
        };
        let result = prepared.await;
        store.close().await;
        result.map_err(|error: store::Error| error.to_string())
    })
}

fn runtime() -> std::io::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Builder::new_multi_thread()
        .worker_threads(cores.clamp(*THREADS.start(), *THREADS.end()))
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("control")
        .enable_all()
        .build()
}

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// As ordered.
    Drained,
    /// Something that must run stopped; starting again may help.
    Broken,
    /// Starting again would not help; the supervisor was told why.
    Fatal,
}

async fn live(
    channel: StdStream,
    (decoder, input): Rest,
    start: StartControl,
    sandbox: Result<Sandbox, confine::Error>,
) -> End {
    let _ignored = ignore_signals();
    let stream = channel
        .set_nonblocking(true)
        .and_then(|()| UnixStream::from_std(channel));
    let (stream, reporter) = match stream {
        Ok(stream) => {
            let (read, write) = stream.into_split();
            (read, Arc::new(Reporter(Mutex::new(write))))
        }
        Err(error) => {
            trace::plain(&format!("channel to the supervisor: {error}"));
            return End::Broken;
        }
    };
    let sandbox = match sandbox {
        Ok(sandbox) => sandbox,
        Err(error) => {
            let reason = error.to_string();
            tracing::error!(reason, "control cannot be confined");
            reporter.report(&FromChild::Fatal { reason }).await;
            return End::Fatal;
        }
    };
    let orders = Orders {
        stream,
        input,
        decoder,
    };
    let (gateway, gateways) = watch::channel(Gateway::default());
    let (drain, drains) = watch::channel(None);
    tokio::spawn(orders.obey(gateway, drain));
    serve(start, sandbox, &reporter, gateways, drains).await
}

/// Signals are caught and left; what a terminal or systemd sends to the whole group is for the supervisor.
fn ignore_signals() -> Vec<Signal> {
    [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ]
    .into_iter()
    .filter_map(|kind| signal(kind).ok())
    .collect()
}

async fn serve(
    start: StartControl,
    sandbox: Sandbox,
    reporter: &Arc<Reporter>,
    gateways: watch::Receiver<Gateway>,
    mut drains: watch::Receiver<Option<Drain>>,
) -> End {
    let boot = BootNonce(fastrand::u64(1..));
    let (stats, latest) = watch::channel(starting_stats());
    let reports = tokio::spawn(report_forever(Arc::clone(reporter), latest));
    let assembled = tokio::select! {
        assembled = assembly::assemble(&start, boot, gateways, &stats) => assembled,
        _ = drains.wait_for(Option::is_some) => {
            tracing::info!("drained before the start was complete");
            return End::Drained;
        }
    };
    let mut assembly = match assembled {
        Ok(assembly) => assembly,
        Err(reason) => {
            tracing::error!(%reason, "cannot serve");
            reporter.report(&FromChild::Fatal { reason }).await;
            return End::Fatal;
        }
    };
    reporter.report(&FromChild::Ready { boot, sandbox }).await;
    tracing::info!(store = assembly.store_location(), "control serves");
    let broken = tokio::select! {
        name = assembly.watch(&stats) => Some(name),
        _ = drains.wait_for(Option::is_some) => None,
    };
    let drain = *drains.borrow();
    let time = drain.map_or(DRAIN_DEADLINE, |drain| drain.time);
    if drain.is_some_and(|drain| drain.is_orphaned) {
        // They drain as well; without control what they still have to tell would keep them until their deadline, and the
        // next supervisor with them.
        let _ = timeout(WORKERS_FIRST, assembly.workers_gone()).await;
    }
    if let Some(name) = broken {
        tracing::error!(
            task = name,
            "a task that must run has stopped; control ends"
        );
    }
    finish(assembly, time).await;
    reports.abort();
    match broken {
        Some(_) => End::Broken,
        None => End::Drained,
    }
}

/// Orphaned workers are waited for so long; more would keep those of another supervisor, when an upgrade was under way, with
/// this control.
const WORKERS_FIRST: Duration = Duration::from_secs(3);

async fn finish(assembly: Assembly, time: Duration) {
    tracing::info!(seconds = time.as_secs_f32(), "draining");
    if timeout(time, assembly.finish()).await.is_err() {
        tracing::warn!("the time to drain ran out; unanswered batches are sent again");
    } else {
        tracing::info!("drained");
    }
}

fn starting_stats() -> ControlStats {
    ControlStats {
        dependencies: vec![Dependency {
            name: "store".into(),
            is_healthy: false,
            detail: "starting".into(),
        }],
        rss_bytes: fleet_child::memory::resident_bytes(),
        ..ControlStats::default()
    }
}

/// How control is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Drain {
    time: Duration,
    /// Nobody said so: the supervisor is gone.
    is_orphaned: bool,
}

/// What the supervisor says.
struct Orders {
    stream: OwnedReadHalf,
    input: BytesMut,
    decoder: Decoder,
}

impl Orders {
    /// `None` at the end of the channel, however it came.
    async fn next(&mut self) -> Option<ToChild> {
        loop {
            match self.decoder.decode(&mut self.input) {
                Ok(Some(message)) => return Some(message),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, "the supervisor's message does not decode");
                    return None;
                }
            }
            if !matches!(self.stream.read_buf(&mut self.input).await, Ok(1..)) {
                return None;
            }
        }
    }

    async fn obey(mut self, gateway: watch::Sender<Gateway>, drain: watch::Sender<Option<Drain>>) {
        loop {
            match self.next().await {
                Some(ToChild::Gateway(latest)) => {
                    gateway.send_replace(*latest);
                }
                Some(ToChild::Drain { deadline_ms }) => {
                    let time = Duration::from_millis(u64::from(deadline_ms));
                    drain.send_replace(Some(Drain {
                        time,
                        is_orphaned: false,
                    }));
                }
                Some(ToChild::Reload(reload)) => fleet_child::log::set(&reload.config.logging),
                Some(
                    ToChild::StartWorker(_)
                    | ToChild::StartControl(_)
                    | ToChild::Limits(_)
                    | ToChild::Listen(_)
                    | ToChild::Sweep(_)
                    | ToChild::Tickets(_)
                    | ToChild::Withdraw(_),
                ) => tracing::warn!("a message that is not for control is ignored"),
                None => {
                    drain.send_if_modified(|drain| {
                        let is_news = drain.is_none();
                        drain.get_or_insert(Drain {
                            time: DRAIN_DEADLINE,
                            is_orphaned: true,
                        });
                        is_news
                    });
                    // The receivers must not take the sender's end for news.
                    drain.closed().await;
                    return;
                }
            }
        }
    }
}

/// The way to the supervisor.
struct Reporter(Mutex<OwnedWriteHalf>);

impl Reporter {
    /// Failure means that the supervisor is gone, which the other direction notices.
    async fn report(&self, message: &FromChild) {
        let mut bytes = BytesMut::new();
        if let Err(error) = frame::encode(message, &mut bytes) {
            tracing::error!(%error, "a report cannot be encoded");
            return;
        }
        let mut stream = self.0.lock().await;
        let _ = timeout(REPORT_DEADLINE, stream.write_all(&bytes)).await;
    }
}

async fn report_forever(reporter: Arc<Reporter>, latest: watch::Receiver<ControlStats>) {
    let mut ticks = tokio::time::interval(STATS_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let stats = Box::new(latest.borrow().clone());
        reporter.report(&FromChild::Control(stats)).await;
    }
}

#[cfg(test)]
mod tests;
