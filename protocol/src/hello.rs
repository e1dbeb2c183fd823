//! First message on every local socket. Its reader gives it [`HELLO_DEADLINE`](crate::limits::HELLO_DEADLINE).

use serde::{Deserialize, Serialize};

use crate::frame::{Kind, Message, VERSION};
use crate::ids::{BootNonce, FeedSeq, Generation, SlotIndex};
use crate::link::Credit;

/// What a worker says when it connects to control.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest protocol version that the worker speaks.
    pub version_min: u16,
    /// Newest protocol version that the worker speaks.
    pub version_max: u16,
    /// Build of the worker, for messages to people.
    pub build: String,
    /// The worker's slot.
    pub slot: SlotIndex,
    /// The supervisor life that the worker belongs to.
    pub generation: Generation,
    /// This worker process.
    pub boot: BootNonce,
    /// Last feed position that the worker holds, and whose control process told it; `None` asks for a full load.
    pub feed_after: Option<FeedSeq>,
}

impl Message for Hello {
    const KIND: Kind = Kind::Hello;
    const BYTES_MAX: usize = 4096;
}

/// Control's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum HelloReply {
    /// The link stands.
    Accepted {
        /// The version that both will speak.
        version: u16,
        /// Control's build.
        build: String,
        /// This control process; another value than before means that control has restarted.
        boot: BootNonce,
        /// Batches that may be in flight, per kind.
        credit: Vec<Credit>,
    },
    /// The link is refused; the socket closes.
    Refused {
        /// One readable sentence.
        reason: String,
    },
}

impl Message for HelloReply {
    const KIND: Kind = Kind::HelloReply;
    const BYTES_MAX: usize = 4096;
}

/// The version that both sides speak, or the sentence to refuse with.
pub fn choose_version(hello: &Hello) -> Result<u16, String> {
    if (hello.version_min..=hello.version_max).contains(&VERSION) {
        return Ok(VERSION);
    }
    Err(format!(
        "worker build {} speaks protocol {} to {}, control speaks {VERSION}",
        hello.build, hello.version_min, hello.version_max
    ))
}

/// Whether a peer with this uid may use our local sockets: ourselves and root.
pub fn is_uid_allowed(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(version_min: u16, version_max: u16) -> Hello {
        Hello {
            version_min,
            version_max,
            build: "test".into(),
            slot: SlotIndex(0),
            generation: Generation(0),
            boot: BootNonce(1),
            feed_after: None,
        }
    }

    #[test]
    fn versions_must_overlap() {
        assert_eq!(choose_version(&hello(0, VERSION)), Ok(VERSION));
        assert_eq!(choose_version(&hello(VERSION, VERSION + 3)), Ok(VERSION));
        assert!(choose_version(&hello(VERSION + 1, VERSION + 1)).is_err());
    }

    #[test]
    fn strangers_are_refused() {
        assert!(is_uid_allowed(1000, 1000));
        assert!(is_uid_allowed(0, 1000));
        assert!(!is_uid_allowed(1001, 1000));
    }
}
