//! What every scenario with agents needs: where they connect to, how many threads they take, and the frame of a run,
//! in which lanes work while the main thread looks on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::crowd::Preparation;
use super::effort::Effort;
use super::lane::{self, Lane, Shared};
use super::options::Common;
use super::procfs::{Sample, Watch};
use super::progress::{LOOK, Progress};
use super::report::{Report, Servers};
use super::timeline::Timeline;
use crate::agent::{Agent, Observer, Settings};
use crate::client::Dialer;
use crate::host::Host;
use crate::target::{Sources, Target};

/// Where agents come from and go to; the same for all lanes.
pub(super) struct Stage {
    pub(super) common: Common,
    pub(super) lanes: usize,
    pub(super) targets: Vec<Arc<Target>>,
    pub(super) sources: Sources,
    pub(super) settings: Arc<Settings>,
}

impl Stage {
    /// For a run with that many sockets at a time. Fails here rather than in every lane.
    pub(super) fn new(common: &Common, settings: Settings, sockets: u32) -> anyhow::Result<Self> {
        let targets = common.targets()?;
        let sources = common.sources(&targets, sockets)?;
        common.dialer(&sources, None)?;
        Ok(Self {
            common: common.clone(),
            lanes: common.threads_for(sockets),
            targets,
            sources,
            settings: Arc::new(settings),
        })
    }

    /// How a lane connects. Each has a TLS configuration of its own, so that lanes share no lock.
    pub(super) fn dialer(&self, shared: &Shared) -> anyhow::Result<Dialer> {
        let mut dialer = self.common.dialer(&self.sources, None)?;
        dialer.open = shared.open.clone();
        Ok(dialer)
    }

    /// Of `count` numbered things, those that belong to a lane.
    pub(super) fn share(&self, lane: usize, count: u32) -> impl Iterator<Item = u32> + use<> {
        (0..count).skip(lane).step_by(self.lanes.max(1))
    }

    /// The agent on a host, toward one of the targets in turn.
    pub(super) fn agent(
        &self,
        host: Host,
        dialer: &Arc<Dialer>,
        observer: Arc<dyn Observer>,
    ) -> anyhow::Result<Agent> {
        let target = self.target(host.index)?;
        Ok(
            Agent::new(host, self.settings.clone(), dialer.clone(), target.clone())
                .with_observer(observer),
        )
    }

    /// The agents of a lane's hosts, `hosts` in all lanes together.
    pub(super) fn agents<O: Observer + 'static>(
        &self,
        lane: usize,
        hosts: u32,
        dialer: &Arc<Dialer>,
        observer: &Arc<O>,
    ) -> anyhow::Result<Vec<Arc<Agent>>> {
        self.share(lane, hosts)
            .map(|index| {
                let host = Host::new(self.common.seed, index);
                let agent = self.agent(host, dialer, observer.clone())?;
                Ok(Arc::new(agent))
            })
            .collect()
    }

    /// The target of the host with this index.
    pub(super) fn target(&self, index: u32) -> anyhow::Result<&Arc<Target>> {
        let place = usize::try_from(index).unwrap_or(0);
        place
            .checked_rem(self.targets.len())
            .and_then(|turn| self.targets.get(turn))
            .ok_or_else(|| anyhow::anyhow!("no --server"))
    }
}

/// A run from its first thread to its report.
pub(super) struct Run<T> {
    pub(super) shared: Arc<Shared>,
    pub(super) timeline: Timeline,
    pub(super) progress: Progress,
    pub(super) notes: Vec<String>,
    lanes: Vec<Lane<T>>,
    watch: Watch,
    effort: Effort,
}

/// What is known at one moment of a run.
pub(super) struct Look {
    at: Instant,
    exchanges: u64,
    samples: Vec<Sample>,
}

impl<T: Send + 'static> Run<T> {
    /// Starts the lanes of a stage; each runs the future that `work` makes in it of the plan and the lane's number.
    pub(super) fn start<P, F, W>(
        stage: &Stage,
        shared: Arc<Shared>,
        plan: &Arc<P>,
        work: W,
    ) -> anyhow::Result<Self>
    where
        P: Send + Sync + 'static,
        F: Future<Output = anyhow::Result<T>>,
        W: Fn(Arc<P>, usize) -> F + Send + Sync + 'static,
    {
        let plan = plan.clone();
        let watch = Watch {
            trees: stage.common.server_tree.clone(),
            pids: stage.common.server_pids.clone(),
        };
        Ok(Self {
            lanes: lane::start(stage.lanes, move |lane| work(plan.clone(), lane))?,
            timeline: Timeline::start(watch.clone()),
            progress: Progress::start(),
            notes: Vec::new(),
            effort: Effort::begin(stage.lanes),
            shared,
            watch,
        })
    }

    /// Looks on until `is_done`, or the deadline, or a lane's early end; says whether it was done.
    pub(super) fn watch(
        &mut self,
        deadline: Instant,
        is_done: impl Fn(&Shared, &Timeline) -> bool,
        text: impl Fn(&Shared) -> String,
    ) -> bool {
        loop {
            self.timeline.look(&self.shared);
            if is_done(&self.shared, &self.timeline) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || lane::has_ended(&self.lanes) {
                return false;
            }
            std::thread::sleep(LOOK.min(left));
            let shared = &self.shared;
            self.progress
                .show(|| format!("{}; {}", text(shared), counters(shared)));
        }
    }

    /// Waits until so many hosts are ready; whether they are.
    pub(super) fn prepare(&mut self, hosts: u64, preparation: &Preparation) -> bool {
        let is_ready = self.watch(
            Instant::now() + Duration::from_secs(preparation.prepare_wait),
            |shared, _| shared.ready.load(Ordering::Relaxed) >= hosts,
            |shared| {
                let ready = shared.ready.load(Ordering::Relaxed);
                format!("preparing: {ready} of {hosts}")
            },
        );
        let ready = self.shared.ready.load(Ordering::Relaxed);
        self.notes
            .push(format!("{ready} of {hosts} hosts prepared"));
        is_ready
    }

    /// Looks on for a time; the texts tell what is left of it.
    pub(super) fn pass(&mut self, time: Duration, name: &str) {
        let until = Instant::now() + time;
        self.watch(
            until,
            |_, _| false,
            |_| {
                let left = until.saturating_duration_since(Instant::now());
                format!("{name}, {} s left", left.as_secs())
            },
        );
    }

    /// The server's processes and the exchanges so far. The generator's own work counts from the last look.
    pub(super) fn look(&mut self) -> Look {
        self.effort = Effort::begin(self.lanes.len());
        Look {
            at: Instant::now(),
            exchanges: self.shared.exchanges.load(Ordering::Relaxed),
            samples: self.watch.sample(),
        }
    }

    /// What the server used between two looks; nothing when no process is watched.
    pub(super) fn servers(&self, name: &str, begin: &Look, end: &Look) -> Vec<Servers> {
        if self.watch.is_empty() {
            return Vec::new();
        }
        let seconds = (end.at - begin.at).as_secs_f64();
        let exchanges = end.exchanges - begin.exchanges;
        vec![Servers::between(
            name,
            &begin.samples,
            &end.samples,
            exchanges,
            seconds,
        )]
    }

    /// Notes that the generator was the limit, if it was since the last look. To be called before the next.
    pub(super) fn note_effort(&mut self) {
        self.notes.extend(self.effort.note());
    }

    /// Ends the lanes; gives what they give and a report that has everything but the scenario's own parts.
    pub(super) fn end(mut self, scenario: &'static str) -> anyhow::Result<(Vec<T>, Report)> {
        self.shared.stop();
        self.progress.finish();
        let done = lane::join(self.lanes)?;
        let report = Report {
            notes: self.notes,
            timeline: self.timeline.into_moments(),
            ..Report::new(scenario)
        };
        Ok((done, report))
    }
}

impl Look {
    /// When it was.
    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// CPU of all watched processes since their start, microseconds.
    pub(super) fn cpu_us(&self) -> u64 {
        self.samples.iter().map(|sample| sample.cpu_us).sum()
    }

    /// Resident memory of all watched processes.
    pub(super) fn rss_bytes(&self) -> u64 {
        self.samples.iter().map(|sample| sample.rss_bytes).sum()
    }

    /// Resident memory that no file backs, of the workers; of all watched processes when none is called so.
    pub(super) fn anonymous_bytes(&self) -> u64 {
        let is_worker = |sample: &&Sample| sample.name.contains("worker");
        let has_workers = self.samples.iter().any(|sample| is_worker(&sample));
        self.samples
            .iter()
            .filter(|sample| is_worker(sample) || !has_workers)
            .map(|sample| sample.anonymous_bytes)
            .sum()
    }
}

fn counters(shared: &Shared) -> String {
    format!(
        "{} exchanges, {} failed, {} under way, {} lines",
        shared.exchanges.load(Ordering::Relaxed),
        shared.failures.load(Ordering::Relaxed),
        shared.in_flight.load(Ordering::Relaxed),
        shared.lines.load(Ordering::Relaxed)
    )
}
