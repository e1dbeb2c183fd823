//! The peers: where each is found, how it is started, waited for and ended.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::options::Options;

/// From start until it takes connections.
const START_LIMIT: Duration = Duration::from_secs(20);
/// From SIGTERM until it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// How long connections that are to be kept may rest: longer than any run lets them.
const KEEPALIVE_SECONDS: &str = "3600";

/// Another server, with a static answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Peer {
    /// nginx as the system has it.
    Nginx,
    /// HAProxy as the system has it.
    Haproxy,
    /// node's https module.
    Node,
    /// hyper on tokio-rustls, as rustls ships.
    Hyper,
    /// The same with the gateway's order of suites, and one ticket.
    HyperGateway,
}

/// The files of `loadtest/peers`.
const SCRIPTS: [(&str, &str); 4] = [
    ("nginx.sh", include_str!("../../../peers/nginx.sh")),
    ("haproxy.sh", include_str!("../../../peers/haproxy.sh")),
    ("node.sh", include_str!("../../../peers/node.sh")),
    ("node.js", include_str!("../../../peers/node.js")),
];

impl Peer {
    /// As the report calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Node => "node",
            Self::Hyper => "hyper",
            Self::HyperGateway => "hyper, our TLS order",
        }
    }

    /// Its program; `None` when it is not installed.
    pub(super) fn program(self, options: &Options) -> Option<PathBuf> {
        match self {
            Self::Nginx => in_path("nginx"),
            Self::Haproxy => in_path("haproxy"),
            Self::Node => in_path("node"),
            Self::Hyper | Self::HyperGateway => {
                let beside = || Some(std::env::current_exe().ok()?.with_file_name("peer-hyper"));
                options
                    .hyper_binary
                    .clone()
                    .or_else(beside)
                    .filter(|path| path.is_file())
            }
        }
    }

    fn command(self, program: &Path, dir: &Path, identity: &Identity, at: &Place) -> Command {
        let port = at.port.to_string();
        let script = |name: &str| {
            let mut command = Command::new("/bin/sh");
            command
                .arg(dir.join(name))
                .arg(&port)
                .args([&identity.cert, &identity.key])
                .args(["1", if at.is_kept { KEEPALIVE_SECONDS } else { "0" }]);
            command
        };
        match self {
            Self::Nginx => script("nginx.sh"),
            Self::Haproxy => script("haproxy.sh"),
            Self::Node => script("node.sh"),
            Self::Hyper | Self::HyperGateway => {
                let mut command = Command::new(program);
                command.args(["--port", &port]);
                command.arg("--cert").arg(&identity.cert);
                command.arg("--key").arg(&identity.key);
                if at.is_kept {
                    command.arg("--keepalive");
                }
                if self == Self::HyperGateway {
                    // Without a ticket nothing carries the acknowledgement that osquery's second segment waits for.
                    command.args(["--suites", "gateway", "--tickets", "1"]);
                }
                command
            }
        }
    }
}

/// The certificate that all servers show.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
}

struct Place {
    port: u16,
    is_kept: bool,
}

/// A running peer; ends with its owner.
pub(super) struct Process {
    child: Child,
    /// Its scripts, configuration and log.
    dir: TempDir,
    address: SocketAddr,
}

impl Process {
    /// Starts it with one worker, and waits until it takes connections.
    pub(super) async fn start(
        peer: Peer,
        program: &Path,
        identity: &Identity,
        is_kept: bool,
    ) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("make a temporary directory")?;
        for (name, text) in SCRIPTS {
            fs::write(dir.path().join(name), text).context("write a script")?;
        }
        let place = Place {
            port: free_port()?,
            is_kept,
        };
        let log = File::create(dir.path().join("log.txt")).context("make a log file")?;
        let child = peer
            .command(program, dir.path(), identity, &place)
            .env("TMPDIR", dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("make a log file")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", peer.name()))?;
        let mut process = Self {
            child,
            dir,
            address: (Ipv4Addr::LOCALHOST, place.port).into(),
        };
        process.wait(peer).await?;
        Ok(process)
    }

    async fn wait(&mut self, peer: Peer) -> anyhow::Result<()> {
        let until = Instant::now() + START_LIMIT;
        while tokio::net::TcpStream::connect(self.address).await.is_err() {
            let end = self.child.try_wait().context("look after a peer")?;
            if end.is_some() || Instant::now() > until {
                let log = fs::read_to_string(self.dir.path().join("log.txt")).unwrap_or_default();
                bail!("{} does not serve: {}", peer.name(), log.trim());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its first process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    /// Asks first: children of a killed nginx would stay.
    fn drop(&mut self) {
        let Ok(pid) = i32::try_from(self.child.id()) else {
            return;
        };
        let until = Instant::now() + STOP_LIMIT;
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        while Instant::now() < until {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(LOOK);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Nobody listens on it now; the servers cannot be told to take any.
fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a port")?;
    Ok(listener.local_addr().context("find a port")?.port())
}

fn in_path(name: &str) -> Option<PathBuf> {
    // Where Debian puts servers is not in everybody's path.
    let further = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(further)
        .map(|folder| folder.join(OsStr::new(name)))
        .find(|path| path.is_file())
}
