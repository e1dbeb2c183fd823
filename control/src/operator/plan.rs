//! What applying documents would change. Pure: from what the store holds and what is wanted to the list of changes.
//!
//! Invariant: a plan is made for all documents together and refused as a whole, so nothing is half applied because the
//! last document was wrong.

use std::collections::{BTreeMap, BTreeSet};

use fleet_protocol::secret::{MASK, Secret};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::fault::Reason;
use super::pack;
use super::spec::{self, Specs};
use crate::model::enrollment::EnrollSecret;
use crate::model::label::{LabelSpec, LabelType};
use crate::model::pack::PackSpec;
use crate::model::query::QuerySpec;

/// What the store holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Current {
    pub(super) queries: BTreeMap<String, QuerySpec>,
    pub(super) packs: BTreeMap<String, PackSpec>,
    /// Manual ones with the identifiers of their members, sorted.
    pub(super) labels: BTreeMap<String, LabelSpec>,
    pub(super) agent_options: Value,
    pub(super) sections: Map<String, Value>,
    pub(super) secrets: Vec<EnrollSecret>,
}

/// One document's effect.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Change {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) action: Action,
    /// The document as it is; null when there is none.
    pub(super) before: Value,
    /// The document as it would be.
    pub(super) after: Value,
}

/// The kind of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Query,
    Label,
    Pack,
    Config,
    EnrollSecret,
}

/// What applying does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Action {
    Create,
    Replace,
    None,
}

impl Change {
    fn of(kind: Kind, name: &str, before: Option<Value>, after: Value) -> Self {
        let action = match &before {
            None => Action::Create,
            Some(before) if *before == after => Action::None,
            Some(_) => Action::Replace,
        };
        Self {
            kind,
            name: name.to_owned(),
            action,
            before: before.unwrap_or_default(),
            after,
        }
    }

    /// How problems call it.
    pub(super) fn subject(&self) -> String {
        match self.kind {
            Kind::Query => format!("query {:?}", self.name),
            Kind::Label => format!("label {:?}", self.name),
            Kind::Pack => format!("pack {:?}", self.name),
            Kind::Config => "config".into(),
            Kind::EnrollSecret => "enroll_secret".into(),
        }
    }
}

/// Checked changes, one for each document, in the order in which they are made.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) changes: Vec<Change>,
    /// The new enroll secrets, when they change.
    pub(super) secrets: Option<Vec<Secret>>,
    pub(super) warnings: Vec<String>,
    /// Everything as it would be.
    pub(super) after: Current,
}

/// Plans, or names everything that does not fit.
pub(super) fn plan(specs: Specs, current: &Current) -> Result<Plan, Vec<Reason>> {
    let mut plan = Plan {
        after: current.clone(),
        warnings: specs.warnings,
        ..Plan::default()
    };
    let mut problems = Vec::new();
    for query in specs.queries {
        plan.query(query);
    }
    for label in specs.labels {
        plan.label(label, &mut problems);
    }
    for pack in specs.packs {
        plan.pack(pack, &mut problems);
    }
    if let Some(patch) = specs.config {
        let before = plan.after.config_document();
        if let Some(options) = patch.agent_options {
            plan.after.agent_options = options;
        }
        plan.after.sections.extend(patch.sections);
        let is_set = |section: &Value| section.as_object().is_none_or(|texts| !texts.is_empty());
        plan.after.sections.retain(|_, section| is_set(section));
        let after = plan.after.config_document();
        plan.changes
            .push(Change::of(Kind::Config, "", Some(before), after));
    }
    if let Some(secrets) = specs.secrets {
        plan.secrets(secrets);
    }
    if problems.is_empty() {
        Ok(plan)
    } else {
        Err(problems)
    }
}

impl Plan {
    /// Whether nothing would change.
    pub(super) fn is_empty(&self) -> bool {
        self.changes
            .iter()
            .all(|change| change.action == Action::None)
    }

    /// Names of the documents of a kind that change.
    pub(super) fn changed(&self, kind: Kind) -> impl Iterator<Item = &str> {
        self.changes
            .iter()
            .filter(move |change| change.kind == kind && change.action != Action::None)
            .map(|change| change.name.as_str())
    }

    fn query(&mut self, spec: QuerySpec) {
        let before = self.after.queries.get(&spec.name).map(spec::query_document);
        let after = spec::query_document(&spec);
        self.changes
            .push(Change::of(Kind::Query, &spec.name, before, after));
        self.after.queries.insert(spec.name.clone(), spec);
    }

    fn label(&mut self, mut spec: LabelSpec, problems: &mut Vec<Reason>) {
        let present = self.after.labels.get(&spec.name);
        if let Some(hosts) = &mut spec.hosts {
            let sorted: BTreeSet<_> = std::mem::take(hosts).into_iter().collect();
            hosts.extend(sorted);
        } else {
            spec.hosts = present.and_then(|present| present.hosts.clone());
        }
        let before = present.map(spec::label_document);
        let after = spec::label_document(&spec);
        let change = Change::of(Kind::Label, &spec.name, before, after);
        let problem = match present {
            None if spec.label_type == LabelType::Builtin => {
                Some("there is no such built-in label")
            }
            Some(present)
                if present.label_type == LabelType::Builtin && change.action != Action::None =>
            {
                Some("is built in and cannot be changed")
            }
            Some(present) if present.label_type != spec.label_type => {
                Some("label_type cannot be changed")
            }
            Some(present) if present.label_membership_type != spec.label_membership_type => {
                Some("label_membership_type cannot be changed; delete the label and make it again")
            }
            _ => None,
        };
        if let Some(problem) = problem {
            problems.push(Reason::new(change.subject(), problem));
        }
        self.changes.push(change);
        self.after.labels.insert(spec.name.clone(), spec);
    }

    fn pack(&mut self, spec: PackSpec, problems: &mut Vec<Reason>) {
        let before = self.after.packs.get(&spec.name).map(pack::document);
        let after = pack::document(&spec);
        let change = Change::of(Kind::Pack, &spec.name, before, after);
        let missing_queries = spec
            .queries
            .iter()
            .filter(|query| query.sql.is_none() && !self.after.queries.contains_key(&query.query))
            .map(|query| format!("query {:?} does not exist", query.query));
        let missing_labels = spec
            .targets
            .labels
            .iter()
            .filter(|label| !self.after.labels.contains_key(*label))
            .map(|label| format!("label {label:?} does not exist"));
        for reason in missing_queries.chain(missing_labels) {
            problems.push(Reason::new(change.subject(), reason));
        }
        if spec.targets.labels.is_empty() && change.action != Action::None {
            let subject = change.subject();
            self.warnings
                .push(format!("{subject} targets no label, so no host gets it"));
        }
        self.changes.push(change);
        self.after.packs.insert(spec.name.clone(), spec);
    }

    fn secrets(&mut self, secrets: Vec<Secret>) {
        let old: Vec<_> = self.after.secrets.iter().map(|old| &old.secret).collect();
        let is_same =
            old.len() == secrets.len() && secrets.iter().all(|secret| old.contains(&secret));
        // Masked, because what a dry run shows ends in terminals, logs and tickets.
        let masked = |lines: Vec<String>| {
            let lines: Vec<_> = lines.iter().map(|line| json!({"secret": line})).collect();
            json!({ "secrets": lines })
        };
        let before = old.iter().enumerate().map(|(index, secret)| {
            let is_kept = secrets.contains(secret);
            let fate = if is_kept { "kept" } else { "removed" };
            format!("{MASK} ({fate}, {})", index + 1)
        });
        let kept = before.clone().filter(|line| line.contains("kept"));
        let added = secrets
            .iter()
            .filter(|secret| !old.contains(secret))
            .count();
        let added = (1..=added).map(|index| format!("{MASK} (new, {index})"));
        let after = masked(kept.chain(added).collect());
        let before = masked(before.collect());
        let change = Change::of(Kind::EnrollSecret, "", Some(before), after);
        self.changes.push(change);
        if !is_same {
            self.secrets = Some(secrets);
        }
    }
}

impl Current {
    /// The configuration as a document.
    pub(super) fn config_document(&self) -> Value {
        let mut document = Map::new();
        document.insert("agent_options".into(), self.agent_options.clone());
        document.extend(self.sections.clone());
        Value::Object(document)
    }

    /// Everything as it is after the first `count` changes of `plan`.
    pub(super) fn after(&self, plan: &Plan, count: usize) -> Self {
        let mut state = self.clone();
        for change in plan.changes.iter().take(count) {
            let name = &change.name;
            let after = &plan.after;
            match change.kind {
                Kind::Query => copy(&after.queries, &mut state.queries, name),
                Kind::Label => copy(&after.labels, &mut state.labels, name),
                Kind::Pack => copy(&after.packs, &mut state.packs, name),
                Kind::Config => state.agent_options = after.agent_options.clone(),
                Kind::EnrollSecret => {}
            }
        }
        state
    }
}

fn copy<T: Clone>(from: &BTreeMap<String, T>, to: &mut BTreeMap<String, T>, name: &str) {
    if let Some(spec) = from.get(name) {
        to.insert(name.to_owned(), spec.clone());
    }
}

/// The first change with which `check` fails, and its words; `None` when all fit. A change can only add, so the failures
/// form a tail and bisecting finds its head.
pub(super) fn culprit(
    current: &Current,
    plan: &Plan,
    check: impl Fn(&Current) -> Result<(), String>,
) -> Option<Reason> {
    let mut reason = check(&plan.after).err()?;
    let (mut fitting, mut failing) = (0, plan.changes.len());
    while failing - fitting > 1 {
        let middle = fitting.midpoint(failing);
        match check(&current.after(plan, middle)) {
            Ok(()) => fitting = middle,
            Err(found) => {
                reason = found;
                failing = middle;
            }
        }
    }
    let subject = plan
        .changes
        .get(failing.saturating_sub(1))
        .map(Change::subject);
    Some(Reason::new(
        subject.unwrap_or_else(|| "base".into()),
        reason,
    ))
}
