//! Control: runs what its memory of batches does not know, and remembers it until it is killed. The disk outlives it.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use fleet_protocol::agent::{Answer, Request, Work};
use fleet_protocol::ids::{BatchId, BootNonce};
use fleet_protocol::link::{Batch, BatchReply};
use fleet_protocol::reject::Reject;

use crate::dedupe::{Dedupe, Verdict};

/// What survives everything: attempts to store, and in which lives of control they did.
#[derive(Default)]
pub(crate) struct Disk {
    stored: HashMap<u32, Vec<u32>>,
}

impl Disk {
    pub(crate) fn has(&self, attempt: u32) -> bool {
        self.stored.contains_key(&attempt)
    }

    fn store(&mut self, attempt: u32, life: u32) {
        let lives = self.stored.entry(attempt).or_default();
        assert!(
            !lives.contains(&life),
            "stored twice in one life of control"
        );
        lives.push(life);
    }

    /// Attempts that two lives of control stored.
    pub(crate) fn twice(&self) -> usize {
        self.stored.values().filter(|lives| lives.len() > 1).count()
    }
}

/// A running batch.
struct Job {
    batch: Batch,
    answers: Vec<Answer>,
}

pub(crate) struct Control {
    pub(crate) life: u32,
    dedupe: Dedupe<usize, BatchReply>,
    jobs: HashMap<(BootNonce, BatchId), Job>,
    ran: HashSet<(BootNonce, BatchId)>,
    /// Does nothing until then, in milliseconds.
    pub(crate) stalled_until: u64,
}

/// What a batch that came in leads to.
pub(crate) enum Taken {
    Runs,
    Joins,
    Answered(BatchReply),
}

impl Control {
    pub(crate) fn new(life: u32) -> Self {
        Self {
            life,
            dedupe: Dedupe::default(),
            jobs: HashMap::new(),
            ran: HashSet::new(),
            stalled_until: 0,
        }
    }

    pub(crate) fn take(
        &mut self,
        boot: BootNonce,
        batch: Batch,
        link: usize,
        now: Instant,
    ) -> Taken {
        match self.dedupe.begin(boot, batch.id, batch.kind, link, now) {
            Verdict::Run => {
                let key = (boot, batch.id);
                assert!(
                    self.ran.insert(key),
                    "a batch runs twice in one life of control"
                );
                let answers = Vec::new();
                self.jobs.insert(key, Job { batch, answers });
                Taken::Runs
            }
            Verdict::Join => Taken::Joins,
            Verdict::Answered(reply) => Taken::Answered(reply),
        }
    }

    /// Does what a batch asks for, as one: all of it, or none of it when the disk refuses.
    pub(crate) fn commit(
        &mut self,
        boot: BootNonce,
        id: BatchId,
        disk: &mut Disk,
        is_refused: bool,
    ) {
        let Some(job) = self.jobs.get_mut(&(boot, id)) else {
            return;
        };
        for (_, request) in &job.batch.requests {
            let answer = match request {
                _ if is_refused => Answer::Refused(Reject::StoreUnavailable),
                Request::Log(log) => {
                    disk.store(log.host.0, self.life);
                    Answer::Accepted
                }
                Request::Read(_) => Answer::Work(Work::default()),
                Request::Lookup(_) => Answer::Host(None),
                _ => Answer::Accepted,
            };
            job.answers.push(answer);
        }
    }

    /// The end of a batch: its reply, and the links that wait for it.
    pub(crate) fn finish(
        &mut self,
        boot: BootNonce,
        id: BatchId,
        now: Instant,
    ) -> Option<(BatchReply, Vec<usize>)> {
        let job = self.jobs.remove(&(boot, id))?;
        let ids = job.batch.requests.iter().map(|(id, _)| *id);
        let reply = BatchReply {
            id,
            kind: job.batch.kind,
            answers: ids.zip(job.answers).collect(),
        };
        let links = self.dedupe.finish(boot, id, reply.kind, reply.clone(), now);
        Some((reply, links))
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }
}
