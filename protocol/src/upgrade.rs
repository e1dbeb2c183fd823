//! Old supervisor ↔ new supervisor during an upgrade, over the socket pair that the new one inherits as descriptor
//! [`CHANNEL_FD`](crate::slot::CHANNEL_FD).
//!
//! The two are of different builds, so this is append-only as [`link`](crate::link) is: what is new comes as a variant at
//! the end and is sent only to a peer that speaks the version which has it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::frame::{Kind, Message};
use crate::ids::Generation;
use crate::tickets::TicketKeys;

/// Most descriptors that come with one [`FromOld::Hand`].
pub const ITEMS_PER_MESSAGE_MAX: usize = 64;

/// What the new supervisor says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromNew {
    /// First: its configuration is good, and it has touched nothing.
    Prepared(Prepared),
    /// First or later: it cannot take over.
    Refused {
        /// One line, no secrets.
        reason: String,
        /// What the operator's command exits with.
        code: u8,
    },
    /// To each [`FromOld::Hand`].
    Took {
        /// Descriptors that came with it.
        count: u32,
    },
    /// To [`FromOld::Estate`]: everything is there.
    Holds {
        /// Descriptors in all.
        count: u32,
    },
    /// Its control process runs.
    ControlStarted {
        /// That process.
        pid: u32,
    },
    /// Its control process serves.
    ControlReady,
    /// A worker of its own serves in this slot.
    SlotReady {
        /// Which.
        slot: u16,
    },
    /// To [`FromOld::Commit`]: it is the server from now on.
    Serves,
}

impl Message for FromNew {
    const KIND: Kind = Kind::FromNew;
    const BYTES_MAX: usize = 64 << 10;
}

/// Who the new supervisor is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Oldest protocol version that it speaks.
    pub version_min: u16,
    /// Newest protocol version that it speaks.
    pub version_max: u16,
    /// Its build, for people.
    pub build: String,
    /// The state directory that its configuration names; absolute.
    pub state_dir: String,
}

/// What the old supervisor says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromOld {
    /// These, whose descriptors come with the message in the same order.
    Hand(Vec<Item>),
    /// That was all; and the rest of what it needs.
    Estate(Box<Estate>),
    /// The old control process has ended: start one.
    StartControl,
    /// Start a worker in this slot.
    StartSlot {
        /// Which.
        slot: u16,
    },
    /// Be the server.
    Commit,
}

impl Message for FromOld {
    const KIND: Kind = Kind::FromOld;
    const BYTES_MAX: usize = 64 << 10;
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Item {
    /// What kind of thing.
    pub kind: ItemKind,
    /// As the configuration says it: with port 0 where the system chose one. None for what has no such address.
    pub address: Option<SocketAddr>,
    /// Whose, of what each slot has.
    pub slot: Option<u16>,
}

/// Kinds of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ItemKind {
    /// The locked file of the state directory.
    Lock,
    /// `run/control.sock`
    Link,
    /// `run/tunnel.sock`
    Tunnel,
    /// `run/operator.sock`
    Operator,
    /// `run/admin.sock`
    Admin,
    /// A listener for agents, of one slot.
    Agents,
    /// The DNS responder's socket for packets.
    DnsUdp,
    /// Its listener.
    DnsTcp,
    /// The agent-check's listener.
    AgentCheck,
}

/// What is handed over beside the descriptors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estate {
    /// Descriptors that were sent.
    pub count: u32,
    /// The life that begins.
    pub generation: Generation,
    /// Slots, parked ones included.
    pub slots: u16,
    /// The old control process, which must have ended before another starts; `None` if there is none.
    pub control_pid: Option<u32>,
    /// Keys of session tickets.
    pub tickets: TicketKeys,
    /// Seconds since they changed.
    pub tickets_age_s: u64,
    /// SHA-256 of the TLS configuration that they belong to.
    pub tls_digest: [u8; 32],
}
