//! One simulated host's agent: its key, its threads' clients, what it has not delivered yet, and single actions.
//!
//! Owns the node key and the buffers. Invariants: one enrolment at a time; log lines and query results leave their
//! buffer only after a success; `node_invalid` erases whatever key is there, even one younger than the request.
//! The retry loops around these actions are in [`crate::rounds`].

use std::hash::{DefaultHasher, Hasher as _};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fleet_protocol::agent::{LogType, Route};
use fleet_protocol::secret::Secret;
use tokio::time::Instant;

use crate::bodies::{self, QueryOutcome};
use crate::client::{Client, Dialer};
use crate::delivery::{Distributed, Logger};
use crate::host::Host;
use crate::http::{Request, Response};
use crate::schedule::{self, Intervals, Profile};
use crate::target::Target;
use crate::verdict::{self, Failure, Verdict};

/// Where each request goes.
#[derive(Clone, Debug)]
pub struct Paths([String; Route::ALL.len()]);

impl Paths {
    /// `/api/v1/osquery/…`, as in Fleet's flagfiles.
    pub fn fleet() -> Self {
        Self(Route::ALL.map(|route| format!("/api/v1/osquery/{}", route.tail())))
    }

    /// `/api/osquery/…`, as Fleet's own agent.
    pub fn fleet_unversioned() -> Self {
        Self(Route::ALL.map(|route| format!("/api/osquery/{}", route.tail())))
    }

    /// The paths of osquery's own test server.
    pub fn osquery() -> Self {
        Self(Route::ALL.map(|route| {
            match route {
                Route::Enroll => "/enroll",
                Route::Config => "/config",
                Route::Read => "/distributed_read",
                Route::Write => "/distributed_write",
                Route::Log => "/log",
                Route::CarveBegin => "/carve_init",
                Route::CarveBlock => "/carve_block",
            }
            .to_owned()
        }))
    }

    /// The path of a route.
    pub fn of(&self, route: Route) -> &str {
        self.0.get(route.index()).map_or("/", String::as_str)
    }
}

/// The agent's flags. Defaults are osquery's, with Fleet's paths and intervals.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Endpoint flags.
    pub paths: Paths,
    /// Content of `enroll_secret_path`.
    pub enroll_secret: Secret,
    /// `tls_secret_always`: the secret stands in every URL.
    pub secret_always: bool,
    /// `logger_tls_compress`.
    pub gzip_logs: bool,
    /// `tls_accept_gzip`.
    pub accept_gzip: bool,
    /// Says `Connection: keep-alive`, which no osquery does.
    pub keep_alive: bool,
    /// `disable_reenrollment`.
    pub disable_reenrollment: bool,
    /// `tls_enroll_max_attempts`; 0 for ever.
    pub enroll_attempts_max: u32,
    /// `tls_enroll_max_interval`.
    pub enroll_interval_max: Duration,
    /// `config_tls_max_attempts`.
    pub config_attempts_max: u32,
    /// Intervals, and `distributed_tls_max_attempts`.
    pub intervals: Intervals,
    /// `logger_tls_max_lines`: results and statuses together.
    pub log_lines_max: usize,
    /// `logger_tls_max_linesize`.
    pub log_line_bytes_max: usize,
    /// `buffered_log_max`; 0 for no bound.
    pub buffered_lines_max: usize,
    /// `logger_tls_backoff_max`.
    pub log_backoff_max: Duration,
    /// All sleeps are divided by this, so that tests need not wait; 1 is osquery.
    pub sleep_divisor: u32,
}

impl Settings {
    /// osquery's defaults toward a fleet server.
    pub fn new(enroll_secret: Secret) -> Self {
        Self {
            paths: Paths::fleet(),
            enroll_secret,
            secret_always: false,
            gzip_logs: false,
            accept_gzip: false,
            keep_alive: false,
            disable_reenrollment: false,
            enroll_attempts_max: 12,
            enroll_interval_max: Duration::from_secs(600),
            config_attempts_max: 3,
            intervals: Profile::Fleet.intervals(),
            log_lines_max: 1024,
            log_line_bytes_max: 1 << 20,
            buffered_lines_max: 1_000_000,
            log_backoff_max: Duration::from_secs(3600),
            sleep_divisor: 1,
        }
    }
}

/// One logical request: what went over the wire and what the agent concluded.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Which endpoint.
    pub route: Route,
    /// The agent's conclusion. On success the object is empty for enroll, carve begin, and a config that is the last
    /// one byte for byte, which an agent does not look into either.
    pub verdict: Verdict,
    /// Status of the last answer, 0 if there was none. The agent does not look at it.
    pub status: u16,
    /// Headers of the last answer.
    pub headers: Vec<(String, String)>,
    /// Body of the last answer, inflated if the agent asked for gzip.
    pub body: Vec<u8>,
    /// Connections opened or tried.
    pub connections: u32,
    /// Sent a second time after a transport failure.
    pub is_resent: bool,
    /// From the request's last byte to the answer's; zero without an answer. What a server holds open is in it.
    pub waited: Duration,
    /// Bytes of the request's body.
    pub sent_bytes: usize,
    /// When it began.
    pub started_at: Instant,
    /// When its end was known.
    pub ended_at: Instant,
}

impl Exchange {
    /// Whether the agent goes on as if all were well.
    pub fn is_success(&self) -> bool {
        self.verdict.is_ok()
    }

    /// Why not.
    pub fn failure(&self) -> Option<&Failure> {
        self.verdict.as_ref().err()
    }

    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// Sees every exchange of an agent, also those inside retry loops.
pub trait Observer: Send + Sync {
    /// `intended_at` is when the request was due; for a retry, when the agent decided to make it.
    fn observe(&self, exchange: &Exchange, intended_at: Instant);
}

/// Sees nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn observe(&self, _exchange: &Exchange, _intended_at: Instant) {}
}

/// A simulated agent. Shared by its threads' loops; actions of different loops may run at the same time.
pub struct Agent {
    pub(crate) settings: Arc<Settings>,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) target: Arc<Target>,
    pub(crate) observer: Arc<dyn Observer>,
    host: Host,
    key: Mutex<String>,
    /// Hash of the last config that was good; 0 before.
    config_hash: AtomicU64,
    /// `distributed_interval` of that config in seconds; 0 when it had none.
    configured_read_s: AtomicU32,
    enrolling: tokio::sync::Mutex<()>,
    pub(crate) main: tokio::sync::Mutex<Client>,
    pub(crate) config: tokio::sync::Mutex<Client>,
    pub(crate) distributed: tokio::sync::Mutex<Distributed>,
    pub(crate) logger: tokio::sync::Mutex<Logger>,
}

impl Agent {
    /// An agent that has not enrolled.
    pub fn new(
        host: Host,
        settings: Arc<Settings>,
        dialer: Arc<Dialer>,
        target: Arc<Target>,
    ) -> Self {
        Self {
            settings,
            dialer,
            target,
            observer: Arc::new(NoObserver),
            host,
            key: Mutex::default(),
            config_hash: AtomicU64::new(0),
            configured_read_s: AtomicU32::new(0),
            enrolling: tokio::sync::Mutex::default(),
            main: tokio::sync::Mutex::default(),
            config: tokio::sync::Mutex::default(),
            distributed: tokio::sync::Mutex::default(),
            logger: tokio::sync::Mutex::default(),
        }
    }

    /// The same with an observer.
    #[must_use]
    pub fn with_observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self
    }

    /// The machine.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The key in the agent's database; empty when not enrolled.
    pub fn node_key(&self) -> String {
        self.lock_key().clone()
    }

    /// Sets the key, as one that was kept from an earlier life.
    pub fn set_node_key(&self, key: impl Into<String>) {
        *self.lock_key() = key.into();
    }

    /// One enrolment attempt, even if there is a key. On success the key is kept.
    pub async fn enroll(&self) -> Exchange {
        let _one_at_a_time = self.enrolling.lock().await;
        let mut client = self.main.lock().await;
        self.enroll_once(&mut client, Instant::now()).await
    }

    /// One config request, after an enrolment series if there is no key.
    pub async fn config(&self) -> Exchange {
        let mut client = self.config.lock().await;
        self.config_once(&mut client, Instant::now()).await
    }

    /// One distributed read, after an enrolment series if there is no key. What it hands out is not run.
    pub async fn read(&self) -> Exchange {
        let mut distributed = self.distributed.lock().await;
        self.read_once(&mut distributed.client, Instant::now())
            .await
    }

    /// One distributed write of exactly these results, which are not kept.
    pub async fn write(&self, outcomes: &[QueryOutcome]) -> Exchange {
        let mut distributed = self.distributed.lock().await;
        self.write_once(&mut distributed.client, outcomes, Instant::now())
            .await
    }

    /// One log request of exactly these lines, which are not kept. Lines are JSON objects.
    pub async fn log(&self, log_type: LogType, lines: &[Vec<u8>]) -> Exchange {
        let lines: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
        self.log_slices(log_type, &lines).await
    }

    /// The same for lines that lie elsewhere.
    pub async fn log_slices(&self, log_type: LogType, lines: &[&[u8]]) -> Exchange {
        let mut logger = self.logger.lock().await;
        self.log_once(&mut logger.client, log_type, lines, Instant::now())
            .await
    }

    /// Sends any body to a route, with the headers of this agent, and judges the answer by that route's rule.
    pub async fn post(&self, route: Route, body: Vec<u8>) -> Exchange {
        let mut client = self.main.lock().await;
        let key = self.node_key();
        self.request(&mut client, route, &key, body, false, Instant::now())
            .await
    }

    /// Closes every held socket, as at the end of the process.
    pub async fn close(&self) {
        self.main.lock().await.close();
        self.config.lock().await.close();
        self.distributed.lock().await.client.close();
        self.logger.lock().await.client.close();
    }

    pub(crate) async fn enroll_once(&self, client: &mut Client, intended_at: Instant) -> Exchange {
        let body = bodies::enroll(&self.host, self.settings.enroll_secret.reveal());
        self.request(client, Route::Enroll, "", body, false, intended_at)
            .await
    }

    pub(crate) async fn config_once(&self, client: &mut Client, intended_at: Instant) -> Exchange {
        let (key, intended_at) = self.key_or_enroll(client, intended_at).await;
        let body = bodies::key_only(&key);
        self.request(client, Route::Config, &key, body, false, intended_at)
            .await
    }

    pub(crate) async fn read_once(&self, client: &mut Client, intended_at: Instant) -> Exchange {
        let (key, intended_at) = self.key_or_enroll(client, intended_at).await;
        let body = bodies::key_only(&key);
        self.request(client, Route::Read, &key, body, false, intended_at)
            .await
    }

    pub(crate) async fn write_once(
        &self,
        client: &mut Client,
        outcomes: &[QueryOutcome],
        intended_at: Instant,
    ) -> Exchange {
        let (key, intended_at) = self.key_or_enroll(client, intended_at).await;
        let body = bodies::write(&key, outcomes, self.host.release().has_stats);
        self.request(client, Route::Write, &key, body, false, intended_at)
            .await
    }

    pub(crate) async fn log_once(
        &self,
        client: &mut Client,
        log_type: LogType,
        lines: &[&[u8]],
        intended_at: Instant,
    ) -> Exchange {
        let (key, intended_at) = self.key_or_enroll(client, intended_at).await;
        let is_gzip = self.settings.gzip_logs;
        let body = if is_gzip {
            bodies::log_gzip(&key, log_type, lines)
        } else {
            bodies::log(&key, log_type, lines)
        };
        self.request(client, Route::Log, &key, body, is_gzip, intended_at)
            .await
    }

    /// One logical request.
    pub(crate) async fn request(
        &self,
        client: &mut Client,
        route: Route,
        key: &str,
        body: Vec<u8>,
        is_gzip: bool,
        intended_at: Instant,
    ) -> Exchange {
        let has_header =
            self.host.release().has_key_header && route != Route::Enroll && !key.is_empty();
        let request = Request {
            target: self.request_target(route),
            user_agent: self.host.release().user_agent,
            node_key: has_header.then(|| key.to_owned()),
            is_gzip,
            accept_gzip: self.settings.accept_gzip,
            keep_alive: self.settings.keep_alive,
            body,
        };
        let started_at = Instant::now();
        let outcome = client.request(&self.dialer, &self.target, &request).await;
        let (verdict, response) = match outcome.result {
            Ok(response) => self.conclude(route, response),
            Err(failure) => (Err(failure), Response::default()),
        };
        let exchange = Exchange {
            route,
            verdict,
            status: response.status,
            headers: response.headers,
            body: response.body,
            connections: outcome.connections,
            is_resent: outcome.is_resent,
            waited: outcome.waited,
            sent_bytes: request.body.len(),
            started_at,
            ended_at: Instant::now(),
        };
        self.observer.observe(&exchange, intended_at);
        exchange
    }

    /// Judges the answer by its route's rule, and does to the key what follows from it.
    fn conclude(&self, route: Route, mut response: Response) -> (Verdict, Response) {
        if self.settings.accept_gzip && response.header("content-encoding") == Some("gzip") {
            response.body = response.inflated();
        }
        let verdict = match route {
            Route::Enroll => verdict::judge_enroll(&response.body).map(|key| {
                self.set_node_key(key);
                verdict::Object::new()
            }),
            Route::CarveBegin => {
                verdict::judge_carve_begin(&response.body).map(|_| verdict::Object::new())
            }
            Route::CarveBlock => verdict::judge_carve_block(&response.body),
            Route::Config => self.judge_config(&response.body),
            Route::Read | Route::Write | Route::Log => verdict::judge(&response.body),
        };
        if verdict == Err(Failure::NodeInvalid) && !self.settings.disable_reenrollment {
            self.lock_key().clear();
        }
        (verdict, response)
    }

    /// A config is parsed when it differs from the last good one.
    fn judge_config(&self, body: &[u8]) -> Verdict {
        let mut hasher = DefaultHasher::new();
        hasher.write(body);
        let hash = hasher.finish().max(1);
        if self.config_hash.load(Ordering::Relaxed) == hash {
            return Ok(verdict::Object::new());
        }
        let verdict = verdict::judge(body);
        if let Ok(config) = &verdict {
            self.config_hash.store(hash, Ordering::Relaxed);
            let seconds = schedule::configured_read_s(config).unwrap_or(0);
            self.configured_read_s.store(seconds, Ordering::Relaxed);
        }
        verdict
    }

    /// Sleep between two reads: an option in the config wins over the flag, from the next sleep on.
    pub(crate) fn read_interval(&self) -> Duration {
        match self.configured_read_s.load(Ordering::Relaxed) {
            0 => self.settings.intervals.read,
            seconds => Duration::from_secs(seconds.into()),
        }
    }

    /// The key, and when the request that needs it is due. Without a key an enrolment series comes first, and the
    /// request is due when that ends; the key is still empty when it fails: the caller goes on with it.
    async fn key_or_enroll(&self, client: &mut Client, intended_at: Instant) -> (String, Instant) {
        let key = self.node_key();
        if !key.is_empty() {
            return (key, intended_at);
        }
        let _one_at_a_time = self.enrolling.lock().await;
        let mut enroll_at = intended_at;
        let mut failures = 0;
        loop {
            // Another thread may have enrolled while this one waited for the lock.
            let key = self.node_key();
            if !key.is_empty() {
                return (key, Instant::now());
            }
            if self.enroll_once(client, enroll_at).await.is_success() {
                continue;
            }
            failures += 1;
            if failures == self.settings.enroll_attempts_max {
                return (String::new(), Instant::now());
            }
            let cap = self.settings.enroll_interval_max;
            self.sleep(schedule::enroll_sleep(failures, cap)).await;
            enroll_at = Instant::now();
        }
    }

    pub(crate) async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration / self.settings.sleep_divisor.max(1)).await;
    }

    fn request_target(&self, route: Route) -> String {
        let path = self.settings.paths.of(route);
        let mut target = format!("{}{path}", self.target.prefix);
        if self.settings.secret_always {
            // Not percent-encoded, as in osquery.
            target.push_str("?enroll_secret=");
            target.push_str(self.settings.enroll_secret.reveal());
        }
        target
    }

    fn lock_key(&self) -> std::sync::MutexGuard<'_, String> {
        self.key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
