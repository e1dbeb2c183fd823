//! Whether the generator itself was the limit of a run: its threads worked, or waited for a core, nearly all the time.

use std::fs;
use std::time::{Duration, Instant};

use super::lane::cores;
use super::tally::{as_f64, ratio};

/// Above this the generator's figures say more about itself than about the server.
const BUSY_PERCENT_MAX: f64 = 90.0;

/// What the threads of this process have had so far, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Had {
    cpu_ns: u64,
    /// Ready to run, while others had the core.
    waited_ns: u64,
}

impl Had {
    fn now() -> Self {
        let threads = fs::read_dir("/proc/self/task").into_iter().flatten();
        let stats = threads
            .filter_map(Result::ok)
            .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
        stats
            .map(|text| Self::parse(&text))
            .fold(Self::default(), |sum, one| Self {
                cpu_ns: sum.cpu_ns + one.cpu_ns,
                waited_ns: sum.waited_ns + one.waited_ns,
            })
    }

    fn parse(schedstat: &str) -> Self {
        let mut words = schedstat
            .split_whitespace()
            .map(|word| word.parse().unwrap_or(0));
        Self {
            cpu_ns: words.next().unwrap_or(0),
            waited_ns: words.next().unwrap_or(0),
        }
    }
}

/// What this process has had since a moment.
pub(super) struct Effort {
    from: Instant,
    had: Had,
    lanes: usize,
}

impl Effort {
    /// From now on.
    pub(super) fn begin(lanes: usize) -> Self {
        Self {
            from: Instant::now(),
            had: Had::now(),
            lanes: lanes.max(1),
        }
    }

    /// What a reader must know, if anything.
    pub(super) fn note(&self) -> Option<String> {
        let now = Had::now();
        let used = Had {
            cpu_ns: now.cpu_ns.saturating_sub(self.had.cpu_ns),
            waited_ns: now.waited_ns.saturating_sub(self.had.waited_ns),
        };
        note(used, self.from.elapsed(), self.lanes, cores())
    }
}

/// More lanes than cores wait for each other, so what a lane waits is set against its own time.
fn note(used: Had, time: Duration, lanes: usize, cores: usize) -> Option<String> {
    let percent = |ns: u64, of: usize| {
        let of = as_f64(u64::try_from(of).unwrap_or(1));
        ratio(ns, time.as_secs_f64() * of * 10_000_000.0)
    };
    let cpu = percent(used.cpu_ns, lanes.min(cores));
    let waited = percent(used.waited_ns, lanes);
    let taken = percent(used.cpu_ns + used.waited_ns, lanes);
    (cpu.max(taken) > BUSY_PERCENT_MAX).then(|| {
        format!(
            "generator is {cpu:.0} % busy and waits {waited:.0} % for a core; figures are bounded by it"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_or_starved_generator_says_so() {
        let had = |text| Had::parse(text);
        let ten = Duration::from_secs(10);
        assert_eq!(note(had("8000000000 900000000 7\n"), ten, 1, 2), None);
        assert_eq!(note(had("9800000000 0 7\n"), ten, 2, 2), None);
        let text = note(had("9800000000 100000000 7\n"), ten, 1, 2).unwrap();
        assert!(
            text.starts_with("generator is 98 % busy and waits 1 %"),
            "{text}"
        );
        assert!(note(had("3000000000 6500000000 7\n"), ten, 1, 2).is_some());
        let four = "9800000000 4000000000 7\n";
        assert_eq!(
            note(had(four), ten, 4, 2),
            None,
            "lanes that wait for each other"
        );
        assert!(Had::now().cpu_ns > 0);
    }
}
