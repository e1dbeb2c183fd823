//! Enrolment: finds each host's row or makes one, for a whole batch in one transaction.
//!
//! Which row an enrolment is for is decided in `clones.rs`, from what the rows with its identifier tell.
//!
//! Invariant: enrolments of all nodes are serialised by the lock of the counter `hosts`, taken first.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::result::Result as StdResult;

use aws_lc_rs::digest;
use fleet_protocol::ids::{HostId, NodeKeyHash, UnixSeconds};

use super::Store;
use super::changes::{NewChange, write_changes};
use super::columns::{self, DETAILS};
use super::details::details_text;
use super::dialect::{Rule, Upsert};
use super::directory::add_labels;
use super::error::{Fault, Result};
use super::session::{Session, transaction};
use super::value::{Arg, NAME_CHARS_MAX, address_text, clip, unexpected};
use crate::clones::{Claim, Known, alive_for_s, choose};
use crate::model::enrollment::{EnrollOutcome, Identity, NewEnrollment};
use crate::model::host::{HostState, shortest_interval_s};
use crate::model::label::LabelId;

pub(super) const HOSTS: Upsert<'_> = Upsert {
    table: "hosts",
    key: &["id"],
    columns: &[
        ("id", Rule::Keep),
        ("node_key_hash", Rule::Replace),
        ("identifier", Rule::Replace),
        ("instance_id", Rule::Replace),
        ("address", Rule::Replace),
        ("previous_address", Rule::Replace),
        ("enrolled_at", Rule::Replace),
    ],
};

/// Tells when a host was last heard of, if that is known in memory.
pub(crate) type SeenHint<'a> = &'a (dyn Fn(HostId) -> Option<UnixSeconds> + Send + Sync);

/// A row of `hosts`, as far as identity goes.
#[derive(Clone, Debug)]
struct Candidate {
    known: Known,
    key: NodeKeyHash,
    platform: Box<str>,
}

/// What a batch does, worked out before anything is written.
#[derive(Default)]
struct Plan {
    /// By identifier.
    candidates: HashMap<String, Vec<Candidate>>,
    outcomes: Vec<EnrollOutcome>,
    /// The last enrolment of each host, as an index into the batch.
    last: BTreeMap<HostId, usize>,
    changes: Vec<NewChange>,
    next_id: u32,
}

impl Store {
    /// Enrolls a batch; outcomes are in its order. `seen` tells marks that are younger than the store's.
    pub(crate) async fn enroll(
        &self,
        batch: &[NewEnrollment],
        seen: SeenHint<'_>,
    ) -> Result<Vec<EnrollOutcome>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<String> = batch
            .iter()
            .map(|enrollment| identifier_text(&enrollment.identifier))
            .collect();
        transaction!(
            self,
            session,
            enroll_once(&mut session, batch, &names, seen, self.seen_interval_s)
        )
    }
}

async fn enroll_once(
    session: &mut Session<'_>,
    batch: &[NewEnrollment],
    names: &[String],
    seen: SeenHint<'_>,
    seen_interval_s: u32,
) -> StdResult<Vec<EnrollOutcome>, Fault> {
    let newest = session.advance("hosts", 0).await?;
    let newest = u32::try_from(newest).map_err(|_| unexpected())?;
    let mut plan = Plan {
        candidates: candidates(session, names, seen, seen_interval_s).await?,
        next_id: newest.checked_add(1).ok_or_else(unexpected)?,
        ..Plan::default()
    };
    for (index, (enrollment, name)) in batch.iter().zip(names).enumerate() {
        plan.add(index, enrollment, name)?;
    }
    let added = plan.next_id - 1 - newest;
    if added > 0 {
        session.advance("hosts", added).await?;
    }
    write_hosts(session, batch, names, &plan).await?;
    let mut known: Vec<HostState> = plan
        .outcomes
        .iter()
        .filter(|outcome| !matches!(outcome.identity, Identity::New | Identity::Clone))
        .map(|outcome| outcome.host.clone())
        .collect();
    if !known.is_empty() {
        known.sort_unstable_by_key(|host| host.id);
        known.dedup_by_key(|host| host.id);
        add_labels(session, &mut known).await?;
        for outcome in &mut plan.outcomes {
            let at = known.binary_search_by_key(&outcome.host.id, |host| host.id);
            if let Some(host) = at.ok().and_then(|at| known.get(at)) {
                outcome.host.labels.clone_from(&host.labels);
            }
        }
    }
    write_changes(session, &plan.changes).await?;
    Ok(plan.outcomes)
}

/// The rows that have one of these identifiers.
async fn candidates(
    session: &mut Session<'_>,
    names: &[String],
    seen: SeenHint<'_>,
    seen_interval_s: u32,
) -> StdResult<HashMap<String, Vec<Candidate>>, Fault> {
    let mut unique: Vec<&str> = names.iter().map(String::as_str).collect();
    unique.sort_unstable();
    unique.dedup();
    let args: Vec<Arg<'_>> = unique.into_iter().map(Into::into).collect();
    let sql = "SELECT h.id, h.node_key_hash, h.identifier, h.instance_id, h.enrolled_at, \
               s.seen_at, d.platform, h.address, h.previous_address, d.hardware_uuid, \
               d.distributed_interval, d.config_refresh FROM hosts h \
               LEFT JOIN host_seen s ON s.host_id = h.id \
               LEFT JOIN host_details d ON d.host_id = h.id WHERE h.identifier IN ({})";
    let mut candidates: HashMap<String, Vec<Candidate>> = HashMap::new();
    for row in session.rows_in("enroll_find", sql, &args).await? {
        let id = row.host(0)?;
        let enrolled_at = row.time(4)?;
        let heard_at = enrolled_at.max(row.time(5)?);
        let interval_s = shortest_interval_s([row.int_or_null(10)?, row.int_or_null(11)?]);
        let rows = candidates.entry(row.text(2)?).or_default();
        // The repeated parameter of a padded statement gives no row twice, but two statements may.
        if rows.iter().all(|candidate| candidate.known.id != id) {
            let known = Known {
                id,
                instance_id: row.text(3)?,
                uuid: row.text(9)?,
                address: row.text(7)?,
                previous_address: row.text(8)?,
                enrolled_at,
                heard_at: heard_at.max(seen(id).unwrap_or_default()),
                alive_for_s: alive_for_s(interval_s, seen_interval_s),
                is_new: false,
            };
            rows.push(Candidate {
                known,
                key: row.key(1)?,
                platform: row.text(6)?.into(),
            });
        }
    }
    Ok(candidates)
}

impl Plan {
    fn add(
        &mut self,
        index: usize,
        enrollment: &NewEnrollment,
        name: &str,
    ) -> StdResult<(), Fault> {
        let columns = &enrollment.columns;
        let address = address_text(enrollment.address);
        let claim = Claim {
            instance_id: clip(&enrollment.instance_id),
            uuid: columns.hardware_uuid.as_deref().map_or("", clip),
            address: &address,
            at: enrollment.at,
        };
        let rows = self.candidates.entry(name.to_owned()).or_default();
        let known: Vec<&Known> = rows.iter().map(|row| &row.known).collect();
        let (found, identity) = choose(&known, &claim);
        let platform = columns.platform.as_deref().map(clip);
        let (host, previous_key) = match found.and_then(|found| rows.get_mut(found)) {
            Some(row) => {
                let previous = std::mem::replace(&mut row.key, enrollment.key);
                row.known.take(&claim);
                if let Some(platform) = platform {
                    row.platform = platform.into();
                }
                (
                    row.clone(),
                    Some(previous).filter(|key| *key != enrollment.key),
                )
            }
            None => {
                let row = Candidate {
                    known: Known::new(HostId(self.next_id), &claim),
                    key: enrollment.key,
                    platform: platform.unwrap_or_default().into(),
                };
                self.next_id = self.next_id.checked_add(1).ok_or_else(unexpected)?;
                rows.push(row.clone());
                (row, None)
            }
        };
        let id = host.known.id;
        self.last.insert(id, index);
        self.changes.push(NewChange::host(id, previous_key));
        self.outcomes.push(EnrollOutcome {
            host: HostState {
                id,
                key: host.key,
                platform: host.platform,
                labels: vec![LabelId::ALL_HOSTS],
                detail_updated_at: UnixSeconds(0),
                label_updated_at: UnixSeconds(0),
                refetch_requested: true,
                enrolled_at: enrollment.at,
                interval_s: 0,
                // Read again by whoever follows the changes.
                names: None,
            },
            previous_key,
            identity,
        });
        Ok(())
    }

    /// What a host's row is to tell of its identity.
    fn known(&self, name: &str, host: HostId) -> Option<&Known> {
        let rows = self.candidates.get(name)?;
        let mut known = rows.iter().map(|row| &row.known);
        known.find(|known| known.id == host)
    }
}

async fn write_hosts(
    session: &mut Session<'_>,
    batch: &[NewEnrollment],
    names: &[String],
    plan: &Plan,
) -> StdResult<(), Fault> {
    // Sorted by host, because the map is.
    let last: Vec<(&Known, &NewEnrollment, &str)> = plan
        .last
        .iter()
        .filter_map(|(id, index)| {
            let name = names.get(*index)?.as_str();
            Some((plan.known(name, *id)?, batch.get(*index)?, name))
        })
        .collect();
    let texts: Vec<Option<String>> = last
        .iter()
        .map(|(known, enrollment, _)| details_text(known.id, &enrollment.details))
        .collect();
    let mut hosts: Vec<Vec<Arg<'_>>> = Vec::with_capacity(last.len());
    let mut details: Vec<Vec<Arg<'_>>> = Vec::with_capacity(last.len());
    for ((known, enrollment, name), text) in last.iter().zip(&texts) {
        hosts.push(vec![
            known.id.into(),
            (&enrollment.key).into(),
            (*name).into(),
            known.instance_id.as_str().into(),
            known.address.as_str().into(),
            known.previous_address.as_str().into(),
            enrollment.at.into(),
        ]);
        let never = UnixSeconds(0);
        let mut row = vec![known.id.into(), never.into(), never.into(), true.into()];
        row.extend(columns::args(&enrollment.columns));
        row.push(text.as_deref().into());
        details.push(row);
    }
    session.upsert("hosts_upsert", &HOSTS, &hosts).await?;
    session.upsert("details_upsert", &DETAILS, &details).await
}

/// An identifier as it is stored: a very long one keeps its beginning and gets a hash of the whole.
pub(super) fn identifier_text(identifier: &str) -> String {
    let clipped = clip(identifier);
    if clipped.len() == identifier.len() {
        return identifier.to_owned();
    }
    let hash = digest::digest(&digest::SHA256, identifier.as_bytes());
    let mut text: String = identifier.chars().take(NAME_CHARS_MAX - 65).collect();
    text.push('#');
    for byte in hash.as_ref() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_identifiers_stay_apart() {
        let long = "ä".repeat(300);
        let other = format!("{long}x");
        assert_ne!(identifier_text(&long), identifier_text(&other));
        assert_eq!(identifier_text(&long).chars().count(), NAME_CHARS_MAX);
        assert_eq!(identifier_text("short"), "short");
    }
}
