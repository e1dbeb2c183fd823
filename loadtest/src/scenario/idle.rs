//! `idle`: connections that are opened, used once and held; what each costs in memory, and how requests on some of them
//! fare meanwhile.

mod holding;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use super::kernel::KernelMemory;
use super::lane::Shared;
use super::options::Common;
use super::population::Recorder;
use super::procfs;
use super::report::{self, Report};
use super::stage::{Look, Run, Stage};
use super::steady::is_clean;
use super::tally::{as_f64, ratio};

/// Between the last preparation and the first look at memory.
const REST: Duration = Duration::from_secs(1);
/// For a run whose connections are never all tried: a day.
const OPENING_MAX: Duration = Duration::from_secs(86_400);
/// Different errors that are kept with their counts.
const ERRORS_MAX: usize = 50;

/// Options of `idle`.
#[derive(Clone, Debug, Args)]
pub(super) struct Idle {
    /// Common options.
    #[command(flatten)]
    pub(super) common: Common,
    /// Connections to hold.
    #[arg(long)]
    pub(super) connections: u32,
    /// Seconds to hold them.
    #[arg(long, default_value_t = 10)]
    pub(super) seconds: u64,
    /// Enrolled hosts behind the connections of each thread.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) hosts: u32,
    /// Connections opened at the same time by each thread.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) concurrency: u32,
    /// Connections opened in a second, by all threads together; 0: as fast as it goes.
    #[arg(long, default_value_t = 0)]
    pub(super) opening_rate: u32,
    /// Percent of the connections that make requests while all are held; the others keep a bare socket, no TLS state.
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    pub(super) active: f64,
    /// Seconds between two requests on an active connection.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub(super) interval: f64,
    /// Requests in a second on all active connections together, in place of --interval.
    #[arg(long)]
    pub(super) requests_per_s: Option<u32>,
}

impl Idle {
    /// Whether the connection with this number makes requests: evenly among all.
    fn is_active(&self, number: u32) -> bool {
        let before =
            |count: u32| (f64::from(count) * self.active.clamp(0.0, 100.0) / 100.0).floor();
        before(number.saturating_add(1)) > before(number)
    }

    fn active_connections(&self) -> f64 {
        (f64::from(self.connections) * self.active.clamp(0.0, 100.0) / 100.0).floor()
    }

    /// Time between two requests on one active connection.
    fn request_interval(&self) -> Duration {
        /// A shorter one would be a flood from one connection.
        const LEAST_S: f64 = 0.001;
        let seconds = match self.requests_per_s {
            Some(rate) if rate > 0 => self.active_connections() / f64::from(rate),
            _ => self.interval,
        };
        Duration::try_from_secs_f64(seconds.max(LEAST_S)).unwrap_or(OPENING_MAX)
    }
}

/// What lanes and main thread know of the connections.
#[derive(Default)]
struct Counts {
    /// Lanes whose hosts are enrolled.
    prepared: AtomicU64,
    /// Lanes may connect.
    may_open: AtomicBool,
    opened: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    /// Found closed while they were to be held.
    dropped: AtomicU64,
    errors: Mutex<BTreeMap<String, u64>>,
}

impl Counts {
    fn error(&self, error: String) {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        if errors.len() < ERRORS_MAX || errors.contains_key(&error) {
            *errors.entry(error).or_default() += 1;
        }
    }

    fn notes(&self) -> Vec<String> {
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        errors
            .iter()
            .map(|(error, count)| format!("{count} x {error}"))
            .collect()
    }

    /// Connections that have been tried.
    fn tried(&self) -> u64 {
        [&self.opened, &self.refused, &self.failed]
            .map(|count| count.load(Ordering::Relaxed))
            .into_iter()
            .sum()
    }
}

struct Plan {
    options: Idle,
    stage: Stage,
    counts: Counts,
    recorder: Arc<Recorder>,
}

/// Memory before the first connection or after the hold.
struct Memory {
    server: Look,
    own_bytes: u64,
    kernel: KernelMemory,
}

impl Memory {
    fn now(run: &mut Run<u64>) -> Self {
        // The kernel first: looking at a process lists its descriptors, and that costs the kernel memory for each.
        let kernel = KernelMemory::now();
        let own = procfs::cpu_and_rss(std::process::id());
        Self {
            kernel,
            own_bytes: own.map_or(0, |(_, rss_bytes)| rss_bytes),
            server: run.look(),
        }
    }
}

/// Runs the scenario; whether all connections were held to the end and no request failed.
pub(super) fn run(options: &Idle) -> anyhow::Result<bool> {
    let settings = options.common.settings()?;
    let stage = Stage::new(&options.common, settings, options.connections)?;
    let shared = Arc::new(Shared::default());
    let plan = Arc::new(Plan {
        options: options.clone(),
        stage,
        counts: Counts::default(),
        recorder: Recorder::new(&shared, false),
    });
    let mut run = Run::start(&plan.stage, shared, &plan, holding::hold)?;
    let lanes = u64::try_from(plan.stage.lanes).unwrap_or(u64::MAX);
    let counts = &plan.counts;
    let far = Instant::now() + OPENING_MAX;
    let is_prepared = || counts.prepared.load(Ordering::Relaxed) >= lanes;
    run.watch(far, |_, _| is_prepared(), |_| "enrolling".to_owned());
    run.pass(REST, "resting");
    let begin = Memory::now(&mut run);
    counts.may_open.store(true, Ordering::Relaxed);
    let wanted = u64::from(options.connections);
    run.watch(
        far,
        |_, _| counts.tried() >= wanted,
        |_| format!("opening: {} of {wanted}", counts.tried()),
    );
    let opening_s = begin.server.at().elapsed().as_secs_f64();
    run.shared.marks.begin_next(Instant::now());
    let hold = Duration::from_secs(options.seconds);
    let opened = counts.opened.load(Ordering::Relaxed);
    run.pass(hold, &format!("holding {opened}"));
    let end = Memory::now(&mut run);
    publish(&plan, run, &begin, &end, opening_s)
}

fn publish(
    plan: &Plan,
    mut run: Run<u64>,
    begin: &Memory,
    end: &Memory,
    opening_s: f64,
) -> anyhow::Result<bool> {
    let (options, counts) = (&plan.options, &plan.counts);
    run.notes.extend(counts.notes());
    run.notes.push(format!(
        "{} threads, {} source addresses",
        plan.stage.lanes,
        plan.stage.sources.len()
    ));
    let servers = run.servers("server", &begin.server, &end.server);
    let (open, mut report) = run.end("idle")?;
    let open_at_end: u64 = open.into_iter().sum();
    let wanted = u64::from(options.connections);
    report.servers = servers;
    let [opening, holding, ..] = plan.recorder.take();
    report.phases = vec![opening.phase("opening", opening_s)];
    if options.active_connections() > 0.0 {
        let seconds = as_f64(options.seconds);
        report
            .phases
            .push(holding.phase("requests while holding", seconds));
    }
    // What was dropped meanwhile takes no memory any more.
    let grown = |before: u64, after: u64| ratio(after.saturating_sub(before), as_f64(open_at_end));
    report.idle = Some(report::Held {
        wanted,
        opened: counts.opened.load(Ordering::Relaxed),
        refused_reuse: counts.refused.load(Ordering::Relaxed),
        failed: counts.failed.load(Ordering::Relaxed),
        open_at_end,
        server_bytes_per_connection: grown(begin.server.rss_bytes(), end.server.rss_bytes()),
        generator_bytes_per_connection: grown(begin.own_bytes, end.own_bytes),
    });
    findings(&mut report, plan, [begin, end], open_at_end, opening_s);
    report.publish_all(&options.common)?;
    Ok(open_at_end == wanted && report.phases.iter().all(is_clean))
}

fn findings(
    report: &mut Report,
    plan: &Plan,
    [begin, end]: [&Memory; 2],
    open_at_end: u64,
    opening_s: f64,
) {
    let opened = plan.counts.opened.load(Ordering::Relaxed);
    let each = |bytes: u64| ratio(bytes, as_f64(open_at_end));
    let grown = |of: fn(&KernelMemory) -> u64| of(&end.kernel).saturating_sub(of(&begin.kernel));
    let findings = &mut report.findings;
    findings.figure("active_connections", plan.options.active_connections());
    findings.count(
        "dropped_while_held",
        plan.counts.dropped.load(Ordering::Relaxed),
    );
    findings.figure("opening_s", opening_s);
    findings.figure("opened_per_s", ratio(opened, opening_s));
    findings.figure(
        "server_anonymous_bytes_per_connection",
        each(
            end.server
                .anonymous_bytes()
                .saturating_sub(begin.server.anonymous_bytes()),
        ),
    );
    // Both ends of a connection are in the kernel of a machine that runs both.
    findings.figure(
        "kernel_slab_bytes_per_connection",
        each(grown(|memory| memory.slab_bytes)),
    );
    findings.figure(
        "kernel_slab_unreclaimable_bytes_per_connection",
        each(grown(|memory| memory.slab_unreclaimable_bytes)),
    );
    findings.figure(
        "machine_bytes_per_connection",
        each(
            begin
                .kernel
                .available_bytes
                .saturating_sub(end.kernel.available_bytes),
        ),
    );
    findings.count("tcp_sockets_in_use", end.kernel.tcp_in_use);
    findings.count("tcp_buffer_pages", end.kernel.tcp_buffer_pages);
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        idle: Idle,
    }

    fn idle(more: &[&str]) -> Idle {
        let line = ["x", "--server=https://127.0.0.1:1", "--insecure"];
        Line::parse_from(line.iter().chain(more)).idle
    }

    #[test]
    fn active_ones_are_spread_evenly() {
        let idle = idle(&["--connections=1000", "--active=2.5"]);
        let active: Vec<u32> = (0..1000).filter(|&number| idle.is_active(number)).collect();
        assert_eq!(active.len(), 25);
        assert!(active.windows(2).all(|pair| pair[1] - pair[0] == 40));
        assert!((idle.active_connections() - 25.0).abs() < 1e-9);
    }

    #[test]
    fn a_rate_becomes_an_interval() {
        let args = ["--connections=1000", "--active=10"];
        assert_eq!(idle(&args).request_interval(), Duration::from_secs(10));
        let rate = [args[0], args[1], "--requests-per-s=50"];
        assert_eq!(idle(&rate).request_interval(), Duration::from_secs(2));
    }
}
