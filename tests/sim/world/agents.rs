//! Agents come, wait, and go.

use fleet_protocol::agent::Answer;
use fleet_protocol::ids::{BootNonce, HostId};

use super::{CALM_MS, DEADLINE_MS, Event, PROMPT_MS, World};
use crate::worker::{BODY_BYTES_MAX, Exchange, Outcome, Want};

impl World {
    pub(super) fn arrive(&mut self, index: usize) {
        let is_over = self
            .calm_since
            .is_some_and(|since| self.now > since + CALM_MS);
        if is_over {
            return;
        }
        // Now and then many at once.
        let count = if self.chance(2) { 40 } else { 1 };
        for _ in 0..count {
            self.come(index);
        }
        let pause = self.rng.u64(4..50);
        self.after(pause, Event::Arrive(index));
        self.send(index);
    }

    pub(super) fn body_bytes(&mut self) -> usize {
        let percent = if self.is_heavy { 90 } else { 5 };
        if self.chance(percent) {
            self.rng.usize(..BODY_BYTES_MAX)
        } else {
            500
        }
    }

    pub(super) fn come(&mut self, index: usize) {
        let (at, now) = (self.now, self.instant());
        let id = self.next + 1;
        self.next += 1;
        let want = match self.rng.u8(..10) {
            0..5 => Want::Log {
                attempt: u32::try_from(id).unwrap(),
                bytes: self.body_bytes(),
            },
            5..8 => Want::Read,
            _ => Want::Lookup(self.rng.u8(..5)),
        };
        let marks = self.chance(5);
        let Some(worker) = &mut self.workers[index] else {
            return;
        };
        if marks {
            // Refused marks stay where they were.
            let _ = worker.waiting.tell_seen(vec![HostId(0)], now);
        }
        if !worker.has_room() {
            self.counts.turned_away += 1;
            return;
        }
        let boot = worker.boot;
        let outcome = worker.begin(id, want, at, now);
        self.counts.exchanges += 1;
        match outcome {
            Some(_) => self.counts.full += 1,
            None => {
                let is_impatient = self.chance(3);
                let time = if is_impatient {
                    self.rng.u64(..500)
                } else {
                    DEADLINE_MS
                };
                let event = Event::Over {
                    worker: index,
                    boot,
                    exchange: id,
                };
                self.after(time, event);
            }
        }
    }

    pub(super) fn over(&mut self, index: usize, boot: BootNonce, id: u64) {
        let ended = self
            .worker(index, boot)
            .and_then(|worker| worker.cancel(id));
        if let Some(exchange) = ended {
            self.end(&exchange, &Outcome::Late);
        }
    }

    pub(super) fn end(&mut self, exchange: &Exchange, outcome: &Outcome) {
        let took = self.now - exchange.begun_at;
        match outcome {
            Outcome::Answered(Answer::Refused(_)) => self.counts.refused += 1,
            Outcome::Answered(answer) => {
                self.counts.answered += 1;
                let is_due = match exchange.want {
                    Want::Log { attempt, .. } => {
                        assert!(self.disk.has(attempt), "acknowledged and not stored");
                        *answer == Answer::Accepted
                    }
                    Want::Read => matches!(answer, Answer::Work(_)),
                    Want::Lookup(_) => *answer == Answer::Host(None),
                };
                assert!(is_due, "{:?} is answered by {answer:?}", exchange.want);
            }
            Outcome::Late => self.counts.late += 1,
            Outcome::Gone => self.counts.cut += 1,
            Outcome::Full => self.counts.full += 1,
        }
        if self.is_calm(exchange.begun_at) {
            // Those that gave up by themselves did so sooner.
            assert!(
                took <= PROMPT_MS,
                "{took} ms in the calm: {:?} {outcome:?}",
                exchange.want
            );
            assert!(!matches!(
                outcome,
                Outcome::Answered(Answer::Refused(_)) | Outcome::Gone
            ));
        }
    }
}
