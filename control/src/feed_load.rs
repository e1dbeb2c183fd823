//! What a worker is told when it comes: all there is, or what it missed. No IO.
//!
//! Reads the [`Roster`], changes nothing. Invariants: a piece is small enough to be made under the lock; an answer
//! stands before the first host that uses it; due times here are those that everybody was told last.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use fleet_protocol::feed::{CHANGES_PER_FEED_MAX, Change, Feed, Load};
use fleet_protocol::ids::FeedSeq;

use crate::feed::{LoadCursor, Touch, pieces};
use crate::roster::{Roster, feed_host};

impl Roster {
    /// What a worker missed that holds `after`; `None` when that is not known, and it must load everything.
    pub(crate) fn resume(&self, after: FeedSeq) -> Option<VecDeque<Arc<Feed>>> {
        let touches = self.hub().since(after)?;
        // Another build of control may compose other bytes under the same name.
        let mut changes = self.answers().changes();
        let mut dropped = Vec::new();
        for touch in touches {
            match touch {
                Touch::Host(id) => changes.extend(self.told_hosts(id)),
                Touch::Forget(key) if self.find_key(&key).is_none() => {
                    changes.push(Change::Forget(key));
                }
                Touch::Drop(id) if self.answers().config(id).is_none() => {
                    dropped.push(Change::DropAnswer(id));
                }
                Touch::Forget(_) | Touch::Drop(_) => {}
            }
        }
        changes.append(&mut dropped);
        changes.extend(self.calls());
        let mut pieces = pieces(changes);
        if pieces.is_empty() {
            pieces.push(Vec::new());
        }
        let last = pieces.len() - 1;
        let feeds = pieces.into_iter().enumerate().map(|(index, changes)| {
            let seq = if index == last {
                self.hub().seq()
            } else {
                after
            };
            Arc::new(Feed {
                load: Load::Changes,
                seq,
                changes,
            })
        });
        Some(feeds.collect())
    }

    /// The next piece of a full load: some hosts, and the answers among theirs that were not told yet.
    pub(crate) fn load_piece(&self, cursor: &mut LoadCursor) -> Feed {
        const PIECE_BYTES: usize = 8 << 20;
        let mut changes = Vec::new();
        let (mut bytes, end) = (0, self.directory().end());
        let from = cursor.next;
        while cursor.next < end && changes.len() < CHANGES_PER_FEED_MAX - 1 && bytes < PIECE_BYTES {
            for entry in self.directory().walk(cursor.next, cursor.next + 1) {
                if !cursor.told.contains(&entry.answer)
                    && let Some(answer) = self.answers().change(entry.answer)
                {
                    cursor.told.insert(entry.answer);
                    bytes += self.answers().config(entry.answer).map_or(0, Bytes::len);
                    changes.push(answer);
                }
                changes.push(Change::Host(feed_host(entry)));
            }
            cursor.next += 1;
            // Empty places must not keep the lock either.
            if cursor.next - from >= 4 * CHANGES_PER_FEED_MAX {
                break;
            }
        }
        let has_begun = std::mem::replace(&mut cursor.has_begun, true);
        let load = match (has_begun, cursor.next >= end) {
            (false, true) => Load::Whole,
            (false, false) => Load::Begin,
            (true, false) => Load::Continue,
            (true, true) => Load::End,
        };
        Feed {
            load,
            seq: cursor.seq,
            changes,
        }
    }
}
