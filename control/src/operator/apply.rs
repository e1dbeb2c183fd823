//! Applies documents: reads, plans and checks all of them, then writes what changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::Uri;
use serde::Serialize;
use serde_json::{Value, json};

use super::actor::Actor;
use super::audit::Deed;
use super::fault::{Fault, Reason};
use super::payload::{ApplyParameters, Payload};
use super::plan::{self, Action, Change, Current, Kind, Plan};
use super::roles::Least;
use super::spec::{self, Documents, Specs};
use super::{Deps, Office};
use crate::agents::Agents;
use crate::host_config;
use crate::model::host::HostFilter;
use crate::model::label::{Label, LabelId, LabelMembership, LabelSpec};
use crate::model::pack::{Pack, PackId, PackSpec};
use crate::model::query::{Query as Row, QueryId, QuerySpec};
use crate::store;

/// Hosts read at once while walking through a label.
const HOSTS_PER_PAGE: u32 = 10_000;

/// What applying did, or would do.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    changes: Vec<Change>,
    pub(super) warnings: Vec<String>,
}

type Reply = Result<Json<Outcome>, Fault>;
type Ask = (State<Arc<Office>>, Query<ApplyParameters>, Payload);

/// `POST /spec`: documents of every kind together.
pub(super) async fn all(actor: Actor, (State(office), Query(parameters), body): Ask) -> Reply {
    let documents: Documents = serde_json::from_value(body.0).map_err(|error| {
        Fault::unreadable(format!("the body is not a set of documents: {error}"))
    })?;
    if documents.config.is_some() {
        actor.must_be(Least::Admin)?;
    }
    apply(&office, &actor, documents, &parameters).await
}

/// `POST /spec/queries`
pub(super) async fn queries(actor: Actor, (State(office), Query(parameters), body): Ask) -> Reply {
    let documents = Documents {
        queries: body.specs()?,
        ..Documents::default()
    };
    apply(&office, &actor, documents, &parameters).await
}

/// `POST /spec/packs`
pub(super) async fn packs(actor: Actor, (State(office), Query(parameters), body): Ask) -> Reply {
    let documents = Documents {
        packs: body.specs()?,
        ..Documents::default()
    };
    apply(&office, &actor, documents, &parameters).await
}

/// `POST /spec/labels`
pub(super) async fn labels(actor: Actor, (State(office), Query(parameters), body): Ask) -> Reply {
    let documents = Documents {
        labels: body.specs()?,
        ..Documents::default()
    };
    apply(&office, &actor, documents, &parameters).await
}

/// `PATCH /config`
pub(super) async fn config(actor: Actor, (State(office), Query(parameters), body): Ask) -> Reply {
    let documents = Documents {
        config: Some(body.0),
        ..Documents::default()
    };
    apply(&office, &actor, documents, &parameters).await
}

/// `POST /spec/options`: agent options as they were called before Fleet 4.
pub(super) async fn options(actor: Actor, (State(office), Query(parameters), body): Ask) -> Reply {
    let documents = Documents {
        config: Some(json!({ "agent_options": body.only("spec")? })),
        ..Documents::default()
    };
    apply(&office, &actor, documents, &parameters).await
}

/// `POST /spec/enroll_secret`
pub(super) async fn enroll_secret(
    actor: Actor,
    (State(office), Query(parameters), body): Ask,
) -> Reply {
    let documents = Documents {
        enroll_secret: Some(body.only("spec")?),
        ..Documents::default()
    };
    apply(&office, &actor, documents, &parameters).await
}

/// `POST /spec/teams` and `/spec/policies`: what Fleet has and this server has not. An empty list does no harm.
pub(super) async fn unsupported(uri: Uri, body: Payload) -> Result<Json<Value>, Fault> {
    if body.specs()?.is_empty() {
        return Ok(Json(json!({})));
    }
    let kind = uri.path().rsplit('/').next().unwrap_or_default();
    let reason = format!("{kind} are not supported by this server");
    Err(Fault::invalid(vec![Reason::new("specs", reason)]))
}

async fn apply(
    office: &Office,
    actor: &Actor,
    documents: Documents,
    parameters: &ApplyParameters,
) -> Reply {
    let outcome = apply_documents(office, actor, documents, parameters.is_dry_run()?).await?;
    Ok(Json(outcome))
}

/// Applies documents, or tells only what would change.
pub(super) async fn apply_documents(
    office: &Office,
    actor: &Actor,
    documents: Documents,
    is_dry_run: bool,
) -> Result<Outcome, Fault> {
    let mut specs = spec::read(documents).map_err(Fault::invalid)?;
    let _turn = office.turn.lock().await;
    let deps = &office.deps;
    let current = load(&deps.store, &mut specs).await?;
    let mut plan = plan::plan(specs, &current).map_err(Fault::invalid)?;
    if !plan.is_empty() {
        plan = compose(current, plan).await?;
    }
    if !is_dry_run && !plan.is_empty() {
        carry_out(office, actor, &mut plan).await?;
        for change in &mut plan.changes {
            (change.before, change.after) = (Value::Null, Value::Null);
        }
    }
    Ok(Outcome {
        changes: plan.changes,
        warnings: plan.warnings,
    })
}

/// Refuses what agents would not take. Composing is computation, so it is done beside the runtime.
async fn compose(current: Current, plan: Plan) -> Result<Plan, Fault> {
    let check = |state: &Current| Agents::compose_check(&composable(state));
    let composed = tokio::task::spawn_blocking(move || {
        let culprit = plan::culprit(&current, &plan, check);
        (plan, culprit)
    });
    match composed.await {
        Ok((plan, None)) => Ok(plan),
        Ok((_, Some(reason))) => Err(Fault::invalid(vec![reason])),
        Err(error) => Err(Fault::failed(format!(
            "composing the configuration failed: {error}"
        ))),
    }
}

/// What the store holds, as far as `specs` need it. Replaces hosts of manual labels by their identifiers.
async fn load(store: &store::Store, specs: &mut Specs) -> Result<Current, Fault> {
    let mut current = Current {
        agent_options: store.agent_options().await?,
        sections: store.app_config().await?,
        secrets: store.enroll_secrets().await?,
        ..Current::default()
    };
    for query in store.queries().await? {
        current.queries.insert(query.spec.name.clone(), query.spec);
    }
    for pack in store.packs().await? {
        current.packs.insert(pack.spec.name.clone(), pack.spec);
    }
    for mut label in store.label_specs().await? {
        let wanted = specs
            .labels
            .iter_mut()
            .find(|wanted| wanted.name == label.spec.name);
        if wanted.is_some() && label.spec.label_membership_type == LabelMembership::Manual {
            label.spec.hosts = Some(members(store, label.id).await?);
        }
        current.labels.insert(label.spec.name.clone(), label.spec);
    }
    for wanted in &mut specs.labels {
        let present = current.labels.get(&wanted.name);
        let unknown = resolve(store, present, wanted).await?;
        for host in unknown {
            specs.warnings.push(format!(
                "label {:?}: no host is called {host:?}; left out",
                wanted.name
            ));
        }
    }
    Ok(current)
}

/// Identifiers of a label's hosts, sorted.
pub(super) async fn members(
    store: &store::Store,
    label: LabelId,
) -> Result<Vec<String>, store::Error> {
    let mut identifiers = BTreeSet::new();
    let mut after = None;
    loop {
        let filter = HostFilter {
            after,
            label: Some(label),
            per_page: HOSTS_PER_PAGE,
            ..HostFilter::default()
        };
        let hosts = store.host_list(&filter).await?;
        let Some(last) = hosts.last() else {
            return Ok(identifiers.into_iter().collect());
        };
        after = Some(last.id);
        identifiers.extend(hosts.into_iter().map(|host| host.identifier));
    }
}

/// Replaces host names and UUIDs in `wanted.hosts` by identifiers; returns those that match no host.
async fn resolve(
    store: &store::Store,
    present: Option<&LabelSpec>,
    wanted: &mut LabelSpec,
) -> Result<Vec<String>, Fault> {
    let Some(hosts) = &mut wanted.hosts else {
        return Ok(Vec::new());
    };
    let members = present.and_then(|present| present.hosts.as_ref());
    let members: BTreeSet<&String> = members.into_iter().flatten().collect();
    let mut unknown = Vec::new();
    for name in std::mem::take(hosts) {
        if members.contains(&name) {
            hosts.push(name);
            continue;
        }
        match store.host_detail(&name).await? {
            Some(host) => hosts.push(host.row.identifier),
            None => unknown.push(name),
        }
    }
    Ok(unknown)
}

/// The same as the composer takes it. Labels that do not exist yet get numbers of their own.
fn composable(state: &Current) -> host_config::Specs {
    let labels: Vec<Label> = (1..)
        .zip(state.labels.values())
        .map(|(id, spec)| Label {
            id: LabelId(id),
            spec: spec.clone(),
            host_count: 0,
            updated_at: Default::default(),
        })
        .collect();
    let resolve = |spec: &PackSpec| {
        let is_targeted = |label: &&Label| spec.targets.labels.contains(&label.spec.name);
        labels
            .iter()
            .filter(is_targeted)
            .map(|label| label.id)
            .collect()
    };
    let packs = (1..)
        .zip(state.packs.values())
        .map(|(id, spec)| Pack {
            id: PackId(id),
            spec: spec.clone(),
            labels: resolve(spec),
            updated_at: Default::default(),
        })
        .collect();
    let queries = (1..)
        .zip(state.queries.values())
        .map(|(id, spec)| Row {
            id: QueryId(id),
            spec: spec.clone(),
            updated_at: Default::default(),
        })
        .collect();
    host_config::Specs {
        agent_options: state.agent_options.clone(),
        packs,
        queries,
        labels,
    }
}

/// Writes what changes, in the order queries, labels, packs, config, enroll secrets, notes it, and wakes every node.
async fn carry_out(office: &Office, actor: &Actor, plan: &mut Plan) -> Result<(), Fault> {
    let deps = &office.deps;
    let mut done = Vec::new();
    let outcome = write(&deps.store, plan, &mut done).await;
    let texts: Vec<&str> = done.iter().map(|(_, text)| text.as_str()).collect();
    let summary = texts.join(", ");
    if !done.is_empty() {
        tracing::info!(documents = summary, "operator applied documents");
        wake(deps).await;
        let is_done = |kind: Kind| done.iter().any(|(done, _)| *done == kind);
        let made = plan.changes.iter().filter(|change| is_done(change.kind));
        let deeds = made.filter_map(deed).collect();
        office.audit.record_all(actor, deeds).await;
    }
    match outcome {
        Ok(unmatched) => {
            plan.warnings.extend(unmatched);
            Ok(())
        }
        Err(error) => Err(Fault::from(error).after(&summary)),
    }
}

/// What the audit log says of a change.
fn deed(change: &Change) -> Option<Deed> {
    let (kind, noun) = match change.kind {
        Kind::Query => ("applied_spec_saved_query", "query"),
        Kind::Label => ("applied_spec_label", "label"),
        Kind::Pack => ("applied_spec_pack", "pack"),
        Kind::Config => ("edited_config", "config"),
        Kind::EnrollSecret => ("edited_enroll_secrets", "enroll_secret"),
    };
    let action = match change.action {
        Action::Create => "create",
        Action::Replace => "replace",
        Action::None => return None,
    };
    let deed = Deed::of(kind).to(noun, &change.name).with("action", action);
    let deed = deed.before(change.before.clone());
    Some(deed.after(change.after.clone()))
}

async fn write(
    store: &store::Store,
    plan: &Plan,
    done: &mut Vec<(Kind, String)>,
) -> Result<Vec<String>, store::Error> {
    let after = &plan.after;
    let queries: Vec<QuerySpec> = pick(plan, Kind::Query, &after.queries);
    if !queries.is_empty() {
        store.apply_queries(&queries).await?;
        done.push((Kind::Query, format!("{} queries", queries.len())));
    }
    let mut warnings = Vec::new();
    let labels: Vec<LabelSpec> = pick(plan, Kind::Label, &after.labels);
    if !labels.is_empty() {
        let unmatched = store.apply_labels(&labels).await?;
        warnings.extend(
            unmatched
                .iter()
                .map(|host| format!("no host is called {host:?}")),
        );
        done.push((Kind::Label, format!("{} labels", labels.len())));
    }
    let packs: Vec<PackSpec> = pick(plan, Kind::Pack, &after.packs);
    if !packs.is_empty() {
        store.apply_packs(&packs).await?;
        done.push((Kind::Pack, format!("{} packs", packs.len())));
    }
    if plan.changed(Kind::Config).next().is_some() {
        store.set_app_config(&after.sections).await?;
        store.set_agent_options(&after.agent_options).await?;
        done.push((Kind::Config, "config".into()));
    }
    if let Some(secrets) = &plan.secrets {
        store.set_enroll_secrets(secrets).await?;
        done.push((Kind::EnrollSecret, "enroll secrets".into()));
    }
    Ok(warnings)
}

fn pick<T: Clone>(plan: &Plan, kind: Kind, from: &std::collections::BTreeMap<String, T>) -> Vec<T> {
    plan.changed(kind)
        .filter_map(|name| from.get(name).cloned())
        .collect()
}

/// Tells every node that something changed. A failure only costs the second until they look by themselves.
pub(super) async fn wake(deps: &Deps) {
    deps.agents.poke();
    if let Ok((_, newest)) = deps.store.change_bounds().await {
        deps.bus.publish_wake(newest);
    }
}
