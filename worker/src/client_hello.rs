//! The ClientHello, looked at before TLS has any state for its connection.
//!
//! Nothing is consumed and nothing is checked that TLS checks itself: whatever does not look like a ClientHello is handed
//! on at once, and TLS says what is wrong with it. Shapes: RFC 8446, sections 4.1.2, 4.2 and 5.1; RFC 5246 has the same.

/// Bytes that may wait for the rest of a ClientHello; a longer one is TLS' own to judge.
pub(crate) const WAITING_BYTES_MAX: usize = RECORD_HEADER_BYTES + RECORD_BYTES_MAX;

const RECORD_HEADER_BYTES: usize = 5;
const RECORD_BYTES_MAX: usize = 16 << 10;
const RECORD_HANDSHAKE: u8 = 22;
const VERSION_MAJOR: u8 = 3;
const MESSAGE_CLIENT_HELLO: u8 = 1;
const VERSION_AND_RANDOM_BYTES: usize = 2 + 32;
const EXTENSION_ALPN: usize = 16;

/// What a connection has begun with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// More bytes are needed to tell.
    Partial,
    /// A whole ClientHello.
    Whole { offers_alpn: bool },
    /// HTTP without TLS: a letter, with which no record begins.
    PlainHttp,
    /// Something else, or too much of it.
    Opaque,
}

/// Looks at the first bytes of a connection, fewer than [`WAITING_BYTES_MAX`] while they wait.
pub(crate) fn look(bytes: &[u8]) -> Look {
    if bytes.first().is_some_and(u8::is_ascii_uppercase) {
        return Look::PlainHttp;
    }
    let message = Message {
        records: bytes,
        fragment: &[],
        left: usize::MAX,
    };
    match message.read() {
        Ok(offers_alpn) => Look::Whole { offers_alpn },
        Err(Stop::Short) if bytes.len() < WAITING_BYTES_MAX => Look::Partial,
        Err(_) => Look::Opaque,
    }
}

/// Why reading ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// The rest has not arrived.
    Short,
    /// It is none.
    Foreign,
}

/// A handshake message, read across the records that it is cut into.
#[derive(Clone)]
struct Message<'a> {
    /// Behind the present record.
    records: &'a [u8],
    /// Of the present record.
    fragment: &'a [u8],
    /// Of the message.
    left: usize,
}

impl Message<'_> {
    /// Whether ALPN is among the extensions.
    fn read(mut self) -> Result<bool, Stop> {
        if self.number(1)? != usize::from(MESSAGE_CLIENT_HELLO) {
            return Err(Stop::Foreign);
        }
        let length = self.number(3)?;
        if length > RECORD_BYTES_MAX {
            return Err(Stop::Foreign);
        }
        self.clone().skip(length)?;
        self.left = length;
        self.skip(VERSION_AND_RANDOM_BYTES)?;
        let session_id = self.number(1)?;
        self.skip(session_id)?;
        let cipher_suites = self.number(2)?;
        self.skip(cipher_suites)?;
        let compressions = self.number(1)?;
        self.skip(compressions)?;
        if self.left == 0 {
            // TLS 1.2 allows a hello without extensions.
            return Ok(false);
        }
        self.left = self.number(2)?.min(self.left);
        while self.left > 0 {
            let kind = self.number(2)?;
            if kind == EXTENSION_ALPN {
                return Ok(true);
            }
            let length = self.number(2)?;
            self.skip(length)?;
        }
        Ok(false)
    }

    /// The next bytes as a number, big-endian; at most three of them.
    fn number(&mut self, bytes: usize) -> Result<usize, Stop> {
        self.claim(bytes)?;
        let mut number = 0;
        for _ in 0..bytes {
            self.refill()?;
            let (first, rest) = self.fragment.split_first().ok_or(Stop::Short)?;
            number = number << 8 | usize::from(*first);
            self.fragment = rest;
        }
        Ok(number)
    }

    fn skip(&mut self, bytes: usize) -> Result<(), Stop> {
        self.claim(bytes)?;
        let mut left = bytes;
        while left > 0 {
            self.refill()?;
            let step = left.min(self.fragment.len());
            self.fragment = self.fragment.get(step..).unwrap_or_default();
            left -= step;
        }
        Ok(())
    }

    fn claim(&mut self, bytes: usize) -> Result<(), Stop> {
        self.left = self.left.checked_sub(bytes).ok_or(Stop::Foreign)?;
        Ok(())
    }

    /// Enters the next record at the end of one. Afterwards there is at least a byte.
    fn refill(&mut self) -> Result<(), Stop> {
        if !self.fragment.is_empty() {
            return Ok(());
        }
        let is_foreign = |at: usize, expected: u8| {
            let byte = self.records.get(at);
            byte.is_some_and(|byte| *byte != expected)
        };
        if is_foreign(0, RECORD_HANDSHAKE) || is_foreign(1, VERSION_MAJOR) {
            return Err(Stop::Foreign);
        }
        let header = self.records.first_chunk::<RECORD_HEADER_BYTES>();
        let &[_, _, _, high, low] = header.ok_or(Stop::Short)?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length == 0 || length > RECORD_BYTES_MAX {
            return Err(Stop::Foreign);
        }
        let payload = self.records.get(RECORD_HEADER_BYTES..).unwrap_or_default();
        let (fragment, records) = payload.split_at(length.min(payload.len()));
        if fragment.is_empty() {
            return Err(Stop::Short);
        }
        (self.fragment, self.records) = (fragment, records);
        Ok(())
    }
}

#[cfg(test)]
#[path = "client_hello_tests.rs"]
mod tests;
