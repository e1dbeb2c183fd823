//! One child process: start from the opened binary, its channel, its end.
//!
//! Invariants: children run the file that the supervisor itself was started from, whatever stands at its path now;
//! what a child said before it died is told before its death; queues to and from children are bounded.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::BytesMut;
use fleet_protocol::config::Config;
use fleet_protocol::frame::{self, Decoder};
use fleet_protocol::slot::{FromChild, ToChild};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::notify;

/// Messages that wait to be written to one child.
const OUTBOX_MESSAGES_MAX: usize = 16;
/// A child that closed its channel is killed when it has not ended by then.
const END_AFTER_CHANNEL: Duration = Duration::from_secs(20);

/// The binary, held open.
pub(crate) struct Launcher {
    program: File,
}

/// Which child: its place and the how-many-eth process there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChildId {
    /// Index of the place.
    pub(crate) place: usize,
    /// Counts the processes of that place.
    pub(crate) launch: u64,
}

/// What became known about a child.
#[derive(Debug)]
pub(crate) struct Heard {
    /// Which child.
    pub(crate) id: ChildId,
    /// What.
    pub(crate) news: News,
}

/// See [`Heard`].
#[derive(Debug)]
pub(crate) enum News {
    /// It said something.
    Said(FromChild),
    /// It is gone.
    Exited {
        /// Its exit code; none after a signal.
        code: Option<i32>,
        /// For people.
        how: String,
    },
}

/// A running child.
pub(crate) struct Child {
    /// Its process.
    pub(crate) pid: u32,
    outbox: mpsc::Sender<Letter>,
}

/// A message and the descriptors that go with it.
#[derive(Debug)]
struct Letter {
    message: ToChild,
    fds: Vec<OwnedFd>,
}

impl From<ToChild> for Letter {
    fn from(message: ToChild) -> Self {
        let fds = Vec::new();
        Self { message, fds }
    }
}

impl Child {
    /// Queues a message; `false` when the queue is full or the child is gone.
    pub(crate) fn tell(&self, message: ToChild) -> bool {
        self.outbox.try_send(message.into()).is_ok()
    }

    /// Queues a message with descriptors, at most [`FDS_PER_MESSAGE_MAX`](fleet_protocol::slot::FDS_PER_MESSAGE_MAX).
    pub(crate) fn tell_with(&self, message: ToChild, fds: Vec<OwnedFd>) -> bool {
        self.outbox.try_send(Letter { message, fds }).is_ok()
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Ends it with a core, where cores are kept.
    pub(crate) fn abort(&self) {
        self.signal(Signal::SIGABRT);
    }

    /// The process is reaped by its task only, so the number is still its own.
    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.pid) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Launcher {
    /// Opens the running binary.
    pub(crate) fn open() -> io::Result<Self> {
        let program = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open("/proc/self/exe")?;
        Ok(Self { program })
    }

    /// Starts a child that keeps the descriptors in `keep`, and sends `first` to it. What becomes of it is told on
    /// `heard`.
    pub(crate) fn launch(
        &self,
        id: ChildId,
        arguments: &[String],
        keep: Vec<RawFd>,
        first: ToChild,
        heard: mpsc::Sender<Heard>,
    ) -> io::Result<Child> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = Command::new(format!("/proc/self/fd/{}", self.program.as_raw_fd()));
        command
            .arg0("fleet-supervisor")
            .args(arguments)
            .stdin(Stdio::null())
            // A Ctrl-C in the terminal is for the supervisor alone, which drains.
            .process_group(0);
        for key in Config::keys().iter().filter(|key| key.is_secret()) {
            command.env_remove(key.variable());
        }
        for variable in notify::VARIABLES {
            command.env_remove(variable);
        }
        crate::sys::bequeath(&mut command, OwnedFd::from(theirs), keep);
        let process = command.spawn()?;
        // Dropping the command closes our copy of the child's end, so that its death is an end of file.
        drop(command);
        let pid = process.id().unwrap_or(0);
        let (reader, writer) = UnixStream::from_std(ours)?.into_split();
        let (outbox, messages) = mpsc::channel(OUTBOX_MESSAGES_MAX);
        let _ = outbox.try_send(first.into());
        tokio::spawn(write(writer, messages));
        tokio::spawn(watch(id, process, reader, heard));
        Ok(Child { pid, outbox })
    }
}

async fn write(mut writer: OwnedWriteHalf, mut letters: mpsc::Receiver<Letter>) {
    let mut out = BytesMut::new();
    while let Some(Letter { message, fds }) = letters.recv().await {
        out.clear();
        if let Err(error) = frame::encode(&message, &mut out) {
            tracing::error!(%error, "a message to a child is not sent");
            continue;
        }
        let sent = match send_first(&writer, &out, &fds).await {
            Ok(length) => {
                writer
                    .write_all(out.get(length..).unwrap_or_default())
                    .await
            }
            Err(error) => Err(error),
        };
        if sent.is_err() {
            // The child is gone; its watcher says so.
            return;
        }
    }
}

/// Sends the first bytes together with the descriptors, if there are any; gives how many bytes went.
async fn send_first(writer: &OwnedWriteHalf, out: &[u8], fds: &[OwnedFd]) -> io::Result<usize> {
    if fds.is_empty() {
        return Ok(0);
    }
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let stream: &UnixStream = writer.as_ref();
    let send = || {
        let sent = sendmsg::<()>(
            stream.as_raw_fd(),
            &[IoSlice::new(out)],
            &[ControlMessage::ScmRights(&numbers)],
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            None,
        );
        Ok(sent?)
    };
    stream.async_io(Interest::WRITABLE, send).await
}

async fn watch(
    id: ChildId,
    mut process: tokio::process::Child,
    mut reader: OwnedReadHalf,
    heard: mpsc::Sender<Heard>,
) {
    if let Err(error) = listen(id, &mut reader, &heard).await {
        tracing::error!(place = id.place, %error, "a child's channel broke");
    }
    let waited = tokio::time::timeout(END_AFTER_CHANNEL, process.wait()).await;
    let status = match waited {
        Ok(status) => status,
        Err(_) => {
            let _ = process.start_kill();
            process.wait().await
        }
    };
    let (code, how) = match status {
        Ok(status) => (status.code(), describe(status)),
        Err(error) => (None, format!("lost: {error}")),
    };
    let news = News::Exited { code, how };
    let _ = heard.send(Heard { id, news }).await;
}

async fn listen(
    id: ChildId,
    reader: &mut OwnedReadHalf,
    heard: &mpsc::Sender<Heard>,
) -> anyhow::Result<()> {
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
    loop {
        match reader.read_buf(&mut input).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // What a killed process leaves unread makes the end a reset.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        while let Some(said) = decoder.decode::<FromChild>(&mut input)? {
            let news = News::Said(said);
            if heard.send(Heard { id, news }).await.is_err() {
                return Ok(());
            }
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => signal.as_str().to_owned(),
            Err(_) => format!("signal {number}"),
        },
        (None, None) => status.to_string(),
    }
}
