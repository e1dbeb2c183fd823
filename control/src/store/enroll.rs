//! Enrolment: finds each host's row or makes one, for a whole batch in one transaction.
//!
//! Identity is the pair of identifier and instance id (osquery makes a new instance id when its database is new). The
//! same pair is the same row. The same identifier with another instance is either a clone that lives beside the
//! row's owner (it gets a row of its own, so the two never cancel each other's keys), or the owner itself with a new
//! database: taken to be so when the owner has been silent for [`LIVE_FOR_S`]. Rows of clones are found by their own
//! pair ever after, so a wrong guess costs one enrolment and never becomes a loop. A host that is known by a certificate
//! is told apart by its instance id: enrolments and certificates never take each other's rows.
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
use crate::model::{
    EnrollOutcome, HostState, Identity, LabelId, NewEnrollment, is_certified_instance,
};

/// A host that was heard of within this time is alive. Many times the longest usual interval of an agent, and short
/// enough that machines made anew from an image with the same name take their old row.
pub(super) const LIVE_FOR_S: u32 = 3600;

const HOSTS: Upsert<'_> = Upsert {
    table: "hosts",
    key: &["id"],
    columns: &[
        ("id", Rule::Keep),
        ("node_key_hash", Rule::Replace),
        ("identifier", Rule::Replace),
        ("instance_id", Rule::Replace),
        ("address", Rule::Replace),
        ("enrolled_at", Rule::Replace),
    ],
};

/// Tells when a host was last heard of, if that is known in memory.
pub(crate) type SeenHint<'a> = &'a (dyn Fn(HostId) -> Option<UnixSeconds> + Send + Sync);

/// A row of `hosts`, as far as identity goes.
#[derive(Clone, Debug)]
struct Candidate {
    id: HostId,
    key: NodeKeyHash,
    instance_id: String,
    platform: Box<str>,
    heard_at: UnixSeconds,
    is_new: bool,
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
            enroll_once(&mut session, batch, &names, seen)
        )
    }
}

async fn enroll_once(
    session: &mut Session<'_>,
    batch: &[NewEnrollment],
    names: &[String],
    seen: SeenHint<'_>,
) -> StdResult<Vec<EnrollOutcome>, Fault> {
    let newest = session.advance("hosts", 0).await?;
    let newest = u32::try_from(newest).map_err(|_| unexpected())?;
    let mut plan = Plan {
        candidates: candidates(session, names, seen).await?,
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
) -> StdResult<HashMap<String, Vec<Candidate>>, Fault> {
    let mut unique: Vec<&str> = names.iter().map(String::as_str).collect();
    unique.sort_unstable();
    unique.dedup();
    let args: Vec<Arg<'_>> = unique.into_iter().map(Into::into).collect();
    let sql = "SELECT h.id, h.node_key_hash, h.identifier, h.instance_id, h.enrolled_at, \
               s.seen_at, d.platform FROM hosts h \
               LEFT JOIN host_seen s ON s.host_id = h.id \
               LEFT JOIN host_details d ON d.host_id = h.id WHERE h.identifier IN ({})";
    let mut candidates: HashMap<String, Vec<Candidate>> = HashMap::new();
    for row in session.rows_in("enroll_find", sql, &args).await? {
        let id = row.host(0)?;
        let heard_at = row.time(4)?.max(row.time(5)?);
        let rows = candidates.entry(row.text(2)?).or_default();
        // The repeated parameter of a padded statement gives no row twice, but two statements may.
        if rows.iter().all(|candidate| candidate.id != id) {
            rows.push(Candidate {
                id,
                key: row.key(1)?,
                instance_id: row.text(3)?,
                platform: row.text(6)?.into(),
                heard_at: heard_at.max(seen(id).unwrap_or_default()),
                is_new: false,
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
        let instance_id = clip(&enrollment.instance_id);
        let rows = self.candidates.entry(name.to_owned()).or_default();
        let (found, identity) = choose(rows, instance_id, enrollment.at);
        let columns = &enrollment.columns;
        let platform = columns.platform.as_deref().map(clip);
        let (host, previous_key) = match found.and_then(|found| rows.get_mut(found)) {
            Some(row) => {
                let previous = std::mem::replace(&mut row.key, enrollment.key);
                if !instance_id.is_empty() {
                    row.instance_id = instance_id.to_owned();
                }
                if let Some(platform) = platform {
                    row.platform = platform.into();
                }
                row.heard_at = enrollment.at;
                (
                    row.clone(),
                    Some(previous).filter(|key| *key != enrollment.key),
                )
            }
            None => {
                let row = Candidate {
                    id: HostId(self.next_id),
                    key: enrollment.key,
                    instance_id: instance_id.to_owned(),
                    platform: platform.unwrap_or_default().into(),
                    heard_at: enrollment.at,
                    is_new: true,
                };
                self.next_id = self.next_id.checked_add(1).ok_or_else(unexpected)?;
                rows.push(row.clone());
                (row, None)
            }
        };
        self.last.insert(host.id, index);
        self.changes.push(NewChange::host(host.id, previous_key));
        self.outcomes.push(EnrollOutcome {
            host: HostState {
                id: host.id,
                key: host.key,
                platform: host.platform,
                labels: vec![LabelId::ALL_HOSTS],
                detail_updated_at: UnixSeconds(0),
                label_updated_at: UnixSeconds(0),
                refetch_requested: true,
                enrolled_at: enrollment.at,
                interval_s: 0,
            },
            previous_key,
            identity,
        });
        Ok(())
    }

    /// The instance id to store for a host: an enrolment without one keeps what is known.
    fn instance_id(&self, name: &str, host: HostId) -> &str {
        self.candidates
            .get(name)
            .and_then(|rows| rows.iter().find(|row| row.id == host))
            .map_or("", |row| row.instance_id.as_str())
    }
}

/// Which of the rows with the same identifier this enrolment is for; `None` for a new one.
fn choose(rows: &[Candidate], instance_id: &str, at: UnixSeconds) -> (Option<usize>, Identity) {
    // A certificate's host is only ever found by the same kind of name.
    let is_alike = |row: &Candidate| {
        let is_certified =
            is_certified_instance(&row.instance_id) || is_certified_instance(instance_id);
        !is_certified || row.instance_id == instance_id
    };
    let youngest = |matches: &dyn Fn(&Candidate) -> bool| {
        rows.iter()
            .enumerate()
            .filter(|(_, row)| is_alike(row) && matches(row))
            .max_by_key(|(_, row)| (row.heard_at, row.id))
            .map(|(index, _)| index)
    };
    if !rows.iter().any(is_alike) {
        return (None, Identity::New);
    }
    let same = youngest(&|row| row.instance_id == instance_id)
        .or_else(|| youngest(&|row| row.instance_id.is_empty() || instance_id.is_empty()));
    if same.is_some() {
        return (same, Identity::Same);
    }
    let is_silent =
        |row: &Candidate| !row.is_new && row.heard_at.0.saturating_add(LIVE_FOR_S) < at.0;
    match youngest(&is_silent) {
        Some(silent) => (Some(silent), Identity::TakenOver),
        None => (None, Identity::Clone),
    }
}

async fn write_hosts(
    session: &mut Session<'_>,
    batch: &[NewEnrollment],
    names: &[String],
    plan: &Plan,
) -> StdResult<(), Fault> {
    // Sorted by host, because the map is.
    let last: Vec<(HostId, &NewEnrollment, &str)> = plan
        .last
        .iter()
        .filter_map(|(id, index)| Some((*id, batch.get(*index)?, names.get(*index)?.as_str())))
        .collect();
    let addresses: Vec<String> = last
        .iter()
        .map(|(_, enrollment, _)| address_text(enrollment.address))
        .collect();
    let texts: Vec<Option<String>> = last
        .iter()
        .map(|(id, enrollment, _)| details_text(*id, &enrollment.details))
        .collect();
    let mut hosts: Vec<Vec<Arg<'_>>> = Vec::with_capacity(last.len());
    let mut details: Vec<Vec<Arg<'_>>> = Vec::with_capacity(last.len());
    for (((id, enrollment, name), address), text) in last.iter().zip(&addresses).zip(&texts) {
        hosts.push(vec![
            (*id).into(),
            (&enrollment.key).into(),
            (*name).into(),
            plan.instance_id(name, *id).into(),
            address.as_str().into(),
            enrollment.at.into(),
        ]);
        let never = UnixSeconds(0);
        let mut row = vec![(*id).into(), never.into(), never.into(), true.into()];
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

    fn row(id: u32, instance_id: &str, heard_at: u32) -> Candidate {
        Candidate {
            id: HostId(id),
            key: NodeKeyHash([0; 32]),
            instance_id: instance_id.into(),
            platform: "".into(),
            heard_at: UnixSeconds(heard_at),
            is_new: false,
        }
    }

    fn chosen(rows: &[Candidate], instance_id: &str, at: u32) -> (Option<usize>, Identity) {
        choose(rows, instance_id, UnixSeconds(at))
    }

    #[test]
    fn identity_is_identifier_and_instance() {
        let rows = [row(1, "a", 100), row(2, "b", 200)];
        assert_eq!(chosen(&[], "a", 100), (None, Identity::New));
        assert_eq!(chosen(&rows, "a", 300), (Some(0), Identity::Same));
        assert_eq!(chosen(&rows, "b", 300), (Some(1), Identity::Same));
        // Without an instance, identifier alone: the youngest.
        assert_eq!(chosen(&rows, "", 300), (Some(1), Identity::Same));
        assert_eq!(
            chosen(&[row(1, "", 1)], "c", 300),
            (Some(0), Identity::Same)
        );
    }

    #[test]
    fn live_rows_are_not_taken_over() {
        let rows = [row(1, "a", 100), row(2, "b", 10_000)];
        let at = 10_000 + LIVE_FOR_S;
        assert_eq!(chosen(&rows, "c", 200), (None, Identity::Clone));
        assert_eq!(chosen(&rows, "c", at), (Some(0), Identity::TakenOver));
        assert_eq!(chosen(&rows, "c", at + 1), (Some(1), Identity::TakenOver));
    }

    #[test]
    fn long_identifiers_stay_apart() {
        let long = "ä".repeat(300);
        let other = format!("{long}x");
        assert_ne!(identifier_text(&long), identifier_text(&other));
        assert_eq!(identifier_text(&long).chars().count(), NAME_CHARS_MAX);
        assert_eq!(identifier_text("short"), "short");
    }
}
