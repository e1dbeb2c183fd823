//! Hosts, in Fleet's shapes.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Path, Query, State};
use fleet_protocol::ids::{HostId, UnixSeconds};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::fault::Fault;
use super::{Office, apply};
use crate::agents::now;
use crate::model::host::{HostDetail, HostFilter, HostOrder, HostRow, HostStatus};

/// Hosts in one answer.
const PER_PAGE_MAX: u32 = 10_000;
/// What Fleet writes for "never".
const NEVER: &str = "2000-01-01T00:00:00Z";

type Ask = State<Arc<Office>>;
type Reply = Result<Json<Value>, Fault>;

/// Parameters of the list. Those of Fleet that mean nothing here are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Parameters {
    page: Option<String>,
    per_page: Option<String>,
    order_key: Option<String>,
    order_direction: Option<String>,
    status: Option<String>,
    platform: Option<String>,
    query: Option<String>,
    clones: Option<String>,
}

impl Parameters {
    fn filter(&self, now: UnixSeconds) -> Result<HostFilter, Fault> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let per_page = number("per_page", self.per_page.as_deref())?.unwrap_or_default();
        if per_page > PER_PAGE_MAX {
            return Err(Fault::parameter(
                "per_page",
                format!("must not be above {PER_PAGE_MAX}"),
            ));
        }
        Ok(HostFilter {
            page: number("page", self.page.as_deref())?.unwrap_or_default(),
            per_page,
            order: order(self.order_key.as_deref().unwrap_or_default())?,
            is_descending: match self.order_direction.as_deref() {
                None | Some("" | "asc") => false,
                Some("desc") => true,
                Some(_) => return Err(Fault::parameter("order_direction", "must be asc or desc")),
            },
            text: given(&self.query),
            platform: given(&self.platform),
            is_clone: match self.clones.as_deref() {
                None | Some("" | "false" | "0") => false,
                Some("true" | "1") => true,
                Some(_) => return Err(Fault::parameter("clones", "must be true or false")),
            },
            status: status(self.status.as_deref().unwrap_or_default())?,
            now,
            ..HostFilter::default()
        })
    }
}

/// A whole number in a parameter.
pub(super) fn number(name: &str, text: Option<&str>) -> Result<Option<u32>, Fault> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| Fault::parameter(name, "must be a whole number")),
    }
}

fn order(key: &str) -> Result<HostOrder, Fault> {
    Ok(match key {
        "" | "id" => HostOrder::Id,
        "hostname" | "display_name" | "display_text" => HostOrder::Hostname,
        "seen_time" => HostOrder::SeenAt,
        "created_at" | "last_enrolled_at" => HostOrder::EnrolledAt,
        "os_version" => HostOrder::OsVersion,
        "osquery_version" => HostOrder::OsqueryVersion,
        _ => {
            return Err(Fault::parameter(
                "order_key",
                "must be id, hostname, seen_time, last_enrolled_at, os_version or osquery_version",
            ));
        }
    })
}

fn status(word: &str) -> Result<Option<HostStatus>, Fault> {
    Ok(Some(match word {
        "" | "all" => return Ok(None),
        "online" => HostStatus::Online,
        "offline" => HostStatus::Offline,
        "mia" | "missing" => HostStatus::Mia,
        "new" => HostStatus::New,
        _ => {
            return Err(Fault::parameter(
                "status",
                "must be online, offline, mia or new",
            ));
        }
    }))
}

/// `GET /hosts`
pub(super) async fn list(State(office): Ask, Query(parameters): Query<Parameters>) -> Reply {
    let now = now();
    let filter = parameters.filter(now)?;
    let rows = office.deps.store.reports().host_list(&filter).await?;
    let hosts: Vec<Value> = rows
        .iter()
        .map(|row| Value::Object(body(&office, row, now)))
        .collect();
    Ok(Json(json!({ "hosts": hosts })))
}

/// `GET /hosts/count`, with the filters of the list.
pub(super) async fn count(State(office): Ask, Query(parameters): Query<Parameters>) -> Reply {
    let mut filter = HostFilter {
        per_page: PER_PAGE_MAX,
        page: 0,
        order: HostOrder::Id,
        is_descending: false,
        ..parameters.filter(now())?
    };
    let store = office.deps.store.reports();
    let is_filtered = filter.text.is_some()
        || filter.platform.is_some()
        || filter.status.is_some()
        || filter.is_clone;
    if !is_filtered {
        return Ok(Json(json!({ "count": store.host_count().await? })));
    }
    let mut count = 0;
    loop {
        let rows = store.host_list(&filter).await?;
        count += rows.len();
        match rows.last() {
            Some(last) => filter.after = Some(last.id),
            None => return Ok(Json(json!({ "count": count }))),
        }
    }
}

/// `GET /hosts/identifier/{name}`: by identifier, host name or hardware UUID.
pub(super) async fn by_name(State(office): Ask, Path(name): Path<String>) -> Reply {
    show(&office, &name).await
}

/// `GET /hosts/{id}`
pub(super) async fn by_id(State(office): Ask, Path(id): Path<String>) -> Reply {
    let id = host_id(&id)?;
    show(&office, &id.to_string()).await
}

async fn show(office: &Office, name: &str) -> Reply {
    let host = office.deps.store.reports().host_detail(name).await?;
    let host = host.ok_or_else(|| Fault::not_found(format_args!("host {name:?}")))?;
    Ok(Json(json!({ "host": detail_body(office, &host, now()) })))
}

/// `DELETE /hosts/{id}`: the host's key becomes invalid, so a living agent enrolls again.
pub(super) async fn delete(State(office): Ask, Path(id): Path<String>) -> Reply {
    let id = host_id(&id)?;
    if office.deps.store.delete_host(id).await?.is_none() {
        return Err(Fault::not_found(format_args!("host {id}")));
    }
    tracing::info!(host = %id, "operator deleted a host");
    apply::wake(&office.deps).await;
    Ok(Json(json!({})))
}

/// `POST /hosts/{id}/refetch`: details and labels become due at once.
pub(super) async fn refetch(State(office): Ask, Path(id): Path<String>) -> Reply {
    let id = host_id(&id)?;
    if !office.deps.store.request_refetch(id).await? {
        return Err(Fault::not_found(format_args!("host {id}")));
    }
    apply::wake(&office.deps).await;
    Ok(Json(json!({})))
}

fn host_id(text: &str) -> Result<HostId, Fault> {
    text.parse()
        .map(HostId)
        .map_err(|_| Fault::not_found(format_args!("host {text:?}")))
}

fn body(office: &Office, row: &HostRow, now: UnixSeconds) -> Map<String, Value> {
    let columns = &row.columns;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let number = |number: Option<i64>| number.unwrap_or_default();
    let hostname = text(&columns.hostname);
    let name = [&columns.computer_name, &columns.hostname]
        .into_iter()
        .flatten()
        .find(|name| !name.is_empty())
        .unwrap_or(&row.identifier);
    // Marks that are not written yet are younger than the row.
    let seen_at = office
        .deps
        .agents
        .seen_at(row.id)
        .unwrap_or_default()
        .max(row.seen_at);
    let fields = json!({
        "id": row.id,
        "created_at": rfc3339(row.enrolled_at),
        "last_enrolled_at": rfc3339(row.enrolled_at),
        "seen_time": rfc3339(seen_at),
        "detail_updated_at": rfc3339(row.detail_updated_at),
        "label_updated_at": rfc3339(row.label_updated_at),
        "refetch_requested": row.refetch_requested,
        "hostname": hostname,
        "display_text": name,
        "display_name": name,
        "computer_name": text(&columns.computer_name),
        "uuid": text(&columns.hardware_uuid),
        "osquery_host_id": row.identifier,
        "instance_id": row.instance_id,
        "status": row.status(seen_at, now),
        "platform": text(&columns.platform),
        "platform_like": text(&columns.platform_like),
        "os_version": text(&columns.os_version),
        "osquery_version": text(&columns.osquery_version),
        "hardware_vendor": text(&columns.hardware_vendor),
        "hardware_model": text(&columns.hardware_model),
        "hardware_serial": text(&columns.hardware_serial),
        "cpu_type": text(&columns.cpu_type),
        "cpu_brand": text(&columns.cpu_brand),
        "cpu_physical_cores": number(columns.cpu_physical_cores),
        "cpu_logical_cores": number(columns.cpu_logical_cores),
        "memory": number(columns.memory),
        // Fleet counts nanoseconds.
        "uptime": number(columns.uptime).saturating_mul(1_000_000_000),
        "public_ip": columns.public_ip.as_ref().unwrap_or(&row.address),
        "primary_ip": text(&columns.primary_ip),
        "primary_mac": text(&columns.primary_mac),
        "disk_space_total": number(columns.disk_total),
        "disk_space_free": number(columns.disk_free),
        "distributed_interval": number(columns.distributed_interval),
        "config_tls_refresh": number(columns.config_refresh),
        "logger_tls_period": number(columns.logger_tls_period),
        "team_id": null,
        "team_name": null,
    });
    match fields {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

fn detail_body(office: &Office, host: &HostDetail, now: UnixSeconds) -> Value {
    let mut members = body(office, &host.row, now);
    let labels: Vec<Value> = host
        .labels
        .iter()
        .map(|(id, name)| json!({"id": id, "name": name}))
        .collect();
    members.insert("labels".into(), labels.into());
    members.insert("details".into(), host.details.clone().into());
    members.insert("clones".into(), json!(host.clones));
    Value::Object(members)
}

/// A time as Fleet writes it.
pub(super) fn rfc3339(at: UnixSeconds) -> String {
    if at.0 == 0 {
        return NEVER.to_owned();
    }
    let time = UNIX_EPOCH + Duration::from_secs(at.0.into());
    humantime::format_rfc3339_seconds(time).to_string()
}
