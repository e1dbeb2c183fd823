//! Writes what is copied from another product's database: hosts with the keys that their agents hold, enroll secrets, and
//! how far the copy is.
//!
//! Invariants: a batch of hosts is one transaction that also moves the mark, so a copy that was cut off goes on where it
//! was; a batch that is written again changes nothing; enrolments of servers beside it are serialised by the same lock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::result::Result as StdResult;
use std::time::Duration;

use fleet_protocol::ids::{HostId, NodeKeyHash, UnixSeconds};
use fleet_protocol::secret::Secret;

use super::Store;
use super::changes::{NewChange, write_changes};
use super::columns::{self, DETAILS};
use super::details::{MEMBERSHIP, SEEN};
use super::dialect::{Rule, Upsert};
use super::enroll::{HOSTS, identifier_text};
use super::error::{Fault, Result};
use super::pools::Purpose;
use super::session::{Session, transaction};
use super::settings::{check_secret, read_secrets, write_secrets};
use super::specs;
use super::value::{Arg, clip, unexpected};
use crate::model::host::HostColumns;
use crate::model::label::LabelId;

/// A batch is no larger than a server's agents would wait for, but a busy database may take its time.
const BATCH_DEADLINE: Duration = Duration::from_secs(60);

/// A host of the other product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImportedHost {
    /// Of the key that its agent holds.
    pub(crate) key: NodeKeyHash,
    /// Not empty.
    pub(crate) identifier: String,
    /// Where it came from last; may be empty.
    pub(crate) address: String,
    pub(crate) enrolled_at: UnixSeconds,
    pub(crate) seen_at: UnixSeconds,
    pub(crate) detail_updated_at: UnixSeconds,
    pub(crate) label_updated_at: UnixSeconds,
    pub(crate) refetch_requested: bool,
    pub(crate) columns: HostColumns,
    /// Of ours, without [`LabelId::ALL_HOSTS`].
    pub(crate) labels: Vec<LabelId>,
}

/// What became of a batch, in hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Imported {
    pub(crate) added: u64,
    /// The key was here already.
    pub(crate) same: u64,
    /// What was here gave way.
    pub(crate) replaced: u64,
    /// The identifier was here with another key, which stays.
    pub(crate) kept: u64,
}

/// What is to be done with one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Add(HostId),
    Same,
    /// Its details are written over.
    Renew(HostId),
    /// The row gets another key.
    Take(HostId, NodeKeyHash),
    Keep,
}

/// A row that is here.
#[derive(Clone, Copy, Debug)]
struct Present {
    id: HostId,
    key: NodeKeyHash,
    enrolled_at: UnixSeconds,
}

/// What is here of a batch.
#[derive(Debug, Default)]
struct Known {
    by_key: HashMap<NodeKeyHash, HostId>,
    by_identifier: HashMap<String, Present>,
}

impl Known {
    fn add(&mut self, identifier: String, row: Present) {
        self.by_key.insert(row.key, row.id);
        let youngest = self.by_identifier.entry(identifier).or_insert(row);
        // Of clones, the one that enrolled last.
        if (row.enrolled_at, row.id) > (youngest.enrolled_at, youngest.id) {
            *youngest = row;
        }
    }
}

/// Decides for each host. An agent holds the key of its last enrolment, so a younger one there is the key to have. New
/// rows get ids after `newest`; the last one given comes back.
fn judge(
    batch: &[ImportedHost],
    names: &[String],
    known: &mut Known,
    newest: u32,
    replaces: bool,
) -> Option<(Vec<Verdict>, u32)> {
    let mut newest = newest;
    let mut verdicts = Vec::with_capacity(batch.len());
    for (host, name) in batch.iter().zip(names) {
        let by_name = known.by_identifier.get(name).copied();
        let verdict = match (known.by_key.get(&host.key), by_name) {
            (Some(id), _) if replaces => Verdict::Renew(*id),
            (Some(_), _) => Verdict::Same,
            (None, Some(row)) if replaces || host.enrolled_at > row.enrolled_at => {
                Verdict::Take(row.id, row.key)
            }
            (None, Some(_)) => Verdict::Keep,
            (None, None) => {
                newest = newest.checked_add(1)?;
                Verdict::Add(HostId(newest))
            }
        };
        if let Verdict::Add(id) | Verdict::Take(id, _) = verdict {
            let row = Present {
                id,
                key: host.key,
                enrolled_at: host.enrolled_at,
            };
            known.add(name.clone(), row);
        }
        verdicts.push(verdict);
    }
    Some((verdicts, newest))
}

fn count(verdicts: &[Verdict]) -> Imported {
    let mut imported = Imported::default();
    for verdict in verdicts {
        *match verdict {
            Verdict::Add(_) => &mut imported.added,
            Verdict::Same => &mut imported.same,
            Verdict::Renew(_) | Verdict::Take(..) => &mut imported.replaced,
            Verdict::Keep => &mut imported.kept,
        } += 1;
    }
    imported
}

impl Store {
    /// Copies a batch, moves the mark of this name up to `upto` with it, and leaves a `Host` change for each host that
    /// was written.
    pub(crate) async fn import_hosts(
        &self,
        batch: &[ImportedHost],
        replaces: bool,
        mark: (&str, i64),
    ) -> Result<Imported> {
        let names = names(batch);
        transaction!(self, session, async {
            session.allow(BATCH_DEADLINE).await?;
            import(&mut session, batch, &names, replaces, mark).await
        })
    }

    /// What [`Store::import_hosts`] would do.
    pub(crate) async fn weigh_hosts(
        &self,
        batch: &[ImportedHost],
        replaces: bool,
    ) -> Result<Imported> {
        let names = names(batch);
        let mut session = self.session(Purpose::Read).await?;
        let mut known = read_known(&mut session, batch, &names).await?;
        let judged = judge(batch, &names, &mut known, 0, replaces);
        let (verdicts, _) = judged.ok_or_else(unexpected)?;
        Ok(count(&verdicts))
    }

    /// How far the copy of this name was when it was cut off.
    pub(crate) async fn import_mark(&self, name: &str) -> Result<Option<i64>> {
        let mut session = self.session(Purpose::Read).await?;
        let sql = "SELECT value FROM counters WHERE name = ?";
        let row = session.row("import_mark", sql, &[name.into()]).await?;
        Ok(row.map(|row| row.int(0)).transpose()?)
    }

    /// The copy is complete.
    pub(crate) async fn forget_import_mark(&self, name: &str) -> Result<()> {
        let mut session = self.session(Purpose::Write).await?;
        let sql = "DELETE FROM counters WHERE name = ?";
        session
            .execute("import_forget", sql, &[name.into()])
            .await?;
        Ok(())
    }

    /// Puts these in beside those that are there; tells how many were not there.
    pub(crate) async fn add_enroll_secrets(&self, secrets: &[Secret]) -> Result<usize> {
        for secret in secrets {
            check_secret(secret)?;
        }
        transaction!(self, session, async {
            specs::lock(&mut session).await?;
            let present = read_secrets(&mut session).await?;
            let new: BTreeSet<&str> = secrets
                .iter()
                .filter(|secret| !present.contains_key(*secret))
                .map(Secret::reveal)
                .collect();
            let new: Vec<&str> = new.into_iter().collect();
            if !new.is_empty() {
                write_secrets(&mut session, &new).await?;
            }
            Ok(new.len())
        })
    }
}

fn names(batch: &[ImportedHost]) -> Vec<String> {
    batch
        .iter()
        .map(|host| identifier_text(&host.identifier))
        .collect()
}

async fn import(
    session: &mut Session<'_>,
    batch: &[ImportedHost],
    names: &[String],
    replaces: bool,
    (mark, upto): (&str, i64),
) -> StdResult<Imported, Fault> {
    let newest = session.advance("hosts", 0).await?;
    let newest = u32::try_from(newest).map_err(|_| unexpected())?;
    let mut known = read_known(session, batch, names).await?;
    let judged = judge(batch, names, &mut known, newest, replaces);
    let (verdicts, last) = judged.ok_or_else(unexpected)?;
    if last > newest {
        session.advance("hosts", last - newest).await?;
    }
    let changes = write(session, batch, names, &verdicts).await?;
    let upsert = Upsert {
        table: "counters",
        key: &["name"],
        columns: &[("name", Rule::Keep), ("value", Rule::Max)],
    };
    let row = vec![mark.into(), Arg::Int(upto)];
    session.upsert("import_note", &upsert, &[row]).await?;
    write_changes(session, &changes).await?;
    Ok(count(&verdicts))
}

async fn read_known(
    session: &mut Session<'_>,
    batch: &[ImportedHost],
    names: &[String],
) -> StdResult<Known, Fault> {
    let mut known = Known::default();
    let mut keys: Vec<&NodeKeyHash> = batch.iter().map(|host| &host.key).collect();
    keys.sort_unstable();
    let keys: Vec<Arg<'_>> = keys.into_iter().map(Into::into).collect();
    let mut sorted: Vec<&str> = names.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let sorted: Vec<Arg<'_>> = sorted.into_iter().map(Into::into).collect();
    for (sql, args) in [
        (
            "SELECT id, node_key_hash, identifier, enrolled_at FROM hosts \
             WHERE node_key_hash IN ({})",
            &keys,
        ),
        (
            "SELECT id, node_key_hash, identifier, enrolled_at FROM hosts \
             WHERE identifier IN ({})",
            &sorted,
        ),
    ] {
        for row in session.rows_in("import_find", sql, args).await? {
            let present = Present {
                id: row.host(0)?,
                key: row.key(1)?,
                enrolled_at: row.time(3)?,
            };
            known.add(row.text(2)?, present);
        }
    }
    Ok(known)
}

/// Returns the changes to leave.
async fn write(
    session: &mut Session<'_>,
    batch: &[ImportedHost],
    names: &[String],
    verdicts: &[Verdict],
) -> StdResult<Vec<NewChange>, Fault> {
    // By host, so that rows come sorted by key.
    let mut written: BTreeMap<HostId, (&ImportedHost, &str, Option<NodeKeyHash>)> = BTreeMap::new();
    let mut renewed = BTreeSet::new();
    for ((host, name), verdict) in batch.iter().zip(names).zip(verdicts) {
        let (id, previous) = match verdict {
            Verdict::Add(id) => (*id, None),
            Verdict::Take(id, previous) => {
                renewed.remove(id);
                (*id, Some(*previous))
            }
            Verdict::Renew(id) => {
                if !written.contains_key(id) {
                    renewed.insert(*id);
                }
                (*id, None)
            }
            Verdict::Same | Verdict::Keep => continue,
        };
        written.insert(id, (host, name.as_str(), previous));
    }
    let mut hosts: Vec<Vec<Arg<'_>>> = Vec::with_capacity(written.len());
    let mut details: Vec<Vec<Arg<'_>>> = Vec::with_capacity(written.len());
    let mut seen: Vec<Vec<Arg<'_>>> = Vec::with_capacity(written.len());
    let mut members: Vec<Vec<Arg<'_>>> = Vec::new();
    for (id, (host, name, _)) in &written {
        if !renewed.contains(id) {
            hosts.push(vec![
                (*id).into(),
                (&host.key).into(),
                (*name).into(),
                // Nobody knows them there; the next enrolment tells.
                "".into(),
                clip(&host.address).into(),
                "".into(),
                host.enrolled_at.into(),
            ]);
        }
        let mut row = vec![
            (*id).into(),
            host.detail_updated_at.into(),
            host.label_updated_at.into(),
            host.refetch_requested.into(),
        ];
        row.extend(columns::args(&host.columns));
        row.push(Arg::Null);
        details.push(row);
        seen.push(vec![(*id).into(), host.seen_at.into()]);
        let labels: BTreeSet<LabelId> = host.labels.iter().copied().collect();
        members.extend(
            labels
                .iter()
                .map(|label| vec![(*id).into(), label.0.into()]),
        );
    }
    session.upsert("hosts_upsert", &HOSTS, &hosts).await?;
    session.upsert("details_upsert", &DETAILS, &details).await?;
    session.upsert("seen_upsert", &SEEN, &seen).await?;
    session
        .upsert("membership_insert", &MEMBERSHIP, &members)
        .await?;
    Ok(written
        .into_iter()
        .map(|(id, (_, _, previous))| NewChange::host(id, previous))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(key: u8, identifier: &str, enrolled_at: u32) -> ImportedHost {
        ImportedHost {
            key: NodeKeyHash([key; 32]),
            identifier: identifier.into(),
            address: String::new(),
            enrolled_at: UnixSeconds(enrolled_at),
            seen_at: UnixSeconds(enrolled_at),
            detail_updated_at: UnixSeconds(0),
            label_updated_at: UnixSeconds(0),
            refetch_requested: false,
            columns: HostColumns::default(),
            labels: Vec::new(),
        }
    }

    fn judged(batch: &[ImportedHost], replaces: bool) -> Vec<Verdict> {
        let mut known = Known::default();
        for (id, key, name, enrolled_at) in [(1, 1, "a", 100), (2, 2, "b", 100), (3, 3, "b", 50)] {
            let row = Present {
                id: HostId(id),
                key: NodeKeyHash([key; 32]),
                enrolled_at: UnixSeconds(enrolled_at),
            };
            known.add(name.into(), row);
        }
        let (verdicts, _) = judge(batch, &names(batch), &mut known, 3, replaces).unwrap();
        verdicts
    }

    #[test]
    fn the_key_decides_and_then_the_younger_enrolment() {
        use Verdict::{Add, Keep, Renew, Same, Take};
        let batch = [
            host(1, "a", 7),
            host(9, "a", 99),
            host(8, "b", 101),
            host(7, "c", 5),
            host(7, "c", 5),
            host(6, "c", 4),
        ];
        let key = |byte| NodeKeyHash([byte; 32]);
        assert_eq!(
            judged(&batch, false),
            [
                Same,
                Keep,
                Take(HostId(2), key(2)),
                Add(HostId(4)),
                Same,
                Keep
            ]
        );
        assert_eq!(
            judged(&batch, true),
            [
                Renew(HostId(1)),
                Take(HostId(1), key(1)),
                Take(HostId(2), key(2)),
                Add(HostId(4)),
                Renew(HostId(4)),
                Take(HostId(4), key(7)),
            ]
        );
    }

    #[test]
    fn ids_that_are_used_up_are_an_error() {
        let batch = [host(1, "a", 1)];
        let mut known = Known::default();
        let judged = judge(&batch, &names(&batch), &mut known, u32::MAX, false);
        assert_eq!(judged, None);
    }
}
