//! `calibrate`: measures what `fleet-supervisor plan` counts with, on servers that it starts and ends itself.
//!
//! One server with the default ECDSA certificate and one with an RSA-2048 certificate. Everything is bounded: each step
//! lasts `--seconds`, counts are options.

pub(super) mod server;
pub(super) mod steps;
mod wire;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use fleet_protocol::measured::{self, Figure, Measured};
use fleet_protocol::secret::Secret;

use super::lane::raise_descriptor_limit;
use super::machine::{self, Machine};
use super::options::Calibrate as Options;
use super::progress::Progress;
use crate::agent::{Agent, Settings};
use crate::client::Dialer;
use crate::host::{Host, Release};
use crate::lines::calendar_time;
use crate::target::{Sources, Target};
use crate::tls::{Trust, Versions, client_config};

use server::{Identity, Program, Server};
use steps::{Act, Cost, Crowd};

/// Hosts that enroll one after the other, so that each is alone in its batches.
const ALONE_HOSTS: u32 = 20;
/// Exchanges whose bytes are counted.
const WIRE_EXCHANGES: u32 = 20;
/// Hosts whose rounds of detail queries are counted in bytes.
const WIRE_HOSTS: u32 = 5;
/// Lines of the large log request.
const MANY_LINES: u32 = 64;
/// Between the last load and the look at memory.
const REST: Duration = Duration::from_secs(3);

/// Runs the scenario; true unless it failed.
pub(super) fn run(options: &Options) -> anyhow::Result<bool> {
    let descriptors = raise_descriptor_limit();
    anyhow::ensure!(
        u64::from(options.idle_connections) + 512 < descriptors,
        "--idle-connections {}: at most {} fit under this process's limit of open files",
        options.idle_connections,
        descriptors.saturating_sub(512)
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    let mut run = Run {
        options,
        progress: Progress::start(),
        measured: heading(options),
    };
    let done = runtime.block_on(run.measure());
    run.progress.finish();
    done?;
    publish(&run.measured, options.out.as_deref())?;
    Ok(true)
}

/// Everything but the figures.
fn heading(options: &Options) -> Measured {
    let machine = Machine::read();
    Measured {
        format: measured::FORMAT,
        date: day(&machine.date),
        machine: measured::Machine {
            cpu: machine.cpu,
            cores: u32::try_from(machine.cores).unwrap_or(u32::MAX),
            memory_gib: machine.memory_gib,
            // Behind the numbers stands who built it.
            kernel: machine
                .kernel
                .split('-')
                .next()
                .unwrap_or_default()
                .to_owned(),
        },
        server: String::new(),
        command: command(machine::without_secrets(std::env::args())),
        notes: options.note.clone(),
        ..Measured::default()
    }
}

struct Run<'a> {
    options: &'a Options,
    progress: Progress,
    measured: Measured,
}

impl Run<'_> {
    async fn measure(&mut self) -> anyhow::Result<()> {
        self.measured.server = server::version(&self.options.server_binary)?;
        self.say("starting a server with an ECDSA certificate");
        let mut server = Server::start(self.program(), Identity::Default).await?;
        let crowd = Crowd::new(&server, self.options)?;
        self.alone(&server, &crowd).await?;
        let agents = self.enroll(&server, &crowd).await?;
        let few: Vec<Arc<Agent>> = crowd.few(&agents);
        self.routes_ecdsa(&server, &few).await?;
        self.logs(&server, &few).await?;
        self.wire_ecdsa(&server, &crowd, &few).await?;
        tokio::time::sleep(REST).await;
        let memory = server.memory();
        for (figure, bytes) in [
            (Figure::BaseSupervisor, memory.supervisor),
            (Figure::BaseWorker, memory.worker),
            (Figure::BaseControl, memory.control),
        ] {
            self.measured.set(figure, &[bytes]);
        }
        self.say("opening idle connections");
        let bytes = steps::idle(&server, &crowd, self.options.idle_connections).await?;
        self.measured.set(Figure::Connection, &[bytes]);
        server.stop().await;
        self.rsa().await
    }

    /// Statements of hosts that come one after the other.
    async fn alone(&mut self, server: &Server, crowd: &Crowd) -> anyhow::Result<()> {
        self.say("enrolling hosts one by one");
        let hosts = ALONE_HOSTS.min(self.options.hosts);
        let per_host = 1.0 / f64::from(hosts);
        let agents: Vec<_> = (0..hosts).map(|index| crowd.agent(index)).collect();
        let before = server.statements().await?;
        for agent in &agents {
            steps::enroll(agent).await?;
        }
        let enrolled = server.statements().await?;
        for agent in &agents {
            steps::details(agent).await?;
        }
        let detailed = server.statements().await?;
        let figure = (enrolled - before) * per_host;
        self.measured.set(Figure::StoreEnroll, &[figure]);
        let figure = (detailed - enrolled) * per_host;
        self.measured.set(Figure::StoreDetails, &[figure]);
        Ok(())
    }

    /// Hosts as fast as they come, and their first details.
    async fn enroll(&mut self, server: &Server, crowd: &Crowd) -> anyhow::Result<Vec<Arc<Agent>>> {
        self.say("enrolling hosts");
        let limit = Duration::from_secs(self.options.seconds * 6);
        let range = ALONE_HOSTS..ALONE_HOSTS.saturating_add(self.options.hosts);
        let before = server.processes();
        let agents = crowd.enroll(range, limit).await?;
        let cost = Cost::between(&before, &server.processes(), agents.len());
        self.measured.set(Figure::Enroll, &[cost.all_us]);
        self.measured.set(Figure::EnrollControl, &[cost.control_us]);

        self.say("first details of all hosts");
        let before = server.processes();
        crowd.details(&agents).await?;
        let cost = Cost::between(&before, &server.processes(), agents.len());
        self.measured.set(Figure::Details, &[cost.all_us]);
        self.measured
            .set(Figure::DetailsControl, &[cost.control_us]);
        Ok(agents)
    }

    async fn routes_ecdsa(&mut self, server: &Server, few: &[Arc<Agent>]) -> anyhow::Result<()> {
        let seconds = self.options.seconds;
        let statements = server.statements().await?;
        let from = std::time::Instant::now();
        self.say("reads, ECDSA");
        let segments = wire::segments_sent();
        let reads = steps::busy(server, few, Act::Read, seconds).await?;
        let after = wire::segments_sent();
        let count: f64 = reads.iter().map(|cost| cost.count).sum();
        if let (Some(before), Some(after)) = (segments, after)
            && count > 0.0
        {
            self.measured
                .set(Figure::Segments, &[(after - before).max(0.0) / count]);
        }
        self.say("configs, ECDSA");
        let configs = steps::busy(server, few, Act::Config, seconds).await?;
        let statements = server.statements().await? - statements;
        let rate = statements / from.elapsed().as_secs_f64();
        self.measured.set(Figure::StoreIdle, &[rate]);
        self.set_all(Figure::ReadEcdsa, &reads, |cost| cost.all_us);
        self.set_all(Figure::ConfigEcdsa, &configs, |cost| cost.all_us);
        Ok(())
    }

    async fn logs(&mut self, server: &Server, few: &[Arc<Agent>]) -> anyhow::Result<()> {
        let seconds = self.options.seconds;
        self.say("logs of one line");
        let one = steps::busy(server, few, Act::Log { lines: 1 }, seconds).await?;
        self.set_all(Figure::LogRequest, &one, |cost| cost.all_us);
        self.set_all(Figure::LogRequestControl, &one, |cost| cost.control_us);
        self.say("logs of many lines");
        let many = steps::busy(server, few, Act::Log { lines: MANY_LINES }, seconds).await?;
        let further = f64::from(MANY_LINES - 1);
        for (figure, part) in [
            (Figure::LogLine, (|cost| cost.all_us) as fn(&Cost) -> f64),
            (Figure::LogLineControl, |cost| cost.control_us),
        ] {
            let first = median(&one, part);
            // A round that the machine was quicker in must not make a line cost less than nothing.
            self.set_all(figure, &many, |cost| {
                (part(cost) - first).max(0.0) / further
            });
        }
        Ok(())
    }

    async fn wire_ecdsa(
        &mut self,
        server: &Server,
        crowd: &Crowd,
        few: &[Arc<Agent>],
    ) -> anyhow::Result<()> {
        self.say("counting bytes");
        let relay = wire::Relay::start(server.address()).await?;
        let agent = crowd.through(relay.address(), few)?;
        for (act, up, down) in [
            (Act::Read, Figure::ReadUp, Figure::ReadDown),
            (Act::Config, Figure::ConfigUp, Figure::ConfigDown),
            (Act::Log { lines: 1 }, Figure::LogUp, Figure::LogDown),
        ] {
            let bytes = relay.count(&agent, act, WIRE_EXCHANGES).await?;
            self.measured.set(up, &[bytes.up]);
            self.measured.set(down, &[bytes.down]);
        }
        let hosts = self.options.hosts + ALONE_HOSTS;
        let new: Vec<_> = (hosts..hosts + WIRE_HOSTS)
            .map(|index| crowd.agent_at(relay.address(), index))
            .collect::<anyhow::Result<_>>()?;
        let bytes = relay.count_details(&new).await?;
        self.measured.set(Figure::DetailsUp, &[bytes.up]);
        self.measured.set(Figure::DetailsDown, &[bytes.down]);
        Ok(())
    }

    async fn rsa(&mut self) -> anyhow::Result<()> {
        self.say("starting a server with an RSA-2048 certificate");
        let mut server = Server::start(self.program(), Identity::Rsa2048).await?;
        let crowd = Crowd::new(&server, self.options)?;
        // Not the indices of before: with a database that both servers use, those hosts exist.
        let first = self.options.hosts + ALONE_HOSTS + WIRE_HOSTS;
        let limit = Duration::from_secs(self.options.seconds * 6);
        let range = first..first.saturating_add(self.options.connections);
        let agents = crowd.enroll(range, limit).await?;
        crowd.details(&agents).await?;
        let few = crowd.few(&agents);
        let seconds = self.options.seconds;
        self.say("reads, RSA");
        let reads = steps::busy(&server, &few, Act::Read, seconds).await?;
        self.say("configs, RSA");
        let configs = steps::busy(&server, &few, Act::Config, seconds).await?;
        self.set_all(Figure::ReadRsa, &reads, |cost| cost.all_us);
        self.set_all(Figure::ConfigRsa, &configs, |cost| cost.all_us);
        let relay = wire::Relay::start(server.address()).await?;
        let agent = crowd.through(relay.address(), &few)?;
        let bytes = relay.count(&agent, Act::Read, WIRE_EXCHANGES).await?;
        self.measured.set(Figure::ReadDownRsa, &[bytes.down]);
        server.stop().await;
        Ok(())
    }

    fn set_all(&mut self, figure: Figure, rounds: &[Cost], part: impl Fn(&Cost) -> f64) {
        let values: Vec<f64> = rounds.iter().map(part).collect();
        self.measured.set(figure, &values);
    }

    fn program(&self) -> Program<'_> {
        Program {
            server_binary: &self.options.server_binary,
            server_flag: &self.options.server_flag,
        }
    }

    fn say(&mut self, text: &str) {
        self.progress.note(text);
    }
}

impl Crowd {
    fn new(server: &Server, options: &Options) -> anyhow::Result<Self> {
        let target = Arc::new(Target::parse(&format!("https://{}", server.address()))?);
        let sources = Sources::default_for(std::slice::from_ref(&target), options.connections);
        let trust = Trust::CaFile(server.ca());
        let config = client_config(&trust, Versions::Both)?;
        Ok(Self {
            dialer: Arc::new(Dialer::new(config, sources)),
            settings: Arc::new(Settings::new(Secret::new(server.enroll_secret()?))),
            target,
            connections: options.connections,
        })
    }

    /// An agent of its own at the server.
    fn agent(&self, index: u32) -> Arc<Agent> {
        self.agent_toward(index, self.target.clone())
    }

    fn agent_toward(&self, index: u32, target: Arc<Target>) -> Arc<Agent> {
        let host = Host::new(1, index).with_release(Release::NEWEST);
        Arc::new(Agent::new(
            host,
            self.settings.clone(),
            self.dialer.clone(),
            target,
        ))
    }

    /// An agent of its own at another address of the same server.
    fn agent_at(&self, address: std::net::SocketAddr, index: u32) -> anyhow::Result<Arc<Agent>> {
        let target = Arc::new(Target::parse(&format!("https://{address}"))?);
        Ok(self.agent_toward(index, target))
    }

    /// The first of `agents` once more, with its key, at another address of the same server.
    fn through(
        &self,
        address: std::net::SocketAddr,
        agents: &[Arc<Agent>],
    ) -> anyhow::Result<Arc<Agent>> {
        let first = agents.first().context("no host is enrolled")?;
        let agent = self.agent_at(address, first.host().index)?;
        agent.set_node_key(first.node_key());
        Ok(agent)
    }
}

fn median(rounds: &[Cost], part: fn(&Cost) -> f64) -> f64 {
    super::report::Spread::of(&rounds.iter().map(part).collect::<Vec<_>>()).median
}

/// Prints the figures, and writes the file whole or not at all.
fn publish(measured: &Measured, out: Option<&Path>) -> anyhow::Result<()> {
    let mut table = super::report::table(&["figure", "value", "low", "high", "unit"]);
    for (id, sample) in &measured.figures {
        table.add_row([
            id.clone(),
            format!("{:.1}", sample.value),
            format!("{:.1}", sample.low),
            format!("{:.1}", sample.high),
            sample.unit.clone(),
        ]);
    }
    println!("{table}");
    for note in &measured.notes {
        println!("{note}");
    }
    let missing = measured.missing();
    if !missing.is_empty() {
        println!("not measured: {}", missing.join(", "));
    }
    let Some(out) = out else {
        return Ok(());
    };
    let text = serde_json::to_string_pretty(measured)? + "\n";
    super::publish::write(out, &text)?;
    println!("written to {}", out.display());
    Ok(())
}

/// `2025-09-30` of `Tue Sep 30 17:37:30 2025 UTC`.
fn day(calendar: &str) -> String {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let words: Vec<&str> = calendar.split_whitespace().collect();
    match words.as_slice() {
        [_, month, day, _, year, ..] => {
            let month = MONTHS.find(month).map_or(0, |at| at / 3 + 1);
            format!("{year}-{month:02}-{day:0>2}")
        }
        _ => calendar_time(Duration::ZERO),
    }
}

/// The command line with file names in place of paths, and without notes: where files lie on a machine concerns nobody
/// else, and the notes stand beside.
fn command(arguments: impl Iterator<Item = String>) -> String {
    let mut words = Vec::new();
    let mut arguments = arguments.peekable();
    while let Some(word) = arguments.next() {
        if word == "--note" {
            arguments.next();
        } else if !word.starts_with("--note=") {
            let (option, value) = match word.rsplit_once('=') {
                Some((option, value)) => (format!("{option}="), value),
                None => (String::new(), word.as_str()),
            };
            let name = value.rsplit('/').next().unwrap_or_default();
            words.push(format!("{option}{name}"));
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_written_as_numbers() {
        assert_eq!(day("Tue Sep 30 17:37:30 2025 UTC"), "2025-09-30");
        assert_eq!(day("Sun Feb  1 00:00:00 2026 UTC"), "2026-02-01");
    }

    #[test]
    fn commands_are_shown_without_folders() {
        let words = [
            "/a/b/fleet-loadtest",
            "calibrate",
            "--server-binary",
            "./target/x",
            "--out=/tmp/y.json",
            "--server-flag=--mysql_address=/run/db.sock",
            "--note",
            "two words",
            "--seconds=3",
        ];
        assert_eq!(
            command(words.into_iter().map(str::to_owned)),
            "fleet-loadtest calibrate --server-binary x --out=y.json --server-flag=--mysql_address=db.sock --seconds=3"
        );
    }
}
