//! The control process: store, bus, journal, feed, operator API. Knows no TLS and no agent sockets.

mod adopt;
#[cfg(test)]
mod agent_bench;
mod agent_counters;
mod agents;
mod answers;
mod assembly;
mod bus;
#[allow(dead_code, reason = "operators' doors use all of it")]
mod campaigns;
mod carve;
mod carve_file;
mod clones;
mod debug;
mod dedupe;
mod detail_queries;
mod details;
mod directory;
mod dispatch;
mod durable;
mod enroll;
mod feed;
mod feed_load;
mod grace;
mod host_config;
mod import;
mod inherit;
mod journal;
mod labels;
mod link;
mod lists;
mod metrics;
mod model;
mod names;
mod operator;
mod pacer;
mod peer;
mod process;
mod reach;
mod replay;
mod results;
mod roster;
mod seen;
mod selection;
mod server;
mod spool;
mod store;
mod trace;
mod waiting;
mod watch;
mod words;
mod work;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use fleet_protocol::config::{self, Config};
pub use import::{ImportOptions, ImportProgress, ImportReport, ImportTally, Person};
pub use journal::{DamagedRange, JournalReport, SegmentReport};
pub use store::{Filling, Progress};

/// Runs the control process: takes its orders from descriptor 3, returns when it is drained. `threads` stops the threads
/// of the process's allocator, told false, and lets them run, told true: a process that gives something up has no threads
/// then.
pub fn run(threads: fn(bool)) -> ExitCode {
    process::run(threads)
}

/// Directories that logs are written to.
pub fn log_directories(config: &Config, state_dir: &Path) -> Vec<PathBuf> {
    journal::directories(&config.filesystem, state_dir)
}

/// Files that control reads for its stores: authorities, certificates, keys.
pub fn store_files(config: &Config) -> Vec<PathBuf> {
    reach::store_files(config)
}

/// What [`prepare_db`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Migrations that ran.
    pub migrations: usize,
    /// Rows that were filled in.
    pub rows: u64,
}

/// Brings the configured database up to date, and tells how it goes. What it is cut off at, the next one goes on with. The
/// error is one line for people.
pub fn prepare_db(
    config: &Config,
    state_dir: &Path,
    tell: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Prepared, String> {
    process::prepare_db(config, state_dir, tell)
}

/// Copies hosts with their keys, secrets, queries, packs, labels and agent options from the database `from` of Fleet or
/// Kolide Fleet, which is only read, and tells how far it is with the hosts. The embedded store is brought up to date; a
/// shared database must be. What it is cut off at, the next one goes on with. The error is one line for people.
pub fn import_fleet(
    config: &Config,
    state_dir: &Path,
    from: &config::Mysql,
    options: ImportOptions,
    tell: &(dyn Fn(ImportProgress) + Send + Sync),
) -> Result<ImportReport, String> {
    import::import(config, state_dir, from, options, tell)
}

/// Reads every log segment against its checksums, beside a running server if there is one. The error is one line for
/// people.
pub fn verify_journal(config: &Config, state_dir: &Path) -> Result<JournalReport, String> {
    journal::verify(&config.filesystem, state_dir).map_err(|error| error.to_string())
}
