//! Signing in and out, the first account, one's own password.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use fleet_protocol::secret::Secret;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::actor::Actor;
use super::audit::Deed;
use super::fault::{Fault, Reason};
use super::guard::digest_of;
use super::payload::Payload;
use super::users::{body, checked_email, checked_name, refused};
use super::{Office, apply, passwords, settings};
use crate::model::user::{NewUser, Role, User, UserId, UserPatch, UserRefusal, email_key};

type Ask = State<Arc<Office>>;
type Reply = Result<Json<Value>, Fault>;

/// A failed sign-in takes at least this long, whatever failed.
const FAILURE_TIME: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct Credentials {
    email: String,
    password: Secret,
}

#[derive(Deserialize)]
struct Setup {
    admin: FirstAdmin,
    #[serde(default)]
    org_info: Value,
    #[serde(default)]
    server_url: String,
}

#[derive(Deserialize)]
struct FirstAdmin {
    name: String,
    email: String,
    password: Secret,
}

#[derive(Deserialize)]
struct PasswordChange {
    old_password: Secret,
    new_password: Secret,
}

#[derive(Deserialize)]
struct PasswordReset {
    new_password: Secret,
}

/// Reads a body with secrets in it, so that a refusal quotes nothing of it.
pub(super) fn read<T: DeserializeOwned>(payload: Payload, shape: &str) -> Result<T, Fault> {
    serde_json::from_value(payload.0)
        .map_err(|_| Fault::unreadable(format!("the body must be like {shape}")))
}

/// `POST /login`
pub(super) async fn login(actor: Actor, State(office): Ask, payload: Payload) -> Reply {
    let began = Instant::now();
    if !office.guard.is_set_up().await? {
        return Err(Fault::no_such_path());
    }
    let asked: Credentials = read(payload, "{\"email\": \"…\", \"password\": \"…\"}")?;
    office.take_try(&actor, &asked.email)?;
    let user = office.deps.store.user_by_email(&asked.email).await?;
    let hash = user.as_ref().map(|user| &user.password_hash);
    let is_right = office.hasher.is_right(&asked.password, hash).await?;
    let Some(user) = user.filter(|_| is_right) else {
        let deed = Deed::of("user_failed_login").with("email", shown(&asked.email));
        office.audit.record(&actor, of_address(deed, &actor)).await;
        sleep_until(began + FAILURE_TIME).await;
        return Err(Fault::wrong_credentials());
    };
    let token = office.guard.begin(&user).await?;
    let actor = Actor {
        user: Some(user.id),
        name: user.name.clone(),
        email: user.email.clone(),
        ..actor
    };
    let deed = of_address(Deed::of("user_logged_in"), &actor);
    office.audit.record(&actor, deed).await;
    Ok(Json(json!({
        "user": body(&user), "available_teams": [], "token": token.reveal(),
    })))
}

/// What somebody typed, who may have typed anything.
fn shown(email: &str) -> String {
    email.chars().take(100).collect()
}

/// Where somebody signs in from, in Fleet's word.
fn of_address(deed: Deed, actor: &Actor) -> Deed {
    match actor.address {
        Some(address) => deed.with("public_ip", address.to_string()),
        None => deed,
    }
}

impl Office {
    /// Counts a try to sign in or to tell a password.
    pub(super) fn take_try(&self, actor: &Actor, email: &str) -> Result<(), Fault> {
        let mut limit = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        let account = digest_of(&email_key(email));
        let taken = limit.take(actor.address, account, std::time::Instant::now());
        taken.map_err(|wait| {
            tracing::warn!(address = ?actor.address, "sign-in refused: too many tries");
            Fault::limited(wait)
        })
    }

    /// The account of whoever asks.
    async fn own(&self, actor: &Actor) -> Result<User, Fault> {
        let Some(id) = actor.user else {
            return Err(Fault::unreadable("the local operator has no account"));
        };
        let user = self.deps.store.user(id).await?;
        user.ok_or_else(Fault::signed_out)
    }

    /// The hash of a password that is good enough; `name` is the member that brought it.
    pub(super) async fn new_hash(&self, name: &str, password: &Secret) -> Result<Secret, Fault> {
        if let Some(problem) = passwords::problem(password.reveal()) {
            return Err(Fault::invalid(vec![Reason::new(name, problem)]));
        }
        self.hasher.hash(password).await
    }

    /// Writes a password; ends every other session of the account.
    async fn set_password(
        &self,
        actor: &Actor,
        user: UserId,
        password: &Secret,
    ) -> Result<User, Fault> {
        let patch = UserPatch {
            password_hash: Some(self.new_hash("new_password", password).await?),
            must_reset: Some(false),
            ..UserPatch::default()
        };
        let store = &self.deps.store;
        let (_, user) = store.update_user(user, &patch).await?.map_err(refused)?;
        let ended = store.end_sessions_of(user.id, actor.session).await;
        self.guard.forget();
        ended?;
        let deed = Deed::of("changed_password").to("user", &user.email);
        self.audit.record(actor, deed.numbered(user.id.0)).await;
        Ok(user)
    }
}

/// `POST /logout`
pub(super) async fn logout(actor: Actor, State(office): Ask) -> Reply {
    if let Some(session) = actor.session {
        let ended = office.deps.store.end_session(session).await;
        office.guard.forget();
        ended?;
        office
            .audit
            .record(&actor, Deed::of("user_logged_out"))
            .await;
    }
    Ok(Json(json!({})))
}

/// `GET /me`
pub(super) async fn me(actor: Actor, State(office): Ask) -> Reply {
    let user = match actor.user {
        Some(_) => body(&office.own(&actor).await?),
        // Whoever may open the operator socket asks this too, such as a client before each of its commands.
        None => json!({
            "id": 0, "name": actor.name, "email": "", "global_role": Role::Admin.word(),
            "api_only": true, "teams": [],
        }),
    };
    Ok(Json(json!({"user": user, "available_teams": []})))
}

/// `POST /change_password`
pub(super) async fn change_password(actor: Actor, State(office): Ask, payload: Payload) -> Reply {
    let asked: PasswordChange = read(
        payload,
        "{\"old_password\": \"…\", \"new_password\": \"…\"}",
    )?;
    let user = office.own(&actor).await?;
    office.confirm(&actor, &user, &asked.old_password).await?;
    if asked.old_password == asked.new_password {
        return Err(reused());
    }
    office
        .set_password(&actor, user.id, &asked.new_password)
        .await?;
    Ok(Json(json!({})))
}

fn reused() -> Fault {
    let reason = "must not be the old one";
    Fault::invalid(vec![Reason::new("new_password", reason)])
}

impl Office {
    /// Whoever asks knows the account's password.
    pub(super) async fn confirm(
        &self,
        actor: &Actor,
        user: &User,
        password: &Secret,
    ) -> Result<(), Fault> {
        self.take_try(actor, &user.email)?;
        let hash = Some(&user.password_hash);
        if self.hasher.is_right(password, hash).await? {
            return Ok(());
        }
        let reason = Reason::new("old_password", "is not the account's password");
        Err(Fault::invalid(vec![reason]))
    }
}

/// `POST /perform_required_password_reset`
pub(super) async fn reset_password(actor: Actor, State(office): Ask, payload: Payload) -> Reply {
    let asked: PasswordReset = read(payload, "{\"new_password\": \"…\"}")?;
    let user = office.own(&actor).await?;
    if !user.must_reset {
        return Err(Fault::conflict("no password reset is required"));
    }
    office.take_try(&actor, &user.email)?;
    let hash = Some(&user.password_hash);
    if office.hasher.is_right(&asked.new_password, hash).await? {
        return Err(reused());
    }
    let user = office
        .set_password(&actor, user.id, &asked.new_password)
        .await?;
    Ok(Json(json!({ "user": body(&user) })))
}

/// `POST /setup`: the first account, which is an admin's. From elsewhere only while there are no hosts.
pub(super) async fn setup(actor: Actor, State(office): Ask, payload: Payload) -> Reply {
    if office.guard.is_set_up().await? {
        return Err(Fault::no_such_path());
    }
    // Whoever has the first account may ask every host everything. Hosts that are here belong to somebody.
    let known = office.deps.agents.statistics();
    if !known.is_loaded {
        return Err(Fault::not_loaded());
    }
    if !actor.is_local() && known.hosts > 0 {
        tracing::warn!("a setup over the network was refused, because there are hosts already");
        return Err(Fault::set_up_locally());
    }
    let asked: Setup = read(
        payload,
        "{\"admin\": {\"name\": \"…\", \"email\": \"…\", \"password\": \"…\"}, \
         \"org_info\": {\"org_name\": \"…\"}, \"server_url\": \"…\"}",
    )?;
    office.take_try(&actor, &asked.admin.email)?;
    let sections = sections(&asked)?;
    let password = &asked.admin.password;
    let new = NewUser {
        name: checked_name(&asked.admin.name)?,
        email: checked_email(&asked.admin.email)?,
        password_hash: office.new_hash("admin.password", password).await?,
        role: Role::Admin,
        is_api_only: false,
        must_reset: false,
    };
    let user = match office.deps.store.add_user(&new, true).await? {
        Ok(user) => user,
        // Somebody was faster.
        Err(UserRefusal::NotFirst) => return Err(Fault::no_such_path()),
        Err(refusal) => return Err(refused(refusal)),
    };
    tracing::info!(email = user.email, "the first admin was made");
    let turn = office.turn.lock().await;
    let mut config = office.deps.store.app_config().await?;
    config.extend(sections.clone());
    office.deps.store.set_app_config(&config).await?;
    drop(turn);
    apply::wake(&office.deps).await;
    let token = office.guard.begin(&user).await?;
    let deed = Deed::of("created_user").to("user", &user.email);
    let deed = deed.numbered(user.id.0).after(body(&user));
    office.audit.record(&actor, deed).await;
    Ok(Json(json!({
        "admin": body(&user), "org_info": sections.get("org_info"),
        "server_url": asked.server_url, "token": token.reveal(),
    })))
}

/// The sections of the configuration that a setup brings, checked as any other configuration.
fn sections(asked: &Setup) -> Result<serde_json::Map<String, Value>, Fault> {
    let mut document = serde_json::Map::new();
    let org = asked.org_info.as_object().cloned().unwrap_or_default();
    // Clients send more than is kept here.
    let known = |name: &String| name == "org_name" || name == "org_logo_url";
    let org: serde_json::Map<_, _> = org.into_iter().filter(|(name, _)| known(name)).collect();
    document.insert("org_info".into(), org.into());
    if !asked.server_url.is_empty() {
        let url = json!({ "server_url": asked.server_url });
        document.insert("server_settings".into(), url);
    }
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    let patch = settings::read(Value::Object(document), &mut problems, &mut warnings);
    if problems.is_empty() {
        return Ok(patch.sections);
    }
    Err(Fault::invalid(problems))
}
