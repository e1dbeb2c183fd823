//! The worker's life: ready, reports each second, and an end in which nothing that is open is lost.
//!
//! The end begins when the supervisor says so, or when its end of the channel closes because it is gone.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use fleet_protocol::frame::{self, Decoder};
use fleet_protocol::limits::{DRAIN_DEADLINE, STATS_INTERVAL};
use fleet_protocol::slot::{FromChild, ToChild};
use socket2::Socket;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::{Worker, accept, link, stats};

/// Part of the drain's time that is kept for what still has to reach control.
const FINISH_SHARE: u32 = 8;

/// Whether the end has begun.
#[derive(Default)]
pub(crate) struct Drain {
    is_begun: Cell<bool>,
    begun: Notify,
}

impl Drain {
    fn begin(&self) {
        self.is_begun.set(true);
        self.begun.notify_waiters();
    }

    /// Returns when the end has begun.
    pub(crate) async fn begun(&self) {
        while !self.is_begun.get() {
            self.begun.notified().await;
        }
    }
}

/// The channel to the supervisor, with what was read ahead of its first message.
pub(crate) struct Channel {
    pub(crate) stream: std::os::unix::net::UnixStream,
    pub(crate) decoder: Decoder,
    pub(crate) input: BytesMut,
}

impl Channel {
    pub(crate) fn new(stream: std::os::unix::net::UnixStream) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
            input: BytesMut::new(),
        }
    }

    /// Waits for the next message, before there is a runtime.
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
}

/// Serves until the end, and through it.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    channel: Channel,
    listeners: Vec<Socket>,
) -> anyhow::Result<()> {
    channel.stream.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(channel.stream)?;
    let (reader, mut writer) = stream.into_split();
    let mut lasting = JoinSet::new();
    lasting.spawn_local(link::run(Rc::clone(&worker.state)));
    lasting.spawn_local(Rc::clone(&worker.clock).run());
    let mut accepts = JoinSet::new();
    for listener in listeners {
        accepts.spawn_local(accept::run(Rc::clone(&worker), listener));
    }
    let boot = worker.state.boot;
    write(&mut writer, &FromChild::Ready { boot }).await?;
    tracing::info!(listeners = accepts.len(), "serving");
    tokio::task::spawn_local(report(Rc::clone(&worker), writer));

    // A task that ends before its time has panicked or lost its socket: what is open is finished, and another process
    // takes over.
    let (time, is_broken) = tokio::select! {
        time = watch(reader, channel.decoder, channel.input) => (time, false),
        _ = accepts.join_next() => (DRAIN_DEADLINE, true),
        _ = lasting.join_next() => (DRAIN_DEADLINE, true),
    };
    let begun_at = Instant::now();
    tracing::info!(open = worker.door.open(), ?time, "draining");
    worker.policy.may_reuse.set(false);
    worker.drain.begin();
    worker.clock.wake_all();
    let exchanges = async {
        while accepts.join_next().await.is_some() {}
        worker.door.empty().await;
    };
    let exchanges_time = time - time / FINISH_SHARE;
    if tokio::time::timeout(exchanges_time, exchanges)
        .await
        .is_err()
    {
        tracing::warn!(
            open = worker.door.open(),
            "connections are cut at the end of the drain"
        );
    }
    let rest = time.saturating_sub(begun_at.elapsed());
    if tokio::time::timeout(rest, link::finish(&worker.state))
        .await
        .is_err()
    {
        tracing::warn!("control has not taken everything by the end of the drain");
    }
    tracing::info!(after = ?begun_at.elapsed(), "drained");
    anyhow::ensure!(!is_broken, "a task of this worker has broken");
    Ok(())
}

/// Waits for the word to drain, or for the end of the supervisor; returns how long the drain may take.
async fn watch(mut reader: OwnedReadHalf, mut decoder: Decoder, mut input: BytesMut) -> Duration {
    loop {
        match decoder.decode(&mut input) {
            Ok(Some(ToChild::Drain { deadline_ms })) => {
                return Duration::from_millis(deadline_ms.into());
            }
            Ok(Some(_)) => tracing::warn!("unexpected message from the supervisor"),
            Ok(None) => match reader.read_buf(&mut input).await {
                Ok(length) if length > 0 => {}
                _ => {
                    tracing::warn!("the supervisor is gone");
                    return DRAIN_DEADLINE;
                }
            },
            Err(error) => {
                tracing::error!(%error, "the supervisor is not understood");
                return DRAIN_DEADLINE;
            }
        }
    }
}

/// Sends the counters each second. A supervisor that does not read holds up nothing but this.
async fn report(worker: Rc<Worker>, mut writer: OwnedWriteHalf) {
    let mut interval = tokio::time::interval(STATS_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        interval.tick().await;
        worker.state.stats.borrow_mut().open_connections = worker.door.open();
        let report = FromChild::Worker(Box::new(stats::report(&worker.state)));
        if let Err(error) = write(&mut writer, &report).await {
            tracing::debug!(%error, "no report");
            return;
        }
    }
}

async fn write(writer: &mut OwnedWriteHalf, message: &FromChild) -> io::Result<()> {
    let mut out = BytesMut::new();
    frame::encode(message, &mut out).map_err(io::Error::other)?;
    writer.write_all(&out).await
}
