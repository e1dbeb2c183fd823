//! What rows of changes come to. No IO.

use std::collections::BTreeSet;

use fleet_protocol::ids::{FeedSeq, HostId, UnixSeconds};

use crate::feed::{Recent, Touch};
use crate::grace::GRACE_S;
use crate::model::campaign::CampaignId;
use crate::model::change::{ChangeKind, ChangeRow};
use crate::roster::Roster;

/// What a number of change rows comes to.
#[derive(Debug, Default)]
pub(super) struct Digest {
    pub(super) hosts: BTreeSet<HostId>,
    pub(super) deleted: Vec<ChangeRow>,
    pub(super) campaigns: BTreeSet<CampaignId>,
    pub(super) has_specs: bool,
    pub(super) has_secrets: bool,
    /// Rows of kinds that this build does not know.
    pub(super) unknown: u64,
}

impl Digest {
    pub(super) fn of(rows: &[ChangeRow], again: &BTreeSet<HostId>) -> Self {
        let mut digest = Self {
            hosts: again.clone(),
            ..Self::default()
        };
        for row in rows {
            match row.kind {
                ChangeKind::Host => digest.hosts.extend(subject(row)),
                ChangeKind::HostDeleted => digest.deleted.push(*row),
                ChangeKind::Specs => digest.has_specs = true,
                ChangeKind::EnrollSecrets => digest.has_secrets = true,
                ChangeKind::Campaign => digest.campaigns.extend(campaign(row)),
                ChangeKind::Unknown(_) => digest.unknown += 1,
            }
        }
        for id in digest.deleted.iter().filter_map(subject) {
            digest.hosts.remove(&id);
        }
        digest
    }
}

fn campaign(row: &ChangeRow) -> Option<CampaignId> {
    u32::try_from(row.subject).ok().map(CampaignId)
}

pub(super) fn subject(row: &ChangeRow) -> Option<HostId> {
    u32::try_from(row.subject).ok().map(HostId)
}

/// What workers may have missed, as far as the rows tell. New specs may have moved any host to another answer, so
/// nobody resumes over them.
pub(super) fn recent<'a>(floor: FeedSeq, rows: impl Iterator<Item = &'a ChangeRow>) -> Recent {
    let mut recent = Recent::after(floor);
    for row in rows {
        let host = match row.kind {
            ChangeKind::Host => subject(row).map(Touch::Host),
            ChangeKind::HostDeleted
            | ChangeKind::EnrollSecrets
            | ChangeKind::Campaign
            | ChangeKind::Unknown(_) => None,
            ChangeKind::Specs => {
                recent = Recent::after(row.seq);
                continue;
            }
        };
        for touch in host.into_iter().chain(row.key.map(Touch::Forget)) {
            recent.push(row.seq, touch);
        }
    }
    recent
}

/// Keys replaced a moment ago stay valid for the rest of their time, whoever replaced them.
pub(super) fn add_grace(roster: &mut Roster, rows: &[ChangeRow], now: UnixSeconds) {
    for row in rows {
        let is_recent = row.at.0.saturating_add(2 * GRACE_S) > now.0;
        if let (ChangeKind::Host, Some(id), Some(key), true) =
            (row.kind, subject(row), row.key, is_recent)
        {
            roster.add_grace(key, id, row.at);
        }
    }
}
