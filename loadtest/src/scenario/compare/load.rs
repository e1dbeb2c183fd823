//! The client: one thread, a closed loop, the same toward every server.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::super::calibrate::steps;
use super::super::procfs::{self, Sample};
use super::super::report::Servers;
use super::super::tally::{as_f64, histogram, micros, ratio};
use super::contestant::Contestant;
use crate::client::{DEADLINE, Dialer};
use crate::connection::Connection;
use crate::target::Target;
use crate::verdict::{self, Failure};

/// From a round's start until it is measured.
const WARM_UP: Duration = Duration::from_millis(300);
/// Longest wait for connections that are to be kept.
const OPEN_LIMIT: Duration = Duration::from_secs(20);
/// After a failure: a server that is down must not make a busy loop.
const PAUSE: Duration = Duration::from_millis(20);
/// Between the last connection and the look at memory.
const SETTLE: Duration = Duration::from_secs(1);
/// Time between two looks.
pub(super) const LOOK: Duration = Duration::from_millis(250);
/// Different texts of failures that are kept.
const FAILURES_MAX: usize = 20;

/// What clients saw.
#[derive(Debug)]
pub(super) struct Seen {
    /// From the start of an exchange or request to its end.
    pub(super) latency_us: Histogram<u64>,
    /// By text.
    pub(super) failures: BTreeMap<String, u64>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            latency_us: histogram(),
            failures: BTreeMap::new(),
        }
    }
}

impl Seen {
    /// Adds another.
    pub(super) fn merge(&mut self, other: &Self) {
        // Same bounds: adding cannot fail.
        let _ = self.latency_us.add(&other.latency_us);
        for (text, count) in &other.failures {
            self.fail(text.clone(), *count);
        }
    }

    fn fail(&mut self, text: String, count: u64) {
        let is_new = !self.failures.contains_key(&text);
        let text = if is_new && self.failures.len() >= FAILURES_MAX {
            "others".to_owned()
        } else {
            text
        };
        *self.failures.entry(text).or_default() += count;
    }
}

/// One measured round of one server.
#[derive(Debug)]
pub(super) struct Round {
    /// Ended a second.
    pub(super) per_s: f64,
    /// CPU of all processes of the server for each.
    pub(super) cost_us: f64,
    /// CPU of this process, of one core.
    pub(super) generator_percent: f64,
    /// Latencies and failures.
    pub(super) seen: Seen,
}

struct Work {
    dialer: Arc<Dialer>,
    target: Arc<Target>,
    requests: Arc<[Vec<u8>]>,
    is_kept: bool,
    is_over: AtomicBool,
    is_measured: AtomicBool,
    /// Tasks whose first answer has come.
    ready: AtomicU64,
    done: AtomicU64,
    seen: Mutex<Seen>,
}

/// Exchanges, or requests on kept connections, as fast as they go; `show` is told the rate.
pub(super) async fn round(
    server: &Contestant,
    connections: u32,
    is_kept: bool,
    length: Duration,
    mut show: impl FnMut(f64),
) -> anyhow::Result<Round> {
    let work = Arc::new(Work {
        dialer: server.crowd.dialer.clone(),
        target: server.crowd.target.clone(),
        requests: server.requests(is_kept),
        is_kept,
        is_over: false.into(),
        is_measured: false.into(),
        ready: 0.into(),
        done: 0.into(),
        seen: Mutex::default(),
    });
    let mut tasks = JoinSet::new();
    for index in 0..connections {
        tasks.spawn(run(work.clone(), usize::try_from(index).unwrap_or(0)));
    }
    wait_for(&work.ready, connections, OPEN_LIMIT, server.name).await?;
    tokio::time::sleep(WARM_UP).await;
    work.is_measured.store(true, Ordering::Relaxed);
    let begin = Look::now(server, &work);
    let until = begin.at + length;
    let mut last = (begin.at, begin.done);
    while Instant::now() < until {
        tokio::time::sleep(LOOK.min(until - Instant::now())).await;
        let now = (Instant::now(), work.done.load(Ordering::Relaxed));
        show(ratio(now.1 - last.1, (now.0 - last.0).as_secs_f64()));
        last = now;
    }
    let end = Look::now(server, &work);
    work.is_measured.store(false, Ordering::Relaxed);
    work.is_over.store(true, Ordering::Relaxed);
    while let Some(end) = tasks.join_next().await {
        end?;
    }
    let seen = std::mem::take(&mut *work.seen.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(begin.until(&end, seen))
}

/// Waits until so many connections are ready. Fails when they are not in time: with fewer, what is measured is another
/// load than the one that the report names.
async fn wait_for(
    ready: &AtomicU64,
    wanted: u32,
    limit: Duration,
    server: &str,
) -> anyhow::Result<()> {
    let until = Instant::now() + limit;
    while ready.load(Ordering::Relaxed) < u64::from(wanted) {
        anyhow::ensure!(
            Instant::now() < until,
            "{server}: {} of {wanted} connections had an answer within {} s",
            ready.load(Ordering::Relaxed),
            limit.as_secs_f64()
        );
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Counters at one moment.
struct Look {
    server: Vec<Sample>,
    own_us: u64,
    done: u64,
    at: Instant,
}

impl Look {
    /// Always in the same order, so that what it takes falls out of the difference.
    fn now(server: &Contestant, work: &Work) -> Self {
        Self {
            own_us: procfs::sample(std::process::id()).map_or(0, |sample| sample.cpu_us),
            server: server.watch.sample(),
            done: work.done.load(Ordering::Relaxed),
            at: Instant::now(),
        }
    }

    fn until(&self, end: &Self, seen: Seen) -> Round {
        let seconds = (end.at - self.at).as_secs_f64();
        let count = end.done - self.done;
        let servers = Servers::between("", &self.server, &end.server, count, seconds);
        Round {
            per_s: ratio(count, seconds),
            cost_us: servers.cpu_us_per_exchange,
            generator_percent: ratio(end.own_us - self.own_us, seconds * 10_000.0),
            seen,
        }
    }
}

async fn run(work: Arc<Work>, index: usize) {
    let mut number = index;
    let mut is_first = true;
    while !work.is_over.load(Ordering::Relaxed) {
        let mut from = Instant::now();
        let source = work.dialer.sources.next();
        let opening = Connection::open(&work.target, source, &work.dialer.tls);
        let mut connection = match timeout(DEADLINE, opening).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(failure)) => {
                work.fail(&failure).await;
                continue;
            }
            Err(_) => {
                work.fail(&Failure::Timeout).await;
                continue;
            }
        };
        loop {
            let Some(request) = work.requests.get(number % work.requests.len().max(1)) else {
                return;
            };
            number = number.wrapping_add(1);
            let answer = timeout(DEADLINE, ask(&mut connection, request)).await;
            match answer.unwrap_or(Err(Failure::Timeout)) {
                Ok(is_kept) => {
                    work.end(from);
                    if std::mem::take(&mut is_first) {
                        work.ready.fetch_add(1, Ordering::Relaxed);
                    }
                    if work.is_kept && !is_kept {
                        work.fail(&Failure::Closed).await;
                        break;
                    }
                }
                Err(failure) => {
                    work.fail(&failure).await;
                    break;
                }
            }
            if !work.is_kept || work.is_over.load(Ordering::Relaxed) {
                break;
            }
            from = Instant::now();
        }
        connection.close();
    }
}

/// One request; whether the connection stays. What an agent takes for a failure is one.
async fn ask(connection: &mut Connection, request: &[u8]) -> Result<bool, Failure> {
    connection.send(request).await?;
    let response = connection.receive().await?;
    verdict::judge(&response.body)?;
    Ok(!response.says_close())
}

impl Work {
    fn end(&self, from: Instant) {
        self.done.fetch_add(1, Ordering::Relaxed);
        if self.is_measured.load(Ordering::Relaxed) {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.latency_us.saturating_record(micros(from.elapsed()));
        }
    }

    async fn fail(&self, failure: &Failure) {
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.fail(failure.to_string(), 1);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Memory of a server's processes for each held connection, bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// Growth of resident memory.
    pub(super) rss: f64,
    /// Growth of its share, pages of several processes divided among them.
    pub(super) pss: f64,
}

/// Opens connections, uses each once and holds them. The first fifth pays for what is made at the first use.
pub(super) async fn hold(server: &Contestant, connections: u32) -> anyhow::Result<Memory> {
    let key = server.keys.first().map(String::as_str).unwrap_or_default();
    let first = (connections / 5).max(1);
    let mut held = steps::open(&server.crowd, key, first).await?;
    tokio::time::sleep(SETTLE).await;
    let begin = server.watch.sample();
    let rest = connections.saturating_sub(first).max(1);
    held.extend(steps::open(&server.crowd, key, rest).await?);
    tokio::time::sleep(SETTLE).await;
    let end = server.watch.sample();
    // Not before the look at memory.
    drop(held);
    Ok(Memory {
        rss: growth(&begin, &end, |sample| sample.rss_bytes) / f64::from(rest),
        pss: growth(&begin, &end, |sample| sample.pss_bytes) / f64::from(rest),
    })
}

/// Bytes by which processes grew. One that gave memory back meanwhile counts as unchanged: what it freed was not there
/// for connections, and must not make them cheaper.
fn growth(begin: &[Sample], end: &[Sample], part: fn(&Sample) -> u64) -> f64 {
    let grown = end.iter().map(|end| {
        let begin = begin.iter().find(|begin| begin.pid == end.pid);
        part(end).saturating_sub(begin.map_or(0, part))
    });
    as_f64(grown.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(pid: u32, rss_bytes: u64) -> Sample {
        Sample {
            pid,
            name: String::new(),
            cpu_us: 0,
            rss_bytes,
            anonymous_bytes: 0,
            pss_bytes: 0,
            descriptors: 0,
        }
    }

    #[test]
    fn what_one_process_frees_does_not_hide_what_another_takes() {
        let begin = [sample(1, 900), sample(2, 100)];
        let end = [sample(1, 500), sample(2, 350), sample(3, 50)];
        let grown = growth(&begin, &end, |sample| sample.rss_bytes);
        assert!((grown - 300.0).abs() < 1e-9, "{grown}");
    }

    #[tokio::test]
    async fn too_few_connections_are_no_round() {
        let ready = AtomicU64::new(2);
        let limit = Duration::from_millis(30);
        wait_for(&ready, 2, limit, "peer").await.unwrap();
        let error = wait_for(&ready, 3, limit, "peer").await.unwrap_err();
        let text = "peer: 2 of 3 connections had an answer within 0.03 s";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn kinds_of_failures_are_bounded() {
        let mut seen = Seen::default();
        for number in 0..1000 {
            seen.fail(format!("error {number}"), 1);
        }
        assert!(seen.failures.len() <= FAILURES_MAX + 1);
        assert_eq!(seen.failures.values().sum::<u64>(), 1000);
    }
}
