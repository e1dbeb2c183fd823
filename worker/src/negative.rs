//! Keys that the store did not know a moment ago, so that a host that keeps asking costs one lookup in five seconds.
//!
//! Bounded in keys and time. Every entry lives equally long, so the oldest stands in front.

use std::collections::VecDeque;
use std::time::Instant;

use fleet_protocol::ids::NodeKeyHash;
use fleet_protocol::limits::{NEGATIVE_CACHE_KEYS_MAX, NEGATIVE_CACHE_TTL};
use hashbrown::HashMap;

/// The cache.
#[derive(Default)]
pub(crate) struct Negative {
    /// When each key was found to be unknown.
    keys: HashMap<NodeKeyHash, Instant>,
    /// The same, oldest first; may hold keys that were removed or found again since.
    order: VecDeque<(Instant, NodeKeyHash)>,
}

impl Negative {
    /// Whether the store said so within the last seconds.
    pub(crate) fn contains(&self, key: &NodeKeyHash, now: Instant) -> bool {
        self.keys
            .get(key)
            .is_some_and(|at| now.saturating_duration_since(*at) < NEGATIVE_CACHE_TTL)
    }

    /// The store does not know this key.
    pub(crate) fn insert(&mut self, key: NodeKeyHash, now: Instant) {
        self.expire(now);
        while self.order.len() >= NEGATIVE_CACHE_KEYS_MAX {
            self.drop_oldest();
        }
        self.keys.insert(key, now);
        self.order.push_back((now, key));
    }

    /// The key has come into being.
    pub(crate) fn remove(&mut self, key: &NodeKeyHash) {
        if !self.keys.is_empty() {
            self.keys.remove(key);
        }
    }

    /// Drops what is too old.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((at, _)) = self.order.front()
            && now.saturating_duration_since(*at) >= NEGATIVE_CACHE_TTL
        {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((at, key)) = self.order.pop_front()
            && self.keys.get(&key) == Some(&at)
        {
            self.keys.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(number: u32) -> NodeKeyHash {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        NodeKeyHash(bytes)
    }

    #[test]
    fn entries_end() {
        let mut negative = Negative::default();
        let begin = Instant::now();
        negative.insert(key(1), begin);
        let last = begin + NEGATIVE_CACHE_TTL - Duration::from_nanos(1);
        assert!(negative.contains(&key(1), last));
        assert!(!negative.contains(&key(1), begin + NEGATIVE_CACHE_TTL));
        assert!(!negative.contains(&key(2), begin));
        // Found unknown again: the first end does not count any more.
        negative.insert(key(1), last);
        negative.expire(begin + NEGATIVE_CACHE_TTL);
        assert!(negative.contains(&key(1), begin + NEGATIVE_CACHE_TTL));
        negative.remove(&key(1));
        assert!(!negative.contains(&key(1), last));
        negative.expire(last + NEGATIVE_CACHE_TTL);
        assert!(negative.keys.is_empty() && negative.order.is_empty());
    }

    #[test]
    fn keys_are_bounded() {
        let mut negative = Negative::default();
        let now = Instant::now();
        let count = u32::try_from(NEGATIVE_CACHE_KEYS_MAX).unwrap() + 10;
        for number in 0..count {
            negative.insert(key(number), now);
        }
        assert_eq!(negative.keys.len(), NEGATIVE_CACHE_KEYS_MAX);
        assert!(!negative.contains(&key(9), now));
        assert!(negative.contains(&key(10), now));
    }
}
