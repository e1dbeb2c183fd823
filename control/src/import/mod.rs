//! Copies a fleet from the database of Fleet or Kolide Fleet into the store, so that its agents go on with the keys that
//! they hold.
//!
//! Owner of nothing that lasts but the mark of how far the copy is, which the store keeps with the hosts. Invariants: the
//! source is only read; whatever is copied passes the checks of operators' documents; what is here already stays unless
//! the caller says otherwise; a copy that was cut off and is run again ends like one that was not.

mod hosts;
mod mapping;
mod people;
mod shape;
mod source;
mod specs;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest;
use fleet_protocol::config::{self, Config};
use tokio::time::Instant;

use crate::store::{self, Store};
use source::Source;

/// Most sentences of a report; the rest are counted.
const NOTES_MAX: usize = 200;

/// How a fleet is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// What is here gives way to what the source has.
    pub replaces: bool,
    /// Nothing is written.
    pub is_dry_run: bool,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportProgress {
    /// Hosts of the source that were looked at, those of an earlier run included.
    pub done: u64,
    /// All of them.
    pub total: u64,
    /// Hosts that were looked at in this run.
    pub here: u64,
    /// Since the first host of this run.
    pub elapsed: Duration,
}

/// What became of the rows of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportTally {
    /// In the plural, for people.
    pub kind: &'static str,
    /// Rows of the source.
    pub found: u64,
    /// Were not here.
    pub added: u64,
    /// Were here already.
    pub same: u64,
    /// What was here gave way.
    pub replaced: u64,
    /// What was here is another one, and stays.
    pub kept: u64,
    /// Could not be taken; the notes say why.
    pub left_out: u64,
}

/// A user of the source. Passwords are not copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Person {
    /// For people.
    pub name: String,
    /// Names the account.
    pub email: String,
    /// As the source calls it; empty for who has only roles in teams.
    pub role: String,
    /// May not log in.
    pub is_disabled: bool,
    /// A program.
    pub is_api_only: bool,
}

/// What was done, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportReport {
    /// What made the source's tables.
    pub product: &'static str,
    /// By kind.
    pub tallies: Vec<ImportTally>,
    /// What was left out or changed, sentences.
    pub notes: Vec<String>,
    /// Sentences that there was no room for.
    pub more_notes: usize,
    /// Users that were not copied.
    pub people: Vec<Person>,
    /// Hosts that an earlier run had copied already.
    pub hosts_before: u64,
    /// All of it.
    pub took: Duration,
}

impl ImportReport {
    fn note(&mut self, text: String) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(text);
        } else {
            self.more_notes += 1;
        }
    }
}

/// Why a copy ended early: one line for people, without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trouble(String);

impl Trouble {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<store::Error> for Trouble {
    fn from(error: store::Error) -> Self {
        Self(error.to_string())
    }
}

/// Who is told how far it is.
type Tell<'t> = &'t (dyn Fn(ImportProgress) + Send + Sync);

/// What a copy works with.
struct Job<'j> {
    store: &'j Store,
    source: Source,
    options: ImportOptions,
    report: ImportReport,
    tell: Tell<'j>,
}

/// See [`crate::import_fleet`].
pub(crate) fn import(
    config: &Config,
    state_dir: &Path,
    from: &config::Mysql,
    options: ImportOptions,
    tell: Tell<'_>,
) -> Result<ImportReport, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let opened = Store::open(config, state_dir).await;
        let store = opened.map_err(|error| error.to_string())?;
        let result = run(&store, from, options, tell).await;
        store.close().await;
        result.map_err(|trouble| trouble.to_string())
    })
}

async fn run(
    store: &Store,
    from: &config::Mysql,
    options: ImportOptions,
    tell: Tell<'_>,
) -> Result<ImportReport, Trouble> {
    let began = Instant::now();
    store.require_prepared().await?;
    let source = Source::open(from).await?;
    let mut job = Job {
        store,
        source,
        options,
        report: ImportReport::default(),
        tell,
    };
    let result = job.copy(&mark(from, options)).await;
    job.source.close().await;
    result?;
    job.report.took = began.elapsed();
    Ok(job.report)
}

impl Job<'_> {
    async fn copy(&mut self, mark: &str) -> Result<(), Trouble> {
        self.report.product = self.source.shape.product();
        self.say_what_is_missing();
        let labels = self.copy_settings().await?;
        self.copy_secrets().await?;
        self.copy_hosts(mark, &labels).await?;
        self.copy_people().await?;
        for (count, what) in self.source.left_behind().await? {
            if count > 0 {
                self.report.note(format!("{count} {what} are not copied"));
            }
        }
        Ok(())
    }

    fn say_what_is_missing(&mut self) {
        let shape = &self.source.shape;
        let mut missing = shape.hosts().missing;
        for reading in [
            shape.labels(),
            shape.queries(),
            shape.packs(),
            shape.pack_targets(),
            shape.pack_queries(),
        ] {
            missing.extend(reading.into_iter().flat_map(|reading| reading.missing));
        }
        if !missing.is_empty() {
            let text = format!("the source has no {}", missing.join(", "));
            self.report.note(text);
        }
    }
}

/// Names the copy from this source; one with other options begins anew.
fn mark(from: &config::Mysql, options: ImportOptions) -> String {
    let way = if options.replaces { "/replace" } else { "" };
    let place = format!("{}/{}{way}", from.address, from.database);
    let hash = digest::digest(&digest::SHA256, place.as_bytes());
    let hash: String = hash
        .as_ref()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("import.{hash}")
}
