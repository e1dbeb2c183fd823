//! The new supervisor, as the old one sees it: its process and the channel to it.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use fleet_protocol::upgrade::{FromNew, FromOld};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::channel::Channel;
use super::{UPGRADES_PID, WATCHDOG_PID};
use crate::sys;

/// A process that closed its channel ends, or is ended.
const EXIT_LIMIT: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(crate) struct Successor {
    process: Option<Child>,
    channel: Channel,
    /// Since then it has been silent for good.
    closed_at: Option<Instant>,
    /// Its process.
    pub(crate) pid: u32,
}

/// What became known about it.
#[derive(Debug)]
pub(crate) enum Heard {
    /// It said something.
    Said(FromNew),
    /// It has ended, or nonsense came from it.
    Gone {
        /// For people: a verb and what follows.
        how: String,
    },
}

impl Successor {
    /// Starts `program` with this process' own arguments and environment. Must be called within a runtime.
    pub(crate) fn start(program: &Path) -> std::io::Result<Self> {
        let (ours, theirs) = StdUnixStream::pair()?;
        let mut command = Command::new(program);
        let mut arguments = std::env::args_os();
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        command
            .args(arguments)
            .env(UPGRADES_PID, std::process::id().to_string())
            // It becomes the service's main process, for which the watchdog is.
            .env_remove(WATCHDOG_PID)
            .stdin(Stdio::null());
        sys::hand_channel(&mut command, OwnedFd::from(theirs));
        let process = command.spawn()?;
        // Dropping the command closes our copy of its end, so that its death is an end of file.
        drop(command);
        Ok(Self {
            pid: process.id().unwrap_or(0),
            process: Some(process),
            channel: Channel::new(ours)?,
            closed_at: None,
        })
    }

    /// Tells it something, with descriptors.
    pub(crate) fn say(&self, message: &FromOld, fds: &[OwnedFd]) -> std::io::Result<()> {
        self.channel.say(message, fds)
    }

    /// What comes next; after [`Heard::Gone`] nothing does. Cancel-safe.
    pub(crate) async fn hear(&mut self) -> Heard {
        match self.channel.hear().await {
            Ok(Some(said)) => return Heard::Said(said),
            Ok(None) => {}
            Err(error) => {
                return Heard::Gone {
                    how: format!("speaks another protocol: {error}"),
                };
            }
        }
        let closed_at = *self.closed_at.get_or_insert_with(Instant::now);
        let Some(process) = &mut self.process else {
            return std::future::pending().await;
        };
        let limit = EXIT_LIMIT.saturating_sub(closed_at.elapsed());
        let how = match timeout(limit, process.wait()).await {
            Ok(Ok(status)) => format!("ended ({status})"),
            _ => "closed its channel".into(),
        };
        Heard::Gone { how }
    }

    /// Ends it at once. Its children notice by themselves that it is gone, and finish what they have.
    pub(crate) fn kill(mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.start_kill();
            tokio::spawn(async move { process.wait().await });
        }
    }
}
