//! Packs: their specs, whom they target, and their queries in order.

use std::collections::{BTreeMap, BTreeSet};
use std::result::Result as StdResult;

use super::Store;
use super::changes::{NewChange, write_changes};
use super::dialect::{Rule, Upsert};
use super::error::{Error, Fault, Result};
use super::label_specs::LABELS;
use super::pools::Purpose;
use super::queries::QUERIES;
use super::session::{Session, transaction};
use super::specs::{self, Table};
use super::value::Arg;
use crate::model::change::ChangeKind;
use crate::model::label::LabelId;
use crate::model::pack::{Pack, PackId, PackQuery, PackSpec, PackTargets};

const PACKS: Table = Table {
    name: "packs",
    noun: "pack",
    list_statement: "packs_list",
    write_statement: "packs_write",
};

const TARGETS: Upsert<'_> = Upsert {
    table: "pack_targets",
    key: &["pack_id", "label_id"],
    columns: &[("pack_id", Rule::Keep), ("label_id", Rule::Keep)],
};

const PACK_QUERIES: Upsert<'_> = Upsert {
    table: "pack_queries",
    key: &["pack_id", "position"],
    columns: &[
        ("pack_id", Rule::Keep),
        ("position", Rule::Keep),
        ("query_name", Rule::Replace),
        ("spec", Rule::Replace),
    ],
};

impl Store {
    /// Every pack, by name.
    pub(crate) async fn packs(&self) -> Result<Vec<Pack>> {
        self.packs_for(Purpose::Read).await
    }

    pub(super) async fn packs_for(&self, purpose: Purpose) -> Result<Vec<Pack>> {
        let mut session = self.session(purpose).await?;
        let stored = specs::list::<PackSpec>(&mut session, PACKS).await?;
        let mut queries: BTreeMap<u32, Vec<PackQuery>> = BTreeMap::new();
        let sql = "SELECT pack_id, spec FROM pack_queries ORDER BY pack_id, position";
        for row in session.rows("pack_queries_list", sql, &[]).await? {
            let query = serde_json::from_str(&row.text(1)?)
                .map_err(|_| Error::Failed("a pack in the database is not readable".into()))?;
            queries.entry(row.u32(0)?).or_default().push(query);
        }
        let mut targets: BTreeMap<u32, Vec<(LabelId, String)>> = BTreeMap::new();
        let sql = "SELECT t.pack_id, t.label_id, l.name FROM pack_targets t \
                   JOIN labels l ON l.id = t.label_id ORDER BY t.pack_id, t.label_id";
        for row in session.rows("pack_targets_list", sql, &[]).await? {
            let label = (LabelId(row.u32(1)?), row.text(2)?);
            targets.entry(row.u32(0)?).or_default().push(label);
        }
        Ok(stored
            .into_iter()
            .map(|stored| {
                let targets = targets.remove(&stored.id).unwrap_or_default();
                let (labels, names) = targets.into_iter().unzip();
                Pack {
                    id: PackId(stored.id),
                    spec: PackSpec {
                        targets: PackTargets { labels: names },
                        queries: queries.remove(&stored.id).unwrap_or_default(),
                        ..stored.spec
                    },
                    labels,
                    updated_at: stored.updated_at,
                }
            })
            .collect())
    }

    /// Inserts or replaces by name, all or none. `Invalid` when a label or query does not exist.
    pub(crate) async fn apply_packs(&self, specs: &[PackSpec]) -> Result<()> {
        check(specs)?;
        transaction!(self, session, apply_once(&mut session, specs))
    }

    /// Another name for a pack. `Invalid` when the name is taken.
    pub(crate) async fn rename_pack(&self, from: &str, to: &str) -> Result<bool> {
        specs::check_names("pack", [to].into_iter())?;
        transaction!(self, session, async {
            let is_renamed = specs::rename(&mut session, PACKS, from, to).await?;
            if is_renamed {
                write_changes(&mut session, &[NewChange::of(ChangeKind::Specs)]).await?;
            }
            Ok(is_renamed)
        })
    }

    /// False when there was none.
    pub(crate) async fn delete_pack(&self, name: &str) -> Result<bool> {
        transaction!(self, session, async {
            specs::lock(&mut session).await?;
            let Some(id) = specs::delete(&mut session, PACKS, name).await? else {
                return Ok(false);
            };
            clear(&mut session, &[id]).await?;
            write_changes(&mut session, &[NewChange::of(ChangeKind::Specs)]).await?;
            Ok(true)
        })
    }
}

fn check(packs: &[PackSpec]) -> StdResult<(), Error> {
    specs::check_names("pack", packs.iter().map(|spec| spec.name.as_str()))?;
    for pack in packs {
        let mut names = BTreeSet::new();
        for query in &pack.queries {
            let name = name_of(query);
            if name.is_empty() {
                let text = format!("pack {:?}: a query has neither name nor query", pack.name);
                return Err(Error::Invalid(text));
            }
            if !names.insert(name) {
                // The agent would keep one of them.
                let text = format!("pack {:?}: query {name:?} is there twice", pack.name);
                return Err(Error::Invalid(text));
            }
            if query.sql.as_ref().is_some_and(|sql| sql.trim().is_empty()) {
                let text = format!("pack {:?}: query {name:?} has no SQL", pack.name);
                return Err(Error::Invalid(text));
            }
        }
    }
    Ok(())
}

fn name_of(query: &PackQuery) -> &str {
    if query.name.is_empty() {
        &query.query
    } else {
        &query.name
    }
}

async fn apply_once(session: &mut Session<'_>, packs: &[PackSpec]) -> StdResult<(), Fault> {
    specs::lock(session).await?;
    let labels = specs::ids(session, LABELS).await?;
    let queries = specs::ids(session, QUERIES).await?;
    let missing = |pack: &PackSpec, noun: &str, name: &str| {
        Error::Invalid(format!("pack {:?}: no {noun} {name:?}", pack.name))
    };
    for pack in packs {
        if let Some(name) = pack
            .targets
            .labels
            .iter()
            .find(|name| !labels.contains_key(*name))
        {
            return Err(missing(pack, "label", name).into());
        }
        let mut references = pack.queries.iter().filter(|query| query.sql.is_none());
        if let Some(query) = references.find(|query| !queries.contains_key(&query.query)) {
            return Err(missing(pack, "query", &query.query).into());
        }
    }
    // Targets and queries have tables of their own.
    let bare: Vec<PackSpec> = packs
        .iter()
        .map(|pack| PackSpec {
            targets: PackTargets::default(),
            queries: Vec::new(),
            ..pack.clone()
        })
        .collect();
    let named: Vec<(&str, &PackSpec)> =
        bare.iter().map(|spec| (spec.name.as_str(), spec)).collect();
    let ids = specs::write(session, PACKS, &named).await?;
    clear(session, &ids).await?;
    write_targets(session, packs, &ids, &labels).await?;
    write_queries(session, packs, &ids).await?;
    write_changes(session, &[NewChange::of(ChangeKind::Specs)]).await
}

async fn clear(session: &mut Session<'_>, ids: &[u32]) -> StdResult<(), Fault> {
    let mut ids: Vec<u32> = ids.to_vec();
    ids.sort_unstable();
    let ids: Vec<Arg<'_>> = ids.into_iter().map(Into::into).collect();
    let sql = "DELETE FROM pack_targets WHERE pack_id IN ({})";
    session.execute_in("pack_targets_write", sql, &ids).await?;
    let sql = "DELETE FROM pack_queries WHERE pack_id IN ({})";
    session.execute_in("pack_queries_write", sql, &ids).await?;
    Ok(())
}

async fn write_targets(
    session: &mut Session<'_>,
    packs: &[PackSpec],
    ids: &[u32],
    labels: &BTreeMap<String, u32>,
) -> StdResult<(), Fault> {
    let mut pairs = BTreeSet::new();
    for (pack, id) in packs.iter().zip(ids) {
        let wanted = pack
            .targets
            .labels
            .iter()
            .filter_map(|name| labels.get(name));
        pairs.extend(wanted.map(|label| (*id, *label)));
    }
    let rows: Vec<Vec<Arg<'_>>> = pairs
        .into_iter()
        .map(|(pack, label)| vec![pack.into(), label.into()])
        .collect();
    session.upsert("pack_targets_write", &TARGETS, &rows).await
}

async fn write_queries(
    session: &mut Session<'_>,
    packs: &[PackSpec],
    ids: &[u32],
) -> StdResult<(), Fault> {
    let mut sorted: Vec<(u32, &PackSpec)> = ids.iter().copied().zip(packs).collect();
    sorted.sort_by_key(|(id, _)| *id);
    let mut texts = Vec::new();
    for (id, pack) in sorted {
        for (position, query) in (0_u32..).zip(&pack.queries) {
            let text =
                serde_json::to_string(query).map_err(|error| Error::Invalid(error.to_string()))?;
            // A query that brings its own SQL does not depend on a named one.
            let reference = query.sql.is_none().then_some(query.query.as_str());
            texts.push((id, position, reference, text));
        }
    }
    let rows: Vec<Vec<Arg<'_>>> = texts
        .iter()
        .map(|(id, position, reference, text)| {
            vec![
                (*id).into(),
                (*position).into(),
                (*reference).into(),
                text.as_str().into(),
            ]
        })
        .collect();
    session
        .upsert("pack_queries_write", &PACK_QUERIES, &rows)
        .await
}
