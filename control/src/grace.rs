//! Keys that a re-enrolment replaced and that stay valid for a while. Pure.
//!
//! An agent's threads share a key: while one enrolls anew, another still has a request with the old key under way, and
//! would erase the new key if it were told that its own is invalid. Invariant: bounded; the oldest gives way early.

use std::collections::{HashMap, VecDeque};

use fleet_protocol::ids::{HostId, NodeKeyHash, UnixSeconds};

use crate::work::after;

/// How long a replaced key stays valid.
pub(crate) const GRACE_S: u32 = 60;
/// Keys in grace.
const KEYS_MAX: usize = 262_144;

/// Replaced keys that are valid still.
#[derive(Debug, Default)]
pub(crate) struct GraceKeys {
    hosts: HashMap<NodeKeyHash, (HostId, UnixSeconds)>,
    by_host: HashMap<HostId, Vec<NodeKeyHash>>,
    order: VecDeque<(UnixSeconds, NodeKeyHash)>,
}

impl GraceKeys {
    /// A key was replaced at `now`.
    pub(crate) fn add(&mut self, key: NodeKeyHash, host: HostId, now: UnixSeconds) {
        let ends_at = after(now, GRACE_S);
        self.remove(&key);
        self.hosts.insert(key, (host, ends_at));
        self.by_host.entry(host).or_default().push(key);
        self.order.push_back((ends_at, key));
    }

    /// The host that a replaced key stands for.
    pub(crate) fn host(&self, key: &NodeKeyHash) -> Option<HostId> {
        self.hosts.get(key).map(|(host, _)| *host)
    }

    /// Replaced keys of a host.
    pub(crate) fn keys_of(&self, host: HostId) -> &[NodeKeyHash] {
        self.by_host.get(&host).map_or(&[], Vec::as_slice)
    }

    /// Takes out the keys whose time is over.
    pub(crate) fn take_ended(&mut self, now: UnixSeconds) -> Vec<NodeKeyHash> {
        let mut ended = Vec::new();
        while let Some((ends_at, key)) = self.order.front().copied() {
            if ends_at > now && self.order.len() <= KEYS_MAX {
                break;
            }
            self.order.pop_front();
            // A key that was added twice ends with its later entry.
            if self.hosts.get(&key).is_some_and(|(_, at)| *at == ends_at) {
                self.remove(&key);
                ended.push(key);
            }
        }
        ended
    }

    /// Takes out the keys of a host that no longer exists.
    pub(crate) fn take_host(&mut self, host: HostId) -> Vec<NodeKeyHash> {
        let keys = self.by_host.remove(&host).unwrap_or_default();
        for key in &keys {
            self.hosts.remove(key);
        }
        keys
    }

    fn remove(&mut self, key: &NodeKeyHash) {
        let Some((host, _)) = self.hosts.remove(key) else {
            return;
        };
        if let Some(keys) = self.by_host.get_mut(&host) {
            keys.retain(|other| other != key);
            if keys.is_empty() {
                self.by_host.remove(&host);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: NodeKeyHash = NodeKeyHash([1; 32]);

    #[test]
    fn keys_end_after_their_grace() {
        let mut grace = GraceKeys::default();
        grace.add(KEY, HostId(3), UnixSeconds(100));
        assert_eq!(grace.host(&KEY), Some(HostId(3)));
        assert_eq!(grace.keys_of(HostId(3)), [KEY]);
        assert!(grace.take_ended(UnixSeconds(159)).is_empty());
        assert_eq!(grace.take_ended(UnixSeconds(160)), [KEY]);
        assert_eq!(grace.host(&KEY), None);
        assert!(grace.by_host.is_empty());
    }

    #[test]
    fn a_key_replaced_twice_ends_once() {
        let mut grace = GraceKeys::default();
        grace.add(KEY, HostId(3), UnixSeconds(100));
        grace.add(KEY, HostId(3), UnixSeconds(130));
        assert!(grace.take_ended(UnixSeconds(170)).is_empty());
        assert_eq!(grace.take_ended(UnixSeconds(190)), [KEY]);
    }

    #[test]
    fn deleted_hosts_lose_theirs_at_once() {
        let mut grace = GraceKeys::default();
        grace.add(KEY, HostId(3), UnixSeconds(100));
        assert_eq!(grace.take_host(HostId(3)), [KEY]);
        assert!(grace.take_ended(UnixSeconds(999)).is_empty());
    }
}
