//! Labels: their specs, and the members of manual ones.

use std::collections::{BTreeMap, BTreeSet};
use std::result::Result as StdResult;

use fleet_protocol::ids::HostId;

use super::Store;
use super::changes::{NewChange, write_changes};
use super::details::MEMBERSHIP;
use super::enroll::identifier_text;
use super::error::{Error, Fault, Result};
use super::pools::Purpose;
use super::session::{Session, transaction};
use super::specs::{self, Table};
use super::value::Arg;
use crate::model::change::ChangeKind;
use crate::model::label::{Label, LabelId, LabelMembership, LabelSpec, LabelType};

pub(super) const LABELS: Table = Table {
    name: "labels",
    noun: "label",
    list_statement: "labels_list",
    write_statement: "labels_write",
};

impl Store {
    /// Every label, the built-in ones included, by name; without their members' number, for which the engine reads all
    /// memberships.
    pub(crate) async fn label_specs(&self) -> Result<Vec<Label>> {
        self.label_specs_for(Purpose::Read).await
    }

    pub(super) async fn label_specs_for(&self, purpose: Purpose) -> Result<Vec<Label>> {
        let mut session = self.session(purpose).await?;
        let stored = specs::list::<LabelSpec>(&mut session, LABELS).await?;
        Ok(stored
            .into_iter()
            .map(|stored| Label {
                id: LabelId(stored.id),
                spec: stored.spec,
                host_count: 0,
                updated_at: stored.updated_at,
            })
            .collect())
    }

    /// The same with their members' number.
    #[cfg(test)]
    pub(crate) async fn labels(&self) -> Result<Vec<Label>> {
        self.labels_for(Purpose::Read).await
    }

    /// Another name for a label that there is. `Invalid` when it is built in, or the name is taken.
    pub(crate) async fn rename_label(&self, from: &str, to: &str) -> Result<bool> {
        specs::check_names("label", [to].into_iter())?;
        transaction!(self, session, async {
            let is_renamed = specs::rename(&mut session, LABELS, from, to).await?;
            if is_renamed {
                write_changes(&mut session, &[NewChange::of(ChangeKind::Specs)]).await?;
            }
            Ok(is_renamed)
        })
    }

    pub(super) async fn labels_for(&self, purpose: Purpose) -> Result<Vec<Label>> {
        let mut session = self.session(purpose).await?;
        let stored = specs::list::<LabelSpec>(&mut session, LABELS).await?;
        let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
        let sql = "SELECT label_id, COUNT(*) FROM label_membership GROUP BY label_id";
        for row in session.rows("labels_count", sql, &[]).await? {
            counts.insert(row.u32(0)?, row.u64(1)?);
        }
        let row = session
            .row("host_count", "SELECT COUNT(*) FROM hosts", &[])
            .await?;
        let hosts = row.map_or(Ok(0), |row| row.u64(0))?;
        counts.insert(LabelId::ALL_HOSTS.0, hosts);
        Ok(stored
            .into_iter()
            .map(|stored| Label {
                id: LabelId(stored.id),
                spec: stored.spec,
                host_count: counts.get(&stored.id).copied().unwrap_or(0),
                updated_at: stored.updated_at,
            })
            .collect())
    }

    /// Inserts or replaces by name, all or none; built-in labels are left as they are. Returns the `hosts` entries of
    /// manual labels that match no host.
    pub(crate) async fn apply_labels(&self, specs: &[LabelSpec]) -> Result<Vec<String>> {
        specs::check_names("label", specs.iter().map(|spec| spec.name.as_str()))?;
        let is_dynamic = |spec: &&LabelSpec| spec.label_membership_type == LabelMembership::Dynamic;
        let mut dynamic = specs.iter().filter(is_dynamic);
        if let Some(empty) = dynamic.find(|spec| spec.query.trim().is_empty()) {
            return Err(Error::Invalid(format!(
                "label {:?} has no query",
                empty.name
            )));
        }
        transaction!(self, session, apply_once(&mut session, specs))
    }

    /// False when there was none. Packs that target it lose this target.
    pub(crate) async fn delete_label(&self, name: &str) -> Result<bool> {
        transaction!(self, session, async {
            specs::lock(&mut session).await?;
            let id = specs::ids(&mut session, LABELS).await?.remove(name);
            let Some(id) = id else { return Ok(false) };
            if LabelId(id) == LabelId::ALL_HOSTS {
                return Err(Error::Invalid(format!("label {name:?} is built in")).into());
            }
            specs::delete(&mut session, LABELS, name).await?;
            let args = [id.into()];
            let sql = "DELETE FROM pack_targets WHERE label_id = ?";
            session.execute("pack_targets_write", sql, &args).await?;
            let sql = "DELETE FROM label_membership WHERE label_id = ?";
            session.execute("membership_delete", sql, &args).await?;
            write_changes(&mut session, &[NewChange::of(ChangeKind::Specs)]).await?;
            Ok(true)
        })
    }

    /// Members with higher ids, by id.
    #[cfg(test)]
    pub(crate) async fn label_hosts(
        &self,
        label: LabelId,
        after: HostId,
        limit: usize,
    ) -> Result<Vec<HostId>> {
        let mut session = self.session(Purpose::Read).await?;
        let limit = super::changes::limit_of(limit).into();
        let rows = if label == LabelId::ALL_HOSTS {
            let sql = "SELECT id FROM hosts WHERE id > ? ORDER BY id LIMIT ?";
            session
                .rows("label_hosts", sql, &[after.into(), limit])
                .await?
        } else {
            let sql = "SELECT m.host_id FROM label_membership m JOIN hosts h ON h.id = m.host_id \
                       WHERE m.label_id = ? AND m.host_id > ? ORDER BY m.host_id LIMIT ?";
            let args = [label.0.into(), after.into(), limit];
            session.rows("label_hosts", sql, &args).await?
        };
        let mut hosts = Vec::new();
        for row in rows {
            hosts.push(row.host(0)?);
        }
        Ok(hosts)
    }
}

async fn apply_once(
    session: &mut Session<'_>,
    labels: &[LabelSpec],
) -> StdResult<Vec<String>, Fault> {
    specs::lock(session).await?;
    let before: BTreeMap<String, (u32, LabelSpec)> = specs::list::<LabelSpec>(session, LABELS)
        .await?
        .into_iter()
        .map(|stored| (stored.spec.name.clone(), (stored.id, stored.spec)))
        .collect();
    let mut written = Vec::new();
    for label in labels {
        let known = before.get(&label.name).map(|(_, spec)| spec.label_type);
        match (known, label.label_type) {
            // As listed by ourselves: nothing to do.
            (Some(LabelType::Builtin), _) => continue,
            (_, LabelType::Builtin) => {
                let text = format!("label {:?}: there is no such built-in label", label.name);
                return Err(Error::Invalid(text).into());
            }
            _ => written.push(LabelSpec {
                hosts: None,
                ..label.clone()
            }),
        }
    }
    let named: Vec<(&str, &LabelSpec)> = written
        .iter()
        .map(|spec| (spec.name.as_str(), spec))
        .collect();
    let ids = specs::write(session, LABELS, &named).await?;
    let ids: BTreeMap<&str, u32> = named.iter().map(|(name, _)| *name).zip(ids).collect();
    let mut changed = BTreeSet::new();
    let mut unknown = BTreeSet::new();
    for label in labels {
        let Some(id) = ids.get(label.name.as_str()) else {
            continue;
        };
        let kind = label.label_membership_type;
        let was = before
            .get(&label.name)
            .map(|(_, spec)| spec.label_membership_type);
        let members = match (kind, &label.hosts) {
            (LabelMembership::Manual, Some(names)) => {
                Some(find(session, names, &mut unknown).await?)
            }
            // Members that were found by the other rule are none by this one.
            _ if was.is_some_and(|was| was != kind) => Some(BTreeSet::new()),
            _ => None,
        };
        if let Some(members) = members {
            set_members(session, *id, &members, &mut changed).await?;
        }
    }
    let mut changes = vec![NewChange::of(ChangeKind::Specs)];
    changes.extend(changed.into_iter().map(|host| NewChange::host(host, None)));
    write_changes(session, &changes).await?;
    Ok(unknown.into_iter().collect())
}

/// The hosts with these identifiers, host names or hardware UUIDs.
async fn find(
    session: &mut Session<'_>,
    names: &[String],
    unknown: &mut BTreeSet<String>,
) -> StdResult<BTreeSet<HostId>, Fault> {
    let stored: Vec<String> = names.iter().map(|name| identifier_text(name)).collect();
    let args: Vec<Arg<'_>> = stored.iter().map(|name| name.as_str().into()).collect();
    let mut found = BTreeSet::new();
    let mut matched = BTreeSet::new();
    for sql in [
        "SELECT id, identifier FROM hosts WHERE identifier IN ({})",
        "SELECT host_id, hostname FROM host_details WHERE hostname IN ({})",
        "SELECT host_id, hardware_uuid FROM host_details WHERE hardware_uuid IN ({})",
    ] {
        for row in session.rows_in("hosts_by_names", sql, &args).await? {
            found.insert(row.host(0)?);
            matched.insert(row.text(1)?);
        }
    }
    let misses = names
        .iter()
        .zip(&stored)
        .filter(|(_, text)| !matched.contains(*text));
    unknown.extend(misses.map(|(name, _)| name.clone()));
    Ok(found)
}

async fn set_members(
    session: &mut Session<'_>,
    label: u32,
    members: &BTreeSet<HostId>,
    changed: &mut BTreeSet<HostId>,
) -> StdResult<(), Fault> {
    let sql = "SELECT host_id FROM label_membership WHERE label_id = ?";
    let mut present = BTreeSet::new();
    for row in session.rows("label_members", sql, &[label.into()]).await? {
        present.insert(row.host(0)?);
    }
    let rows: Vec<Vec<Arg<'_>>> = members
        .difference(&present)
        .map(|host| vec![(*host).into(), label.into()])
        .collect();
    session
        .upsert("membership_insert", &MEMBERSHIP, &rows)
        .await?;
    let gone: Vec<Arg<'_>> = present
        .difference(members)
        .map(|host| (*host).into())
        .collect();
    // A number, not a text from outside.
    let sql =
        format!("DELETE FROM label_membership WHERE label_id = {label} AND host_id IN ({{}})");
    session.execute_in("membership_delete", &sql, &gone).await?;
    changed.extend(members.symmetric_difference(&present));
    Ok(())
}
