//! Labels, queries, packs, agent options and enroll secrets: few rows, read whole, each compared by its name.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::mapping::{self, Drafts};
use super::{ImportTally, Job, Trouble};
use crate::model::label::{LabelId, LabelSpec, LabelType};
use crate::model::pack::PackSpec;
use crate::model::query::QuerySpec;
use crate::operator::draft;

/// Specs of one transaction.
const SPECS_PER_CALL: usize = 200;

/// What becomes of one thing that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Add,
    Same,
    Replace,
    Keep,
}

impl Verdict {
    fn of<T: PartialEq>(present: Option<&T>, wanted: &T, replaces: bool) -> Self {
        match present {
            None => Self::Add,
            Some(present) if present == wanted => Self::Same,
            Some(_) if replaces => Self::Replace,
            Some(_) => Self::Keep,
        }
    }

    fn is_written(self) -> bool {
        matches!(self, Self::Add | Self::Replace)
    }
}

/// Names of labels.
struct Labels {
    /// That there are, or would be.
    names: BTreeSet<String>,
    /// That stay as they are here, although the source's differ.
    kept: BTreeSet<String>,
}

impl ImportTally {
    pub(super) fn of(kind: &'static str, found: usize) -> Self {
        Self {
            kind,
            found: u64::try_from(found).unwrap_or(u64::MAX),
            ..Self::default()
        }
    }

    fn count(&mut self, verdict: Verdict) {
        *match verdict {
            Verdict::Add => &mut self.added,
            Verdict::Same => &mut self.same,
            Verdict::Replace => &mut self.replaced,
            Verdict::Keep => &mut self.kept,
        } += 1;
    }
}

impl Job<'_> {
    /// Returns our labels by the source's ids: those whose members are to be copied.
    pub(super) async fn copy_settings(&mut self) -> Result<BTreeMap<i64, LabelId>, Trouble> {
        let settings = self.source.settings().await?;
        let present = self.store.label_specs().await?;
        let own_builtins: BTreeSet<String> = present
            .iter()
            .filter(|label| label.spec.label_type == LabelType::Builtin)
            .map(|label| label.spec.name.clone())
            .collect();
        let drafts = mapping::draft(&settings, &own_builtins);
        for note in &drafts.notes {
            self.report.note(note.clone());
        }
        let unsaved = settings
            .queries
            .iter()
            .filter(|query| query.saved == Some(0));
        let unsaved = unsaved.count();
        if unsaved > 0 {
            self.report.note(format!(
                "{unsaved} queries were run once and never saved; left out"
            ));
        }
        let Drafts {
            labels,
            queries,
            packs,
            config,
            label_names,
            ..
        } = drafts;
        let present = present
            .into_iter()
            .map(|label| (label.spec.name.clone(), label.spec))
            .collect();
        let Labels { names, kept } = self.copy_labels(labels, &present).await?;
        let known_queries = self.copy_queries(queries).await?;
        self.copy_packs(packs, &names, &known_queries).await?;
        self.copy_options(config).await?;
        let known: BTreeMap<String, LabelId> = self
            .store
            .label_specs()
            .await?
            .into_iter()
            .map(|label| (label.spec.name, label.id))
            .collect();
        let ids = label_names.into_iter().filter_map(|(id, name)| {
            let ours = known.get(&name).copied()?;
            (ours != LabelId::ALL_HOSTS && !kept.contains(&name)).then_some((id, ours))
        });
        Ok(ids.collect())
    }

    async fn copy_labels(
        &mut self,
        documents: Vec<Value>,
        present: &BTreeMap<String, LabelSpec>,
    ) -> Result<Labels, Trouble> {
        let mut tally = ImportTally::of("labels", documents.len());
        let mut labels = Labels {
            names: present.keys().cloned().collect(),
            kept: BTreeSet::new(),
        };
        let mut written = Vec::new();
        for document in documents {
            let Some(spec) = self.checked(draft::label(document), &mut tally) else {
                continue;
            };
            let ours = present.get(&spec.name);
            let is_builtin = ours.is_some_and(|ours| ours.label_type == LabelType::Builtin);
            let replaces = self.options.replaces && !is_builtin;
            let verdict = Verdict::of(ours, &spec, replaces);
            tally.count(verdict);
            labels.names.insert(spec.name.clone());
            if verdict.is_written() {
                written.push(spec);
            } else if verdict == Verdict::Keep {
                labels.kept.insert(spec.name);
            }
        }
        self.report.tallies.push(tally);
        if !self.options.is_dry_run {
            for part in written.chunks(SPECS_PER_CALL) {
                self.store.apply_labels(part).await?;
            }
        }
        Ok(labels)
    }

    /// Returns the names of all queries that there are, or would be.
    async fn copy_queries(&mut self, documents: Vec<Value>) -> Result<BTreeSet<String>, Trouble> {
        let present: BTreeMap<String, QuerySpec> = self
            .store
            .queries()
            .await?
            .into_iter()
            .map(|query| (query.spec.name.clone(), query.spec))
            .collect();
        let mut tally = ImportTally::of("queries", documents.len());
        let mut names: BTreeSet<String> = present.keys().cloned().collect();
        let mut written = Vec::new();
        for document in documents {
            let Some(spec) = self.checked(draft::query(document), &mut tally) else {
                continue;
            };
            let verdict = Verdict::of(present.get(&spec.name), &spec, self.options.replaces);
            tally.count(verdict);
            names.insert(spec.name.clone());
            if verdict.is_written() {
                written.push(spec);
            }
        }
        self.report.tallies.push(tally);
        if !self.options.is_dry_run {
            for part in written.chunks(SPECS_PER_CALL) {
                self.store.apply_queries(part).await?;
            }
        }
        Ok(names)
    }

    async fn copy_packs(
        &mut self,
        documents: Vec<Value>,
        labels: &BTreeSet<String>,
        queries: &BTreeSet<String>,
    ) -> Result<(), Trouble> {
        let present: BTreeMap<String, PackSpec> = self
            .store
            .packs()
            .await?
            .into_iter()
            .map(|pack| (pack.spec.name.clone(), sorted(pack.spec)))
            .collect();
        let mut tally = ImportTally::of("packs", documents.len());
        let mut written = Vec::new();
        for document in documents {
            let Some(mut spec) = self.checked(draft::pack(document), &mut tally) else {
                continue;
            };
            self.drop_dead_references(&mut spec, labels, queries);
            let spec = sorted(spec);
            let verdict = Verdict::of(present.get(&spec.name), &spec, self.options.replaces);
            tally.count(verdict);
            if verdict.is_written() {
                written.push(spec);
            }
        }
        self.report.tallies.push(tally);
        if !self.options.is_dry_run {
            for part in written.chunks(SPECS_PER_CALL) {
                self.store.apply_packs(part).await?;
            }
        }
        Ok(())
    }

    /// To labels and queries that were left out.
    fn drop_dead_references(
        &mut self,
        spec: &mut PackSpec,
        labels: &BTreeSet<String>,
        queries: &BTreeSet<String>,
    ) {
        let name = spec.name.clone();
        spec.targets.labels.retain(|label| {
            let is_there = labels.contains(label);
            if !is_there {
                let text = format!("pack {name:?}: there is no label {label:?}; target left out");
                self.report.note(text);
            }
            is_there
        });
        spec.queries.retain(|query| {
            let is_there = query.sql.is_some() || queries.contains(&query.query);
            if !is_there {
                let query = &query.query;
                let text = format!("pack {name:?}: there is no query {query:?}; left out");
                self.report.note(text);
            }
            is_there
        });
    }

    async fn copy_options(&mut self, document: Option<Value>) -> Result<(), Trouble> {
        let mut tally = ImportTally::of("agent options", usize::from(document.is_some()));
        if let Some(document) = document
            && let Some((options, warnings)) =
                self.checked(draft::agent_options(document), &mut tally)
        {
            for warning in warnings {
                self.report.note(warning);
            }
            let present = self.store.agent_options().await?;
            let is_set = present
                .as_object()
                .is_some_and(|members| !members.is_empty());
            let present = is_set.then_some(&present);
            let verdict = Verdict::of(present, &options, self.options.replaces);
            tally.count(verdict);
            if verdict.is_written() && !self.options.is_dry_run {
                self.store.set_agent_options(&options).await?;
            }
        }
        self.report.tallies.push(tally);
        Ok(())
    }

    pub(super) async fn copy_secrets(&mut self) -> Result<(), Trouble> {
        let found = self.source.secrets().await?;
        let mut tally = ImportTally::of("enroll secrets", found.len());
        let present: BTreeSet<_> = self
            .store
            .enroll_secrets()
            .await?
            .into_iter()
            .map(|present| present.secret)
            .collect();
        let mut new = Vec::new();
        for secret in &found {
            let Some(secret) = self.checked(draft::secret(secret), &mut tally) else {
                continue;
            };
            if present.contains(&secret) {
                tally.same += 1;
            } else {
                tally.added += 1;
                new.push(secret);
            }
        }
        self.report.tallies.push(tally);
        if !self.options.is_dry_run && !new.is_empty() {
            self.store.add_enroll_secrets(&new).await?;
        }
        Ok(())
    }

    /// What is wrong goes to the notes.
    fn checked<T>(
        &mut self,
        checked: Result<T, Vec<String>>,
        tally: &mut ImportTally,
    ) -> Option<T> {
        match checked {
            Ok(value) => Some(value),
            Err(reasons) => {
                tally.left_out += 1;
                for reason in reasons {
                    self.report.note(format!("{reason}; left out"));
                }
                None
            }
        }
    }
}

/// The store gives targets by the ids of labels, which nobody chose.
fn sorted(mut pack: PackSpec) -> PackSpec {
    pack.targets.labels.sort_unstable();
    pack.targets.labels.dedup();
    pack
}
