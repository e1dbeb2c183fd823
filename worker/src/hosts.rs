//! Known hosts by the hash of their node key, and by id.
//!
//! One array holds the records; two hash tables hold places in it, so that neither key nor id is stored twice.
//! Removing moves the last record into the gap. Bytes a host: 48 in the array, and two tables of 5 bytes a bucket at a
//! load between 7/16 and 7/8.

use fleet_protocol::feed::Host;
use fleet_protocol::ids::{HostId, NodeKeyHash, UnixSeconds};
use hashbrown::HashTable;

use crate::pages::Pages;

/// The table.
#[derive(Default)]
pub(crate) struct Hosts {
    records: Pages<Host>,
    by_key: HashTable<u32>,
    /// Of two records with one id, the newer: a host's old key stays valid until the feed forgets it.
    by_id: HashTable<u32>,
}

impl Hosts {
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Who has this key?
    pub(crate) fn get(&self, key: &NodeKeyHash) -> Option<Host> {
        let place = self.place_of_key(key)?;
        self.record(place).copied()
    }

    /// Who has this id? Of two keys, the newer.
    pub(crate) fn by_id(&self, id: HostId) -> Option<Host> {
        self.record(self.place_of_id(id)?).copied()
    }

    /// Adds a host, or replaces what is known under its key.
    pub(crate) fn insert(&mut self, host: Host) {
        if let Some(place) = self.place_of_key(&host.key) {
            self.remove_id(place);
            if let Some(record) = self.records.get_mut(place as usize) {
                *record = host;
            }
            self.insert_id(place);
            return;
        }
        let Ok(place) = u32::try_from(self.records.len()) else {
            return;
        };
        self.records.push(host);
        let records = &self.records;
        self.by_key
            .insert_unique(hash_of_key(&host.key), place, |place| {
                records
                    .get(*place as usize)
                    .map_or(0, |host| hash_of_key(&host.key))
            });
        self.insert_id(place);
    }

    /// Forgets a key; whether it was known.
    pub(crate) fn forget(&mut self, key: &NodeKeyHash) -> bool {
        let Some(place) = self.place_of_key(key) else {
            return false;
        };
        self.remove_id(place);
        self.remove_key(place);
        let Some(last) = self.records.pop() else {
            return false;
        };
        // `last` stood at this place until now.
        let last_place = u32::try_from(self.records.len()).unwrap_or(u32::MAX);
        if last_place != place {
            let hash = hash_of_key(&last.key);
            if let Some(found) = self.by_key.find_mut(hash, |found| *found == last_place) {
                *found = place;
            }
            let hash = hash_of_id(last.id);
            if let Some(found) = self.by_id.find_mut(hash, |found| *found == last_place) {
                *found = place;
            }
            if let Some(gap) = self.records.get_mut(place as usize) {
                *gap = last;
            }
        }
        true
    }

    /// Sets when a host's next work falls due; whether the host is known.
    pub(crate) fn set_work_due(&mut self, id: HostId, at: UnixSeconds) -> bool {
        let Some(place) = self.place_of_id(id) else {
            return false;
        };
        if let Some(record) = self.records.get_mut(place as usize) {
            record.work_due_at = at;
        }
        true
    }

    /// Bytes that the table holds.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.records.bytes() + self.by_key.allocation_size() + self.by_id.allocation_size()
    }

    fn record(&self, place: u32) -> Option<&Host> {
        self.records.get(place as usize)
    }

    fn place_of_key(&self, key: &NodeKeyHash) -> Option<u32> {
        let is_it = |place: &u32| self.record(*place).is_some_and(|host| host.key == *key);
        self.by_key.find(hash_of_key(key), is_it).copied()
    }

    fn place_of_id(&self, id: HostId) -> Option<u32> {
        let is_it = |place: &u32| self.record(*place).is_some_and(|host| host.id == id);
        self.by_id.find(hash_of_id(id), is_it).copied()
    }

    /// Makes a record the one that its id leads to.
    fn insert_id(&mut self, place: u32) {
        let Some(id) = self.record(place).map(|host| host.id) else {
            return;
        };
        let records = &self.records;
        let id_at = |place: u32| records.get(place as usize).map(|host| host.id);
        let hash = hash_of_id(id);
        match self.by_id.find_mut(hash, |found| id_at(*found) == Some(id)) {
            Some(found) => *found = place,
            None => {
                self.by_id
                    .insert_unique(hash, place, |place| id_at(*place).map_or(0, hash_of_id));
            }
        }
    }

    fn remove_id(&mut self, place: u32) {
        let Some(id) = self.record(place).map(|host| host.id) else {
            return;
        };
        if let Ok(entry) = self
            .by_id
            .find_entry(hash_of_id(id), |found| *found == place)
        {
            entry.remove();
        }
    }

    fn remove_key(&mut self, place: u32) {
        let Some(hash) = self.record(place).map(|host| hash_of_key(&host.key)) else {
            return;
        };
        if let Ok(entry) = self.by_key.find_entry(hash, |found| *found == place) {
            entry.remove();
        }
    }
}

/// A key is already a hash, and only keys that control made get into the table.
pub(crate) fn hash_of_key(key: &NodeKeyHash) -> u64 {
    key.0
        .first_chunk()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Ids are row numbers; the multiplication spreads them over the high bits.
pub(crate) fn hash_of_id(id: HostId) -> u64 {
    u64::from(id.0).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A host without due work, for tests of other files.
#[cfg(test)]
pub(crate) fn test_host(id: u32, key: &str) -> Host {
    Host {
        id: HostId(id),
        key: crate::state::hash_node_key(key),
        answer: fleet_protocol::ids::AnswerId(1),
        work_due_at: UnixSeconds(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fleet_protocol::ids::AnswerId;
    use proptest::prelude::*;

    use super::*;

    fn host(id: u32, key: u8, due: u32) -> Host {
        Host {
            id: HostId(id),
            key: NodeKeyHash([key; 32]),
            answer: AnswerId(1),
            work_due_at: UnixSeconds(due),
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32, u8, u32),
        Forget(u8),
        Due(u32, u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0_u32..20, any::<u8>(), any::<u32>()).prop_map(|(id, key, due)| Step::Insert(
                id,
                key % 24,
                due
            )),
            any::<u8>().prop_map(|key| Step::Forget(key % 24)),
            (0_u32..20, any::<u32>()).prop_map(|(id, due)| Step::Due(id, due)),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        /// Against a model: key → record, and id → the key that was inserted last under it.
        #[test]
        fn behaves_as_two_maps(steps in steps()) {
            let mut hosts = Hosts::default();
            let mut by_key: BTreeMap<u8, Host> = BTreeMap::new();
            let mut by_id: BTreeMap<u32, u8> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Insert(id, key, due) => {
                        hosts.insert(host(id, key, due));
                        if let Some(old) = by_key.insert(key, host(id, key, due))
                            && by_id.get(&old.id.0) == Some(&key)
                        {
                            by_id.remove(&old.id.0);
                        }
                        by_id.insert(id, key);
                    }
                    Step::Forget(key) => {
                        let old = by_key.remove(&key);
                        prop_assert_eq!(hosts.forget(&NodeKeyHash([key; 32])), old.is_some());
                        if let Some(old) = old && by_id.get(&old.id.0) == Some(&key) {
                            by_id.remove(&old.id.0);
                        }
                    }
                    Step::Due(id, due) => {
                        let key = by_id.get(&id);
                        prop_assert_eq!(hosts.set_work_due(HostId(id), UnixSeconds(due)), key.is_some());
                        if let Some(host) = key.and_then(|key| by_key.get_mut(key)) {
                            host.work_due_at = UnixSeconds(due);
                        }
                    }
                }
                prop_assert_eq!(hosts.len(), by_key.len());
                for id in 0..20 {
                    let host = by_id.get(&id).and_then(|key| by_key.get(key));
                    prop_assert_eq!(hosts.by_id(HostId(id)), host.copied());
                }
                for key in 0..24 {
                    prop_assert_eq!(hosts.get(&NodeKeyHash([key; 32])), by_key.get(&key).copied());
                }
            }
        }
    }

    #[test]
    fn a_host_takes_less_than_128_bytes() {
        let mut worst = 0;
        let mut hosts = Hosts::default();
        for id in 1..=300_000_u32 {
            hosts.insert(test_host(id, &format!("key {id}")));
            if id >= 10_000 {
                worst = worst.max(hosts.bytes() / hosts.len());
            }
        }
        println!(
            "{} bytes a host at 300,000, at most {worst}",
            hosts.bytes() / hosts.len()
        );
        assert!(worst < 128, "{worst} bytes a host");
    }
}
