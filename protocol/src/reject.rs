//! The one refusal type toward agents: whose fault, may it come again, metric label, exact bytes.
//!
//! An agent ignores the status and takes an empty body as success, so every answer here is a JSON object. `Error`
//! answers keep the agent's data; `node_invalid` makes it enroll again and is only for a key that the store says does
//! not exist; what will never be accepted is answered as success and counted, or the agent would send it for ever.

use serde::{Deserialize, Serialize};

use crate::agent::Route;

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reject {
    /// The body is not what the route takes.
    BodyMalformed,
    /// The body is larger than the route's bound.
    BodyTooLarge,
    /// Our queues are full.
    Busy,
    /// A carve block that does not fit its carve, or a carve beyond the bounds.
    CarveRefused,
    /// Control does not answer.
    ControlUnavailable,
    /// The request's time ran out.
    DeadlineExceeded,
    /// The server is draining.
    Draining,
    /// Wrong or missing enroll secret.
    EnrollSecretInvalid,
    /// The head is not HTTP/1.1, or too large.
    HeadMalformed,
    /// Our fault, and no other word for it.
    Internal,
    /// The journal cannot store: disk full or failing.
    JournalUnavailable,
    /// Agents only POST.
    MethodNotAllowed,
    /// The request carries no node key.
    NodeKeyMissing,
    /// The store says that no host has this key.
    NodeKeyUnknown,
    /// The store does not answer.
    StoreUnavailable,
    /// The worker holds as many connections as it may.
    TooManyConnections,
    /// The request carries no node key, and the connection's certificate names no host.
    CertificateNamesNobody,
    /// The host, its address, or all hosts together ask this more often than they may.
    TooManyRequests,
}

/// Who must change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The agent, or whoever configured it.
    Agent,
    /// Nobody; it passes.
    Overload,
    /// This server.
    Server,
}

/// What an agent is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RejectAnswer {
    /// For proxies and dashboards; agents ignore it.
    pub status: u16,
    /// A JSON object, never empty.
    pub body: &'static str,
}

impl Reject {
    /// Every reason, in the order of its discriminant.
    pub const ALL: [Self; 18] = [
        Self::BodyMalformed,
        Self::BodyTooLarge,
        Self::Busy,
        Self::CarveRefused,
        Self::ControlUnavailable,
        Self::DeadlineExceeded,
        Self::Draining,
        Self::EnrollSecretInvalid,
        Self::HeadMalformed,
        Self::Internal,
        Self::JournalUnavailable,
        Self::MethodNotAllowed,
        Self::NodeKeyMissing,
        Self::NodeKeyUnknown,
        Self::StoreUnavailable,
        Self::TooManyConnections,
        Self::CertificateNamesNobody,
        Self::TooManyRequests,
    ];

    /// Place in arrays with one element a reason.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::BodyMalformed => "body_malformed",
            Self::BodyTooLarge => "body_too_large",
            Self::Busy => "busy",
            Self::CarveRefused => "carve_refused",
            Self::ControlUnavailable => "control_unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Draining => "draining",
            Self::EnrollSecretInvalid => "enroll_secret_invalid",
            Self::HeadMalformed => "head_malformed",
            Self::Internal => "internal",
            Self::JournalUnavailable => "journal_unavailable",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::NodeKeyMissing => "node_key_missing",
            Self::NodeKeyUnknown => "node_key_unknown",
            Self::StoreUnavailable => "store_unavailable",
            Self::TooManyConnections => "too_many_connections",
            Self::CertificateNamesNobody => "certificate_names_nobody",
            Self::TooManyRequests => "too_many_requests",
        }
    }

    /// Who must change something.
    pub fn side(self) -> Side {
        match self {
            Self::BodyMalformed
            | Self::BodyTooLarge
            | Self::CarveRefused
            | Self::EnrollSecretInvalid
            | Self::HeadMalformed
            | Self::MethodNotAllowed
            | Self::NodeKeyMissing
            | Self::NodeKeyUnknown
            | Self::CertificateNamesNobody => Side::Agent,
            Self::Busy | Self::Draining | Self::TooManyConnections | Self::TooManyRequests => {
                Side::Overload
            }
            Self::ControlUnavailable
            | Self::DeadlineExceeded
            | Self::Internal
            | Self::JournalUnavailable
            | Self::StoreUnavailable => Side::Server,
        }
    }

    /// Whether the same request may succeed later.
    pub fn may_come_again(self) -> bool {
        self.side() != Side::Agent
    }

    /// The exact answer on a route; `None` for a path that is no agent path.
    ///
    /// Enroll refusals carry no key and carve refusals are not JSON for the agent's sake alone: agents ignore
    /// `error` there, see [`Reject::must_cut`].
    pub fn answer(self, route: Option<Route>) -> RejectAnswer {
        if self.is_loss_on(route) {
            return RejectAnswer {
                status: 200,
                body: "{}",
            };
        }
        let (status, body) = match self {
            Self::BodyMalformed => (
                400,
                r#"{"error":"request body is not valid for this path"}"#,
            ),
            Self::BodyTooLarge => (413, r#"{"error":"request body too large"}"#),
            Self::Busy => (503, r#"{"error":"server busy, try again"}"#),
            Self::CarveRefused => (400, r#"{"error":"carve refused"}"#),
            Self::ControlUnavailable => {
                (503, r#"{"error":"control process unavailable, try again"}"#)
            }
            Self::DeadlineExceeded => (503, r#"{"error":"request took too long, try again"}"#),
            Self::Draining => (503, r#"{"error":"server is draining, try again"}"#),
            Self::EnrollSecretInvalid => (
                401,
                r#"{"error":"enroll secret is not valid","node_invalid":true}"#,
            ),
            Self::HeadMalformed => (400, r#"{"error":"malformed request"}"#),
            Self::Internal => (500, r#"{"error":"internal error, try again"}"#),
            Self::JournalUnavailable => (503, r#"{"error":"log storage unavailable, try again"}"#),
            Self::MethodNotAllowed => (405, r#"{"error":"method not allowed, use POST"}"#),
            // The agent sends an empty key after a failed enrolment series and enrolls again by itself; telling it
            // that its key is invalid would only be true of no key at all.
            Self::NodeKeyMissing => (
                401,
                r#"{"error":"node key is missing","node_invalid":true}"#,
            ),
            Self::NodeKeyUnknown => (
                401,
                r#"{"error":"node key is not known","node_invalid":true}"#,
            ),
            Self::StoreUnavailable => (503, r#"{"error":"store unavailable, try again"}"#),
            Self::TooManyConnections => (503, r#"{"error":"too many connections, try again"}"#),
            Self::TooManyRequests => (429, r#"{"error":"too many requests, try again later"}"#),
            // No `node_invalid`: an agent that is to be known by its certificate has no secret to enroll with.
            Self::CertificateNamesNobody => (
                401,
                r#"{"error":"client certificate names no host: it needs a DNS name, a URI or a common name"}"#,
            ),
        };
        RejectAnswer { status, body }
    }

    /// Data that will never be accepted: it is dropped, counted, and answered as success.
    pub fn is_loss_on(self, route: Option<Route>) -> bool {
        matches!(route, Some(Route::Log | Route::Write))
            && matches!(self, Self::BodyMalformed | Self::BodyTooLarge)
    }

    /// Carving agents take any JSON, `error` included, for success. Where a block may still be accepted later, only
    /// a cut connection makes the agent send it again.
    pub fn must_cut(self, route: Option<Route>) -> bool {
        matches!(route, Some(Route::CarveBegin | Route::CarveBlock)) && self.may_come_again()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes() -> impl Iterator<Item = Option<Route>> {
        Route::ALL.into_iter().map(Some).chain([None])
    }

    #[test]
    fn indices_are_dense_and_labels_unique() {
        let mut labels = std::collections::BTreeSet::new();
        for (index, reject) in Reject::ALL.into_iter().enumerate() {
            assert_eq!(reject.index(), index);
            assert!(labels.insert(reject.label()));
        }
    }

    #[test]
    fn answers_keep_the_contract() {
        for reject in Reject::ALL {
            for route in routes() {
                let answer = reject.answer(route);
                let body: serde_json::Value = serde_json::from_str(answer.body).unwrap();
                let body = body.as_object().expect("a JSON object");
                if reject.is_loss_on(route) {
                    assert!(body.is_empty());
                    continue;
                }
                assert!(body.contains_key("error"), "{reject:?}");
                assert!(!body.contains_key("node_key"), "{reject:?}");
                let is_invalid = body.get("node_invalid") == Some(&true.into());
                let may_invalidate = matches!(
                    reject,
                    Reject::EnrollSecretInvalid | Reject::NodeKeyMissing | Reject::NodeKeyUnknown
                );
                assert_eq!(is_invalid, may_invalidate, "{reject:?}");
                assert!(answer.status >= 400, "{reject:?}");
            }
        }
    }

    #[test]
    fn only_agents_faults_are_final() {
        for reject in Reject::ALL {
            assert_eq!(reject.may_come_again(), reject.side() != Side::Agent);
            assert!(!(reject.may_come_again() && reject.is_loss_on(Some(Route::Log))));
        }
    }
}
