//! `/debug/…`: what Fleet's clients put into their archive, as far as a server that is no Go program has it, and a list of
//! what this one has besides. For admins only; nothing secret is in it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use fleet_child::recent::{self, Recent};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Office;
use super::fault::Fault;
use crate::agents::{lock, now};
use crate::debug::{scrub, threads};

/// What there is besides: name and ending of the file, and how it is read.
const ITEMS: [(&str, &str); 6] = [
    ("slots", "json"),
    ("config", "json"),
    ("metrics", "txt"),
    ("store", "json"),
    ("feed", "json"),
    ("threads", "json"),
];

type Reply = Result<Response, Fault>;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Errors {
    flush: bool,
}

/// `GET /debug/errors[?flush=true]`
pub(super) async fn errors(Query(parameters): Query<Errors>) -> Json<Value> {
    let list = if parameters.flush {
        recent::take()
    } else {
        recent::list()
    };
    Json(list.iter().map(error).collect())
}

/// In Fleet's shape, and a little more.
fn error(recent: &Recent) -> Value {
    json!({
        "count": recent.count,
        "chain": [{
            "message": recent.message,
            "data": { "values": recent.values, "module": recent.module },
        }],
        "level": recent.level,
        "process": "control",
        "first_at": recent.first_at,
        "last_at": recent.last_at,
    })
}

/// `GET /debug/migrations`
pub(super) async fn migrations(State(office): State<Arc<Office>>) -> Reply {
    let store = &office.deps.store;
    let missing = store.missing_migrations().await?;
    let fillings = store.fillings();
    let is_unfilled = |filling: &&crate::store::Filling| filling.rows_left() > 0;
    let unfilled: Vec<i64> = (fillings.iter().filter(is_unfilled))
        .map(|filling| filling.migration)
        .collect();
    // As Fleet numbers them: 0 all have run, 2 some have.
    let status = if missing == 0 && unfilled.is_empty() {
        0
    } else {
        2
    };
    let body =
        json!({ "status_code": status, "missing_tables": missing, "missing_data": unfilled });
    Ok(Json(body).into_response())
}

/// `GET /debug/db/process-list`
pub(super) async fn process_list(State(office): State<Arc<Office>>) -> Reply {
    listed(office.deps.store.process_list().await?)
}

/// `GET /debug/db/locks`
pub(super) async fn locks(State(office): State<Arc<Office>>) -> Reply {
    listed(office.deps.store.lock_list().await?)
}

/// `GET /debug/db/innodb-status`
pub(super) async fn innodb_status(State(office): State<Arc<Office>>) -> Reply {
    let page = office.deps.store.innodb_status().await?;
    listed(page.map(Value::from))
}

fn listed(value: Option<Value>) -> Reply {
    match value {
        Some(value) => Ok(Json(value).into_response()),
        None => Err(Fault::not_found("such a page of the embedded store")),
    }
}

/// `GET /debug/pprof/{name}`
pub(super) async fn pprof(Path(name): Path<String>) -> Reply {
    if name != "cmdline" {
        let text = format!(
            "the profile {name:?} of a Go program (see /debug/gateway for what this server has)"
        );
        return Err(Fault::not_found(text));
    }
    // As Go does it: arguments with a zero byte between them. Nothing secret is ever among those of control.
    let arguments: Vec<String> = std::env::args().collect();
    let text = arguments.join("\0");
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}

/// `GET /debug/gateway`
pub(super) async fn list() -> Json<Value> {
    let item = |(name, extension): &(&str, &str)| {
        json!({
            "name": format!("gateway-{name}"),
            "path": format!("/debug/gateway/{name}"),
            "extension": extension,
        })
    };
    Json(ITEMS.iter().map(item).collect())
}

/// `GET /debug/gateway/{name}`
pub(super) async fn item(State(office): State<Arc<Office>>, Path(name): Path<String>) -> Reply {
    let deps = &office.deps;
    let value = match name.as_str() {
        "slots" => serde_json::to_value(&*deps.gateway.borrow()).unwrap_or_default(),
        "config" => {
            let mut config = deps.config.masked();
            scrub::urls(&mut config);
            config
        }
        "metrics" => return Ok((deps.metrics)().into_response()),
        "store" => deps.store.condition(),
        "feed" => {
            let (oldest, newest) = deps.store.change_bounds().await?;
            let seq = lock(&deps.agents.roster).hub().seq();
            let counts = deps.agents.counts(now());
            json!({
                "position": seq.0,
                "store_oldest": oldest.0,
                "store_newest": newest.0,
                "hosts": counts.enrolled,
                "hosts_online": counts.online,
            })
        }
        "threads" => threads::list()
            .ok_or_else(|| Fault::not_found("a list of threads that a confined process may see"))?,
        _ => return Err(Fault::not_found(format!("the item {name:?}"))),
    };
    Ok(Json(value).into_response())
}
