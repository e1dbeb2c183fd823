//! Threads of the generator, each with its own runtime and its own descriptor table.
//!
//! The limit of open files counts per table, and a thread may leave the shared one: so a generator with four threads
//! holds four times as many sockets. The price: a descriptor number means nothing in another thread, and a runtime's
//! waker is a descriptor. Invariant: a lane is never woken from outside; it looks at [`Shared`] every [`TICK`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;

use super::timeline::Window;

/// How late a lane may notice what the main thread wants.
pub(super) const TICK: Duration = Duration::from_millis(20);

/// What lanes and main thread know of each other.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Lanes end.
    pub(super) stop: AtomicBool,
    /// When the phases of the run began.
    pub(super) marks: Marks,
    /// Hosts or connections that are where they should be before measuring.
    pub(super) ready: AtomicU64,
    /// Hosts that have what they came for.
    pub(super) done: AtomicU64,
    /// Exchanges that ended.
    pub(super) exchanges: AtomicU64,
    /// Of those, failed.
    pub(super) failures: AtomicU64,
    /// Lines that servers took.
    pub(super) lines: AtomicU64,
    /// Turns now under way.
    pub(super) in_flight: AtomicU64,
    /// Sockets now open.
    pub(super) open: Arc<AtomicU64>,
    /// What ended in this second.
    pub(super) window: Window,
}

/// Phases that are counted apart, at most.
pub(super) const PHASES: usize = 5;

/// The moments at which phases begin, as the main thread sets them; the first phase begins with the run.
#[derive(Debug, Default)]
pub(super) struct Marks([OnceLock<Instant>; PHASES - 1]);

impl Marks {
    /// The next phase begins at `at`.
    pub(super) fn begin_next(&self, at: Instant) {
        // The first that is not set takes it.
        let _ = self.0.iter().find(|mark| mark.set(at).is_ok());
    }

    /// When the phase with this number (0 is before the first mark) began; `None` while it has not.
    pub(super) fn begin_of(&self, phase: usize) -> Option<Instant> {
        self.0.get(phase.checked_sub(1)?)?.get().copied()
    }

    /// The phase in which something that was due at `at` belongs.
    pub(super) fn phase(&self, at: Instant) -> usize {
        let begun = |mark: &&OnceLock<Instant>| mark.get().is_some_and(|begin| *begin <= at);
        self.0.iter().take_while(begun).count()
    }
}

impl Shared {
    /// Whether to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Asks the lanes to end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Adds one.
    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A running lane.
pub(super) type Lane<T> = JoinHandle<anyhow::Result<T>>;

/// Starts `count` lanes; each runs the future that `work` makes in it. To be called before anything is opened.
pub(super) fn start<T, F, W>(count: usize, work: W) -> anyhow::Result<Vec<Lane<T>>>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>>,
    W: Fn(usize) -> F + Send + Sync + 'static,
{
    // Tokio keeps one pair of sockets for signals in the process, and every runtime copies its descriptor: the pair
    // must be there before the first table is copied.
    drop(runtime()?);
    let work = Arc::new(work);
    (0..count)
        .map(|lane| {
            let work = work.clone();
            std::thread::Builder::new()
                .name(format!("lane-{lane}"))
                .spawn(move || run(count > 1, move || work(lane)))
                .context("start a thread")
        })
        .collect()
}

fn run<T, F: Future<Output = anyhow::Result<T>>>(
    has_own_table: bool,
    work: impl FnOnce() -> F,
) -> anyhow::Result<T> {
    if has_own_table {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES)
            .context("give a thread its own descriptor table")?;
    }
    runtime()?.block_on(work())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")
}

/// The results of all lanes; the first error ends it.
pub(super) fn join<T>(lanes: Vec<Lane<T>>) -> anyhow::Result<Vec<T>> {
    lanes
        .into_iter()
        .map(|lane| {
            lane.join()
                .unwrap_or_else(|_| anyhow::bail!("a thread of the generator panicked"))
        })
        .collect()
}

/// Raises this process's limit of open files as far as it may; gives the limit.
pub(super) fn raise_descriptor_limit() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    /// What every system allows.
    const LEAST: u64 = 1024;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return LEAST;
    };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

/// Cores that this process may use.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Whether a lane has ended before it was asked to.
pub(super) fn has_ended<T>(lanes: &[Lane<T>]) -> bool {
    lanes.iter().any(JoinHandle::is_finished)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_belongs_to_the_phase_in_which_it_was_due() {
        let marks = Marks::default();
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(marks.phase(now), 0);
        marks.begin_next(at(10));
        marks.begin_next(at(20));
        let phases = [at(9), at(10), at(19), at(25)].map(|at| marks.phase(at));
        assert_eq!(phases, [0, 1, 1, 2]);
        assert_eq!(marks.begin_of(2), Some(at(20)));
        assert_eq!(marks.begin_of(3), None);
        assert_eq!(marks.begin_of(0), None);
    }
}
