//! Processes start, are killed and stall.

use std::time::Duration;

use fastrand::Rng;
use fleet_protocol::ids::BootNonce;
use fleet_protocol::limits::BatchLimits;
use fleet_protocol::link::{BatchKind, Credit};
use fleet_supervisor::slot::Event as SlotEvent;

use super::{CONTROL, Event, Message, WORKERS, World};
use crate::control::Control;
use crate::place::Wish;
use crate::worker::{Outcome, Worker};

impl World {
    pub(super) fn step(&mut self, index: usize, event: SlotEvent) {
        let now = Duration::from_millis(self.now);
        let place = &mut self.places[index];
        let wish = place.step(event, now, &mut self.rng);
        let launch = place.launches;
        let due_at = place.due_at();
        if wish == Wish::Started {
            let time = self.rng.u64(10..300);
            self.after(
                time,
                Event::Ready {
                    place: index,
                    launch,
                },
            );
        }
        if let Some(due_at) = due_at
            && !self.places[index].is_alive
        {
            let at = due_at.as_millis() as u64 + 1;
            self.at(at, Event::Timer(index));
        }
    }

    pub(super) fn ready(&mut self, index: usize, launch: u32) {
        let place = &self.places[index];
        if !place.is_alive || place.launches != launch {
            return;
        }
        if self.is_chaos() && self.chance(5) {
            self.kill(index);
            return;
        }
        self.step(index, SlotEvent::Ready);
        if index == CONTROL {
            self.lives += 1;
            self.control = Some(Control::new(self.lives));
        } else {
            self.boots += 1;
            let boot = BootNonce(self.boots);
            self.workers[index] = Some(Worker::new(boot));
            self.after(
                1,
                Event::Connect {
                    worker: index,
                    boot,
                },
            );
        }
    }

    pub(super) fn kill(&mut self, index: usize) {
        if !std::mem::replace(&mut self.places[index].is_alive, false) {
            return;
        }
        self.counts.kills += 1;
        if index == CONTROL {
            self.control = None;
            for link in 0..self.links.len() {
                self.cut(link);
            }
        } else if let Some(worker) = self.workers[index].take() {
            if let Some(link) = worker.link {
                self.cut(link);
            }
            self.counts.oddities += worker.oddities;
            for exchange in worker.exchanges.values() {
                self.end(exchange, &Outcome::Gone);
            }
        }
        let how = "signal 9".into();
        self.step(index, SlotEvent::Exited { code: None, how });
    }

    pub(super) fn chaos(&mut self) {
        if !self.is_chaos() {
            // What was narrowed is wide again.
            self.set_credit(|limit, _| limit);
            return;
        }
        match self.rng.u8(..100) {
            0..60 if self.is_deadly => self.kill(0),
            0..12 => self.kill(CONTROL),
            12..25 => {
                let worker = self.rng.usize(..WORKERS);
                self.kill(worker);
            }
            25..55 => {
                if !self.links.is_empty() {
                    let first = self.links.len().saturating_sub(WORKERS);
                    let link = self.rng.usize(first..self.links.len());
                    self.cut(link);
                }
            }
            55..75 => {
                let until = self.now + self.rng.u64(100..4000);
                if let Some(control) = &mut self.control {
                    control.stalled_until = until;
                }
            }
            75..85 => self.disk_refuses_until = self.now + self.rng.u64(50..1000),
            _ => self.set_credit(|limit, rng| rng.u16(..=limit)),
        }
        let pause = self.rng.u64(50..700);
        self.after(pause, Event::Chaos);
    }

    pub(super) fn set_credit(&mut self, choose: impl Fn(u16, &mut Rng) -> u16) {
        let links: Vec<usize> = self
            .workers
            .iter()
            .flatten()
            .filter_map(|worker| worker.link)
            .collect();
        for link in links {
            for kind in BatchKind::ALL {
                let batches = choose(BatchLimits::of(kind).credit, &mut self.rng);
                self.links[link]
                    .to_worker
                    .push_back(Message::Credit(Credit { kind, batches }));
                self.travel(link, 1, Event::ToWorker(link));
            }
        }
    }
}
