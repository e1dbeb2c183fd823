//! `fleet-supervisor ctl …`, also called as `fleetctl`: the operator's client, over `STATE/run/operator.sock` or over the
//! network.
//!
//! Keeps nothing but the file of contexts. What it prints as YAML or JSON, `ctl apply` takes back unchanged.

mod address;
mod apply;
mod archive;
mod campaign;
mod carve;
mod client;
mod config;
mod connection;
mod context_file;
mod contexts;
mod convert;
mod debug;
mod delete;
mod dial;
mod diff;
mod document;
mod door;
mod get;
mod host;
mod login;
mod manual;
mod pack_file;
mod query;
mod rows;
mod table;
mod trust;
mod user;
mod viewer;
mod world;
mod yaml;

#[cfg(test)]
mod fake_server;
#[cfg(test)]
mod network_tests;
#[cfg(test)]
mod tests;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use client::Client;
pub(crate) use world::Caller;
use world::World;

/// Under the state directory.
const SOCKET: &str = "run/operator.sock";
/// The API on every door.
const API: &str = "/api/latest/fleet";
/// The rule of `door::choose`, for people.
const WHERE: &str = "\
Where a command goes: to the server on this machine, over its operator socket, which needs no sign-in; \
over the network to the server of a context when --context names one, when this program is called as fleetctl, \
or when there is no socket here but a file of contexts (~/.fleet/config). --state_dir always means this machine.

Examples:
  ctl get hosts
  ctl config set --address https://fleet.example.com:8080 --rootca ca.pem
  ctl login --context default --email admin@example.com
  ctl query --labels 'All Hosts' --query 'SELECT version FROM osquery_info'";

/// Look at hosts, and look at and change queries, packs, labels, configuration and enroll secrets.
#[derive(Debug, clap::Args)]
#[command(after_help = WHERE)]
pub(crate) struct Ctl {
    /// The context whose server is meant, of those that `config set` has made [default: default]
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// The file of contexts [default: ~/.fleet/config]
    #[arg(long, global = true, value_name = "FILE")]
    contexts: Option<std::path::PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Apply documents from files: YAML or JSON of the kinds query, pack, label, config, enroll_secret, options, and
    /// osquery pack files (*.conf).
    Apply(apply::Apply),
    /// Show hosts, queries, packs, labels, configuration, enroll secrets, carves, users or the addresses that agents
    /// connect to.
    Get(get::Get),
    /// Delete a query, pack, label or host, or all that files name.
    Delete(delete::Delete),
    /// Ask hosts now, with SQL, and print rows as they come.
    Query(query::Query),
    /// Set and show the servers that this program knows.
    Config(config::Config),
    /// Make the first user of a new server, and sign in.
    Setup(login::Setup),
    /// Sign in.
    Login(login::Login),
    /// Sign out.
    Logout,
    /// Make and delete users.
    User(user::User),
    /// Look at a server's health: profiles, errors, database, connection.
    Debug(debug::Debug),
    /// Print osquery pack files as documents for `apply`.
    Convert(convert::Convert),
    /// Print what a shell needs to complete commands.
    Completion(manual::Completion),
    /// Print manual pages.
    #[command(hide = true)]
    Man(manual::Man),
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
    /// The user stopped it; how far it was.
    Interrupted(String),
}

impl Failure {
    /// The exit codes of `sysexits.h`, and 1 for a refusal.
    fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::Unavailable(_) => 69,
            Self::Refused(_) => 1,
            // As shells say of SIGINT.
            Self::Interrupted(_) => 130,
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Usage(text)
            | Self::Unavailable(text)
            | Self::Refused(text)
            | Self::Interrupted(text) => text,
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

/// Runs one command.
pub(crate) fn run(ctl: Ctl, caller: Caller<'_>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let world = World::new(&ctl, caller);
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(execute(ctl.command, &world)),
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
            if let Failure::Interrupted(text) = &failure {
                let _ = writeln!(stderr, "stopped: {text}");
                return ExitCode::from(failure.code());
            }
            let _ = writeln!(stderr, "error: {}", failure.text());
            if let Some(place) = world.used() {
                let _ = writeln!(stderr, "       ({place})");
            }
            ExitCode::from(failure.code())
        }
    }
}

async fn execute(command: Command, world: &World<'_>) -> Result<Output, Failure> {
    match command {
        Command::Config(config) => config.run(world),
        Command::Login(login) => login.run(world.remote()?, world).await,
        Command::Logout => login::logout(world.remote()?, world).await,
        Command::Setup(setup) => setup.run(world.client()?, world).await,
        Command::Version => version(world.client()?).await,
        Command::Convert(convert) => convert.run(),
        Command::Completion(completion) => completion.run(world.command_line()),
        Command::Man(man) => man.run(world.command_line()),
        Command::Debug(debug::Debug {
            what: debug::What::Connection(connection),
        }) => connection.look(&connection.client(world)?).await,
        command => {
            let client = world.client()?;
            let mut remark = None;
            if client.network().is_some() {
                if !client.has_access() {
                    return Err(client.signed_out());
                }
                remark = client.version_remark().await?;
            }
            let mut output = asked(command, client).await?;
            output.remarks.extend(remark);
            Ok(output)
        }
    }
}

/// Commands that need to be signed in.
async fn asked(command: Command, client: &Client) -> Result<Output, Failure> {
    match command {
        Command::Apply(apply) => apply.run(client, has_colour()).await,
        Command::Get(get) => get.run(client, std::time::SystemTime::now()).await,
        Command::Delete(delete) => delete.run(client).await,
        Command::User(user) => user.run(client).await,
        Command::Debug(debug) => debug.run(client).await,
        Command::Query(query) => query.run(client).await,
        // The others are done before.
        _ => Ok(Output::default()),
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
