//! Accounts of operators, in Fleet's shapes.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use fleet_protocol::secret::Secret;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::actor::Actor;
use super::audit::Deed;
use super::fault::{Fault, Reason};
use super::host_filter::{is_descending, number};
use super::login::read;
use super::payload::Payload;
use super::roles::Least;
use super::{Office, hosts};
use crate::model::user::{
    NewUser, Role, User, UserFilter, UserId, UserOrder, UserPatch, UserRefusal,
};

type Ask = State<Arc<Office>>;
type Reply = Result<Json<Value>, Fault>;

/// Characters of a name or an address.
const CHARS_MAX: usize = 255;

/// Parameters of the list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Parameters {
    page: Option<String>,
    per_page: Option<String>,
    order_key: Option<String>,
    order_direction: Option<String>,
    query: Option<String>,
}

/// An account that is to be made. Members that are not kept here are passed over, unless they ask for what there is not.
#[derive(Default, Deserialize)]
#[serde(default)]
struct NewAccount {
    name: String,
    email: String,
    password: Option<Secret>,
    global_role: Option<String>,
    api_only: Option<bool>,
    admin_forced_password_reset: Option<bool>,
    sso_enabled: Option<bool>,
    mfa_enabled: Option<bool>,
    teams: Option<Vec<Value>>,
}

/// What is to change.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Modification {
    name: Option<String>,
    email: Option<String>,
    /// The present one, of whoever changes the own account.
    password: Option<Secret>,
    new_password: Option<Secret>,
    global_role: Option<String>,
    admin_forced_password_reset: Option<bool>,
    sso_enabled: Option<bool>,
    mfa_enabled: Option<bool>,
    teams: Option<Vec<Value>>,
}

#[derive(Deserialize)]
struct ResetRequirement {
    require: bool,
}

#[derive(Deserialize)]
struct RolesSpec {
    roles: BTreeMap<String, RoleSpec>,
}

#[derive(Deserialize)]
struct RoleSpec {
    #[serde(default)]
    global_role: Option<String>,
    #[serde(default)]
    teams: Option<Vec<Value>>,
}

/// An account as Fleet shows it.
pub(super) fn body(user: &User) -> Value {
    json!({
        "id": user.id,
        "name": user.name,
        "email": user.email,
        "created_at": hosts::rfc3339(user.created_at),
        "updated_at": hosts::rfc3339(user.updated_at),
        "force_password_reset": user.must_reset,
        "gravatar_url": "",
        "sso_enabled": false,
        "mfa_enabled": false,
        "global_role": user.role,
        "api_only": user.is_api_only,
        "teams": [],
    })
}

/// Why a change of an account was not made.
pub(super) fn refused(refusal: UserRefusal) -> Fault {
    let invalid = |name: &str, reason: &str| Fault::invalid(vec![Reason::new(name, reason)]);
    match refusal {
        UserRefusal::Missing => Fault::not_found("this user"),
        UserRefusal::EmailTaken => Fault::conflict("a user with this email exists already"),
        UserRefusal::LastAdmin => invalid("global_role", "the last admin stays an admin"),
        UserRefusal::NotFirst => Fault::conflict("there is a user already"),
        UserRefusal::TooMany => invalid("base", "there are as many users as there may be"),
    }
}

pub(super) fn checked_name(name: &str) -> Result<String, Fault> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > CHARS_MAX {
        return Err(wrong("name", "must have 1 to 255 characters"));
    }
    Ok(name.to_owned())
}

pub(super) fn checked_email(email: &str) -> Result<String, Fault> {
    let email = email.trim();
    let has_parts = email
        .rsplit_once('@')
        .is_some_and(|(name, domain)| !name.is_empty() && !domain.is_empty());
    let is_plain = !email.contains(|c: char| c.is_whitespace() || c.is_control());
    if !has_parts || !is_plain || email.chars().count() > CHARS_MAX {
        return Err(wrong("email", "must be an address such as ada@example.com"));
    }
    Ok(email.to_owned())
}

fn role(word: &str) -> Result<Role, Fault> {
    let role = Role::named(word);
    role.ok_or_else(|| wrong("global_role", "must be admin, maintainer or observer"))
}

fn wrong(name: &str, reason: &str) -> Fault {
    Fault::invalid(vec![Reason::new(name, reason)])
}

fn refuse_unsupported(
    sso: Option<bool>,
    mfa: Option<bool>,
    teams: Option<&Vec<Value>>,
) -> Result<(), Fault> {
    let has_teams = teams.is_some_and(|teams| !teams.is_empty());
    for (name, is_wanted) in [
        ("sso_enabled", sso == Some(true)),
        ("mfa_enabled", mfa == Some(true)),
        ("teams", has_teams),
    ] {
        if is_wanted {
            return Err(wrong(name, "is not supported by this server"));
        }
    }
    Ok(())
}

fn user_id(text: &str) -> Result<UserId, Fault> {
    let id = text.parse().map(UserId);
    id.map_err(|_| Fault::not_found(format_args!("user {text:?}")))
}

async fn load(office: &Office, text: &str) -> Result<User, Fault> {
    let user = office.deps.store.user(user_id(text)?).await?;
    user.ok_or_else(|| Fault::not_found(format_args!("user {text}")))
}

/// `GET /users`
pub(super) async fn list(State(office): Ask, Query(parameters): Query<Parameters>) -> Reply {
    let order = match parameters.order_key.as_deref().unwrap_or_default() {
        "" | "id" => UserOrder::Id,
        "name" => UserOrder::Name,
        "email" => UserOrder::Email,
        "created_at" => UserOrder::CreatedAt,
        _ => {
            let reason = "must be id, name, email or created_at";
            return Err(Fault::parameter("order_key", reason));
        }
    };
    let filter = UserFilter {
        text: parameters.query,
        page: number("page", parameters.page.as_deref())?.unwrap_or_default(),
        per_page: number("per_page", parameters.per_page.as_deref())?.unwrap_or_default(),
        order,
        is_descending: is_descending(parameters.order_direction.as_deref())?,
    };
    let users = office.deps.store.users(&filter).await?;
    let users: Vec<Value> = users.iter().map(body).collect();
    Ok(Json(json!({ "users": users })))
}

/// `GET /users/{id}`
pub(super) async fn show(actor: Actor, State(office): Ask, Path(id): Path<String>) -> Reply {
    actor.must_own(user_id(&id)?)?;
    let user = load(&office, &id).await?;
    Ok(Json(json!({"user": body(&user), "available_teams": []})))
}

/// `POST /users`, `POST /users/admin`
pub(super) async fn create(actor: Actor, State(office): Ask, payload: Payload) -> Reply {
    let asked: NewAccount = read(
        payload,
        "{\"name\": \"…\", \"email\": \"…\", \"password\": \"…\", \"global_role\": \"…\"}",
    )?;
    refuse_unsupported(asked.sso_enabled, asked.mfa_enabled, asked.teams.as_ref())?;
    let is_api_only = asked.api_only.unwrap_or_default();
    let (name, email) = (checked_name(&asked.name)?, checked_email(&asked.email)?);
    let role = role(asked.global_role.as_deref().unwrap_or("observer"))?;
    let password_hash = match &asked.password {
        Some(password) => office.new_hash("password", password).await?,
        None if is_api_only => Secret::default(),
        None => return Err(wrong("password", "is missing")),
    };
    let new = NewUser {
        name,
        email,
        password_hash,
        role,
        is_api_only,
        // Whoever made the account knows its password.
        must_reset: asked.admin_forced_password_reset.unwrap_or(!is_api_only),
    };
    let added = office.deps.store.add_user(&new, false).await?;
    let user = added.map_err(refused)?;
    office.guard.forget();
    let deed = Deed::of("created_user").to("user", &user.email);
    let deed = deed.numbered(user.id.0).after(body(&user));
    office.audit.record(&actor, deed).await;
    let mut answer = json!({ "user": body(&user) });
    if user.is_api_only
        && let Some(members) = answer.as_object_mut()
    {
        let token = office.guard.begin(&user).await?;
        members.insert("token".into(), token.reveal().into());
    }
    Ok(Json(answer))
}

/// `PATCH /users/{id}`
pub(super) async fn modify(
    actor: Actor,
    State(office): Ask,
    Path(id): Path<String>,
    payload: Payload,
) -> Reply {
    actor.must_own(user_id(&id)?)?;
    let asked: Modification = read(payload, "{\"name\": \"…\", \"email\": \"…\"}")?;
    refuse_unsupported(asked.sso_enabled, asked.mfa_enabled, asked.teams.as_ref())?;
    if asked.global_role.is_some() || asked.admin_forced_password_reset.is_some() {
        actor.must_be(Least::Admin)?;
    }
    let user = load(&office, &id).await?;
    // Whoever finds an open session must not be able to take the account with it.
    if actor.user == Some(user.id) && (asked.email.is_some() || asked.new_password.is_some()) {
        let reason = "the present password is missing";
        let password = asked.password.as_ref();
        let password = password.ok_or_else(|| wrong("password", reason))?;
        office.confirm(&actor, &user, password).await?;
    }
    let has_new_password = asked.new_password.is_some();
    let patch = UserPatch {
        name: asked.name.as_deref().map(checked_name).transpose()?,
        email: asked.email.as_deref().map(checked_email).transpose()?,
        password_hash: match &asked.new_password {
            Some(password) => Some(office.new_hash("new_password", password).await?),
            None => None,
        },
        role: asked.global_role.as_deref().map(role).transpose()?,
        must_reset: asked.admin_forced_password_reset,
    };
    let user = change(&office, &actor, user.id, &patch).await?;
    if has_new_password {
        let ended = office
            .deps
            .store
            .end_sessions_of(user.id, actor.session)
            .await;
        office.guard.forget();
        ended?;
    }
    Ok(Json(json!({ "user": body(&user) })))
}

/// Changes an account and notes it.
async fn change(
    office: &Office,
    actor: &Actor,
    id: UserId,
    patch: &UserPatch,
) -> Result<User, Fault> {
    let updated = office.deps.store.update_user(id, patch).await;
    office.guard.forget();
    let (before, after) = updated?.map_err(refused)?;
    let kind = if before.role == after.role {
        "edited_user"
    } else {
        "changed_user_global_role"
    };
    let deed = Deed::of(kind).to("user", &after.email).numbered(id.0);
    let deed = deed
        .before(body(&before))
        .after(body(&after))
        .with("role", after.role.word())
        .with("password_changed", patch.password_hash.is_some());
    office.audit.record(actor, deed).await;
    Ok(after)
}

/// `DELETE /users/{id}`
pub(super) async fn delete(actor: Actor, State(office): Ask, Path(id): Path<String>) -> Reply {
    let deleted = office.deps.store.delete_user(user_id(&id)?).await;
    office.guard.forget();
    let user = deleted?.map_err(refused)?;
    let deed = Deed::of("deleted_user").to("user", &user.email);
    let deed = deed.numbered(user.id.0).before(body(&user));
    office.audit.record(&actor, deed).await;
    Ok(Json(json!({})))
}

/// `POST /users/{id}/require_password_reset`
pub(super) async fn require_reset(
    actor: Actor,
    State(office): Ask,
    Path(id): Path<String>,
    payload: Payload,
) -> Reply {
    let asked: ResetRequirement = read(payload, "{\"require\": true}")?;
    let user = load(&office, &id).await?;
    let patch = UserPatch {
        must_reset: Some(asked.require),
        ..UserPatch::default()
    };
    let user = change(&office, &actor, user.id, &patch).await?;
    if asked.require {
        let ended = office.deps.store.end_sessions_of(user.id, None).await;
        office.guard.forget();
        ended?;
    }
    Ok(Json(json!({ "user": body(&user) })))
}

/// `POST /users/roles/spec`: roles by address.
pub(super) async fn apply_roles(actor: Actor, State(office): Ask, payload: Payload) -> Reply {
    let shape = "{\"spec\": {\"roles\": {\"ada@example.com\": {\"global_role\": \"admin\"}}}}";
    let spec = Payload(payload.only("spec")?);
    let asked: RolesSpec = read(spec, shape)?;
    let (mut changes, mut problems) = (Vec::new(), Vec::new());
    for (email, spec) in &asked.roles {
        refuse_unsupported(None, None, spec.teams.as_ref())?;
        let role = role(spec.global_role.as_deref().unwrap_or_default())?;
        match office.deps.store.user_by_email(email).await? {
            Some(user) => changes.push((user.id, role)),
            None => problems.push(Reason::new(format!("user {email:?}"), "does not exist")),
        }
    }
    if !problems.is_empty() {
        return Err(Fault::invalid(problems));
    }
    // Admins first, so that the only one may hand over.
    changes.sort_by_key(|(_, role)| std::cmp::Reverse(*role));
    for (id, role) in changes {
        let patch = UserPatch {
            role: Some(role),
            ..UserPatch::default()
        };
        change(&office, &actor, id, &patch).await?;
    }
    Ok(Json(Value::Object(Map::new())))
}
