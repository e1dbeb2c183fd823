//! Who asks, as handlers and the audit log see it.

use std::net::IpAddr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::fault::Fault;
use super::roles::{Denial, Least};
use super::session_cache::SignedIn;
use crate::model::user::{Role, SessionId, UserId};

/// Whoever made a request. Handlers take it as an argument; the guard has put it into every request.
#[derive(Clone, Debug)]
pub(super) struct Actor {
    /// `None` when nobody is signed in.
    pub(super) role: Option<Role>,
    /// `None` for the local operator, who has no account, and for whoever is not signed in.
    pub(super) user: Option<UserId>,
    pub(super) name: String,
    pub(super) email: String,
    pub(super) session: Option<SessionId>,
    /// Where the request came from; `None` for the operator socket.
    pub(super) address: Option<IpAddr>,
    /// May only choose another password.
    pub(super) must_reset: bool,
}

impl Actor {
    /// Whoever may open the operator socket.
    pub(super) fn local() -> Self {
        Self {
            role: Some(Role::Admin),
            name: "local operator".into(),
            ..Self::nobody(None)
        }
    }

    /// A remote client who is not signed in.
    pub(super) fn nobody(address: Option<IpAddr>) -> Self {
        Self {
            role: None,
            user: None,
            name: String::new(),
            email: String::new(),
            session: None,
            address,
            must_reset: false,
        }
    }

    /// A remote client who is.
    pub(super) fn signed_in(found: &SignedIn, address: Option<IpAddr>) -> Self {
        Self {
            role: Some(found.user.role),
            user: Some(found.user.id),
            name: found.user.name.clone(),
            email: found.user.email.clone(),
            session: Some(found.session.id),
            address,
            must_reset: found.user.must_reset,
        }
    }

    /// Whoever may open the operator socket, where nobody has an account.
    pub(super) fn is_local(&self) -> bool {
        self.role.is_some() && self.user.is_none()
    }

    /// For what depends on a request's content and so cannot stand in the table of routes.
    pub(super) fn must_be(&self, least: Least) -> Result<(), Fault> {
        least.admit(self.role).map_err(Fault::from)
    }

    /// An account is its owner's and the admins' business.
    pub(super) fn must_own(&self, user: UserId) -> Result<(), Fault> {
        if self.user == Some(user) {
            return Ok(());
        }
        self.must_be(Least::Admin)
    }
}

impl From<Denial> for Fault {
    fn from(denial: Denial) -> Self {
        match denial {
            Denial::SignedOut => Self::signed_out(),
            Denial::TooLow(role) => Self::forbidden(role),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Actor {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        let actor = parts.extensions.get::<Self>();
        actor
            .cloned()
            .ok_or_else(|| Fault::failed("a route without a guard".into()))
    }
}
