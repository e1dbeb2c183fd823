//! Distributed reads that are held open with nothing due: which host waits where, and what ends the wait.
//!
//! Pure: `now` and the surroundings are arguments. Owner of the entries: the sessions, each through its [`Hold`], whose
//! end is counted here. Invariants: a host has one held read at most, since an agent that sends another has given up
//! the one before; whatever may end a hold wakes its session, which then asks [`Hold::judge`].

use std::cell::RefCell;
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use fleet_protocol::feed::Host;
use fleet_protocol::ids::{HostId, UnixSeconds};
use fleet_protocol::stats::HoldEnd;
use hashbrown::HashTable;
use slab::Slab;

use crate::hosts::{hash_of_id, hash_of_key};

/// A read with nothing due. 16 bytes, since there are as many as connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdleRead {
    host: HostId,
    /// Its agent is known by its certificate instead of a key.
    is_certified: bool,
    /// Of the key that it came with: work that is due by then is not for one who came with an older key.
    key_hash: u64,
}

impl IdleRead {
    pub(crate) fn of(host: &Host) -> Self {
        Self {
            host: host.id,
            is_certified: false,
            key_hash: hash_of_key(&host.key),
        }
    }

    /// From an agent that is known by its certificate.
    pub(crate) fn of_certified(host: &Host) -> Self {
        Self {
            is_certified: true,
            ..Self::of(host)
        }
    }

    pub(crate) fn is_certified(&self) -> bool {
        self.is_certified
    }

    pub(crate) fn host(&self) -> HostId {
        self.host
    }

    /// Whether it came from this host, and with this key.
    pub(crate) fn is_of(&self, host: &Host) -> bool {
        self.host == host.id && self.key_hash == hash_of_key(&host.key)
    }
}

/// All held reads of a worker. The door bounds their number: a read is held only while there are connections to spare.
#[derive(Default)]
pub(crate) struct Holds {
    entries: Slab<Entry>,
    /// Of each host, the place of its latest read.
    by_host: HashTable<u32>,
    ends: [u64; HoldEnd::ALL.len()],
}

struct Entry {
    read: IdleRead,
    until: Instant,
    waker: Waker,
    is_superseded: bool,
}

/// What a hold may end for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings {
    pub(crate) now: Instant,
    /// The wall clock at `now`.
    pub(crate) unix_now: UnixSeconds,
    /// When work for the host falls due; `None` when the read's key is no longer the host's.
    pub(crate) work_due_at: Option<UnixSeconds>,
    /// The worker drains, or the connection's address was withdrawn.
    pub(crate) is_leaving: bool,
    /// Others wait for a connection.
    pub(crate) is_crowded: bool,
}

/// Whether a hold goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Until its session is woken, or then at the latest.
    Goes(Instant),
    Ends(HoldEnd),
}

impl Holds {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Held reads that have ended, by [`HoldEnd`].
    pub(crate) fn ends(&self) -> [u64; HoldEnd::ALL.len()] {
        self.ends
    }

    /// Counts an end, or a read that is not held for this reason.
    pub(crate) fn count(&mut self, end: HoldEnd) {
        if let Some(count) = self.ends.get_mut(end as usize) {
            *count += 1;
        }
    }

    /// Something about this host has changed.
    pub(crate) fn wake(&self, host: HostId) {
        let place = self.place_of(host);
        if let Some(entry) = place.and_then(|place| self.entries.get(place as usize)) {
            entry.waker.wake_by_ref();
        }
    }

    /// Something has changed that may concern every host.
    pub(crate) fn wake_all(&self) {
        for (_, entry) in &self.entries {
            entry.waker.wake_by_ref();
        }
    }

    /// `None` when places are numbered out, before which descriptors are.
    fn insert(&mut self, entry: Entry) -> Option<u32> {
        let host = entry.read.host;
        let hash = hash_of_id(host);
        let earlier = self.place_of(host);
        let place = u32::try_from(self.entries.vacant_key()).ok()?;
        self.entries.insert(entry);
        let Some(earlier) = earlier else {
            let entries = &self.entries;
            self.by_host.insert_unique(hash, place, |place| {
                entries
                    .get(*place as usize)
                    .map_or(0, |entry| hash_of_id(entry.read.host))
            });
            return Some(place);
        };
        if let Some(entry) = self.entries.get_mut(earlier as usize) {
            entry.is_superseded = true;
            entry.waker.wake_by_ref();
        }
        if let Some(found) = self.by_host.find_mut(hash, |found| *found == earlier) {
            *found = place;
        }
        Some(place)
    }

    fn remove(&mut self, place: u32) {
        let Some(entry) = self.entries.try_remove(place as usize) else {
            return;
        };
        let hash = hash_of_id(entry.read.host);
        if let Ok(found) = self.by_host.find_entry(hash, |found| *found == place) {
            found.remove();
        }
    }

    fn place_of(&self, host: HostId) -> Option<u32> {
        let is_it = |place: &u32| {
            let entry = self.entries.get(*place as usize);
            entry.is_some_and(|entry| entry.read.host == host)
        };
        self.by_host.find(hash_of_id(host), is_it).copied()
    }
}

impl Entry {
    fn judge(&self, around: &Surroundings) -> Verdict {
        let due_in = around
            .work_due_at
            .map(|at| at.0.saturating_sub(around.unix_now.0));
        if due_in == Some(0) {
            Verdict::Ends(HoldEnd::Work)
        } else if around.is_leaving {
            Verdict::Ends(HoldEnd::Drained)
        } else if self.is_superseded {
            Verdict::Ends(HoldEnd::Superseded)
        } else if around.now >= self.until {
            Verdict::Ends(HoldEnd::Expired)
        } else if around.is_crowded {
            Verdict::Ends(HoldEnd::Crowded)
        } else {
            let due = due_in
                .and_then(|seconds| around.now.checked_add(Duration::from_secs(seconds.into())));
            Verdict::Goes(due.map_or(self.until, |due| due.min(self.until)))
        }
    }
}

/// One session's held read.
pub(crate) struct Hold {
    holds: Rc<RefCell<Holds>>,
    place: u32,
    /// What it counts as when it is dropped.
    end: HoldEnd,
}

impl Hold {
    /// Begins; `waker` wakes the session. An earlier hold of the same host ends.
    pub(crate) fn new(
        holds: &Rc<RefCell<Holds>>,
        read: IdleRead,
        until: Instant,
        waker: &Waker,
    ) -> Option<Self> {
        let place = holds.borrow_mut().insert(Entry {
            read,
            until,
            waker: waker.clone(),
            is_superseded: false,
        })?;
        Some(Self {
            holds: Rc::clone(holds),
            place,
            end: HoldEnd::Gone,
        })
    }

    /// What is held; it is there until this is dropped.
    pub(crate) fn read(&self) -> Option<IdleRead> {
        let holds = self.holds.borrow();
        holds
            .entries
            .get(self.place as usize)
            .map(|entry| entry.read)
    }

    /// Whether it goes on, as things are.
    pub(crate) fn judge(&self, around: &Surroundings) -> Verdict {
        let holds = self.holds.borrow();
        let entry = holds.entries.get(self.place as usize);
        entry.map_or(Verdict::Ends(self.end), |entry| entry.judge(around))
    }

    /// Ends for this reason; what was held is there to be answered.
    pub(crate) fn end(mut self, end: HoldEnd) -> Option<IdleRead> {
        self.end = end;
        self.read()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holds = self.holds.borrow_mut();
        holds.remove(self.place);
        holds.count(self.end);
    }
}

#[cfg(test)]
#[path = "holds_tests.rs"]
mod tests;
