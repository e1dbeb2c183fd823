//! Bytes on the wire: a relay between agent and server that counts what passes, and the kernel's count of segments.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::tally::as_f64;
use super::steps::{self, Act};
use crate::agent::Agent;

/// Longest wait for relayed connections to end.
const END_LIMIT: Duration = Duration::from_secs(20);
/// Bytes copied at once.
const COPY_BYTES: usize = 16 << 10;

/// Bytes of one exchange above TCP.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes {
    /// From agent to server; log lines not counted.
    pub(super) up: f64,
    /// From server to agent.
    pub(super) down: f64,
}

#[derive(Default)]
struct Counts {
    up: AtomicU64,
    down: AtomicU64,
    open: AtomicU64,
}

/// Passes connections through and counts; ends with its owner.
pub(super) struct Relay {
    address: SocketAddr,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Listens on a port of the kernel's choice.
    pub(super) async fn start(server: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("open a port")?;
        let counts = Arc::<Counts>::default();
        Ok(Self {
            address: listener.local_addr().context("open a port")?,
            counts: counts.clone(),
            task: tokio::spawn(async move {
                while let Ok((agent, _)) = listener.accept().await {
                    counts.open.fetch_add(1, Ordering::Relaxed);
                    let counts = counts.clone();
                    tokio::spawn(async move {
                        relay(agent, server, &counts).await;
                        counts.open.fetch_sub(1, Ordering::Relaxed);
                    });
                }
            }),
        })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The bytes of one of `times` exchanges.
    pub(super) async fn count(&self, agent: &Agent, act: Act, times: u32) -> anyhow::Result<Bytes> {
        let (up, down) = self.totals().await?;
        let mut line_bytes = 0;
        for _ in 0..times {
            let (exchange, bytes) = act.run(agent).await;
            if let Some(failure) = exchange.failure() {
                bail!("{act:?}: {failure}");
            }
            line_bytes += u64::try_from(bytes).unwrap_or(0);
        }
        agent.close().await;
        let (up_after, down_after) = self.totals().await?;
        let times = f64::from(times);
        Ok(Bytes {
            up: as_f64((up_after - up).saturating_sub(line_bytes)) / times,
            down: as_f64(down_after - down) / times,
        })
    }

    /// The bytes of one host's detail queries; the hosts are enrolled first.
    pub(super) async fn count_details(&self, agents: &[Arc<Agent>]) -> anyhow::Result<Bytes> {
        for agent in agents {
            steps::enroll(agent).await?;
            agent.close().await;
        }
        let (up, down) = self.totals().await?;
        for agent in agents {
            steps::details(agent).await?;
            agent.close().await;
        }
        let (up_after, down_after) = self.totals().await?;
        let hosts = f64::from(u32::try_from(agents.len().max(1))?);
        Ok(Bytes {
            up: as_f64(up_after - up) / hosts,
            down: as_f64(down_after - down) / hosts,
        })
    }

    /// Both directions so far, once every connection has ended.
    async fn totals(&self) -> anyhow::Result<(u64, u64)> {
        let until = Instant::now() + END_LIMIT;
        while self.counts.open.load(Ordering::Relaxed) > 0 {
            anyhow::ensure!(Instant::now() < until, "relayed connections do not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok((
            self.counts.up.load(Ordering::Relaxed),
            self.counts.down.load(Ordering::Relaxed),
        ))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(agent: TcpStream, server: SocketAddr, counts: &Counts) {
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let (from_agent, to_agent) = agent.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::join!(
        pump(from_agent, to_server, &counts.up),
        pump(from_server, to_agent, &counts.down)
    );
}

/// Copies up to the end of file; a cut is an end too, and what passed before counts.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, count: &AtomicU64) {
    let mut buffer = vec![0; COPY_BYTES];
    while let Ok(read) = from.read(&mut buffer).await {
        let bytes = buffer.get(..read).unwrap_or_default();
        count.fetch_add(u64::try_from(read).unwrap_or(0), Ordering::Relaxed);
        if bytes.is_empty() || to.write_all(bytes).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// TCP segments that this network namespace has sent; on loopback, those of both ends.
pub(super) fn segments_sent() -> Option<f64> {
    out_segments(&std::fs::read_to_string("/proc/net/snmp").ok()?)
}

/// `OutSegs` of the two lines that begin with `Tcp:`, names and values.
fn out_segments(text: &str) -> Option<f64> {
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split(' ').position(|name| name == "OutSegs")?;
    values.split(' ').nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_found_by_their_name() {
        let text = "Ip: A B\nIp: 1 2\nTcp: InSegs OutSegs X\nTcp: 5 7 9\n";
        assert_eq!(out_segments(text), Some(7.0));
        assert_eq!(out_segments("Tcp: OutSegs\n"), None);
        assert!(segments_sent().is_some());
    }
}
