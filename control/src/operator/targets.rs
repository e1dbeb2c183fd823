//! Whom a query or a pack could be for: search and counts, as Fleet's console asks.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use fleet_protocol::ids::HostId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::{Fault, Reason};
use super::payload::Payload;
use super::{Office, hosts, labels, specs};
use crate::agents::now;
use crate::campaigns::Groups;
use crate::model::campaign::Targets;
use crate::model::host::{HostFilter, HostOrder};
use crate::model::label::{Label, LabelId};

/// Hosts that one search shows.
const HOSTS_SHOWN: u32 = 10;
/// Hosts that a request may name.
const SELECTED_MAX: usize = 100_000;

type Reply = Result<Json<Value>, Fault>;

/// The body of both requests.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Search {
    /// Part of a name; empty or absent: any.
    query: Option<String>,
    selected: Option<Selected>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Selected {
    hosts: Option<Vec<HostId>>,
    labels: Option<Vec<LabelId>>,
    teams: Option<Vec<u32>>,
}

impl Selected {
    fn targets(self) -> Result<Targets, Fault> {
        if self.teams.is_some_and(|teams| !teams.is_empty()) {
            let reason = "teams are not supported by this server";
            return Err(Fault::invalid(vec![Reason::new("selected", reason)]));
        }
        let hosts: BTreeSet<u32> = self
            .hosts
            .into_iter()
            .flatten()
            .map(|host| host.0)
            .collect();
        if hosts.len() > SELECTED_MAX {
            let reason = format!("lists {} hosts; at most {SELECTED_MAX} fit", hosts.len());
            return Err(Fault::invalid(vec![Reason::new("selected", reason)]));
        }
        Ok(Targets {
            hosts,
            labels: self.labels.into_iter().flatten().collect(),
        })
    }
}

/// `POST /targets`: hosts and labels that match and are not selected yet, and how many hosts are selected.
pub(super) async fn search(State(office): State<Arc<Office>>, body: Payload) -> Reply {
    let search: Search = body.read()?;
    let known = specs::label_rows(&office).await?;
    let targets = search.selected.unwrap_or_default().targets()?;
    let now = now();
    let filter = HostFilter {
        text: search.query.filter(|text| !text.is_empty()),
        per_page: HOSTS_SHOWN + u32::try_from(targets.hosts.len()).unwrap_or(0).min(1000),
        order: HostOrder::Hostname,
        now,
        ..HostFilter::default()
    };
    let rows = hosts::page(&office, &filter).await?;
    let shown: Vec<Value> = rows
        .iter()
        .filter(|row| !targets.hosts.contains(&row.id.0))
        .take(usize::try_from(HOSTS_SHOWN).unwrap_or(usize::MAX))
        .map(|row| Value::Object(hosts::body(&office, row, now)))
        .collect();
    let found: Vec<Value> = labels::matching(&known, &filter)
        .iter()
        .filter(|label| !targets.labels.contains(&label.id))
        .map(labels::body)
        .collect();
    let mut answer = counts(&office, &targets, &known).await?;
    if let Some(members) = answer.as_object_mut() {
        let targets = json!({"hosts": shown, "labels": found, "teams": []});
        members.insert("targets".into(), targets);
    }
    Ok(Json(answer))
}

/// `POST /targets/count`
pub(super) async fn count(State(office): State<Arc<Office>>, body: Payload) -> Reply {
    let search: Search = body.read()?;
    let known = office.deps.store.reports().label_specs().await?;
    let targets = search.selected.unwrap_or_default().targets()?;
    Ok(Json(counts(&office, &targets, &known).await?))
}

async fn counts(office: &Office, targets: &Targets, known: &[Label]) -> Result<Value, Fault> {
    let kind_of = |id: LabelId| {
        let label = known.iter().find(|label| label.id == id)?;
        Some(label.spec.label_type)
    };
    let targets = Groups::of(targets, kind_of).map_err(|unknown| {
        let reason = |id: &LabelId| Reason::new("selected", format!("label {id} does not exist"));
        Fault::invalid(unknown.iter().map(reason).collect())
    })?;
    let counts = office.deps.agents.target_counts(targets, now()).await;
    let counts = counts.ok_or_else(Fault::not_loaded)?;
    Ok(json!({
        "targets_count": counts.enrolled,
        "targets_online": counts.online,
        "targets_offline": counts.offline,
        "targets_missing_in_action": counts.mia,
    }))
}
