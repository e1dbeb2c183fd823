//! What queries, packs and labels have in common: a table of named JSON texts.
//!
//! Invariant: writers of specs are serialised by the lock of the counter `specs`, taken first; it also gives the ids.

use std::collections::{BTreeMap, BTreeSet};
use std::result::Result as StdResult;

use fleet_protocol::ids::UnixSeconds;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::dialect::{Rule, Upsert};
use super::error::{Error, Fault};
use super::now;
use super::session::Session;
use super::value::{Arg, NAME_CHARS_MAX};

/// A table of specs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    /// For people.
    pub(super) noun: &'static str,
    pub(super) list_statement: &'static str,
    pub(super) write_statement: &'static str,
}

/// A row of such a table.
pub(super) struct Stored<T> {
    pub(super) id: u32,
    pub(super) spec: T,
    pub(super) updated_at: UnixSeconds,
}

/// Every row, by name.
pub(super) async fn list<T: DeserializeOwned>(
    session: &mut Session<'_>,
    table: Table,
) -> StdResult<Vec<Stored<T>>, Fault> {
    let sql = format!(
        "SELECT id, spec, updated_at FROM {} ORDER BY name",
        table.name
    );
    let mut specs = Vec::new();
    for row in session.rows(table.list_statement, sql, &[]).await? {
        let spec = serde_json::from_str(&row.text(1)?).map_err(|_| {
            Error::Failed(format!("a {} in the database is not readable", table.noun))
        })?;
        specs.push(Stored {
            id: row.u32(0)?,
            spec,
            updated_at: row.time(2)?,
        });
    }
    Ok(specs)
}

/// Takes the lock of all spec writers.
pub(super) async fn lock(session: &mut Session<'_>) -> StdResult<(), Fault> {
    session.advance("specs", 0).await?;
    Ok(())
}

/// Ids by name.
pub(super) async fn ids(
    session: &mut Session<'_>,
    table: Table,
) -> StdResult<BTreeMap<String, u32>, Fault> {
    let sql = format!("SELECT name, id FROM {}", table.name);
    let mut ids = BTreeMap::new();
    for row in session.rows(table.list_statement, sql, &[]).await? {
        ids.insert(row.text(0)?, row.u32(1)?);
    }
    Ok(ids)
}

/// Inserts or replaces specs by name; the lock is held. Returns their ids, in the order of `specs`.
pub(super) async fn write<T: Serialize>(
    session: &mut Session<'_>,
    table: Table,
    specs: &[(&str, &T)],
) -> StdResult<Vec<u32>, Fault> {
    let known = ids(session, table).await?;
    let added = specs.iter().filter(|(name, _)| !known.contains_key(*name));
    let added = u32::try_from(added.count())
        .map_err(|_| Error::Invalid(format!("too many {}s", table.noun)))?;
    let newest = session.advance("specs", added).await?;
    let mut next = u32::try_from(newest - i64::from(added) + 1)
        .map_err(|_| Error::Failed("ids of specs are used up".into()))?;
    let mut given = Vec::with_capacity(specs.len());
    let mut texts = Vec::with_capacity(specs.len());
    for (name, spec) in specs {
        given.push(known.get(*name).copied().unwrap_or_else(|| {
            next += 1;
            next - 1
        }));
        texts.push(serde_json::to_string(spec).map_err(|error| Error::Invalid(error.to_string()))?);
    }
    let updated_at = now();
    let mut rows: Vec<Vec<Arg<'_>>> = specs
        .iter()
        .zip(&given)
        .zip(&texts)
        .map(|(((name, _), id), text)| {
            vec![
                (*id).into(),
                (*name).into(),
                text.as_str().into(),
                updated_at.into(),
            ]
        })
        .collect();
    rows.sort_by_key(|row| match row.first() {
        Some(Arg::Int(id)) => *id,
        _ => 0,
    });
    let upsert = Upsert {
        table: table.name,
        key: &["id"],
        columns: &[
            ("id", Rule::Keep),
            ("name", Rule::Keep),
            ("spec", Rule::Replace),
            ("updated_at", Rule::Replace),
        ],
    };
    session
        .upsert(table.write_statement, &upsert, &rows)
        .await?;
    Ok(given)
}

/// Deletes by name; the lock is held. Returns the id that it had.
pub(super) async fn delete(
    session: &mut Session<'_>,
    table: Table,
    name: &str,
) -> StdResult<Option<u32>, Fault> {
    let Some(id) = ids(session, table).await?.remove(name) else {
        return Ok(None);
    };
    let sql = format!("DELETE FROM {} WHERE id = ?", table.name);
    session
        .execute(table.write_statement, sql, &[id.into()])
        .await?;
    Ok(Some(id))
}

/// Gives a spec another name, under which it keeps its id; takes the lock. False when there is none.
pub(super) async fn rename(
    session: &mut Session<'_>,
    table: Table,
    from: &str,
    to: &str,
) -> StdResult<bool, Fault> {
    lock(session).await?;
    let known = ids(session, table).await?;
    let Some(id) = known.get(from) else {
        return Ok(false);
    };
    if known.contains_key(to) {
        let text = format!("{} {to:?} exists already", table.noun);
        return Err(Error::Invalid(text).into());
    }
    let sql = format!("SELECT spec FROM {} WHERE id = ?", table.name);
    let row = session
        .row(table.list_statement, sql, &[(*id).into()])
        .await?;
    let Some(row) = row else { return Ok(false) };
    let mut spec: Map<String, Value> = serde_json::from_str(&row.text(0)?)
        .map_err(|_| Error::Failed(format!("a {} in the database is not readable", table.noun)))?;
    spec.insert("name".into(), to.into());
    let text = Value::Object(spec).to_string();
    let sql = format!(
        "UPDATE {} SET name = ?, spec = ?, updated_at = ? WHERE id = ?",
        table.name
    );
    let args = [to.into(), text.as_str().into(), now().into(), (*id).into()];
    session.execute(table.write_statement, sql, &args).await?;
    Ok(true)
}

/// Refuses names that are empty, too long, padded or there twice.
pub(super) fn check_names<'a>(
    noun: &str,
    names: impl Iterator<Item = &'a str>,
) -> StdResult<(), Error> {
    let mut known = BTreeSet::new();
    for name in names {
        let problem = if name.is_empty() {
            "has no name"
        } else if name.trim() != name {
            // MySQL compares without trailing spaces.
            "has spaces around its name"
        } else if name.chars().count() > NAME_CHARS_MAX {
            "has a name of more than 255 characters"
        } else if !known.insert(name) {
            "is there twice"
        } else {
            continue;
        };
        return Err(Error::Invalid(format!("{noun} {name:?} {problem}")));
    }
    Ok(())
}
