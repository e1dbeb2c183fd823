//! `tune`: shows kernel limits, changes them, puts them back. What they are stands in the crate `fleet-sysctl`.

mod table;
mod walk;

use std::io::{IsTerminal as _, Write as _, stdin, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use fleet_protocol::config::Config;
use fleet_sysctl::apply::{Extent, Report, apply};
use fleet_sysctl::finding::Finding;
use fleet_sysctl::probe::probe;
use fleet_sysctl::record::{RECORD_FILE, RecordError};
use fleet_sysctl::revert::revert;
use fleet_sysctl::roots::Roots;
use fleet_sysctl::size::Size;

use crate::exit::Failure;
use crate::{sizing, state_dir};

/// Some settings do not hold, or something could not be changed.
const NOT_ALL: u8 = 1;
/// Columns when the output is no terminal.
const WIDTH: u16 = 160;

const AFTER_HELP: &str = "\
Without --apply, --revert or --walk it changes nothing.

Settings are looked at in this network namespace. Those of the whole machine (fs.*, kernel.*, some of net.*) are missing or read-only in a container: run it on the host, too.

Files: /etc/sysctl.d/90-fleet.conf, /etc/security/limits.d/90-fleet.conf and /etc/systemd/system/fleet-supervisor.service.d/90-fleet.conf. Former values and files are remembered in tune.json in the state directory until --revert.

--root DIR puts files and the state directory below DIR. Running values are those below DIR if there is DIR/proc/sys, else those of this machine; with --files-only they are left alone.

Exit codes: 0 every setting holds, or what was asked is done; 1 some settings do not hold or could not be changed, each with its reason; 64 wrong usage; 70 the former values cannot be read or kept, and nothing was changed; 78 wrong configuration.";

/// `tune …`
#[derive(Debug, Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Tune {
    /// Change what is too low, now and for the next start of the machine
    #[arg(long, conflicts_with_all = ["revert", "walk"])]
    apply: bool,
    /// Put back what was there before the first change
    #[arg(long, conflicts_with_all = ["walk", "only", "hosts"])]
    revert: bool,
    /// Go through the settings one by one and ask
    #[arg(long, conflicts_with_all = ["json", "dry_run"])]
    walk: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Size for so many hosts; else for tune.hosts, else for as many as the workers may hold connections
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    hosts: Option<u64>,
    /// Only settings whose names begin so, such as net.ipv4; several are separated by commas
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    only: Vec<String>,
    /// Keep files and former values below this directory
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Say what would be done
    #[arg(long, alias = "dry_run")]
    dry_run: bool,
    /// Write files of all settings, and leave running values alone (to make an image or a package)
    #[arg(long, alias = "files_only", requires = "apply")]
    files_only: bool,
}

/// Everything that is needed to look and to change.
pub(crate) struct Tuning {
    pub(crate) roots: Roots,
    pub(crate) size: Size,
    pub(crate) record: PathBuf,
    only: Vec<String>,
    /// `fleet-supervisor tune` with what finds the same configuration and record.
    command: String,
}

impl Tuning {
    fn find(&self) -> Vec<Finding> {
        probe(&self.roots, &self.size, &self.only)
    }

    fn apply(&self, findings: &[Finding], extent: Extent) -> Result<Report, Failure> {
        apply(&self.roots, findings, &self.record, extent).map_err(|error| failure(&error))
    }
}

/// Runs the command; `options` finds the same configuration again.
pub(crate) fn run(tune: &Tune, config: &Config, options: &str) -> Result<ExitCode, Failure> {
    let roots = match &tune.root {
        Some(dir) if !dir.is_dir() => {
            return Err(Failure::fatal(format!(
                "--root: {} is not a directory",
                dir.display()
            )));
        }
        Some(dir) => {
            let dir = dir
                .canonicalize()
                .map_err(|error| Failure::fatal(format!("--root: {}: {error}", dir.display())))?;
            Roots::under(&dir)
        }
        None => Roots::system(),
    };
    let state_dir = if roots.is_system() {
        state_dir::for_tune(config, RECORD_FILE)
    } else {
        roots.file(&state_dir::for_image(config))
    };
    let tuning = Tuning {
        size: sizing::size(config, tune.hosts, &roots),
        record: state_dir.join(RECORD_FILE),
        only: tune.only.clone(),
        command: command(tune, options),
        roots,
    };
    if tune.revert {
        return put_back(tune, &tuning);
    }
    let findings = tuning.find();
    if findings.is_empty() {
        return Err(Failure::usage(format!(
            "--only: no setting begins with {}",
            tune.only.join(" or ")
        )));
    }
    if tune.walk {
        return ask(&tuning, &findings);
    }
    if tune.apply {
        return change(tune, &tuning, &findings);
    }
    let is_good = findings.iter().all(|finding| finding.verdict.is_good());
    if tune.json {
        print(&table::json(&findings, &tuning.size)?);
    } else {
        let width = comfy_table::Table::new().width().unwrap_or(WIDTH);
        print(&table::text(&findings, width, stdout().is_terminal()));
        print(&table::summary(
            &findings,
            &tuning.size,
            &tuning.command,
            width,
        ));
    }
    Ok(code(is_good))
}

fn change(tune: &Tune, tuning: &Tuning, findings: &[Finding]) -> Result<ExitCode, Failure> {
    let extent = Extent {
        is_dry: tune.dry_run,
        files_only: tune.files_only,
    };
    let report = tuning.apply(findings, extent)?;
    if tune.json {
        print(&table::report_json(&report)?);
    } else if report.is_empty() {
        print("Nothing to do: all of it is as it should be.\n");
    } else {
        print(&table::report(&report));
        if tuning.record.exists() {
            print(&format!(
                "Former values are kept in {}; `{} --revert` puts them back.\n",
                tuning.record.display(),
                tuning.command
            ));
        }
    }
    let is_good = tune.dry_run
        || tune.files_only
        || tuning
            .find()
            .iter()
            .all(|finding| finding.verdict.is_good());
    Ok(code(is_good && !report.has_failed()))
}

fn put_back(tune: &Tune, tuning: &Tuning) -> Result<ExitCode, Failure> {
    let is_known = tuning.record.exists();
    let report =
        revert(&tuning.roots, &tuning.record, tune.dry_run).map_err(|error| failure(&error))?;
    if tune.json {
        print(&table::report_json(&report)?);
    } else if !is_known {
        print(&format!(
            "Nothing to revert: there is no {}. If it lies elsewhere, give its --state_dir.\n",
            tuning.record.display()
        ));
    } else if report.is_empty() {
        print("Nothing to revert: everything is as it was.\n");
    } else {
        print(&table::report(&report));
    }
    Ok(code(!report.has_failed()))
}

fn ask(tuning: &Tuning, findings: &[Finding]) -> Result<ExitCode, Failure> {
    if !stdin().is_terminal() || !stdout().is_terminal() {
        return Err(Failure::usage(
            "--walk asks on a terminal and this is none; use --apply, or --apply --only NAME",
        ));
    }
    let report = walk::walk(
        findings,
        &mut stdin().lock(),
        &mut stdout().lock(),
        |chosen| tuning.apply(chosen, Extent::default()),
    )?;
    if tuning.record.exists() && !report.is_empty() {
        print(&format!(
            "`{} --revert` puts the former values back.\n",
            tuning.command
        ));
    }
    let is_good = tuning
        .find()
        .iter()
        .all(|finding| finding.verdict.is_good());
    Ok(code(is_good && !report.has_failed()))
}

/// As it is to be typed again.
fn command(tune: &Tune, options: &str) -> String {
    let root = tune.root.as_deref().map_or(String::new(), |dir| {
        format!(" --root {}", crate::banner::quoted(dir))
    });
    format!("fleet-supervisor tune{root}{options}")
}

/// The options that find a configuration and its state again: empty, or with a blank in front.
pub(crate) fn options(file: Option<&Path>, config: &Config) -> String {
    let mut text = String::new();
    if let Some(file) = file {
        text += &format!(" --config {}", crate::banner::quoted(file));
    } else if !config.state.dir.as_os_str().is_empty() {
        text += &format!(" --state_dir={}", crate::banner::quoted(&config.state.dir));
    }
    text
}

fn failure(error: &RecordError) -> Failure {
    Failure::fatal(error.to_string())
}

fn code(is_good: bool) -> ExitCode {
    ExitCode::from(if is_good { 0 } else { NOT_ALL })
}

/// A reader that has gone, such as `head`, is no failure.
fn print(text: &str) {
    let mut out = stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
