//! Which batches are running or were answered, so that a batch that is sent again is not done twice. Pure.
//!
//! A batch is known by its worker's life and its id. Memory is bounded by what a worker can still ask about: it never
//! sends a batch again whose reply it read, replies arrive in the order in which they went out, and a worker has at most
//! [`BatchLimits::credit`] batches of a kind in flight; so of a kind's replies only the last `credit` that went out can
//! be unread. Twice as many are kept, in the order in which they last went out, for [`DEDUPE_WINDOW`] at most.

use std::collections::VecDeque;
use std::time::Instant;

use fleet_protocol::ids::{BatchId, BootNonce};
use fleet_protocol::limits::{BatchLimits, DEDUPE_WINDOW};
use fleet_protocol::link::BatchKind;
use hashbrown::HashMap;

/// Replies kept for each batch that a worker may have in flight.
const REPLIES_PER_CREDIT: usize = 2;
/// Worker lives that are remembered; the one silent for longest goes first. More workers than a supervisor may have.
const BOOTS_MAX: usize = 4096;

/// What to do with a batch that came in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<R> {
    /// Do it, then call [`Dedupe::finish`].
    Run,
    /// It is running; the waiter is told with the others.
    Join,
    /// It was done; this was the answer.
    Answered(R),
}

/// Batches of all links. `W` is told when a batch ends; `R` is a reply, cheap to clone.
#[derive(Debug)]
pub(crate) struct Dedupe<W, R> {
    boots: HashMap<BootNonce, Boot<W, R>>,
}

#[derive(Debug)]
struct Boot<W, R> {
    heard_at: Instant,
    running: HashMap<BatchId, Vec<W>>,
    /// By kind; what went out last stands last.
    answered: [VecDeque<Done<R>>; BatchKind::ALL.len()],
}

#[derive(Debug)]
struct Done<R> {
    id: BatchId,
    at: Instant,
    reply: R,
}

impl<W, R> Default for Dedupe<W, R> {
    fn default() -> Self {
        Self {
            boots: HashMap::new(),
        }
    }
}

impl<W, R: Clone> Dedupe<W, R> {
    /// A batch came in; unless it was answered, `waiter` is kept until it ends.
    pub(crate) fn begin(
        &mut self,
        boot: BootNonce,
        id: BatchId,
        kind: BatchKind,
        waiter: W,
        now: Instant,
    ) -> Verdict<R> {
        self.make_room(boot, now);
        let boot = self.boots.entry(boot).or_insert_with(|| Boot {
            heard_at: now,
            running: HashMap::new(),
            answered: Default::default(),
        });
        boot.heard_at = now;
        if let Some(waiters) = boot.running.get_mut(&id) {
            waiters.push(waiter);
            return Verdict::Join;
        }
        if let Some(answered) = boot.answered.get_mut(kind.index()) {
            drop_old(answered, now);
            if let Some(done) = answered
                .iter()
                .position(|done| done.id == id)
                .and_then(|index| answered.remove(index))
            {
                let reply = done.reply.clone();
                answered.push_back(done);
                return Verdict::Answered(reply);
            }
        }
        boot.running.insert(id, vec![waiter]);
        Verdict::Run
    }

    /// A batch ended: everybody who waits for it.
    pub(crate) fn finish(
        &mut self,
        boot: BootNonce,
        id: BatchId,
        kind: BatchKind,
        reply: R,
        now: Instant,
    ) -> Vec<W> {
        let Some(boot) = self.boots.get_mut(&boot) else {
            return Vec::new();
        };
        let waiters = boot.running.remove(&id).unwrap_or_default();
        if let Some(answered) = boot.answered.get_mut(kind.index()) {
            drop_old(answered, now);
            let replies_max = usize::from(BatchLimits::of(kind).credit) * REPLIES_PER_CREDIT;
            while answered.len() >= replies_max {
                answered.pop_front();
            }
            answered.push_back(Done { id, at: now, reply });
        }
        waiters
    }

    /// Lives that are over, and surplus ones, make room for a new one. A life with running batches stays.
    fn make_room(&mut self, newcomer: BootNonce, now: Instant) {
        if self.boots.contains_key(&newcomer) {
            return;
        }
        self.boots.retain(|_, boot| {
            !boot.running.is_empty()
                || now.saturating_duration_since(boot.heard_at) <= DEDUPE_WINDOW
        });
        if self.boots.len() < BOOTS_MAX {
            return;
        }
        let oldest = self
            .boots
            .iter()
            .filter(|(_, boot)| boot.running.is_empty())
            .min_by_key(|(_, boot)| boot.heard_at)
            .map(|(nonce, _)| *nonce);
        if let Some(oldest) = oldest {
            self.boots.remove(&oldest);
        }
    }
}

fn drop_old<R>(answered: &mut VecDeque<Done<R>>, now: Instant) {
    answered.retain(|done| now.saturating_duration_since(done.at) <= DEDUPE_WINDOW);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const BOOT: BootNonce = BootNonce(1);
    const KIND: BatchKind = BatchKind::Log;

    fn begin(dedupe: &mut Dedupe<u32, u64>, id: u64, waiter: u32, now: Instant) -> Verdict<u64> {
        dedupe.begin(BOOT, BatchId(id), KIND, waiter, now)
    }

    fn finish(dedupe: &mut Dedupe<u32, u64>, id: u64, now: Instant) -> Vec<u32> {
        dedupe.finish(BOOT, BatchId(id), KIND, id * 10, now)
    }

    #[test]
    fn a_batch_runs_once() {
        let (mut dedupe, now) = (Dedupe::default(), Instant::now());
        assert_eq!(begin(&mut dedupe, 7, 1, now), Verdict::Run);
        assert_eq!(begin(&mut dedupe, 7, 2, now), Verdict::Join);
        assert_eq!(finish(&mut dedupe, 7, now), [1, 2]);
        assert_eq!(begin(&mut dedupe, 7, 3, now), Verdict::Answered(70));
        let other = dedupe.begin(BootNonce(2), BatchId(7), KIND, 4, now);
        assert_eq!(other, Verdict::Run);
    }

    #[test]
    fn answers_are_forgotten_in_time() {
        let (mut dedupe, now) = (Dedupe::default(), Instant::now());
        begin(&mut dedupe, 7, 1, now);
        finish(&mut dedupe, 7, now);
        let later = now + DEDUPE_WINDOW;
        assert_eq!(begin(&mut dedupe, 7, 1, later), Verdict::Answered(70));
        let too_late = later + Duration::from_secs(1);
        assert_eq!(begin(&mut dedupe, 7, 1, too_late), Verdict::Run);
    }

    #[test]
    fn lives_are_bounded_and_running_ones_stay() {
        let (mut dedupe, now) = (Dedupe::<u32, u64>::default(), Instant::now());
        begin(&mut dedupe, 7, 1, now);
        for boot in 0..2 * BOOTS_MAX as u64 {
            let boot = BootNonce(boot + 10);
            dedupe.begin(boot, BatchId(1), KIND, 1, now);
            dedupe.finish(boot, BatchId(1), KIND, 0, now);
        }
        assert!(dedupe.boots.len() <= BOOTS_MAX);
        assert_eq!(begin(&mut dedupe, 7, 2, now), Verdict::Join);
        let later = now + DEDUPE_WINDOW * 2;
        dedupe.begin(BootNonce(5), BatchId(1), KIND, 1, later);
        assert_eq!(dedupe.boots.len(), 2);
    }

    proptest! {
        /// A worker that keeps to its credit and sends again what it has no reply to, over links that break.
        #[test]
        fn no_batch_runs_twice(steps in prop::collection::vec((0_u8..5, any::<u8>()), 1..400)) {
            let credit = usize::from(BatchLimits::of(KIND).credit);
            let mut dedupe = Dedupe::<u32, u64>::default();
            let mut now = Instant::now();
            let (mut next_id, mut link) = (0, 0);
            // The worker's view: id → whether it runs in control. Replies on the way: (link, id).
            let mut unanswered = BTreeMap::new();
            let mut on_the_way = VecDeque::new();
            for (step, pick) in steps {
                now += Duration::from_millis(10);
                match step {
                    0 | 1 if unanswered.len() < credit => {
                        next_id += 1;
                        prop_assert_eq!(begin(&mut dedupe, next_id, link, now), Verdict::Run);
                        unanswered.insert(next_id, true);
                    }
                    2 => {
                        let running: Vec<u64> =
                            unanswered.iter().filter(|(_, runs)| **runs).map(|(id, _)| *id).collect();
                        if let Some(id) = running.get(usize::from(pick) % running.len().max(1)) {
                            unanswered.insert(*id, false);
                            let waiters = finish(&mut dedupe, *id, now);
                            prop_assert!(waiters.contains(&link));
                            on_the_way.push_back(*id);
                        }
                    }
                    3 => {
                        if let Some(id) = on_the_way.pop_front() {
                            unanswered.remove(&id);
                        }
                    }
                    4 if pick < 64 => {
                        link += 1;
                        on_the_way.clear();
                        let mut again: Vec<_> = unanswered.clone().into_iter().collect();
                        if pick % 2 == 0 {
                            again.reverse();
                        }
                        for (id, runs) in again {
                            let verdict = begin(&mut dedupe, id, link, now);
                            if runs {
                                prop_assert_eq!(verdict, Verdict::Join);
                            } else {
                                prop_assert_eq!(verdict, Verdict::Answered(id * 10));
                                on_the_way.push_back(id);
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}
