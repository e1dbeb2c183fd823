//! Live queries whose answer is the results: the request waits until every host that is online has answered, or for
//! `osquery.live_query_rest_period`. The campaign ends with the request, whichever way that goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use fleet_protocol::ids::HostId;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::actor::Actor;
use super::campaigns::{self, Question};
use super::fault::Fault;
use super::live_request::{self, Choice};
use super::live_room::Room;
use super::payload::Payload;
use super::viewing::Looking;
use super::{Office, results_message};
use crate::campaigns::{Campaigns, Event};
use crate::model::campaign::{CampaignId, Targets};
use crate::model::query::QueryId;

type Ask = State<Arc<Office>>;

/// Queries that one request runs.
const QUERIES_MAX: usize = 32;
/// What a host gets instead of its rows when there is no room for them.
const TOO_LARGE: &str = "the answer is too large for this host's rows";
/// How often it is looked whether everybody who is online has answered.
const LOOK_INTERVAL: std::time::Duration = std::time::Duration::from_millis(500);

/// What one host said.
#[derive(Debug, Serialize)]
struct HostAnswer {
    host_id: HostId,
    rows: Box<RawValue>,
    error: Option<String>,
}

/// The answer of one saved query, the bare rows in it as they came: no tree is made of them.
#[derive(Serialize)]
struct SavedAnswer<'a> {
    query_id: QueryId,
    targeted_host_count: u64,
    responded_host_count: usize,
    results: Vec<&'a HostAnswer>,
}

#[derive(Serialize)]
struct SeveralAnswers<'a> {
    summary: Summary,
    live_query_results: Vec<QueryAnswers<'a>>,
}

#[derive(Serialize)]
struct Summary {
    targeted_host_count: u64,
    responded_host_count: usize,
}

#[derive(Serialize)]
struct QueryAnswers<'a> {
    query_id: QueryId,
    results: Vec<&'a HostAnswer>,
}

/// The answer of one host that was asked alone.
#[derive(Serialize)]
struct OneAnswer {
    host_id: HostId,
    query: String,
    status: &'static str,
    error: Option<String>,
    rows: Option<Box<RawValue>>,
    targeted_host_count: u64,
    responded_host_count: u8,
}

/// What came of one query.
#[derive(Debug, Default)]
struct Answers {
    targeted: u64,
    /// Targets that were online at the end.
    online: u64,
    results: BTreeMap<HostId, HostAnswer>,
}

impl Answers {
    fn results(&self) -> Vec<&HostAnswer> {
        self.results.values().collect()
    }
}

/// Ends the campaign when nobody waits for it any more.
struct Ending {
    campaigns: Arc<Campaigns>,
    id: CampaignId,
    is_done: bool,
}

impl Ending {
    async fn now(mut self) {
        self.is_done = true;
        stop(&self.campaigns, self.id).await;
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let (campaigns, id) = (Arc::clone(&self.campaigns), self.id);
        tokio::spawn(async move { stop(&campaigns, id).await });
    }
}

async fn stop(campaigns: &Campaigns, id: CampaignId) {
    if let Err(error) = campaigns.stop(id).await {
        // It expires by itself.
        tracing::warn!(%id, %error, "a live query could not be stopped");
    }
}

/// `POST /queries/{id}/run`, with `{host_ids}`
pub(super) async fn run_saved(
    State(office): Ask,
    actor: Actor,
    Path(id): Path<String>,
    Payload(body): Payload,
) -> Result<Response, Fault> {
    let missing = || Fault::not_found(format_args!("query {id:?}"));
    let id = id.parse().map(QueryId).map_err(|_| missing())?;
    let (hosts, _) = live_request::of_saved(body)?;
    let question = campaigns::question(&office, &actor, Choice::Saved(id)).await?;
    let room = Room::new(&office.live_room);
    let answers = ask(&office, &actor, question, hosts, &room).await?;
    let answer = SavedAnswer {
        query_id: id,
        targeted_host_count: answers.targeted,
        responded_host_count: answers.results.len(),
        results: answers.results(),
    };
    Ok(Json(answer).into_response())
}

/// Parameters of the older way, which may stand in the body as well.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Parameters {
    query_ids: String,
    host_ids: String,
}

/// `GET /queries/run`: several saved queries at once.
pub(super) async fn run_several(
    State(office): Ask,
    actor: Actor,
    Query(parameters): Query<Parameters>,
    body: Bytes,
) -> Result<Response, Fault> {
    let (mut hosts, mut queries) = (BTreeSet::new(), BTreeSet::new());
    if !body.is_empty() {
        let body = serde_json::from_slice(&body)
            .map_err(|error| Fault::unreadable(format!("the body is not JSON: {error}")))?;
        (hosts, queries) = live_request::of_saved(body)?;
    }
    hosts.extend(live_request::numbers("host_ids", &parameters.host_ids)?);
    queries.extend(live_request::numbers("query_ids", &parameters.query_ids)?);
    if queries.is_empty() || queries.len() > QUERIES_MAX {
        let reason = format!("must name 1 to {QUERIES_MAX} queries");
        return Err(Fault::parameter("query_ids", reason));
    }
    let room = Room::new(&office.live_room);
    let asked = queries.into_iter().map(|id| {
        let (office, actor, hosts, room) = (&office, &actor, hosts.clone(), &room);
        async move {
            let id = QueryId(id);
            let question = campaigns::question(office, actor, Choice::Saved(id)).await?;
            Ok::<_, Fault>((id, ask(office, actor, question, hosts, room).await?))
        }
    });
    let mut all = Vec::new();
    for answers in join_all(asked).await {
        all.push(answers?);
    }
    let targeted = all.iter().map(|(_, answers)| answers.targeted).max();
    let responded: BTreeSet<&HostId> = all
        .iter()
        .flat_map(|(_, answers)| answers.results.keys())
        .collect();
    let results = all.iter().map(|(id, answers)| QueryAnswers {
        query_id: *id,
        results: answers.results(),
    });
    let answers = SeveralAnswers {
        summary: Summary {
            targeted_host_count: targeted.unwrap_or_default(),
            responded_host_count: responded.len(),
        },
        live_query_results: results.collect(),
    };
    Ok(Json(answers).into_response())
}

/// `POST /hosts/{id}/query`, with `{query}`
pub(super) async fn on_host(
    State(office): Ask,
    actor: Actor,
    Path(id): Path<String>,
    Payload(body): Payload,
) -> Result<Response, Fault> {
    let missing = || Fault::not_found(format_args!("host {id:?}"));
    let id = id.parse().map(HostId).map_err(|_| missing())?;
    on_one(&office, &actor, id, body).await
}

/// `POST /hosts/identifier/{name}/query`
pub(super) async fn on_named_host(
    State(office): Ask,
    actor: Actor,
    Path(name): Path<String>,
    Payload(body): Payload,
) -> Result<Response, Fault> {
    let host = office.deps.store.reports().host_detail(&name).await?;
    let host = host.ok_or_else(|| Fault::not_found(format_args!("host {name:?}")))?;
    on_one(&office, &actor, host.row.id, body).await
}

async fn on_one(
    office: &Arc<Office>,
    actor: &Actor,
    host: HostId,
    body: Value,
) -> Result<Response, Fault> {
    let sql = live_request::of_one_host(body)?;
    let question = campaigns::question(office, actor, Choice::Sql(sql.clone())).await?;
    let room = Room::new(&office.live_room);
    let asked = ask(office, actor, question, [host.0].into(), &room).await;
    let mut answers = asked.map_err(|fault| match fault.is_about("selected") {
        // The only thing that can be wrong with the selection.
        true => Fault::not_found(format_args!("host {host}")),
        false => fault,
    })?;
    let answer = answers.results.remove(&host);
    let is_online = answer.is_some() || answers.online > 0;
    let error = match &answer {
        Some(answer) => answer.error.clone(),
        None if is_online => Some("the host did not answer in time".into()),
        None => None,
    };
    let answer = OneAnswer {
        host_id: host,
        query: sql,
        status: if is_online { "online" } else { "offline" },
        responded_host_count: u8::from(is_online && error.is_none()),
        error,
        rows: answer.map(|answer| answer.rows),
        targeted_host_count: answers.targeted,
    };
    Ok(Json(answer).into_response())
}

/// Runs a query on hosts, and waits for what they say.
async fn ask(
    office: &Arc<Office>,
    actor: &Actor,
    question: Question,
    hosts: BTreeSet<u32>,
    room: &Room,
) -> Result<Answers, Fault> {
    // Such a request is a viewer, and as many of them are served.
    let _permit = office.viewer_permit()?;
    let targets = Targets {
        hosts,
        ..Targets::default()
    };
    let until = Instant::now() + office.deps.config.osquery.live_query_rest_period;
    let (campaign, _) = campaigns::start(office, actor, question, &targets).await?;
    let ending = Ending {
        campaigns: Arc::clone(&office.deps.agents.campaigns),
        id: campaign.id,
        is_done: false,
    };
    let mut answers = Answers {
        targeted: campaign.target_count,
        ..Answers::default()
    };
    let collected = timeout_at(until, collect(office, campaign.id, room, &mut answers)).await;
    ending.now().await;
    match collected {
        Ok(Err(fault)) => Err(fault),
        // Whoever has not answered by then is not in the answer.
        Ok(Ok(())) | Err(_) => Ok(answers),
    }
}

/// Until everybody who is online has answered.
async fn collect(
    office: &Office,
    campaign: CampaignId,
    room: &Room,
    answers: &mut Answers,
) -> Result<(), Fault> {
    let campaigns = &office.deps.agents.campaigns;
    let mut looking = Looking::begin(campaigns.view(campaign, None).await?);
    loop {
        let progress = campaigns.progress(campaign).await?;
        answers.online = progress.counts.online;
        // Hosts whose rows were left out have answered, but are in no event.
        let told = u64::try_from(answers.results.len()).unwrap_or(u64::MAX);
        let answered = told.saturating_add(progress.tally.hosts_cut);
        if answered >= answers.online.min(answers.targeted) {
            return Ok(());
        }
        let event = tokio::select! {
            event = looking.next() => event,
            () = sleep_until(Instant::now() + LOOK_INTERVAL) => continue,
        };
        match event {
            Some(Event::Results(results)) => {
                let hosts: Vec<HostId> = results.iter().map(|result| result.host).collect();
                let names = office.names.of(&hosts).await;
                for (result, name) in results.iter().zip(&names) {
                    let (mut rows, mut error) = results_message::rows_and_error(name, result);
                    let bytes = rows.get().len() + error.as_ref().map_or(0, String::len);
                    if !room.take(bytes) {
                        rows = RawValue::from_string("[]".into()).unwrap_or_default();
                        error = Some(TOO_LARGE.into());
                    }
                    let answer = HostAnswer {
                        host_id: result.host,
                        rows,
                        error,
                    };
                    answers.results.insert(result.host, answer);
                }
            }
            Some(Event::Lost { .. }) => {}
            Some(Event::Ended(_)) | None => return Ok(()),
        }
    }
}
