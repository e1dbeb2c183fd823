//! Sessions of operators, in Fleet's shapes.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::actor::Actor;
use super::audit::Deed;
use super::fault::Fault;
use super::{Office, hosts};
use crate::model::user::{SessionId, UserId, UserSession};

type Ask = State<Arc<Office>>;
type Reply = Result<Json<Value>, Fault>;

fn body(session: &UserSession) -> Value {
    json!({
        "session_id": session.id,
        "user_id": session.user,
        "created_at": hosts::rfc3339(session.created_at),
    })
}

fn user_id(text: &str) -> Result<UserId, Fault> {
    let id = text.parse().map(UserId);
    id.map_err(|_| Fault::not_found(format_args!("user {text:?}")))
}

/// The session, if it is the business of whoever asks.
async fn find(office: &Office, actor: &Actor, text: &str) -> Result<UserSession, Fault> {
    let missing = || Fault::not_found(format_args!("session {text:?}"));
    let id = text.parse().map(SessionId).map_err(|_| missing())?;
    let session = office.deps.store.user_session(id).await?;
    let session = session.ok_or_else(missing)?;
    // The numbers of others' sessions are nobody's business either.
    actor.must_own(session.user).map_err(|_| missing())?;
    Ok(session)
}

/// `GET /users/{id}/sessions`
pub(super) async fn of_user(actor: Actor, State(office): Ask, Path(id): Path<String>) -> Reply {
    let id = user_id(&id)?;
    actor.must_own(id)?;
    let sessions = office.deps.store.sessions_of(id).await?;
    let sessions: Vec<Value> = sessions.iter().map(body).collect();
    Ok(Json(json!({ "sessions": sessions })))
}

/// `DELETE /users/{id}/sessions`
pub(super) async fn end_of_user(actor: Actor, State(office): Ask, Path(id): Path<String>) -> Reply {
    let id = user_id(&id)?;
    actor.must_own(id)?;
    let ended = office.deps.store.end_sessions_of(id, None).await;
    office.guard.forget();
    let count = ended?;
    let deed = Deed::of("ended_sessions").to("user", id.to_string());
    let deed = deed.numbered(id.0).with("sessions", count);
    office.audit.record(&actor, deed).await;
    Ok(Json(json!({})))
}

/// `GET /sessions/{id}`
pub(super) async fn show(actor: Actor, State(office): Ask, Path(id): Path<String>) -> Reply {
    let session = find(&office, &actor, &id).await?;
    Ok(Json(body(&session)))
}

/// `DELETE /sessions/{id}`
pub(super) async fn end(actor: Actor, State(office): Ask, Path(id): Path<String>) -> Reply {
    let session = find(&office, &actor, &id).await?;
    let ended = office.deps.store.end_session(session.id).await;
    office.guard.forget();
    ended?;
    let deed = Deed::of("ended_sessions").to("user", session.user.to_string());
    let deed = deed.numbered(session.user.0).with("sessions", 1);
    office.audit.record(&actor, deed).await;
    Ok(Json(json!({})))
}
