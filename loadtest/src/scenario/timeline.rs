//! One look a second: what agents saw in that second, and what the server used. Lanes record, the main thread looks.
//!
//! Invariants: two histograms in all, whatever the length of the run; the server's part reads `stat` and `statm` only,
//! because with a million sockets a listing of descriptors or of mappings would disturb what is measured.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::lane::Shared;
use super::procfs::{self, Watch};
use super::tally::{as_f64, ratio};

/// Seconds that are kept: a day.
const MOMENTS_MAX: usize = 86_400;
/// Between two looks for processes that began or ended.
const TREE_INTERVAL: Duration = Duration::from_secs(10);
/// Largest latency that is told apart, microseconds.
const LATENCY_US_MAX: u64 = 600_000_000;

/// One second of a run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Moment {
    /// End of the second, since the run began.
    pub at_s: f64,
    /// Logical requests that ended.
    pub exchanges_per_s: f64,
    /// Of those, failed.
    pub failed_per_s: f64,
    /// Latency of those that ended in it, held reads left out; 0 without any.
    pub p50_ms: f64,
    /// 99 %.
    pub p99_ms: f64,
    /// Largest.
    pub max_ms: f64,
    /// Turns under way at its end.
    pub in_flight: u64,
    /// Sockets open at its end.
    pub open: u64,
    /// Of one core, all processes of the server together.
    pub server_cpu_percent: f64,
    /// Resident memory of all of them.
    pub server_rss_bytes: u64,
}

/// What the lanes add within a second.
#[derive(Debug)]
pub(super) struct Window(Mutex<Seen>);

#[derive(Debug)]
struct Seen {
    latency_us: Histogram<u32>,
    ended: u64,
    failed: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self(Mutex::new(Seen::new()))
    }
}

impl Seen {
    #[expect(clippy::expect_used, reason = "constant bounds that the crate takes")]
    fn new() -> Self {
        Self {
            latency_us: Histogram::new_with_bounds(1, LATENCY_US_MAX, 2).expect("valid bounds"),
            ended: 0,
            failed: 0,
        }
    }
}

impl Window {
    /// Counts an exchange that ended now; without a latency when the server held it on purpose.
    pub(super) fn record(&self, latency: Option<Duration>, is_success: bool) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.ended += 1;
        seen.failed += u64::from(!is_success);
        if let Some(latency) = latency {
            let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
            seen.latency_us.saturating_record(micros);
        }
    }

    fn take(&self) -> Seen {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut seen, Seen::new())
    }
}

/// CPU and memory of the server's processes, cheaply.
struct Pulse {
    watch: Watch,
    pids: Vec<u32>,
    listed_at: Option<Instant>,
    /// CPU of each process at the last look, microseconds.
    cpu_us: BTreeMap<u32, u64>,
}

impl Pulse {
    /// CPU used since the last look, and resident memory now. A process that is new counts from this look on.
    fn look(&mut self, now: Instant) -> (u64, u64) {
        if self.watch.is_empty() {
            return (0, 0);
        }
        if self
            .listed_at
            .is_none_or(|listed_at| now - listed_at >= TREE_INTERVAL)
        {
            self.pids = self.watch.pids_now();
            self.listed_at = Some(now);
        }
        let (mut used_us, mut rss_bytes) = (0, 0);
        let mut cpu_us = BTreeMap::new();
        for &pid in &self.pids {
            let Some((now_us, rss)) = procfs::cpu_and_rss(pid) else {
                continue;
            };
            let before_us = self.cpu_us.get(&pid).copied().unwrap_or(now_us);
            used_us += now_us.saturating_sub(before_us);
            rss_bytes += rss;
            cpu_us.insert(pid, now_us);
        }
        self.cpu_us = cpu_us;
        (used_us, rss_bytes)
    }
}

/// The seconds of a run so far.
pub(super) struct Timeline {
    began: Instant,
    last: Instant,
    pulse: Pulse,
    moments: Vec<Moment>,
}

impl Timeline {
    /// Begins now.
    pub(super) fn start(watch: Watch) -> Self {
        let now = Instant::now();
        let mut pulse = Pulse {
            watch,
            pids: Vec::new(),
            listed_at: None,
            cpu_us: BTreeMap::new(),
        };
        pulse.look(now);
        Self {
            began: now,
            last: now,
            pulse,
            moments: Vec::new(),
        }
    }

    /// Seconds since the run began.
    pub(super) fn now_s(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// The seconds so far.
    pub(super) fn moments(&self) -> &[Moment] {
        &self.moments
    }

    /// To be called several times a second; once in a second it takes what the lanes have recorded.
    pub(super) fn look(&mut self, shared: &Shared) {
        let now = Instant::now();
        let seconds = (now - self.last).as_secs_f64();
        if seconds < 1.0 || self.moments.len() >= MOMENTS_MAX {
            return;
        }
        self.last = now;
        let seen = shared.window.take();
        let (used_us, server_rss_bytes) = self.pulse.look(now);
        let at = |quantile: f64| as_f64(seen.latency_us.value_at_quantile(quantile)) / 1000.0;
        self.moments.push(Moment {
            at_s: (now - self.began).as_secs_f64(),
            exchanges_per_s: ratio(seen.ended, seconds),
            failed_per_s: ratio(seen.failed, seconds),
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            max_ms: as_f64(seen.latency_us.max()) / 1000.0,
            in_flight: shared.in_flight.load(Ordering::Relaxed),
            open: shared.open.load(Ordering::Relaxed),
            server_cpu_percent: ratio(used_us, seconds * 10_000.0),
            server_rss_bytes,
        });
    }

    /// All seconds.
    pub(super) fn into_moments(self) -> Vec<Moment> {
        self.moments
    }
}

/// When the server was steady again after `from_s`: seconds from there to the first second of a row that lasts
/// `row_s` or more, has neither a failure nor a p99 of `p99_ms_max` or more, and in which something ended: a server
/// that answers nothing fails nothing either, until its agents' deadlines. `None` when there is no such row.
pub(super) fn steady_again_s(
    moments: &[Moment],
    from_s: f64,
    row_s: f64,
    p99_ms_max: f64,
) -> Option<f64> {
    let mut begin = from_s;
    let mut has_progress = false;
    for moment in moments.iter().filter(|moment| moment.at_s > from_s) {
        if moment.failed_per_s > 0.0 || moment.p99_ms >= p99_ms_max {
            begin = moment.at_s;
            has_progress = false;
            continue;
        }
        has_progress |= moment.exchanges_per_s > 0.0;
        if has_progress && moment.at_s - begin >= row_s {
            return Some(begin - from_s);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(at_s: f64, failed_per_s: f64, p99_ms: f64) -> Moment {
        Moment {
            at_s,
            exchanges_per_s: 10.0,
            failed_per_s,
            p50_ms: 1.0,
            p99_ms,
            max_ms: p99_ms,
            in_flight: 0,
            open: 0,
            server_cpu_percent: 0.0,
            server_rss_bytes: 0,
        }
    }

    #[test]
    fn steady_begins_after_the_last_bad_second() {
        let bad_at = |bad: &[u32]| -> Vec<Moment> {
            (1..=20)
                .map(|s| moment(s.into(), f64::from(u8::from(bad.contains(&s))), 2.0))
                .collect()
        };
        assert_eq!(steady_again_s(&bad_at(&[]), 2.0, 5.0, 50.0), Some(0.0));
        assert_eq!(steady_again_s(&bad_at(&[3, 7]), 2.0, 5.0, 50.0), Some(5.0));
        assert_eq!(steady_again_s(&bad_at(&[1]), 2.0, 5.0, 50.0), Some(0.0));
        assert_eq!(steady_again_s(&bad_at(&[18]), 14.0, 5.0, 50.0), None);
        let slow = [moment(1.0, 0.0, 60.0), moment(9.0, 0.0, 1.0)];
        assert_eq!(steady_again_s(&slow, 0.0, 5.0, 50.0), Some(1.0));
    }

    #[test]
    fn a_server_that_answers_nothing_is_not_steady() {
        let silent = |at_s: u32| Moment {
            exchanges_per_s: 0.0,
            ..moment(at_s.into(), 0.0, 0.0)
        };
        let mut moments: Vec<Moment> = (1..=20).map(silent).collect();
        assert_eq!(steady_again_s(&moments, 0.0, 5.0, 50.0), None);
        // What it answers late is not steady, and what was answered before does not count after.
        moments.push(moment(21.0, 0.0, 15_000.0));
        moments.extend((22..=30).map(silent));
        assert_eq!(steady_again_s(&moments, 0.0, 5.0, 50.0), None);
        moments.push(moment(31.0, 0.0, 2.0));
        assert_eq!(steady_again_s(&moments, 0.0, 5.0, 50.0), Some(21.0));
    }

    #[test]
    fn a_window_is_taken_once() {
        let window = Window::default();
        window.record(Some(Duration::from_millis(10)), true);
        window.record(None, false);
        let seen = window.take();
        assert_eq!((seen.ended, seen.failed, seen.latency_us.len()), (2, 1, 1));
        assert_eq!(window.take().ended, 0);
    }

    #[test]
    fn own_cpu_and_memory_are_seen() {
        let mut pulse = Pulse {
            watch: Watch {
                trees: Vec::new(),
                pids: vec![std::process::id()],
            },
            pids: Vec::new(),
            listed_at: None,
            cpu_us: BTreeMap::new(),
        };
        let (used_us, rss_bytes) = pulse.look(Instant::now());
        assert_eq!(used_us, 0, "counts from the first look on");
        assert!(rss_bytes > 1 << 20);
    }
}
