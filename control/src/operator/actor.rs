//! Who asks, as handlers and the audit log see it.

use std::net::IpAddr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::fault::Fault;
use super::roles::{Denial, Least};
use crate::model::user::Role;

/// Whoever made a request. Handlers take it as an argument; the guard has put it into every request.
#[derive(Clone, Debug)]
pub(super) struct Actor {
    /// `None` when nobody is signed in.
    pub(super) role: Option<Role>,
    pub(super) name: String,
    /// Where the request came from; `None` for the operator socket.
    pub(super) address: Option<IpAddr>,
}

impl Actor {
    /// Whoever may open the operator socket.
    pub(super) fn local() -> Self {
        Self {
            role: Some(Role::Admin),
            name: "local operator".into(),
            address: None,
        }
    }

    /// A remote client who is not signed in.
    pub(super) fn nobody(address: Option<IpAddr>) -> Self {
        Self {
            role: None,
            name: String::new(),
            address,
        }
    }

    /// For what depends on a request's content and so cannot stand in the table of routes.
    pub(super) fn must_be(&self, least: Least) -> Result<(), Fault> {
        least.admit(self.role).map_err(Fault::from)
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
