//! What hosts told: details, label results, seen marks. Multi-row writes, sorted by host.

use std::collections::{BTreeMap, BTreeSet};
use std::result::Result as StdResult;

use fleet_protocol::ids::{HostId, UnixSeconds};
use serde_json::{Map, Value};

use super::Store;
use super::batch::ROW_COUNTS;
use super::changes::{NewChange, write_changes};
use super::columns::{self, DETAILS};
use super::dialect::{Rule, Upsert};
use super::directory::{HOST_STATE, read_state};
use super::error::{Fault, Result};
use super::pools::Purpose;
use super::session::{Session, transaction};
use super::value::Arg;
use crate::model::host::{HostDetails, HostState};
use crate::model::label::{LabelId, LabelResult};

pub(super) const SEEN: Upsert<'_> = Upsert {
    table: "host_seen",
    key: &["host_id"],
    columns: &[("host_id", Rule::Keep), ("seen_at", Rule::Max)],
};

const LABELED: Upsert<'_> = Upsert {
    table: "host_details",
    key: &["host_id"],
    columns: &[("host_id", Rule::Keep), ("label_updated_at", Rule::Replace)],
};

pub(super) const MEMBERSHIP: Upsert<'_> = Upsert {
    table: "label_membership",
    key: &["host_id", "label_id"],
    columns: &[("host_id", Rule::Keep), ("label_id", Rule::Keep)],
};

/// Most bytes of one host's details; more would not fit into a statement.
const DETAILS_BYTES_MAX: usize = 2 << 20;
/// Pairs in one deletion: SQLite bounds the depth of an expression.
const PAIRS_MAX: usize = 512;

/// Details as they are stored; `None` when there are none or far too many.
pub(super) fn details_text(host: HostId, details: &Map<String, Value>) -> Option<String> {
    if details.is_empty() {
        return None;
    }
    let text = serde_json::to_string(details).unwrap_or_default();
    if text.len() > DETAILS_BYTES_MAX {
        tracing::warn!(%host, bytes = text.len(), "details are too large and are not stored");
        return None;
    }
    Some(text).filter(|text| !text.is_empty())
}

impl Store {
    /// Writes details, clears `refetch_requested`, and leaves a `Host` change for each host.
    pub(crate) async fn update_details(&self, batch: &[HostDetails]) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let sorted = by_host(batch);
        let changes = host_changes(sorted.iter().map(|details| details.host));
        transaction!(self, session, async {
            write_details(&mut session, &sorted).await?;
            write_changes(&mut session, &changes).await
        })
    }

    /// Writes memberships and the times, and leaves a `Host` change for each host. Returns the hosts whose membership
    /// really changed.
    pub(crate) async fn update_labels(&self, batch: &[LabelResult]) -> Result<Vec<HostId>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let changes = host_changes(batch.iter().map(|result| result.host));
        let batch: Vec<&LabelResult> = batch.iter().collect();
        transaction!(self, session, async {
            let changed = write_labels(&mut session, &batch).await?;
            write_changes(&mut session, &changes).await?;
            Ok(changed)
        })
    }

    /// Writes results that were kept while the store was away, but for those of hosts that are gone, and those that are
    /// not newer than the host's enrolment and what is stored. Returns how many were left out.
    pub(crate) async fn replay(
        &self,
        details: &[HostDetails],
        labels: &[LabelResult],
    ) -> Result<usize> {
        let hosts: BTreeSet<HostId> = (details.iter().map(|of| of.host))
            .chain(labels.iter().map(|of| of.host))
            .collect();
        let ids: Vec<Arg<'_>> = hosts.iter().map(|host| (*host).into()).collect();
        let details = by_host(details);
        transaction!(self, session, async {
            let states = states_locked(&mut session, &ids).await?;
            let new_details: Vec<&HostDetails> = (details.iter().copied())
                .filter(|of| {
                    states
                        .get(&of.host)
                        .is_some_and(|host| host.wants(of.at, host.detail_updated_at))
                })
                .collect();
            let new_labels: Vec<&LabelResult> = (labels.iter())
                .filter(|of| {
                    states
                        .get(&of.host)
                        .is_some_and(|host| host.wants(of.at, host.label_updated_at))
                })
                .collect();
            write_details(&mut session, &new_details).await?;
            write_labels(&mut session, &new_labels).await?;
            let written = new_details.iter().map(|of| of.host);
            let written = written.chain(new_labels.iter().map(|of| of.host));
            write_changes(&mut session, &host_changes(written)).await?;
            Ok(details.len() + labels.len() - new_details.len() - new_labels.len())
        })
    }

    /// Writes seen marks; never moves one back. Statements are transactions of their own: a part is better than nothing.
    pub(crate) async fn mark_seen(&self, hosts: &[HostId], at: UnixSeconds) -> Result<()> {
        let mut sorted = hosts.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        // Locks of one statement at a time, so that no two nodes can wait for each other.
        for part in sorted.chunks(ROW_COUNTS.iter().copied().max().unwrap_or(1)) {
            let rows: Vec<Vec<Arg<'_>>> = part
                .iter()
                .map(|host| vec![(*host).into(), at.into()])
                .collect();
            let mut attempts = super::session::Attempts::new(self);
            loop {
                let written = async {
                    let mut session = self.session(Purpose::Write).await?;
                    session.upsert("seen_upsert", &SEEN, &rows).await
                };
                match written.await {
                    Ok(()) => break,
                    Err(fault) => attempts.pause(fault).await?,
                }
            }
        }
        Ok(())
    }
}

fn by_host(batch: &[HostDetails]) -> Vec<&HostDetails> {
    let mut sorted: Vec<&HostDetails> = batch.iter().collect();
    sorted.sort_by_key(|details| details.host);
    sorted
}

/// The hosts that exist, without labels; they stay as they are until the end of the transaction.
async fn states_locked(
    session: &mut Session<'_>,
    ids: &[Arg<'_>],
) -> StdResult<BTreeMap<HostId, HostState>, Fault> {
    let lock = session.dialect().lock_rows();
    let sql = format!("{HOST_STATE} WHERE h.id IN ({{}}) ORDER BY h.id {lock}");
    let mut states = BTreeMap::new();
    for row in session.rows_in("replay_read", &sql, ids).await? {
        let state = read_state(&row)?;
        states.insert(state.id, state);
    }
    Ok(states)
}

impl HostState {
    /// Whether results of that time are of this enrolment and newer than those that are stored.
    fn wants(&self, at: UnixSeconds, stored_at: UnixSeconds) -> bool {
        at >= self.enrolled_at && at > stored_at
    }
}

/// Rows must be sorted by host.
async fn write_details(session: &mut Session<'_>, sorted: &[&HostDetails]) -> StdResult<(), Fault> {
    let texts: Vec<Option<String>> = sorted
        .iter()
        .map(|details| details_text(details.host, &details.details))
        .collect();
    let rows: Vec<Vec<Arg<'_>>> = sorted
        .iter()
        .zip(&texts)
        .map(|(details, text)| {
            let mut row = vec![
                details.host.into(),
                details.at.into(),
                Arg::Null,
                false.into(),
            ];
            row.extend(columns::args(&details.columns));
            row.push(text.as_deref().into());
            row
        })
        .collect();
    session.upsert("details_upsert", &DETAILS, &rows).await
}

/// Memberships and times; tells whose membership changed.
async fn write_labels(
    session: &mut Session<'_>,
    batch: &[&LabelResult],
) -> StdResult<Vec<HostId>, Fault> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    let mut wanted: BTreeMap<(HostId, LabelId), bool> = BTreeMap::new();
    let mut times: BTreeMap<HostId, UnixSeconds> = BTreeMap::new();
    for result in batch {
        times.insert(result.host, result.at);
        for (label, is_member) in &result.memberships {
            // Everybody is in this one without a row.
            if *label != LabelId::ALL_HOSTS {
                wanted.insert((result.host, *label), *is_member);
            }
        }
    }
    let rows: Vec<Vec<Arg<'_>>> = times
        .iter()
        .map(|(host, at)| vec![(*host).into(), (*at).into()])
        .collect();
    let changed = write_membership(session, &wanted).await?;
    session.upsert("labeled_upsert", &LABELED, &rows).await?;
    Ok(changed)
}

fn host_changes(hosts: impl Iterator<Item = HostId>) -> Vec<NewChange> {
    let unique: BTreeSet<HostId> = hosts.collect();
    unique
        .into_iter()
        .map(|host| NewChange::host(host, None))
        .collect()
}

/// Makes the memberships so, and tells whose changed.
pub(super) async fn write_membership(
    session: &mut Session<'_>,
    wanted: &BTreeMap<(HostId, LabelId), bool>,
) -> StdResult<Vec<HostId>, Fault> {
    let hosts: BTreeSet<HostId> = wanted.keys().map(|(host, _)| *host).collect();
    let ids: Vec<Arg<'_>> = hosts.iter().map(|host| (*host).into()).collect();
    let sql = "SELECT host_id, label_id FROM label_membership WHERE host_id IN ({})";
    let mut present = BTreeSet::new();
    for row in session.rows_in("membership_read", sql, &ids).await? {
        present.insert((row.host(0)?, LabelId(row.u32(1)?)));
    }
    let differing = |is_member: bool| -> Vec<(HostId, LabelId)> {
        wanted
            .iter()
            .filter(|(pair, wanted)| **wanted == is_member && present.contains(pair) != is_member)
            .map(|(pair, _)| *pair)
            .collect()
    };
    let (added, removed) = (differing(true), differing(false));
    let rows: Vec<Vec<Arg<'_>>> = added
        .iter()
        .map(|(host, label)| vec![(*host).into(), label.0.into()])
        .collect();
    session
        .upsert("membership_insert", &MEMBERSHIP, &rows)
        .await?;
    delete_membership(session, &removed).await?;
    let changed: BTreeSet<HostId> = added
        .iter()
        .chain(&removed)
        .map(|(host, _)| *host)
        .collect();
    Ok(changed.into_iter().collect())
}

async fn delete_membership(
    session: &mut Session<'_>,
    pairs: &[(HostId, LabelId)],
) -> StdResult<(), Fault> {
    for part in pairs.chunks(PAIRS_MAX) {
        for piece in super::batch::pieces(part.len(), 2) {
            let mut args: Vec<Arg<'_>> = Vec::with_capacity(piece.count * 2);
            for (host, label) in piece.indices().filter_map(|index| part.get(index)) {
                args.push((*host).into());
                args.push(label.0.into());
            }
            let pairs = vec!["(host_id = ? AND label_id = ?)"; piece.count].join(" OR ");
            let sql = format!("DELETE FROM label_membership WHERE {pairs}");
            session.execute("membership_delete", sql, &args).await?;
        }
    }
    Ok(())
}
