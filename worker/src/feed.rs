//! What the feed has told: the tables that requests are served from, and during a full load a second pair beside them.
//!
//! A full load may be older than changes that arrive while it runs. So a change during a load goes to both pairs, and
//! what it touched is not overwritten by a later piece of the load. A pair takes the place of the other only when the
//! load is complete; a load that breaks off leaves no trace.

use fleet_protocol::feed::{CALLED_PER_CHANGE_MAX, Change, Feed, Host, Load};
use fleet_protocol::ids::{AnswerId, FeedSeq, HostId, NodeKeyHash, UnixSeconds};
use hashbrown::{HashMap, HashSet};
use roaring::RoaringBitmap;

use crate::answers::{Answers, Content};
use crate::hosts::Hosts;

/// All that a worker knows to answer alone.
#[derive(Default)]
pub(crate) struct Table {
    serving: Pair,
    loading: Option<Loading>,
    /// Position of `serving`; `None` before the first complete load.
    position: Option<FeedSeq>,
}

#[derive(Default)]
struct Pair {
    hosts: Hosts,
    answers: Answers,
}

#[derive(Default)]
struct Loading {
    pair: Pair,
    touched_keys: HashSet<NodeKeyHash>,
    touched_answers: HashSet<AnswerId>,
    /// Told while it was not certain that the load had the host yet.
    due: HashMap<HostId, UnixSeconds>,
    /// Newest position told by a change.
    position: FeedSeq,
}

/// A piece came that no load was waiting for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutOfPlace;

impl Table {
    pub(crate) fn host(&self, key: &NodeKeyHash) -> Option<Host> {
        self.serving.hosts.get(key)
    }

    pub(crate) fn host_by_id(&self, id: HostId) -> Option<Host> {
        self.serving.hosts.by_id(id)
    }

    pub(crate) fn config(&self, id: AnswerId, accepts_gzip: bool) -> Option<Content> {
        self.serving.answers.get(id, accepts_gzip)
    }

    pub(crate) fn hosts_len(&self) -> usize {
        self.serving.hosts.len()
    }

    pub(crate) fn answers_len(&self) -> usize {
        self.serving.answers.len()
    }

    /// From where a new link may resume.
    pub(crate) fn position(&self) -> Option<FeedSeq> {
        self.position
    }

    /// Takes one piece. `on_change` hears of every change that is in it, before it has effect.
    pub(crate) fn apply(
        &mut self,
        feed: Feed,
        on_change: impl FnMut(&Change),
    ) -> Result<(), OutOfPlace> {
        feed.changes.iter().for_each(on_change);
        match feed.load {
            Load::Begin | Load::Whole => self.loading = Some(Loading::default()),
            Load::Continue | Load::End if self.loading.is_none() => return Err(OutOfPlace),
            Load::Continue | Load::End | Load::Changes => {}
        }
        if feed.load == Load::Changes {
            self.apply_changes(feed.seq, feed.changes);
            return Ok(());
        }
        if let Some(loading) = &mut self.loading {
            loading.fill(feed.changes);
        }
        if matches!(feed.load, Load::End | Load::Whole)
            && let Some(loading) = self.loading.take()
        {
            self.position = Some(feed.seq.max(loading.position));
            self.serving = loading.finish();
        }
        Ok(())
    }

    /// A host that control told of in an answer.
    pub(crate) fn insert_host(&mut self, host: Host) {
        self.change(Change::Host(host));
    }

    /// The link that a load came over is gone.
    pub(crate) fn abort_load(&mut self) {
        self.loading = None;
    }

    fn apply_changes(&mut self, seq: FeedSeq, changes: Vec<Change>) {
        for change in changes {
            self.change(change);
        }
        match &mut self.loading {
            // The table that is being replaced may lack what lies between its position and this one.
            Some(loading) => loading.position = loading.position.max(seq),
            // Before the first load, changes alone are no base to resume from.
            None if self.position.is_some() => self.position = Some(seq),
            None => {}
        }
    }

    fn change(&mut self, change: Change) {
        if let Some(loading) = &mut self.loading {
            loading.touch(&change);
            loading.pair.apply(change.clone());
        }
        self.serving.apply(change);
    }
}

impl Pair {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Host(host) => self.hosts.insert(host),
            Change::Forget(key) => {
                self.hosts.forget(&key);
            }
            Change::Answer { id, config } => self.answers.insert(id, config),
            Change::DropAnswer(id) => self.answers.remove(id),
            Change::WorkDue { host, at } => {
                self.hosts.set_work_due(host, at);
            }
            Change::Called { hosts, at } => {
                for host in called(&hosts) {
                    self.hosts.set_work_due(host, at);
                }
            }
        }
    }
}

/// The hosts of a call; `None` when they cannot be read, or are more than a call may have.
pub(crate) fn read_called(hosts: &[u8]) -> Option<RoaringBitmap> {
    let hosts = RoaringBitmap::deserialize_from(hosts).ok()?;
    (hosts.len() <= CALLED_PER_CHANGE_MAX).then_some(hosts)
}

/// The same for those who need not tell why there are none.
fn called(hosts: &[u8]) -> impl Iterator<Item = HostId> {
    let hosts = read_called(hosts).unwrap_or_default();
    hosts.into_iter().map(HostId)
}

impl Loading {
    fn touch(&mut self, change: &Change) {
        match change {
            Change::Host(host) => {
                self.touched_keys.insert(host.key);
                self.due.remove(&host.id);
            }
            Change::Forget(key) => {
                self.touched_keys.insert(*key);
            }
            Change::Answer { id, .. } | Change::DropAnswer(id) => {
                self.touched_answers.insert(*id);
            }
            Change::WorkDue { host, at } => {
                self.due.insert(*host, *at);
            }
            Change::Called { hosts, at } => {
                self.due.extend(called(hosts).map(|host| (host, *at)));
            }
        }
    }

    fn fill(&mut self, changes: Vec<Change>) {
        for change in changes {
            let is_older = match &change {
                Change::Host(host) => self.touched_keys.contains(&host.key),
                Change::Answer { id, .. } => self.touched_answers.contains(id),
                Change::Forget(_)
                | Change::DropAnswer(_)
                | Change::WorkDue { .. }
                | Change::Called { .. } => false,
            };
            if !is_older {
                self.pair.apply(change);
            }
        }
    }

    fn finish(mut self) -> Pair {
        for (host, at) in self.due {
            self.pair.hosts.set_work_due(host, at);
        }
        self.pair
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::test_host;
    use crate::state::hash_node_key;
    use bytes::Bytes;

    fn piece(load: Load, seq: u64, changes: Vec<Change>) -> Feed {
        Feed {
            load,
            seq: FeedSeq(seq),
            changes,
        }
    }

    fn apply(table: &mut Table, load: Load, seq: u64, changes: Vec<Change>) {
        table.apply(piece(load, seq, changes), |_| {}).unwrap();
    }

    fn answer(id: u64, config: &'static str) -> Change {
        Change::Answer {
            id: AnswerId(id),
            config: Bytes::from_static(config.as_bytes()),
        }
    }

    fn knows(table: &Table, key: &str) -> bool {
        table.host(&hash_node_key(key)).is_some()
    }

    fn loaded() -> Table {
        let mut table = Table::default();
        let hosts = vec![
            answer(1, "{}"),
            Change::Host(test_host(1, "one")),
            Change::Host(test_host(2, "two")),
        ];
        apply(&mut table, Load::Whole, 10, hosts);
        table
    }

    #[test]
    fn changes_move_the_position() {
        let mut table = loaded();
        assert_eq!(table.position(), Some(FeedSeq(10)));
        let at = UnixSeconds(7);
        let changes = vec![
            Change::Forget(hash_node_key("one")),
            Change::WorkDue {
                host: HostId(2),
                at,
            },
            answer(2, "{\"a\":1}"),
            Change::DropAnswer(AnswerId(1)),
        ];
        apply(&mut table, Load::Changes, 11, changes);
        assert_eq!(table.position(), Some(FeedSeq(11)));
        assert!(!knows(&table, "one"));
        assert_eq!(table.host(&hash_node_key("two")).unwrap().work_due_at, at);
        assert_eq!(table.config(AnswerId(2), false).unwrap().bytes, "{\"a\":1}");
        assert_eq!(table.config(AnswerId(1), false), None);
    }

    #[test]
    fn the_old_table_serves_until_the_load_is_complete() {
        let mut table = loaded();
        let three = vec![Change::Host(test_host(3, "three"))];
        apply(&mut table, Load::Begin, 20, three);
        assert!(knows(&table, "one") && !knows(&table, "three"));
        apply(&mut table, Load::Continue, 20, vec![answer(3, "{}")]);
        assert_eq!(table.position(), Some(FeedSeq(10)));
        apply(&mut table, Load::End, 20, Vec::new());
        assert!(!knows(&table, "one") && knows(&table, "three"));
        assert_eq!(table.config(AnswerId(1), false), None);
        assert_eq!((table.hosts_len(), table.answers_len()), (1, 1));
        assert_eq!(table.position(), Some(FeedSeq(20)));
    }

    #[test]
    fn changes_during_a_load_survive_it() {
        let mut table = loaded();
        apply(&mut table, Load::Begin, 20, vec![answer(1, "{\"old\":1}")]);
        let at = UnixSeconds(0);
        let changes = vec![
            Change::Forget(hash_node_key("one")),
            answer(1, "{\"new\":1}"),
            Change::WorkDue {
                host: HostId(2),
                at,
            },
        ];
        apply(&mut table, Load::Changes, 21, changes);
        table.insert_host(test_host(4, "four"));
        assert!(!knows(&table, "one") && knows(&table, "four"));
        let rest = vec![
            Change::Host(test_host(1, "one")),
            Change::Host(test_host(2, "two")),
            answer(1, "{\"old\":1}"),
        ];
        apply(&mut table, Load::End, 20, rest);
        assert!(!knows(&table, "one"), "forgotten during the load");
        assert!(knows(&table, "four"), "enrolled during the load");
        assert_eq!(
            table.config(AnswerId(1), false).unwrap().bytes,
            "{\"new\":1}"
        );
        assert_eq!(table.host(&hash_node_key("two")).unwrap().work_due_at, at);
        assert_eq!(table.position(), Some(FeedSeq(21)));
    }

    fn call(ids: impl IntoIterator<Item = u32>, at: u32) -> Change {
        let mut hosts = Vec::new();
        let ids: RoaringBitmap = ids.into_iter().collect();
        ids.serialize_into(&mut hosts).unwrap();
        Change::Called {
            hosts: hosts.into(),
            at: UnixSeconds(at),
        }
    }

    #[test]
    fn a_call_makes_its_hosts_due_during_a_load_too() {
        let mut table = loaded();
        let due_at = |table: &Table, key| table.host(&hash_node_key(key)).unwrap().work_due_at;
        let before = due_at(&table, "one");
        apply(&mut table, Load::Changes, 11, vec![call([2, 70_000], 5)]);
        assert_eq!(due_at(&table, "one"), before);
        assert_eq!(due_at(&table, "two"), UnixSeconds(5));
        apply(&mut table, Load::Begin, 20, Vec::new());
        apply(&mut table, Load::Changes, 21, vec![call([1, 2], 6)]);
        let hosts = vec![
            Change::Host(test_host(1, "one")),
            Change::Host(test_host(2, "two")),
        ];
        apply(&mut table, Load::End, 20, hosts);
        assert_eq!(due_at(&table, "one"), UnixSeconds(6));
        assert_eq!(due_at(&table, "two"), UnixSeconds(6));
    }

    #[test]
    fn a_call_that_cannot_be_read_calls_nobody() {
        let many = u32::try_from(CALLED_PER_CHANGE_MAX).unwrap() + 1;
        for bad in [
            Change::Called {
                hosts: Bytes::from_static(b"no bitmap"),
                at: UnixSeconds(5),
            },
            call(0..many, 5),
        ] {
            let mut table = loaded();
            let before = table.host(&hash_node_key("two"));
            let Change::Called { hosts, .. } = &bad else {
                unreachable!()
            };
            assert_eq!(read_called(hosts), None);
            apply(&mut table, Load::Changes, 11, vec![bad]);
            assert_eq!(table.host(&hash_node_key("two")), before);
        }
    }

    #[test]
    fn a_broken_load_leaves_no_trace() {
        let mut table = loaded();
        let three = vec![Change::Host(test_host(3, "three"))];
        apply(&mut table, Load::Begin, 20, three);
        apply(&mut table, Load::Changes, 21, Vec::new());
        table.abort_load();
        assert_eq!(table.position(), Some(FeedSeq(10)));
        for load in [Load::Continue, Load::End] {
            assert_eq!(
                table.apply(piece(load, 20, Vec::new()), |_| {}),
                Err(OutOfPlace)
            );
        }
        assert!(knows(&table, "one") && !knows(&table, "three"));
    }

    #[test]
    fn changes_alone_are_no_base() {
        let mut table = Table::default();
        let one = vec![Change::Host(test_host(1, "one"))];
        apply(&mut table, Load::Changes, 5, one);
        assert!(knows(&table, "one"));
        assert_eq!(table.position(), None);
    }
}
