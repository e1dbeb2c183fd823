//! Session tickets, sealed and opened with the supervisor's keys, so that every worker resumes what any of them began.
//!
//! A ticket is its key's name (16 bytes), a random nonce (12), and rustls' state sealed with AES-256-GCM (tag 16). With
//! random nonces a key is good for 2^32 tickets (NIST SP 800-38D, section 8.3): over 190,000 a second for its six hours.

use std::sync::{PoisonError, RwLock};

use anyhow::Context as _;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use fleet_protocol::limits::TICKET_PERIOD;
use fleet_protocol::tickets::{TICKET_NAME_BYTES, TicketKey, TicketKeys};
use rustls::server::ProducesTickets;

const HEAD_BYTES: usize = TICKET_NAME_BYTES + NONCE_LEN;

type Name = [u8; TICKET_NAME_BYTES];

/// See the module.
#[derive(Debug)]
pub(crate) struct Ticketer {
    /// Locked only because rustls shares it between threads; here is one, so nobody ever waits.
    ring: RwLock<Ring>,
}

/// Keys that are ready for use.
struct Ring {
    current: (Name, RandomizedNonceKey),
    /// Open tickets, as `current` does.
    others: [(Name, RandomizedNonceKey); 2],
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring(********)")
    }
}

impl Ring {
    fn new(keys: &TicketKeys) -> anyhow::Result<Self> {
        Ok(Self {
            current: prepare(&keys.current)?,
            others: [prepare(&keys.previous)?, prepare(&keys.next)?],
        })
    }

    fn find(&self, name: &Name) -> Option<&RandomizedNonceKey> {
        let all = std::iter::once(&self.current).chain(&self.others);
        all.into_iter()
            .find_map(|(of, key)| (of == name).then_some(key))
    }
}

fn prepare(key: &TicketKey) -> anyhow::Result<(Name, RandomizedNonceKey)> {
    let ready = RandomizedNonceKey::new(&AES_256_GCM, key.reveal());
    Ok((*key.name(), ready.context("ticket key")?))
}

impl Ticketer {
    pub(crate) fn new(keys: &TicketKeys) -> anyhow::Result<Self> {
        let ring = RwLock::new(Ring::new(keys)?);
        Ok(Self { ring })
    }

    /// Takes the keys of the next period; those that it had before stay if they cannot be used.
    pub(crate) fn turn(&self, keys: &TicketKeys) -> anyhow::Result<()> {
        let ring = Ring::new(keys)?;
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = ring;
        Ok(())
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    /// A key opens for at least a period after it has sealed last.
    fn lifetime(&self) -> u32 {
        u32::try_from(TICKET_PERIOD.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        let (name, key) = &ring.current;
        let mut ticket = Vec::with_capacity(HEAD_BYTES + plain.len() + AES_256_GCM.tag_len());
        ticket.extend_from_slice(name);
        ticket.extend_from_slice(&[0; NONCE_LEN]);
        ticket.extend_from_slice(plain);
        let (head, text) = ticket.split_at_mut_checked(HEAD_BYTES)?;
        let (nonce, tag) = key.seal_in_place_separate_tag(Aad::from(name), text).ok()?;
        head.get_mut(TICKET_NAME_BYTES..)?
            .copy_from_slice(nonce.as_ref());
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, sealed) = ticket.split_first_chunk()?;
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        let key = ring.find(name)?;
        let mut plain = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = key
            .open_in_place(nonce, Aad::from(name), &mut plain)
            .ok()?
            .len();
        plain.truncate(length);
        Some(plain)
    }
}

/// The same in every test.
#[cfg(test)]
pub(crate) fn test_keys() -> TicketKeys {
    let key = |number| TicketKey::new([number; TICKET_NAME_BYTES], [number; 32]);
    TicketKeys {
        previous: key(1),
        current: key(2),
        next: key(3),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_ticket_opens_everywhere_while_its_key_is_in_the_ring() {
        let (one, another) = (
            Ticketer::new(&test_keys()).unwrap(),
            Ticketer::new(&test_keys()).unwrap(),
        );
        let ticket = one.encrypt(b"state").unwrap();
        assert_eq!(ticket.len(), HEAD_BYTES + 5 + 16);
        assert_ne!(one.encrypt(b"state").unwrap(), ticket, "random nonces");
        assert_eq!(another.decrypt(&ticket).unwrap(), b"state");

        // One has turned, the other has not heard of it yet: both open what either seals.
        let mut keys = test_keys();
        keys.rotate(TicketKey::new([4; TICKET_NAME_BYTES], [4; 32]));
        one.turn(&keys).unwrap();
        let newer = one.encrypt(b"newer").unwrap();
        assert_eq!(another.decrypt(&newer).unwrap(), b"newer");
        assert_eq!(one.decrypt(&ticket).unwrap(), b"state");
        keys.rotate(TicketKey::new([5; TICKET_NAME_BYTES], [5; 32]));
        one.turn(&keys).unwrap();
        assert_eq!(one.decrypt(&ticket), None, "two periods are over");
        assert_eq!(one.decrypt(&newer).unwrap(), b"newer");
    }

    #[test]
    fn a_damaged_ticket_is_none() {
        let ticketer = Ticketer::new(&test_keys()).unwrap();
        let ticket = ticketer.encrypt(b"state").unwrap();
        for at in 0..ticket.len() {
            let mut damaged = ticket.clone();
            damaged[at] ^= 1;
            assert_eq!(ticketer.decrypt(&damaged), None, "byte {at}");
            assert_eq!(ticketer.decrypt(&ticket[..at]), None, "{at} bytes");
        }
        // The name of another key of the ring.
        let mut renamed = ticket;
        renamed[..TICKET_NAME_BYTES].fill(1);
        assert_eq!(ticketer.decrypt(&renamed), None);
    }

    #[test]
    fn keys_are_never_printed() {
        let ticketer = Ticketer::new(&test_keys()).unwrap();
        assert!(format!("{ticketer:?}").contains("Ring(********)"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_ticket(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let ticketer = Ticketer::new(&test_keys()).unwrap();
            prop_assert_eq!(ticketer.decrypt(&bytes), None);
            let named = [&[2; TICKET_NAME_BYTES][..], &bytes].concat();
            prop_assert_eq!(ticketer.decrypt(&named), None);
        }
    }
}
