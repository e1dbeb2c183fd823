//! What an operator hears when a request fails, in Fleet's shape: `message` and `errors` of `{name, reason}`.
//!
//! Invariant: every refusal also carries an `error` member. An osquery agent whose endpoint flag points at one of our
//! paths by mistake takes any other JSON object, and every empty body, for success and deletes what it sent.

use std::time::Duration;

use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::model::user::Role;
use crate::store;

/// Reasons that one answer lists; a file with thousands of mistakes is still readable.
const REASONS_MAX: usize = 50;

/// A refused operator request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fault {
    status: StatusCode,
    message: &'static str,
    reasons: Vec<Reason>,
    /// Of a 401: what would open the door.
    scheme: &'static str,
    /// Seconds until it may go better.
    retry_after: Option<u64>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Reason {
    /// What it is about: `query "processes"`, `check`, `base`.
    pub(super) name: String,
    /// One sentence.
    pub(super) reason: String,
}

impl Reason {
    pub(super) fn new(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            reason: reason.into(),
        }
    }
}

impl Fault {
    fn one(status: StatusCode, message: &'static str, reason: Reason) -> Self {
        Self {
            status,
            message,
            reasons: vec![reason],
            scheme: "Bearer",
            retry_after: None,
        }
    }

    /// The request cannot be read.
    pub(super) fn unreadable(reason: impl Into<String>) -> Self {
        Self::one(
            StatusCode::BAD_REQUEST,
            "Bad request",
            Reason::new("base", reason),
        )
    }

    /// The request can be read, and what it asks for is wrong.
    pub(super) fn invalid(reasons: Vec<Reason>) -> Self {
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            message: "Validation Failed",
            reasons,
            scheme: "Bearer",
            retry_after: None,
        }
    }

    /// One parameter is wrong.
    pub(super) fn parameter(name: &str, reason: impl Into<String>) -> Self {
        Self::one(
            StatusCode::BAD_REQUEST,
            "Bad request",
            Reason::new(name, reason),
        )
    }

    /// There is no such thing.
    pub(super) fn not_found(what: impl std::fmt::Display) -> Self {
        Self::one(
            StatusCode::NOT_FOUND,
            "Resource Not Found",
            Reason::new("base", format!("{what} does not exist")),
        )
    }

    /// Something else still needs it.
    pub(super) fn conflict(reason: impl Into<String>) -> Self {
        Self::one(
            StatusCode::CONFLICT,
            "Conflict",
            Reason::new("base", reason),
        )
    }

    /// The path is unknown.
    pub(super) fn no_such_path() -> Self {
        Self::one(
            StatusCode::NOT_FOUND,
            "Resource Not Found",
            Reason::new("base", "there is nothing at this path"),
        )
    }

    /// The path is known, the method is not.
    pub(super) fn no_such_method() -> Self {
        Self::one(
            StatusCode::METHOD_NOT_ALLOWED,
            "Method Not Allowed",
            Reason::new("base", "this path does not take this method"),
        )
    }

    /// Nobody is signed in, or no longer.
    pub(super) fn signed_out() -> Self {
        Self::one(
            StatusCode::UNAUTHORIZED,
            "Authentication required",
            Reason::new("base", "sign in first: this needs a valid token"),
        )
    }

    /// The account may do nothing before it has another password.
    pub(super) fn reset_first() -> Self {
        Self::one(
            StatusCode::UNAUTHORIZED,
            "Authentication required",
            Reason::new("base", "password reset required"),
        )
    }

    /// Nobody says whether it was the address or the password.
    pub(super) fn wrong_credentials() -> Self {
        Self::one(
            StatusCode::UNAUTHORIZED,
            "Authentication failed",
            Reason::new("base", "Authentication failed"),
        )
    }

    /// Too many tries to sign in.
    pub(super) fn limited(wait: Duration) -> Self {
        let seconds = wait.as_secs() + 1;
        Self {
            retry_after: Some(seconds),
            ..Self::one(
                StatusCode::TOO_MANY_REQUESTS,
                "Too Many Requests",
                Reason::new("base", format!("limit exceeded, retry after: {seconds}s")),
            )
        }
    }

    /// Too many sign in at once.
    pub(super) fn busy() -> Self {
        Self {
            retry_after: Some(1),
            ..Self::one(
                StatusCode::SERVICE_UNAVAILABLE,
                "Service Unavailable",
                Reason::new("base", "too many sign in at once; try again"),
            )
        }
    }

    /// The role of whoever asks is too low.
    pub(super) fn forbidden(role: Role) -> Self {
        let reason = match role {
            Role::Observer => "this needs the role observer",
            Role::Maintainer => "this needs the role maintainer",
            Role::Admin => "this needs the role admin",
        };
        Self::one(
            StatusCode::FORBIDDEN,
            "Forbidden",
            Reason::new("base", reason),
        )
    }

    /// `/metrics` without the right user name and password.
    pub(super) fn wrong_password() -> Self {
        Self {
            scheme: "Basic realm=\"fleet\"",
            ..Self::one(
                StatusCode::UNAUTHORIZED,
                "Authentication required",
                Reason::new("base", "wrong user name or password"),
            )
        }
    }

    /// The request took too long to arrive.
    pub(super) fn late() -> Self {
        Self::one(
            StatusCode::REQUEST_TIMEOUT,
            "Request Timeout",
            Reason::new("base", "the request's body did not arrive in time"),
        )
    }

    /// The first account of a server that has hosts already is not for whoever comes first.
    pub(super) fn set_up_locally() -> Self {
        Self::one(
            StatusCode::FORBIDDEN,
            "Forbidden",
            Reason::new(
                "base",
                "this server has hosts already, so its first account is made on the server itself: \
                 `fleet-supervisor ctl setup`",
            ),
        )
    }

    /// Not all hosts are in memory yet, or the server ends.
    pub(super) fn not_loaded() -> Self {
        Self::one(
            StatusCode::SERVICE_UNAVAILABLE,
            "Service Unavailable",
            Reason::new("base", "the hosts are not loaded yet; ask again"),
        )
    }

    /// A page of another origin asks.
    pub(super) fn foreign_origin() -> Self {
        Self::one(
            StatusCode::FORBIDDEN,
            "Forbidden",
            Reason::new("base", "the page that asks is not of this server"),
        )
    }

    /// Something that this needs does not work, or has no room.
    pub(super) fn unavailable(reason: impl Into<String>) -> Self {
        Self::one(
            StatusCode::SERVICE_UNAVAILABLE,
            "Service Unavailable",
            Reason::new("base", reason),
        )
    }

    /// The first reason, for whoever has no room for more.
    pub(super) fn reason(&self) -> String {
        let first = self.reasons.first();
        first.map_or_else(|| self.message.to_owned(), |first| first.reason.clone())
    }

    /// Whether this parameter is wrong.
    pub(super) fn is_about(&self, name: &str) -> bool {
        self.reasons.iter().any(|reason| reason.name == name)
    }

    /// A bug of ours.
    pub(super) fn failed(reason: String) -> Self {
        tracing::error!(reason, "operator request failed");
        Self::one(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Internal Server Error",
            Reason::new("base", reason),
        )
    }

    /// The same with what had been done already.
    pub(super) fn after(mut self, done: &str) -> Self {
        if !done.is_empty() {
            self.reasons
                .push(Reason::new("base", format!("already applied: {done}")));
        }
        self
    }
}

impl From<store::Error> for Fault {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Invalid(reason) => Self::invalid(vec![Reason::new("base", reason)]),
            other => {
                tracing::warn!(error = %other, "operator request failed: store");
                Self::one(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "Service Unavailable",
                    // Its own words name tables, users and addresses.
                    Reason::new("base", "the store does not work; the server's log says why"),
                )
            }
        }
    }
}

impl From<BytesRejection> for Fault {
    fn from(rejection: BytesRejection) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return Self::one(
                StatusCode::PAYLOAD_TOO_LARGE,
                "Payload Too Large",
                Reason::new("base", "the body is larger than this path takes"),
            );
        }
        Self::unreadable("the body could not be read")
    }
}

#[derive(Serialize)]
struct Body<'a> {
    message: &'a str,
    errors: &'a [Reason],
    error: &'a str,
}

impl IntoResponse for Fault {
    fn into_response(mut self) -> Response {
        let hidden = self.reasons.len().saturating_sub(REASONS_MAX);
        if hidden > 0 {
            self.reasons.truncate(REASONS_MAX);
            self.reasons
                .push(Reason::new("base", format!("… and {hidden} more")));
        }
        let body = Body {
            message: self.message,
            errors: &self.reasons,
            error: self
                .reasons
                .first()
                .map_or(self.message, |first| &first.reason),
        };
        let mut response = (self.status, axum::Json(body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static(self.scheme),
            );
        }
        if let Some(seconds) = self.retry_after {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
