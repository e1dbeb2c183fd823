//! `compare`: the gateway beside its peers, one client, alternated rounds, ratios of pairs.
//!
//! All servers of a contest run at once and rest while another is measured, so that a round of one and the round of
//! the next meet the same machine. Each has one worker and the same certificate. Memory is measured on servers that
//! were started anew: what a server has freed is no growth when it is used again.

mod contestant;
mod cores;
mod load;
mod options;
mod page;
mod peers;
mod result;
mod tables;

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

pub(super) use options::Options;

use super::calibrate::server;
use super::html::count;
use super::lane::raise_descriptor_limit;
use super::machine::Machine;
use super::progress::Progress;
use super::{publish, versions};
use crate::tls::Versions;
use contestant::{Entrants, start_all};
use cores::Cores;
use load::{Memory, Round};
use options::Kind;
use result::{Comparison, Contest, Side, failure_note};

/// Descriptors of this process beside the connections that it holds.
const OTHER_DESCRIPTORS: u64 = 512;

/// One contest that is to be held.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Exchange { tls: Versions, concurrency: u32 },
    Requests { connections: u32 },
    Idle { connections: u32 },
}

impl Mode {
    fn name(self) -> String {
        match self {
            Self::Exchange {
                tls: Versions::Both,
                ..
            } => "Full exchange, TLS 1.3".to_owned(),
            Self::Exchange { .. } => "Full exchange, TLS 1.2".to_owned(),
            Self::Requests { connections } => {
                format!("Requests on {} kept connections", count(connections.into()))
            }
            Self::Idle { connections } => format!("{} held connections", count(connections.into())),
        }
    }

    fn all(options: &Options) -> Vec<Self> {
        let of = |kind: &Kind| -> Vec<Self> {
            match kind {
                Kind::Exchange => options
                    .tls
                    .iter()
                    .map(|tls| Self::Exchange {
                        tls: *tls,
                        concurrency: options.concurrency,
                    })
                    .collect(),
                Kind::Requests => options
                    .connections
                    .iter()
                    .map(|connections| Self::Requests {
                        connections: *connections,
                    })
                    .collect(),
                Kind::Idle => vec![Self::Idle {
                    connections: options.idle_connections,
                }],
            }
        };
        options.modes.iter().flat_map(of).collect()
    }

    fn rounds(self, options: &Options) -> u32 {
        match self {
            Self::Idle { .. } => options.idle_rounds,
            Self::Exchange { .. } | Self::Requests { .. } => options.rounds,
        }
    }
}

/// Runs the scenario; whether nothing failed.
pub(super) fn run(options: &Options) -> anyhow::Result<bool> {
    let descriptors = raise_descriptor_limit();
    anyhow::ensure!(
        u64::from(options.idle_connections) + OTHER_DESCRIPTORS < descriptors,
        "--idle-connections {}: at most {} fit under this process's limit of open files",
        options.idle_connections,
        descriptors.saturating_sub(OTHER_DESCRIPTORS)
    );
    let mut arena = Arena::new(options)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    let done = runtime.block_on(arena.hold_all());
    arena.progress.finish();
    done?;
    let comparison = arena.comparison;
    let text = serde_json::to_string_pretty(&comparison)? + "\n";
    match options.json.as_deref() {
        Some(path) if path == Path::new("-") => print!("{text}"),
        Some(path) => {
            println!("{}", tables::render(&comparison));
            publish::write(path, &text)?;
        }
        None => println!("{}", tables::render(&comparison)),
    }
    if let Some(path) = &options.html {
        publish::write(path, &page::render(&comparison))?;
    }
    Ok(comparison.failed() == 0)
}

struct Arena<'a> {
    options: &'a Options,
    entrants: Entrants,
    cores: Option<Cores>,
    progress: Progress,
    done: u64,
    comparison: Comparison,
}

impl<'a> Arena<'a> {
    /// Finds who takes part, and says who does not.
    fn new(options: &'a Options) -> anyhow::Result<Self> {
        let mut machine = Machine::read();
        let own = server::version(&options.server_binary)?;
        let own = own.trim_start_matches("fleet-supervisor ").to_owned();
        machine.versions.insert("fleet-supervisor".to_owned(), own);
        let mut notes = Vec::new();
        let mut entrants = Entrants::new();
        for peer in &options.peers {
            match peer.program(options) {
                Some(program) => {
                    machine.versions.extend(versions::of(&program));
                    entrants.push((*peer, program));
                }
                None => notes.push(format!("{}: not installed, left out", peer.name())),
            }
        }
        let cores = (!options.no_pin).then(Cores::pick).flatten();
        notes.push(cores.map_or_else(
            || "servers and client share their cores".to_owned(),
            |cores| cores.to_string(),
        ));
        Ok(Self {
            options,
            entrants,
            cores,
            progress: Progress::start(),
            done: 0,
            comparison: Comparison {
                machine,
                scenario: "compare",
                notes,
                contests: Vec::new(),
            },
        })
    }

    async fn hold_all(&mut self) -> anyhow::Result<()> {
        for mode in Mode::all(self.options) {
            let contest = match mode {
                Mode::Exchange { tls, concurrency } => {
                    self.load(mode, tls, concurrency, false).await?
                }
                Mode::Requests { connections } => {
                    self.load(mode, Versions::Both, connections, true).await?
                }
                Mode::Idle { connections } => self.memory(mode, connections).await?,
            };
            for side in &contest.sides {
                self.comparison
                    .notes
                    .extend(failure_note(&contest.name, side));
                if side.is_limited_by_client() {
                    self.comparison.notes.push(format!(
                        "{}, {}: the client's core was busy, its rate is a lower bound",
                        contest.name, side.name
                    ));
                }
            }
            self.comparison.contests.push(contest);
        }
        Ok(())
    }

    async fn load(
        &mut self,
        mode: Mode,
        tls: Versions,
        connections: u32,
        is_kept: bool,
    ) -> anyhow::Result<Contest> {
        let length = Duration::from_secs(self.options.seconds);
        let servers = self.start(tls, is_kept).await?;
        let mut rounds: Vec<Vec<Round>> = servers.iter().map(|_| Vec::new()).collect();
        for _ in 0..self.options.rounds {
            for (server, rounds) in servers.iter().zip(&mut rounds) {
                let (done, all) = (self.done, self.all_rounds());
                let progress = &mut self.progress;
                let show = |rate: f64| {
                    let text = || format!("{}, {}: {rate:.0}/s", mode.name(), server.name);
                    progress.advance(done, all, text);
                };
                let round = load::round(server, connections, is_kept, length, show).await?;
                rounds.push(round);
                self.done += 1;
            }
        }
        let sides = servers
            .iter()
            .zip(&rounds)
            .map(|(server, rounds)| Side::of_rounds(server.name, rounds))
            .collect();
        for server in servers {
            server.stop().await;
        }
        let (quantity, unit) = if is_kept {
            ("server CPU a request", "µs")
        } else {
            ("server CPU an exchange", "µs")
        };
        Ok(Contest::new(mode.name(), quantity, unit, sides))
    }

    async fn memory(&mut self, mode: Mode, connections: u32) -> anyhow::Result<Contest> {
        let mut rounds: Vec<(&'static str, Vec<Memory>)> = Vec::new();
        for _ in 0..self.options.idle_rounds {
            let servers = self.start(Versions::Both, true).await?;
            for (index, server) in servers.iter().enumerate() {
                let text = || format!("{}: {}", mode.name(), server.name);
                self.progress.advance(self.done, self.all_rounds(), text);
                let memory = load::hold(server, connections)
                    .await
                    .with_context(|| format!("{}, {}", mode.name(), server.name))?;
                match rounds.get_mut(index) {
                    Some((_, rounds)) => rounds.push(memory),
                    None => rounds.push((server.name, vec![memory])),
                }
                self.done += 1;
            }
            for server in servers {
                server.stop().await;
            }
        }
        let sides = rounds
            .iter()
            .map(|(name, rounds)| Side::of_memory(name, rounds))
            .collect();
        let quantity = "server memory a connection";
        Ok(Contest::new(mode.name(), quantity, "bytes", sides))
    }

    async fn start(
        &mut self,
        tls: Versions,
        is_kept: bool,
    ) -> anyhow::Result<Vec<contestant::Contestant>> {
        self.progress
            .advance(self.done, self.all_rounds(), || "starting servers".into());
        start_all(self.options, &self.entrants, self.cores, tls, is_kept).await
    }

    /// Rounds of all servers in all contests.
    fn all_rounds(&self) -> u64 {
        let rounds = |mode: Mode| u64::from(mode.rounds(self.options));
        let sides = u64::try_from(self.entrants.len()).unwrap_or(0) + 1;
        let contests = Mode::all(self.options).into_iter();
        contests.map(rounds).sum::<u64>() * sides
    }
}
