//! Ready-made config bytes by their id. Shared, never copied.

use bytes::Bytes;
use fleet_protocol::ids::AnswerId;
use hashbrown::HashMap;

/// The table.
#[derive(Default)]
pub(crate) struct Answers {
    configs: HashMap<AnswerId, Bytes>,
}

impl Answers {
    pub(crate) fn len(&self) -> usize {
        self.configs.len()
    }

    pub(crate) fn get(&self, id: AnswerId) -> Option<Bytes> {
        self.configs.get(&id).cloned()
    }

    /// Adds or replaces; exchanges that are being written keep the old bytes.
    pub(crate) fn insert(&mut self, id: AnswerId, config: Bytes) {
        self.configs.insert(id, config);
    }

    pub(crate) fn remove(&mut self, id: AnswerId) {
        self.configs.remove(&id);
    }
}
