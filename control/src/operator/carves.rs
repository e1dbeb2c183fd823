//! Carves, as Fleet's clients list them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::Fault;
use super::{Office, hosts};
use crate::model::carve::{Carve, CarveFilter, CarveId};

/// Parameters of the list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Parameters {
    after: Option<String>,
    per_page: Option<String>,
}

/// `GET /carves`
pub(super) async fn list(
    State(office): State<Arc<Office>>,
    Query(parameters): Query<Parameters>,
) -> Result<Json<Value>, Fault> {
    let filter = CarveFilter {
        after: hosts::number("after", parameters.after.as_deref())?.map(CarveId),
        limit: hosts::number("per_page", parameters.per_page.as_deref())?.unwrap_or_default(),
        ..CarveFilter::default()
    };
    let carves = office.deps.store.carves(&filter).await?;
    let carves: Vec<Value> = carves.iter().map(|carve| body(&office, carve)).collect();
    Ok(Json(json!({ "carves": carves })))
}

/// `GET /carves/{id}`
pub(super) async fn show(
    State(office): State<Arc<Office>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Fault> {
    let missing = || Fault::not_found(format_args!("carve {id:?}"));
    let number = id.parse().map_err(|_| missing())?;
    let carve = office.deps.store.carve(CarveId(number)).await?;
    let carve = carve.ok_or_else(missing)?;
    Ok(Json(json!({ "carve": body(&office, &carve) })))
}

fn body(office: &Office, carve: &Carve) -> Value {
    // Fleet counts blocks from 0 and calls the last one that has come max_block; -1 before the first.
    let max_block = i64::try_from(carve.next_block).unwrap_or(i64::MAX) - 1;
    let file = carve
        .is_complete()
        .then(|| office.deps.carves.file(carve.id))
        .flatten();
    json!({
        "id": carve.id,
        "created_at": hosts::rfc3339(carve.created_at),
        "updated_at": hosts::rfc3339(carve.updated_at),
        "host_id": carve.host,
        "name": carve.carve_id,
        "carve_id": carve.carve_id,
        "request_id": carve.request_id,
        "block_count": carve.block_count,
        "block_size": carve.block_size,
        "carve_size": carve.carve_size,
        "received_size": carve.bytes,
        "max_block": max_block,
        "is_complete": carve.is_complete(),
        "expired": false,
        "error": carve.error,
        "file": file,
    })
}
