//! The authoritative responder for the one name that agents know: its sockets. What is answered is [`answer`]'s.
//!
//! hickory's parser and writer stand behind it, not its server: that has no bound on TCP connections, and logs each
//! question. Invariants: one question of a socket at a time, answered from memory; a UDP answer that cannot be sent at
//! once is dropped, since the client asks again; a bounded number of TCP connections, in all and of one source, each with a
//! deadline that nothing puts off.

mod answer;
mod order;

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::net::{TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::Duration;

use fleet_protocol::config::Dns;
use fleet_protocol::slot::Gateway;
use fleet_protocol::upgrade::{Item, ItemKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::exit::Failure;
use crate::spread::{bind_tcp, bind_udp, expand, item};
use crate::upgrade::Inheritance;
use answer::{Transport, Zone};

/// Where it listens when it is not said.
const PORT: u16 = 53;
const OPTION: &str = "addresses.dns.listen";
/// Longest question; ours are below 400 bytes.
const QUESTION_BYTES_MAX: usize = 4096;
/// TCP connections of one listener at once; more wait in its backlog.
const CONNECTIONS_MAX: usize = 64;
/// Of these, connections of one [`source`]: nobody takes all places alone. A resolver asks by TCP only what did not fit in
/// a packet, and over one connection or a few.
const CONNECTIONS_PER_SOURCE_MAX: usize = 8;
/// From a connection's start to its end, however busy it is: places come free at that rate at least.
const CONNECTION_SPAN_MAX: Duration = Duration::from_secs(10);
/// Questions on one TCP connection.
const QUESTIONS_MAX: usize = 100;
/// From a connection's start, or the last answer, to the end of the next question; and for an answer to be taken.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// After a socket's error, such as want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The zone and its sockets, bound.
#[derive(Debug)]
pub(crate) struct Responder {
    zone: Zone,
    udp: Vec<(SocketAddr, StdUdpSocket)>,
    tcp: Vec<(SocketAddr, StdTcpListener)>,
}

/// Binds; `None` when no name is configured. `served` is where agents connect.
pub(crate) fn open(
    dns: &Dns,
    served: &[SocketAddr],
    inherited: &mut Inheritance,
) -> Result<Option<Responder>, Failure> {
    if dns.name.is_empty() {
        return Ok(None);
    }
    let zone =
        Zone::new(dns).map_err(|error| Failure::config(format!("addresses.dns: {error:#}")))?;
    let mut responder = Responder {
        zone,
        udp: Vec::new(),
        tcp: Vec::new(),
    };
    for address in listen_addresses(dns, served)? {
        let tcp = bind_tcp(address, ItemKind::DnsTcp, OPTION, inherited)?;
        responder.tcp.push((address, tcp));
        let udp = bind_udp(address, ItemKind::DnsUdp, OPTION, inherited)?;
        responder.udp.push((address, udp));
    }
    Ok(Some(responder))
}

fn listen_addresses(dns: &Dns, served: &[SocketAddr]) -> Result<Vec<SocketAddr>, Failure> {
    if dns.listen.is_empty() {
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in served {
            let address = SocketAddr::new(address.ip(), PORT);
            if !address.ip().is_unspecified() && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        return Ok(addresses);
    }
    let listed = fleet_protocol::address_list::sockets(&dns.listen)
        .map_err(|error| Failure::config(format!("{OPTION}: {error}")))?;
    // An answer must come from where the question went, which a socket on a wildcard does not see to.
    let addresses = expand(&listed);
    if addresses.is_empty() {
        return Err(Failure::config(format!(
            "{OPTION}: this machine has no address that a wildcard could stand for; list addresses"
        )));
    }
    Ok(addresses)
}

impl Responder {
    /// Adds its sockets by their identity.
    pub(crate) fn add_items(&self, items: &mut Vec<(Item, OwnedFd)>) -> io::Result<()> {
        for (address, socket) in &self.udp {
            let fd = socket.try_clone()?.into();
            items.push((item(ItemKind::DnsUdp, *address), fd));
        }
        for (address, listener) in &self.tcp {
            let fd = listener.try_clone()?.into();
            items.push((item(ItemKind::DnsTcp, *address), fd));
        }
        Ok(())
    }

    /// Answers until the tasks end.
    pub(crate) fn run(self, gateway: &watch::Receiver<Arc<Gateway>>, tasks: &mut JoinSet<()>) {
        let zone = Arc::new(self.zone);
        for (_, socket) in self.udp {
            match UdpSocket::from_std(socket) {
                Ok(socket) => {
                    tasks.spawn(serve_udp(socket, Arc::clone(&zone), gateway.clone()));
                }
                Err(error) => tracing::error!(%error, "a DNS socket is lost"),
            }
        }
        for (_, listener) in self.tcp {
            match TcpListener::from_std(listener) {
                Ok(listener) => {
                    tasks.spawn(serve_tcp(listener, Arc::clone(&zone), gateway.clone()));
                }
                Err(error) => tracing::error!(%error, "a DNS listener is lost"),
            }
        }
    }
}

/// A mistake in a parser costs one question, not the responder.
fn answer(
    zone: &Zone,
    question: &[u8],
    from: SocketAddr,
    transport: Transport,
    gateway: &watch::Receiver<Arc<Gateway>>,
) -> Option<Vec<u8>> {
    let gateway = Arc::clone(&gateway.borrow());
    let answered = std::panic::catch_unwind(AssertUnwindSafe(|| {
        zone.answer(question, from, transport, &gateway)
    }));
    answered.unwrap_or_else(|_| {
        tracing::error!(%from, "a DNS question could not be worked on");
        None
    })
}

async fn serve_udp(socket: UdpSocket, zone: Arc<Zone>, gateway: watch::Receiver<Arc<Gateway>>) {
    let mut question = vec![0; QUESTION_BYTES_MAX];
    loop {
        let (bytes, from) = match socket.recv_from(&mut question).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "a DNS packet was not received");
                sleep(PAUSE).await;
                continue;
            }
        };
        let question = question.get(..bytes).unwrap_or_default();
        if let Some(answer) = answer(&zone, question, from, Transport::Udp, &gateway) {
            let _ = socket.try_send_to(&answer, from);
        }
    }
}

async fn serve_tcp(listener: TcpListener, zone: Arc<Zone>, gateway: watch::Receiver<Arc<Gateway>>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // As many as there are places: what has ended is left out before one is added.
    let mut open: Vec<(IpAddr, Weak<OwnedSemaphorePermit>)> = Vec::with_capacity(CONNECTIONS_MAX);
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a DNS connection was not accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        open.retain(|(_, place)| place.strong_count() > 0);
        let source = source(from.ip());
        if open.iter().filter(|(other, _)| *other == source).count() >= CONNECTIONS_PER_SOURCE_MAX {
            tracing::debug!(%from, "a DNS connection is one too many of its source");
            continue;
        }
        let place = Arc::new(place);
        open.push((source, Arc::downgrade(&place)));
        let (zone, gateway) = (Arc::clone(&zone), gateway.clone());
        tokio::spawn(async move {
            // Whatever goes wrong on it, the connection ends, and the client tries again.
            let talk = converse(stream, from, &zone, &gateway);
            let _ = timeout(CONNECTION_SPAN_MAX, talk).await;
            drop(place);
        });
    }
}

/// Who a connection counts for: an IPv4 address, or the /64 of an IPv6 one, in which a host has as many as it likes.
fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        ip => ip,
    }
}

async fn converse(
    mut stream: TcpStream,
    from: SocketAddr,
    zone: &Zone,
    gateway: &watch::Receiver<Arc<Gateway>>,
) -> anyhow::Result<()> {
    for _ in 0..QUESTIONS_MAX {
        let question = timeout(IDLE_MAX, async {
            let length = usize::from(stream.read_u16().await?);
            anyhow::ensure!(length <= QUESTION_BYTES_MAX, "{length} bytes");
            let mut question = vec![0; length];
            stream.read_exact(&mut question).await?;
            Ok(question)
        })
        .await??;
        let Some(answer) = answer(zone, &question, from, Transport::Tcp, gateway) else {
            return Ok(());
        };
        let mut framed = u16::try_from(answer.len())?.to_be_bytes().to_vec();
        framed.extend_from_slice(&answer);
        timeout(IDLE_MAX, stream.write_all(&framed)).await??;
    }
    Ok(())
}

#[cfg(test)]
#[path = "dns/socket_tests.rs"]
mod tests;
