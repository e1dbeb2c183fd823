//! Labels: which label queries a host is asked, and what an answer says about membership. Pure.
//!
//! [`LabelPlan`] is compiled from the store's labels whenever these change. Manual labels have no query and come into
//! a host's label set through the store alone. [`LabelId::ALL_HOSTS`] needs no query either.

use std::collections::HashMap;
use std::sync::Arc;

use fleet_protocol::agent::Query;
use fleet_protocol::ids::UnixSeconds;

use crate::detail_queries::DISCOVERY_ALWAYS;
use crate::model::label::{Label, LabelId, LabelMembership};

/// What a label query's name begins with on the wire; the label's id follows.
pub(crate) const LABEL_PREFIX: &str = "fleet_label_query_";

/// What queries and options tell platforms apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum PlatformClass {
    /// macOS.
    Darwin,
    /// Every Linux distribution.
    Linux,
    /// Windows.
    Windows,
    /// Not known yet, or none of these.
    Other,
}

impl PlatformClass {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Darwin, Self::Linux, Self::Windows, Self::Other];

    /// The class of what `os_version.platform` says. Distributions are many, so what is nothing else is Linux.
    pub(crate) fn of(platform: &str) -> Self {
        match platform {
            "darwin" => Self::Darwin,
            "windows" => Self::Windows,
            "" | "freebsd" | "openbsd" | "chrome" | "ios" | "ipados" | "android" => Self::Other,
            _ => Self::Linux,
        }
    }

    /// The word for the class in options and specs; empty for none.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Darwin => "darwin",
            Self::Linux => "linux",
            Self::Windows => "windows",
            Self::Other => "",
        }
    }
}

/// Whether a comma-separated list of platforms covers a host. An empty list covers all; a host that has not told its
/// platform is covered by nothing else.
pub(crate) fn platform_matches(list: &str, platform: &str) -> bool {
    let class = PlatformClass::of(platform);
    let mut is_empty = true;
    for word in list
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        is_empty = false;
        let is_match = match word {
            "all" | "any" => true,
            "macos" => class == PlatformClass::Darwin,
            "posix" => matches!(class, PlatformClass::Darwin | PlatformClass::Linux),
            word => !platform.is_empty() && (word == platform || word == class.word()),
        };
        if is_match {
            return true;
        }
    }
    is_empty
}

/// Whether some platform of a class may be covered by the list.
pub(crate) fn platform_may_match(list: &str, class: PlatformClass) -> bool {
    let mut words = list
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty());
    let Some(first) = words.next() else {
        return true;
    };
    std::iter::once(first).chain(words).any(|word| match word {
        "all" | "any" | "macos" | "posix" => platform_matches(word, class.word()),
        word => PlatformClass::of(word) == class,
    })
}

/// The label behind a name without its prefix.
pub(crate) fn label_of_tail(tail: &str) -> Option<LabelId> {
    // `parse` alone would take "+7".
    if !tail.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    tail.parse().ok().map(LabelId)
}

/// Whether a JSON array of rows, as text, holds one.
pub(crate) fn has_rows(rows: &str) -> bool {
    rows.trim_start()
        .strip_prefix('[')
        .is_some_and(|rest| !rest.trim_start().starts_with(']') && !rest.trim().is_empty())
}

/// The label queries for the hosts of one platform.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PlatformLabels {
    /// Ready to hand out, by label id.
    pub(crate) queries: Vec<Query>,
    /// Ids of the same labels, sorted.
    pub(crate) ids: Vec<LabelId>,
    /// When the youngest of them came or changed.
    pub(crate) changed_at: UnixSeconds,
}

/// A label with a query.
#[derive(Debug)]
struct DynamicLabel {
    id: LabelId,
    platforms: String,
    sql: String,
    /// As the store says.
    updated_at: UnixSeconds,
    /// When this node's hosts may first have been asked by it.
    changed_at: UnixSeconds,
}

/// All label queries, by platform.
#[derive(Debug, Default)]
pub(crate) struct LabelPlan {
    /// By id.
    labels: Vec<DynamicLabel>,
    by_platform: HashMap<Box<str>, Arc<PlatformLabels>>,
    /// When the labels were read; `None` before the first time.
    read_at: Option<UnixSeconds>,
}

impl LabelPlan {
    /// Compiles the store's labels. A change that a clock ahead of ours dates into the future counts as of `now`, or
    /// every host would be due until our clock gets there.
    pub(crate) fn of(labels: &[Label], now: UnixSeconds) -> Self {
        let mut labels: Vec<_> = labels
            .iter()
            .filter(|label| {
                label.id != LabelId::ALL_HOSTS
                    && label.spec.label_membership_type == LabelMembership::Dynamic
                    && !label.spec.query.trim().is_empty()
            })
            .map(|label| DynamicLabel {
                id: label.id,
                platforms: label.spec.platform.clone(),
                sql: label.spec.query.clone(),
                updated_at: label.updated_at,
                changed_at: label.updated_at.min(now),
            })
            .collect();
        labels.sort_by_key(|label| label.id);
        Self {
            labels,
            by_platform: HashMap::new(),
            read_at: Some(now),
        }
    }

    /// The same plan where `previous` was in force until now. What is new in it counts as changed when it was read, for
    /// hosts that were asked between the change and that time were asked by the old one.
    pub(crate) fn succeeding(mut self, previous: &Self) -> Self {
        let (Some(read_at), Some(_)) = (self.read_at, previous.read_at) else {
            return self;
        };
        for label in &mut self.labels {
            let old = previous.labels.iter().find(|old| old.is_same(label));
            label.changed_at = old.map_or(read_at, |old| old.changed_at);
        }
        self
    }

    /// What hosts of a platform are asked; `None` when that is nothing.
    pub(crate) fn for_platform(&mut self, platform: &str) -> Option<Arc<PlatformLabels>> {
        if let Some(plan) = self.by_platform.get(platform) {
            return (!plan.ids.is_empty()).then(|| Arc::clone(plan));
        }
        let mut plan = PlatformLabels::default();
        for label in &self.labels {
            if !platform_matches(&label.platforms, platform) {
                continue;
            }
            plan.ids.push(label.id);
            plan.changed_at = plan.changed_at.max(label.changed_at);
            plan.queries.push(Query {
                name: format!("{LABEL_PREFIX}{}", label.id),
                sql: label.sql.clone(),
                discovery: DISCOVERY_ALWAYS.to_owned(),
            });
        }
        let plan = Arc::new(plan);
        self.by_platform.insert(platform.into(), Arc::clone(&plan));
        (!plan.ids.is_empty()).then_some(plan)
    }
}

impl DynamicLabel {
    fn is_same(&self, other: &Self) -> bool {
        self.id == other.id
            && self.updated_at == other.updated_at
            && self.platforms == other.platforms
            && self.sql == other.sql
    }
}

/// A label set with some memberships changed; sorted like the input.
pub(crate) fn apply_memberships(
    labels: &[LabelId],
    memberships: &[(LabelId, bool)],
) -> Vec<LabelId> {
    let mut set: std::collections::BTreeSet<LabelId> = labels.iter().copied().collect();
    for (label, is_member) in memberships {
        if *is_member {
            set.insert(*label);
        } else if *label != LabelId::ALL_HOSTS {
            set.remove(label);
        }
    }
    set.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::label::LabelSpec;

    fn label(id: u32, query: &str, platform: &str, updated_at: u32) -> Label {
        Label {
            id: LabelId(id),
            spec: LabelSpec {
                name: format!("label {id}"),
                query: query.into(),
                platform: platform.into(),
                ..LabelSpec::default()
            },
            host_count: 0,
            updated_at: UnixSeconds(updated_at),
        }
    }

    #[test]
    fn platform_lists_match_exactly_or_by_class() {
        for (list, platform, expected) in [
            ("", "", true),
            (" , ", "ubuntu", true),
            ("darwin", "", false),
            ("all", "", true),
            ("darwin", "darwin", true),
            ("macos", "darwin", true),
            ("linux", "ubuntu", true),
            ("ubuntu, debian", "debian", true),
            ("ubuntu", "centos", false),
            ("posix", "darwin", true),
            ("posix", "windows", false),
            ("windows,linux", "darwin", false),
        ] {
            assert_eq!(
                platform_matches(list, platform),
                expected,
                "{list:?} {platform:?}"
            );
        }
    }

    #[test]
    fn classes_may_match() {
        assert!(platform_may_match("", PlatformClass::Windows));
        assert!(platform_may_match("ubuntu", PlatformClass::Linux));
        assert!(!platform_may_match("ubuntu", PlatformClass::Darwin));
        assert!(platform_may_match("darwin,windows", PlatformClass::Windows));
        assert!(platform_may_match("posix", PlatformClass::Linux));
    }

    #[test]
    fn plans_hold_dynamic_labels_of_the_platform() {
        let mut manual = label(4, "SELECT 1", "", 1);
        manual.spec.label_membership_type = LabelMembership::Manual;
        let labels = [
            label(9, "SELECT 9", "linux", 50),
            label(7, "SELECT 7", "", 40),
            label(8, "", "", 90),
            label(6, "SELECT 6", "windows", 99),
            label(1, "SELECT 1", "", 99),
            manual,
        ];
        let mut plan = LabelPlan::of(&labels, UnixSeconds(100));
        let ubuntu = plan.for_platform("ubuntu").unwrap();
        assert_eq!(ubuntu.ids, [LabelId(7), LabelId(9)]);
        assert_eq!(ubuntu.changed_at, UnixSeconds(50));
        assert_eq!(ubuntu.queries[0].name, "fleet_label_query_7");
        assert!(
            ubuntu
                .queries
                .iter()
                .all(|query| !query.discovery.is_empty())
        );
        assert_eq!(plan.for_platform("").unwrap().ids, [LabelId(7)]);
        let mut early = LabelPlan::of(&labels, UnixSeconds(45));
        assert_eq!(
            early.for_platform("ubuntu").unwrap().changed_at,
            UnixSeconds(45)
        );
        assert!(
            LabelPlan::of(&[], UnixSeconds(1))
                .for_platform("ubuntu")
                .is_none()
        );
    }

    #[test]
    fn changes_count_from_when_they_were_read() {
        let at = |seconds| UnixSeconds(seconds);
        let changed_at = |plan: &mut LabelPlan| plan.for_platform("ubuntu").unwrap().changed_at;
        let old = [label(7, "SELECT 7", "", 40)];
        // At a start everything is as old as the store says.
        let mut first = LabelPlan::of(&old, at(100)).succeeding(&LabelPlan::default());
        assert_eq!(changed_at(&mut first), at(40));
        let mut same = LabelPlan::of(&old, at(110)).succeeding(&first);
        assert_eq!(changed_at(&mut same), at(40));
        let new = [label(7, "SELECT 7", "", 40), label(8, "SELECT 8", "", 111)];
        let mut second = LabelPlan::of(&new, at(113)).succeeding(&same);
        assert_eq!(changed_at(&mut second), at(113));
        let mut third = LabelPlan::of(&new, at(120)).succeeding(&second);
        assert_eq!(changed_at(&mut third), at(113));
        // Changed and changed back between two looks: answers to the query between count for nothing.
        let again = [label(7, "SELECT 7", "", 121)];
        let mut fourth = LabelPlan::of(&again, at(122)).succeeding(&third);
        assert_eq!(changed_at(&mut fourth), at(122));
    }

    #[test]
    fn names_and_rows() {
        assert_eq!(label_of_tail("17"), Some(LabelId(17)));
        for tail in ["", "+7", "x", "99999999999"] {
            assert_eq!(label_of_tail(tail), None, "{tail}");
        }
        for (rows, expected) in [
            ("[]", false),
            (" [ ] ", false),
            ("", false),
            ("[", false),
            ("[{}]", true),
            ("[{\"1\":\"1\"}]", true),
            ("null", false),
        ] {
            assert_eq!(has_rows(rows), expected, "{rows:?}");
        }
    }

    #[test]
    fn memberships_change_only_what_they_name() {
        let labels = [LabelId(1), LabelId(5), LabelId(7)];
        let changed = apply_memberships(
            &labels,
            &[(LabelId(5), false), (LabelId(3), true), (LabelId(1), false)],
        );
        assert_eq!(changed, [LabelId(1), LabelId(3), LabelId(7)]);
    }
}
