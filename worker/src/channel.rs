//! The channel to the supervisor: messages in and out, and the descriptors that come with them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::BytesMut;
use fleet_child::descriptors::receive;
use fleet_protocol::frame::{self, Decoder};
use fleet_protocol::limits::STATS_INTERVAL;
use fleet_protocol::slot::{FDS_PER_MESSAGE_MAX, FromChild, Listener, Reload, SlotLimits, ToChild};
use fleet_protocol::tickets::TicketKeys;
use socket2::Socket;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::inherit;

/// Before there is a runtime, with what was read ahead of the first message.
pub(crate) struct Channel {
    stream: UnixStream,
    decoder: Decoder,
    input: BytesMut,
}

impl Channel {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
            input: BytesMut::new(),
        }
    }

    /// Waits for the first message. Nothing that comes with descriptors is sent before this process is ready.
    pub(crate) fn read_blocking(&mut self, deadline: Duration) -> anyhow::Result<ToChild> {
        use std::io::Read as _;
        self.stream.set_nonblocking(false)?;
        self.stream.set_read_timeout(Some(deadline))?;
        let mut chunk = [0; 4096];
        loop {
            if let Some(message) = self.decoder.decode(&mut self.input)? {
                return Ok(message);
            }
            let length = self.stream.read(&mut chunk)?;
            anyhow::ensure!(length > 0, "the supervisor closed the channel");
            self.input
                .extend_from_slice(chunk.get(..length).unwrap_or_default());
        }
    }

    /// Says one thing, before or without a runtime.
    pub(crate) fn write_blocking(&mut self, message: &FromChild) -> anyhow::Result<()> {
        use std::io::Write as _;
        let mut out = BytesMut::new();
        frame::encode(message, &mut out)?;
        self.stream.set_nonblocking(false)?;
        self.stream.set_write_timeout(Some(STATS_INTERVAL))?;
        self.stream.write_all(&out)?;
        Ok(())
    }

    /// Both directions, within a runtime.
    pub(crate) fn split(self) -> io::Result<(Ears, Mouth)> {
        self.stream.set_nonblocking(true)?;
        let (reader, writer) = tokio::net::UnixStream::from_std(self.stream)?.into_split();
        let ears = Ears {
            reader,
            decoder: self.decoder,
            input: self.input,
            fds: VecDeque::new(),
        };
        Ok((ears, Mouth(writer)))
    }
}

/// What the supervisor says after the first message.
#[derive(Debug)]
pub(crate) enum Word {
    /// Finish within this time.
    Drain(Duration),
    /// Accept on these, too.
    Listen(Vec<(Listener, Socket)>),
    /// Take what waits on these, which are another slot's.
    Sweep(Vec<(Listener, Socket)>),
    /// Accept no more on these.
    Withdraw(Vec<std::net::SocketAddr>),
    /// Seal and open session tickets with these.
    Tickets(TicketKeys),
    /// Take what can be taken while serving.
    Reload(Box<Reload>),
    /// Take in no more than this.
    Limits(Box<SlotLimits>),
}

/// Hears the supervisor.
pub(crate) struct Ears {
    reader: OwnedReadHalf,
    decoder: Decoder,
    input: BytesMut,
    /// Came with bytes whose message is not complete yet.
    fds: VecDeque<OwnedFd>,
}

impl Ears {
    /// The next word. An error means that the supervisor is gone or not understood. Cancel-safe.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Word> {
        loop {
            match self.decoder.decode(&mut self.input)? {
                Some(ToChild::Drain { deadline_ms }) => {
                    return Ok(Word::Drain(Duration::from_millis(deadline_ms.into())));
                }
                Some(ToChild::Listen(listeners)) => {
                    return self.listen(listeners).map(Word::Listen);
                }
                Some(ToChild::Sweep(listeners)) => {
                    return self.listen(listeners).map(Word::Sweep);
                }
                Some(ToChild::Withdraw(addresses)) => return Ok(Word::Withdraw(addresses)),
                Some(ToChild::Tickets(keys)) => return Ok(Word::Tickets(keys)),
                Some(ToChild::Reload(reload)) => return Ok(Word::Reload(reload)),
                Some(ToChild::Limits(limits)) => return Ok(Word::Limits(limits)),
                Some(_) => tracing::warn!("unexpected message from the supervisor"),
                None => {
                    let stream = self.reader.as_ref();
                    let (input, fds) = (&mut self.input, &mut self.fds);
                    let read =
                        || receive::<FDS_PER_MESSAGE_MAX>(stream, inherit::received, input, fds);
                    let length = stream.async_io(Interest::READABLE, read).await?;
                    anyhow::ensure!(length > 0, "the supervisor is gone");
                }
            }
        }
    }

    /// A listener that is not what it is said to be is left out: the others serve.
    fn listen(&mut self, listeners: Vec<Listener>) -> anyhow::Result<Vec<(Listener, Socket)>> {
        let mut sockets = Vec::new();
        for listener in listeners {
            let Some(fd) = self.fds.pop_front() else {
                anyhow::bail!("a listener came without its descriptor");
            };
            match inherit::prepare(Socket::from(fd), &listener) {
                Ok(socket) => sockets.push((listener, socket)),
                Err(error) => tracing::error!(%error, "cannot listen on {}", listener.address),
            }
        }
        Ok(sockets)
    }
}

/// Tells the supervisor.
pub(crate) struct Mouth(OwnedWriteHalf);

impl Mouth {
    pub(crate) async fn say(&mut self, message: &FromChild) -> io::Result<()> {
        let mut out = BytesMut::new();
        frame::encode(message, &mut out).map_err(io::Error::other)?;
        self.0.write_all(&out).await
    }
}
