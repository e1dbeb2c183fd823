//! A steady load of simulated agents that a test injects faults into, and the books of what became of their lines.
//!
//! ```no_run
//! # use fleet_tests::{gateway::Gateway, steady_load::under_load};
//! let gateway = Gateway::start();
//! let verdict = under_load(&gateway, |load| {
//!     load.fault("worker: SIGKILL", |_| {
//!         // inject it, and mend it again
//!     });
//! });
//! verdict.assert_none_refused();
//! ```
//!
//! Agents are osquery's but for their intervals, which are short, and for their log backoff, which is capped so that a
//! test sees them come back.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fleet_loadtest::agent::{Agent, Exchange, Observer, Settings};
use fleet_loadtest::client::Dialer;
use fleet_loadtest::host::Host;
use fleet_loadtest::schedule::Intervals;
use fleet_loadtest::target::{Sources, Target};
use fleet_loadtest::{lines, tls, unix_now};
use fleet_protocol::agent::{LogType, Route};
use fleet_protocol::secret::Secret;

use crate::gateway::Gateway;
use crate::ledger::{self, Books, Logged, Seen, Verdict};
use crate::wait;

/// For the load to be well: beyond what agents' own backoffs take.
const WELL_DEADLINE: Duration = Duration::from_secs(120);

/// What the load is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    pub hosts: u32,
    /// Lines that a host writes before each turn of its logger.
    pub lines: u64,
    pub intervals: Intervals,
    /// `logger_tls_backoff_max`, and the longest wait between enrolments.
    pub backoff_max: Duration,
    /// An agent's patience, which osquery fixes at 16 s.
    pub deadline: Duration,
    /// Certificates that agents trust, where it is not the gateway's own.
    pub trust: Option<PathBuf>,
    /// Where agents connect to instead of the gateway's address: something that leads there.
    pub through: Option<IpAddr>,
}

impl Default for Plan {
    /// About 100 exchanges a second, half of them with lines: enough to see a gap of 50 ms, and little enough for a
    /// machine that does other things.
    fn default() -> Self {
        Self {
            hosts: 60,
            lines: 3,
            intervals: Intervals {
                config: Duration::from_secs(4),
                config_after_failure: Duration::from_secs(1),
                read: Duration::from_secs(2),
                log: Duration::from_secs(1),
                read_attempts_max: 3,
            },
            backoff_max: Duration::from_secs(3),
            deadline: fleet_loadtest::client::DEADLINE,
            trust: None,
            through: None,
        }
    }
}

/// One agent and its books.
struct Member {
    agent: Agent,
    log_type: LogType,
    notes: Arc<Notes>,
    logged: Mutex<Logged>,
}

/// What all agents' exchanges are written down in, and how often the last log request of this one was sent.
struct Notes {
    seen: Arc<Mutex<Vec<Seen>>>,
    sends: AtomicU32,
}

impl Observer for Notes {
    fn observe(&self, exchange: &Exchange, _intended_at: tokio::time::Instant) {
        if exchange.route == Route::Log {
            let sends = 1 + u32::from(exchange.is_resent);
            self.sends.store(sends, Ordering::Relaxed);
        }
        let failure = exchange.failure().map(|failure| {
            let detail = failure.detail().unwrap_or_default().to_owned();
            (failure.kind(), detail)
        });
        self.seen.lock().unwrap().push(Seen {
            route: exchange.route,
            started_at: exchange.started_at.into_std(),
            ended_at: exchange.ended_at.into_std(),
            status: exchange.status,
            is_empty: exchange.body.is_empty(),
            failure,
        });
    }
}

#[derive(Default)]
struct Stage {
    /// No new lines; what is held is still sent.
    is_last_call: AtomicBool,
    is_over: AtomicBool,
}

/// A running load. Its agents live on a thread of their own.
pub struct Load {
    members: Arc<Vec<Member>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    dialer: Arc<Dialer>,
    stage: Arc<Stage>,
    thread: Option<JoinHandle<()>>,
    settled_at: Instant,
    fault: String,
    injected_at: Vec<Instant>,
}

/// What may be asked while a fault is in force.
pub struct Fault<'a> {
    load: &'a Load,
    at: Instant,
}

/// Runs `faults` beside a load that has settled. Then the books must hold, whatever the faults were: nothing that was
/// acknowledged is lost, nothing is stored more often than it was sent, and every agent is served again.
pub fn under_load(gateway: &Gateway, faults: impl FnOnce(&mut Load)) -> Verdict {
    let mut load = Load::settled(gateway, Plan::default());
    faults(&mut load);
    load.finish(gateway)
}

impl Load {
    /// Starts agents that enroll and go on until the end, and waits until all of them are at work. They go where the
    /// gateway is now: a test that starts the supervisor again needs a gateway on a fixed port. In a namespace if the
    /// caller is in one.
    pub fn settled(gateway: &Gateway, plan: Plan) -> Self {
        let mut load = Self::start(gateway, plan);
        load.settle();
        load
    }

    fn start(gateway: &Gateway, plan: Plan) -> Self {
        let seed = fastrand::u64(..);
        println!("seed of the load's hosts: {seed}");
        let own = || gateway.state("tls/cert.pem");
        let trust = tls::Trust::CaFile(plan.trust.clone().unwrap_or_else(own));
        let config = tls::client_config(&trust, tls::Versions::Both).unwrap();
        let mut target = Target::parse(&format!("https://{}", gateway.address)).unwrap();
        if let Some(through) = plan.through {
            target.address.set_ip(through);
        }
        let target = Arc::new(target);
        let sources = Sources::default_for(std::slice::from_ref(&target), plan.hosts);
        let mut dialer = Dialer::new(config, sources);
        dialer.deadline = plan.deadline;
        let dialer = Arc::new(dialer);
        let mut settings = Settings::new(Secret::new(gateway.secret()));
        settings.intervals = plan.intervals;
        settings.log_backoff_max = plan.backoff_max;
        settings.enroll_interval_max = plan.backoff_max;
        let settings = Arc::new(settings);
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let members = (0..plan.hosts).map(|index| {
            let host = Host::new(seed, index);
            let notes = Arc::new(Notes {
                seen: seen.clone(),
                sends: AtomicU32::new(0),
            });
            let agent = Agent::new(host, settings.clone(), dialer.clone(), target.clone());
            let log_type = LogType::ALL[index as usize % LogType::ALL.len()];
            Member {
                agent: agent.with_observer(notes.clone()),
                log_type,
                notes,
                logged: Mutex::new(Logged {
                    identifier: host.uuid(),
                    log_type,
                    first: 0,
                    sends: Vec::new(),
                    acknowledged: 0,
                    held: 0,
                }),
            }
        });
        let members: Arc<Vec<Member>> = Arc::new(members.collect());
        let stage = Arc::<Stage>::default();
        let thread = {
            let (members, stage) = (members.clone(), stage.clone());
            std::thread::spawn(move || live(&members, &stage, &plan))
        };
        Self {
            members,
            seen,
            dialer,
            stage,
            thread: Some(thread),
            settled_at: Instant::now(),
            fault: "none".into(),
            injected_at: Vec::new(),
        }
    }

    /// Waits until every host is enrolled and has lines acknowledged, and all is well for a while.
    fn settle(&mut self) {
        wait::until_within(WELL_DEADLINE, "every host logs", || {
            let is_at_work = |member: &Member| member.logged.lock().unwrap().acknowledged > 0;
            self.members.iter().all(is_at_work).then_some(())
        });
        self.settled_at = Instant::now();
        self.wait_until_well(self.settled_at, Duration::MAX);
    }

    /// Notes that a fault begins, runs `harm`, which injects it and mends it again, and waits until agents are served as
    /// before. A fault may come more than once: the table has one row for the load.
    pub fn fault<T>(&mut self, name: &str, harm: impl FnOnce(&Fault<'_>) -> T) -> T {
        name.clone_into(&mut self.fault);
        let at = Instant::now();
        self.injected_at.push(at);
        let result = harm(&Fault { load: self, at });
        let slow = ledger::slow_limit(&self.seen.lock().unwrap(), self.settled_at, at);
        self.wait_until_well(Instant::now(), slow.max(ledger::SLOW_MAX));
        result
    }

    /// Exchanges since `since` that failed, by kind and text.
    fn failures_since(&self, since: Instant) -> Vec<(Route, String)> {
        let seen = self.seen.lock().unwrap();
        let failed = seen.iter().filter(|seen| seen.ended_at >= since);
        failed
            .filter_map(|seen| {
                let (kind, detail) = seen.failure.as_ref()?;
                Some((seen.route, format!("{kind}: {detail}")))
            })
            .collect()
    }

    /// Ends the load: agents write no more lines, and are given time to deliver what they hold. Then the row is printed,
    /// and the books must hold.
    pub fn finish(mut self, gateway: &Gateway) -> Verdict {
        self.stage.is_last_call.store(true, Ordering::Relaxed);
        wait::until_or(WELL_DEADLINE, || {
            let has_all = |member: &Member| {
                let logged = member.logged.lock().unwrap();
                logged.acknowledged == logged.sends.len() && logged.held == 0
            };
            self.members.iter().all(has_all).then_some(())
        });
        self.end();
        let books = Books {
            fault: std::mem::take(&mut self.fault),
            settled_at: self.settled_at,
            injected_at: std::mem::take(&mut self.injected_at),
            refused: self.dialer.shut_out.refused.load(Ordering::Relaxed),
            cut: self.dialer.shut_out.cut.load(Ordering::Relaxed),
            seen: std::mem::take(&mut self.seen.lock().unwrap()),
            hosts: self
                .members
                .iter()
                .map(|member| member.logged.lock().unwrap().clone())
                .collect(),
        };
        let verdict = books.judge(gateway);
        println!("{verdict}");
        verdict.row().publish();
        verdict.assert_books_hold();
        verdict
    }

    fn wait_until_well(&self, since: Instant, slow: Duration) {
        let found = wait::until_or(WELL_DEADLINE, || {
            let seen = self.seen.lock().unwrap();
            let mut later: Vec<&Seen> = seen
                .iter()
                .filter(|seen| seen.started_at >= since)
                .collect();
            later.sort_by_key(|seen| seen.started_at);
            ledger::streak(&later, slow).map(drop)
        });
        let failures = self.failures_since(since);
        let last = failures.len().saturating_sub(5);
        assert!(
            found.is_some(),
            "{}: not well again within {WELL_DEADLINE:?}; {} failures, the last {:?}",
            self.fault,
            failures.len(),
            &failures[last..]
        );
    }

    fn end(&mut self) {
        self.stage.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

impl Fault<'_> {
    /// Exchanges since its beginning that failed, by kind and text.
    pub fn failures(&self) -> Vec<(Route, String)> {
        self.load.failures_since(self.at)
    }

    /// Exchanges of a kind that began after it and succeeded.
    pub fn successes(&self, route: Route) -> usize {
        self.successes_since(self.at, route)
    }

    /// The same, of those that began later.
    pub fn successes_since(&self, since: Instant, route: Route) -> usize {
        let seen = self.load.seen.lock().unwrap();
        let good = seen.iter().filter(|seen| {
            seen.route == route && seen.started_at >= since && seen.failure.is_none()
        });
        good.count()
    }

    /// Waits until agents have been served some more.
    pub fn wait_for_successes(&self) {
        let now = Instant::now();
        let served = || {
            let seen = self.load.seen.lock().unwrap();
            let later = seen.iter().filter(|seen| seen.started_at >= now);
            later.filter(|seen| seen.failure.is_none()).count()
        };
        wait::until("agents are served", || {
            (served() >= self.load.members.len()).then_some(())
        });
    }
}

/// The agents' threads, until the load is over.
fn live(members: &Arc<Vec<Member>>, stage: &Arc<Stage>, plan: &Plan) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut agents = tokio::task::JoinSet::new();
        for index in 0..members.len() {
            let (members, stage, plan) = (members.clone(), stage.clone(), plan.clone());
            // Agents have no jitter of their own: what begins together stays together.
            let begin_at = plan
                .intervals
                .log
                .mul_f64(index as f64 / members.len() as f64);
            agents.spawn(async move {
                tokio::time::sleep(begin_at).await;
                members[index].live(&stage, &plan).await;
            });
        }
        while let Some(end) = agents.join_next().await {
            end.unwrap();
        }
    });
}

impl Member {
    async fn live(&self, stage: &Stage, plan: &Plan) {
        let now = tokio::time::Instant::now;
        while !self.agent.start_round(now()).await.is_success && !stage.is_over() {
            nap(stage, plan.intervals.config_after_failure).await;
        }
        let config = async {
            while !stage.is_over() {
                let round = self.agent.config_round(now()).await;
                nap(stage, round.wait).await;
            }
        };
        let read = async {
            while !stage.is_over() {
                let round = self.agent.read_round(now()).await;
                nap(stage, round.wait).await;
            }
        };
        let log = async {
            while !stage.is_over() {
                self.log(stage, plan).await;
                nap(stage, plan.intervals.log).await;
            }
        };
        tokio::join!(config, read, log);
        self.agent.close().await;
    }

    /// A turn of the logger, and what it means to the books.
    async fn log(&self, stage: &Stage, plan: &Plan) {
        let lines = if stage.is_last_call.load(Ordering::Relaxed) {
            0
        } else {
            plan.lines
        };
        let written = self.logged.lock().unwrap().sends.len() as u64;
        for number in written..written + lines {
            let line = match self.log_type {
                LogType::Result => lines::result_line(self.agent.host(), unix_now(), number),
                LogType::Status => lines::status_line(self.agent.host(), unix_now(), number),
            };
            self.agent.buffer_line(self.log_type, line).await;
        }
        let held = {
            let mut logged = self.logged.lock().unwrap();
            logged.sends.resize((written + lines) as usize, 0);
            logged.sends.len() - logged.acknowledged
        };
        self.notes.sends.store(0, Ordering::Relaxed);
        let round = self.agent.log_round(tokio::time::Instant::now()).await;
        let sends = self.notes.sends.load(Ordering::Relaxed);
        let still_held = self.agent.buffered_lines(self.log_type).await;
        // osquery deletes after a success, and then what it sent, and nothing otherwise.
        assert_eq!(held - round.delivered, still_held, "the agent's buffer");
        let mut logged = self.logged.lock().unwrap();
        let from = logged.acknowledged;
        let batch = held.min(1024);
        for count in logged.sends.iter_mut().skip(from).take(batch) {
            *count += sends;
        }
        logged.acknowledged += round.delivered;
        logged.held = still_held;
    }
}

impl Stage {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// Sleeps, but not beyond the end.
async fn nap(stage: &Stage, time: Duration) {
    let until = tokio::time::Instant::now() + time;
    while !stage.is_over() && tokio::time::Instant::now() < until {
        let left = until - tokio::time::Instant::now();
        tokio::time::sleep(left.min(Duration::from_millis(100))).await;
    }
}
