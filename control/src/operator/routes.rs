//! Which path leads where, for each of the two sockets.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{any, delete, get, post};

use super::access::{self, Access};
use super::fault::Fault;
use super::{BODY_BYTES_MAX, Office, addresses, apply, carves, health, hosts, specs, version};

/// Versions of Fleet's API that clients ask for; all are the same here.
const API: [&str; 3] = ["/api/latest/fleet", "/api/v1/fleet", "/api/2022-04/fleet"];
/// What `/metrics` answers with.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// For remote clients.
pub(super) fn remote(office: Arc<Office>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/healthz", get(health::show))
        .route("/version", get(version::show))
        .route("/metrics", get(guarded_metrics))
        .route("/api/{*rest}", any(async || Fault::local_only()))
        .fallback(async || Fault::no_such_path())
        .method_not_allowed_fallback(async || Fault::no_such_method())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(office)
}

/// For local operators.
pub(super) fn local(office: Arc<Office>) -> Router {
    let mut router = Router::new()
        .route("/", get(page))
        .route("/healthz", get(health::show))
        .route("/version", get(version::show))
        .route("/metrics", get(metrics));
    for prefix in API {
        router = router.nest(prefix, api());
    }
    router
        .fallback(async || Fault::no_such_path())
        .method_not_allowed_fallback(async || Fault::no_such_method())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(office)
}

fn api() -> Router<Arc<Office>> {
    Router::new()
        .route("/version", get(version::show))
        .route("/hosts", get(hosts::list))
        .route("/hosts/count", get(hosts::count))
        .route("/hosts/identifier/{name}", get(hosts::by_name))
        .route("/hosts/{id}", get(hosts::by_id).delete(hosts::delete))
        .route("/hosts/{id}/refetch", post(hosts::refetch))
        .route("/spec", post(apply::all))
        .route("/spec/queries", get(specs::queries).post(apply::queries))
        .route("/spec/queries/{name}", get(specs::query))
        .route("/queries/{name}", delete(specs::delete_query))
        .route("/spec/packs", get(specs::packs).post(apply::packs))
        .route("/spec/packs/{name}", get(specs::pack))
        .route("/packs/{name}", delete(specs::delete_pack))
        .route("/spec/labels", get(specs::labels).post(apply::labels))
        .route("/spec/labels/{name}", get(specs::label))
        .route("/labels/{name}", delete(specs::delete_label))
        .route("/config", get(specs::config).patch(apply::config))
        .route("/spec/options", post(apply::options))
        .route(
            "/spec/enroll_secret",
            get(specs::enroll_secret).post(apply::enroll_secret),
        )
        .route("/carves", get(carves::list))
        .route("/carves/{id}", get(carves::show))
        .route("/gateway/addresses", get(addresses::list))
        .method_not_allowed_fallback(async || Fault::no_such_method())
}

async fn page() -> Html<&'static str> {
    Html(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Fleet gateway</title>\n\
         <p>This is a Fleet gateway. osquery agents connect to it under <code>/api/osquery/</code>.</p>\n\
         <p>Operators use <code>fleet-supervisor ctl</code> on the server.</p>\n</html>\n",
    )
}

async fn metrics(State(office): State<Arc<Office>>) -> Response {
    let text = (office.deps.metrics)();
    ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response()
}

async fn guarded_metrics(state: State<Arc<Office>>, headers: HeaderMap) -> Response {
    match access::decide(&state.deps.config.prometheus.basic_auth, &headers) {
        Access::Granted => metrics(state).await,
        Access::Absent => Fault::no_such_path().into_response(),
        Access::Refused => Fault::wrong_password().into_response(),
    }
}

/// A status without a body, for probes that read nothing else.
pub(super) fn bare(status: StatusCode) -> Response {
    status.into_response()
}
