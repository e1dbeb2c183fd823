//! `run/admin.sock`: one request and its reply a connection, for our own user and root alone.
//!
//! Invariants: a bounded number of connections, each with a deadline; the request itself is answered by the supervisor's
//! loop, which owns all state.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use fleet_protocol::admin::{Reply, Request};
use fleet_protocol::frame::{self, Decoder};
use fleet_protocol::hello::is_uid_allowed;
use fleet_protocol::limits::HELLO_DEADLINE;
use nix::unistd::Uid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

const CONNECTIONS_MAX: usize = 16;
/// Lines of progress and the reply that wait to be written; a line that finds no room is left out.
pub(crate) const REPLIES_MAX: usize = 64;

/// A request on its way to the loop.
#[derive(Debug)]
pub(crate) struct Ask {
    /// What is asked.
    pub(crate) request: Request,
    /// Where the reply goes, after lines of progress if there are any.
    pub(crate) reply: mpsc::Sender<Reply>,
}

/// Serves until the process ends.
pub(crate) async fn serve(listener: StdListener, asks: mpsc::Sender<Ask>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return Ok(());
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the admin socket does not accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let asks = asks.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(stream, asks).await {
                tracing::debug!(%error, "an admin request failed");
            }
            drop(place);
        });
    }
}

async fn answer(mut stream: UnixStream, asks: mpsc::Sender<Ask>) -> anyhow::Result<()> {
    let uid = stream.peer_cred()?.uid();
    if !is_uid_allowed(uid, Uid::effective().as_raw()) {
        tracing::warn!(uid, "a user who may not is refused at the admin socket");
        return Ok(());
    }
    let request = tokio::time::timeout(HELLO_DEADLINE, read(&mut stream)).await??;
    let Some(request) = request else {
        return Ok(());
    };
    let is_stop = request == Request::Stop;
    let (reply, mut replies) = mpsc::channel(REPLIES_MAX);
    asks.send(Ask { request, reply }).await?;
    while let Some(reply) = replies.recv().await {
        let mut out = BytesMut::new();
        frame::encode(&reply, &mut out)?;
        tokio::time::timeout(HELLO_DEADLINE, stream.write_all(&out)).await??;
    }
    if is_stop {
        // The end of the connection tells the asker that this process has ended, or the asker leaves.
        let _ = stream.read(&mut [0; 1]).await;
    }
    Ok(())
}

async fn read(stream: &mut UnixStream) -> anyhow::Result<Option<Request>> {
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
    loop {
        if let Some(request) = decoder.decode(&mut input)? {
            return Ok(Some(request));
        }
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(None);
        }
    }
}
