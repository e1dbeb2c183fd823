//! The configs in use, ready-made, each with the number of hosts that use it. Pure.
//!
//! Invariants: an answer is here while a host holds it; its bytes come from the composer, and change only with specs.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use fleet_protocol::feed::Change;
use fleet_protocol::ids::AnswerId;

use crate::directory::{Directory, LabelSetIndex, PlatformIndex};
use crate::host_config::{Composer, ConfigKey};

#[derive(Debug)]
struct Answer {
    key: ConfigKey,
    config: Bytes,
    hosts: u32,
}

/// All answers.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    composer: Arc<Composer>,
    answers: HashMap<AnswerId, Answer>,
    /// Saves composing keys again.
    known: HashMap<(PlatformIndex, LabelSetIndex), AnswerId>,
}

impl Answers {
    /// Distinct answers.
    pub(crate) fn len(&self) -> usize {
        self.answers.len()
    }

    /// New specs. Answers in use keep their bytes until [`Answers::set_config`].
    pub(crate) fn set_composer(&mut self, composer: Arc<Composer>) {
        self.composer = composer;
        self.known.clear();
    }

    /// A label set went out of use; its number may come to mean another one.
    pub(crate) fn forget_set(&mut self, gone: LabelSetIndex) {
        self.known.retain(|(_, set), _| *set != gone);
    }

    /// The config of an answer in use.
    pub(crate) fn config(&self, id: AnswerId) -> Option<&Bytes> {
        self.answers.get(&id).map(|answer| &answer.config)
    }

    /// As the feed tells an answer in use.
    pub(crate) fn change(&self, id: AnswerId) -> Option<Change> {
        let config = self.config(id)?.clone();
        Some(Change::Answer { id, config })
    }

    /// Every answer in use.
    pub(crate) fn changes(&self) -> Vec<Change> {
        self.answers
            .keys()
            .filter_map(|id| self.change(*id))
            .collect()
    }

    /// The answer for hosts of a platform and label set. Whoever asks must hold it, or give it back by
    /// [`Answers::release`].
    pub(crate) fn id_for(
        &mut self,
        directory: &Directory,
        platform: PlatformIndex,
        labels: LabelSetIndex,
    ) -> AnswerId {
        if let Some(id) = self.known.get(&(platform, labels)) {
            return *id;
        }
        let key = self.composer.key(
            &directory.platform_name(platform),
            &directory.labels(labels),
        );
        let id = key.answer_id();
        self.answers.entry(id).or_insert_with(|| Answer {
            config: self.composer.compose(&key),
            key,
            hosts: 0,
        });
        self.known.insert((platform, labels), id);
        id
    }

    /// One more host uses it. The first one's use must be told.
    pub(crate) fn hold(&mut self, id: AnswerId) -> Option<Change> {
        let answer = self.answers.get_mut(&id)?;
        answer.hosts += 1;
        (answer.hosts == 1).then(|| Change::Answer {
            id,
            config: answer.config.clone(),
        })
    }

    /// One host less uses it. The last one's leaving must be told.
    pub(crate) fn release(&mut self, id: AnswerId) -> Option<Change> {
        let answer = self.answers.get_mut(&id)?;
        answer.hosts = answer.hosts.saturating_sub(1);
        if answer.hosts > 0 {
            return None;
        }
        self.answers.remove(&id);
        self.known.retain(|_, other| *other != id);
        Some(Change::DropAnswer(id))
    }

    /// Configs in use that a composer may give other bytes.
    pub(crate) fn in_use(&self) -> Vec<(AnswerId, ConfigKey)> {
        self.answers
            .iter()
            .filter(|(_, answer)| self.composer.is_current(&answer.key))
            .map(|(id, answer)| (*id, answer.key.clone()))
            .collect()
    }

    /// New bytes for a config in use; must be told if they are other ones.
    pub(crate) fn set_config(&mut self, id: AnswerId, config: Bytes) -> Option<Change> {
        let answer = self.answers.get_mut(&id)?;
        if answer.config == config {
            return None;
        }
        answer.config = config.clone();
        Some(Change::Answer { id, config })
    }
}
