//! Carves, as Fleet's clients list them.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use super::fault::Fault;
use super::host_filter::number;
use super::{Office, hosts};
use crate::model::carve::{Carve, CarveFilter, CarveId};

/// Of an archive, read at a time.
const PIECE_BYTES: usize = 256 << 10;

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
        after: number("after", parameters.after.as_deref())?.map(CarveId),
        limit: number("per_page", parameters.per_page.as_deref())?.unwrap_or_default(),
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
    let carve = find(&office, &id).await?;
    Ok(Json(json!({ "carve": body(&office, &carve) })))
}

/// `GET /carves/{id}/block/{number}`
pub(super) async fn block(
    State(office): State<Arc<Office>>,
    Path((id, number)): Path<(String, String)>,
) -> Result<Json<Value>, Fault> {
    let carve = find(&office, &id).await?;
    let missing = || Fault::not_found(format_args!("block {number:?} of carve {id:?}"));
    let number: u64 = number.parse().map_err(|_| missing())?;
    if number >= carve.next_block {
        return Err(missing());
    }
    let _permit = office.blocks.acquire().await;
    let carves = Arc::clone(&office.deps.carves);
    let read = tokio::task::spawn_blocking(move || carves.stored_block(&carve, number)).await;
    let data = match read {
        Ok(Ok(data)) => data,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(elsewhere(&id));
        }
        Ok(Err(error)) => return Err(Fault::failed(format!("cannot read carve {id}: {error}"))),
        Err(error) => return Err(Fault::failed(format!("cannot read carve {id}: {error}"))),
    };
    Ok(Json(json!({ "data": STANDARD.encode(data) })))
}

/// `GET /carves/{id}/download`: the whole archive.
pub(super) async fn download(
    State(office): State<Arc<Office>>,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    let carve = find(&office, &id).await?;
    if !carve.is_complete() {
        return Err(Fault::conflict(format!(
            "{} of {} blocks of carve {id} have come",
            carve.next_block, carve.block_count
        )));
    }
    let path = office.deps.carves.file(carve.id);
    let path = path.ok_or_else(|| elsewhere(&id))?;
    let failed = |error| Fault::failed(format!("cannot read carve {id}: {error}"));
    let file = File::open(&path).await.map_err(failed)?;
    let bytes = file.metadata().await.map_err(failed)?.len();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, bytes.to_string()),
        (
            header::CONTENT_DISPOSITION,
            format!("attachment; filename=\"carve-{name}\""),
        ),
    ];
    let stream = ReaderStream::with_capacity(file, PIECE_BYTES);
    Ok((headers, Body::from_stream(stream)).into_response())
}

async fn find(office: &Office, id: &str) -> Result<Carve, Fault> {
    let missing = || Fault::not_found(format_args!("carve {id:?}"));
    let number = id.parse().map_err(|_| missing())?;
    let carve = office.deps.store.carve(CarveId(number)).await?;
    carve.ok_or_else(missing)
}

fn elsewhere(id: &str) -> Fault {
    Fault::not_found(format_args!("the file of carve {id} on this node"))
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
