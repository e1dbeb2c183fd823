//! How long each host's distributed reads are held open when nothing is due for it.
//!
//! An agent sleeps a fixed interval after each answer, so hosts that have come into step stay in step. A hold of its own
//! for each host, always the same, brings them out of step again.

use std::time::Duration;

use crate::ids::HostId;

/// The part of the longest hold that every host gets, of [`PARTS`].
const PARTS_MIN: u32 = 3;
const PARTS: u32 = 4;

/// How long the reads of `host` are held when no host's are held for longer than `longest`: three quarters of it and
/// more, the same each time, spread evenly over the hosts. Hosts of neighbouring ids are far apart.
pub fn of(longest: Duration, host: HostId) -> Duration {
    let least = longest * PARTS_MIN / PARTS;
    // The fraction of the golden ratio leaves no two of any run of ids close together.
    let place = host.0.wrapping_mul(0x9e37_79b9);
    let spread = (longest - least).as_micros() * u128::from(place) / u128::from(u32::MAX);
    least + Duration::from_micros(u64::try_from(spread).unwrap_or(u64::MAX))
}

/// The mean over many hosts.
pub fn mean(longest: Duration) -> Duration {
    longest * (PARTS_MIN + PARTS) / (2 * PARTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_are_spread_evenly_between_their_bounds() {
        let longest = Duration::from_secs(10);
        let mut tenths = [0; 10];
        let mut sum = Duration::ZERO;
        for id in 1..=1000 {
            let hold = of(longest, HostId(id));
            assert!(hold >= Duration::from_millis(7500) && hold <= longest);
            sum += hold;
            let tenth = (hold.as_millis() - 7500) / 250;
            tenths[usize::try_from(tenth.min(9)).unwrap()] += 1;
        }
        assert!(
            tenths.iter().all(|count| (98..=102).contains(count)),
            "{tenths:?}"
        );
        assert!((sum / 1000).abs_diff(mean(longest)) < Duration::from_millis(10));
    }

    #[test]
    fn every_hold_ends_in_time() {
        for (longest, host) in [(0, 0), (0, u32::MAX), (12, 0), (12, 1), (12, u32::MAX)] {
            let longest = Duration::from_secs(longest);
            assert!(of(longest, HostId(host)) <= longest);
        }
    }
}
