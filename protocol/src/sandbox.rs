//! Whom a child becomes before it serves, what it gives up, and what came of that.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a child does to itself. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confine {
    /// Give up files, sockets and system calls that it has no use for, and all capabilities.
    pub is_on: bool,
    /// The user to become; `None`: who it is.
    pub user: Option<User>,
    /// The directory that is all it sees of the file system from then on; root alone can do that.
    pub root: Option<PathBuf>,
    /// Cores may be written, with all keys in them.
    pub may_dump: bool,
}

/// A user and its group; no other groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its number.
    pub uid: u32,
    /// Its group's number.
    pub gid: u32,
}

/// How far a process is confined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Not at all.
    #[default]
    None,
    /// As far as the kernel and the start allow.
    Partial,
    /// In all that is known here.
    Full,
}

impl Level {
    /// Lower-case word.
    pub fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Partial => "partial",
            Self::Full => "full",
        }
    }
}

/// What came of [`Confine`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// How far.
    pub level: Level,
    /// The user that it runs as.
    pub uid: u32,
    /// What is missing, in words.
    pub lacks: Vec<String>,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxView {
    /// Such as `worker 3`.
    pub process: String,
    /// As it said when it became ready.
    pub sandbox: Sandbox,
}
