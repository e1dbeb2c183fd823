//! Plays control toward the worker: accepts its link, loads its table, takes what it sends.

use std::rc::Rc;

use anyhow::Context as _;
use aws_lc_rs::digest::{SHA256, digest};
use bytes::{Bytes, BytesMut};
use fleet_protocol::agent::{Answer, Request};
use fleet_protocol::feed::{CHANGES_PER_FEED_MAX, Change, Feed, Host, Load};
use fleet_protocol::frame::{self, Decoder, Message, VERSION};
use fleet_protocol::hello::{Hello, HelloReply};
use fleet_protocol::ids::{AnswerId, BootNonce, FeedSeq, HostId, NodeKeyHash, UnixSeconds};
use fleet_protocol::link::{BatchKind, BatchReply, Credit, FromControl, FromWorker};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

const ANSWER: AnswerId = AnswerId(1);

/// The node key of a host, by its number from 0.
pub(super) fn node_key(host: u32) -> String {
    format!("0123456789abcdef{host:016x}")
}

/// Serves one worker until it ends.
pub(super) async fn serve(listener: Rc<UnixListener>, hosts: u32) -> anyhow::Result<()> {
    let (stream, _) = listener.accept().await.context("accept the link")?;
    let mut link = Link {
        stream,
        decoder: Decoder::default(),
        input: BytesMut::new(),
    };
    let _: Option<Hello> = link.read().await?;
    let credit = |kind| Credit { kind, batches: 4 };
    link.write(&HelloReply::Accepted {
        version: VERSION,
        build: "loadtest".into(),
        boot: BootNonce(1),
        credit: BatchKind::ALL.map(credit).into(),
    })
    .await?;
    link.load(hosts).await?;
    while let Some(message) = link.read().await? {
        match message {
            FromWorker::Ping(number) => link.write(&FromControl::Pong(number)).await?,
            FromWorker::Pong(_) => {}
            FromWorker::Batch(batch) => {
                let answers = batch.requests.iter().map(|(id, request)| {
                    let answer = match request {
                        Request::Lookup(_) => Answer::Host(None),
                        _ => Answer::Accepted,
                    };
                    (*id, answer)
                });
                let reply = BatchReply {
                    id: batch.id,
                    kind: batch.kind,
                    answers: answers.collect(),
                };
                link.write(&FromControl::Reply(reply)).await?;
            }
        }
    }
    Ok(())
}

struct Link {
    stream: UnixStream,
    decoder: Decoder,
    input: BytesMut,
}

impl Link {
    /// `None` at the end of the stream.
    async fn read<M: Message>(&mut self) -> anyhow::Result<Option<M>> {
        loop {
            if let Some(message) = self.decoder.decode(&mut self.input)? {
                return Ok(Some(message));
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn write<M: Message>(&mut self, message: &M) -> anyhow::Result<()> {
        let mut out = BytesMut::new();
        frame::encode(message, &mut out)?;
        Ok(self.stream.write_all(&out).await?)
    }

    async fn load(&mut self, hosts: u32) -> anyhow::Result<()> {
        let config = Change::Answer {
            id: ANSWER,
            config: Bytes::from_static(b"{}"),
        };
        self.feed(Load::Begin, vec![config]).await?;
        let mut next = 0;
        while next < hosts {
            let piece = (next..hosts).take(CHANGES_PER_FEED_MAX);
            let changes: Vec<_> = piece.map(|number| Change::Host(host(number))).collect();
            next += u32::try_from(changes.len())?;
            self.feed(Load::Continue, changes).await?;
        }
        self.feed(Load::End, Vec::new()).await
    }

    async fn feed(&mut self, load: Load, changes: Vec<Change>) -> anyhow::Result<()> {
        let feed = Feed {
            load,
            seq: FeedSeq(1),
            changes,
        };
        self.write(&FromControl::Feed(feed)).await
    }
}

/// With nothing due, ever.
fn host(number: u32) -> Host {
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, node_key(number).as_bytes()).as_ref());
    Host {
        id: HostId(number + 1),
        key: NodeKeyHash(key),
        answer: ANSWER,
        work_due_at: UnixSeconds(u32::MAX),
    }
}
