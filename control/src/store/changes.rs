//! The `changes` table: what other nodes, and this one after a restart, must read again.
//!
//! Invariant: a transaction numbers its changes as its last step, under the lock of the counter's row, which it holds
//! until its commit is visible. So a reader that has seen number n will never see a lower one appear.

use std::result::Result as StdResult;

use fleet_protocol::ids::{FeedSeq, HostId, NodeKeyHash, UnixSeconds};

use super::dialect::{Rule, Upsert};
use super::error::{Error, Fault, Result};
use super::pools::Purpose;
use super::session::Session;
use super::value::{Arg, unexpected};
use super::{Store, now};
use crate::model::change::{ChangeKind, ChangeRow};

const CHANGES: Upsert<'_> = Upsert {
    table: "changes",
    key: &["seq"],
    columns: &[
        ("seq", Rule::Keep),
        ("kind", Rule::Keep),
        ("subject", Rule::Keep),
        ("key_hash", Rule::Keep),
        ("at", Rule::Keep),
        ("origin", Rule::Keep),
    ],
};

/// Rows that one step of pruning deletes.
const PRUNE_STEP: u32 = 512;
/// Steps of one call.
const PRUNE_STEPS_MAX: usize = 200;
/// A change that a transaction is about to leave.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewChange {
    pub(super) kind: ChangeKind,
    pub(super) subject: i64,
    pub(super) key: Option<NodeKeyHash>,
}

impl NewChange {
    pub(super) fn host(host: HostId, key: Option<NodeKeyHash>) -> Self {
        Self {
            kind: ChangeKind::Host,
            subject: i64::from(host.0),
            key,
        }
    }

    pub(super) fn of(kind: ChangeKind) -> Self {
        Self {
            kind,
            subject: 0,
            key: None,
        }
    }

    pub(super) fn campaign(id: i64) -> Self {
        Self {
            kind: ChangeKind::Campaign,
            subject: id,
            key: None,
        }
    }
}

fn kind_number(kind: ChangeKind) -> i64 {
    match kind {
        ChangeKind::Host => 1,
        ChangeKind::HostDeleted => 2,
        // A build that knows no campaigns fails on an unknown number; under this one it reads its specs once more.
        ChangeKind::Specs | ChangeKind::Campaign => SPECS,
        ChangeKind::EnrollSecrets => 4,
        ChangeKind::Unknown(number) => number,
    }
}

const SPECS: i64 = 3;

fn kind_of(number: i64, subject: i64) -> ChangeKind {
    match number {
        1 => ChangeKind::Host,
        2 => ChangeKind::HostDeleted,
        SPECS if subject != 0 => ChangeKind::Campaign,
        SPECS => ChangeKind::Specs,
        4 => ChangeKind::EnrollSecrets,
        number => ChangeKind::Unknown(number),
    }
}

/// Numbers and writes changes; the last step of a transaction.
pub(super) async fn write_changes(
    session: &mut Session<'_>,
    changes: &[NewChange],
) -> StdResult<(), Fault> {
    if changes.is_empty() {
        return Ok(());
    }
    let count = u32::try_from(changes.len()).map_err(|_| unexpected())?;
    let newest = session.advance("changes", count).await?;
    session.leaves(newest);
    let first = newest - i64::from(count) + 1;
    let (at, origin) = (now(), session.origin());
    let rows: Vec<Vec<Arg<'_>>> = changes
        .iter()
        .zip(first..)
        .map(|(change, seq)| {
            vec![
                seq.into(),
                kind_number(change.kind).into(),
                change.subject.into(),
                change.key.as_ref().into(),
                at.into(),
                origin.into(),
            ]
        })
        .collect();
    session.upsert("changes_insert", &CHANGES, &rows).await
}

impl Store {
    /// Oldest and newest number in the table; both are the newest ever given when the table is empty.
    pub(crate) async fn change_bounds(&self) -> Result<(FeedSeq, FeedSeq)> {
        let sql = "SELECT value, (SELECT MIN(seq) FROM changes) FROM counters WHERE name = ?";
        let mut session = self.session(Purpose::Read).await?;
        let row = session
            .row("change_bounds", sql, &["changes".into()])
            .await?
            .ok_or_else(unexpected)?;
        let newest = row.u64(0)?;
        self.note_change(newest);
        let oldest = match row.int_or_null(1)? {
            Some(_) => row.u64(1)?,
            None => newest,
        };
        Ok((FeedSeq(oldest), FeedSeq(newest)))
    }

    /// The changes after `after`, in order.
    pub(crate) async fn changes_after(
        &self,
        after: FeedSeq,
        limit: usize,
    ) -> Result<Vec<ChangeRow>> {
        let sql = "SELECT seq, kind, subject, key_hash, at, origin FROM changes \
                   WHERE seq > ? ORDER BY seq LIMIT ?";
        let args = [position(after)?.into(), limit_of(limit).into()];
        let mut session = self.session(Purpose::Read).await?;
        let mut changes = Vec::new();
        for row in session.rows("changes_after", sql, &args).await? {
            changes.push(ChangeRow {
                seq: FeedSeq(row.u64(0)?),
                kind: kind_of(row.int(1)?, row.int(2)?),
                subject: row.int(2)?,
                key: row.hash_or_null(3)?.map(NodeKeyHash),
                at: row.time(4)?,
                is_own: row.int(5)? == self.origin,
            });
        }
        if let Some(last) = changes.last() {
            self.note_change(last.seq.0);
        }
        Ok(changes)
    }

    /// Deletes changes older than `before` (the newest few always stay), and what late writes left of hosts whose
    /// deletion is among them. Returns how many rows went. Bounded; call it again later.
    pub(crate) async fn prune(&self, before: UnixSeconds) -> Result<u64> {
        let mut session = self.session(Purpose::Write).await?;
        let mut pruned = 0;
        for _ in 0..PRUNE_STEPS_MAX {
            let sql = "SELECT seq, at FROM changes ORDER BY seq LIMIT 1 OFFSET ?";
            let row = session
                .row("changes_oldest", sql, &[PRUNE_STEP.into()])
                .await?;
            let Some(row) = row else { break };
            if row.time(1)? >= before {
                break;
            }
            let seq = row.int(0)?;
            pruned += delete_remains(&mut session, seq).await?;
            let sql = "DELETE FROM changes WHERE seq < ?";
            pruned += session
                .execute("changes_prune", sql, &[seq.into()])
                .await?
                .rows;
        }
        Ok(pruned)
    }
}

/// Details and seen marks may be written after their host was deleted. Ids are never given again, so such rows only
/// take space.
async fn delete_remains(session: &mut Session<'_>, before: i64) -> StdResult<u64, Fault> {
    let sql = "SELECT subject FROM changes WHERE seq < ? AND kind = ? ORDER BY subject";
    let args = [before.into(), kind_number(ChangeKind::HostDeleted).into()];
    let mut hosts = Vec::new();
    for row in session.rows("remains_find", sql, &args).await? {
        hosts.push(row.host(0)?.into());
    }
    let mut deleted = 0;
    for sql in [
        "DELETE FROM host_details WHERE host_id IN ({})",
        "DELETE FROM host_seen WHERE host_id IN ({})",
        "DELETE FROM label_membership WHERE host_id IN ({})",
    ] {
        deleted += session.execute_in("remains_delete", sql, &hosts).await?;
    }
    Ok(deleted)
}

fn position(seq: FeedSeq) -> StdResult<i64, Error> {
    i64::try_from(seq.0).map_err(|_| Error::Invalid("no such position".into()))
}

/// A limit as a parameter.
pub(super) fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
