//! Packs one by one, by id, in the shapes of Fleet's console and REST clients; as documents they are in `specs.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use serde_json::{Map, Value, json};

use super::actor::Actor;
use super::audit::Deed;
use super::fault::{Fault, Reason};
use super::pages::{Parameters, Sorted};
use super::payload::Payload;
use super::spec::{self, Documents};
use super::{Office, apply, hosts, pack as packs_text, specs};
use crate::agents::now;
use crate::campaigns::Groups;
use crate::model::label::{Label, LabelId};
use crate::model::pack::Pack;

type Ask = State<Arc<Office>>;
type Reply = Result<Json<Value>, Fault>;

/// `GET /packs`
pub(super) async fn list(State(office): Ask, Query(parameters): Query<Parameters>) -> Reply {
    let rows = office.deps.store.reports().packs().await?;
    let labels = specs::label_rows(&office).await?;
    let page = parameters.cut(rows, |pack| Sorted {
        id: pack.id.0,
        name: &pack.spec.name,
        updated_at: pack.updated_at,
    })?;
    let mut packs = Vec::with_capacity(page.items.len());
    for pack in &page.items {
        packs.push(body(&office, pack, &labels).await?);
    }
    Ok(Json(json!({"packs": packs, "meta": page.meta()})))
}

/// `GET /packs/{name}`, by id.
pub(super) async fn show(State(office): Ask, Path(id): Path<String>) -> Reply {
    let pack = find(&office, &id).await?;
    let labels = specs::label_rows(&office).await?;
    Ok(Json(
        json!({ "pack": body(&office, &pack, &labels).await? }),
    ))
}

/// `GET /packs/{name}/scheduled`, by id.
pub(super) async fn scheduled(State(office): Ask, Path(id): Path<String>) -> Reply {
    let pack = find(&office, &id).await?;
    let queries = office.deps.store.reports().queries().await?;
    let known: BTreeMap<&str, _> = queries
        .iter()
        .map(|query| (query.spec.name.as_str(), query))
        .collect();
    let scheduled: Vec<Value> = (0_u64..)
        .zip(&pack.spec.queries)
        .map(|(position, query)| {
            let named = known
                .get(query.query.as_str())
                .filter(|_| query.sql.is_none());
            let sql = named.map(|named| named.spec.query.as_str());
            json!({
                // Its place in the pack, since it has no row of its own.
                "id": (u64::from(pack.id.0) << 16) + position,
                "created_at": hosts::rfc3339(pack.updated_at),
                "updated_at": hosts::rfc3339(pack.updated_at),
                "pack_id": pack.id,
                "name": packs_text::query_name(query),
                "query_id": named.map(|named| named.id),
                "query_name": query.query,
                "query": query.sql.as_deref().or(sql).unwrap_or_default(),
                "description": query.description,
                "interval": query.interval,
                "snapshot": query.snapshot,
                "removed": query.removed,
                "platform": query.platform,
                "version": query.version,
                "shard": query.shard,
                "denylist": query.denylist,
            })
        })
        .collect();
    Ok(Json(json!({ "scheduled": scheduled })))
}

/// `POST /packs`
pub(super) async fn create(actor: Actor, State(office): Ask, payload: Payload) -> Reply {
    let document = document(&office, payload.members()?).await?;
    let name = spec::name_of(&document);
    let rows = office.deps.store.packs().await?;
    if rows.iter().any(|pack| pack.spec.name == name) {
        return Err(Fault::conflict(format!("pack {name:?} exists already")));
    }
    write(&office, &actor, document).await
}

/// `PATCH /packs/{name}`, by id: members that are absent stay as they are.
pub(super) async fn change(
    actor: Actor,
    State(office): Ask,
    Path(id): Path<String>,
    payload: Payload,
) -> Reply {
    let pack = find(&office, &id).await?;
    let patch = document(&office, payload.members()?).await?;
    let changed = spec::patched(packs_text::document(&pack.spec), patch);
    let name = spec::name_of(&changed);
    if name != pack.spec.name {
        let documents = Documents {
            packs: vec![changed.clone()],
            ..Documents::default()
        };
        apply::apply_documents(&office, &actor, documents, true).await?;
        let _turn = office.turn.lock().await;
        let store = &office.deps.store;
        if !store.rename_pack(&pack.spec.name, &name).await? {
            return Err(Fault::not_found(format_args!("pack {id:?}")));
        }
        let deed = Deed::renamed("pack", &pack.spec.name, &name);
        office.audit.record(&actor, deed.numbered(pack.id.0)).await;
    }
    write(&office, &actor, changed).await
}

/// `DELETE /packs/id/{id}`
pub(super) async fn delete(actor: Actor, state: Ask, Path(id): Path<String>) -> Reply {
    let pack = find(&state, &id).await?;
    specs::delete_pack(actor, state, Path(pack.spec.name)).await
}

async fn write(office: &Office, actor: &Actor, document: Value) -> Reply {
    let name = spec::name_of(&document);
    let documents = Documents {
        packs: vec![document],
        ..Documents::default()
    };
    let outcome = apply::apply_documents(office, actor, documents, false).await?;
    let rows = office.deps.store.packs().await?;
    let pack = rows.iter().find(|pack| pack.spec.name == name);
    let pack = pack.ok_or_else(|| Fault::not_found(format_args!("pack {name:?}")))?;
    let labels = specs::label_rows(office).await?;
    let body = body(office, pack, &labels).await?;
    Ok(Json(json!({"pack": body, "warnings": outcome.warnings})))
}

/// The document that such a body means: `label_ids` become the names of targets.
async fn document(office: &Office, mut members: Map<String, Value>) -> Result<Value, Fault> {
    for name in ["host_ids", "team_ids"] {
        let is_used = members
            .shift_remove(name)
            .is_some_and(|ids| ids.as_array().is_none_or(|ids| !ids.is_empty()) && !ids.is_null());
        if is_used {
            let reason = "a pack's targets are labels; leave it out";
            return Err(Fault::invalid(vec![Reason::new(name, reason)]));
        }
    }
    let Some(ids) = members
        .shift_remove("label_ids")
        .filter(|ids| !ids.is_null())
    else {
        return Ok(Value::Object(members));
    };
    let wrong = |reason: String| Fault::invalid(vec![Reason::new("label_ids", reason)]);
    let ids: Vec<LabelId> =
        serde_json::from_value(ids).map_err(|_| wrong("must be a list of ids of labels".into()))?;
    let rows = office.deps.store.label_specs().await?;
    let mut names = Vec::new();
    for id in ids {
        let label = rows.iter().find(|label| label.id == id);
        let label = label.ok_or_else(|| wrong(format!("label {} does not exist", id.0)))?;
        names.push(label.spec.name.clone());
    }
    members.insert("targets".into(), json!({ "labels": names }));
    Ok(Value::Object(members))
}

/// The pack with an id.
async fn find(office: &Office, id: &str) -> Result<Pack, Fault> {
    let rows = office.deps.store.reports().packs().await?;
    let number: Option<u32> = id.parse().ok();
    rows.into_iter()
        .find(|pack| Some(pack.id.0) == number)
        .ok_or_else(|| Fault::not_found(format_args!("pack {id:?}")))
}

async fn body(office: &Office, pack: &Pack, labels: &[Label]) -> Result<Value, Fault> {
    let updated_at = hosts::rfc3339(pack.updated_at);
    let targets: Vec<Value> = labels
        .iter()
        .filter(|label| pack.labels.contains(&label.id))
        .map(|label| {
            json!({
                "id": label.id,
                "name": label.spec.name,
                "display_text": label.spec.name,
                "count": label.host_count,
            })
        })
        .collect();
    let hosts = match pack.labels.as_slice() {
        [] => 0,
        [one] => labels
            .iter()
            .find(|label| label.id == *one)
            .map_or(0, |label| label.host_count),
        many => {
            let targets = Groups::any_of(many);
            let counts = office.deps.agents.target_counts(targets, now()).await;
            counts.ok_or_else(Fault::not_loaded)?.enrolled
        }
    };
    Ok(json!({
        "id": pack.id,
        "created_at": updated_at,
        "updated_at": updated_at,
        "name": pack.spec.name,
        "display_text": pack.spec.name,
        "description": pack.spec.description,
        "platform": pack.spec.platform,
        "disabled": pack.spec.disabled,
        "type": null,
        "query_count": pack.spec.queries.len(),
        "total_hosts_count": hosts,
        "host_ids": [],
        "label_ids": pack.labels,
        "team_ids": [],
        "hosts": [],
        "labels": targets,
        "teams": [],
    }))
}
