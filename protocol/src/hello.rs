//! First message on a link. Every build reads the hello of every other: fields are only ever added, at the end. Its reader gives it [`HELLO_DEADLINE`](crate::limits::HELLO_DEADLINE).

use serde::{Deserialize, Serialize};

use crate::frame::{Kind, Message, VERSION, VERSION_MIN};
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
    const MAY_GROW: bool = true;
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
    const MAY_GROW: bool = true;
}

/// The newest version that both sides speak, or the sentence to refuse with.
pub fn choose_version(hello: &Hello) -> Result<u16, String> {
    newest_common(hello.version_min, hello.version_max).ok_or_else(|| {
        format!(
            "worker build {} speaks protocol {} to {}, control speaks {VERSION_MIN} to {VERSION}",
            hello.build, hello.version_min, hello.version_max
        )
    })
}

/// The newest version that this build speaks, and a peer too that speaks `version_min` to `version_max`.
pub fn newest_common(version_min: u16, version_max: u16) -> Option<u16> {
    let newest = version_max.min(VERSION);
    (newest >= version_min.max(VERSION_MIN)).then_some(newest)
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
        assert_eq!(
            choose_version(&hello(0, VERSION_MIN)),
            Ok(VERSION_MIN),
            "the previous build"
        );
        for (min, max) in [
            (VERSION + 1, VERSION + 1),
            (0, VERSION_MIN - 1),
            (VERSION, VERSION_MIN),
        ] {
            let refusal = choose_version(&hello(min, max)).unwrap_err();
            assert!(refusal.contains("control speaks 2 to 4"), "{refusal}");
        }
    }

    #[test]
    fn strangers_are_refused() {
        assert!(is_uid_allowed(1000, 1000));
        assert!(is_uid_allowed(0, 1000));
        assert!(!is_uid_allowed(1001, 1000));
    }
}
