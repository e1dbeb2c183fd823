//! Stands before every route: finds out who asks, and turns away whoever may not.
//!
//! Owns the sessions that are in memory, and the writing of when they were used.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::{digest, rand};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleet_protocol::config::Session;
use fleet_protocol::secret::Secret;
use tokio::sync::watch;

use super::Office;
use super::actor::Actor;
use super::audit::Audit;
use super::fault::Fault;
use super::listen::{Client, Side};
use super::roles::Least;
use super::session_cache::{SessionCache, SignedIn};
use crate::agents::now;
use crate::model::user::User;
use crate::store::{self, Store};

/// When the uses of sessions are written.
const MARK_INTERVAL: Duration = Duration::from_secs(30);
/// When sessions and activities that are over are deleted, in such intervals.
const SWEEP_EVERY: u32 = 20;
/// Steps of one such sweep; the next one goes on.
const SWEEP_STEPS_MAX: u32 = 100;
/// Bytes of a token that are looked at; ours are shorter.
const TOKEN_BYTES_MAX: usize = 1024;

/// Who is signed in.
pub(super) struct Guard {
    store: Arc<Store>,
    cache: Mutex<SessionCache>,
    /// Random bytes of a new token.
    key_bytes: usize,
    /// Somebody has an account, which stays so.
    is_set_up: AtomicBool,
}

impl Guard {
    pub(super) fn new(store: Arc<Store>, options: &Session) -> Self {
        Self {
            store,
            cache: Mutex::new(SessionCache::new(options.duration)),
            key_bytes: usize::from(options.key_size),
            is_set_up: AtomicBool::new(false),
        }
    }

    fn cache(&self) -> MutexGuard<'_, SessionCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose token it is; `None` when it is nobody's, or no longer. For whatever brings its token not in a header, too.
    pub(super) async fn session_of(
        &self,
        token: &str,
        address: Option<IpAddr>,
    ) -> Result<Option<Actor>, Fault> {
        if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
            return Ok(None);
        }
        let token = digest_of(token);
        let asked = match self.cache().find(&token, Instant::now(), now()) {
            Ok(found) => return Ok(Some(Actor::signed_in(&found, address))),
            Err(asked) => asked,
        };
        let Some((session, user)) = self.store.session_by_token(&token).await? else {
            return Ok(None);
        };
        let user = Arc::new(user);
        let found = SignedIn { session, user };
        let mut cache = self.cache();
        let kept = cache.keep(asked, token, found, Instant::now(), now());
        Ok(kept.map(|found| Actor::signed_in(&found, address)))
    }

    /// Begins a session; gives its token, which nobody else knows.
    pub(super) async fn begin(&self, user: &User) -> Result<Secret, Fault> {
        let mut random = vec![0; self.key_bytes];
        rand::fill(&mut random).map_err(|_| Fault::failed("no randomness".into()))?;
        let token = Secret::new(STANDARD.encode(random));
        let hash = digest_of(token.reveal());
        self.store.add_session(user.id, &hash, now()).await?;
        Ok(token)
    }

    /// To be called after every change of an account or a session: it counts from the next request on.
    pub(super) fn forget(&self) {
        self.cache().forget();
    }

    /// Whether anybody has an account.
    pub(super) async fn is_set_up(&self) -> Result<bool, store::Error> {
        if !self.is_set_up.load(Relaxed) && self.store.has_users().await? {
            self.is_set_up.store(true, Relaxed);
        }
        Ok(self.is_set_up.load(Relaxed))
    }

    /// Writes when sessions were used, and deletes what is over, until `drain` turns true.
    pub(super) async fn keep(&self, audit: &Audit, mut drain: watch::Receiver<bool>) {
        if let Ok(false) = self.is_set_up().await {
            tracing::warn!(
                "nobody has an account: whoever first sends POST /api/v1/setup becomes the admin; once there are hosts, on this machine only"
            );
        }
        for turn in 1_u32.. {
            let is_over = tokio::select! {
                _ = drain.wait_for(|is_draining| *is_draining) => true,
                () = tokio::time::sleep(MARK_INTERVAL) => false,
            };
            self.write_used().await;
            if is_over {
                return;
            }
            if turn % SWEEP_EVERY == 0
                && let Err(error) = self.sweep(audit).await
            {
                tracing::warn!(%error, "old sessions and activities could not be deleted");
            }
        }
    }

    pub(super) async fn write_used(&self) {
        let used = self.cache().take_used();
        if used.is_empty() {
            return;
        }
        if let Err(error) = self.store.mark_sessions(&used).await {
            tracing::warn!(%error, "the last use of sessions could not be written yet");
            self.cache().give_back(used);
        }
    }

    async fn sweep(&self, audit: &Audit) -> Result<(), store::Error> {
        let idle_since = self.cache().idle_since(now());
        for _ in 0..SWEEP_STEPS_MAX {
            let Some(before) = idle_since else { break };
            if self.store.end_idle_sessions(before).await? == 0 {
                break;
            }
        }
        for _ in 0..SWEEP_STEPS_MAX {
            if !audit.prune().await? {
                break;
            }
        }
        Ok(())
    }
}

/// SHA-256. A token is found by it, so comparing tells nothing of the token.
pub(super) fn digest_of(text: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    hash
}

/// The place of a guard: one route.
#[derive(Clone)]
pub(super) struct Post {
    pub(super) office: Arc<Office>,
    pub(super) side: Side,
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) least: Least,
    /// Also for whoever must choose another password first.
    pub(super) is_open_before_reset: bool,
    /// It goes on when the client goes away.
    pub(super) is_carried_through: bool,
}

impl Post {
    /// `headers` is a copy, because the request's body cannot be shared while the store is asked.
    async fn actor(&self, headers: HeaderMap, address: Option<IpAddr>) -> Result<Actor, Fault> {
        if self.side == Side::Operator {
            return Ok(Actor::local());
        }
        let token = match self.least {
            Least::Nobody => None,
            _ => bearer(&headers),
        };
        let found = match token {
            Some(token) => self.office.guard.session_of(token, address).await?,
            None => None,
        };
        Ok(found.unwrap_or_else(|| Actor::nobody(address)))
    }

    fn admit(&self, actor: &Actor) -> Result<(), Fault> {
        self.least.admit(actor.role)?;
        if actor.must_reset && !self.is_open_before_reset {
            return Err(Fault::reset_first());
        }
        Ok(())
    }
}

/// The token of the `Authorization` header.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The middleware of every route.
pub(super) async fn enter(State(post): State<Post>, mut request: Request, next: Next) -> Response {
    let client = request.extensions().get::<Client>();
    let address = client.map(|client| client.0);
    let actor = match post.actor(request.headers().clone(), address).await {
        Ok(actor) => actor,
        Err(fault) => return fault.into_response(),
    };
    if let Err(fault) = post.admit(&actor) {
        tracing::debug!(
            method = %post.method, path = post.path, actor = actor.name, address = ?actor.address,
            "operator request turned away"
        );
        return fault.into_response();
    }
    request.extensions_mut().insert(actor);
    if !post.is_carried_through {
        return next.run(request).await;
    }
    carry_through(&post.office, request, next).await
}

/// Runs a handler that changes something to its end, whoever still waits for it: half a change would be left, or one
/// that the audit log does not tell of.
async fn carry_through(office: &Office, request: Request, next: Next) -> Response {
    let Ok(permit) = Arc::clone(&office.deeds).try_acquire_owned() else {
        return Fault::unavailable("too many changes at once; come again").into_response();
    };
    let task = tokio::spawn(async move {
        let response = next.run(request).await;
        drop(permit);
        response
    });
    match task.await {
        Ok(response) => response,
        Err(error) => Fault::failed(format!("the request broke off: {error}")).into_response(),
    }
}
