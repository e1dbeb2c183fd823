//! The hosts of one lane and what they do next: a heap of due turns, and a task for each turn under way.
//!
//! Owns hosts and heap. Invariant: a host's thread has at most one turn under way or in the heap.

use std::cmp::Ordering as Order;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fleet_protocol::agent::{LogType, Route};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::lane::{PHASES, Shared, TICK};
use super::tally::{Tally, as_f64, as_u64};
use crate::agent::{Agent, Exchange, Observer};
use crate::client::DEADLINE;
use crate::host::Release;
use crate::lines::{self, Oddity};
use crate::schedule::Intervals;
use crate::verdict::Object;

/// A read that waited this long for an answer without queries was held by the server on purpose, where that is to be
/// expected: a gateway holds reads for three quarters of `osquery.distributed_hold` (10 s) and more, and anything
/// shorter may as well be a slow answer.
const HELD_MIN: Duration = Duration::from_secs(7);

/// Counts exchanges by the phase in which they were due; one for all lanes.
pub(super) struct Recorder {
    pub(super) shared: Arc<Shared>,
    /// Reads may be held: those that [`waited_for_nothing`] are counted apart.
    holds: bool,
    tallies: Mutex<[Tally; PHASES]>,
}

impl Recorder {
    pub(super) fn new(shared: &Arc<Shared>, holds: bool) -> Arc<Self> {
        Arc::new(Self {
            shared: shared.clone(),
            holds,
            tallies: Mutex::default(),
        })
    }

    /// The counts so far; they begin again at nothing.
    pub(super) fn take(&self) -> [Tally; PHASES] {
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *tallies)
    }
}

impl Observer for Recorder {
    fn observe(&self, exchange: &Exchange, intended_at: Instant) {
        let shared = &self.shared;
        Shared::count(&shared.exchanges);
        if !exchange.is_success() {
            Shared::count(&shared.failures);
        }
        let is_held = self.holds && waited_for_nothing(exchange);
        let latency = exchange.ended_at - intended_at.min(exchange.started_at);
        let latency = (!is_held).then_some(latency);
        shared.window.record(latency, exchange.is_success());
        let phase = shared.marks.phase(intended_at);
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        match tallies.get_mut(phase) {
            Some(tally) if is_held => tally.record_held(exchange, intended_at),
            Some(tally) => tally.record(exchange, intended_at),
            None => {}
        }
    }
}

/// Whether a read was held until its hold ran out. One that work cut short cannot be told from a slow one.
fn waited_for_nothing(exchange: &Exchange) -> bool {
    let has_queries = |answer: &Object| {
        let queries = answer.get("queries").and_then(Value::as_object);
        queries.is_some_and(|queries| !queries.is_empty())
    };
    exchange.route == Route::Read
        && exchange.waited >= HELD_MIN
        && exchange
            .verdict
            .as_ref()
            .is_ok_and(|answer| !has_queries(answer))
}

/// One host of the run.
pub(super) struct Member {
    pub(super) agent: Arc<Agent>,
    /// Log lines produced so far.
    lines: AtomicU64,
    /// Log lines that the server took.
    pub(super) delivered: AtomicU64,
    /// Enrolled, configured, first details delivered.
    is_ready: AtomicBool,
    started_at: std::sync::OnceLock<Instant>,
}

impl Member {
    pub(super) fn of(agent: Arc<Agent>) -> Arc<Self> {
        Arc::new(Self {
            agent,
            lines: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            is_ready: AtomicBool::new(false),
            started_at: std::sync::OnceLock::new(),
        })
    }
}

/// When a thread's next turn begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Pace {
    /// At intended times, one interval apart: a slow server gets the load all the same, and its delay is seen.
    Grid,
    /// An interval after the last turn's end, as osquery does; for servers that hold reads open.
    Agent,
}

/// What all hosts of a run have in common.
#[derive(Clone, Debug)]
pub(super) struct Habits {
    pub(super) intervals: Intervals,
    pub(super) pace: Pace,
    /// Time between two lines of a host; `None` for no lines.
    pub(super) line_spacing: Option<Duration>,
    pub(super) odd_per_mille: u32,
}

impl Habits {
    /// Of agents that pace themselves as osquery does and have nothing to log.
    pub(super) fn without_logs(intervals: Intervals) -> Self {
        Self {
            intervals,
            pace: Pace::Agent,
            line_spacing: None,
            odd_per_mille: 0,
        }
    }
}

/// The threads of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thread {
    /// The main thread, once; the others follow when it is through.
    Start,
    Config,
    Read,
    Log,
}

/// A turn in the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    at: Instant,
    member: usize,
    thread: Thread,
}

impl Ord for Due {
    /// The earliest is the greatest, as a max-heap needs it.
    fn cmp(&self, other: &Self) -> Order {
        other
            .at
            .cmp(&self.at)
            .then_with(|| other.member.cmp(&self.member))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

/// Turns that tasks want to be made next.
#[derive(Default)]
struct Next {
    turns: Mutex<Vec<Due>>,
    notify: Notify,
}

/// The hosts of one lane.
pub(super) struct Population {
    members: Vec<Arc<Member>>,
    habits: Arc<Habits>,
    shared: Arc<Shared>,
    heap: BinaryHeap<Due>,
    next: Arc<Next>,
}

impl Population {
    /// Hosts that do not live yet.
    pub(super) fn new(members: Vec<Arc<Member>>, habits: Habits, shared: Arc<Shared>) -> Self {
        Self {
            members,
            habits: Arc::new(habits),
            shared,
            heap: BinaryHeap::new(),
            next: Arc::default(),
        }
    }

    /// Has these threads of a host make their first turn at `at`.
    pub(super) fn begin_at(&mut self, member: usize, threads: &[Thread], at: Instant) {
        if let Some(member) = self.members.get(member) {
            let _ = member.started_at.set(at);
        }
        self.heap
            .extend(threads.iter().map(|&thread| Due { at, member, thread }));
    }

    /// Has these threads of all hosts begin one host after the other, evenly over `ramp` from `begin` on.
    pub(super) fn begin_evenly(&mut self, threads: &[Thread], begin: Instant, ramp: Duration) {
        let hosts = self.members.len();
        for member in 0..hosts {
            let part = as_f64(as_u64(member)) / as_f64(as_u64(hosts));
            self.begin_at(member, threads, begin + ramp.mul_f64(part));
        }
    }

    /// Makes all turns at their time until told to stop, then waits for those under way.
    pub(super) async fn live(mut self) {
        while !self.shared.is_stopped() {
            let fresh = std::mem::take(
                &mut *self
                    .next
                    .turns
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner),
            );
            self.heap.extend(fresh);
            let now = Instant::now();
            while let Some(due) = self.heap.peek().copied().filter(|due| due.at <= now) {
                self.heap.pop();
                self.turn(due);
            }
            let wake_at = self
                .heap
                .peek()
                .map_or(now + TICK, |due| due.at.min(now + TICK));
            tokio::select! {
                () = tokio::time::sleep_until(wake_at) => {}
                () = self.next.notify.notified() => {}
            }
        }
        // What is under way ends within an agent's deadline.
        let deadline = Instant::now() + DEADLINE + Duration::from_secs(1);
        while self.shared.in_flight.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
            tokio::time::sleep(TICK).await;
        }
    }

    fn turn(&self, due: Due) {
        let Some(member) = self.members.get(due.member).cloned() else {
            return;
        };
        let (habits, shared, next) = (self.habits.clone(), self.shared.clone(), self.next.clone());
        shared.in_flight.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let turns = turn(&member, &habits, &shared, due).await;
            shared.in_flight.fetch_sub(1, Ordering::Relaxed);
            let mut waiting = next.turns.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.extend(turns);
            drop(waiting);
            next.notify.notify_one();
        });
    }
}

/// Makes one turn; gives the turns that follow from it.
async fn turn(member: &Member, habits: &Habits, shared: &Shared, due: Due) -> Vec<Due> {
    let after = |thread: Thread, at: Instant| Due {
        at,
        member: due.member,
        thread,
    };
    match due.thread {
        Thread::Start => {
            member.agent.start_round(due.at).await;
            let now = Instant::now();
            // The other threads begin once the main thread is through.
            vec![
                after(Thread::Config, due.at.max(now) + habits.intervals.config),
                after(Thread::Read, now),
                after(Thread::Log, next_log_at(member, habits, now).await),
            ]
        }
        Thread::Config => {
            let round = member.agent.config_round(due.at).await;
            let at = next_at(habits.pace, due.at, round.is_success, round.wait);
            vec![after(Thread::Config, at)]
        }
        Thread::Read => {
            let round = member.agent.read_round(due.at).await;
            let is_well = round.is_success && round.write != Some(false);
            if is_well && !member.is_ready.swap(true, Ordering::Relaxed) {
                Shared::count(&shared.ready);
            }
            let at = next_at(habits.pace, due.at, is_well, round.wait);
            vec![after(Thread::Read, at)]
        }
        Thread::Log => {
            log_turn(member, habits, shared, due.at).await;
            let at = next_log_at(member, habits, due.at.max(Instant::now())).await;
            vec![after(Thread::Log, at)]
        }
    }
}

/// The next intended time: on the grid while all is well, else a wait from now, as the agent does.
fn next_at(pace: Pace, intended_at: Instant, is_well: bool, wait: Duration) -> Instant {
    match pace {
        Pace::Grid if is_well => intended_at + wait,
        Pace::Grid | Pace::Agent => Instant::now() + wait,
    }
}

/// The logger thread's next turn: a period from `now` when lines wait, else at its tick after the next line.
async fn next_log_at(member: &Member, habits: &Habits, now: Instant) -> Instant {
    let has_rest = member.agent.buffered_lines(LogType::Result).await > 0
        || member.agent.buffered_lines(LogType::Status).await > 0;
    if has_rest {
        now + habits.intervals.log
    } else {
        log_at(member, habits, now)
    }
}

/// The first tick of the logger thread, after `now`, at which a line waits. Ticks without lines send nothing, so they
/// need not be made.
fn log_at(member: &Member, habits: &Habits, now: Instant) -> Instant {
    /// For hosts that never log.
    const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
    let started_at = *member.started_at.get().unwrap_or(&now);
    let Some(spacing) = habits.line_spacing else {
        return now + FAR;
    };
    let line_at = line_time(member, spacing);
    let from = line_at.max(now - started_at);
    let period = habits.intervals.log.as_secs_f64();
    let ticks = (from.as_secs_f64() / period).floor() + 1.0;
    started_at + Duration::from_secs_f64(ticks * period)
}

/// When the host's next line is produced, since its start. The first comes within one spacing, differently by host.
fn line_time(member: &Member, spacing: Duration) -> Duration {
    let phase = member.agent.host().number(4) % 1000;
    let lines = u32::try_from(member.lines.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
    let offset = spacing.mul_f64(super::tally::as_f64(phase) / 1000.0);
    spacing.saturating_mul(lines) + offset
}

async fn log_turn(member: &Member, habits: &Habits, shared: &Shared, intended_at: Instant) {
    let agent = &member.agent;
    let at = crate::unix_now();
    let started_at = *member.started_at.get().unwrap_or(&intended_at);
    let age = intended_at.saturating_duration_since(started_at);
    while habits
        .line_spacing
        .is_some_and(|spacing| line_time(member, spacing) <= age)
    {
        let number = member.lines.fetch_add(1, Ordering::Relaxed);
        if number % 10 == 9 {
            let line = lines::status_line(agent.host(), at, number);
            agent.buffer_line(LogType::Status, line).await;
        } else {
            let line = lines::result_line(agent.host(), at, number);
            agent.buffer_line(LogType::Result, line).await;
        }
    }
    if fastrand::u32(0..1000) < habits.odd_per_mille {
        add_oddity(agent, at).await;
    }
    let round = agent.log_round(intended_at).await;
    let delivered = u64::try_from(round.delivered).unwrap_or(0);
    shared.lines.fetch_add(delivered, Ordering::Relaxed);
    member.delivered.fetch_add(delivered, Ordering::Relaxed);
}

async fn add_oddity(agent: &Agent, at: Duration) {
    let index = fastrand::usize(..Oddity::ALL.len());
    let Some(oddity) = Oddity::ALL.get(index) else {
        return;
    };
    match oddity.result_lines(agent.host(), at, 0) {
        Some(lines) if lines.is_empty() => {
            agent.log(LogType::Result, &[]).await;
        }
        Some(lines) => {
            for line in lines {
                agent.buffer_line(LogType::Result, line).await;
            }
        }
        None => {
            let old = agent.host().with_release(Release::OLD);
            let line = lines::status_line(&old, at, 0);
            agent.buffer_line(LogType::Status, line).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tally::{Phase, READ_HELD};
    use super::*;
    use crate::verdict::{Failure, judge};

    fn read(waited_ms: u64, answer: &str) -> Exchange {
        let waited = Duration::from_millis(waited_ms);
        let ended_at = Instant::now();
        Exchange {
            route: Route::Read,
            verdict: judge(answer.as_bytes()),
            status: 200,
            headers: Vec::new(),
            body: answer.into(),
            connections: 1,
            is_resent: false,
            waited,
            sent_bytes: 0,
            started_at: ended_at - waited,
            ended_at,
        }
    }

    fn count(phase: &Phase, route: &str) -> u64 {
        let row = phase.routes.iter().find(|row| row.route == route);
        row.map_or(0, |row| row.exchanges)
    }

    #[test]
    fn only_reads_that_waited_for_nothing_are_held() {
        assert!(waited_for_nothing(&read(7500, "{}")));
        assert!(waited_for_nothing(&read(7000, r#"{"queries":{}}"#)));
        assert!(!waited_for_nothing(&read(6999, "{}")), "slow");
        let work = read(8000, r#"{"queries":{"q":"SELECT 1"}}"#);
        assert!(!waited_for_nothing(&work), "cut short");
        let mut other = read(8000, "{}");
        other.route = Route::Config;
        assert!(!waited_for_nothing(&other));
        let mut failed = read(8000, "{}");
        failed.verdict = Err(Failure::Closed);
        assert!(!waited_for_nothing(&failed));
    }

    #[test]
    fn slow_reads_are_in_the_sum_where_reads_may_be_held() {
        let recorder = Recorder::new(&Arc::new(Shared::default()), true);
        for exchange in [
            read(9000, "{}"),
            read(3000, "{}"),
            read(9000, r#"{"queries":{"q":"SELECT 1"}}"#),
        ] {
            recorder.observe(&exchange, exchange.started_at);
        }
        let [tally, ..] = recorder.take();
        let phase = tally.phase("x", 1.0);
        assert_eq!(count(&phase, READ_HELD), 1);
        assert_eq!(count(&phase, "all"), 2);
        let all = phase.routes.last().unwrap();
        assert!(all.latency_ms.p50 > 2900.0, "{all:?}");
    }

    #[test]
    fn nothing_is_held_where_no_read_may_be() {
        let recorder = Recorder::new(&Arc::new(Shared::default()), false);
        let exchange = read(9000, "{}");
        recorder.observe(&exchange, exchange.started_at);
        let [tally, ..] = recorder.take();
        assert_eq!(count(&tally.phase("x", 1.0), "all"), 1);
    }
}
