//! What a batch becomes: log lines go to the journal, carves to their files, the rest to the agents' state.
//!
//! Invariants: every request of a batch gets exactly one answer, in the batch's order; a batch ends within
//! [`BATCH_DEADLINE`]; a panic costs one batch, which is answered with a refusal that lets the agents come again.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fleet_protocol::agent::{Answer, Log, LogType, Request};
use fleet_protocol::ids::RequestId;
use fleet_protocol::link::{Batch, BatchKind, BatchReply};
use fleet_protocol::reject::Reject;
use fleet_protocol::stats::{BUCKET_BOUNDS_COUNT, Histogram};
use hashbrown::HashMap;

use crate::agents::{self, Agents};
use crate::carve::Carves;
use crate::journal::{self, Journal};

/// Below the 16 s after which agents give up, with room for the way back.
const BATCH_DEADLINE: Duration = Duration::from_secs(12);

type Requests = Vec<(RequestId, Request)>;
type Answers = Vec<(RequestId, Answer)>;

/// Counters of one batch kind since start.
#[derive(Clone, Debug, Default)]
pub(crate) struct KindStatistics {
    /// Requests a batch.
    pub(crate) requests: Histogram,
    /// From arrival to reply, microseconds.
    pub(crate) run_us: Histogram,
    /// Running now.
    pub(crate) running: u64,
}

/// Counters since start.
#[derive(Clone, Debug, Default)]
pub(crate) struct DispatchStatistics {
    /// By [`BatchKind`].
    pub(crate) kinds: [KindStatistics; BatchKind::ALL.len()],
    /// Refused requests by [`Reject`].
    pub(crate) refused: [u64; Reject::ALL.len()],
    /// Batches that panicked.
    pub(crate) panics: u64,
}

/// The three that do the work.
pub(crate) struct Dispatch {
    agents: Arc<Agents>,
    journal: Arc<Journal>,
    carves: Arc<Carves>,
    statistics: Mutex<DispatchStatistics>,
}

impl Dispatch {
    pub(crate) fn new(agents: Arc<Agents>, journal: Arc<Journal>, carves: Arc<Carves>) -> Self {
        Self {
            agents,
            journal,
            carves,
            statistics: Mutex::default(),
        }
    }

    /// Where the feed comes from.
    pub(crate) fn agents(&self) -> &Arc<Agents> {
        &self.agents
    }

    /// Counters since start.
    pub(crate) fn statistics_now(&self) -> DispatchStatistics {
        self.statistics().clone()
    }

    /// Does a batch.
    pub(crate) async fn run(&self, batch: Batch) -> BatchReply {
        let begun = Instant::now();
        let Batch { id, kind, requests } = batch;
        let ids: Vec<RequestId> = requests.iter().map(|(id, _)| *id).collect();
        self.note_begin(kind, ids.len());
        let answers = match kind {
            BatchKind::Log => self.log(requests).await,
            BatchKind::Carve => self.carve(requests).await,
            BatchKind::Lookup
            | BatchKind::Enroll
            | BatchKind::Read
            | BatchKind::Write
            | BatchKind::Seen => {
                let agents = Arc::clone(&self.agents);
                self.guarded(agents.run(kind, requests))
                    .await
                    .unwrap_or_else(|reject| refuse_all(&ids, reject))
            }
        };
        let answers = in_order(&ids, answers);
        self.note_end(kind, begun, &answers);
        BatchReply { id, kind, answers }
    }

    /// Both types at once, each with one append. `run` puts the answers in order.
    async fn log(&self, requests: Requests) -> Answers {
        let mut ids = [Vec::new(), Vec::new()];
        let mut logs = [Vec::new(), Vec::new()];
        for (id, request) in requests {
            if let Request::Log(log) = request {
                let [result_ids, status_ids] = &mut ids;
                let [results, status] = &mut logs;
                let (ids, logs) = match log.log_type {
                    LogType::Result => (result_ids, results),
                    LogType::Status => (status_ids, status),
                };
                ids.push(id);
                logs.push(log);
            }
        }
        let [result_ids, status_ids] = ids;
        let [results, status] = logs;
        let (results, status) = tokio::join!(
            self.append(LogType::Result, result_ids, results),
            self.append(LogType::Status, status_ids, status)
        );
        results.into_iter().chain(status).collect()
    }

    async fn append(&self, log_type: LogType, ids: Vec<RequestId>, logs: Vec<Log>) -> Answers {
        if logs.is_empty() {
            return Vec::new();
        }
        let journal = Arc::clone(&self.journal);
        let fates = self
            .guarded(async move { journal.append(log_type, logs).await })
            .await;
        let fates = match fates {
            Ok(fates) => fates,
            Err(reject) => return refuse_all(&ids, reject),
        };
        let answer = |fate| match fate {
            Ok(()) => Answer::Accepted,
            Err(journal::Error::Busy) => Answer::Refused(Reject::Busy),
            Err(journal::Error::Closed) => Answer::Refused(Reject::Draining),
            Err(journal::Error::Storage(_)) => Answer::Refused(Reject::JournalUnavailable),
        };
        ids.into_iter().zip(fates.into_iter().map(answer)).collect()
    }

    /// One after the other, because blocks of one carve must keep their order. What is late is not begun.
    async fn carve(&self, requests: Requests) -> Answers {
        let begun = Instant::now();
        let mut answers = Vec::with_capacity(requests.len());
        for (id, request) in requests {
            let carves = Arc::clone(&self.carves);
            let left = BATCH_DEADLINE.saturating_sub(begun.elapsed());
            let answer = self.guarded_for(left, async move {
                match request {
                    Request::CarveBegin(begin) => carves.begin(begin, agents::now()).await,
                    Request::CarveBlock(block) => carves.block(block, agents::now()).await,
                    _ => Answer::Refused(Reject::Internal),
                }
            });
            answers.push((id, answer.await.unwrap_or_else(Answer::Refused)));
        }
        answers
    }

    async fn guarded<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Reject> {
        self.guarded_for(BATCH_DEADLINE, work).await
    }

    /// Runs work in a task of its own, so that neither its time nor its panic is ours.
    async fn guarded_for<T: Send + 'static>(
        &self,
        time: Duration,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Reject> {
        let mut task = tokio::spawn(work);
        match tokio::time::timeout(time, &mut task).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                if error.is_panic() {
                    self.statistics().panics += 1;
                    tracing::error!("a batch panicked; its agents come again");
                }
                Err(Reject::Internal)
            }
            Err(_) => {
                task.abort();
                Err(Reject::DeadlineExceeded)
            }
        }
    }

    fn note_begin(&self, kind: BatchKind, requests: usize) {
        if let Some(of_kind) = self.statistics().kinds.get_mut(kind.index()) {
            of_kind
                .requests
                .observe(requests as u64, &BUCKET_BOUNDS_COUNT);
            of_kind.running += 1;
        }
    }

    fn note_end(&self, kind: BatchKind, begun: Instant, answers: &Answers) {
        let run_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut statistics = self.statistics();
        if let Some(of_kind) = statistics.kinds.get_mut(kind.index()) {
            of_kind.run_us.observe_us(run_us);
            of_kind.running = of_kind.running.saturating_sub(1);
        }
        for (_, answer) in answers {
            if let Answer::Refused(reject) = answer
                && let Some(count) = statistics.refused.get_mut(reject.index())
            {
                *count += 1;
            }
        }
    }

    fn statistics(&self) -> MutexGuard<'_, DispatchStatistics> {
        self.statistics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn refuse_all(ids: &[RequestId], reject: Reject) -> Answers {
    ids.iter()
        .map(|id| (*id, Answer::Refused(reject)))
        .collect()
}

/// One answer for each id. An answer that is missing is our fault, never a success.
fn in_order(ids: &[RequestId], answers: Answers) -> Answers {
    if ids.len() == answers.len() && ids.iter().zip(&answers).all(|(id, (of, _))| id == of) {
        return answers;
    }
    let mut by_id: HashMap<RequestId, Answer> = answers.into_iter().collect();
    ids.iter()
        .map(|id| {
            let answer = by_id.remove(id);
            (*id, answer.unwrap_or(Answer::Refused(Reject::Internal)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_gets_its_own_answer() {
        let ids = [RequestId(1), RequestId(2), RequestId(3)];
        let answers = vec![
            (RequestId(3), Answer::Accepted),
            (RequestId(9), Answer::Accepted),
            (RequestId(1), Answer::Refused(Reject::Busy)),
        ];
        assert_eq!(
            in_order(&ids, answers),
            [
                (RequestId(1), Answer::Refused(Reject::Busy)),
                (RequestId(2), Answer::Refused(Reject::Internal)),
                (RequestId(3), Answer::Accepted),
            ]
        );
    }
}
