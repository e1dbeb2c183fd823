//! Hosts that are called: they have work now, whatever the schedule says, because a live query waits for them.
//!
//! Invariant: workers were told of every called host that its work is due, by the feed or by the load that they began with.

use fleet_protocol::feed::{CALLED_PER_CHANGE_MAX, Change};
use fleet_protocol::ids::{HostId, UnixSeconds};
use roaring::RoaringBitmap;

use super::Roster;

/// When the work of a called host falls due: before any clock.
const CALLED_AT: UnixSeconds = UnixSeconds(0);

impl Roster {
    /// Calls hosts, once more if they were called. Publish afterwards.
    pub(crate) fn call(&mut self, hosts: &RoaringBitmap) {
        for host in hosts {
            if let Some(place) = self.directory.place_of(HostId(host))
                && let Some(entry) = self.directory.get_mut(place)
            {
                entry.due_told_at = CALLED_AT;
            }
        }
        self.called |= hosts;
        self.changes.extend(changes(hosts));
    }

    /// A host need not come any more; whether it was called. Publish afterwards.
    pub(crate) fn uncall(&mut self, host: u32) -> bool {
        let was_called = self.called.remove(host);
        if was_called && let Some(place) = self.directory.place_of(HostId(host)) {
            self.settle(place, false);
        }
        was_called
    }

    /// For those who resume: what they missed of calls is not known.
    pub(crate) fn calls(&self) -> impl Iterator<Item = Change> {
        changes(&self.called)
    }

    /// Hosts that are called and have not come yet.
    pub(crate) fn called_count(&self) -> u64 {
        self.called.len()
    }

    /// When the work of a host is due that is called.
    pub(super) fn call_of(&self, host: HostId) -> Option<UnixSeconds> {
        self.called.contains(host.0).then_some(CALLED_AT)
    }
}

fn changes(hosts: &RoaringBitmap) -> impl Iterator<Item = Change> + use<> {
    let count = usize::try_from(CALLED_PER_CHANGE_MAX).unwrap_or(usize::MAX);
    let hosts: Vec<u32> = hosts.iter().collect();
    let slices: Vec<RoaringBitmap> = hosts
        .chunks(count)
        .map(|hosts| hosts.iter().copied().collect())
        .collect();
    slices.into_iter().map(|slice| {
        let mut bytes = Vec::with_capacity(slice.serialized_size());
        // Writing into memory does not fail; a bitmap that is cut off calls nobody.
        let _ = slice.serialize_into(&mut bytes);
        Change::Called {
            hosts: bytes.into(),
            at: CALLED_AT,
        }
    })
}
