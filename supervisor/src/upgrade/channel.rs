//! Messages with descriptors between two supervisors. What is said is small and each piece is acknowledged, so that
//! saying never waits: a peer that does not read is given up.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;

use bytes::BytesMut;
use fleet_child::descriptors::receive;
use fleet_protocol::frame::{self, Decoder, Message};
use fleet_protocol::upgrade::ITEMS_PER_MESSAGE_MAX;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::sys;

/// One end.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: UnixStream,
    decoder: Decoder,
    input: BytesMut,
    fds: VecDeque<OwnedFd>,
}

impl Channel {
    /// Must be called within a runtime.
    pub(crate) fn new(stream: StdUnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
            decoder: Decoder::default(),
            input: BytesMut::new(),
            fds: VecDeque::new(),
        })
    }

    /// Sends a message whole or not at all; after an error the channel is of no use.
    pub(crate) fn say<M: Message>(&self, message: &M, fds: &[OwnedFd]) -> io::Result<()> {
        let mut out = BytesMut::new();
        frame::encode(message, &mut out).map_err(io::Error::other)?;
        let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let sent = sendmsg::<()>(
            self.stream.as_raw_fd(),
            &[IoSlice::new(&out)],
            rights,
            flags,
            None,
        )?;
        if sent < out.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// The next message; `None` at the end of the channel. Cancel-safe.
    pub(crate) async fn hear<M: Message>(&mut self) -> anyhow::Result<Option<M>> {
        loop {
            if let Some(message) = self.decoder.decode(&mut self.input)? {
                return Ok(Some(message));
            }
            let (stream, input, fds) = (&self.stream, &mut self.input, &mut self.fds);
            let read = || receive::<ITEMS_PER_MESSAGE_MAX>(stream, sys::received, input, fds);
            match self.stream.async_io(Interest::READABLE, read).await {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                // What a killed process leaves unread makes the end a reset.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next descriptor that has come.
    pub(crate) fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};

    use fleet_protocol::upgrade::{FromNew, FromOld, Item, ItemKind};

    use super::*;

    fn pair() -> (Channel, Channel) {
        let (one, two) = StdUnixStream::pair().unwrap();
        (Channel::new(one).unwrap(), Channel::new(two).unwrap())
    }

    #[tokio::test]
    async fn descriptors_come_with_their_message_in_order() {
        let (old, mut new) = pair();
        let (mut ours, theirs): (Vec<_>, Vec<_>) = (0..ITEMS_PER_MESSAGE_MAX)
            .map(|_| StdUnixStream::pair().unwrap())
            .unzip();
        let item = Item {
            kind: ItemKind::Agents,
            address: None,
            slot: Some(0),
        };
        let items = FromOld::Hand(vec![item; theirs.len()]);
        let theirs: Vec<OwnedFd> = theirs.into_iter().map(OwnedFd::from).collect();
        old.say(&items, &theirs).unwrap();
        drop(theirs);
        old.say(&FromOld::Commit, &[]).unwrap();
        assert_eq!(new.hear().await.unwrap(), Some(items));
        for (index, ours) in ours.iter_mut().enumerate() {
            ours.write_all(&[u8::try_from(index).unwrap()]).unwrap();
            let mut file = File::from(new.take_fd().unwrap());
            let mut byte = [0];
            file.read_exact(&mut byte).unwrap();
            assert_eq!(usize::from(byte[0]), index);
        }
        assert!(new.take_fd().is_none());
        assert_eq!(new.hear().await.unwrap(), Some(FromOld::Commit));
        drop(old);
        assert_eq!(new.hear::<FromOld>().await.unwrap(), None);
    }

    #[tokio::test]
    async fn garbage_is_an_error_and_a_peer_that_does_not_read_is_given_up() {
        let (one, two) = StdUnixStream::pair().unwrap();
        let mut old = Channel::new(one).unwrap();
        (&two).write_all(b"usage: something else\n").unwrap();
        old.hear::<FromNew>().await.unwrap_err();
        let message = FromOld::Hand(Vec::new());
        let gave_up = (0..1_000_000).any(|_| old.say(&message, &[]).is_err());
        assert!(gave_up);
    }
}
