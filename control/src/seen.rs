//! When hosts were last heard of, merged until they are written to the store.
//!
//! Owner of the marks that are not written yet. Invariants: a host stands in at most one group, the one of its latest
//! mark, so memory is bounded by the number of hosts; a mark never claims a later time than that of a real request.

use std::collections::VecDeque;

use fleet_protocol::ids::{HostId, UnixSeconds};
use roaring::RoaringBitmap;

/// Groups kept while the store is away; beyond, the two oldest become one.
const GROUPS_MAX: usize = 32;

/// Hosts that were heard of up to one time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SeenGroup {
    /// Time of the latest of its marks.
    pub(crate) at: UnixSeconds,
    /// The hosts' ids.
    pub(crate) hosts: RoaringBitmap,
}

impl SeenGroup {
    /// As the store takes them.
    pub(crate) fn host_ids(&self) -> Vec<HostId> {
        self.hosts.iter().map(HostId).collect()
    }
}

/// Marks waiting to be written.
#[derive(Debug, Default)]
pub(crate) struct SeenMarks {
    current: Option<SeenGroup>,
    /// What could not be written, oldest first.
    kept: VecDeque<SeenGroup>,
}

impl SeenMarks {
    /// Adds hosts that were heard of at `now`.
    pub(crate) fn mark(&mut self, hosts: impl IntoIterator<Item = HostId>, now: UnixSeconds) {
        let group = self.current.get_or_insert_with(|| SeenGroup {
            at: now,
            hosts: RoaringBitmap::new(),
        });
        group.at = group.at.max(now);
        group.hosts.extend(hosts.into_iter().map(|host| host.0));
    }

    /// Takes everything, oldest first.
    pub(crate) fn take(&mut self) -> Vec<SeenGroup> {
        let mut groups: Vec<SeenGroup> = self.kept.drain(..).chain(self.current.take()).collect();
        let mut newer = RoaringBitmap::new();
        for group in groups.iter_mut().rev() {
            group.hosts -= &newer;
            newer |= &group.hosts;
        }
        groups.retain(|group| !group.hosts.is_empty());
        groups
    }

    /// Puts back what could not be written, under what came since.
    pub(crate) fn put_back(&mut self, groups: Vec<SeenGroup>) {
        for mut group in groups.into_iter().rev() {
            for newer in self.kept.iter().chain(&self.current) {
                group.hosts -= &newer.hosts;
            }
            if !group.hosts.is_empty() {
                self.kept.push_front(group);
            }
        }
        while self.kept.len() > GROUPS_MAX {
            if let (Some(oldest), Some(next)) = (self.kept.pop_front(), self.kept.front_mut()) {
                next.at = oldest.at;
                next.hosts |= &oldest.hosts;
            }
        }
    }

    /// A host that no longer exists.
    pub(crate) fn forget(&mut self, host: HostId) {
        for group in self.kept.iter_mut().chain(&mut self.current) {
            group.hosts.remove(host.0);
        }
    }

    /// Hosts that wait to be written; those of several groups count in each.
    pub(crate) fn len(&self) -> u64 {
        self.kept
            .iter()
            .chain(&self.current)
            .map(|group| group.hosts.len())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn ids(ids: &[u32]) -> Vec<HostId> {
        ids.iter().copied().map(HostId).collect()
    }

    #[test]
    fn failed_writes_stay_under_newer_marks() {
        let mut marks = SeenMarks::default();
        marks.mark(ids(&[1, 2, 3]), UnixSeconds(100));
        let failed = marks.take();
        marks.mark(ids(&[2]), UnixSeconds(130));
        marks.put_back(failed);
        let groups = marks.take();
        assert_eq!(groups.len(), 2);
        assert_eq!(
            (groups[0].at, groups[0].host_ids()),
            (UnixSeconds(100), ids(&[1, 3]))
        );
        assert_eq!(
            (groups[1].at, groups[1].host_ids()),
            (UnixSeconds(130), ids(&[2]))
        );
        assert!(marks.take().is_empty());
    }

    #[test]
    fn forgotten_hosts_are_not_written() {
        let mut marks = SeenMarks::default();
        marks.mark(ids(&[1]), UnixSeconds(1));
        marks.forget(HostId(1));
        assert!(marks.take().is_empty());
    }

    proptest! {
        #[test]
        fn nothing_is_lost_nor_made_later(
            rounds in prop::collection::vec((prop::collection::vec(0_u32..50, 0..20), any::<bool>()), 1..60),
        ) {
            let mut marks = SeenMarks::default();
            let (mut truth, mut written) = (BTreeMap::new(), BTreeMap::<u32, u32>::new());
            for (round, (hosts, fails)) in rounds.iter().enumerate() {
                let now = UnixSeconds(u32::try_from(round).unwrap() * 30 + 30);
                marks.mark(ids(hosts), now);
                truth.extend(hosts.iter().map(|host| (*host, now.0)));
                let groups = marks.take();
                if *fails {
                    marks.put_back(groups);
                    prop_assert!(marks.len() <= 50);
                    prop_assert!(marks.kept.len() <= GROUPS_MAX);
                    continue;
                }
                for group in groups {
                    written.extend(group.hosts.iter().map(|host| (host, group.at.0)));
                }
            }
            for group in marks.take() {
                written.extend(group.hosts.iter().map(|host| (host, group.at.0)));
            }
            prop_assert_eq!(written.keys().collect::<Vec<_>>(), truth.keys().collect::<Vec<_>>());
            for (host, at) in written {
                prop_assert!(at <= truth[&host]);
            }
        }
    }
}
