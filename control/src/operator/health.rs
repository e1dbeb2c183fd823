//! `GET /healthz`: 200 without a body, or 500 with a line for each check that failed, in a word or two; the reasons stand
//! in the log, because anybody may ask here.

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

/// What most failures come to.
const UNAVAILABLE: &str = "unavailable";

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

    /// `None` when it works, else its line.
    async fn run(self, office: &Office) -> Option<String> {
        let deps = &office.deps;
        let fails = |reason: String| (UNAVAILABLE, reason);
        let outcome = async {
            match self {
                Self::Store => {
                    let outcome = deps.store.ping().await;
                    outcome.map_err(|error| (deps.store.trouble(&error), error.to_string()))
                }
                Self::Bus => deps
                    .bus
                    .ping()
                    .await
                    .map_err(|error| fails(error.to_string())),
                Self::Journal => deps
                    .journal
                    .fault()
                    .map_or(Ok(()), |fault| Err(fails(fault))),
                Self::Gateway => {
                    weight::trouble(&deps.gateway.borrow()).map_or(Ok(()), |word| Err(fails(word)))
                }
            }
        };
        let trouble = in_time(self.label(), CHECK_DEADLINE, outcome).await?;
        Some(format!("{}: {trouble}\n", self.label()))
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
    let troubles: String = [store, bus, journal, gateway]
        .into_iter()
        .flatten()
        .collect();
    if troubles.is_empty() {
        return routes::bare(StatusCode::OK);
    }
    (StatusCode::INTERNAL_SERVER_ERROR, troubles).into_response()
}

async fn run_if(is_wanted: bool, check: Check, office: &Office) -> Option<String> {
    if is_wanted {
        check.run(office).await
    } else {
        None
    }
}

/// What is wrong, in a word or two, and its reason into the log; `None` when the check succeeds in time.
async fn in_time(
    name: &str,
    deadline: Duration,
    check: impl Future<Output = Result<(), (&'static str, String)>>,
) -> Option<&'static str> {
    match timeout(deadline, check).await {
        Ok(Ok(())) => None,
        Ok(Err((trouble, reason))) => {
            tracing::error!(check = name, %reason, "health check failed");
            Some(trouble)
        }
        Err(_) => {
            tracing::error!(check = name, "health check failed: no answer in time");
            Some("no answer in time")
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
        let hangs = in_time("bus", soon, std::future::pending()).await;
        assert_eq!(hangs, Some("no answer in time"));
        let fails = async { Err(("read-only", "db is read-only".into())) };
        assert_eq!(
            in_time("bus", CHECK_DEADLINE, fails).await,
            Some("read-only")
        );
        assert_eq!(in_time("bus", CHECK_DEADLINE, async { Ok(()) }).await, None);
    }
}
