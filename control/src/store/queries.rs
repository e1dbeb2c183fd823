//! Named queries.

use super::Store;
use super::changes::{NewChange, write_changes};
use super::error::{Error, Result};
use super::pools::Purpose;
use super::session::transaction;
use super::specs::{self, Table};
use crate::model::change::ChangeKind;
use crate::model::query::{Query, QueryId, QuerySpec};

pub(super) const QUERIES: Table = Table {
    name: "queries",
    noun: "query",
    list_statement: "queries_list",
    write_statement: "queries_write",
};

impl Store {
    /// Every query, by name.
    pub(crate) async fn queries(&self) -> Result<Vec<Query>> {
        self.queries_for(Purpose::Read).await
    }

    pub(super) async fn queries_for(&self, purpose: Purpose) -> Result<Vec<Query>> {
        let mut session = self.session(purpose).await?;
        let queries = specs::list(&mut session, QUERIES).await?;
        Ok(queries
            .into_iter()
            .map(|stored| Query {
                id: QueryId(stored.id),
                spec: stored.spec,
                updated_at: stored.updated_at,
            })
            .collect())
    }

    /// Inserts or replaces by name, all or none.
    pub(crate) async fn apply_queries(&self, specs: &[QuerySpec]) -> Result<()> {
        specs::check_names("query", specs.iter().map(|spec| spec.name.as_str()))?;
        if let Some(empty) = specs.iter().find(|spec| spec.query.trim().is_empty()) {
            // An agent that is given an empty query asks for it for ever.
            return Err(Error::Invalid(format!("query {:?} has no SQL", empty.name)));
        }
        let named: Vec<(&str, &QuerySpec)> = specs
            .iter()
            .map(|spec| (spec.name.as_str(), spec))
            .collect();
        transaction!(self, session, async {
            specs::lock(&mut session).await?;
            specs::write(&mut session, QUERIES, &named).await?;
            write_changes(&mut session, &[NewChange::of(ChangeKind::Specs)]).await
        })
    }

    /// Another name for a query that no pack refers to. `Invalid` when the name is taken.
    pub(crate) async fn rename_query(&self, from: &str, to: &str) -> Result<bool> {
        specs::check_names("query", [to].into_iter())?;
        transaction!(self, session, async {
            let is_renamed = specs::rename(&mut session, QUERIES, from, to).await?;
            if is_renamed {
                write_changes(&mut session, &[NewChange::of(ChangeKind::Specs)]).await?;
            }
            Ok(is_renamed)
        })
    }

    /// False when there was none. Packs lose their references to it.
    pub(crate) async fn delete_query(&self, name: &str) -> Result<bool> {
        transaction!(self, session, async {
            specs::lock(&mut session).await?;
            if specs::delete(&mut session, QUERIES, name).await?.is_none() {
                return Ok(false);
            }
            let sql = "DELETE FROM pack_queries WHERE query_name = ?";
            session
                .execute("pack_queries_write", sql, &[name.into()])
                .await?;
            write_changes(&mut session, &[NewChange::of(ChangeKind::Specs)]).await?;
            Ok(true)
        })
    }
}
