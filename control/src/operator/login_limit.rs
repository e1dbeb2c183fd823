//! How often somebody may try to sign in: a bucket for each address and each account. Pure; `now` is an argument.
//!
//! A bucket is one instant, from which on it is full again; each try moves it on by the interval, and a try is refused
//! while it lies too far ahead. When the table is full of buckets in use, newcomers share one.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Ten tries a minute, Fleet's rate.
const INTERVAL: Duration = Duration::from_secs(6);
/// Tries at once after a quiet time.
const TRIES_MAX: u32 = 10;
/// Buckets of one kind.
const BUCKETS_MAX: usize = 16_384;

/// The buckets.
#[derive(Debug, Default)]
pub(super) struct LoginLimit {
    addresses: Buckets<IpAddr>,
    accounts: Buckets<[u8; 32]>,
}

impl LoginLimit {
    /// Takes a try from both buckets, or tells how long to wait. `account` is a digest of what was asked for, known or
    /// not; `address` is `None` for a local operator, whom only the account's bucket limits.
    pub(super) fn take(
        &mut self,
        address: Option<IpAddr>,
        account: [u8; 32],
        now: Instant,
    ) -> Result<(), Duration> {
        if let Some(address) = address {
            self.addresses.take(network(address), now)?;
        }
        self.accounts.take(account, now)
    }
}

/// What one customer has at hand: an IPv4 address, or 64 bits of an IPv6 one.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let bits = address.to_bits() & (u128::MAX << 64);
            IpAddr::V6(bits.into())
        }
        address => address,
    }
}

#[derive(Debug)]
struct Buckets<K> {
    full_at: HashMap<K, Instant>,
    shared: Option<Instant>,
}

impl<K> Default for Buckets<K> {
    fn default() -> Self {
        Self {
            full_at: HashMap::new(),
            shared: None,
        }
    }
}

impl<K: Hash + Eq> Buckets<K> {
    fn take(&mut self, key: K, now: Instant) -> Result<(), Duration> {
        if self.full_at.len() >= BUCKETS_MAX && !self.full_at.contains_key(&key) {
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        let has_room = self.full_at.len() < BUCKETS_MAX || self.full_at.contains_key(&key);
        let bucket = if has_room {
            self.full_at.entry(key).or_insert(now)
        } else {
            self.shared.get_or_insert(now)
        };
        let next = (*bucket).max(now) + INTERVAL;
        let ahead = next.saturating_duration_since(now);
        let most = INTERVAL * TRIES_MAX;
        if ahead > most {
            return Err(ahead - most);
        }
        *bucket = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(last: u8) -> Option<IpAddr> {
        Some([192, 0, 2, last].into())
    }

    #[test]
    fn ten_at_once_and_then_ten_a_minute() {
        let (mut limit, start) = (LoginLimit::default(), Instant::now());
        for _ in 0..TRIES_MAX {
            assert_eq!(limit.take(address(1), [0; 32], start), Ok(()));
        }
        assert_eq!(limit.take(address(1), [1; 32], start), Err(INTERVAL));
        assert_eq!(limit.take(address(2), [0; 32], start), Err(INTERVAL));
        assert_eq!(limit.take(address(2), [1; 32], start), Ok(()));
        assert_eq!(limit.take(None, [2; 32], start), Ok(()));
        let later = start + INTERVAL;
        assert_eq!(limit.take(address(1), [0; 32], later), Ok(()));
        assert!(limit.take(address(1), [0; 32], later).is_err());
    }

    #[test]
    fn a_network_of_ipv6_is_one_customer() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }

    #[test]
    fn a_full_table_lets_newcomers_share() {
        let (mut buckets, start) = (Buckets::default(), Instant::now());
        for key in 0..BUCKETS_MAX {
            buckets.take(key, start).unwrap();
        }
        let outcomes = (0..20).map(|key| buckets.take(BUCKETS_MAX + key, start));
        assert_eq!(outcomes.filter(Result::is_ok).count(), 10);
        assert_eq!(buckets.full_at.len(), BUCKETS_MAX);
        // Those who are there keep theirs.
        assert!(buckets.take(0, start).is_ok());
        assert!(buckets.take(usize::MAX, start + INTERVAL).is_ok());
        assert!(buckets.full_at.len() < 10, "old buckets stay");
    }

    proptest! {
        #[test]
        fn nobody_gets_more_than_the_rate(gaps in proptest::collection::vec(0_u64..20_000, 1..200)) {
            let (mut limit, start) = (LoginLimit::default(), Instant::now());
            let (mut now, mut taken) = (start, 0_u32);
            for gap in gaps {
                now += Duration::from_millis(gap);
                match limit.take(address(1), [0; 32], now) {
                    Ok(()) => taken += 1,
                    Err(wait) => prop_assert!(wait <= INTERVAL && !wait.is_zero()),
                }
                let most = (now - start).as_secs() / INTERVAL.as_secs() + u64::from(TRIES_MAX);
                prop_assert!(u64::from(taken) <= most);
            }
        }
    }
}
