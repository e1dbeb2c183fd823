//! Every known host in memory, small: found by id and by node-key hash.
//!
//! Owner of [`Entry`] and of the tables that its small numbers point into. Invariants: an id and a key stand for at
//! most one entry; a million hosts take about 110 bytes each, because platforms and label sets are shared, and about
//! 130 for what they are called (`names.rs`). Places are reused, so a walk by place sees every host that stays, and may
//! miss or repeat only what changes meanwhile.

use std::collections::HashMap;
use std::sync::Arc;

use fleet_protocol::ids::{AnswerId, HostId, NodeKeyHash, UnixSeconds};
use hashbrown::HashTable;

use crate::model::host::HostNames;
use crate::model::label::LabelId;
use crate::names::{NameTable, Names};
use crate::pacer::Wait;
use crate::words::Words;
use crate::work::WorkState;

/// Platforms told apart. Agents make these names, so their number is bounded; beyond, a host's platform is unknown.
const PLATFORMS_MAX: usize = 1024;
/// The table of entries grows by this part.
const GROWTH_DIVISOR: usize = 8;

/// Where an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place(u32);

/// A platform's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct PlatformIndex(u16);

/// A label set's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct LabelSetIndex(u32);

/// One host.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: NodeKeyHash,
    pub(crate) answer: AnswerId,
    pub(crate) id: HostId,
    pub(crate) labels: LabelSetIndex,
    pub(crate) detail_updated_at: UnixSeconds,
    pub(crate) label_updated_at: UnixSeconds,
    /// Detail queries are out since; 0: they are not.
    pub(crate) detail_handed_at: UnixSeconds,
    /// Label queries are out since; 0: they are not.
    pub(crate) label_handed_at: UnixSeconds,
    pub(crate) seen_at: UnixSeconds,
    pub(crate) enrolled_at: UnixSeconds,
    /// What the workers were told last of the next due time.
    pub(crate) due_told_at: UnixSeconds,
    /// Whether it waits for due work, and how old that is.
    pub(crate) wait: Wait,
    /// Seconds between two polls, as far as the host told; 0: unknown.
    pub(crate) interval_s: u16,
    pub(crate) platform: PlatformIndex,
    pub(crate) is_refetch: bool,
    /// The host has told its name in this process's life.
    pub(crate) has_name: bool,
}

impl Entry {
    /// What decides about its work.
    pub(crate) fn work_state(&self) -> WorkState {
        WorkState {
            host: self.id,
            detail_updated_at: self.detail_updated_at,
            label_updated_at: self.label_updated_at,
            is_refetch: self.is_refetch,
            detail_handed_at: self.detail_handed_at,
            label_handed_at: self.label_handed_at,
        }
    }
}

/// All hosts.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    entries: Vec<Option<Entry>>,
    free: Vec<Place>,
    by_id: HashTable<Place>,
    by_key: HashTable<Place>,
    platforms: Platforms,
    label_sets: LabelSets,
    names: NameTable,
}

/// The platforms that hosts have told.
#[derive(Debug)]
struct Platforms(Words);

impl Default for Platforms {
    fn default() -> Self {
        Self(Words::with_room(PLATFORMS_MAX))
    }
}

impl Directory {
    /// Hosts known.
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Where a host stands.
    pub(crate) fn place_of(&self, id: HostId) -> Option<Place> {
        self.by_id
            .find(hash_id(id), |place| {
                self.get(*place).is_some_and(|entry| entry.id == id)
            })
            .copied()
    }

    /// Where the host with this key stands.
    pub(crate) fn place_of_key(&self, key: &NodeKeyHash) -> Option<Place> {
        self.by_key
            .find(hash_key(key), |place| {
                self.get(*place).is_some_and(|entry| entry.key == *key)
            })
            .copied()
    }

    /// The host there, if any.
    pub(crate) fn get(&self, place: Place) -> Option<&Entry> {
        self.entries.get(place.0 as usize)?.as_ref()
    }

    /// The host there, for changes to anything but its id, key and label set.
    pub(crate) fn get_mut(&mut self, place: Place) -> Option<&mut Entry> {
        self.entries.get_mut(place.0 as usize)?.as_mut()
    }

    /// One past the last place.
    pub(crate) fn end(&self) -> usize {
        self.entries.len()
    }

    /// The hosts in a range of places.
    pub(crate) fn walk(&self, from: usize, to: usize) -> impl Iterator<Item = &Entry> {
        let range = from.min(self.entries.len())..to.min(self.entries.len());
        self.entries.get(range).unwrap_or_default().iter().flatten()
    }

    /// The same with what each is called.
    pub(crate) fn walk_named(
        &self,
        from: usize,
        to: usize,
    ) -> impl Iterator<Item = (&Entry, &Names)> {
        let range = from.min(self.entries.len())..to.min(self.entries.len());
        let places = range.clone();
        let entries = self.entries.get(range).unwrap_or_default();
        let named = entries.iter().zip(places);
        named.filter_map(|(entry, place)| Some((entry.as_ref()?, self.names.get(place))))
    }

    /// What hosts are called and run.
    pub(crate) fn names(&self) -> &NameTable {
        &self.names
    }

    /// Notes what a host is called.
    pub(crate) fn set_names(&mut self, place: Place, names: &HostNames) {
        self.names.set(place.0 as usize, names);
    }

    /// Label sets in use, with the number of hosts in each.
    pub(crate) fn label_sets(&self) -> impl Iterator<Item = (&[LabelId], u32)> {
        let sets = self.label_sets.sets.iter();
        sets.map(|(labels, hosts)| (labels.as_ref(), *hosts))
    }

    /// The places of a range at which hosts stand.
    pub(crate) fn places(&self, from: usize, to: usize) -> Vec<Place> {
        self.walk(from, to)
            .filter_map(|entry| self.place_of(entry.id))
            .collect()
    }

    /// Adds a host. `None` when its id is there already, or the table is full.
    pub(crate) fn insert(&mut self, entry: Entry) -> Option<Place> {
        if self.place_of(entry.id).is_some() {
            return None;
        }
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                let place = Place(u32::try_from(self.entries.len()).ok()?);
                if self.entries.len() == self.entries.capacity() {
                    let more = (self.entries.len() / GROWTH_DIVISOR).max(1024);
                    self.entries.reserve_exact(more);
                }
                self.entries.push(None);
                place
            }
        };
        let (id, key) = (entry.id, entry.key);
        self.label_sets.hold(entry.labels);
        if let Some(free) = self.entries.get_mut(place.0 as usize) {
            *free = Some(entry);
        }
        self.index_id(id, place);
        self.index_key(&key, place);
        Some(place)
    }

    /// Takes a host out.
    pub(crate) fn remove(&mut self, id: HostId) -> Option<Entry> {
        let place = self.place_of(id)?;
        if let Ok(found) = self.by_id.find_entry(hash_id(id), |other| *other == place) {
            found.remove();
        }
        let key = self.get(place)?.key;
        self.unindex_key(&key, place);
        let entry = self.entries.get_mut(place.0 as usize)?.take()?;
        self.label_sets.release(entry.labels);
        self.names.clear(place.0 as usize);
        self.free.push(place);
        Some(entry)
    }

    /// Gives a host another key.
    pub(crate) fn set_key(&mut self, place: Place, key: NodeKeyHash) {
        let Some(entry) = self.get_mut(place) else {
            return;
        };
        let previous = std::mem::replace(&mut entry.key, key);
        self.unindex_key(&previous, place);
        self.index_key(&key, place);
    }

    /// Gives a host another label set. Tells the set that went out of use, whose number may be given to another one.
    pub(crate) fn set_labels(&mut self, place: Place, labels: &[LabelId]) -> Option<LabelSetIndex> {
        let index = self.label_set(labels);
        let entry = self.get_mut(place)?;
        let previous = std::mem::replace(&mut entry.labels, index);
        self.label_sets.hold(index);
        self.label_sets.release(previous).then_some(previous)
    }

    /// The number of a label set; it stays unheld until a host has it.
    pub(crate) fn label_set(&mut self, labels: &[LabelId]) -> LabelSetIndex {
        self.label_sets.index(labels)
    }

    /// The label set behind a number.
    pub(crate) fn labels(&self, index: LabelSetIndex) -> Arc<[LabelId]> {
        self.label_sets.get(index)
    }

    /// The number of a platform.
    pub(crate) fn platform(&mut self, name: &str) -> PlatformIndex {
        PlatformIndex(self.platforms.0.index(name))
    }

    /// The platform behind a number.
    pub(crate) fn platform_name(&self, index: PlatformIndex) -> Arc<str> {
        self.platforms.0.get(index.0)
    }

    fn index_id(&mut self, id: HostId, place: Place) {
        let entries = &self.entries;
        self.by_id.insert_unique(hash_id(id), place, |place| {
            entry_of(entries, *place).map_or(0, |entry| hash_id(entry.id))
        });
    }

    fn index_key(&mut self, key: &NodeKeyHash, place: Place) {
        let entries = &self.entries;
        self.by_key.insert_unique(hash_key(key), place, |place| {
            entry_of(entries, *place).map_or(0, |entry| hash_key(&entry.key))
        });
    }

    fn unindex_key(&mut self, key: &NodeKeyHash, place: Place) {
        if let Ok(found) = self
            .by_key
            .find_entry(hash_key(key), |other| *other == place)
        {
            found.remove();
        }
    }
}

fn entry_of(entries: &[Option<Entry>], place: Place) -> Option<&Entry> {
    entries.get(place.0 as usize)?.as_ref()
}

/// Ids count up, so they must be mixed; finalizer of splitmix64.
fn hash_id(id: HostId) -> u64 {
    let mut hash = u64::from(id.0).wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// A key is a SHA-256 already.
fn hash_key(key: &NodeKeyHash) -> u64 {
    key.0
        .iter()
        .take(8)
        .fold(0, |hash, byte| (hash << 8) | u64::from(*byte))
}

/// Distinct label sets with the number of hosts in each.
#[derive(Debug, Default)]
struct LabelSets {
    sets: Vec<(Arc<[LabelId]>, u32)>,
    free: Vec<LabelSetIndex>,
    indices: HashMap<Arc<[LabelId]>, LabelSetIndex>,
}

impl LabelSets {
    fn index(&mut self, labels: &[LabelId]) -> LabelSetIndex {
        if let Some(index) = self.indices.get(labels) {
            return *index;
        }
        let labels: Arc<[LabelId]> = labels.into();
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.sets.push((Arc::clone(&labels), 0));
                LabelSetIndex(u32::try_from(self.sets.len() - 1).unwrap_or(u32::MAX))
            }
        };
        if let Some(set) = self.sets.get_mut(index.0 as usize) {
            *set = (Arc::clone(&labels), 0);
        }
        self.indices.insert(labels, index);
        index
    }

    fn get(&self, index: LabelSetIndex) -> Arc<[LabelId]> {
        self.sets
            .get(index.0 as usize)
            .map_or_else(|| Arc::from([]), |(labels, _)| Arc::clone(labels))
    }

    fn hold(&mut self, index: LabelSetIndex) {
        if let Some((_, hosts)) = self.sets.get_mut(index.0 as usize) {
            *hosts += 1;
        }
    }

    /// Whether the last host left the set, which then is gone.
    fn release(&mut self, index: LabelSetIndex) -> bool {
        let Some((labels, hosts)) = self.sets.get_mut(index.0 as usize) else {
            return false;
        };
        *hosts = hosts.saturating_sub(1);
        if *hosts > 0 {
            return false;
        }
        self.indices.remove(labels);
        self.free.push(index);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn entry(directory: &mut Directory, id: u32, key: u8, labels: &[LabelId]) -> Entry {
        Entry {
            key: NodeKeyHash([key; 32]),
            answer: AnswerId(0),
            id: HostId(id),
            labels: directory.label_set(labels),
            detail_updated_at: UnixSeconds(0),
            label_updated_at: UnixSeconds(0),
            detail_handed_at: UnixSeconds(0),
            label_handed_at: UnixSeconds(0),
            seen_at: UnixSeconds(0),
            enrolled_at: UnixSeconds(0),
            due_told_at: UnixSeconds(0),
            wait: Wait::default(),
            interval_s: 0,
            platform: directory.platform("ubuntu"),
            is_refetch: false,
            has_name: false,
        }
    }

    #[test]
    fn a_host_is_small() {
        assert!(
            size_of::<Option<Entry>>() <= 96,
            "{}",
            size_of::<Option<Entry>>()
        );
    }

    #[test]
    fn label_sets_are_shared_and_reused() {
        let mut directory = Directory::default();
        let labels = [LabelId(1), LabelId(2)];
        for id in 1..=3 {
            let host = entry(&mut directory, id, u8::try_from(id).unwrap(), &labels);
            directory.insert(host).unwrap();
        }
        assert_eq!(directory.label_sets.sets.len(), 1);
        let place = directory.place_of(HostId(1)).unwrap();
        assert_eq!(directory.set_labels(place, &[LabelId(9)]), None);
        assert!(directory.set_labels(place, &labels).is_some());
        assert_eq!(directory.set_labels(place, &labels), None);
        assert_eq!(
            directory
                .labels(directory.get(place).unwrap().labels)
                .as_ref(),
            labels
        );
        assert_eq!(directory.label_sets.sets.len(), 2);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32, u8),
        Remove(u32),
        Key(u32, u8),
        Labels(u32, Vec<u32>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (1_u32..12, 0_u8..40).prop_map(|(id, key)| Step::Insert(id, key)),
            (1_u32..12).prop_map(Step::Remove),
            (1_u32..12, 0_u8..40).prop_map(|(id, key)| Step::Key(id, key)),
            (1_u32..12, prop::collection::vec(1_u32..5, 0..3))
                .prop_map(|(id, labels)| Step::Labels(id, labels)),
        ];
        prop::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn agrees_with_plain_maps(steps in steps()) {
            let mut directory = Directory::default();
            let mut model = BTreeMap::<u32, (u8, Vec<LabelId>)>::new();
            for step in steps {
                let is_taken = |model: &BTreeMap<u32, (u8, Vec<LabelId>)>, key| model.values().any(|(other, _)| *other == key);
                match step {
                    Step::Insert(id, key) if !is_taken(&model, key) => {
                        let host = entry(&mut directory, id, key, &[]);
                        let is_new = !model.contains_key(&id);
                        prop_assert_eq!(directory.insert(host).is_some(), is_new);
                        if is_new {
                            model.insert(id, (key, vec![]));
                        }
                    }
                    Step::Remove(id) => prop_assert_eq!(directory.remove(HostId(id)).is_some(), model.remove(&id).is_some()),
                    Step::Key(id, key) if !is_taken(&model, key) => {
                        if let (Some(place), Some(host)) = (directory.place_of(HostId(id)), model.get_mut(&id)) {
                            directory.set_key(place, NodeKeyHash([key; 32]));
                            host.0 = key;
                        }
                    }
                    Step::Labels(id, labels) => {
                        let labels: Vec<LabelId> = labels.into_iter().map(LabelId).collect();
                        if let (Some(place), Some(host)) = (directory.place_of(HostId(id)), model.get_mut(&id)) {
                            directory.set_labels(place, &labels);
                            host.1 = labels;
                        }
                    }
                    _ => {}
                }
                prop_assert_eq!(directory.len(), model.len());
                prop_assert_eq!(directory.walk(0, directory.end()).count(), model.len());
                for (id, (key, labels)) in &model {
                    let place = directory.place_of(HostId(*id)).unwrap();
                    prop_assert_eq!(directory.place_of_key(&NodeKeyHash([*key; 32])), Some(place));
                    let entry = directory.get(place).unwrap();
                    prop_assert_eq!(entry.id, HostId(*id));
                    let held = directory.labels(entry.labels);
                    prop_assert_eq!(held.as_ref(), labels.as_slice());
                }
                for key in 0..40 {
                    let found = directory.place_of_key(&NodeKeyHash([key; 32])).is_some();
                    prop_assert_eq!(found, is_taken(&model, key));
                }
            }
        }
    }
}
