//! Reads and deletes queries, packs, labels, configuration and enroll secrets.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Map, Value, json};

use super::actor::Actor;
use super::audit::Deed;
use super::fault::{Fault, Reason};
use super::roles::Least;
use super::{Office, apply, hosts, pack as packs_text, spec};
use crate::model::label::{Label, LabelMembership, LabelType};
use crate::model::pack::Pack;
use crate::model::query::Query;

type Reply = Result<Json<Value>, Fault>;
type Ask = State<Arc<Office>>;

/// `GET /spec/queries`
pub(super) async fn queries(State(office): Ask) -> Reply {
    let rows = office.deps.store.reports().queries().await?;
    Ok(specs(rows.iter().map(query_body)))
}

/// `GET /spec/queries/{name}`
pub(super) async fn query(State(office): Ask, Path(name): Path<String>) -> Reply {
    let rows = office.deps.store.reports().queries().await?;
    let row = rows.iter().find(|row| row.spec.name == name);
    one(row.map(query_body), "query", &name)
}

/// `DELETE /queries/{name}`
pub(super) async fn delete_query(
    actor: Actor,
    State(office): Ask,
    Path(name): Path<String>,
) -> Reply {
    let _turn = office.turn.lock().await;
    refuse_used_query(&office, &name).await?;
    let rows = office.deps.store.queries().await?;
    let row = rows.iter().find(|row| row.spec.name == name);
    let deed = deed("deleted_saved_query", ("query", &name), row.map(query_body));
    let is_deleted = office.deps.store.delete_query(&name).await?;
    deleted(&office, &actor, is_deleted, deed).await
}

/// `GET /spec/packs`
pub(super) async fn packs(State(office): Ask) -> Reply {
    let rows = office.deps.store.reports().packs().await?;
    Ok(specs(rows.iter().map(pack_body)))
}

/// `GET /spec/packs/{name}`
pub(super) async fn pack(State(office): Ask, Path(name): Path<String>) -> Reply {
    let rows = office.deps.store.reports().packs().await?;
    let row = rows.iter().find(|row| row.spec.name == name);
    one(row.map(pack_body), "pack", &name)
}

/// `DELETE /packs/{name}`
pub(super) async fn delete_pack(
    actor: Actor,
    State(office): Ask,
    Path(name): Path<String>,
) -> Reply {
    let _turn = office.turn.lock().await;
    let rows = office.deps.store.packs().await?;
    let row = rows.iter().find(|row| row.spec.name == name);
    let deed = deed("deleted_pack", ("pack", &name), row.map(pack_body));
    let is_deleted = office.deps.store.delete_pack(&name).await?;
    deleted(&office, &actor, is_deleted, deed).await
}

/// `GET /spec/labels`
pub(super) async fn labels(State(office): Ask) -> Reply {
    let mut bodies = Vec::new();
    for row in label_rows(&office).await? {
        bodies.push(label_body(&office, row).await?);
    }
    Ok(specs(bodies.into_iter()))
}

/// `GET /spec/labels/{name}`
pub(super) async fn label(State(office): Ask, Path(name): Path<String>) -> Reply {
    let rows = label_rows(&office).await?;
    let body = match rows.into_iter().find(|row| row.spec.name == name) {
        Some(row) => Some(label_body(&office, row).await?),
        None => None,
    };
    one(body, "label", &name)
}

/// `DELETE /labels/{name}`
pub(super) async fn delete_label(
    actor: Actor,
    State(office): Ask,
    Path(name): Path<String>,
) -> Reply {
    let _turn = office.turn.lock().await;
    let labels = office.deps.store.label_specs().await?;
    let is_builtin =
        |row: &Label| row.spec.name == name && row.spec.label_type == LabelType::Builtin;
    if labels.iter().any(is_builtin) {
        return Err(Fault::invalid(vec![Reason::new(
            format!("label {name:?}"),
            "is built in and cannot be deleted",
        )]));
    }
    let packs = office.deps.store.packs().await?;
    let uses = |pack: &&Pack| pack.spec.targets.labels.contains(&name);
    refuse_if_used("label", &name, packs.iter().filter(uses))?;
    let row = labels.into_iter().find(|row| row.spec.name == name);
    let before = match row {
        Some(row) => Some(label_body(&office, row).await?),
        None => None,
    };
    let deed = deed("deleted_label", ("label", &name), before);
    let is_deleted = office.deps.store.delete_label(&name).await?;
    deleted(&office, &actor, is_deleted, deed).await
}

/// `GET /config`, in Fleet's shape as far as there is anything to tell.
pub(super) async fn config(actor: Actor, State(office): Ask) -> Reply {
    let deps = &office.deps;
    let mut body = Map::new();
    body.insert(
        "org_info".into(),
        json!({"org_name": "", "org_logo_url": ""}),
    );
    body.insert("server_settings".into(), json!({"server_url": ""}));
    body.extend(deps.store.app_config().await?);
    // They hold what packs hold, which is not for everybody.
    if Least::Maintainer.admit(actor.role).is_ok() {
        body.insert("agent_options".into(), deps.store.agent_options().await?);
    }
    body.insert("license".into(), json!({"tier": "free"}));
    let osquery = &deps.config.osquery;
    body.insert(
        "update_interval".into(),
        json!({
            "osquery_detail": nanoseconds(osquery.detail_update_interval),
            "osquery_label": nanoseconds(osquery.label_update_interval),
        }),
    );
    Ok(Json(Value::Object(body)))
}

fn nanoseconds(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// `GET /spec/enroll_secret`: the one place that shows them.
pub(super) async fn enroll_secret(State(office): Ask) -> Reply {
    let secrets: Vec<Value> = office
        .deps
        .store
        .enroll_secrets()
        .await?
        .iter()
        .map(|row| {
            json!({
                "secret": row.secret.reveal(),
                "created_at": hosts::rfc3339(row.created_at),
            })
        })
        .collect();
    Ok(Json(json!({"spec": {"secrets": secrets}})))
}

fn specs(bodies: impl Iterator<Item = Value>) -> Json<Value> {
    let bodies: Vec<Value> = bodies.collect();
    Json(json!({ "specs": bodies }))
}

fn one(body: Option<Value>, kind: &str, name: &str) -> Reply {
    let body = body.ok_or_else(|| Fault::not_found(format_args!("{kind} {name:?}")))?;
    Ok(Json(json!({ "spec": body })))
}

/// The document with its row's number in front.
fn with_id(id: u32, document: Value) -> Value {
    let mut body = Map::new();
    body.insert("id".into(), id.into());
    if let Value::Object(members) = document {
        body.extend(members);
    }
    Value::Object(body)
}

fn query_body(row: &Query) -> Value {
    with_id(row.id.0, spec::query_document(&row.spec))
}

fn pack_body(row: &Pack) -> Value {
    with_id(row.id.0, packs_text::document(&row.spec))
}

/// Every label with the number of its members: from memory, where it is known, since the store would count all of them.
pub(super) async fn label_rows(office: &Office) -> Result<Vec<Label>, Fault> {
    let counts = office.deps.agents.label_counts();
    let reports = office.deps.store.reports();
    if counts.is_empty() {
        return Ok(reports.labels().await?);
    }
    let mut rows = reports.label_specs().await?;
    for row in &mut rows {
        row.host_count = counts.get(&row.id).copied().unwrap_or_default();
    }
    Ok(rows)
}

async fn label_body(office: &Office, mut row: Label) -> Result<Value, Fault> {
    if row.spec.label_membership_type == LabelMembership::Manual {
        row.spec.hosts = Some(apply::members(&office.deps.store, row.id).await?);
    }
    let mut body = with_id(row.id.0, spec::label_document(&row.spec));
    if let Some(members) = body.as_object_mut() {
        members.insert("host_count".into(), row.host_count.into());
    }
    Ok(body)
}

/// Whether a pack refers to the named query.
pub(super) fn uses_query(pack: &Pack, name: &str) -> bool {
    let mut queries = pack.spec.queries.iter();
    queries.any(|query| query.sql.is_none() && query.query == name)
}

/// Refuses what would take a query from the packs that refer to it.
pub(super) async fn refuse_used_query(office: &Office, name: &str) -> Result<(), Fault> {
    let packs = office.deps.store.packs().await?;
    refuse_if_used(
        "query",
        name,
        packs.iter().filter(|pack| uses_query(pack, name)),
    )
}

fn refuse_if_used<'p>(
    kind: &str,
    name: &str,
    packs: impl Iterator<Item = &'p Pack>,
) -> Result<(), Fault> {
    let users: Vec<String> = packs.map(|pack| format!("{:?}", pack.spec.name)).collect();
    if users.is_empty() {
        return Ok(());
    }
    let noun = if users.len() == 1 { "pack" } else { "packs" };
    Err(Fault::conflict(format!(
        "{kind} {name:?} is used by {noun} {}; change or delete what uses it first",
        users.join(", ")
    )))
}

/// What the audit log says of a document's end.
fn deed(kind: &'static str, (noun, name): (&'static str, &str), before: Option<Value>) -> Deed {
    let id = before.as_ref().and_then(|body| body["id"].as_u64());
    let id = id.and_then(|id| u32::try_from(id).ok()).unwrap_or_default();
    let deed = Deed::of(kind).to(noun, name).numbered(id);
    deed.before(before.unwrap_or_default())
}

async fn deleted(office: &Office, actor: &Actor, is_deleted: bool, deed: Deed) -> Reply {
    let (kind, name) = deed.subject();
    if !is_deleted {
        return Err(Fault::not_found(format_args!("{kind} {name:?}")));
    }
    tracing::info!(kind, name, "operator deleted a document");
    apply::wake(&office.deps).await;
    office.audit.record(actor, deed).await;
    Ok(Json(json!({})))
}
