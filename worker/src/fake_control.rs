//! Stands in for control in tests: a real Unix socket that speaks the link.

use std::time::Duration;

use bytes::BytesMut;
use fleet_protocol::agent::{Answer, Request};
use fleet_protocol::frame::{self, Decoder, Message, VERSION};
use fleet_protocol::hello::{Hello, HelloReply};
use fleet_protocol::ids::BootNonce;
use fleet_protocol::link::{Batch, BatchKind, BatchReply, Credit, FromControl, FromWorker};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// Nothing in a test takes this long unless it never happens.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The listening side.
pub(crate) struct FakeControl {
    listener: UnixListener,
    dir: TempDir,
}

/// One link.
pub(crate) struct FakeLink {
    stream: UnixStream,
    decoder: Decoder,
    input: BytesMut,
}

impl FakeControl {
    pub(crate) fn listen() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("control.sock")).unwrap();
        Self { listener, dir }
    }

    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("control.sock")
    }

    /// The next connection and its hello.
    pub(crate) async fn accept(&self) -> (FakeLink, Hello) {
        let accepted = timeout(PATIENCE, self.listener.accept()).await.unwrap();
        let mut link = FakeLink {
            stream: accepted.unwrap().0,
            decoder: Decoder::default(),
            input: BytesMut::new(),
        };
        let hello = link.read().await.unwrap();
        (link, hello)
    }

    /// The next connection, greeted, with one batch of credit for each kind.
    pub(crate) async fn link(&self) -> FakeLink {
        let (mut link, _) = self.accept().await;
        link.greet(1).await;
        link
    }
}

impl FakeLink {
    pub(crate) async fn greet(&mut self, batches: u16) {
        self.greet_in(VERSION, batches).await;
    }

    pub(crate) async fn greet_in(&mut self, version: u16, batches: u16) {
        let credit = BatchKind::ALL.map(|kind| Credit { kind, batches });
        let reply = HelloReply::Accepted {
            version,
            build: "fake".into(),
            boot: BootNonce(1),
            credit: credit.into(),
        };
        self.write(&reply).await;
    }

    /// The bare socket, for a test that has no task to wait in.
    pub(crate) fn into_std(self) -> std::os::unix::net::UnixStream {
        assert!(self.input.is_empty());
        self.stream.into_std().unwrap()
    }

    pub(crate) async fn write<M: Message>(&mut self, message: &M) {
        let mut out = BytesMut::new();
        frame::encode(message, &mut out).unwrap();
        let written = timeout(PATIENCE, self.stream.write_all(&out)).await;
        written.unwrap().unwrap();
    }

    /// The version in the next frame's header.
    pub(crate) async fn version(&mut self) -> u16 {
        while self.input.len() < 6 {
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.input)).await;
            assert_ne!(read.unwrap().unwrap(), 0);
        }
        u16::from_be_bytes([self.input[4], self.input[5]])
    }

    /// `None` at the end of the stream.
    pub(crate) async fn read<M: Message>(&mut self) -> Option<M> {
        loop {
            if let Some(message) = self.decoder.decode(&mut self.input).unwrap() {
                return Some(message);
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.input)).await;
            if matches!(read.unwrap(), Ok(0) | Err(_)) {
                return None;
            }
        }
    }

    /// The next batch; pings are answered.
    pub(crate) async fn batch(&mut self) -> Batch {
        loop {
            match self.read().await.expect("the link stands") {
                FromWorker::Batch(batch) => return batch,
                FromWorker::Ping(number) => self.write(&FromControl::Pong(number)).await,
                FromWorker::Pong(_) => {}
            }
        }
    }

    /// Whether a batch comes before the pong of a ping that is sent now.
    pub(crate) async fn is_silent(&mut self) -> bool {
        self.write(&FromControl::Ping(77)).await;
        loop {
            match self.read().await.expect("the link stands") {
                FromWorker::Batch(_) => return false,
                FromWorker::Ping(number) => self.write(&FromControl::Pong(number)).await,
                FromWorker::Pong(77) => return true,
                FromWorker::Pong(_) => {}
            }
        }
    }

    /// Answers a batch.
    pub(crate) async fn reply(&mut self, batch: &Batch, answer: impl Fn(&Request) -> Answer) {
        let requests = batch.requests.iter();
        let reply = BatchReply {
            id: batch.id,
            kind: batch.kind,
            answers: requests
                .map(|(id, request)| (*id, answer(request)))
                .collect(),
        };
        self.write(&FromControl::Reply(reply)).await;
    }
}
