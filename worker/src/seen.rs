//! Hosts that were heard of since their marks were last sent to control.

use fleet_protocol::ids::HostId;
use hashbrown::HashSet;

/// Most ids in one request.
pub(crate) const IDS_PER_REQUEST_MAX: usize = 200_000;

/// The marks. Bounded by the number of hosts.
#[derive(Default)]
pub(crate) struct Seen {
    hosts: HashSet<HostId>,
}

impl Seen {
    /// A request of this host was authenticated.
    pub(crate) fn mark(&mut self, host: HostId) {
        self.hosts.insert(host);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// All marks, sorted and unique, in pieces that one request may hold. Keeps the room for the next round.
    pub(crate) fn take(&mut self) -> Vec<Vec<HostId>> {
        let mut ids: Vec<_> = self.hosts.drain().collect();
        ids.sort_unstable();
        if ids.len() <= IDS_PER_REQUEST_MAX {
            return if ids.is_empty() {
                Vec::new()
            } else {
                vec![ids]
            };
        }
        ids.chunks(IDS_PER_REQUEST_MAX).map(<[_]>::to_vec).collect()
    }

    /// Marks that control did not take.
    pub(crate) fn merge(&mut self, ids: impl IntoIterator<Item = HostId>) {
        self.hosts.extend(ids);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_come_out_sorted_and_once() {
        let mut seen = Seen::default();
        for id in [5, 1, 5, 3, 1] {
            seen.mark(HostId(id));
        }
        assert_eq!(seen.take(), [[HostId(1), HostId(3), HostId(5)]]);
        assert!(seen.is_empty());
        assert_eq!(seen.take(), Vec::<Vec<_>>::new());
        seen.mark(HostId(2));
        seen.merge([HostId(2), HostId(1)]);
        assert_eq!(seen.take(), [[HostId(1), HostId(2)]]);
    }

    #[test]
    fn large_rounds_are_split() {
        let mut seen = Seen::default();
        let count = u32::try_from(IDS_PER_REQUEST_MAX).unwrap() + 1;
        seen.merge((0..count).map(HostId));
        let pieces = seen.take();
        let sizes: Vec<_> = pieces.iter().map(Vec::len).collect();
        assert_eq!(sizes, [IDS_PER_REQUEST_MAX, 1]);
        assert!(pieces.concat().is_sorted());
    }
}
