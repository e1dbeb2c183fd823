//! The audit log as operators read it, in Fleet's shape.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::actor::Actor;
use super::fault::Fault;
use super::host_filter::{is_descending, number};
use super::roles::Least;
use super::{Office, hosts};
use crate::model::activity::{Activity, ActivityFilter};
use crate::model::user::UserId;

/// Entries in one answer.
const PER_PAGE_MAX: u32 = 1000;
/// Without a word about it.
const PER_PAGE: u32 = 100;
/// Details that observers do not get.
const HIDDEN: [&str; 5] = ["before", "after", "query_sql", "email", "public_ip"];

/// Parameters of the list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Parameters {
    page: Option<String>,
    per_page: Option<String>,
    order_key: Option<String>,
    order_direction: Option<String>,
    activity_type: Option<String>,
    query: Option<String>,
}

/// `GET /activities`: newest first, unless told otherwise.
pub(super) async fn list(
    actor: Actor,
    State(office): State<Arc<Office>>,
    Query(parameters): Query<Parameters>,
) -> Result<Json<Value>, Fault> {
    let page = number("page", parameters.page.as_deref())?.unwrap_or_default();
    let per_page = number("per_page", parameters.per_page.as_deref())?
        .filter(|count| *count > 0)
        .unwrap_or(PER_PAGE);
    if per_page > PER_PAGE_MAX {
        let reason = format!("must not be above {PER_PAGE_MAX}");
        return Err(Fault::parameter("per_page", reason));
    }
    let key = parameters.order_key.as_deref().unwrap_or_default();
    if !matches!(key, "" | "id" | "created_at" | "a.id" | "a.created_at") {
        return Err(Fault::parameter("order_key", "must be id or created_at"));
    }
    let direction = parameters.order_direction.as_deref();
    let is_ascending = direction.is_some_and(|word| !word.is_empty()) && !is_descending(direction)?;
    let filter = ActivityFilter {
        page,
        per_page,
        is_ascending,
        kind: parameters.activity_type.filter(|kind| !kind.is_empty()),
        text: parameters.query,
    };
    let mut found = office.deps.store.activities(&filter).await?;
    let has_next = found.len() > usize::try_from(per_page).unwrap_or(usize::MAX);
    found.truncate(usize::try_from(per_page).unwrap_or(usize::MAX));
    let is_whole = Least::Maintainer.admit(actor.role).is_ok();
    let activities: Vec<Value> = found
        .into_iter()
        .map(|one| if is_whole { one } else { outline(one) })
        .map(|one| body(&one))
        .collect();
    Ok(Json(json!({
        "activities": activities,
        "meta": {"has_next_results": has_next, "has_previous_results": page > 0},
    })))
}

/// For whoever may not read documents such as packs, nor who works from where.
fn outline(mut activity: Activity) -> Activity {
    activity.actor_email.clear();
    activity.address.clear();
    if let Some(details) = activity.details.as_object_mut() {
        details.retain(|name, _| !HIDDEN.contains(&name.as_str()));
    }
    activity
}

fn body(activity: &Activity) -> Value {
    let actor_id = (activity.actor != UserId::default()).then_some(activity.actor);
    json!({
        "id": activity.id,
        "created_at": hosts::rfc3339(activity.at),
        "actor_id": actor_id,
        "actor_full_name": activity.actor_name,
        "actor_email": activity.actor_email,
        "actor_gravatar": "",
        "actor_address": activity.address,
        "fleet_initiated": false,
        "type": activity.kind,
        "subject": {
            "kind": activity.subject_kind,
            "name": activity.subject_name,
            "id": (activity.subject_id > 0).then_some(activity.subject_id),
        },
        "details": activity.details,
    })
}
