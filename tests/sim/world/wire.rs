//! Links: they deliver in order, late, sometimes twice, and break.

use std::collections::{BTreeMap, VecDeque};

use fleet_protocol::ids::{BatchId, BootNonce};
use fleet_protocol::limits::BatchLimits;
use fleet_protocol::link::{Batch, BatchKind, BatchReply};

use super::{BATCH_MS_MAX, Event, Link, Message, World};
use crate::control::Taken;

impl World {
    pub(super) fn connect(&mut self, index: usize, boot: BootNonce) {
        let has_control = self.control.is_some();
        let now = self.now;
        let number = self.links.len();
        let Some(worker) = self.worker(index, boot) else {
            return;
        };
        if !has_control {
            let pause = self.rng.u64(50..1000);
            self.after(
                pause,
                Event::Connect {
                    worker: index,
                    boot,
                },
            );
            return;
        }
        worker.linked(number);
        self.links.push(Link {
            worker: index,
            boot,
            is_up: true,
            to_control: VecDeque::new(),
            to_worker: VecDeque::new(),
            arrives_at: [now; 2],
            unanswered: BTreeMap::new(),
            last: BTreeMap::new(),
        });
        self.send(index);
    }

    pub(super) fn cut(&mut self, number: usize) {
        let link = &mut self.links[number];
        if !std::mem::replace(&mut link.is_up, false) {
            return;
        }
        link.to_control.clear();
        link.to_worker.clear();
        self.counts.breaks += 1;
        let (index, boot) = (link.worker, link.boot);
        if let Some(worker) = self.worker(index, boot) {
            worker.link = None;
            let pause = self.rng.u64(50..1000);
            self.after(
                pause,
                Event::Connect {
                    worker: index,
                    boot,
                },
            );
        }
    }

    pub(super) fn delay(&mut self) -> u64 {
        match self.rng.u8(..100) {
            0 if self.is_chaos() => self.rng.u64(100..2000),
            0..20 => self.rng.u64(..20),
            _ => self.rng.u64(..3),
        }
    }

    /// Has a message arrive, behind those before it.
    pub(super) fn travel(&mut self, number: usize, direction: usize, event: Event) {
        let delay = self.delay();
        let link = &mut self.links[number];
        let at = (self.now + delay).max(link.arrives_at[direction]);
        link.arrives_at[direction] = at;
        self.at(at, event);
    }

    /// The turn of a worker's link.
    pub(super) fn send(&mut self, index: usize) {
        let now = self.instant();
        let Some(link) = self.workers[index].as_ref().and_then(|worker| worker.link) else {
            return;
        };
        while let Some(batch) = self.workers[index]
            .as_mut()
            .and_then(|worker| worker.next_batch(now))
        {
            let is_doubled = self.is_chaos() && self.chance(3);
            for _ in 0..=u8::from(is_doubled) {
                self.links[link].to_control.push_back(batch.clone());
                self.travel(link, 0, Event::ToControl(link));
            }
        }
        if let Some(worker) = &self.workers[index]
            && let Some(due_at) = worker.waiting.due_at()
        {
            let boot = worker.boot;
            let at = due_at.saturating_duration_since(self.base).as_millis() as u64;
            self.at(
                at.max(self.now + 1),
                Event::Wake {
                    worker: index,
                    boot,
                },
            );
        }
    }

    pub(super) fn reach_control(&mut self, number: usize) {
        let Some(control) = &self.control else {
            return;
        };
        if !self.links[number].is_up {
            return;
        }
        if control.stalled_until > self.now {
            let until = control.stalled_until;
            self.at(until, Event::ToControl(number));
            return;
        }
        let link = &mut self.links[number];
        let batch = link.to_control.pop_front().unwrap();
        let boot = link.boot;
        self.check_order(number, &batch);
        let (id, now) = (batch.id, self.instant());
        let Some(control) = &mut self.control else {
            return;
        };
        let life = control.life;
        match control.take(boot, batch, number, now) {
            Taken::Runs => {
                let worst = if self.is_chaos() && self.chance(3) {
                    BATCH_MS_MAX
                } else {
                    40
                };
                let time = self.rng.u64(1..worst);
                self.after(
                    time,
                    Event::Commit {
                        life,
                        boot,
                        batch: id,
                    },
                );
            }
            Taken::Joins => self.counts.joined += 1,
            Taken::Answered(reply) => {
                self.counts.answered_again += 1;
                self.reply(number, reply);
            }
        }
    }

    /// Batches come in the order in which they were made, on a link and over all links; so do their requests.
    pub(super) fn check_order(&mut self, number: usize, batch: &Batch) {
        let kinds = batch
            .requests
            .iter()
            .map(|(_, request)| BatchKind::of(request));
        assert!(kinds.into_iter().all(|kind| kind == batch.kind));
        let link = &mut self.links[number];
        let unanswered = link.unanswered.entry(batch.kind).or_default();
        let last = link.last.insert(batch.kind, batch.id);
        // One that comes twice on a link was doubled by the world.
        if last == Some(batch.id) {
            return;
        }
        assert!(last < Some(batch.id), "{:?} after {last:?}", batch.id);
        unanswered.insert(batch.id);
        let credit = usize::from(BatchLimits::of(batch.kind).credit);
        assert!(unanswered.len() <= credit, "more batches than credit");
        let newest = self
            .newest
            .entry((link.boot, batch.kind))
            .or_insert((batch.id, 0));
        if batch.id > newest.0 || newest.1 == 0 {
            for (id, _) in &batch.requests {
                assert!(id.0 + 1 > newest.1, "a request after a younger one");
                *newest = (batch.id, id.0 + 1);
            }
        }
    }

    pub(super) fn reply(&mut self, number: usize, reply: BatchReply) {
        let link = &mut self.links[number];
        if !link.is_up {
            return;
        }
        link.unanswered
            .entry(reply.kind)
            .or_default()
            .remove(&reply.id);
        let is_doubled = self.is_chaos() && self.chance(3);
        for _ in 0..=u8::from(is_doubled) {
            self.links[number]
                .to_worker
                .push_back(Message::Reply(reply.clone()));
            self.travel(number, 1, Event::ToWorker(number));
        }
    }

    pub(super) fn reach_worker(&mut self, number: usize) {
        let link = &mut self.links[number];
        if !link.is_up {
            return;
        }
        let message = link.to_worker.pop_front().unwrap();
        let (index, boot) = (link.worker, link.boot);
        let Some(worker) = self.worker(index, boot) else {
            return;
        };
        let ended = match message {
            Message::Reply(reply) => worker.take_reply(reply),
            Message::Credit(credit) => {
                worker.waiting.window.set_credit(credit);
                Vec::new()
            }
        };
        for (_, exchange, outcome) in ended {
            self.end(&exchange, &outcome);
        }
        self.send(index);
    }

    pub(super) fn commit(&mut self, life: u32, boot: BootNonce, batch: BatchId) {
        let is_refused = self.disk_refuses_until > self.now;
        let Some(control) = self.control.as_mut().filter(|control| control.life == life) else {
            return;
        };
        if control.stalled_until > self.now {
            let until = control.stalled_until;
            self.at(until, Event::Commit { life, boot, batch });
            return;
        }
        control.commit(boot, batch, &mut self.disk, is_refused);
        let time = self.rng.u64(..10);
        self.after(time, Event::Finish { life, boot, batch });
    }

    pub(super) fn finish(&mut self, life: u32, boot: BootNonce, batch: BatchId) {
        let now = self.instant();
        let Some(control) = self.control.as_mut().filter(|control| control.life == life) else {
            return;
        };
        if control.stalled_until > self.now {
            let until = control.stalled_until;
            self.at(until, Event::Finish { life, boot, batch });
            return;
        }
        let Some((reply, links)) = control.finish(boot, batch, now) else {
            return;
        };
        for link in links {
            self.reply(link, reply.clone());
        }
    }
}
