//! Buffers that all connections of a worker take turns with.
//!
//! Invariant: a connection holds a buffer of its own only while bytes in it wait for more bytes, or for room in the socket.

/// A shared buffer that a large body has blown up beyond this is given back to the allocator.
const KEPT_BYTES_MAX: usize = 128 << 10;
/// A kept buffer may have this much room that is not used.
const SLACK_BYTES_MAX: usize = 512;

/// Taken by one connection at a time, for its turn.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Lent while its capacity is 0.
    plain: Vec<u8>,
    /// An answer before it is encrypted.
    pub(crate) text: Vec<u8>,
    /// For the socket. The session empties it before its turn ends.
    pub(crate) out: Vec<u8>,
}

impl Scratch {
    /// Makes room for `more` bytes in `buffer`, which is lent the shared one if it has none of its own. A body that
    /// ends at `end` is not given room far beyond it.
    pub(crate) fn lend(&mut self, buffer: &mut Vec<u8>, more: usize, end: Option<usize>) {
        if buffer.capacity() == 0 {
            std::mem::swap(buffer, &mut self.plain);
        }
        let length = buffer.len();
        if buffer.capacity() - length >= more {
            return;
        }
        let doubled = 2 * length + more;
        let wanted = end.map_or(doubled, |end| doubled.min(end.saturating_add(more)));
        buffer.reserve_exact(wanted.saturating_sub(length).max(more));
    }

    /// Takes the shared buffer back; what must stay in `buffer` is kept at its own size.
    pub(crate) fn settle(&mut self, buffer: &mut Vec<u8>) {
        let is_snug = buffer.capacity() <= 2 * buffer.len() + SLACK_BYTES_MAX;
        if buffer.capacity() == 0 || (is_snug && !buffer.is_empty()) {
            return;
        }
        let exact = buffer.as_slice().to_vec();
        let mut shared = std::mem::replace(buffer, exact);
        if self.plain.capacity() == 0 && shared.capacity() <= KEPT_BYTES_MAX {
            shared.clear();
            self.plain = shared;
        }
    }

    /// Gives back what a large answer took.
    pub(crate) fn trim(&mut self) {
        for buffer in [&mut self.text, &mut self.out] {
            if buffer.capacity() > KEPT_BYTES_MAX {
                *buffer = Vec::new();
            }
        }
    }
}

/// Removes `bytes` from the front.
pub(crate) fn consume(buffer: &mut Vec<u8>, bytes: usize) {
    if bytes >= buffer.len() {
        buffer.clear();
    } else {
        buffer.drain(..bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_buffer_returns_and_leftovers_are_exact() {
        let mut scratch = Scratch::default();
        let mut buffer = Vec::new();
        scratch.lend(&mut buffer, 4096, None);
        buffer.extend_from_slice(&[7; 3000]);
        consume(&mut buffer, 2900);
        scratch.settle(&mut buffer);
        assert_eq!(buffer, [7; 100]);
        assert_eq!(buffer.capacity(), 100);
        assert!(scratch.plain.capacity() >= 4096);

        scratch.lend(&mut buffer, 10, None);
        assert!(scratch.plain.capacity() >= 4096, "it has its own");
        consume(&mut buffer, 100);
        scratch.settle(&mut buffer);
        assert_eq!(buffer.capacity(), 0);
    }

    #[test]
    fn a_growing_body_gets_little_more_than_its_length() {
        let (mut scratch, mut buffer) = (Scratch::default(), Vec::new());
        let end = 10 << 20;
        while buffer.len() < end {
            let more = (end - buffer.len()).min(16 << 10);
            scratch.lend(&mut buffer, more, Some(end));
            buffer.resize(buffer.len() + more, 0);
        }
        assert!(buffer.capacity() <= end + (16 << 10));
    }
}
