//! Operator ↔ supervisor, over `run/admin.sock`: one request, one reply; to an upgrade, lines of progress before it.
//!
//! The operator's command may be of another build than the server, so requests and replies are only ever added, at the end.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::frame::{Kind, Message};
use crate::ids::SlotIndex;
use crate::slot::{Gateway, SlotState};
use crate::stats::ControlStats;

/// What an operator asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// How are you?
    Status,
    /// Drain and exit.
    Stop,
    /// Read the configuration again and take what can be taken while serving.
    Reload,
    /// Send agents elsewhere.
    Drain(Drain),
    /// Give everything to a new supervisor and end.
    Upgrade {
        /// The program to start, absolute; `None` for what stands at the server's own path now.
        binary: Option<PathBuf>,
    },
}

impl Message for Request {
    const KIND: Kind = Kind::AdminRequest;
    const BYTES_MAX: usize = 4096;
}

/// What is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Drain {
    /// Nobody is told of this gateway any more; it serves whoever comes all the same.
    Gateway,
    /// It is told of again.
    Cancel,
    /// One worker finishes what it has while the others get what is new; another one follows.
    Slot(SlotIndex),
}

/// What the supervisor answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// To status.
    Status(Box<Status>),
    /// To stop: it has begun; the supervisor's exit is its end.
    Stopping {
        /// The supervisor.
        pid: u32,
    },
    /// To reload: done.
    Reloaded(Reloaded),
    /// Not possible.
    Error {
        /// One line.
        reason: String,
        /// What the asker exits with.
        code: u8,
    },
    /// To drain: begun. One line for people.
    Draining {
        /// What happens now.
        text: String,
    },
    /// To upgrade: a line for people; more follows.
    Progress(String),
    /// To upgrade: done. The old supervisor ends when its agents are served.
    Upgraded(Upgraded),
}

impl Message for Reply {
    const KIND: Kind = Kind::AdminReply;
}

/// What an upgrade has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// The supervisor that serves now.
    pub pid: u32,
    /// Its build.
    pub build: String,
    /// The supervisor that ends.
    pub old_pid: u32,
}

/// What a reload has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Addresses that are served from now on, too, once they can be bound.
    pub added: Vec<SocketAddr>,
    /// Addresses that are served no more, once those who know them have had time to learn it.
    pub withdrawn: Vec<SocketAddr>,
    /// Addresses that are served on, in another way than before.
    pub changed: Vec<SocketAddr>,
    /// Options that have changed and are in effect, as `section.key`.
    pub taken: Vec<String>,
    /// Certificates, keys, authorities and revocation lists that were read again and differ from those before.
    pub files: Vec<String>,
    /// Options that have changed but take effect only at the next start, as `section.key`.
    pub at_next_start: Vec<String>,
    /// Sentences about the configuration.
    pub warnings: Vec<String>,
    /// Workers from now on; `None` when their number is what it was.
    pub workers: Option<u16>,
}

/// The whole server at a glance. `status --json` prints it as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Of the running supervisor.
    pub version: String,
    /// The supervisor.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Whether it is draining.
    pub is_draining: bool,
    /// Addresses served, `https://…` or `http://…`.
    pub addresses: Vec<String>,
    /// Absolute.
    pub state_dir: String,
    /// The slots.
    pub gateway: Gateway,
    /// The control process.
    pub control: ControlView,
}

/// The control process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControlView {
    /// What it is doing.
    pub state: SlotState,
    /// The process, if there is one.
    pub pid: Option<u32>,
    /// Seconds since that process started.
    pub uptime_s: u64,
    /// Processes that followed the first.
    pub restarts: u64,
    /// Last report.
    pub stats: ControlStats,
    /// How the last process ended; empty when none has.
    pub last_end: String,
    /// Processes that stood still and were ended for it.
    pub hangs: u64,
}
