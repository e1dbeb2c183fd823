//! The node key that was hashed last, with its hash.
//!
//! A request needs its key at the end of its head, to be refused before its body is read, and again at its own end, most
//! often in the same moment. Remembering one key spares the second hash without room in every connection.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use fleet_protocol::ids::NodeKeyHash;

/// Bytes of the longest key that is remembered; ours have 32.
const KEY_BYTES_MAX: usize = 64;

/// See the module.
pub(crate) struct LatestKey {
    bytes: [u8; KEY_BYTES_MAX],
    /// 0: none.
    length: usize,
    hash: NodeKeyHash,
}

impl Default for LatestKey {
    fn default() -> Self {
        Self {
            bytes: [0; KEY_BYTES_MAX],
            length: 0,
            hash: NodeKeyHash([0; 32]),
        }
    }
}

impl LatestKey {
    /// The hash of `key`, computed by `hash` unless it was asked for just before.
    pub(crate) fn hash(
        &mut self,
        key: &[u8],
        hash: impl FnOnce(&[u8]) -> NodeKeyHash,
    ) -> NodeKeyHash {
        let latest = self.bytes.get(..self.length).unwrap_or_default();
        // In constant time: the latest key is somebody else's secret.
        if !key.is_empty() && verify_slices_are_equal(latest, key).is_ok() {
            return self.hash;
        }
        let hash = hash(key);
        if let Some(bytes) = self.bytes.get_mut(..key.len()) {
            bytes.copy_from_slice(key);
            (self.length, self.hash) = (key.len(), hash);
        }
        hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_of(latest: &mut LatestKey, key: &[u8]) -> (u8, bool) {
        let mut is_computed = false;
        let hash = latest.hash(key, |key| {
            is_computed = true;
            let mut hash = [0; 32];
            hash[0] = key.len().try_into().unwrap();
            hash[1] = key.first().copied().unwrap_or(0);
            NodeKeyHash(hash)
        });
        (hash.0[0], is_computed)
    }

    #[test]
    fn only_the_very_same_key_is_remembered() {
        let mut latest = LatestKey::default();
        assert_eq!(hash_of(&mut latest, b""), (0, true));
        assert_eq!(hash_of(&mut latest, b"key-1"), (5, true));
        assert_eq!(hash_of(&mut latest, b"key-1"), (5, false));
        assert_eq!(hash_of(&mut latest, b"key-"), (4, true));
        assert_eq!(hash_of(&mut latest, b""), (0, true));
        assert_eq!(hash_of(&mut latest, b"key-1"), (5, true));
        // One that is too long to be kept leaves the one before in place.
        let long = [b'x'; KEY_BYTES_MAX + 1];
        assert_eq!(hash_of(&mut latest, &long), (65, true));
        assert_eq!(hash_of(&mut latest, &long), (65, true));
        assert_eq!(hash_of(&mut latest, b"key-1"), (5, false));
    }
}
