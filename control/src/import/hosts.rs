//! The walk over the source's hosts: page by page by id, the next page read while one is written.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::source::Page;
use super::{ImportProgress, ImportTally, Job, Trouble};
use crate::model::label::LabelId;
use crate::store::{self, Imported, ImportedHost, Store};

/// Hosts of one page. Servers beside the copy wait for a page's transaction when an agent enrolls.
const PAGE_HOSTS: i64 = 1024;
/// A database that is away for a moment is waited for so many times, each twice as long as before.
const ATTEMPTS_MAX: u32 = 6;
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// A page, ready to be written.
struct Batch {
    hosts: Vec<ImportedHost>,
    /// Hosts that no agent has a key of.
    without_key: u64,
    in_teams: u64,
    found: u64,
    /// The last id of the page.
    upto: i64,
}

impl Batch {
    fn of(page: Page, labels: &BTreeMap<i64, LabelId>) -> Option<Self> {
        let upto = page.hosts.last()?.id;
        let mut members: HashMap<i64, Vec<LabelId>> = HashMap::new();
        for (host, label) in page.members {
            if let Some(label) = labels.get(&label) {
                members.entry(host).or_default().push(*label);
            }
        }
        let mut batch = Self {
            hosts: Vec::with_capacity(page.hosts.len()),
            without_key: 0,
            in_teams: 0,
            found: 0,
            upto,
        };
        for row in page.hosts {
            batch.found += 1;
            let (id, is_in_team) = (row.id, row.team.is_some());
            match row.host() {
                Some(mut host) => {
                    host.labels = members.remove(&id).unwrap_or_default();
                    batch.in_teams += u64::from(is_in_team);
                    batch.hosts.push(host);
                }
                None => batch.without_key += 1,
            }
        }
        Some(batch)
    }
}

impl Job<'_> {
    /// `labels` are ours by the source's ids.
    pub(super) async fn copy_hosts(
        &mut self,
        mark: &str,
        labels: &BTreeMap<i64, LabelId>,
    ) -> Result<(), Trouble> {
        let begun = if self.options.is_dry_run {
            None
        } else {
            self.store.import_mark(mark).await?
        };
        let after = begun.unwrap_or(-1);
        let (total, left) = self.source.host_counts(after).await?;
        let before = total.saturating_sub(left);
        self.report.hosts_before = before;
        let began = Instant::now();
        let mut tally = ImportTally {
            kind: "hosts",
            ..ImportTally::default()
        };
        let (mut without_key, mut in_teams) = (0, 0);
        let mut next = Batch::of(self.source.hosts(after, PAGE_HOSTS).await?, labels);
        while let Some(batch) = next {
            let (read, written) = tokio::join!(
                self.source.hosts(batch.upto, PAGE_HOSTS),
                write(
                    self.store,
                    &batch,
                    self.options.replaces,
                    self.options.is_dry_run,
                    mark
                ),
            );
            tally.add(&batch, written?);
            without_key += batch.without_key;
            in_teams += batch.in_teams;
            (self.tell)(ImportProgress {
                done: before + tally.found,
                total,
                here: tally.found,
                elapsed: began.elapsed(),
            });
            next = Batch::of(read?, labels);
        }
        if !self.options.is_dry_run {
            self.store.forget_import_mark(mark).await?;
        }
        self.report.tallies.insert(0, tally);
        if without_key > 0 {
            self.report.note(format!(
                "{without_key} hosts have no node key, so no agent speaks for them; left out"
            ));
        }
        if in_teams > 0 {
            self.report.note(format!(
                "{in_teams} hosts were in teams; they get what is for all hosts"
            ));
        }
        Ok(())
    }
}

impl ImportTally {
    fn add(&mut self, batch: &Batch, imported: Imported) {
        self.found += batch.found;
        self.left_out += batch.without_key;
        self.added += imported.added;
        self.same += imported.same;
        self.replaced += imported.replaced;
        self.kept += imported.kept;
    }
}

/// A page without a host that counts is written all the same, for the mark.
async fn write(
    store: &Store,
    batch: &Batch,
    replaces: bool,
    is_dry_run: bool,
    mark: &str,
) -> store::Result<Imported> {
    let mut pause = PAUSE_MIN;
    let mut attempts = 1;
    loop {
        let outcome = if is_dry_run {
            store.weigh_hosts(&batch.hosts, replaces).await
        } else {
            let mark = (mark, batch.upto);
            store.import_hosts(&batch.hosts, replaces, mark).await
        };
        match outcome {
            Err(error) if error.is_away() && attempts < ATTEMPTS_MAX => {
                tracing::warn!(%error, pause_s = pause.as_secs(), "a page of hosts is tried again");
                sleep(pause).await;
                pause *= 2;
                attempts += 1;
            }
            outcome => return outcome,
        }
    }
}
