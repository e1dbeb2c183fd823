//! `GET /healthz`: 200 or 500 without a body; the reasons stand in the log.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use fleet_protocol::weight;
use tokio::time::timeout;

use super::fault::Fault;
use super::{Office, routes};

/// A dependency that has not answered by then does not work.
const CHECK_DEADLINE: Duration = Duration::from_secs(2);

/// What can be asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Store,
    Bus,
    Journal,
    Gateway,
}

impl Check {
    const ALL: [Self; 4] = [Self::Store, Self::Bus, Self::Journal, Self::Gateway];

    /// By the names that Fleet's clients use, or our own.
    fn named(word: &str) -> Option<Self> {
        match word {
            "mysql" | "store" => Some(Self::Store),
            "redis" | "bus" => Some(Self::Bus),
            "journal" => Some(Self::Journal),
            "gateway" => Some(Self::Gateway),
            _ => None,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Bus => "bus",
            Self::Journal => "journal",
            Self::Gateway => "gateway",
        }
    }

    async fn run(self, office: &Office) -> bool {
        let deps = &office.deps;
        let outcome = async {
            match self {
                Self::Store => deps.store.ping().await.map_err(|error| error.to_string()),
                Self::Bus => deps.bus.ping().await.map_err(|error| error.to_string()),
                Self::Journal => deps.journal.fault().map_or(Ok(()), Err),
                Self::Gateway => weight::trouble(&deps.gateway.borrow()).map_or(Ok(()), Err),
            }
        };
        in_time(self.label(), CHECK_DEADLINE, outcome).await
    }
}

/// The handler. `?check=` may be repeated; without it everything is checked.
pub(super) async fn show(
    State(office): State<Arc<Office>>,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Response {
    let named: Result<Vec<_>, _> = parameters
        .iter()
        .filter(|(name, _)| name == "check")
        .map(|(_, word)| Check::named(word).ok_or(word))
        .collect();
    let checks = match named {
        Ok(checks) if checks.is_empty() => Check::ALL.to_vec(),
        Ok(checks) => checks,
        Err(word) => {
            let reason = format!("{word:?} is unknown; use mysql, redis, journal or gateway");
            return Fault::parameter("check", reason).into_response();
        }
    };
    let (store, bus, journal, gateway) = tokio::join!(
        run_if(checks.contains(&Check::Store), Check::Store, &office),
        run_if(checks.contains(&Check::Bus), Check::Bus, &office),
        run_if(checks.contains(&Check::Journal), Check::Journal, &office),
        run_if(checks.contains(&Check::Gateway), Check::Gateway, &office),
    );
    routes::bare(if store && bus && journal && gateway {
        StatusCode::OK
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    })
}

async fn run_if(is_wanted: bool, check: Check, office: &Office) -> bool {
    !is_wanted || check.run(office).await
}

/// Whether a check succeeds in time; a failure is logged with its reason.
async fn in_time(
    name: &str,
    deadline: Duration,
    check: impl Future<Output = Result<(), String>>,
) -> bool {
    match timeout(deadline, check).await {
        Ok(Ok(())) => true,
        Ok(Err(reason)) => {
            tracing::error!(check = name, %reason, "health check failed");
            false
        }
        Err(_) => {
            tracing::error!(check = name, "health check failed: no answer in time");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_fleet_and_ours() {
        for (word, check) in [
            ("mysql", Check::Store),
            ("store", Check::Store),
            ("redis", Check::Bus),
            ("journal", Check::Journal),
            ("gateway", Check::Gateway),
        ] {
            assert_eq!(Check::named(word), Some(check));
        }
        assert_eq!(Check::named("mysq"), None);
    }

    #[tokio::test]
    async fn a_check_that_hangs_fails() {
        let soon = Duration::from_millis(10);
        assert!(!in_time("bus", soon, std::future::pending()).await);
        assert!(!in_time("bus", CHECK_DEADLINE, async { Err("read-only".into()) }).await);
        assert!(in_time("bus", CHECK_DEADLINE, async { Ok(()) }).await);
    }
}
