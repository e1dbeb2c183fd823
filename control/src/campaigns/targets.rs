//! Who is asked: Fleet's rules. Pure.
//!
//! Hosts that are named are always in. Of labels, built-in ones widen each other, custom ones widen each other, and a host
//! must be in one of each kind that is named. All Hosts wins over everything.

use std::collections::BTreeSet;

use crate::model::campaign::Targets;
use crate::model::label::{LabelId, LabelType};

/// Targets with their labels told apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Groups {
    is_all: bool,
    hosts: BTreeSet<u32>,
    builtin: BTreeSet<LabelId>,
    custom: BTreeSet<LabelId>,
}

impl Groups {
    /// `kind_of` knows the labels that there are; the error has those that it does not.
    pub(crate) fn of(
        targets: &Targets,
        kind_of: impl Fn(LabelId) -> Option<LabelType>,
    ) -> Result<Self, Vec<LabelId>> {
        let mut groups = Self {
            hosts: targets.hosts.clone(),
            ..Self::default()
        };
        let mut unknown = Vec::new();
        for label in &targets.labels {
            match kind_of(*label) {
                _ if *label == LabelId::ALL_HOSTS => groups.is_all = true,
                Some(LabelType::Builtin) => drop(groups.builtin.insert(*label)),
                Some(LabelType::Regular) => drop(groups.custom.insert(*label)),
                None => unknown.push(*label),
            }
        }
        if unknown.is_empty() {
            Ok(groups)
        } else {
            Err(unknown)
        }
    }

    /// The hosts that are in one of these labels, whatever their kinds.
    pub(crate) fn any_of(labels: &[LabelId]) -> Self {
        Self {
            is_all: labels.contains(&LabelId::ALL_HOSTS),
            custom: labels.iter().copied().collect(),
            ..Self::default()
        }
    }

    /// Whether a host with these labels is asked.
    pub(crate) fn takes(&self, host: u32, labels: &[LabelId]) -> bool {
        if self.is_all || self.hosts.contains(&host) {
            return true;
        }
        let is_in = |group: &BTreeSet<LabelId>| labels.iter().any(|label| group.contains(label));
        match (self.builtin.is_empty(), self.custom.is_empty()) {
            (true, true) => false,
            (true, false) => is_in(&self.custom),
            (false, true) => is_in(&self.builtin),
            (false, false) => is_in(&self.builtin) && is_in(&self.custom),
        }
    }

    /// Whether only named hosts are asked.
    pub(crate) fn named_only(&self) -> Option<&BTreeSet<u32>> {
        let has_labels = self.is_all || !self.builtin.is_empty() || !self.custom.is_empty();
        (!has_labels).then_some(&self.hosts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(label: LabelId) -> Option<LabelType> {
        match label.0 {
            1..=9 => Some(LabelType::Builtin),
            10..=19 => Some(LabelType::Regular),
            _ => None,
        }
    }

    fn takes(hosts: &[u32], labels: &[u32], host: u32, has: &[u32]) -> bool {
        let ids = |ids: &[u32]| ids.iter().copied().map(LabelId).collect::<Vec<_>>();
        let targets = Targets {
            hosts: hosts.iter().copied().collect(),
            labels: ids(labels).into_iter().collect(),
        };
        Groups::of(&targets, kind).unwrap().takes(host, &ids(has))
    }

    #[test]
    fn the_rules_are_fleets() {
        assert!(!takes(&[], &[], 1, &[2, 10]), "nobody was named");
        assert!(takes(&[7], &[], 7, &[]));
        assert!(!takes(&[7], &[], 8, &[]));
        assert!(takes(&[], &[2, 3], 8, &[3]), "built-in labels widen");
        assert!(takes(&[], &[10, 11], 8, &[11]), "custom labels widen");
        assert!(takes(&[], &[2, 10], 8, &[2, 10]));
        assert!(!takes(&[], &[2, 10], 8, &[2]), "one of each kind");
        assert!(!takes(&[], &[2, 10], 8, &[10]), "one of each kind");
        assert!(takes(&[8], &[2, 10], 8, &[]), "who is named is in");
        assert!(takes(&[], &[1, 2, 10], 8, &[]), "All Hosts wins");
        assert!(takes(&[9], &[1], 8, &[]), "All Hosts wins");
    }

    #[test]
    fn unknown_labels_are_named() {
        let targets = Targets {
            labels: [LabelId(2), LabelId(20), LabelId(21)].into(),
            ..Targets::default()
        };
        let unknown = Groups::of(&targets, kind).unwrap_err();
        assert_eq!(unknown, [LabelId(20), LabelId(21)]);
    }
}
