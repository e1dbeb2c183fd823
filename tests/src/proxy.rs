//! A proxy with faults, to stand between the gateway and a server: it delays, hangs, cuts, refuses, and is well again.
//!
//! Bytes pass unchanged. A fault that is set holds for connections that exist and for those that come.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::port;
use crate::wait;

/// How often threads look whether something has changed.
const TICK: Duration = Duration::from_millis(5);
/// Bytes taken at once; each such piece is delayed on its own.
const PIECE: usize = 16 * 1024;

/// What happens to bytes and connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// All is well.
    None,
    /// Nobody listens (ECONNREFUSED), and connections that exist are cut.
    Refuse,
    /// Connections are taken and kept, and not a byte passes.
    Hang,
    /// Each piece waits so long in each direction.
    Delay(Duration),
    /// A connection is cut once so many bytes have gone to the client, counted from when the fault was set.
    CutAfter(u64),
}

/// Where the proxy leads to.
#[derive(Clone, Debug)]
pub enum Upstream {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl From<SocketAddr> for Upstream {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<&Path> for Upstream {
    fn from(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }
}

/// A running proxy on a port of 127.0.0.1, which stays its own while it refuses.
#[derive(Debug)]
pub struct Proxy {
    /// Where clients connect to.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    upstream: Mutex<Upstream>,
    fault: Mutex<Fault>,
    /// Goes up with each fault that is set.
    era: AtomicU64,
    /// Connections of older epochs are cut.
    epoch: AtomicU64,
    accepted: AtomicU64,
    is_listening: AtomicBool,
    has_ended: AtomicBool,
}

impl Proxy {
    /// Begins to pass bytes.
    pub fn start(upstream: impl Into<Upstream>) -> Self {
        let (address, listener) = loop {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()));
            if let Ok(listener) = TcpListener::bind(address) {
                break (address, listener);
            }
        };
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream.into()),
            fault: Mutex::new(Fault::None),
            era: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            is_listening: AtomicBool::new(true),
            has_ended: AtomicBool::new(false),
        });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&shared, address, listener)
        });
        Self {
            address,
            shared,
            acceptor: Some(acceptor),
        }
    }

    /// Changes what happens from now on. Returns once the listener is open or closed as the fault wants it.
    pub fn set(&self, fault: Fault) {
        *lock(&self.shared.fault) = fault;
        self.shared.era.fetch_add(1, Ordering::SeqCst);
        if fault == Fault::Refuse {
            self.cut();
        }
        wait::until("the proxy follows", || {
            let is_listening = self.shared.is_listening.load(Ordering::SeqCst);
            (is_listening == (fault != Fault::Refuse)).then_some(())
        });
    }

    /// Ends every connection that exists; new ones are taken.
    pub fn cut(&self) {
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Connections that come from now on lead elsewhere, as after a change of a DNS name; those that exist stay.
    pub fn lead_to(&self, upstream: impl Into<Upstream>) {
        *lock(&self.shared.upstream) = upstream.into();
    }

    /// Connections taken so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.has_ended.store(true, Ordering::SeqCst);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    fn fault(&self) -> Fault {
        *lock(&self.fault)
    }

    fn is_over(&self, epoch: u64) -> bool {
        self.has_ended.load(Ordering::SeqCst) || self.epoch.load(Ordering::SeqCst) != epoch
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(shared: &Arc<Shared>, address: SocketAddr, listener: TcpListener) {
    listener.set_nonblocking(true).unwrap();
    let mut listener = Some(listener);
    while !shared.has_ended.load(Ordering::SeqCst) {
        let refuses = shared.fault() == Fault::Refuse;
        if refuses {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(address)
                .and_then(|bound| bound.set_nonblocking(true).map(|()| bound))
                .ok();
        }
        let is_listening = listener.is_some();
        shared.is_listening.store(is_listening, Ordering::SeqCst);
        match listener.as_ref().map(TcpListener::accept) {
            Some(Ok((client, _))) => {
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                let shared = Arc::clone(shared);
                std::thread::spawn(move || serve(&shared, client));
            }
            _ => std::thread::sleep(TICK),
        }
    }
}

/// Passes one connection's bytes until one side ends it or it is cut.
fn serve(shared: &Arc<Shared>, client: TcpStream) {
    let epoch = shared.epoch.load(Ordering::SeqCst);
    while shared.fault() == Fault::Hang {
        if shared.is_over(epoch) {
            return;
        }
        std::thread::sleep(TICK);
    }
    let upstream = lock(&shared.upstream).clone();
    let server = match upstream {
        Upstream::Tcp(address) => TcpStream::connect(address).map(Stream::Tcp),
        Upstream::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
    };
    let Ok(server) = server else { return };
    let _ = client.set_nonblocking(false);
    let _ = client.set_nodelay(true);
    let client = Stream::Tcp(client);
    let (Ok(client_too), Ok(server_too)) = (client.try_clone(), server.try_clone()) else {
        return;
    };
    let to_server = std::thread::spawn({
        let shared = Arc::clone(shared);
        move || pump(&shared, epoch, client_too, server_too, false)
    });
    pump(shared, epoch, server, client, true);
    let _ = to_server.join();
}

fn pump(shared: &Shared, epoch: u64, mut from: Stream, mut to: Stream, is_to_client: bool) {
    let mut buffer = vec![0; PIECE];
    let (mut era, mut passed) = (shared.era.load(Ordering::SeqCst), 0);
    let _ = from.set_read_timeout(TICK);
    while !shared.is_over(epoch) {
        let fault = shared.fault();
        if fault == Fault::Hang {
            std::thread::sleep(TICK);
            continue;
        }
        let now = shared.era.load(Ordering::SeqCst);
        if now != era {
            (era, passed) = (now, 0);
        }
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if is_timeout(&error) => continue,
            Err(_) => break,
        };
        // A fault that was set during the read is true of what was read.
        let mut count = count;
        let mut is_last = false;
        match shared.fault() {
            Fault::Delay(span) => pause(shared, epoch, span),
            Fault::Hang => {
                while shared.fault() == Fault::Hang && !shared.is_over(epoch) {
                    std::thread::sleep(TICK);
                }
            }
            Fault::CutAfter(most) if is_to_client => {
                let left = usize::try_from(most - passed.min(most)).unwrap_or(usize::MAX);
                is_last = count >= left;
                count = count.min(left);
                passed += count as u64;
            }
            _ => {}
        }
        if shared.is_over(epoch) || to.write_all(&buffer[..count]).is_err() || is_last {
            break;
        }
    }
    from.shutdown();
    to.shutdown();
}

/// Waits, but no longer than the connection lives or the fault is in force.
fn pause(shared: &Shared, epoch: u64, span: Duration) {
    let end = Instant::now() + span;
    while Instant::now() < end
        && !shared.is_over(epoch)
        && matches!(shared.fault(), Fault::Delay(_))
    {
        std::thread::sleep(TICK.min(end.saturating_duration_since(Instant::now())));
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// Either kind of socket.
#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }

    fn set_read_timeout(&self, span: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(span)),
            Self::Unix(stream) => stream.set_read_timeout(Some(span)),
        }
    }

    fn shutdown(&self) {
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives back what it is sent.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let _ = io::copy(&mut &stream, &mut &stream);
                });
            }
        });
        address
    }

    fn connect(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect(proxy.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream
    }

    fn ask(stream: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(text)?;
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    }

    #[test]
    fn bytes_pass_and_faults_come_and_go() {
        let proxy = Proxy::start(echo());
        let mut stream = connect(&proxy);
        assert_eq!(ask(&mut stream, b"one").unwrap(), b"one");

        let span = Duration::from_millis(150);
        proxy.set(Fault::Delay(span));
        let started = Instant::now();
        assert_eq!(ask(&mut stream, b"two").unwrap(), b"two");
        assert!(started.elapsed() >= 2 * span, "one delay for each way");

        proxy.set(Fault::Refuse);
        assert!(ask(&mut stream, b"three").is_err());
        assert!(TcpStream::connect(proxy.address).is_err());

        proxy.set(Fault::None);
        let mut stream = connect(&proxy);
        assert_eq!(ask(&mut stream, b"four").unwrap(), b"four");
        proxy.cut();
        assert!(ask(&mut stream, b"five").is_err());
        assert_eq!(ask(&mut connect(&proxy), b"six").unwrap(), b"six");
        assert_eq!(proxy.accepted(), 3);
    }

    #[test]
    fn a_hung_connection_goes_on_later_and_a_cut_one_ends_in_the_middle() {
        let proxy = Proxy::start(echo());
        let mut stream = connect(&proxy);
        proxy.set(Fault::Hang);
        stream.write_all(b"late").unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        assert!(is_timeout(&stream.read(&mut [0; 4]).unwrap_err()));
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        proxy.set(Fault::None);
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"late");

        proxy.set(Fault::CutAfter(3));
        stream.write_all(b"whole").unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"who");
    }
}
