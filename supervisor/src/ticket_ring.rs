//! When the keys of session tickets change. Pure: time and fresh keys are arguments.
//!
//! Invariant: a ring lives as long as the configuration of TLS that it was made for, since a ticket stands for the checks
//! of the connection that it came from; a reload changes neither, a start makes both anew, and an upgrade hands the ring over
//! when the configuration of TLS is the same.

use std::time::Duration;

use aws_lc_rs::rand;
use fleet_protocol::limits::TICKET_PERIOD;
use fleet_protocol::tickets::{TICKET_KEY_BYTES, TICKET_NAME_BYTES, TicketKey, TicketKeys};

/// Rotations after which no old key is left.
const KEYS: u32 = 3;

/// See the module.
#[derive(Debug)]
pub(crate) struct TicketRing {
    keys: TicketKeys,
    /// Since the start of the supervisor.
    turned_at: Duration,
    /// How old they were then.
    age: Duration,
}

impl TicketRing {
    /// The first keys; `None` without random numbers.
    pub(crate) fn new(mut fresh: impl FnMut() -> Option<TicketKey>) -> Option<Self> {
        Some(Self {
            keys: TicketKeys {
                previous: fresh()?,
                current: fresh()?,
                next: fresh()?,
            },
            turned_at: Duration::ZERO,
            age: Duration::ZERO,
        })
    }

    /// The keys of the supervisor before this one, which changed them `age` ago.
    pub(crate) fn adopt(keys: TicketKeys, age: Duration) -> Self {
        Self {
            keys,
            turned_at: Duration::ZERO,
            age,
        }
    }

    /// For how long the keys have been as they are.
    pub(crate) fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.turned_at) + self.age
    }

    /// The keys of now, for a worker that starts.
    pub(crate) fn keys(&self) -> &TicketKeys {
        &self.keys
    }

    /// Changes the keys when that is due; then they are for every worker. Without random numbers they stay until there
    /// are some.
    pub(crate) fn turn(
        &mut self,
        now: Duration,
        mut fresh: impl FnMut() -> Option<TicketKey>,
    ) -> Option<&TicketKeys> {
        let periods = self.age(now).as_secs() / TICKET_PERIOD.as_secs();
        // A machine that slept is several periods late: keys that are too old go at once.
        let turns = u32::try_from(periods).unwrap_or(KEYS).min(KEYS);
        for _ in 0..turns {
            self.keys.rotate(fresh()?);
        }
        if turns == 0 {
            return None;
        }
        self.turned_at = now;
        self.age = Duration::ZERO;
        Some(&self.keys)
    }
}

/// A key that nobody else has.
pub(crate) fn random_key() -> Option<TicketKey> {
    let (mut name, mut key) = ([0; TICKET_NAME_BYTES], [0; TICKET_KEY_BYTES]);
    rand::fill(&mut name).ok()?;
    rand::fill(&mut key).ok()?;
    Some(TicketKey::new(name, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered() -> impl FnMut() -> Option<TicketKey> {
        let mut number = 0;
        move || {
            number += 1;
            Some(TicketKey::new([number; 16], [number; 32]))
        }
    }

    fn names(keys: &TicketKeys) -> [u8; 3] {
        [&keys.previous, &keys.current, &keys.next].map(|key| key.name()[0])
    }

    #[test]
    fn keys_change_once_a_period() {
        let mut fresh = numbered();
        let mut ring = TicketRing::new(&mut fresh).unwrap();
        let second = Duration::from_secs(1);
        assert_eq!(names(ring.keys()), [1, 2, 3]);
        assert_eq!(ring.turn(TICKET_PERIOD - second, &mut fresh), None);
        let turned = ring.turn(TICKET_PERIOD, &mut fresh).map(names);
        assert_eq!(turned, Some([2, 3, 4]));
        assert_eq!(ring.turn(TICKET_PERIOD + second, &mut fresh), None);
        let turned = ring.turn(2 * TICKET_PERIOD, &mut fresh).map(names);
        assert_eq!(turned, Some([3, 4, 5]));
    }

    #[test]
    fn a_ticket_is_opened_for_its_lifetime_and_not_for_three_periods() {
        let mut fresh = numbered();
        let mut ring = TicketRing::new(&mut fresh).unwrap();
        let sealed_with = ring.keys().current.clone();
        let second = Duration::from_secs(1);
        // Sealed at the last moment of its period, then opened until its lifetime is over.
        ring.turn(TICKET_PERIOD, &mut fresh);
        ring.turn(2 * TICKET_PERIOD - second, &mut fresh);
        assert_eq!(ring.keys().previous, sealed_with);
        ring.turn(2 * TICKET_PERIOD, &mut fresh);
        assert!(!names(ring.keys()).contains(&sealed_with.name()[0]));
    }

    #[test]
    fn a_ring_that_was_handed_over_turns_when_it_is_time() {
        let mut fresh = numbered();
        let old = TicketRing::new(&mut fresh).unwrap();
        let hour = Duration::from_secs(3600);
        let mut ring = TicketRing::adopt(old.keys().clone(), old.age(TICKET_PERIOD - hour));
        assert_eq!(ring.turn(Duration::from_secs(1), &mut fresh), None);
        assert_eq!(ring.turn(hour, &mut fresh).map(names), Some([2, 3, 4]));
        assert_eq!(ring.turn(TICKET_PERIOD, &mut fresh), None);
    }

    #[test]
    fn after_a_long_sleep_no_key_is_old() {
        let mut fresh = numbered();
        let mut ring = TicketRing::new(&mut fresh).unwrap();
        let turned = ring.turn(100 * TICKET_PERIOD, &mut fresh).map(names);
        assert_eq!(turned, Some([4, 5, 6]));
        assert_eq!(ring.turn(100 * TICKET_PERIOD, &mut fresh), None);
    }

    #[test]
    fn without_random_numbers_keys_stay() {
        let mut ring = TicketRing::new(random_key).unwrap();
        let keys = ring.keys().clone();
        assert_eq!(ring.turn(TICKET_PERIOD, || None), None);
        assert_eq!(ring.keys(), &keys);
        assert!(ring.turn(TICKET_PERIOD, random_key).is_some());
    }
}
