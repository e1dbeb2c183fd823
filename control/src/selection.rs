//! Which hosts a list shows: chosen, sorted and counted in one walk over the directory. Pure.
//!
//! The store would read all hosts for most of these questions. Invariant: the same hosts in the same order as
//! `store/host_list.rs` gives for the same filter, when both know the same.

use std::cmp::Ordering;
use std::collections::HashMap;

use fleet_protocol::ids::{HostId, UnixSeconds};

use crate::directory::{Directory, Entry, LabelSetIndex};
use crate::model::host::{
    HostFilter, HostOrder, HostStatus, INTERVAL_UNKNOWN_S, MIA_AFTER_S, NEW_FOR_S, ONLINE_BUFFER_S,
    SortValue,
};
use crate::model::label::LabelId;
use crate::names::{Names, Needle};

/// Kept at least before the worst half is thrown away.
const KEPT_MIN: usize = 512;

/// A page of hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// That the filter lets pass, on all pages.
    pub(crate) count: u64,
    /// The page, in order.
    pub(crate) hosts: Vec<HostId>,
}

/// What a list is sorted by; of one kind in one list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Number(u32),
    Text(Box<str>),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum KeyRef<'k> {
    Number(u32),
    Text(&'k str),
}

impl Key {
    fn borrow(&self) -> KeyRef<'_> {
        match self {
            Self::Number(number) => KeyRef::Number(*number),
            Self::Text(text) => KeyRef::Text(text),
        }
    }
}

impl KeyRef<'_> {
    fn own(self) -> Key {
        match self {
            Self::Number(number) => Key::Number(number),
            Self::Text(text) => Key::Text(text.into()),
        }
    }
}

/// Chooses while the directory is walked in pieces.
pub(crate) struct Selector {
    filter: HostFilter,
    needle: Option<Needle>,
    offset: usize,
    /// Up to the end of the page.
    wanted: usize,
    kept: Vec<(Key, HostId)>,
    /// What comes after this one is on a later page.
    last: Option<(Key, HostId)>,
    count: u64,
}

impl Selector {
    /// For the page of a filter; `per_page` 0 counts only.
    pub(crate) fn new(filter: HostFilter) -> Self {
        let per_page = usize::try_from(filter.per_page).unwrap_or(usize::MAX);
        let page = usize::try_from(filter.page).unwrap_or(usize::MAX);
        let offset = page.saturating_mul(per_page);
        Self {
            needle: filter.text.as_deref().map(Needle::new),
            offset,
            wanted: if per_page == 0 {
                0
            } else {
                offset.saturating_add(per_page)
            },
            kept: Vec::new(),
            last: None,
            count: 0,
            filter,
        }
    }

    /// Looks at a range of places.
    pub(crate) fn look(&mut self, directory: &Directory, from: usize, to: usize) {
        let mut members = HashMap::new();
        for (host, names) in directory.walk_named(from, to) {
            if self.lets_pass(directory, host, names, &mut members) {
                self.count += 1;
                if self.wanted > 0 {
                    self.keep(sort_key(directory, host, names, self.filter.order), host.id);
                }
            }
        }
    }

    fn lets_pass(
        &mut self,
        directory: &Directory,
        host: &Entry,
        names: &Names,
        members: &mut HashMap<LabelSetIndex, bool>,
    ) -> bool {
        let filter = &self.filter;
        if filter.after.is_some_and(|after| host.id <= after) {
            return false;
        }
        if let Some(platform) = &filter.platform
            && *directory.platform_name(host.platform) != **platform
        {
            return false;
        }
        if let Some(label) = filter.label
            && label != LabelId::ALL_HOSTS
        {
            let is_member = *members.entry(host.labels).or_insert_with(|| {
                let labels = directory.labels(host.labels);
                labels.binary_search(&label).is_ok()
            });
            if !is_member {
                return false;
            }
        }
        if filter
            .status
            .is_some_and(|status| !is_in_state(host, status, filter.now))
        {
            return false;
        }
        if let Some(value) = &filter.beyond {
            let key = sort_key(directory, host, names, filter.order);
            let value = match value {
                SortValue::Number(number) => KeyRef::Number(*number),
                SortValue::Text(text) => KeyRef::Text(text),
            };
            if direction(filter.is_descending, key.cmp(&value)) != Ordering::Greater {
                return false;
            }
        }
        self.needle
            .as_mut()
            .is_none_or(|needle| needle.is_in(names))
    }

    fn keep(&mut self, key: KeyRef<'_>, id: HostId) {
        let is_descending = self.filter.is_descending;
        if let Some((last, last_id)) = &self.last {
            let order = key.cmp(&last.borrow()).then(id.cmp(last_id));
            if direction(is_descending, order) == Ordering::Greater {
                return;
            }
        }
        self.kept.push((key.own(), id));
        if self.kept.len() >= self.wanted.saturating_mul(2).max(KEPT_MIN) {
            self.prune();
        }
    }

    /// Throws away what is on later pages.
    fn prune(&mut self) {
        let is_descending = self.filter.is_descending;
        if self.kept.len() <= self.wanted {
            return;
        }
        let (_, last, _) = self
            .kept
            .select_nth_unstable_by(self.wanted.saturating_sub(1), |a, b| {
                direction(is_descending, a.cmp(b))
            });
        self.last = Some(last.clone());
        self.kept.truncate(self.wanted);
    }

    /// The page.
    pub(crate) fn finish(mut self) -> Selection {
        self.prune();
        let is_descending = self.filter.is_descending;
        let mut page = if self.offset >= self.kept.len() {
            Vec::new()
        } else {
            if self.offset > 0 {
                self.kept
                    .select_nth_unstable_by(self.offset, |a, b| direction(is_descending, a.cmp(b)));
            }
            self.kept.split_off(self.offset)
        };
        page.sort_unstable_by(|a, b| direction(is_descending, a.cmp(b)));
        Selection {
            count: self.count,
            hosts: page.into_iter().map(|(_, id)| id).collect(),
        }
    }
}

fn direction(is_descending: bool, order: Ordering) -> Ordering {
    if is_descending {
        order.reverse()
    } else {
        order
    }
}

fn sort_key<'d>(
    directory: &'d Directory,
    host: &Entry,
    names: &'d Names,
    order: HostOrder,
) -> KeyRef<'d> {
    match order {
        HostOrder::Id => KeyRef::Number(host.id.0),
        HostOrder::Hostname => KeyRef::Text(names.hostname()),
        HostOrder::SeenAt => KeyRef::Number(host.seen_at.max(host.enrolled_at).0),
        HostOrder::EnrolledAt => KeyRef::Number(host.enrolled_at.0),
        HostOrder::OsVersion => KeyRef::Text(directory.names().os_version(names)),
        HostOrder::OsqueryVersion => KeyRef::Text(directory.names().osquery_version(names)),
    }
}

fn is_in_state(host: &Entry, status: HostStatus, now: UnixSeconds) -> bool {
    match status {
        HostStatus::New => now.0.saturating_sub(host.enrolled_at.0) < NEW_FOR_S,
        status => silence_of(host, now) == status,
    }
}

/// Online, missing or offline.
pub(crate) fn silence_of(host: &Entry, now: UnixSeconds) -> HostStatus {
    let silence_s = now.0.saturating_sub(host.seen_at.max(host.enrolled_at).0);
    let interval_s = match host.interval_s {
        0 => INTERVAL_UNKNOWN_S,
        seconds => u32::from(seconds),
    };
    if silence_s <= interval_s.saturating_add(ONLINE_BUFFER_S) {
        HostStatus::Online
    } else if silence_s >= MIA_AFTER_S {
        HostStatus::Mia
    } else {
        HostStatus::Offline
    }
}

#[cfg(test)]
#[path = "selection_tests.rs"]
mod tests;
