//! Request bodies and parameters, with refusals in Fleet's shape.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::fault::Fault;

/// From the head to the last byte of the body.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// A JSON body.
pub(super) struct Payload(pub(super) Value);

impl<S: Send + Sync> FromRequest<S> for Payload {
    type Rejection = Fault;

    async fn from_request(request: Request, state: &S) -> Result<Self, Fault> {
        let body = timeout(BODY_DEADLINE, Bytes::from_request(request, state))
            .await
            .map_err(|_| Fault::late())??;
        serde_json::from_slice(&body)
            .map(Self)
            .map_err(|error| Fault::unreadable(format!("the body is not JSON: {error}")))
    }
}

impl Payload {
    /// The whole body as a value of that shape.
    pub(super) fn read<T: DeserializeOwned>(self) -> Result<T, Fault> {
        serde_json::from_value(self.0)
            .map_err(|error| Fault::unreadable(format!("the body is not as it should be: {error}")))
    }

    /// The members of the body.
    pub(super) fn members(self) -> Result<Map<String, Value>, Fault> {
        match self.0 {
            Value::Object(members) => Ok(members),
            _ => Err(Fault::unreadable("the body must be a JSON object")),
        }
    }

    /// The value of the only member `name`.
    pub(super) fn only(self, name: &str) -> Result<Value, Fault> {
        let mut members = self.members()?;
        let value = members
            .shift_remove(name)
            .ok_or_else(|| Fault::unreadable(format!("the body lacks the member {name:?}")))?;
        match members.keys().next() {
            None => Ok(value),
            Some(other) => Err(Fault::unreadable(format!("unknown member {other:?}"))),
        }
    }

    /// The items of the only member `specs`.
    pub(super) fn specs(self) -> Result<Vec<Value>, Fault> {
        match self.only("specs")? {
            Value::Array(items) => Ok(items),
            _ => Err(Fault::unreadable("specs must be a list")),
        }
    }
}

/// Parameters of everything that applies documents.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ApplyParameters {
    dry_run: Option<String>,
}

impl ApplyParameters {
    /// Whether to tell only what would change.
    pub(super) fn is_dry_run(&self) -> Result<bool, Fault> {
        match self.dry_run.as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1" | "") => Ok(true),
            Some(_) => Err(Fault::parameter("dry_run", "must be true or false")),
        }
    }
}
