//! Keys of session tickets: made by the supervisor, the same in every worker, so that any of them resumes what another
//! began.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

/// Bytes of a key's name, which begins each of its tickets.
pub const TICKET_NAME_BYTES: usize = 16;
/// Bytes of a key for AES-256-GCM.
pub const TICKET_KEY_BYTES: usize = 32;

/// One key. Never printed, and erased when it is dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketKey {
    name: [u8; TICKET_NAME_BYTES],
    key: [u8; TICKET_KEY_BYTES],
}

impl TicketKey {
    /// From random bytes.
    pub fn new(name: [u8; TICKET_NAME_BYTES], key: [u8; TICKET_KEY_BYTES]) -> Self {
        Self { name, key }
    }

    /// Stands in tickets; no secret.
    pub fn name(&self) -> &[u8; TICKET_NAME_BYTES] {
        &self.name
    }

    /// The key itself, for the one place that must use it.
    pub fn reveal(&self) -> &[u8; TICKET_KEY_BYTES] {
        &self.key
    }
}

impl Drop for TicketKey {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey(********)")
    }
}

/// The keys of this time. All of them open tickets.
///
/// `next` is known everywhere before anybody seals with it, so that a worker that hears late of a rotation opens what
/// others have sealed already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketKeys {
    /// Sealed until the last rotation.
    pub previous: TicketKey,
    /// Seals.
    pub current: TicketKey,
    /// Seals from the next rotation on.
    pub next: TicketKey,
}

impl TicketKeys {
    /// One period on.
    pub fn rotate(&mut self, fresh: TicketKey) {
        let current = std::mem::replace(&mut self.next, fresh);
        self.previous = std::mem::replace(&mut self.current, current);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> TicketKey {
        TicketKey::new([number; 16], [number; 32])
    }

    #[test]
    fn keys_move_on_by_one() {
        let mut keys = TicketKeys {
            previous: key(0),
            current: key(1),
            next: key(2),
        };
        keys.rotate(key(3));
        assert_eq!(
            [&keys.previous, &keys.current, &keys.next],
            [&key(1), &key(2), &key(3)]
        );
    }

    #[test]
    fn debug_masks() {
        let text = format!("{:?}", key(0xab));
        assert!(!text.contains("171") && !text.contains("ab"), "{text}");
    }
}
