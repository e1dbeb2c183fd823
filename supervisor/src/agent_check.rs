//! HAProxy's agent-check: whoever connects gets one line, at once and from memory, and the end of the connection.
//!
//! The port stays open until the end of the drain, since to HAProxy only the agent takes back what the agent said, and a
//! connection that fails changes nothing.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use fleet_protocol::config::AgentCheck as Options;
use fleet_protocol::slot::Gateway;
use fleet_protocol::upgrade::{Item, ItemKind};
use fleet_protocol::weight::Standing;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::exit::Failure;
use crate::spread::{bind_tcp, item};
use crate::upgrade::Inheritance;

/// Connections at once; more wait in the backlog.
const CONNECTIONS_MAX: usize = 64;
/// For the line to be taken and the peer to close.
const CONNECTION_MAX: Duration = Duration::from_secs(1);
/// Bytes that a balancer may send (`agent-send`) and that are dropped, lest they turn our close into a reset.
const DROPPED_BYTES_MAX: usize = 1024;
/// After an error of accept, such as want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The port, bound.
#[derive(Debug)]
pub(crate) struct AgentCheck {
    address: SocketAddr,
    listener: StdTcpListener,
    connections_per_worker_max: u32,
}

/// Binds; `None` when no address is configured.
pub(crate) fn open(
    options: &Options,
    connections_per_worker_max: u32,
    inherited: &mut Inheritance,
) -> Result<Option<AgentCheck>, Failure> {
    const OPTION: &str = "addresses.agent_check.listen";
    if options.listen.is_empty() {
        return Ok(None);
    }
    let address: SocketAddr = options
        .listen
        .parse()
        .map_err(|_| Failure::config(format!("{OPTION}: {:?} is not IP:port", options.listen)))?;
    Ok(Some(AgentCheck {
        address,
        listener: bind_tcp(address, ItemKind::AgentCheck, OPTION, inherited)?,
        connections_per_worker_max,
    }))
}

impl AgentCheck {
    /// Its socket by its identity.
    pub(crate) fn item(&self) -> io::Result<(Item, OwnedFd)> {
        let fd = self.listener.try_clone()?.into();
        Ok((item(ItemKind::AgentCheck, self.address), fd))
    }

    /// Answers until the tasks end.
    pub(crate) fn run(self, gateway: watch::Receiver<Arc<Gateway>>, tasks: &mut JoinSet<()>) {
        match TcpListener::from_std(self.listener) {
            Ok(listener) => {
                tasks.spawn(serve(listener, self.connections_per_worker_max, gateway));
            }
            Err(error) => tracing::error!(%error, "the agent-check port is lost"),
        }
    }
}

async fn serve(
    listener: TcpListener,
    connections_per_worker_max: u32,
    gateway: watch::Receiver<Arc<Gateway>>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "an agent-check was not accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        let line = line(Standing::of(&gateway.borrow(), connections_per_worker_max));
        tokio::spawn(async move {
            // A balancer that does not take it asks again.
            let _ = timeout(CONNECTION_MAX, tell(stream, &line)).await;
            drop(place);
        });
    }
}

async fn tell(mut stream: TcpStream, line: &str) -> std::io::Result<()> {
    stream.write_all(line.as_bytes()).await?;
    stream.shutdown().await?;
    let mut dropped = [0; 128];
    for _ in 0..DROPPED_BYTES_MAX / dropped.len() {
        if stream.read(&mut dropped).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// What HAProxy reads. `up` takes back `down`, and `ready` takes back `drain`.
fn line(standing: Standing) -> String {
    match standing {
        Standing::Up { percent } => format!("up ready {percent}%\n"),
        Standing::Drain => "drain\n".into(),
        Standing::Down => "down\n".into(),
        Standing::Stopped => "stopped\n".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    async fn ask(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut line = String::new();
        timeout(Duration::from_secs(30), stream.read_to_string(&mut line))
            .await
            .unwrap()
            .unwrap();
        line
    }

    #[tokio::test]
    async fn each_connection_gets_the_line_of_that_moment() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, receiver) = watch::channel(Arc::new(Gateway::default()));
        tokio::spawn(serve(listener, 10, receiver));
        assert_eq!(ask(address).await, "down\n");
        sender.send_replace(Arc::new(Gateway {
            is_draining: true,
            ..Gateway::default()
        }));
        assert_eq!(ask(address).await, "drain\n");
        // More than there are places for at once, and none of them reads: they give way in time.
        let idle: Vec<_> = (0..CONNECTIONS_MAX + 8)
            .map(|_| TcpStream::connect(address))
            .collect();
        let mut held = Vec::new();
        for connecting in idle {
            held.push(connecting.await.unwrap());
        }
        assert_eq!(ask(address).await, "drain\n");
    }

    #[test]
    fn lines_are_what_haproxy_reads() {
        assert_eq!(line(Standing::Up { percent: 7 }), "up ready 7%\n");
        assert_eq!(line(Standing::Stopped), "stopped\n");
    }

    #[test]
    fn a_port_that_cannot_be_had_is_one_sentence() {
        let taken = StdTcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let listen = taken.local_addr().unwrap().to_string();
        let failure = open(&Options { listen }, 1, &mut Inheritance::default())
            .unwrap_err()
            .to_string();
        assert!(
            failure.contains("taken by pid") && failure.contains("addresses.agent_check.listen"),
            "{failure}"
        );
        assert!(
            open(&Options::default(), 1, &mut Inheritance::default())
                .unwrap()
                .is_none()
        );
    }
}
