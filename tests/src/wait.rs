//! Waiting for a condition, with a deadline that only a failure reaches.

use std::time::{Duration, Instant};

/// Polls `probe` until it gives something; panics with `what` when it never does.
pub fn until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    until_within(Duration::from_secs(60), what, probe)
}

/// As [`until`], with a deadline of its own.
pub fn until_within<T>(deadline: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < end, "waited {deadline:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// As [`until_within`], for a caller that says itself what went wrong.
pub fn until_or<T>(deadline: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
