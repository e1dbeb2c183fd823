//! Live queries over REST: begun in Fleet's ways, listed, read and stopped.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use fleet_protocol::ids::{HostId, UnixSeconds};
use fleet_protocol::secret::Secret;
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::actor::Actor;
use super::audit::Deed;
use super::fault::{Fault, Reason};
use super::host_filter::number;
use super::live_request::{self, Choice, LiveRequest};
use super::payload::Payload;
use super::roles::Least;
use super::{Office, hosts, results_message, telling};
use crate::agents::{Counts, now};
use crate::campaigns::{Cursor, Error, Event};
use crate::model::campaign::{Campaign, CampaignId, NewCampaign, Status, Targets};
use crate::model::label::LabelId;
use crate::model::query::QueryId;

type Ask = State<Arc<Office>>;
type Reply = Result<Json<Value>, Fault>;

/// Fleet's numbers for how a campaign stands.
const FLEET_RUNNING: u32 = 1;
const FLEET_COMPLETE: u32 = 2;
/// Campaigns in one answer, and unless a client wants another number.
const PER_PAGE_MAX: u32 = 1000;
const PER_PAGE: u32 = 100;

/// `POST /queries/run`: hosts and labels by number.
pub(super) async fn run(State(office): Ask, actor: Actor, Payload(body): Payload) -> Reply {
    let LiveRequest {
        choice,
        hosts,
        labels,
    } = live_request::by_ids(body)?;
    let targets = Targets {
        hosts,
        labels: labels.into_iter().map(LabelId).collect(),
    };
    begin(&office, &actor, choice, targets).await
}

/// `POST /queries/run_by_identifiers`, and `run_by_names` of older clients: labels by name, hosts by identifier, host
/// name, hardware UUID or serial number.
pub(super) async fn run_by_names(
    State(office): Ask,
    actor: Actor,
    Payload(body): Payload,
) -> Reply {
    let request = live_request::by_names(body)?;
    let targets = Targets {
        hosts: hosts_named(&office, &request.hosts).await?,
        labels: labels_named(&office, &request.labels).await?,
    };
    begin(&office, &actor, request.choice, targets).await
}

async fn hosts_named(office: &Office, names: &BTreeSet<String>) -> Result<BTreeSet<u32>, Fault> {
    if names.is_empty() {
        return Ok(BTreeSet::new());
    }
    let found = office.deps.store.hosts_named(names).await?;
    let unknown = names.iter().filter(|name| !found.contains_key(*name));
    let unknown: Vec<&str> = unknown.map(String::as_str).collect();
    if unknown.is_empty() {
        return Ok(found.values().flatten().map(|host| host.0).collect());
    }
    Err(unknown_hosts(found.is_empty(), &unknown.join(" ")))
}

/// Fleet's client looks for the first words.
fn unknown_hosts(is_nobody_known: bool, names: &str) -> Fault {
    let nobody = if is_nobody_known {
        "no hosts targeted: "
    } else {
        ""
    };
    Fault::parameter("selected", format!("{nobody}unknown hosts: [{names}]"))
}

async fn labels_named(
    office: &Office,
    names: &BTreeSet<String>,
) -> Result<BTreeSet<LabelId>, Fault> {
    if names.is_empty() {
        return Ok(BTreeSet::new());
    }
    let labels = office.deps.store.label_specs().await?;
    let mut unknown = names.clone();
    let mut ids = BTreeSet::new();
    for label in labels {
        if unknown.remove(&label.spec.name) {
            ids.insert(label.id);
        }
    }
    if unknown.is_empty() {
        return Ok(ids);
    }
    let unknown: Vec<String> = unknown.into_iter().collect();
    Err(unknown_labels(&unknown))
}

/// Fleet's client looks for these words, and for what stands in brackets.
fn unknown_labels(names: &[String]) -> Fault {
    let reason = format!("Invalid label name(s): [{}]", names.join(" "));
    Fault::parameter("selected", reason)
}

async fn begin(office: &Office, actor: &Actor, choice: Choice, targets: Targets) -> Reply {
    let question = question(office, actor, choice).await?;
    let (campaign, counts) = start(office, actor, question, &targets).await?;
    let created_at = hosts::rfc3339(campaign.created_at);
    Ok(Json(json!({ "campaign": {
        "created_at": created_at,
        "updated_at": created_at,
        "Metrics": {
            "TotalHosts": campaign.target_count,
            "OnlineHosts": counts.online,
            "OfflineHosts": counts.offline,
            "MissingInActionHosts": counts.mia,
            "NewHosts": counts.new,
        },
        "id": campaign.id,
        "query_id": campaign.query_id.unwrap_or_default(),
        "status": fleet_status(campaign.status),
        "user_id": campaign.user_id,
    }})))
}

fn fleet_status(status: Status) -> u32 {
    match status {
        Status::Running => FLEET_RUNNING,
        Status::Finished | Status::Expired | Status::Stopped => FLEET_COMPLETE,
    }
}

/// What hosts will run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) id: Option<QueryId>,
    pub(super) name: String,
    pub(super) sql: String,
}

/// Finds out what is to be run, and whether whoever asks may.
pub(super) async fn question(
    office: &Office,
    actor: &Actor,
    choice: Choice,
) -> Result<Question, Fault> {
    must_be_enabled(office).await?;
    let id = match choice {
        Choice::Sql(sql) => {
            actor.must_be(Least::Maintainer)?;
            return Ok(Question {
                id: None,
                name: String::new(),
                sql,
            });
        }
        Choice::Saved(id) => id,
    };
    let queries = office.deps.store.reports().queries().await?;
    let query = queries.into_iter().find(|query| query.id == id);
    let query = query.ok_or_else(|| Fault::not_found(format_args!("query {id}")))?;
    if !query.spec.observer_can_run {
        actor.must_be(Least::Maintainer)?;
    }
    Ok(Question {
        id: Some(id),
        name: query.spec.name,
        sql: query.spec.query,
    })
}

/// An administrator may have turned live queries off, with Fleet's setting.
async fn must_be_enabled(office: &Office) -> Result<(), Fault> {
    let config = office.deps.store.app_config().await?;
    let settings = config.get("server_settings");
    let is_disabled = settings.and_then(|settings| settings.get("live_query_disabled"));
    if is_disabled.and_then(Value::as_bool) == Some(true) {
        return Err(Fault::conflict(
            "live queries are disabled by server_settings.live_query_disabled",
        ));
    }
    Ok(())
}

/// Begins a campaign, and notes who did.
pub(super) async fn start(
    office: &Office,
    actor: &Actor,
    question: Question,
    targets: &Targets,
) -> Result<(Campaign, Counts), Fault> {
    let campaigns = &office.deps.agents.campaigns;
    let hosts = campaigns.resolve(targets).await?;
    let unknown = targets.hosts.iter().filter(|host| !hosts.contains(**host));
    let unknown: Vec<String> = unknown.map(u32::to_string).collect();
    if !unknown.is_empty() {
        return Err(unknown_hosts(hosts.is_empty(), &unknown.join(" ")));
    }
    let counts = campaigns.counts(&hosts, now()).await;
    let campaign = campaigns
        .create(NewCampaign {
            name: question.name,
            query_id: question.id,
            sql: question.sql,
            user_id: actor.user.unwrap_or_default().0,
            user_name: actor.name.clone(),
            targets: hosts,
        })
        .await?;
    let deed = Deed::of("live_query")
        .to("live query", campaign.name.clone())
        .numbered(campaign.id.0)
        .with("query_sql", campaign.sql.clone())
        .with("query_id", campaign.query_id.map(|id| id.0))
        .with("targets_count", campaign.target_count);
    office.audit.record(actor, deed).await;
    Ok((campaign, counts))
}

/// Parameters of the list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ListParameters {
    page: Option<String>,
    per_page: Option<String>,
    status: Option<String>,
}

/// `GET /gateway/campaigns`: the youngest first; those of others are for admins.
pub(super) async fn list(
    State(office): Ask,
    actor: Actor,
    Query(parameters): Query<ListParameters>,
) -> Reply {
    let given = |name, text: &Option<String>| number(name, text.as_deref());
    let page = given("page", &parameters.page)?.unwrap_or_default();
    let per_page = match given("per_page", &parameters.per_page)? {
        None | Some(0) => PER_PAGE,
        Some(rows) if rows > PER_PAGE_MAX => {
            let reason = format!("must not be above {PER_PAGE_MAX}");
            return Err(Fault::parameter("per_page", reason));
        }
        Some(rows) => rows,
    };
    let wanted = parameters.status.as_deref().unwrap_or_default();
    let is_wanted = |campaign: &Campaign| {
        (wanted.is_empty() || campaign.status.label() == wanted) && may_see(&actor, campaign)
    };
    let campaigns = office.deps.agents.campaigns.list().await?;
    let first = usize::try_from(u64::from(page) * u64::from(per_page)).unwrap_or(usize::MAX);
    let rows = usize::try_from(per_page).unwrap_or(usize::MAX);
    let shown = campaigns.iter().filter(|campaign| is_wanted(campaign));
    let mut bodies = Vec::new();
    for campaign in shown.skip(first).take(rows) {
        bodies.push(body(&office, campaign).await?);
    }
    Ok(Json(json!({ "campaigns": bodies })))
}

/// `GET /gateway/campaigns/{id}`
pub(super) async fn show(State(office): Ask, actor: Actor, Path(id): Path<String>) -> Reply {
    let campaign = visible(&office, &actor, &id).await?;
    Ok(Json(json!({ "campaign": body(&office, &campaign).await? })))
}

/// `DELETE /gateway/campaigns/{id}`: hosts are asked no more; what they answered stays for a while.
pub(super) async fn stop(State(office): Ask, actor: Actor, Path(id): Path<String>) -> Reply {
    let campaign = visible(&office, &actor, &id).await?;
    let was_running = office.deps.agents.campaigns.stop(campaign.id).await?;
    if was_running {
        let deed = Deed::of("stopped_live_query")
            .to("live query", campaign.name.clone())
            .numbered(campaign.id.0);
        office.audit.record(&actor, deed).await;
    }
    Ok(Json(json!({ "stopped": was_running })))
}

/// Where to go on.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AfterParameter {
    pub(super) after: Option<String>,
}

impl AfterParameter {
    pub(super) fn cursor(&self) -> Result<Option<Cursor>, Fault> {
        cursor("after", self.after.as_deref())
    }
}

/// A place in results as viewers name it.
pub(super) fn cursor(name: &str, text: Option<&str>) -> Result<Option<Cursor>, Fault> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| Fault::parameter(name, "is no place in results, such as 1700000000000-3")),
    }
}

/// `GET /gateway/campaigns/{id}/results`: what hosts have answered so far and is kept, a JSON object each line.
pub(super) async fn results(
    State(office): Ask,
    actor: Actor,
    Path(id): Path<String>,
    Query(parameters): Query<AfterParameter>,
) -> Result<Response, Fault> {
    let campaign = visible(&office, &actor, &id).await?;
    let from = parameters.cursor()?;
    let viewer = office.deps.agents.campaigns.view(campaign.id, from).await?;
    let lines = stream::unfold(Some((office, viewer)), |state| async {
        let (office, mut viewer) = state?;
        match viewer.kept().await {
            Ok(None) => None,
            Ok(Some(event)) => {
                let lines = lines_of(&office, viewer.campaign(), event).await;
                Some((Ok(lines), Some((office, viewer))))
            }
            // The answer has begun, so breaking it off is all that is left.
            Err(error) => Some((Err(std::io::Error::other(error)), None)),
        }
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(lines)).into_response())
}

async fn lines_of(office: &Office, campaign: CampaignId, event: Event) -> Bytes {
    let mut lines = String::new();
    match event {
        Event::Results(results) => {
            let hosts: Vec<HostId> = results.iter().map(|result| result.host).collect();
            let names = office.names.of(&hosts).await;
            for (result, name) in results.iter().zip(&names) {
                let data = results_message::result(campaign, name, result);
                push_line(&mut lines, result.cursor, &data);
            }
        }
        Event::Lost { cursor, reason } => {
            push_line(&mut lines, cursor, &json!({ "lost": reason }).to_string());
        }
        Event::Ended(_) => {}
    }
    lines.into()
}

/// An object with its cursor in front of its other members.
fn push_line(lines: &mut String, cursor: Cursor, object: &str) {
    let rest = object.strip_prefix('{').unwrap_or("}");
    lines.push_str(&format!("{{\"cursor\":\"{cursor}\",{rest}\n"));
}

/// `GET /status/live_query`: nothing, or why there are none.
pub(super) async fn live_query_status(State(office): Ask) -> Reply {
    must_be_enabled(&office).await?;
    Ok(Json(json!({})))
}

/// `GET /status/result_store`: nothing, or why results cannot be kept.
pub(super) async fn result_store_status(State(office): Ask) -> Reply {
    office.deps.bus.ping().await.map_err(Error::from)?;
    Ok(Json(json!({})))
}

/// The campaign, if whoever asks may see it.
pub(super) async fn visible(office: &Office, actor: &Actor, id: &str) -> Result<Campaign, Fault> {
    let missing = || Fault::not_found(format_args!("live query {id:?}"));
    let number = id.parse().map_err(|_| missing())?;
    let campaign = office.deps.agents.campaigns.get(CampaignId(number)).await?;
    if !may_see(actor, &campaign) {
        // The same as for one that is not there: nobody learns what others do.
        return Err(missing());
    }
    Ok(campaign)
}

/// Campaigns are their creator's and the admins' business.
pub(super) fn may_see(actor: &Actor, campaign: &Campaign) -> bool {
    let is_own = actor.user.is_some_and(|user| user.0 == campaign.user_id);
    is_own || actor.must_be(Least::Admin).is_ok()
}

/// Whether whoever looks at a campaign may go on: a session ends, and accounts change. A store that does not answer ends
/// nobody's.
pub(super) async fn still_sees(
    office: &Office,
    actor: &Actor,
    token: &Secret,
    campaign: &Campaign,
) -> bool {
    if actor.is_local() {
        return true;
    }
    match office.guard.session_of(token.reveal(), actor.address).await {
        Ok(Some(actor)) => !actor.must_reset && may_see(&actor, campaign),
        Ok(None) => false,
        Err(_) => true,
    }
}

async fn body(office: &Office, campaign: &Campaign) -> Result<Value, Fault> {
    let progress = office.deps.agents.campaigns.progress(campaign.id).await?;
    let time = |at: UnixSeconds| match at.0 {
        0 => Value::Null,
        _ => hosts::rfc3339(at).into(),
    };
    let until = if campaign.ended_at.0 == 0 {
        now()
    } else {
        campaign.ended_at
    };
    let fields = json!({
        "id": campaign.id,
        "query_id": campaign.query_id,
        "query_name": campaign.name,
        "query": campaign.sql,
        "user_id": campaign.user_id,
        "user_name": campaign.user_name,
        "created_at": time(campaign.created_at),
        "expires_at": time(campaign.expires_at),
        "ended_at": time(campaign.ended_at),
        "age_s": until.0.saturating_sub(campaign.created_at.0),
    });
    let mut members = match fields {
        Value::Object(members) => members,
        _ => Map::new(),
    };
    if let Value::Object(progress) = telling::body(&progress) {
        members.extend(progress);
    }
    Ok(Value::Object(members))
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::NoTargets => Self::parameter("selected", error.to_string()),
            Error::NoQuery => Self::invalid(vec![Reason::new("query", error.to_string())]),
            Error::TooMany(_) => Self::conflict(error.to_string()),
            Error::UnknownLabels(labels) => {
                let names: Vec<String> = labels.iter().map(LabelId::to_string).collect();
                unknown_labels(&names)
            }
            Error::NotFound => Self::not_found("a live query of this number with results"),
            Error::Bus(error) => Self::unavailable(format!("the bus does not work: {error}")),
            Error::Store(error) => error.into(),
        }
    }
}
