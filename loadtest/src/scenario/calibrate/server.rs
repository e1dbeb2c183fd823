//! A server of our own: started in a temporary directory, looked at, ended.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

use super::super::procfs::{Sample, Watch};
use super::super::tally::as_f64;
use crate::client::DEADLINE;
use crate::connection::Connection;
use crate::target::Target;
use crate::tls::{Trust, Versions, client_config};

/// From start until it serves.
const START_LIMIT: Duration = Duration::from_secs(60);
/// From SIGTERM until it is killed: longer than its drain.
const STOP_LIMIT: Duration = Duration::from_secs(40);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of its log that an error repeats.
const LOG_TAIL_BYTES: usize = 2000;

/// Which certificate it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Identity {
    /// ECDSA P-256, which it makes itself.
    Default,
    /// RSA with 2048 bits, self-signed.
    Rsa2048,
}

/// What is started.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Program<'a> {
    /// `fleet-supervisor`.
    pub(in super::super) server_binary: &'a Path,
    /// Flags of `start` besides those that every server here gets.
    pub(in super::super) server_flag: &'a [String],
}

/// Resident memory by role; of several workers the mean.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) supervisor: f64,
    pub(super) worker: f64,
    pub(super) control: f64,
}

/// A running server; ends with its owner.
pub(in super::super) struct Server {
    child: Child,
    dir: TempDir,
    identity: Identity,
    address: SocketAddr,
    watch: Watch,
}

/// What `PROGRAM version` prints.
pub(in super::super) fn version(binary: &Path) -> anyhow::Result<String> {
    let output = Command::new(binary)
        .arg("version")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {}", binary.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || !text.starts_with("fleet-supervisor ") {
        bail!("{} is not fleet-supervisor", binary.display());
    }
    Ok(text)
}

impl Server {
    /// Starts one with a single worker, and waits until it serves.
    pub(in super::super) async fn start(
        options: Program<'_>,
        identity: Identity,
    ) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("make a temporary directory")?;
        if identity == Identity::Rsa2048 {
            make_rsa_identity(dir.path())?;
        }
        Self::start_in(dir, options, identity).await
    }

    async fn start_in(
        dir: TempDir,
        options: Program<'_>,
        identity: Identity,
    ) -> anyhow::Result<Self> {
        let state = dir.path().join("state");
        let addresses = state.join("run/addresses");
        let log = File::create(dir.path().join("log.txt")).context("make a log file")?;
        let mut command = Command::new(options.server_binary);
        // Options of the environment would make it another server than the one that the command tells of.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FLEET_") {
                command.env_remove(name);
            }
        }
        command
            .arg("start")
            .arg(format!("--state_dir={}", state.display()))
            .args(["--server_address=127.0.0.1:0", "--workers_count=1"])
            .arg("--prometheus_basic_auth_disable=true")
            // What an exchange costs is measured, not what a wait does.
            .arg("--osquery_distributed_hold=0s")
            // All that it can answer, of few hosts.
            .arg("--limits_read_rate=1000000")
            .arg("--limits_enroll_rate=1000000")
            .arg("--limits_host_rate=1000000")
            .arg("--limits_host_burst=1000000")
            .args(options.server_flag)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if identity == Identity::Rsa2048 {
            command
                .arg(format!(
                    "--server_cert={}",
                    dir.path().join("rsa.pem").display()
                ))
                .arg(format!(
                    "--server_key={}",
                    dir.path().join("rsa.key").display()
                ));
        }
        let child = command
            .spawn()
            .with_context(|| format!("start {}", options.server_binary.display()))?;
        let watch = Watch {
            trees: vec![child.id()],
            pids: Vec::new(),
        };
        let mut server = Self {
            child,
            dir,
            identity,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            watch,
        };
        server.address = server.wait_for_address(&addresses).await?;
        server.wait_until_healthy().await?;
        Ok(server)
    }

    async fn wait_for_address(&mut self, addresses: &Path) -> anyhow::Result<SocketAddr> {
        let until = Instant::now() + START_LIMIT;
        loop {
            let text = fs::read_to_string(addresses).unwrap_or_default();
            let first = text.lines().next().unwrap_or_default();
            if let Ok(address) = first.trim().trim_start_matches("https://").parse() {
                return Ok(address);
            }
            self.bail_unless_running(until)?;
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn wait_until_healthy(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + START_LIMIT;
        loop {
            if let Ok((200, _)) = self.get("/healthz").await
                && self.statements().await.is_ok()
            {
                return Ok(());
            }
            self.bail_unless_running(until)?;
            tokio::time::sleep(LOOK).await;
        }
    }

    fn bail_unless_running(&mut self, until: Instant) -> anyhow::Result<()> {
        let end = self.child.try_wait().context("look after the server")?;
        if end.is_none() && Instant::now() < until {
            return Ok(());
        }
        let log = fs::read_to_string(self.dir.path().join("log.txt")).unwrap_or_default();
        let from = log.len().saturating_sub(LOG_TAIL_BYTES);
        let tail = log.get(from..).unwrap_or(&log).trim();
        match end {
            Some(status) => bail!("the server ended at its start ({status}): {tail}"),
            None => bail!(
                "the server does not serve after {} s: {tail}",
                START_LIMIT.as_secs()
            ),
        }
    }

    /// Where it serves.
    pub(in super::super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What its certificate is checked against.
    pub(in super::super) fn ca(&self) -> PathBuf {
        match self.identity {
            Identity::Default => self.dir.path().join("state/tls/cert.pem"),
            Identity::Rsa2048 => self.dir.path().join("rsa.pem"),
        }
    }

    /// The key of the certificate that it makes itself.
    pub(in super::super) fn key(&self) -> PathBuf {
        match self.identity {
            Identity::Default => self.dir.path().join("state/tls/key.pem"),
            Identity::Rsa2048 => self.dir.path().join("rsa.key"),
        }
    }

    /// What hosts enroll with.
    pub(in super::super) fn enroll_secret(&self) -> anyhow::Result<String> {
        let path = self.dir.path().join("state/enroll_secret");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("read the enroll secret {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// Its first process.
    pub(in super::super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its processes now.
    pub(in super::super) fn processes(&self) -> Vec<Sample> {
        self.watch.sample()
    }

    /// Resident memory now.
    pub(super) fn memory(&self) -> Memory {
        let processes = self.processes();
        let mean = |is_role: &dyn Fn(&Sample) -> bool| {
            let sizes: Vec<u64> = processes
                .iter()
                .filter(|process| is_role(process))
                .map(|process| process.rss_bytes)
                .collect();
            let count = u32::try_from(sizes.len().max(1)).unwrap_or(u32::MAX);
            as_f64(sizes.iter().sum()) / f64::from(count)
        };
        let root = self.child.id();
        Memory {
            supervisor: mean(&|process| process.pid == root),
            worker: mean(&|process| process.name.starts_with("worker")),
            control: mean(&|process| process.name.starts_with("control")),
        }
    }

    /// Statements that it has sent its store so far, by its own count.
    pub(super) async fn statements(&self) -> anyhow::Result<f64> {
        let (status, page) = self.get("/metrics").await?;
        anyhow::ensure!(status == 200, "/metrics answers {status}");
        statements(&page).context("/metrics does not count the statements of the store")
    }

    async fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let target = Target::parse(&format!("https://{}", self.address))?;
        let config = client_config(&Trust::CaFile(self.ca()), Versions::Both)?;
        let answer = async {
            let mut connection = Connection::open(&target, None, &config).await?;
            let head = format!(
                "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
                target.host
            );
            connection.send(head.as_bytes()).await?;
            let answer = connection.receive().await?;
            connection.close();
            Ok::<_, crate::verdict::Failure>(answer)
        };
        let answer = timeout(DEADLINE, answer)
            .await
            .map_err(|_| anyhow::anyhow!("{path}: no answer"))?
            .map_err(|failure| anyhow::anyhow!("{path}: {failure}"))?;
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        Ok((answer.status, body))
    }

    /// Ends it: asks, and after a while insists.
    pub(in super::super) async fn stop(&mut self) {
        let Ok(pid) = i32::try_from(self.child.id()) else {
            return;
        };
        // Once it has been waited for, its number may be another's.
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let until = Instant::now() + STOP_LIMIT;
        while Instant::now() < until {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    /// After an error nobody waits for a drain; children end with their supervisor.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The sum over all statements on a page of metrics; `None` when it has none.
fn statements(page: &str) -> Option<f64> {
    let counts: Vec<f64> = page
        .lines()
        .filter(|line| line.starts_with("fleet_control_store_statements_total{"))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect();
    (!counts.is_empty()).then(|| counts.iter().sum())
}

fn make_rsa_identity(dir: &Path) -> anyhow::Result<()> {
    let pair = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
        .context("make an RSA key")?;
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = rcgen::CertificateParams::new(names)
        .and_then(|params| params.self_signed(&pair))
        .context("make an RSA certificate")?;
    fs::write(dir.join("rsa.pem"), certificate.pem()).context("write a certificate")?;
    fs::write(dir.join("rsa.key"), pair.serialize_pem()).context("write a key")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_summed() {
        let page = "# TYPE fleet_control_store_statements counter\n\
                    fleet_control_store_statements_total{statement=\"a\"} 3\n\
                    fleet_control_store_statements_total{statement=\"b\"} 4\n\
                    fleet_control_store_statement_errors_total{statement=\"b\"} 9\n";
        assert_eq!(statements(page), Some(7.0));
        assert_eq!(statements(""), None);
    }

    #[test]
    fn rsa_identities_are_made() {
        let dir = tempfile::tempdir().unwrap();
        make_rsa_identity(dir.path()).unwrap();
        let key = fs::read_to_string(dir.path().join("rsa.key")).unwrap();
        // An RSA-2048 key in PEM is much longer than one for P-256.
        assert!(key.len() > 1500, "{}", key.len());
        assert!(version(Path::new("/bin/false")).is_err());
    }
}
