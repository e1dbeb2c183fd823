//! Bytes from a Unix socket, and the descriptors that come with them.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use bytes::BytesMut;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

const READ_BYTES: usize = 16 << 10;

/// Reads once, without waiting; gives the number of bytes, 0 at the end. `own` takes ownership of a number that the kernel
/// has just made. A message with more than `FDS_MAX` descriptors, or with anything else beside its bytes, is a protocol
/// error.
pub fn receive<const FDS_MAX: usize>(
    stream: &impl AsRawFd,
    own: fn(RawFd) -> OwnedFd,
    input: &mut BytesMut,
    fds: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut chunk = [0; READ_BYTES];
    let mut iov = [IoSliceMut::new(&mut chunk)];
    let mut space = nix::cmsg_space!([RawFd; FDS_MAX]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let received = recvmsg::<()>(stream.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
    let mut is_whole = !received.flags.contains(MsgFlags::MSG_CTRUNC);
    for message in received.cmsgs()? {
        match message {
            ControlMessageOwned::ScmRights(numbers) => fds.extend(numbers.into_iter().map(own)),
            _ => is_whole = false,
        }
    }
    if !is_whole {
        return Err(Errno::EPROTO.into());
    }
    let length = received.bytes;
    input.extend_from_slice(chunk.get(..length).unwrap_or_default());
    Ok(length)
}
