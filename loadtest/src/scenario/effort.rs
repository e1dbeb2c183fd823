//! Whether the generator itself was the limit of a run.

use std::time::{Duration, Instant};

use super::lane::cores;
use super::procfs::cpu_and_rss;
use super::tally::{as_f64, ratio};

/// Above this the generator's figures say more about itself than about the server.
const BUSY_PERCENT_MAX: f64 = 90.0;

/// CPU that this process has used since a moment.
pub(super) struct Effort {
    from: Instant,
    cpu_us: u64,
    /// Cores that the lanes can fill.
    cores: usize,
}

impl Effort {
    /// From now on.
    pub(super) fn begin(lanes: usize) -> Self {
        Self {
            from: Instant::now(),
            cpu_us: own_cpu_us(),
            cores: lanes.min(cores()).max(1),
        }
    }

    /// What a reader must know, if anything.
    pub(super) fn note(&self) -> Option<String> {
        let used_us = own_cpu_us().saturating_sub(self.cpu_us);
        note(busy_percent(used_us, self.from.elapsed(), self.cores))
    }
}

fn busy_percent(used_us: u64, time: Duration, cores: usize) -> f64 {
    let cores = as_f64(u64::try_from(cores).unwrap_or(1));
    ratio(used_us, time.as_secs_f64() * cores * 10_000.0)
}

fn note(percent: f64) -> Option<String> {
    (percent > BUSY_PERCENT_MAX)
        .then(|| format!("generator is {percent:.0} % busy; figures are bounded by it"))
}

fn own_cpu_us() -> u64 {
    cpu_and_rss(std::process::id()).map_or(0, |(cpu_us, _)| cpu_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_generator_says_so() {
        let ten = Duration::from_secs(10);
        assert_eq!(note(busy_percent(8_900_000, ten, 1)), None);
        assert_eq!(note(busy_percent(9_800_000, ten, 2)), None);
        let text = note(busy_percent(9_800_000, ten, 1)).unwrap();
        assert!(text.starts_with("generator is 98 % busy"), "{text}");
    }
}
