//! Hosts, in Fleet's shapes.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Path, Query, State};
use fleet_protocol::ids::{HostId, UnixSeconds};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::actor::Actor;
use super::audit::Deed;
use super::fault::{Fault, Reason};
use super::host_filter::{PER_PAGE_MAX, Parameters};
use super::payload::Payload;
use super::{Office, apply, labels, specs};
use crate::agents::now;
use crate::model::host::{HostDetail, HostFilter, HostRow};
use crate::model::label::LabelType;

/// Hosts that one request deletes.
const DELETED_MAX: usize = 10_000;
/// Hosts of one transaction, which keeps enrolments waiting.
const DELETED_AT_ONCE: usize = 512;
/// What Fleet writes for "never".
const NEVER: &str = "2000-01-01T00:00:00Z";

type Ask = State<Arc<Office>>;
type Reply = Result<Json<Value>, Fault>;

/// `GET /hosts`
pub(super) async fn list(State(office): Ask, Query(parameters): Query<Parameters>) -> Reply {
    list_of(&office, &parameters.filter(now())?).await
}

/// `GET /labels/{id}/hosts`
pub(super) async fn of_label(
    State(office): Ask,
    Path(id): Path<String>,
    Query(parameters): Query<Parameters>,
) -> Reply {
    let label = labels::find(&office, &id).await?;
    let filter = HostFilter {
        label: Some(label.id),
        ..parameters.filter(now())?
    };
    list_of(&office, &filter).await
}

async fn list_of(office: &Office, filter: &HostFilter) -> Reply {
    let rows = page(office, filter).await?;
    let hosts: Vec<Value> = rows
        .iter()
        .map(|row| Value::Object(body(office, row, filter.now)))
        .collect();
    Ok(Json(json!({ "hosts": hosts })))
}

/// A page of hosts: chosen in memory and read by their ids, or all by the store while memory has not all of them.
pub(super) async fn page(office: &Office, filter: &HostFilter) -> Result<Vec<HostRow>, Fault> {
    let reports = office.deps.store.reports();
    Ok(match office.deps.agents.select(filter).await {
        Some(selection) => reports.host_rows(&selection.hosts).await?,
        None => reports.host_list(filter).await?,
    })
}

/// Hosts that a filter lets pass, on all pages.
pub(super) async fn total(office: &Office, filter: HostFilter) -> Result<u64, Fault> {
    let filter = HostFilter {
        page: 0,
        per_page: 0,
        ..filter
    };
    Ok(match office.deps.agents.select(&filter).await {
        Some(selection) => selection.count,
        None => office.deps.store.reports().host_count_of(&filter).await?,
    })
}

/// `GET /hosts/count`, with the filters of the list.
pub(super) async fn count(State(office): Ask, Query(parameters): Query<Parameters>) -> Reply {
    let count = total(&office, parameters.filter(now())?).await?;
    Ok(Json(json!({ "count": count })))
}

/// `GET /host_summary`
pub(super) async fn summary(State(office): Ask) -> Reply {
    let summary = office.deps.agents.summary(now()).await;
    let summary = summary.ok_or_else(Fault::not_loaded)?;
    let platforms: Vec<Value> = summary
        .platforms
        .iter()
        .map(|(platform, hosts)| json!({"platform": platform, "hosts_count": hosts}))
        .collect();
    let labels: Vec<Value> = specs::label_rows(&office)
        .await?
        .iter()
        .filter(|label| label.spec.label_type == LabelType::Builtin)
        .map(labels::brief)
        .collect();
    let counts = summary.counts;
    Ok(Json(json!({
        "team_id": null,
        "totals_hosts_count": counts.enrolled,
        "online_count": counts.online,
        // Fleet's counts hosts that are missing here as well.
        "offline_count": counts.offline + counts.mia,
        "mia_count": counts.mia,
        "missing_30_days_count": counts.mia,
        "new_count": counts.new,
        "all_linux_count": summary.linux,
        "builtin_labels": labels,
        "platforms": platforms,
    })))
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
pub(super) async fn delete(actor: Actor, State(office): Ask, Path(id): Path<String>) -> Reply {
    let id = host_id(&id)?;
    let name = name_of(&office, id).await?;
    if delete_all(&office, &[id]).await? == 0 {
        return Err(Fault::not_found(format_args!("host {id}")));
    }
    let deed = Deed::of("deleted_host").to("host", name).numbered(id.0);
    office.audit.record(&actor, deed).await;
    Ok(Json(json!({})))
}

/// `POST /hosts/delete`: `{"ids": […]}` or `{"filters": {…}}`, never everything by an empty one.
pub(super) async fn delete_many(actor: Actor, State(office): Ask, body: Payload) -> Reply {
    let wanted: Doomed = body.read()?;
    let ids = match (&wanted.ids, &wanted.filters) {
        (ids, None) if !ids.is_empty() => ids.clone(),
        (ids, Some(filters)) if ids.is_empty() => filtered(&office, filters).await?,
        _ => return Err(Fault::unreadable("the body needs either ids or filters")),
    };
    if ids.len() > DELETED_MAX {
        let reason = format!("{} hosts; at most {DELETED_MAX} at a time", ids.len());
        return Err(Fault::invalid(vec![Reason::new("ids", reason)]));
    }
    let deleted = delete_all(&office, &ids).await?;
    let deed = Deed::of("deleted_multiple_hosts")
        .to("host", "")
        .with("count", deleted);
    let deed = match &wanted.filters {
        Some(filters) => deed.with("filters", filters.clone()),
        None => deed.before(json!({ "ids": ids })),
    };
    office.audit.record(&actor, deed).await;
    Ok(Json(json!({ "deleted": deleted })))
}

/// Whom to delete.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Doomed {
    ids: Vec<HostId>,
    filters: Option<Value>,
}

async fn filtered(office: &Office, filters: &Value) -> Result<Vec<HostId>, Fault> {
    let filter = HostFilter {
        per_page: PER_PAGE_MAX,
        ..Parameters::of_filters(filters)?.filter(now())?
    };
    let is_any = filter.text.is_some()
        || filter.status.is_some()
        || filter.platform.is_some()
        || filter.label.is_some()
        || filter.is_clone;
    if !is_any {
        return Err(Fault::unreadable("filters must name something"));
    }
    let count = total(office, filter.clone()).await?;
    if count > u64::from(PER_PAGE_MAX) {
        let reason = format!("{count} hosts; at most {DELETED_MAX} at a time");
        return Err(Fault::invalid(vec![Reason::new("filters", reason)]));
    }
    let rows = page(office, &filter).await?;
    Ok(rows.iter().map(|row| row.id).collect())
}

/// Deletes the hosts that there are, and tells their number.
async fn delete_all(office: &Office, ids: &[HostId]) -> Result<usize, Fault> {
    let mut deleted = 0;
    for part in ids.chunks(DELETED_AT_ONCE) {
        let states = office.deps.store.delete_hosts(part).await?;
        office.deps.agents.forget(&states);
        for state in &states {
            tracing::info!(host = %state.id, "operator deleted a host");
        }
        deleted += states.len();
    }
    apply::wake(&office.deps).await;
    Ok(deleted)
}

/// `POST /hosts/{id}/refetch`: details and labels become due at once.
pub(super) async fn refetch(actor: Actor, State(office): Ask, Path(id): Path<String>) -> Reply {
    let id = host_id(&id)?;
    let name = name_of(&office, id).await?;
    let asked = office.deps.store.request_refetch(id).await?;
    let is_new = asked.ok_or_else(|| Fault::not_found(format_args!("host {id}")))?;
    apply::wake(&office.deps).await;
    if is_new {
        let deed = Deed::of("refetched_host").to("host", name).numbered(id.0);
        office.audit.record(&actor, deed).await;
    }
    Ok(Json(json!({})))
}

/// The host's name, for the audit log.
async fn name_of(office: &Office, id: HostId) -> Result<String, Fault> {
    let host = office.deps.store.host_detail(&id.to_string()).await?;
    let host = host.ok_or_else(|| Fault::not_found(format_args!("host {id}")))?;
    let hostname = host.row.columns.hostname.unwrap_or_default();
    Ok(if hostname.is_empty() {
        host.row.identifier
    } else {
        hostname
    })
}

fn host_id(text: &str) -> Result<HostId, Fault> {
    text.parse()
        .map(HostId)
        .map_err(|_| Fault::not_found(format_args!("host {text:?}")))
}

/// A host in a list.
pub(super) fn body(office: &Office, row: &HostRow, now: UnixSeconds) -> Map<String, Value> {
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
