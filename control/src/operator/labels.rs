//! Labels one by one, by id, in the shapes of Fleet's console and REST clients; as documents they are in `specs.rs`.

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
use super::{Office, apply, hosts, specs};
use crate::model::host::HostFilter;
use crate::model::label::{Label, LabelMembership, LabelType};

type Ask = State<Arc<Office>>;
type Reply = Result<Json<Value>, Fault>;

/// `GET /labels`
pub(super) async fn list(State(office): Ask, Query(parameters): Query<Parameters>) -> Reply {
    let rows = specs::label_rows(&office).await?;
    let page = parameters.cut(rows, |label| Sorted {
        id: label.id.0,
        name: &label.spec.name,
        updated_at: label.updated_at,
    })?;
    let labels: Vec<Value> = page.items.iter().map(body).collect();
    Ok(Json(json!({"labels": labels, "meta": page.meta()})))
}

/// `GET /labels/summary`
pub(super) async fn summary(State(office): Ask) -> Reply {
    let rows = office.deps.store.reports().label_specs().await?;
    let labels: Vec<Value> = rows.iter().map(brief).collect();
    Ok(Json(json!({ "labels": labels })))
}

/// `GET /labels/{name}`, by id.
pub(super) async fn show(State(office): Ask, Path(id): Path<String>) -> Reply {
    let label = find(&office, &id).await?;
    Ok(Json(json!({ "label": body(&label) })))
}

/// `POST /labels`
pub(super) async fn create(actor: Actor, State(office): Ask, payload: Payload) -> Reply {
    let document = document(&office, payload.members()?).await?;
    let name = spec::name_of(&document);
    let rows = office.deps.store.label_specs().await?;
    if rows.iter().any(|label| label.spec.name == name) {
        return Err(Fault::conflict(format!("label {name:?} exists already")));
    }
    write(&office, &actor, document).await
}

/// `PATCH /labels/{name}`, by id: members that are absent stay as they are.
pub(super) async fn change(
    actor: Actor,
    State(office): Ask,
    Path(id): Path<String>,
    payload: Payload,
) -> Reply {
    let label = find(&office, &id).await?;
    if label.spec.label_type == LabelType::Builtin {
        return Err(built_in(&label.spec.name));
    }
    let patch = document(&office, payload.members()?).await?;
    let changed = spec::patched(spec::label_document(&label.spec), patch);
    let name = spec::name_of(&changed);
    if name != label.spec.name {
        let documents = Documents {
            labels: vec![changed.clone()],
            ..Documents::default()
        };
        apply::apply_documents(&office, &actor, documents, true).await?;
        let store = &office.deps.store;
        let _turn = office.turn.lock().await;
        if !store.rename_label(&label.spec.name, &name).await? {
            return Err(Fault::not_found(format_args!("label {id:?}")));
        }
        let deed = Deed::renamed("label", &label.spec.name, &name);
        office.audit.record(&actor, deed.numbered(label.id.0)).await;
    }
    write(&office, &actor, changed).await
}

/// `DELETE /labels/id/{id}`
pub(super) async fn delete(actor: Actor, state: Ask, Path(id): Path<String>) -> Reply {
    let label = find(&state, &id).await?;
    specs::delete_label(actor, state, Path(label.spec.name)).await
}

async fn write(office: &Office, actor: &Actor, document: Value) -> Reply {
    let name = spec::name_of(&document);
    let documents = Documents {
        labels: vec![document],
        ..Documents::default()
    };
    let outcome = apply::apply_documents(office, actor, documents, false).await?;
    let rows = specs::label_rows(office).await?;
    let mut label = rows
        .into_iter()
        .find(|label| label.spec.name == name)
        .ok_or_else(|| Fault::not_found(format_args!("label {name:?}")))?;
    if label.spec.label_membership_type == LabelMembership::Manual {
        // Memory follows in a moment.
        let members = apply::members(&office.deps.store, label.id).await?;
        label.host_count = u64::try_from(members.len()).unwrap_or(u64::MAX);
    }
    Ok(Json(
        json!({"label": body(&label), "warnings": outcome.warnings}),
    ))
}

/// The document that such a body means: `host_ids` become identifiers, and a list of hosts makes a label manual.
async fn document(office: &Office, mut members: Map<String, Value>) -> Result<Value, Fault> {
    if let Some(ids) = members
        .shift_remove("host_ids")
        .filter(|ids| !ids.is_null())
    {
        let ids = serde_json::from_value::<Vec<_>>(ids).map_err(|_| {
            Fault::invalid(vec![Reason::new(
                "host_ids",
                "must be a list of ids of hosts",
            )])
        })?;
        let rows = office.deps.store.reports().host_rows(&ids).await?;
        let names: Vec<Value> = rows
            .into_iter()
            .map(|host| host.identifier.into())
            .collect();
        members.insert("hosts".into(), names.into());
    }
    let has_hosts = members.get("hosts").is_some_and(Value::is_array);
    if has_hosts && !members.contains_key("label_membership_type") {
        members.insert("label_membership_type".into(), "manual".into());
    }
    Ok(Value::Object(members))
}

/// The label with an id.
pub(super) async fn find(office: &Office, id: &str) -> Result<Label, Fault> {
    let rows = specs::label_rows(office).await?;
    let number: Option<u32> = id.parse().ok();
    rows.into_iter()
        .find(|label| Some(label.id.0) == number)
        .ok_or_else(|| Fault::not_found(format_args!("label {id:?}")))
}

fn built_in(name: &str) -> Fault {
    let subject = format!("label {name:?}");
    Fault::invalid(vec![Reason::new(
        subject,
        "is built in and cannot be changed",
    )])
}

/// What names a label.
pub(super) fn brief(label: &Label) -> Value {
    json!({
        "id": label.id,
        "name": label.spec.name,
        "description": label.spec.description,
        "label_type": label.spec.label_type,
    })
}

/// A label as Fleet's clients know it.
pub(super) fn body(label: &Label) -> Value {
    let updated_at = hosts::rfc3339(label.updated_at);
    json!({
        "id": label.id,
        "created_at": updated_at,
        "updated_at": updated_at,
        "name": label.spec.name,
        "display_text": label.spec.name,
        "description": label.spec.description,
        "query": label.spec.query,
        "platform": label.spec.platform,
        "label_type": label.spec.label_type,
        "label_membership_type": label.spec.label_membership_type,
        "count": label.host_count,
        "host_ids": null,
        "author_id": null,
        "team_id": null,
    })
}

/// Labels with a filter's text in their names.
pub(super) fn matching(rows: &[Label], filter: &HostFilter) -> Vec<Label> {
    let text = filter.text.as_deref().unwrap_or_default().to_lowercase();
    rows.iter()
        .filter(|label| label.spec.name.to_lowercase().contains(&text))
        .cloned()
        .collect()
}
