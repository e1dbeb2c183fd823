//! Queries one by one, by id, in the shapes of Fleet's console and REST clients; as documents they are in `specs.rs`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::actor::Actor;
use super::audit::Deed;
use super::fault::{Fault, Reason};
use super::pages::{Parameters, Sorted};
use super::payload::Payload;
use super::spec::{self, Documents};
use super::{Office, apply, hosts, specs};
use crate::model::pack::Pack;
use crate::model::query::Query as Row;

/// Queries that one request deletes.
const DELETED_MAX: usize = 1000;

type Ask = State<Arc<Office>>;
type Reply = Result<Json<Value>, Fault>;

/// `GET /queries`
pub(super) async fn list(State(office): Ask, Query(parameters): Query<Parameters>) -> Reply {
    let reports = office.deps.store.reports();
    let packs = reports.packs().await?;
    let page = parameters.cut(reports.queries().await?, |query| Sorted {
        id: query.id.0,
        name: &query.spec.name,
        updated_at: query.updated_at,
    })?;
    let queries: Vec<Value> = page.items.iter().map(|query| body(query, &packs)).collect();
    Ok(Json(json!({
        "queries": queries,
        "count": page.count,
        "inherited_query_count": 0,
        "meta": page.meta(),
    })))
}

/// `GET /queries/{name}`, by id.
pub(super) async fn show(State(office): Ask, Path(id): Path<String>) -> Reply {
    let query = find(&office, &id).await?;
    let packs = office.deps.store.reports().packs().await?;
    Ok(Json(json!({ "query": body(&query, &packs) })))
}

/// `POST /queries`
pub(super) async fn create(actor: Actor, State(office): Ask, payload: Payload) -> Reply {
    let document = Value::Object(payload.members()?);
    let name = spec::name_of(&document);
    let rows = office.deps.store.queries().await?;
    if rows.iter().any(|query| query.spec.name == name) {
        return Err(Fault::conflict(format!("query {name:?} exists already")));
    }
    write(&office, &actor, document).await
}

/// `PATCH /queries/{name}`, by id: members that are absent stay as they are.
pub(super) async fn change(
    actor: Actor,
    State(office): Ask,
    Path(id): Path<String>,
    payload: Payload,
) -> Reply {
    let query = find(&office, &id).await?;
    let patch = Value::Object(payload.members()?);
    let changed = spec::patched(spec::query_document(&query.spec), patch);
    let name = spec::name_of(&changed);
    if name != query.spec.name {
        let documents = Documents {
            queries: vec![changed.clone()],
            ..Documents::default()
        };
        apply::apply_documents(&office, &actor, documents, true).await?;
        let _turn = office.turn.lock().await;
        specs::refuse_used_query(&office, &query.spec.name).await?;
        let store = &office.deps.store;
        if !store.rename_query(&query.spec.name, &name).await? {
            return Err(Fault::not_found(format_args!("query {id:?}")));
        }
        let deed = Deed::renamed("query", &query.spec.name, &name);
        office.audit.record(&actor, deed.numbered(query.id.0)).await;
    }
    write(&office, &actor, changed).await
}

/// `DELETE /queries/id/{id}`
pub(super) async fn delete(actor: Actor, state: Ask, Path(id): Path<String>) -> Reply {
    let query = find(&state, &id).await?;
    specs::delete_query(actor, state, Path(query.spec.name)).await
}

/// Which queries to delete.
#[derive(Debug, Deserialize)]
struct Doomed {
    ids: Vec<u32>,
}

/// `POST /queries/delete`: those of the ids that there are.
pub(super) async fn delete_many(actor: Actor, state: Ask, payload: Payload) -> Reply {
    let Doomed { ids } = payload.read()?;
    if ids.len() > DELETED_MAX {
        let reason = format!("lists {}; at most {DELETED_MAX} at a time", ids.len());
        return Err(Fault::invalid(vec![Reason::new("ids", reason)]));
    }
    let rows = state.deps.store.queries().await?;
    let mut deleted = 0;
    for row in rows.iter().filter(|row| ids.contains(&row.id.0)) {
        let name = Path(row.spec.name.clone());
        let _empty = specs::delete_query(actor.clone(), State(Arc::clone(&state)), name).await?;
        deleted += 1;
    }
    Ok(Json(json!({ "deleted": deleted })))
}

async fn write(office: &Office, actor: &Actor, document: Value) -> Reply {
    let name = spec::name_of(&document);
    let documents = Documents {
        queries: vec![document],
        ..Documents::default()
    };
    let outcome = apply::apply_documents(office, actor, documents, false).await?;
    let rows = office.deps.store.queries().await?;
    let query = rows.iter().find(|query| query.spec.name == name);
    let query = query.ok_or_else(|| Fault::not_found(format_args!("query {name:?}")))?;
    let packs = office.deps.store.packs().await?;
    Ok(Json(
        json!({"query": body(query, &packs), "warnings": outcome.warnings}),
    ))
}

/// The query with an id.
pub(super) async fn find(office: &Office, id: &str) -> Result<Row, Fault> {
    let rows = office.deps.store.reports().queries().await?;
    let number: Option<u32> = id.parse().ok();
    rows.into_iter()
        .find(|query| Some(query.id.0) == number)
        .ok_or_else(|| Fault::not_found(format_args!("query {id:?}")))
}

fn body(query: &Row, packs: &[Pack]) -> Value {
    let spec = &query.spec;
    let updated_at = hosts::rfc3339(query.updated_at);
    let packs: Vec<Value> = packs
        .iter()
        .filter(|pack| specs::uses_query(pack, &spec.name))
        .map(|pack| json!({"id": pack.id, "name": pack.spec.name}))
        .collect();
    json!({
        "id": query.id,
        "created_at": updated_at,
        "updated_at": updated_at,
        "name": spec.name,
        "description": spec.description,
        "query": spec.query,
        "saved": true,
        "interval": spec.interval,
        "platform": spec.platform,
        "min_osquery_version": spec.min_osquery_version,
        "automations_enabled": spec.automations_enabled,
        "logging": spec.logging,
        "observer_can_run": spec.observer_can_run,
        "discard_data": false,
        "team_id": null,
        "author_id": null,
        "author_name": "",
        "author_email": "",
        "packs": packs,
    })
}
