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

use crate::upgrade;

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
    let peer = stream.peer_cred()?;
    let uid = peer.uid();
    if !is_uid_allowed(uid, Uid::effective().as_raw()) {
        tracing::warn!(uid, "a user who may not is refused at the admin socket");
        return Ok(());
    }
    if is_refused(uid, peer.pid()) {
        let pid = peer.pid();
        tracing::warn!(
            pid,
            "a process of this server, or one that cannot be looked at, is refused at the admin socket"
        );
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

/// Whether a process of ours asks. Workers and control ask for nothing here, and may be in the hands of somebody else.
fn is_refused(uid: u32, pid: Option<i32>) -> bool {
    // 0: it is outside of what we see, where no child of ours is.
    let Some(pid) = pid
        .and_then(|pid| u32::try_from(pid).ok())
        .filter(|pid| *pid != 0)
    else {
        return false;
    };
    if uid == 0 && !Uid::effective().is_root() {
        // No child of ours is root, and we may not be able to look at a process of root's.
        return false;
    }
    // Until the supervisor before us has ended, its children live, too.
    let own = std::process::id();
    let heads = [Some(own), upgrade::predecessor()];
    let heads: Vec<u32> = heads.into_iter().flatten().collect();
    is_below(pid, &heads, upgrade::parent_of)
}

/// Whether a process is a child of one of `heads`, or a child of a child, as in an upgrade. One that has ended already, to
/// leave its question behind, counts. Pure.
fn is_below(pid: u32, heads: &[u32], parent_of: impl Fn(u32) -> Option<u32>) -> bool {
    let Some(parent) = parent_of(pid) else {
        return true;
    };
    heads.contains(&parent) || parent_of(parent).is_some_and(|above| heads.contains(&above))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_told_from_operators() {
        // 10 is the supervisor, 20 the one before it, 5 a shell that started that one.
        let parents = [
            (11, 10),
            (20, 5),
            (21, 20),
            (10, 20),
            (30, 5),
            (5, 1),
            (40, 11),
        ];
        let parent_of = |pid| {
            let mut all = parents.iter();
            all.find(|(of, _)| *of == pid).map(|(_, parent)| *parent)
        };
        for (pid, is_ours) in [(11, true), (21, true), (40, true), (30, false), (5, false)] {
            assert_eq!(is_below(pid, &[10, 20], parent_of), is_ours, "{pid}");
        }
        assert!(is_below(99, &[10, 20], parent_of), "it has ended");
    }

    #[test]
    fn a_child_of_this_process_is_refused_and_this_process_is_not() {
        let uid = Uid::effective().as_raw();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        assert!(is_refused(uid, i32::try_from(child.id()).ok()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_refused(uid, i32::try_from(std::process::id()).ok()));
        assert!(!is_refused(uid, None));
        assert!(!is_refused(uid, Some(0)));
    }
}
