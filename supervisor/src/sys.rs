//! All unsafe code of this crate: what a child inherits, what a new supervisor is handed, and waiting for sockets that the runtime has no type for.
//!
//! Invariant: every descriptor of the supervisor closes at exec, except those that [`bequeath`] names for one child.

#![expect(
    unsafe_code,
    reason = "close_range, the step between fork and exec, received descriptors, a clock, and AsyncFd have no safe form"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use fleet_protocol::slot::CHANNEL_FD;
use nix::libc;
use socket2::Socket;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;

/// Makes descriptors that this process was started with close at exec, and occupies the number that children know
/// their channel by, so that nothing else of ours gets it. Call it first.
pub(crate) fn prepare_descriptors() -> io::Result<()> {
    let first = libc::c_uint::try_from(CHANNEL_FD).unwrap_or(3);
    // SAFETY: the call takes plain numbers and only sets a flag on descriptors.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let filler = File::open("/dev/null")?;
    if filler.as_raw_fd() == CHANNEL_FD {
        // It stays open for the life of the process. If it got another number, that one was occupied already.
        let _ = filler.into_raw_fd();
    }
    Ok(())
}

/// Lets the child of `command` keep `channel` as [`CHANNEL_FD`] and the descriptors in `keep` under their own
/// numbers, and nothing of the capabilities that a unit gives. The caller keeps all of `keep` open until the child is spawned.
pub(crate) fn bequeath(command: &mut Command, channel: OwnedFd, keep: Vec<RawFd>) {
    let hook = move || {
        // SAFETY: dup2, fcntl and prctl take plain numbers and may be called between fork and exec. `channel` is owned by
        // this closure and the descriptors in `keep` are open in the parent at the time of the fork. No number of
        // theirs is CHANNEL_FD, which prepare_descriptors occupied before any of them was opened.
        unsafe {
            if libc::dup2(channel.as_raw_fd(), CHANNEL_FD) < 0 {
                return Err(io::Error::last_os_error());
            }
            for fd in &keep {
                if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            // Rights that a unit gives are for the supervisor alone. A kernel that knows none has none to take.
            let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL;
            libc::prctl(libc::PR_CAP_AMBIENT, clear, 0, 0, 0);
        }
        Ok(())
    };
    // SAFETY: the hook calls only dup2, fcntl and prctl, allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(hook);
    }
}

/// Stops the threads that give freed memory back to the system, or lets them run again.
pub(crate) fn let_allocator_have_threads(is_on: bool) {
    let mut is_on = is_on;
    // SAFETY: the name ends with a zero, and the value is of the type and length that this name takes. Nothing is read
    // back. An allocator that does not know the name says so and does nothing.
    unsafe {
        tikv_jemalloc_sys::mallctl(
            c"background_thread".as_ptr(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            (&raw mut is_on).cast(),
            size_of::<bool>(),
        );
    }
}

/// Lets a new supervisor, the child of `command`, keep `channel` as [`CHANNEL_FD`], and all rights of this process.
pub(crate) fn hand_channel(command: &mut Command, channel: OwnedFd) {
    let hook = move || {
        // SAFETY: dup2 takes plain numbers and may be called between fork and exec; `channel` is owned by this closure.
        match unsafe { libc::dup2(channel.as_raw_fd(), CHANNEL_FD) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: the hook calls only dup2, allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(hook);
    }
}

/// The channel that a new supervisor inherits, under another number: what stands at [`CHANNEL_FD`] from now on is nothing.
/// Call it once, before [`prepare_descriptors`].
pub(crate) fn inherited_channel() -> io::Result<UnixStream> {
    let null = File::open("/dev/null")?;
    // SAFETY: the calls take plain numbers. The new number is owned by nobody else; the old one is named by nobody in this
    // process, which has only begun, and is replaced.
    let channel = unsafe {
        let number = libc::fcntl(CHANNEL_FD, libc::F_DUPFD_CLOEXEC, CHANNEL_FD + 1);
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let channel = OwnedFd::from_raw_fd(number);
        if libc::dup3(null.as_raw_fd(), CHANNEL_FD, libc::O_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        channel
    };
    Ok(channel.into())
}

/// Takes ownership of a descriptor that has just come over a socket.
pub(crate) fn received(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel made this number for the message that it was read from, so nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// The kernel's monotonic clock, as systemd reads it.
pub(crate) fn monotonic() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes one timespec, which is ours.
    unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now);
    }
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Lets the runtime wait for a socket of any family. Call it inside a runtime, with a socket that does not block.
pub(crate) fn watch(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a Socket owns its descriptor, gives always the same one, and is closed only after AsyncFd, which owns it
    // from here on, has taken the descriptor out of the runtime's set.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}
