//! When an agent acts again: the exact series of osquery, none with jitter. Pure.

use std::time::Duration;

use serde_json::Value;

use crate::verdict::Object;

/// Sleep after the `failures`-th failed attempt in a row (counts from 1) of config, read, write and carve.
pub fn retry_sleep(failures: u32) -> Duration {
    Duration::from_secs(square(failures))
}

/// The sleeps between `attempts_max` attempts: 1 s, 4 s, … ; none after the last.
pub fn retry_sleeps(attempts_max: u32) -> impl Iterator<Item = Duration> {
    (1..attempts_max).map(retry_sleep)
}

/// Sleep after the `failures`-th failed enrolment in a row (counts from 1).
pub fn enroll_sleep(failures: u32, interval_max: Duration) -> Duration {
    Duration::from_secs(square(failures)).min(interval_max)
}

/// Wait of the log forwarder after `failures` failures in a row; the plain period after a success.
pub fn log_wait(period: Duration, failures: u32, backoff_max: Duration) -> Duration {
    if failures == 0 {
        return period;
    }
    let factor = u32::try_from(square(failures)).unwrap_or(u32::MAX);
    period.saturating_mul(factor).min(backoff_max.max(period))
}

fn square(n: u32) -> u64 {
    u64::from(n) * u64::from(n)
}

/// Backoff of one log type. Results and statuses each have their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogBackoff {
    failures: u32,
}

impl LogBackoff {
    /// Counts an attempt; gives the wait until the next.
    pub fn after(&mut self, is_success: bool, period: Duration, backoff_max: Duration) -> Duration {
        self.failures = if is_success {
            0
        } else {
            self.failures.saturating_add(1)
        };
        log_wait(period, self.failures, backoff_max)
    }

    /// Failures in a row.
    pub fn failures(self) -> u32 {
        self.failures
    }
}

/// How often an agent does what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    /// `config_refresh`.
    pub config: Duration,
    /// `config_accelerated_refresh`: the wait after a failed refresh.
    pub config_after_failure: Duration,
    /// `distributed_interval`.
    pub read: Duration,
    /// `logger_tls_period`.
    pub log: Duration,
    /// `distributed_tls_max_attempts`.
    pub read_attempts_max: u32,
}

/// `options.distributed_interval` of a config in seconds: a number, or a text of digits; 0 is no interval.
pub fn configured_read_s(config: &Object) -> Option<u32> {
    let value = config.get("options")?.get("distributed_interval")?;
    let seconds = match value {
        Value::Number(number) => number.as_u64()?,
        Value::String(text) => text.parse().ok()?,
        _ => return None,
    };
    u32::try_from(seconds).ok().filter(|seconds| *seconds > 0)
}

/// A poll every this often while the server asks for acceleration.
pub const ACCELERATED_READ: Duration = Duration::from_secs(5);

/// Known ways to set up agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// Fleet's agent: config 60 s, read 10 s, log 10 s.
    Fleet,
    /// Fleet's flagfile for plain osquery: 10 s each.
    Flagfile,
    /// osctrl's defaults: config 300 s, read 60 s, log 600 s.
    Osctrl,
}

impl Profile {
    /// The intervals.
    pub fn intervals(self) -> Intervals {
        let (config, read, log, read_attempts_max) = match self {
            Self::Fleet => (60, 10, 10, 10),
            Self::Flagfile => (10, 10, 10, 3),
            Self::Osctrl => (300, 60, 600, 3),
        };
        Intervals {
            config: Duration::from_secs(config),
            config_after_failure: Duration::from_secs(300),
            read: Duration::from_secs(read),
            log: Duration::from_secs(log),
            read_attempts_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(durations: impl IntoIterator<Item = Duration>) -> Vec<u64> {
        durations.into_iter().map(|d| d.as_secs()).collect()
    }

    #[test]
    fn a_config_may_set_the_interval_of_reads() {
        let of = |options: &str| {
            let config = serde_json::from_str(&format!("{{\"options\":{options}}}")).unwrap();
            configured_read_s(&config)
        };
        assert_eq!(of(r#"{"distributed_interval": 2}"#), Some(2));
        assert_eq!(of(r#"{"distributed_interval": "7"}"#), Some(7));
        for none in ["0", "-1", "\"\"", "\"x\"", "true", "5000000000"] {
            assert_eq!(
                of(&format!("{{\"distributed_interval\": {none}}}")),
                None,
                "{none}"
            );
        }
        assert_eq!(of("{}"), None);
        assert_eq!(of("3"), None);
    }

    #[test]
    fn three_attempts_sleep_one_and_four() {
        assert_eq!(seconds(retry_sleeps(3)), [1, 4]);
        assert_eq!(seconds(retry_sleeps(10)).iter().sum::<u64>(), 285);
        assert_eq!(seconds(retry_sleeps(1)), [0_u64; 0]);
    }

    #[test]
    fn enroll_attempts_stand_where_osquery_makes_them() {
        let cap = Duration::from_secs(600);
        let mut at = 0;
        let starts: Vec<u64> = (1..=12)
            .map(|n| {
                let start = at;
                at += enroll_sleep(n, cap).as_secs();
                start
            })
            .collect();
        assert_eq!(starts, [0, 1, 5, 14, 30, 55, 91, 140, 204, 285, 385, 506]);
        assert_eq!(enroll_sleep(25, cap), cap);
    }

    #[test]
    fn log_backoff_is_capped_at_an_hour_and_resets() {
        let (four, hour) = (Duration::from_secs(4), Duration::from_secs(3600));
        let mut backoff = LogBackoff::default();
        let waits: Vec<Duration> = (0..31).map(|_| backoff.after(false, four, hour)).collect();
        assert_eq!(seconds(waits[..5].to_vec()), [4, 16, 36, 64, 100]);
        assert_eq!(waits[28].as_secs(), 3364);
        assert_eq!(waits[29], hour);
        assert_eq!(backoff.after(true, four, hour), four);
        assert_eq!(backoff.failures(), 0);

        let ten = Duration::from_secs(10);
        assert_eq!(log_wait(ten, 18, hour).as_secs(), 3240);
        assert_eq!(log_wait(ten, 19, hour), hour);
        assert_eq!(log_wait(Duration::from_secs(600), 0, hour).as_secs(), 600);
    }
}
