//! Plays the supervisor: starts a worker with its channel and one listener, and ends it.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::BytesMut;
use command_fds::{CommandFdExt as _, FdMapping};
use fleet_protocol::config::Config;
use fleet_protocol::frame::{self, Decoder};
use fleet_protocol::ids::{Generation, SlotIndex};
use fleet_protocol::sandbox::Confine;
use fleet_protocol::secret::Secret;
use fleet_protocol::slot::{
    CHANNEL_FD, FromChild, Listener, StartTls, StartWorker, TlsIdentity, ToChild,
};
use fleet_protocol::stats::WorkerStats;
use fleet_protocol::tickets::{TICKET_KEY_BYTES, TICKET_NAME_BYTES, TicketKey, TicketKeys};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep};

use super::super::procfs::{self, Sample};
use super::control;

const LISTENER_FD: i32 = CHANNEL_FD + 1;
/// Under valgrind everything takes fifty times as long, and a million hosts take a while anywhere.
const START_LIMIT: Duration = Duration::from_secs(180);
/// From the word to end until it is killed.
const END_LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// What the worker runs under.
pub(super) enum Under {
    Nothing,
    /// valgrind's callgrind, which writes its counts to this file when the worker ends.
    Callgrind(PathBuf),
}

/// A running worker. Killed with its owner.
pub(super) struct Process {
    pub(super) address: SocketAddr,
    pub(super) certificate_pem: String,
    pub(super) hosts: u32,
    /// Its memory before it knew any host.
    pub(super) empty_rss_bytes: u64,
    child: Child,
    mouth: OwnedWriteHalf,
    stats: Rc<RefCell<Option<WorkerStats>>>,
    _dir: TempDir,
}

impl Process {
    /// Starts one, and waits until it knows `hosts` hosts.
    pub(super) async fn start(program: &Path, hosts: u32, under: &Under) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("make a temporary directory")?;
        let link_path = dir.path().join("link.sock");
        let link = Rc::new(UnixListener::bind(&link_path).context("listen for the link")?);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").context("listen")?;
        let address = listener.local_addr()?;
        let identity = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let mut config = Config::default();
        // A held read would measure the hold.
        config.osquery.distributed_hold = Duration::ZERO;
        // As many requests as it can answer, of whatever host.
        config.limits.hosts = u64::MAX;
        config.limits.host_rate = 1_000_000;
        config.limits.host_burst = 1_000_000;
        let start = StartWorker {
            slot: SlotIndex(0),
            generation: Generation(0),
            cpu: None,
            listeners: vec![Listener {
                address,
                fd: LISTENER_FD,
                balancers: None,
            }],
            tls: Some(StartTls {
                identities: vec![TlsIdentity {
                    cert_chain_pem: identity.cert.pem(),
                    key_pem: Secret::new(identity.signing_key.serialize_pem()),
                    names: vec!["localhost".to_owned()],
                }],
                client_trust: None,
                tickets: ticket_keys(),
            }),
            link_path,
            tunnel_path: dir.path().join("no-tunnel.sock"),
            config,
            // It is measured under tools that watch it.
            confine: Confine::default(),
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let child = spawn(program, under, theirs.into(), listener.into())?;
        let (ears, mouth) = UnixStream::from_std(ours)?.into_split();
        let mut process = Self {
            address,
            certificate_pem: identity.cert.pem(),
            hosts,
            empty_rss_bytes: 0,
            child,
            mouth,
            stats: Rc::default(),
            _dir: dir,
        };
        process
            .say(&ToChild::StartWorker(Box::new(start)))
            .await
            .context("the worker does not listen")?;
        tokio::task::spawn_local(hear(ears, Rc::clone(&process.stats)));
        process.wait_until(|stats| stats.hosts == 0).await?;
        process.empty_rss_bytes = process.sample()?.rss_bytes;
        tokio::task::spawn_local(control::serve(link, hosts));
        let is_loaded = |stats: &WorkerStats| stats.is_linked && stats.hosts == hosts;
        process.wait_until(is_loaded).await?;
        Ok(process)
    }

    /// CPU time and memory now.
    pub(super) fn sample(&self) -> anyhow::Result<Sample> {
        procfs::sample(self.child.id()).context("the worker is gone")
    }

    /// Has it finish, and waits until it has.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        let deadline_ms = u32::try_from(END_LIMIT.as_millis()).unwrap_or(u32::MAX);
        self.say(&ToChild::Drain { deadline_ms }).await?;
        let until = Instant::now() + END_LIMIT;
        loop {
            match self.child.try_wait().context("wait for the worker")? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("the worker ended: {status}"),
                None if Instant::now() > until => bail!("the worker does not end"),
                None => sleep(LOOK).await,
            }
        }
    }

    async fn say(&mut self, message: &ToChild) -> anyhow::Result<()> {
        let mut out = BytesMut::new();
        frame::encode(message, &mut out)?;
        Ok(self.mouth.write_all(&out).await?)
    }

    async fn wait_until(&mut self, is_so: impl Fn(&WorkerStats) -> bool) -> anyhow::Result<()> {
        let until = Instant::now() + START_LIMIT;
        while !self.stats.borrow().as_ref().is_some_and(&is_so) {
            if let Some(status) = self.child.try_wait().context("wait for the worker")? {
                bail!("the worker ended: {status}");
            }
            if Instant::now() > until {
                bail!("the worker has not loaded its table in time");
            }
            sleep(LOOK).await;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // After a proper end there is nothing to kill: the child was reaped, and its handle knows.
        if let Ok(None) = self.child.try_wait()
            && let Ok(pid) = i32::try_from(self.child.id())
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

fn spawn(
    program: &Path,
    under: &Under,
    channel: OwnedFd,
    listener: OwnedFd,
) -> anyhow::Result<Child> {
    let mut command = match under {
        Under::Nothing => Command::new(program),
        Under::Callgrind(out) => {
            let mut command = Command::new("valgrind");
            command
                .args(["--quiet", "--tool=callgrind", "--dump-line=no"])
                .arg(format!("--callgrind-out-file={}", out.display()))
                .arg(program);
            command
        }
    };
    command
        .args(["worker", "--slot", "0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .env("RUST_LOG", "off");
    let mapping = |parent_fd, child_fd| FdMapping {
        parent_fd,
        child_fd,
    };
    command.fd_mappings(vec![
        mapping(channel, CHANNEL_FD),
        mapping(listener, LISTENER_FD),
    ])?;
    command
        .spawn()
        .with_context(|| format!("start {}", command.get_program().display()))
}

/// Agents ask for no ticket, so these seal nothing.
fn ticket_keys() -> TicketKeys {
    let key = |number| TicketKey::new([number; TICKET_NAME_BYTES], [number; TICKET_KEY_BYTES]);
    TicketKeys {
        previous: key(1),
        current: key(2),
        next: key(3),
    }
}

/// Keeps the latest report.
async fn hear(mut ears: OwnedReadHalf, stats: Rc<RefCell<Option<WorkerStats>>>) {
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
    while let Ok(length) = ears.read_buf(&mut input).await {
        if length == 0 {
            return;
        }
        while let Ok(Some(message)) = decoder.decode(&mut input) {
            match message {
                FromChild::Worker(report) => *stats.borrow_mut() = Some(*report),
                FromChild::Fatal { reason } => eprintln!("worker: {reason}"),
                _ => {}
            }
        }
    }
}
