//! Stands before every route: finds out who asks, and turns away whoever may not.

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::actor::Actor;
use super::fault::Fault;
use super::listen::{Client, Side};
use super::roles::Least;

/// What the guard of one route knows.
#[derive(Clone)]
pub(super) struct Guard {
    pub(super) side: Side,
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) least: Least,
}

impl Guard {
    fn actor(&self, request: &Request) -> Actor {
        match self.side {
            Side::Operator => Actor::local(),
            Side::Tunnel => {
                let client = request.extensions().get::<Client>();
                Actor::nobody(client.map(|client| client.0))
            }
        }
    }
}

/// The middleware of every route.
pub(super) async fn enter(
    State(guard): State<Guard>,
    mut request: Request,
    next: Next,
) -> Response {
    let actor = guard.actor(&request);
    if let Err(denial) = guard.least.admit(actor.role) {
        return Fault::from(denial).into_response();
    }
    tracing::debug!(
        method = %guard.method,
        path = guard.path,
        actor = actor.name,
        address = ?actor.address,
        "operator request admitted"
    );
    request.extensions_mut().insert(actor);
    next.run(request).await
}
