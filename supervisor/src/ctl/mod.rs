//! `fleet-supervisor ctl …`: the operator's client, over `STATE/run/operator.sock`.
//!
//! Keeps no state. What it prints as YAML or JSON, `ctl apply` takes back unchanged.

mod address;
mod apply;
mod client;
mod delete;
mod diff;
mod document;
mod get;
mod host;
mod pack_file;
mod table;
mod yaml;

#[cfg(test)]
mod tests;

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use client::Client;

/// Under the state directory.
const SOCKET: &str = "run/operator.sock";
/// The API on the socket.
const API: &str = "/api/latest/fleet";

/// Look at hosts, and look at and change queries, packs, labels, configuration and enroll secrets.
#[derive(Debug, clap::Args)]
pub(crate) struct Ctl {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Apply documents from files: YAML or JSON of the kinds query, pack, label, config, enroll_secret, options, and
    /// osquery pack files (*.conf).
    Apply(apply::Apply),
    /// Show hosts, queries, packs, labels, configuration, enroll secrets, carves or the addresses that agents connect to.
    Get(get::Get),
    /// Delete a query, pack, label or host, or all that files name.
    Delete(delete::Delete),
    /// Show the versions of this client and of the running server.
    Version,
}

/// Why a command did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    /// Wrong arguments or files.
    Usage(String),
    /// The server is not there, or does not work.
    Unavailable(String),
    /// The server refused; one reason a line.
    Refused(String),
}

impl Failure {
    /// The exit codes of `sysexits.h`, and 1 for a refusal.
    fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::Unavailable(_) => 69,
            Self::Refused(_) => 1,
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Usage(text) | Self::Unavailable(text) | Self::Refused(text) => text,
        }
    }
}

/// What a command prints: results on standard output, remarks on standard error.
#[derive(Debug, Default)]
struct Output {
    text: String,
    remarks: Vec<String>,
    /// What went wrong after some of the work was done.
    failure: Option<Failure>,
}

impl Output {
    fn of(text: String) -> Self {
        Self {
            text,
            ..Self::default()
        }
    }
}

/// Runs one command against the server whose state directory this is.
pub(crate) fn run(ctl: Ctl, state_dir: &Path) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(execute(ctl, state_dir)),
        Err(error) => Err(Failure::Unavailable(format!("cannot start: {error}"))),
    };
    let output = outcome.unwrap_or_else(|failure| Output {
        failure: Some(failure),
        ..Output::default()
    });
    // A reader that goes away early (`| head`) is no error.
    let _ = std::io::stdout().write_all(output.text.as_bytes());
    let mut stderr = std::io::stderr();
    for remark in &output.remarks {
        let _ = writeln!(stderr, "[!] {remark}");
    }
    match output.failure {
        None => ExitCode::SUCCESS,
        Some(failure) => {
            let _ = writeln!(stderr, "error: {}", failure.text());
            ExitCode::from(failure.code())
        }
    }
}

async fn execute(ctl: Ctl, state_dir: &Path) -> Result<Output, Failure> {
    let client = Client::new(state_dir.join(SOCKET));
    match ctl.command {
        Command::Apply(apply) => apply.run(&client, has_colour()).await,
        Command::Get(get) => get.run(&client, std::time::SystemTime::now()).await,
        Command::Delete(delete) => delete.run(&client).await,
        Command::Version => version(&client).await,
    }
}

fn has_colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|off| off.is_empty())
}

async fn version(client: &Client) -> Result<Output, Failure> {
    let own = env!("CARGO_PKG_VERSION");
    let mut output = Output::of(format!("client  {own}\n"));
    match client.get(&format!("{API}/version")).await {
        Ok(version) => {
            let text = |name: &str| version.get(name).and_then(|value| value.as_str());
            let revision = text("revision").filter(|revision| !revision.is_empty());
            let revision = revision.map(|revision| format!(" ({revision})"));
            output.text += &format!(
                "server  {}{}\n",
                text("version").unwrap_or_default(),
                revision.unwrap_or_default()
            );
        }
        Err(failure) => output.failure = Some(failure),
    }
    Ok(output)
}
