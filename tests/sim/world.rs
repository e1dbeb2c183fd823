//! Time, links and chance around workers and control.

mod agents;
mod processes;
mod wire;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use fastrand::Rng;
use fleet_protocol::ids::{BatchId, BootNonce};
use fleet_protocol::link::{Batch, BatchKind, BatchReply, Credit};
use fleet_supervisor::slot::{Event as SlotEvent, Policy};

use crate::control::{Control, Disk};
use crate::counts::Counts;
use crate::place::Place;
use crate::worker::Worker;

const WORKERS: usize = 2;
/// The place of control, after those of the workers.
const CONTROL: usize = WORKERS;
/// Faults come until then, milliseconds.
const CHAOS_MS: u64 = 4_000;
/// Load without faults, after everything is well.
const CALM_MS: u64 = 6_000;
/// The longest that a batch of the chaos takes.
const BATCH_MS_MAX: u64 = 5_000;
/// What is left of the faults may last so long into the calm: whoever asks for the key that such a batch looks up waits
/// with it.
const AFTERMATH_MS: u64 = BATCH_MS_MAX + 100;
/// In the calm, an answer comes within this time.
const PROMPT_MS: u64 = 1_500;
/// Everything is well again by then: the longest backoff is part of it.
const WELL_BY_MS: u64 = 120_000;
/// An exchange's time.
const DEADLINE_MS: u64 = 15_000;

#[derive(Clone, Copy, Debug)]
enum Event {
    Arrive(usize),
    Over {
        worker: usize,
        boot: BootNonce,
        exchange: u64,
    },
    Connect {
        worker: usize,
        boot: BootNonce,
    },
    Wake {
        worker: usize,
        boot: BootNonce,
    },
    ToControl(usize),
    ToWorker(usize),
    Commit {
        life: u32,
        boot: BootNonce,
        batch: BatchId,
    },
    Finish {
        life: u32,
        boot: BootNonce,
        batch: BatchId,
    },
    Timer(usize),
    Ready {
        place: usize,
        launch: u32,
    },
    Chaos,
}

enum Message {
    Reply(BatchReply),
    Credit(Credit),
}

struct Link {
    worker: usize,
    boot: BootNonce,
    is_up: bool,
    to_control: VecDeque<Batch>,
    to_worker: VecDeque<Message>,
    /// When the last message of each direction arrives: none overtakes it.
    arrives_at: [u64; 2],
    /// By kind: batches that control has and has not answered, and the last that came.
    unanswered: BTreeMap<BatchKind, HashSet<BatchId>>,
    last: BTreeMap<BatchKind, BatchId>,
}

pub(crate) struct World {
    rng: Rng,
    is_told: bool,
    /// Agents send large bodies.
    is_heavy: bool,
    /// Workers die more often than a slot bears.
    is_deadly: bool,
    base: Instant,
    now: u64,
    agenda: BinaryHeap<Reverse<(u64, u64)>>,
    events: HashMap<u64, Event>,
    next: u64,
    places: Vec<Place>,
    workers: Vec<Option<Worker>>,
    control: Option<Control>,
    links: Vec<Link>,
    disk: Disk,
    disk_refuses_until: u64,
    lives: u32,
    boots: u64,
    /// Since when everything is well.
    calm_since: Option<u64>,
    /// By worker's life and kind: the last new batch and request that control saw.
    newest: HashMap<(BootNonce, BatchKind), (BatchId, u64)>,
    counts: Counts,
}

impl World {
    pub(crate) fn new(seed: u64, is_told: bool) -> Self {
        let mut places: Vec<Place> = (0..WORKERS).map(|_| Place::new(Policy::Worker)).collect();
        places.push(Place::new(Policy::Control));
        let mut rng = Rng::with_seed(seed);
        let mut world = Self {
            is_told,
            is_heavy: rng.u8(..4) == 0,
            is_deadly: rng.u8(..4) == 0,
            rng,
            base: Instant::now(),
            now: 0,
            agenda: BinaryHeap::new(),
            events: HashMap::new(),
            next: 0,
            places,
            workers: (0..WORKERS).map(|_| None).collect(),
            control: None,
            links: Vec::new(),
            disk: Disk::default(),
            disk_refuses_until: 0,
            lives: 0,
            boots: 0,
            calm_since: None,
            newest: HashMap::new(),
            counts: Counts::default(),
        };
        for place in 0..world.places.len() {
            world.after(0, Event::Timer(place));
        }
        for worker in 0..WORKERS {
            world.after(100, Event::Arrive(worker));
        }
        world.after(500, Event::Chaos);
        world
    }

    /// To the end, when nothing happens any more.
    pub(crate) fn run(mut self) -> Counts {
        while let Some(Reverse((at, number))) = self.agenda.pop() {
            let event = self.events.remove(&number).unwrap();
            self.now = at;
            self.counts.events += 1;
            assert!(
                self.counts.events < 2_000_000,
                "it never ends: {:?}",
                self.counts
            );
            if self.is_told {
                println!("{at:>7} ms  {event:?}");
            }
            self.happen(event);
            self.look();
        }
        assert!(self.calm_since.is_some(), "never well: {:?}", self.counts);
        for (index, worker) in self.workers.iter().enumerate() {
            assert_eq!(worker.is_none(), self.places[index].is_parked);
            if let Some(worker) = worker {
                worker.assert_empty();
                self.counts.oddities += worker.oddities;
            }
        }
        assert!(self.control.as_ref().is_some_and(Control::is_idle));
        let counts = &mut self.counts;
        let ended = counts.answered + counts.refused + counts.full + counts.late + counts.cut;
        assert_eq!(
            counts.exchanges, ended,
            "each exchange ends once: {counts:?}"
        );
        counts.stored_twice += self.disk.twice() as u64;
        counts.parked += self.places.iter().map(|place| place.parks).sum::<u64>();
        *counts
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_millis(self.now)
    }

    fn at(&mut self, at: u64, event: Event) {
        self.next += 1;
        self.events.insert(self.next, event);
        self.agenda.push(Reverse((at.max(self.now), self.next)));
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.at(self.now + ms, event);
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.u32(0..100) < percent
    }

    fn is_chaos(&self) -> bool {
        self.now < CHAOS_MS
    }

    fn is_calm(&self, at: u64) -> bool {
        self.calm_since
            .is_some_and(|since| at >= since + AFTERMATH_MS)
    }

    /// Notes when everything is well.
    fn look(&mut self) {
        if self.calm_since.is_some() || self.is_chaos() {
            return;
        }
        let is_stalled = |control: &Control| control.stalled_until > self.now;
        let is_linked = |(index, worker): (usize, &Option<Worker>)| {
            self.places[index].is_parked
                || worker.as_ref().is_some_and(|worker| worker.link.is_some())
        };
        let is_well = self
            .control
            .as_ref()
            .is_some_and(|control| !is_stalled(control))
            && self.disk_refuses_until <= self.now
            && self.workers.iter().enumerate().all(is_linked);
        if is_well {
            self.calm_since = Some(self.now);
        }
        assert!(self.now < WELL_BY_MS, "not well by now");
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(worker) => self.arrive(worker),
            Event::Over {
                worker,
                boot,
                exchange,
            } => self.over(worker, boot, exchange),
            Event::Connect { worker, boot } => self.connect(worker, boot),
            Event::Wake { worker, boot } => {
                if self.worker(worker, boot).is_some() {
                    self.send(worker);
                }
            }
            Event::ToControl(link) => self.reach_control(link),
            Event::ToWorker(link) => self.reach_worker(link),
            Event::Commit { life, boot, batch } => self.commit(life, boot, batch),
            Event::Finish { life, boot, batch } => self.finish(life, boot, batch),
            Event::Timer(place) => self.step(place, SlotEvent::Timer),
            Event::Ready { place, launch } => self.ready(place, launch),
            Event::Chaos => self.chaos(),
        }
    }

    fn worker(&mut self, worker: usize, boot: BootNonce) -> Option<&mut Worker> {
        self.workers[worker]
            .as_mut()
            .filter(|worker| worker.boot == boot)
    }
}
