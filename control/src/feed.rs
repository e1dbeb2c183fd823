//! The feed to the workers: numbers, subscribers, resumption.
//!
//! Owner of the position and of the list of what changed lately. Invariants: a subscriber sees every piece in order,
//! first its load (or what it missed), then what was published since it began; one that falls behind loses its queue
//! and comes again. A subject touched at position `n` is remembered under `n + 1`, because the number of its row is
//! not known yet: who has `n + 1` has heard of it, who has only `n` hears of it again, and hearing twice is harmless.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use fleet_protocol::feed::{CHANGES_PER_FEED_MAX, Change, Feed, Load};
use fleet_protocol::ids::{AnswerId, FeedSeq, HostId, NodeKeyHash};
use tokio::sync::{mpsc, watch};

use crate::roster::Roster;

/// Pieces that may wait for one subscriber.
const QUEUE_PIECES: usize = 512;
/// Touched subjects that are remembered.
const RECENT_MAX: usize = 65_536;
/// Bytes of configs in one piece, about.
const PIECE_BYTES_MAX: usize = 8 << 20;

/// What a change was about. Its state is looked up when it is told again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touch {
    /// A host is new or changed.
    Host(HostId),
    /// A key is no longer valid.
    Forget(NodeKeyHash),
    /// An answer went out of use.
    Drop(AnswerId),
}

impl Touch {
    /// Answers, calls and due times are not remembered: the former are told to everybody who resumes, the latter are hints.
    fn of(change: &Change) -> Option<Self> {
        match change {
            Change::Host(host) => Some(Self::Host(host.id)),
            Change::Forget(key) => Some(Self::Forget(*key)),
            Change::DropAnswer(answer) => Some(Self::Drop(*answer)),
            Change::Answer { .. } | Change::WorkDue { .. } | Change::Called { .. } => None,
        }
    }
}

/// What changed lately.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    /// Who has at least this position can resume.
    floor: FeedSeq,
    touches: VecDeque<(FeedSeq, Touch)>,
}

impl Recent {
    /// Nothing is remembered of what came up to `floor`.
    pub(crate) fn after(floor: FeedSeq) -> Self {
        Self {
            floor,
            touches: VecDeque::new(),
        }
    }

    /// Remembers; the oldest gives way.
    pub(crate) fn push(&mut self, seq: FeedSeq, touch: Touch) {
        if self.touches.len() >= RECENT_MAX
            && let Some((oldest, _)) = self.touches.pop_front()
        {
            self.floor = self.floor.max(oldest);
        }
        self.touches.push_back((seq, touch));
    }

    /// What was touched after a position, oldest first, each subject once; `None` when that is not known any more.
    pub(crate) fn since(&self, after: FeedSeq) -> Option<Vec<Touch>> {
        if after < self.floor {
            return None;
        }
        let mut hosts = HashSet::new();
        Some(
            self.touches
                .iter()
                .filter(|(seq, _)| *seq > after)
                .map(|(_, touch)| *touch)
                .filter(|touch| match touch {
                    Touch::Host(host) => hosts.insert(*host),
                    Touch::Forget(_) | Touch::Drop(_) => true,
                })
                .collect(),
        )
    }
}

/// Publishes to the subscribers.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    seq: FeedSeq,
    recent: Recent,
    subscribers: Vec<mpsc::Sender<Arc<Feed>>>,
    /// Subscribers that fell behind.
    dropped: u64,
}

impl Hub {
    /// The position.
    pub(crate) fn seq(&self) -> FeedSeq {
        self.seq
    }

    /// Starts anew at a position with what is known of the changes before it.
    pub(crate) fn restart(&mut self, seq: FeedSeq, recent: Recent) {
        self.seq = seq;
        self.recent = recent;
    }

    /// Subscribers that stand, and those that fell behind.
    pub(crate) fn subscriber_counts(&self) -> (usize, u64) {
        (self.subscribers.len(), self.dropped)
    }

    /// The fullest subscriber's free pieces.
    pub(crate) fn room(&self) -> usize {
        self.subscribers
            .iter()
            .filter(|subscriber| !subscriber.is_closed())
            .map(mpsc::Sender::capacity)
            .min()
            .unwrap_or(QUEUE_PIECES)
    }

    /// What was touched after a position that somebody else holds.
    pub(crate) fn since(&self, after: FeedSeq) -> Option<Vec<Touch>> {
        // A position from the future was given by a store that has been set back since.
        if after > self.seq {
            return None;
        }
        self.recent.since(after)
    }

    /// From now on every piece goes into this queue too.
    pub(crate) fn subscribe(&mut self) -> mpsc::Receiver<Arc<Feed>> {
        let (sender, receiver) = mpsc::channel(QUEUE_PIECES);
        self.subscribers.push(sender);
        receiver
    }

    /// Sends changes, in pieces; the last one carries the new position, if there is one.
    pub(crate) fn publish(&mut self, changes: Vec<Change>, position: Option<FeedSeq>) {
        let seq = self.seq.max(position.unwrap_or_default());
        if changes.is_empty() && seq == self.seq {
            return;
        }
        let number = FeedSeq(self.seq.0 + 1);
        for touch in changes.iter().filter_map(Touch::of) {
            self.recent.push(number, touch);
        }
        if self.subscribers.is_empty() {
            self.seq = seq;
            return;
        }
        let mut pieces = pieces(changes);
        let last = pieces.pop().unwrap_or_default();
        for piece in pieces {
            self.send(piece);
        }
        self.seq = seq;
        self.send(last);
    }

    fn send(&mut self, changes: Vec<Change>) {
        let feed = Arc::new(Feed {
            load: Load::Changes,
            seq: self.seq,
            changes,
        });
        let dropped = &mut self.dropped;
        self.subscribers
            .retain(|subscriber| match subscriber.try_send(Arc::clone(&feed)) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    *dropped += 1;
                    false
                }
            });
    }
}

/// Cuts changes into pieces that fit into messages.
pub(crate) fn pieces(changes: Vec<Change>) -> Vec<Vec<Change>> {
    let mut pieces = Vec::new();
    let (mut piece, mut bytes) = (Vec::new(), 0);
    for change in changes {
        let size = match &change {
            Change::Answer { config, .. } => config.len(),
            // As many changes as there may be in a piece.
            Change::Called { .. } => PIECE_BYTES_MAX,
            _ => 0,
        };
        if piece.len() >= CHANGES_PER_FEED_MAX || (bytes > 0 && bytes + size > PIECE_BYTES_MAX) {
            pieces.push(std::mem::take(&mut piece));
            bytes = 0;
        }
        bytes += size;
        piece.push(change);
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

/// How far a full load is.
#[derive(Debug, Default)]
pub(crate) struct LoadCursor {
    /// Position when the load began. Every piece carries it: what came since is in the queue, and who loses that must
    /// not believe that it has it.
    pub(crate) seq: FeedSeq,
    /// Next place of the directory.
    pub(crate) next: usize,
    /// Answers that this load has told already.
    pub(crate) told: HashSet<AnswerId>,
    /// Whether a piece went out.
    pub(crate) has_begun: bool,
}

#[derive(Debug)]
enum Stage {
    /// The directory is not loaded yet.
    Waiting(Option<FeedSeq>),
    /// What the subscriber missed, then live.
    Resuming(VecDeque<Arc<Feed>>),
    /// A full load, then live.
    Loading(LoadCursor),
    /// What is published.
    Live,
}

/// One link's view of the feed.
#[derive(Debug)]
pub(crate) struct Subscription {
    roster: Arc<Mutex<Roster>>,
    is_loaded: watch::Receiver<bool>,
    stage: Stage,
    live: Option<mpsc::Receiver<Arc<Feed>>>,
}

impl Subscription {
    /// Begins with the load, or with what came after `feed_after`.
    pub(crate) fn new(
        roster: Arc<Mutex<Roster>>,
        is_loaded: watch::Receiver<bool>,
        feed_after: Option<FeedSeq>,
    ) -> Self {
        let mut subscription = Self {
            roster,
            is_loaded,
            stage: Stage::Waiting(feed_after),
            live: None,
        };
        subscription.begin();
        subscription
    }

    /// The next piece; `None` when the subscriber fell behind or control ends: the link must close. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Arc<Feed>> {
        loop {
            if matches!(self.stage, Stage::Waiting(_)) {
                self.is_loaded.wait_for(|is_loaded| *is_loaded).await.ok()?;
                self.begin();
            }
            if let Some(piece) = self.prepared() {
                return Some(piece);
            }
            if matches!(self.stage, Stage::Live) {
                return self.live.as_mut()?.recv().await;
            }
        }
    }

    /// The next piece if it is there now. Draining it before a reply is written keeps the promise that a host is told
    /// before the reply that enrolls it.
    pub(crate) fn try_next(&mut self) -> Option<Arc<Feed>> {
        self.begin();
        if let Some(piece) = self.prepared() {
            return Some(piece);
        }
        self.live.as_mut()?.try_recv().ok()
    }

    fn begin(&mut self) {
        let Stage::Waiting(feed_after) = self.stage else {
            return;
        };
        if !*self.is_loaded.borrow() {
            return;
        }
        let mut roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        self.live = Some(roster.subscribe());
        let resumed = feed_after.and_then(|after| roster.resume(after));
        self.stage = match resumed {
            Some(pieces) => Stage::Resuming(pieces),
            None => Stage::Loading(LoadCursor {
                seq: roster.hub().seq(),
                ..LoadCursor::default()
            }),
        };
    }

    fn prepared(&mut self) -> Option<Arc<Feed>> {
        match &mut self.stage {
            Stage::Waiting(_) | Stage::Live => None,
            Stage::Resuming(pieces) => {
                let piece = pieces.pop_front();
                if pieces.is_empty() {
                    self.stage = Stage::Live;
                }
                piece
            }
            Stage::Loading(cursor) => {
                let roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
                let piece = roster.load_piece(cursor);
                drop(roster);
                if matches!(piece.load, Load::End | Load::Whole) {
                    self.stage = Stage::Live;
                }
                Some(Arc::new(piece))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use fleet_protocol::ids::UnixSeconds;

    use super::*;

    fn due(host: u32) -> Change {
        Change::WorkDue {
            host: HostId(host),
            at: UnixSeconds(1),
        }
    }

    fn forget(key: u8) -> Change {
        Change::Forget(NodeKeyHash([key; 32]))
    }

    #[test]
    fn the_last_piece_carries_the_new_position() {
        let mut hub = Hub::default();
        hub.restart(FeedSeq(5), Recent::after(FeedSeq(5)));
        let mut queue = hub.subscribe();
        let count = u32::try_from(CHANGES_PER_FEED_MAX).unwrap() + 1;
        hub.publish((0..count).map(due).collect(), Some(FeedSeq(9)));
        let (first, second) = (queue.try_recv().unwrap(), queue.try_recv().unwrap());
        assert_eq!(
            (first.seq, first.changes.len()),
            (FeedSeq(5), CHANGES_PER_FEED_MAX)
        );
        assert_eq!((second.seq, second.changes.len()), (FeedSeq(9), 1));
        hub.publish(vec![], Some(FeedSeq(9)));
        assert!(queue.try_recv().is_err());
        hub.publish(vec![], Some(FeedSeq(10)));
        assert_eq!(queue.try_recv().unwrap().seq, FeedSeq(10));
    }

    #[test]
    fn who_falls_behind_is_dropped_after_a_prefix() {
        let mut hub = Hub::default();
        let mut slow = hub.subscribe();
        for seq in 1..=QUEUE_PIECES as u64 + 1 {
            hub.publish(vec![due(1)], Some(FeedSeq(seq)));
        }
        assert_eq!(hub.subscriber_counts(), (0, 1));
        let mut seen = 0;
        while let Ok(piece) = slow.try_recv() {
            seen += 1;
            assert_eq!(piece.seq, FeedSeq(seen));
        }
        assert_eq!(seen, QUEUE_PIECES as u64);
        assert!(matches!(
            slow.try_recv(),
            Err(mpsc::error::TryRecvError::Disconnected)
        ));
    }

    #[test]
    fn touches_without_a_number_reach_those_who_missed_them() {
        let mut hub = Hub::default();
        hub.restart(FeedSeq(5), Recent::after(FeedSeq(3)));
        hub.publish(vec![forget(1)], None);
        let missed = vec![Touch::Forget(NodeKeyHash([1; 32]))];
        assert_eq!(hub.since(FeedSeq(5)), Some(missed.clone()));
        hub.publish(vec![due(1)], Some(FeedSeq(6)));
        assert_eq!(hub.since(FeedSeq(5)), Some(missed));
        assert_eq!(hub.since(FeedSeq(6)), Some(vec![]));
        assert_eq!(hub.since(FeedSeq(2)), None);
        assert_eq!(hub.since(FeedSeq(7)), None);
    }

    #[test]
    fn what_gave_way_cannot_be_resumed() {
        let mut recent = Recent::after(FeedSeq(0));
        for seq in 1..=RECENT_MAX as u64 + 10 {
            recent.push(FeedSeq(seq), Touch::Drop(AnswerId(seq)));
        }
        assert_eq!(recent.since(FeedSeq(9)), None);
        assert_eq!(recent.since(FeedSeq(10)).unwrap().len(), RECENT_MAX);
        assert_eq!(recent.touches.len(), RECENT_MAX);
    }

    #[test]
    fn large_answers_are_spread_over_pieces() {
        let answer = |id| Change::Answer {
            id: AnswerId(id),
            config: Bytes::from(vec![b' '; 1 << 20]),
        };
        let pieces = pieces((0..20).map(answer).collect());
        assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [8, 8, 4]);
    }
}
