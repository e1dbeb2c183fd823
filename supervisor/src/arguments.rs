//! The command line. Options of the configuration are flags of every command, generated from the one list of options.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::parser::ValueSource;
use clap::{
    Arg, ArgAction, ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
};
use fleet_protocol::config::{Config, Key, KeyKind};
use serde_json::Value;

use crate::ctl::Ctl;
use crate::fleet_keys;
use crate::import::Import;
use crate::lb::Lb;
use crate::settings::Sources;
use crate::tune::Tune;

/// The name under which only the operator's client is meant.
const CLIENT_NAME: &str = "fleetctl";

#[derive(Debug, Parser)]
#[command(
    name = "fleet-supervisor",
    version,
    about = "A gateway for osquery agents: takes their TLS connections and answers enroll, config, distributed queries, logs and carves",
    after_help = "Every option is a flag (--section_key or --section-key), a variable (FLEET_SECTION_KEY) and `section: key:` in the file \
                  given by --config, in this order. `start --help` lists them."
)]
struct CommandLine {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// `fleetctl …`
#[derive(Debug, Parser)]
#[command(
    name = "fleetctl",
    version,
    about = "The operator's client of a gateway for osquery agents"
)]
struct Client {
    #[command(flatten)]
    ctl: Ctl,
}

#[derive(Debug, Args)]
struct Common {
    /// Read options from this YAML file [env: FLEET_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve until told to stop
    Start,
    /// Drain, stop, and wait for the end
    Stop,
    /// Read the configuration again: addresses, number of workers; try parked workers again
    Reload,
    /// Send agents elsewhere while those who come are served; or let one worker finish and be replaced
    Drain {
        /// This worker only: it finishes, another takes its place
        #[arg(long, value_name = "N")]
        slot: Option<u16>,
        /// Have agents sent here again
        #[arg(long, conflicts_with = "slot")]
        cancel: bool,
    },
    /// Give everything to a new supervisor, of this or another build, without a connection lost
    Upgrade {
        /// The program to start [default: the one that runs this command]
        #[arg(long, value_name = "PATH")]
        binary: Option<PathBuf>,
    },
    /// Show processes, addresses and what they depend on
    Status {
        /// Print JSON
        #[arg(long, conflicts_with = "watch")]
        json: bool,
        /// Show it again each second
        #[arg(long)]
        watch: bool,
    },
    /// Look at the kernel's limits, change them, put them back
    Tune(Tune),
    /// Print the version
    Version,
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Say how large a server must be for a number of hosts
    Plan(crate::plan::Options),
    /// Prepare what the server needs
    Prepare {
        /// Do not ask before an existing database is changed
        #[arg(
            long = "no-prompt",
            alias = "no_prompt",
            global = true,
            num_args = 0..=1,
            require_equals = true,
            default_value_t = false,
            default_missing_value = "true",
            hide_default_value = true,
            hide_possible_values = true
        )]
        no_prompt: bool,
        /// What to prepare.
        #[command(subcommand)]
        what: PrepareCommand,
    },
    /// Copy a fleet from the database of Fleet or Kolide Fleet: its agents go on with the keys that they have
    Import(Import),
    /// Look at the log files that are kept
    #[command(subcommand)]
    Journal(JournalCommand),
    /// Operate a server, this machine's or another's: hosts, queries, packs, labels, live queries, users
    Ctl(Ctl),
    /// Render the configuration of a load balancer in front of these addresses
    #[command(subcommand)]
    Lb(Lb),
    /// A worker process; started by the supervisor
    #[command(hide = true)]
    Worker {
        /// Its place
        #[arg(long)]
        slot: u16,
    },
    /// The control process; started by the supervisor
    #[command(hide = true)]
    Control,
}

/// `config …`
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say everything that is wrong with it
    Check,
    /// Print it as YAML that --config takes, passwords masked
    Dump {
        /// Print the defaults instead
        #[arg(long)]
        defaults: bool,
    },
}

/// `journal …`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum JournalCommand {
    /// Read every segment against its checksums; exit code 65 when one is damaged
    Verify {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// `prepare …`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum PrepareCommand {
    /// Create or update the tables in the database
    Db,
}

/// What the command line says.
#[derive(Debug)]
pub(crate) struct Invocation {
    /// What to do.
    pub(crate) command: Command,
    /// Where options come from.
    pub(crate) sources: Sources,
    /// Called under the client's name.
    pub(crate) is_fleetctl: bool,
}

/// Parses; the error holds help and version, too.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Invocation, clap::Error> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let name = arguments.first().map(PathBuf::from);
    let is_client = name
        .as_deref()
        .and_then(|path| path.file_name())
        .is_some_and(|name| name == CLIENT_NAME);
    if is_client {
        let matches = client().try_get_matches_from(arguments)?;
        let client = Client::from_arg_matches(&matches)?;
        return Ok(Invocation {
            sources: Sources::default(),
            command: Command::Ctl(client.ctl),
            is_fleetctl: true,
        });
    }
    let matches = with_options(CommandLine::command()).try_get_matches_from(arguments)?;
    let line = CommandLine::from_arg_matches(&matches)?;
    Ok(Invocation {
        sources: sources(&matches, line.common),
        command: line.command,
        is_fleetctl: false,
    })
}

/// The client by itself: `--config` is its own file there, as fleetctl has it, and there is no server to configure.
fn client() -> clap::Command {
    Client::command().mut_arg("contexts", |contexts| {
        contexts.long("config").visible_alias("contexts")
    })
}

/// The command line for completions and manual pages: without the options that only `start --help` shows.
pub(crate) fn described(is_fleetctl: bool) -> clap::Command {
    if is_fleetctl {
        client()
    } else {
        CommandLine::command()
    }
}

/// Adds each option to every command; only `start --help` shows them.
fn with_options(command: clap::Command) -> clap::Command {
    let keys = Config::keys();
    let hidden = keys.iter().map(|key| option(key).hide(true).global(true));
    let fleets = fleet_keys::KEYS.iter().flat_map(|(section, names)| {
        let flags = names.iter().map(move |name| format!("{section}_{name}"));
        flags.map(|flag| {
            spellings(Arg::new(flag.clone()), &flag)
                .hide(true)
                .global(true)
        })
    });
    command
        .args(hidden)
        .args(fleets)
        .mut_subcommand("start", |start| start.args(keys.iter().map(option)))
}

fn spellings(arg: Arg, flag: &str) -> Arg {
    arg.long(flag.to_owned())
        .alias(flag.replace('_', "-"))
        .num_args(0..=1)
        .default_missing_value("true")
        .action(ArgAction::Set)
}

fn option(key: &Key) -> Arg {
    let flag = key.flag();
    let section = match key.path.split_last() {
        Some((_, parents)) => parents.join("."),
        None => String::new(),
    };
    let value_name = match key.kind {
        KeyKind::Bool => "BOOL",
        KeyKind::List => "LIST",
        KeyKind::Number => "N",
        KeyKind::Text => "VALUE",
    };
    let default = match &key.default {
        Value::String(text) if text.is_empty() => String::new(),
        Value::String(text) => format!(" [default: {text}]"),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().filter_map(Value::as_str).collect();
            format!(" [default: {}]", items.join(","))
        }
        other => format!(" [default: {other}]"),
    };
    let help = format!(
        "{}{default} [env: {}]",
        key.help.trim_end_matches('.'),
        key.variable()
    );
    let arg = Arg::new(flag.clone())
        .long(flag.clone())
        .alias(flag.replace('_', "-"))
        .help(help)
        .help_heading(format!("Options in section {section}"))
        .action(ArgAction::Set)
        .overrides_with(flag)
        .value_name(value_name)
        .hide_possible_values(true);
    if key.kind == KeyKind::Bool {
        // As in Fleet: the name alone turns it on, and a value needs the equals sign.
        return arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_parser(PossibleValuesParser::new(["true", "false"]));
    }
    arg.allow_hyphen_values(true)
}

/// Flags may stand in front of the command or behind it; the last one wins.
fn sources(matches: &ArgMatches, common: Common) -> Sources {
    let mut levels = vec![matches];
    while let Some((_, below)) = levels.last().and_then(|level| level.subcommand()) {
        levels.push(below);
    }
    let given = |id: &str| {
        levels.iter().rev().find_map(|level| {
            let source = level
                .try_contains_id(id)
                .ok()
                .filter(|has| *has)
                .and_then(|_| level.value_source(id));
            (source == Some(ValueSource::CommandLine))
                .then(|| level.try_get_one::<String>(id).ok().flatten().cloned())
                .flatten()
        })
    };
    let flags = Config::keys()
        .into_iter()
        .filter_map(|key| given(&key.flag()).map(|text| (key, text)))
        .collect();
    let fleets = fleet_keys::KEYS
        .iter()
        .flat_map(|(section, names)| names.iter().map(move |name| format!("{section}_{name}")));
    Sources {
        file: common
            .config
            .or_else(|| std::env::var_os("FLEET_CONFIG").map(PathBuf::from))
            .filter(|path| !path.as_os_str().is_empty()),
        flags,
        ignored_flags: fleets.filter(|flag| given(flag).is_some()).collect(),
    }
}

#[cfg(test)]
#[path = "arguments_tests.rs"]
mod tests;
