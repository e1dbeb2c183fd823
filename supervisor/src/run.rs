//! From a parsed command line to an exit code.

use std::ffi::{CString, OsString};
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use fleet_protocol::admin::{Drain, Reply, Request, Status};
use fleet_protocol::config::Config;
use fleet_protocol::frame;
use fleet_protocol::ids::SlotIndex;
use fleet_protocol::limits::DRAIN_DEADLINE;

use crate::arguments::{self, Command, ConfigCommand, Invocation, JournalCommand};
use crate::ask::{ask, ask_within};
use crate::exit::{self, Failure};
use crate::settings::{self, Settings, Sources};
use crate::upgrade::own_path;
use crate::{
    ctl, import, journal, lb, plan, prepare, sizing, start, state_dir, status, supervisor, sys,
    tune,
};

/// Longest wait of `stop`: agents, then control, then what is killed.
const STOP_LIMIT: Duration = DRAIN_DEADLINE
    .saturating_add(supervisor::ANNOUNCE_MAX)
    .saturating_add(Duration::from_secs(20));
/// Longest wait between two lines of an upgrade.
const UPGRADE_LIMIT: Duration = Duration::from_secs(90);
/// Columns of a table when the output is no terminal that says its own.
const WIDTH: u16 = 100;

/// Runs the program with its arguments, its own name first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let invocation = match arguments::parse(arguments) {
        Ok(invocation) => invocation,
        Err(error) => {
            // Help and version are no errors.
            let code = if error.use_stderr() { exit::USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    dispatch(invocation).unwrap_or_else(|failure| failure.report())
}

fn dispatch(invocation: Invocation) -> Result<ExitCode, Failure> {
    let Invocation {
        command,
        sources,
        is_fleetctl,
    } = invocation;
    let settings = || read_settings(&sources);
    let warned = || settings().inspect(warn);
    match command {
        Command::Worker { slot } => {
            name_process(&format!("fleet-worker-{slot}"));
            // Under want of memory the kernel shall take a worker, not the supervisor.
            let _ = std::fs::write("/proc/self/oom_score_adj", "0");
            return Ok(fleet_worker::run(sys::let_allocator_have_threads));
        }
        Command::Control => {
            name_process("fleet-control");
            return Ok(fleet_control::run(sys::let_allocator_have_threads));
        }
        Command::Version => println!("fleet-supervisor {}", env!("CARGO_PKG_VERSION")),
        Command::Start => start::start(Box::new(move || read_settings(&sources)))?,
        Command::Stop => stop(&client_dir(&settings()?))?,
        Command::Reload => reload(&client_dir(&settings()?))?,
        Command::Drain { slot, cancel } => {
            let what = match slot {
                Some(slot) => Drain::Slot(SlotIndex(slot)),
                None if cancel => Drain::Cancel,
                None => Drain::Gateway,
            };
            drain(&client_dir(&settings()?), what)?;
        }
        Command::Upgrade { binary } => upgrade(&client_dir(&settings()?), binary)?,
        Command::Status { json, watch } => show(&client_dir(&settings()?), json, watch)?,
        Command::Config(ConfigCommand::Check) => {
            warned()?;
            println!("The configuration is good.");
        }
        Command::Config(ConfigCommand::Dump { defaults: true }) => {
            print(&settings::dump(&Config::default()));
        }
        Command::Config(ConfigCommand::Dump { defaults: false }) => {
            let found = warned()?;
            print(&settings::dump(&sizing::resolved(&found.config)));
        }
        Command::Plan(options) => print(&plan::text(&options)?),
        Command::Prepare { no_prompt, what } => {
            let found = warned()?;
            prepare::prepare(what, &found.config, no_prompt)?;
        }
        Command::Import(options) => {
            import::import(&options, &warned()?.config)?;
        }
        Command::Journal(JournalCommand::Verify { json }) => {
            let found = settings()?;
            return journal::verify(&found.config, &client_dir(&found), json);
        }
        Command::Lb(lb) => {
            let found = settings()?;
            lb::run(&lb, &found.config, &client_dir(&found))?;
        }
        Command::Tune(what) => {
            let found = warned()?;
            let options = tune::options(found.file.as_deref(), &found.config);
            return tune::run(&what, &found.config, &options);
        }
        Command::Ctl(ctl) => return Ok(control(ctl, &sources, is_fleetctl)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Options are read only if the server of this machine may be meant: elsewhere they may be another's.
fn control(ctl: ctl::Ctl, sources: &Sources, is_fleetctl: bool) -> ExitCode {
    let caller = ctl::Caller {
        is_fleetctl,
        is_state_dir_told: names_state_dir(sources),
        state_dir: &|| {
            let found = read_settings(sources).map_err(|failure| failure.to_string())?;
            Ok(client_dir(&found))
        },
    };
    ctl::run(ctl, caller)
}

fn read_settings(sources: &Sources) -> Result<Settings, Failure> {
    let names: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .collect();
    settings::read(sources, &|name| std::env::var_os(name), &names)
}

/// Whether somebody said which server's state is meant, so that `ctl` asks no other.
fn names_state_dir(sources: &Sources) -> bool {
    let is_flag = sources
        .flags
        .iter()
        .any(|(key, _)| key.path == ["state", "dir"]);
    is_flag || sources.file.is_some() || std::env::var_os("FLEET_STATE_DIR").is_some()
}

fn client_dir(settings: &Settings) -> std::path::PathBuf {
    state_dir::for_client(&settings.config)
}

fn warn(settings: &Settings) {
    for warning in &settings.warnings {
        eprintln!("fleet-supervisor: {warning}");
    }
}

/// A reader that has gone, such as `head`, is no failure.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// What `top` and `ps -e` show; a program that is started by descriptor has only a number there.
fn name_process(name: &str) {
    if let Ok(name) = CString::new(name) {
        let _ = nix::sys::prctl::set_name(&name);
    }
}

fn stop(state_dir: &Path) -> Result<(), Failure> {
    let (reply, mut stream) = ask(state_dir, &Request::Stop)?;
    let Reply::Stopping { pid } = reply else {
        return Err(Failure::unavailable(
            "the server gave an answer that is none",
        ));
    };
    println!(
        "Stopping pid {pid}; agents get up to {} s to finish.",
        DRAIN_DEADLINE.as_secs()
    );
    // The server keeps the connection until it ends.
    let _ = stream.set_read_timeout(Some(STOP_LIMIT));
    let _ = stream.read(&mut [0; 1]);
    if !state_dir::wait_until_free(state_dir, Duration::from_secs(2)) {
        return Err(Failure::unavailable(format!(
            "pid {pid} has not ended after {} s",
            STOP_LIMIT.as_secs()
        )));
    }
    println!("Stopped.");
    Ok(())
}

fn reload(state_dir: &Path) -> Result<(), Failure> {
    let (Reply::Reloaded(reloaded), _) = ask(state_dir, &Request::Reload)? else {
        return Err(Failure::unavailable(
            "the server gave an answer that is none",
        ));
    };
    for warning in &reloaded.warnings {
        eprintln!("fleet-supervisor: {warning}");
    }
    for address in &reloaded.added {
        println!("Serves {address} from now on; `status` tells when it is bound.");
    }
    for address in &reloaded.changed {
        println!("Serves {address} in another way from now on.");
    }
    for address in &reloaded.withdrawn {
        println!("Withdraws {address}; open connections finish.");
    }
    if let Some(workers) = reloaded.workers {
        println!("Serves with {workers} workers from now on; those that leave finish first.");
    }
    if !reloaded.taken.is_empty() {
        println!("Changed, and in effect: {}.", reloaded.taken.join(", "));
    }
    for file in &reloaded.files {
        println!("Serves what {file} holds now to new connections.");
    }
    if !reloaded.at_next_start.is_empty() {
        println!(
            "Changed, but in effect only after the next start: {}.",
            reloaded.at_next_start.join(", ")
        );
    }
    let all = [&reloaded.added, &reloaded.changed, &reloaded.withdrawn];
    let is_all_same =
        reloaded.taken.is_empty() && reloaded.files.is_empty() && reloaded.workers.is_none();
    if is_all_same && all.iter().all(|list| list.is_empty()) {
        println!("Nothing that is in effect has changed.");
    }
    Ok(())
}

fn drain(state_dir: &Path, what: Drain) -> Result<(), Failure> {
    let (Reply::Draining { text }, _) = ask(state_dir, &Request::Drain(what))? else {
        return Err(Failure::unavailable(
            "the server gave an answer that is none",
        ));
    };
    println!("{text}");
    Ok(())
}

fn upgrade(state_dir: &Path, binary: Option<PathBuf>) -> Result<(), Failure> {
    let binary = binary
        .map(|path| {
            path.canonicalize()
                .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
        })
        .transpose()?
        // The server's own path may lead to the former file under another name by now; ours is what was called.
        .or_else(|| own_path().ok()?.canonicalize().ok());
    let request = Request::Upgrade { binary };
    let report = |line: &str| print(&format!("{line}\n"));
    let (Reply::Upgraded(upgraded), _) = ask_within(state_dir, &request, UPGRADE_LIMIT, report)?
    else {
        return Err(Failure::unavailable(
            "the server gave an answer that is none",
        ));
    };
    print(&format!(
        "Upgraded: pid {} serves, build {}; pid {} ends within {} s, when its agents are served.\n",
        upgraded.pid,
        upgraded.build,
        upgraded.old_pid,
        DRAIN_DEADLINE.as_secs()
    ));
    Ok(())
}

fn show(state_dir: &Path, is_json: bool, is_watching: bool) -> Result<(), Failure> {
    let is_terminal = std::io::stdout().is_terminal();
    loop {
        let status = fetch(state_dir)?;
        if is_json {
            let text = serde_json::to_string_pretty(&status)
                .map_err(|error| Failure::fatal(error.to_string()))?;
            print(&(text + "\n"));
            return Ok(());
        }
        let width = terminal_width().unwrap_or(WIDTH);
        let text = status::text(&status, width, is_terminal);
        if !is_watching {
            print(&text);
            return Ok(());
        }
        // Home, the text, and nothing of the last one below it.
        let clear = if is_terminal { "\x1b[H\x1b[2J" } else { "" };
        let mut out = std::io::stdout().lock();
        if write!(out, "{clear}{text}")
            .and_then(|()| out.flush())
            .is_err()
        {
            return Ok(());
        }
        std::thread::sleep(status::WATCH_INTERVAL);
    }
}

fn fetch(state_dir: &Path) -> Result<Status, Failure> {
    match ask(state_dir, &Request::Status)?.0 {
        Reply::Status(status) => Ok(*status),
        _ => Err(Failure::unavailable(format!(
            "the server gave an answer that is none (protocol {})",
            frame::VERSION
        ))),
    }
}

fn terminal_width() -> Option<u16> {
    comfy_table::Table::new().width()
}
