//! When requests leave for control in a batch, and how many may wait for that.

use std::time::Duration;

use crate::link::BatchKind;

/// A new request is refused while the oldest of its kind has waited this long to be sent: it would hardly be answered within
/// its own time, and its agent keeps what it has.
pub const WAITING_AGE_MAX: Duration = Duration::from_secs(8);

/// When a batch is sent, and how many wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Sent when this many requests wait.
    pub requests_max: usize,
    /// Sent when about this many bytes wait.
    pub bytes_max: usize,
    /// Sent when the oldest waits this long, even while others are in flight.
    pub age_max: Duration,
    /// Batches in flight on one link.
    pub credit: u16,
    /// Requests that wait for credit; beyond, a new one is refused.
    pub waiting_requests_max: usize,
    /// Bytes that wait for credit; beyond, a new one is refused.
    pub waiting_bytes_max: usize,
}

impl BatchLimits {
    /// The limits of a kind. One list, so that worker and control agree.
    pub const fn of(kind: BatchKind) -> Self {
        let small = Self {
            requests_max: 512,
            bytes_max: 256 << 10,
            age_max: Duration::from_millis(5),
            credit: 2,
            waiting_requests_max: 8192,
            waiting_bytes_max: 16 << 20,
        };
        match kind {
            BatchKind::Lookup => Self {
                waiting_requests_max: 65_536,
                ..small
            },
            BatchKind::Enroll => Self {
                requests_max: 256,
                bytes_max: 2 << 20,
                ..small
            },
            BatchKind::Read => small,
            BatchKind::Write => Self {
                bytes_max: 2 << 20,
                waiting_bytes_max: 64 << 20,
                credit: 4,
                ..small
            },
            BatchKind::Log => Self {
                bytes_max: 2 << 20,
                waiting_bytes_max: 128 << 20,
                waiting_requests_max: 4096,
                credit: 4,
                ..small
            },
            BatchKind::Carve => Self {
                requests_max: 16,
                waiting_bytes_max: 128 << 20,
                ..small
            },
            // One request holds a whole interval's hosts; nobody waits for the answer.
            BatchKind::Seen => Self {
                requests_max: 1,
                waiting_requests_max: 16,
                ..small
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::ANSWER_DEADLINE;

    #[test]
    fn every_kind_can_move() {
        for kind in BatchKind::ALL {
            let limits = BatchLimits::of(kind);
            assert!(limits.credit > 0, "{kind:?}");
            assert!(
                limits.requests_max <= limits.waiting_requests_max,
                "{kind:?}"
            );
            assert!(limits.bytes_max <= limits.waiting_bytes_max, "{kind:?}");
            assert!(limits.age_max < WAITING_AGE_MAX, "{kind:?}");
        }
    }

    #[test]
    fn what_waits_may_still_be_answered() {
        assert!(WAITING_AGE_MAX < ANSWER_DEADLINE);
    }
}
