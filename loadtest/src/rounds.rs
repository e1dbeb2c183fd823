//! The agent's threads, one turn at a time: attempts with their sleeps, and how long to wait until the next turn.

use std::time::Duration;

use fleet_protocol::agent::{LogType, Route};
use tokio::time::Instant;

use crate::agent::{Agent, Exchange};
use crate::bodies::{self, CarveNames, QueryOutcome};
use crate::client::Client;
use crate::delivery::{Work, accept_work};
use crate::lines;
use crate::schedule::{self, ACCELERATED_READ};
use crate::tables;
use crate::verdict::{self, Failure, Object};

/// How a turn of a thread ended.
#[derive(Clone, Debug)]
pub struct Round {
    /// The last exchange succeeded, or there was nothing to send.
    pub is_success: bool,
    /// Sleep of the thread after this turn.
    pub wait: Duration,
}

/// A turn of the distributed thread.
#[derive(Clone, Debug)]
pub struct ReadRound {
    /// Of the read.
    pub is_success: bool,
    /// From the request's last byte to the answer's, of the read that succeeded; zero without one.
    pub waited: Duration,
    /// Sleep of the thread after this turn.
    pub wait: Duration,
    /// Queries that were handed out and run.
    pub queries: usize,
    /// Whether a write was due, and whether it succeeded.
    pub write: Option<bool>,
}

/// A turn of the logger thread.
#[derive(Clone, Debug, Default)]
pub struct LogRound {
    /// Lines that the server took, results and statuses.
    pub delivered: usize,
    /// Requests that failed.
    pub failures: u32,
    /// Lines that the agent dropped for want of room.
    pub purged: usize,
}

/// A carve's end.
#[derive(Debug)]
pub struct Carve {
    /// The session that the server opened; `None` when it did not.
    pub session_id: Option<String>,
    /// The names that the agent chose.
    pub names: CarveNames,
    /// Every block was sent and taken for delivered.
    pub is_complete: bool,
    /// All exchanges, the start first.
    pub exchanges: Vec<Exchange>,
}

impl Agent {
    /// Process start: enrolment if there is no key, and the first config, both on the main thread.
    pub async fn start_round(&self, intended_at: Instant) -> Round {
        let mut client = self.main.lock().await;
        self.config_attempts(&mut client, intended_at).await
    }

    /// A turn of the config thread.
    pub async fn config_round(&self, intended_at: Instant) -> Round {
        let mut client = self.config.lock().await;
        self.config_attempts(&mut client, intended_at).await
    }

    /// A turn of the distributed thread: read, run what was handed out, write all that is unsent.
    pub async fn read_round(&self, intended_at: Instant) -> ReadRound {
        let mut distributed = self.distributed.lock().await;
        let attempts_max = self.settings.intervals.read_attempts_max;
        let mut failures = 0;
        let mut due_at = intended_at;
        let (answer, waited) = loop {
            let exchange = self.read_once(&mut distributed.client, due_at).await;
            match exchange.verdict {
                Ok(answer) => break (Some(answer), exchange.waited),
                Err(_) if failures + 1 >= attempts_max => break (None, Duration::ZERO),
                Err(_) => failures += 1,
            }
            self.sleep(schedule::retry_sleep(failures)).await;
            due_at = Instant::now();
        };
        let is_success = answer.is_some();
        let work = answer.map_or_else(Work::default, |answer| accept_work(self.host(), &answer));
        if let Some(seconds) = work.accelerate_s {
            distributed.accelerated_until = Some(Instant::now() + Duration::from_secs(seconds));
        }
        for (name, sql) in &work.queries {
            let rows = tables::run(self.host(), name, sql);
            // A name is a key: a later result of the same name replaces the earlier.
            distributed.unsent.retain(|outcome| outcome.name != *name);
            distributed.unsent.push(QueryOutcome {
                name: name.clone(),
                rows,
            });
        }
        let write = if distributed.unsent.is_empty() {
            None
        } else {
            let outcomes = std::mem::take(&mut distributed.unsent);
            let is_written = self
                .write_attempts(&mut distributed.client, &outcomes)
                .await;
            if !is_written {
                distributed.unsent = outcomes;
            }
            Some(is_written)
        };
        let is_accelerated = distributed
            .accelerated_until
            .is_some_and(|until| Instant::now() < until);
        let interval = self.read_interval();
        ReadRound {
            is_success,
            waited,
            wait: if is_accelerated {
                interval.min(ACCELERATED_READ)
            } else {
                interval
            },
            queries: work.queries.len(),
            write,
        }
    }

    /// Puts a line into the log buffer.
    pub async fn buffer_line(&self, log_type: LogType, line: Vec<u8>) {
        self.logger.lock().await.buffer.push(log_type, line);
    }

    /// Lines that wait in the log buffer.
    pub async fn buffered_lines(&self, log_type: LogType) -> usize {
        self.logger.lock().await.buffer.len(log_type)
    }

    /// Results of distributed queries that no write has delivered yet.
    pub async fn unsent_results(&self) -> usize {
        self.distributed.lock().await.unsent.len()
    }

    /// A turn of the logger thread: at most one request for each type, each with its own backoff.
    pub async fn log_round(&self, intended_at: Instant) -> LogRound {
        let mut logger = self.logger.lock().await;
        let logger = &mut *logger;
        let mut round = LogRound::default();
        let (results, statuses) = logger.buffer.batch(self.settings.log_lines_max);
        for (index, (log_type, count)) in [(LogType::Result, results), (LogType::Status, statuses)]
            .into_iter()
            .enumerate()
        {
            let Some(pause) = logger.backoffs.get_mut(index) else {
                continue;
            };
            let is_paused = pause.until.is_some_and(|until| Instant::now() < until);
            if count == 0 || is_paused {
                continue;
            }
            let bytes_max = self.settings.log_line_bytes_max;
            let batch: Vec<&[u8]> = logger
                .buffer
                .lines(log_type)
                .iter()
                .take(count)
                .map(|(_, line)| line.as_slice())
                .filter(|line| line.len() <= bytes_max)
                .collect();
            let oversize = count - batch.len();
            let exchange = self
                .log_once(&mut logger.client, log_type, &batch, intended_at)
                .await;
            let is_success = exchange.is_success();
            let period = self.settings.intervals.log;
            if is_success {
                round.delivered += batch.len();
                logger.buffer.delete(log_type, count);
            } else {
                round.failures += 1;
            }
            let wait = pause
                .backoff
                .after(is_success, period, self.settings.log_backoff_max);
            let is_backing_off = !is_success && self.host().release().has_log_backoff;
            pause.until =
                is_backing_off.then(|| Instant::now() + wait / self.settings.sleep_divisor.max(1));
            for _ in 0..oversize {
                // Each dropped line is a warning, which is a status line of its own.
                let warning = lines::status_line(self.host(), crate::unix_now(), 0);
                logger.buffer.push(LogType::Status, warning);
            }
        }
        round.purged = logger.buffer.purge(self.settings.buffered_lines_max);
        round
    }

    /// Uploads `content` in blocks, on a thread and connection of its own.
    pub async fn carve(&self, content: &[u8], block_size: usize) -> Carve {
        let mut client = Client::default();
        let host = self.host();
        let names = CarveNames {
            carve_id: uuid(fastrand::u128(..)),
            request_id: uuid(fastrand::u128(..)),
        };
        let block_size = block_size.max(1);
        let mut carve = Carve {
            session_id: None,
            names,
            is_complete: false,
            exchanges: Vec::new(),
        };
        let key = self.node_key();
        let body = bodies::carve_begin(&key, &carve.names, content.len(), block_size);
        self.carve_attempts(&mut client, Route::CarveBegin, &body, &mut carve.exchanges)
            .await;
        carve.session_id = carve
            .exchanges
            .last()
            .and_then(|exchange| verdict::judge_carve_begin(&exchange.body).ok());
        if let Some(session_id) = &carve.session_id {
            carve.is_complete = true;
            for (block_id, block) in content.chunks(block_size).enumerate() {
                let body =
                    bodies::carve_block(session_id, &carve.names.request_id, block_id, block);
                let is_sent = self
                    .carve_attempts(&mut client, Route::CarveBlock, &body, &mut carve.exchanges)
                    .await;
                // Old agents skip a failed block and call the carve done.
                if !is_sent && host.release().has_carve_retry {
                    carve.is_complete = false;
                    break;
                }
            }
        }
        client.close();
        carve
    }

    async fn carve_attempts(
        &self,
        client: &mut Client,
        route: Route,
        body: &[u8],
        exchanges: &mut Vec<Exchange>,
    ) -> bool {
        let attempts_max = if self.host().release().has_carve_retry {
            3
        } else {
            1
        };
        let mut failures = 0;
        loop {
            let key = self.node_key();
            let exchange = self
                .request(client, route, &key, body.to_vec(), false, Instant::now())
                .await;
            let is_success = exchange.is_success();
            // A start without session is an answer: it is not asked again.
            let is_final = exchange.failure() == Some(&Failure::NoSession);
            exchanges.push(exchange);
            failures += 1;
            if is_success || is_final || failures >= attempts_max {
                return is_success;
            }
            self.sleep(schedule::retry_sleep(failures)).await;
        }
    }

    async fn config_attempts(&self, client: &mut Client, intended_at: Instant) -> Round {
        let intervals = &self.settings.intervals;
        let mut failures = 0;
        let mut due_at = intended_at;
        loop {
            let exchange = self.config_once(client, due_at).await;
            if exchange.is_success() {
                return Round {
                    is_success: true,
                    wait: intervals.config,
                };
            }
            failures += 1;
            if failures >= self.settings.config_attempts_max {
                return Round {
                    is_success: false,
                    wait: intervals.config_after_failure,
                };
            }
            self.sleep(schedule::retry_sleep(failures)).await;
            due_at = Instant::now();
        }
    }

    async fn write_attempts(&self, client: &mut Client, outcomes: &[QueryOutcome]) -> bool {
        let mut failures = 0;
        loop {
            let exchange = self.write_once(client, outcomes, Instant::now()).await;
            if exchange.is_success() {
                return true;
            }
            failures += 1;
            if failures >= self.settings.intervals.read_attempts_max {
                return false;
            }
            self.sleep(schedule::retry_sleep(failures)).await;
        }
    }
}

/// Work out of an exchange, for callers that use [`Agent::read`] alone.
pub fn work_of(agent: &Agent, answer: &Object) -> Vec<QueryOutcome> {
    accept_work(agent.host(), answer)
        .queries
        .into_iter()
        .map(|(name, sql)| QueryOutcome {
            rows: tables::run(agent.host(), &name, &sql),
            name,
        })
        .collect()
}

fn uuid(random: u128) -> String {
    let digits = format!("{random:032x}");
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default().to_owned();
    [
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32),
    ]
    .join("-")
}
