//! Every route, once: method, path, the least role and the handler. Both sockets are made of the same table.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::handler::Handler;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};

use super::access::{self, Access};
use super::fault::Fault;
use super::guard::{self, Post};
use super::listen::Side;
use super::roles::Least::{self, Admin, Anyone, Maintainer, Nobody, Observer};
use super::{
    BODY_BYTES_MAX, Office, activities, addresses, apply, campaigns, carves, debug, events, health,
    hosts, labels, live_query, login, openapi, packs, queries, results_socket, sessions, specs,
    targets, users, version,
};

/// Versions of Fleet's API that clients ask for; all are the same here. The last one is of clients from before Fleet 4.
const API: [&str; 4] = [
    "/api/latest/fleet",
    "/api/v1/fleet",
    "/api/2022-04/fleet",
    "/api/v1/kolide",
];
/// Largest body of a sign-in and the like, bytes.
const SMALL_BODY_BYTES_MAX: usize = 16 << 10;
/// What `/metrics` answers with.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One line of the table.
pub(super) struct Route {
    pub(super) method: Method,
    /// Without the API's prefix; names in braces are parameters, and one place has one name in every route.
    pub(super) path: &'static str,
    pub(super) least: Least,
    /// Also for whoever must choose another password first.
    is_open_before_reset: bool,
    /// The handler goes on when the client goes away.
    is_carried_through: bool,
    /// Largest body, bytes.
    body_bytes_max: usize,
    service: MethodRouter<Arc<Office>, Infallible>,
}

/// Routes under each of the API's prefixes.
pub(super) fn api() -> Vec<Route> {
    let tables = [resources(), live_queries(), accounts()];
    tables.into_iter().flatten().collect()
}

/// Hosts, documents, carves and the gateway.
fn resources() -> Vec<Route> {
    vec![
        get("/version", Anyone, version::show),
        get("/openapi.json", Anyone, openapi::show),
        get("/hosts", Observer, hosts::list),
        get("/hosts/count", Observer, hosts::count),
        post("/hosts/delete", Maintainer, hosts::delete_many),
        get("/host_summary", Observer, hosts::summary),
        get("/hosts/identifier/{name}", Observer, hosts::by_name),
        get("/hosts/{id}", Observer, hosts::by_id),
        delete("/hosts/{id}", Maintainer, hosts::delete),
        post("/hosts/{id}/refetch", Observer, hosts::refetch),
        // What is in the documents may ask for more; see there.
        post("/spec", Maintainer, apply::all),
        get("/spec/queries", Observer, specs::queries),
        post("/spec/queries", Maintainer, apply::queries),
        get("/spec/queries/{name}", Observer, specs::query),
        delete("/queries/{name}", Maintainer, specs::delete_query),
        get("/spec/packs", Maintainer, specs::packs),
        post("/spec/packs", Maintainer, apply::packs),
        get("/spec/packs/{name}", Maintainer, specs::pack),
        delete("/packs/{name}", Maintainer, specs::delete_pack),
        get("/spec/labels", Observer, specs::labels),
        post("/spec/labels", Maintainer, apply::labels),
        get("/spec/labels/{name}", Observer, specs::label),
        delete("/labels/{name}", Maintainer, specs::delete_label),
        get("/config", Anyone, specs::config),
        patch("/config", Admin, apply::config),
        post("/spec/options", Admin, apply::options),
        get("/spec/enroll_secret", Maintainer, specs::enroll_secret),
        post("/spec/enroll_secret", Maintainer, apply::enroll_secret),
        post("/spec/teams", Admin, apply::unsupported),
        post("/spec/policies", Maintainer, apply::unsupported),
        get("/labels", Observer, labels::list),
        post("/labels", Maintainer, labels::create),
        get("/labels/summary", Observer, labels::summary),
        get("/labels/{name}", Observer, labels::show),
        patch("/labels/{name}", Maintainer, labels::change),
        get("/labels/{name}/hosts", Observer, hosts::of_label),
        delete("/labels/id/{id}", Maintainer, labels::delete),
        get("/queries", Observer, queries::list),
        post("/queries", Maintainer, queries::create),
        post("/queries/delete", Maintainer, queries::delete_many),
        get("/queries/{name}", Observer, queries::show),
        patch("/queries/{name}", Maintainer, queries::change),
        delete("/queries/id/{id}", Maintainer, queries::delete),
        get("/packs", Maintainer, packs::list),
        post("/packs", Maintainer, packs::create),
        get("/packs/{name}", Maintainer, packs::show),
        get("/packs/{name}/scheduled", Maintainer, packs::scheduled),
        patch("/packs/{name}", Maintainer, packs::change),
        delete("/packs/id/{id}", Maintainer, packs::delete),
        post("/targets", Observer, targets::search),
        post("/targets/count", Observer, targets::count),
        get("/carves", Admin, carves::list),
        get("/carves/{id}", Admin, carves::show),
        get("/carves/{id}/block/{number}", Admin, carves::block),
        get("/carves/{id}/download", Admin, carves::download),
        get("/gateway/addresses", Observer, addresses::list),
    ]
}

/// Live queries and their viewers.
fn live_queries() -> Vec<Route> {
    vec![
        // Observers run what `observer_can_run` allows; see there.
        post("/queries/run", Observer, campaigns::run),
        get("/queries/run", Observer, live_query::run_several),
        post(
            "/queries/run_by_identifiers",
            Observer,
            campaigns::run_by_names,
        ),
        post("/queries/run_by_names", Observer, campaigns::run_by_names),
        post("/queries/{name}/run", Observer, live_query::run_saved).while_watched(),
        post("/hosts/{id}/query", Observer, live_query::on_host).while_watched(),
        post(
            "/hosts/identifier/{name}/query",
            Observer,
            live_query::on_named_host,
        )
        .while_watched(),
        get("/gateway/campaigns", Observer, campaigns::list),
        get("/gateway/campaigns/{id}", Observer, campaigns::show),
        delete("/gateway/campaigns/{id}", Observer, campaigns::stop),
        get(
            "/gateway/campaigns/{id}/results",
            Observer,
            campaigns::results,
        ),
        get("/gateway/campaigns/{id}/events", Observer, events::stream),
        // The token comes in the first message.
        get("/results/websocket", Nobody, results_socket::open),
        get("/status/live_query", Observer, campaigns::live_query_status),
        get(
            "/status/result_store",
            Observer,
            campaigns::result_store_status,
        ),
    ]
}

/// Operators: their accounts, sessions and deeds.
fn accounts() -> Vec<Route> {
    vec![
        post("/setup", Nobody, login::setup).small(),
        post("/login", Nobody, login::login).small(),
        post("/logout", Anyone, login::logout)
            .small()
            .before_reset(),
        get("/me", Anyone, login::me).before_reset(),
        post("/change_password", Anyone, login::change_password).small(),
        post(
            "/perform_required_password_reset",
            Anyone,
            login::reset_password,
        )
        .small()
        .before_reset(),
        get("/users", Admin, users::list),
        post("/users", Admin, users::create).small(),
        post("/users/admin", Admin, users::create).small(),
        post("/users/roles/spec", Admin, users::apply_roles),
        // One's own account is one's own business; see there.
        get("/users/{id}", Anyone, users::show),
        patch("/users/{id}", Anyone, users::modify).small(),
        delete("/users/{id}", Admin, users::delete),
        post(
            "/users/{id}/require_password_reset",
            Admin,
            users::require_reset,
        )
        .small(),
        get("/users/{id}/sessions", Anyone, sessions::of_user),
        delete("/users/{id}/sessions", Anyone, sessions::end_of_user),
        get("/sessions/{id}", Anyone, sessions::show),
        delete("/sessions/{id}", Anyone, sessions::end),
        get("/activities", Observer, activities::list),
    ]
}

/// Routes that stand for themselves.
fn root(side: Side) -> Vec<Route> {
    let metrics = match side {
        Side::Tunnel => get("/metrics", Nobody, guarded_metrics),
        Side::Operator => get("/metrics", Nobody, metrics),
    };
    vec![
        get("/", Nobody, page),
        get("/healthz", Nobody, health::show),
        get("/version", Nobody, version::show),
        metrics,
        // Where clients look for it, whatever version they speak.
        post("/api/v1/setup", Nobody, login::setup).small(),
        get("/debug/errors", Admin, debug::errors),
        get("/debug/migrations", Admin, debug::migrations),
        get("/debug/db/locks", Admin, debug::locks),
        get("/debug/db/innodb-status", Admin, debug::innodb_status),
        get("/debug/db/process-list", Admin, debug::process_list),
        get("/debug/pprof/{name}", Admin, debug::pprof),
        get("/debug/gateway", Admin, debug::list),
        get("/debug/gateway/{name}", Admin, debug::item),
    ]
}

/// All of it, as one of the sockets serves it.
pub(super) fn router(office: Arc<Office>, side: Side) -> Router {
    let mut router = Router::new();
    for route in root(side) {
        router = router.route(route.path, route.guarded(&office, side));
    }
    for route in api() {
        let service = route.guarded(&office, side);
        for prefix in API {
            router = router.route(&format!("{prefix}{}", route.path), service.clone());
        }
    }
    router
        .fallback(async || Fault::no_such_path())
        .method_not_allowed_fallback(async || Fault::no_such_method())
        .layer(middleware::map_response(sealed))
        .with_state(office)
}

impl Route {
    fn new<H, T>(method: Method, path: &'static str, least: Least, handler: H) -> Self
    where
        H: Handler<T, Arc<Office>>,
        T: 'static,
    {
        // A method that has no filter has no constructor below either.
        let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
        Self {
            is_carried_through: !method.is_safe(),
            method,
            path,
            least,
            is_open_before_reset: false,
            body_bytes_max: BODY_BYTES_MAX,
            service: on(filter, handler),
        }
    }

    /// For bodies that hold little and come from anybody.
    fn small(mut self) -> Self {
        self.body_bytes_max = SMALL_BODY_BYTES_MAX;
        self
    }

    /// Also for whoever must choose another password first.
    fn before_reset(mut self) -> Self {
        self.is_open_before_reset = true;
        self
    }

    /// Changes nothing that outlives the request, and ends with it.
    fn while_watched(mut self) -> Self {
        self.is_carried_through = false;
        self
    }

    fn guarded(&self, office: &Arc<Office>, side: Side) -> MethodRouter<Arc<Office>, Infallible> {
        let post = Post {
            office: Arc::clone(office),
            side,
            method: self.method.clone(),
            path: self.path,
            least: self.least,
            is_open_before_reset: self.is_open_before_reset,
            is_carried_through: self.is_carried_through,
        };
        self.service
            .clone()
            .route_layer(DefaultBodyLimit::max(self.body_bytes_max))
            .route_layer(middleware::from_fn_with_state(post, guard::enter))
    }
}

fn get<H: Handler<T, Arc<Office>>, T: 'static>(path: &'static str, least: Least, h: H) -> Route {
    Route::new(Method::GET, path, least, h)
}

fn post<H: Handler<T, Arc<Office>>, T: 'static>(path: &'static str, least: Least, h: H) -> Route {
    Route::new(Method::POST, path, least, h)
}

fn patch<H: Handler<T, Arc<Office>>, T: 'static>(path: &'static str, least: Least, h: H) -> Route {
    Route::new(Method::PATCH, path, least, h)
}

fn delete<H: Handler<T, Arc<Office>>, T: 'static>(path: &'static str, least: Least, h: H) -> Route {
    Route::new(Method::DELETE, path, least, h)
}

/// What every answer carries: nothing on the way keeps it, and no browser guesses what it is.
async fn sealed(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

async fn page() -> Html<&'static str> {
    Html(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Fleet gateway</title>\n\
         <p>This is a Fleet gateway. osquery agents connect to it under <code>/api/osquery/</code>.</p>\n\
         <p>Operators use <code>fleet-supervisor ctl</code>.</p>\n</html>\n",
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
