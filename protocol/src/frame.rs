//! Length-bounded frames on the local sockets. The only file that names the codec crate.
//!
//! A frame is a 12-byte header (magic 4, version 2, kind 1, flags 1, body length 4; integers big-endian) and a body
//! of at most [`FRAME_BODY_BYTES_MAX`]. A message larger than one frame continues in the next ones (flag `MORE`), up
//! to the bound of its kind. Lengths are checked before anything is allocated, and a body must be consumed whole.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

/// Most bytes in one frame's body.
pub const FRAME_BODY_BYTES_MAX: usize = 4 << 20;
/// Most bytes that any message may claim, over all its frames.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Newest version of the messages that this build speaks. It grows with every message that the previous build cannot
/// read; such a message is sent only to a peer of at least that version.
pub const VERSION: u16 = 4;
/// Oldest version that this build speaks: the previous build's, whose processes run beside ours during an upgrade.
pub const VERSION_MIN: u16 = 2;

const MAGIC: [u8; 4] = *b"FLTG";
const HEADER_BYTES: usize = 12;
/// Stands in frames of kinds that every build must be able to read, see [`Kind::is_for_any_build`]; never changes.
const VERSION_OF_ANY: u16 = 2;
const FLAG_MORE: u8 = 1;

/// Which message type a body holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// [`crate::hello::Hello`]
    Hello = 1,
    /// [`crate::hello::HelloReply`]
    HelloReply = 2,
    /// [`crate::link::FromWorker`]
    FromWorker = 3,
    /// [`crate::link::FromControl`]
    FromControl = 4,
    /// [`crate::slot::ToChild`]
    ToChild = 5,
    /// [`crate::slot::FromChild`]
    FromChild = 6,
    /// [`crate::admin::Request`]
    AdminRequest = 7,
    /// [`crate::admin::Reply`]
    AdminReply = 8,
    /// [`crate::upgrade::FromOld`]
    FromOld = 9,
    /// [`crate::upgrade::FromNew`]
    FromNew = 10,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Hello,
        Self::HelloReply,
        Self::FromWorker,
        Self::FromControl,
        Self::ToChild,
        Self::FromChild,
        Self::AdminRequest,
        Self::AdminReply,
        Self::FromOld,
        Self::FromNew,
    ];

    /// Whether messages of this kind come before it is known what the peer speaks: greetings, and what operators' commands
    /// and two supervisors say, which may be of other builds. Their frames are read whatever version stands in them.
    fn is_for_any_build(self) -> bool {
        match self {
            Self::Hello
            | Self::HelloReply
            | Self::AdminRequest
            | Self::AdminReply
            | Self::FromOld
            | Self::FromNew => true,
            Self::FromWorker | Self::FromControl | Self::ToChild | Self::FromChild => false,
        }
    }

    fn from_wire(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A type that travels in frames.
pub trait Message: Serialize + DeserializeOwned {
    /// Its kind on the wire.
    const KIND: Kind;
    /// Most bytes of one encoded message, over all its frames.
    const BYTES_MAX: usize = FRAME_BODY_BYTES_MAX;
    /// Whether a later build may say more at the end of it, which is then ignored.
    const MAY_GROW: bool = false;
}

/// Why bytes are not a message. Every one of them ends the socket that they came from.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The codec refused the body.
    #[error("message of kind {kind:?} does not decode: {reason}")]
    Body {
        /// What the header said.
        kind: Kind,
        /// The codec's own words.
        reason: String,
    },
    /// The body went on after the message.
    #[error("{left} bytes left over behind a message of kind {kind:?}")]
    LeftOver {
        /// What the header said.
        kind: Kind,
        /// Bytes not consumed.
        left: usize,
    },
    /// Not our protocol.
    #[error("bad magic {0:02x?}")]
    Magic([u8; 4]),
    /// More bytes than the bound allows.
    #[error("{bytes} bytes exceed the bound of {bytes_max}")]
    TooLong {
        /// Claimed or encoded size.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// A frame of another kind inside a continued message, or a message of a kind not expected here.
    #[error("unexpected frame of kind {0}")]
    UnexpectedKind(u8),
    /// The peer speaks another version.
    #[error("protocol version {0}, this build speaks {VERSION_MIN} to {VERSION}")]
    Version(u16),
}

/// The limit stops a length inside a body from allocating more than a message may hold.
fn codec() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MESSAGE_BYTES_MAX>()
}

/// Appends `message` to `out` as one or more frames, for a peer of the same build or of any.
pub fn encode<M: Message>(message: &M, out: &mut BytesMut) -> Result<(), Error> {
    let version = if M::KIND.is_for_any_build() {
        VERSION_OF_ANY
    } else {
        VERSION
    };
    encode_in(version, message, out)
}

/// As [`encode`], in the version that a link has agreed on.
pub fn encode_in<M: Message>(version: u16, message: &M, out: &mut BytesMut) -> Result<(), Error> {
    let body = bincode::serde::encode_to_vec(message, codec()).map_err(|error| Error::Body {
        kind: M::KIND,
        reason: error.to_string(),
    })?;
    if body.len() > M::BYTES_MAX {
        return Err(Error::TooLong {
            bytes: body.len(),
            bytes_max: M::BYTES_MAX,
        });
    }
    let mut chunks = body.chunks(FRAME_BODY_BYTES_MAX).peekable();
    loop {
        let chunk = chunks.next().unwrap_or_default();
        let more = chunks.peek().is_some();
        out.reserve(HEADER_BYTES + chunk.len());
        out.put_slice(&MAGIC);
        out.put_u16(version);
        out.put_u8(M::KIND as u8);
        out.put_u8(if more { FLAG_MORE } else { 0 });
        // A chunk is at most FRAME_BODY_BYTES_MAX, which fits.
        out.put_u32(u32::try_from(chunk.len()).unwrap_or(u32::MAX));
        out.put_slice(chunk);
        if !more {
            return Ok(());
        }
    }
}

/// Turns a byte stream back into messages. One per socket and direction.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Body of a continued message so far.
    partial: BytesMut,
}

impl Decoder {
    /// Takes the next message off the front of `input`; `None` when more bytes are needed.
    pub fn decode<M: Message>(&mut self, input: &mut BytesMut) -> Result<Option<M>, Error> {
        while let Some(header) = Header::peek(input)? {
            if header.kind != M::KIND {
                return Err(Error::UnexpectedKind(header.kind as u8));
            }
            let bytes = self.partial.len() + header.length;
            if bytes > M::BYTES_MAX {
                return Err(Error::TooLong {
                    bytes,
                    bytes_max: M::BYTES_MAX,
                });
            }
            if input.len() < HEADER_BYTES + header.length {
                input.reserve(HEADER_BYTES + header.length - input.len());
                return Ok(None);
            }
            input.advance(HEADER_BYTES);
            let body = input.split_to(header.length);
            if header.more {
                self.partial.extend_from_slice(&body);
                continue;
            }
            if self.partial.is_empty() {
                return decode_body(&body.freeze()).map(Some);
            }
            self.partial.extend_from_slice(&body);
            return decode_body(&self.partial.split().freeze()).map(Some);
        }
        Ok(None)
    }
}

struct Header {
    kind: Kind,
    more: bool,
    length: usize,
}

impl Header {
    fn peek(input: &BytesMut) -> Result<Option<Self>, Error> {
        let Some(mut header) = input.get(..HEADER_BYTES) else {
            return Ok(None);
        };
        let mut magic = [0; 4];
        header.copy_to_slice(&mut magic);
        if magic != MAGIC {
            return Err(Error::Magic(magic));
        }
        let version = header.get_u16();
        let byte = header.get_u8();
        let kind = Kind::from_wire(byte);
        let is_for_any_build = kind.is_some_and(Kind::is_for_any_build);
        if !is_for_any_build && !(VERSION_MIN..=VERSION).contains(&version) {
            return Err(Error::Version(version));
        }
        let kind = kind.ok_or(Error::UnexpectedKind(byte))?;
        let more = header.get_u8() & FLAG_MORE != 0;
        let length = header.get_u32() as usize;
        if length > FRAME_BODY_BYTES_MAX {
            return Err(Error::TooLong {
                bytes: length,
                bytes_max: FRAME_BODY_BYTES_MAX,
            });
        }
        Ok(Some(Self { kind, more, length }))
    }
}

fn decode_body<M: Message>(body: &Bytes) -> Result<M, Error> {
    let (message, used) =
        bincode::serde::decode_from_slice(body, codec()).map_err(|error| Error::Body {
            kind: M::KIND,
            reason: error.to_string(),
        })?;
    match body.len() - used {
        0 => Ok(message),
        _ if M::MAY_GROW => Ok(message),
        left => Err(Error::LeftOver {
            kind: M::KIND,
            left,
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Parcel(Vec<u8>, u64);

    impl Message for Parcel {
        const KIND: Kind = Kind::FromWorker;
        const BYTES_MAX: usize = 3 * FRAME_BODY_BYTES_MAX;
    }

    fn encoded(parcel: &Parcel) -> BytesMut {
        let mut out = BytesMut::new();
        encode(parcel, &mut out).unwrap();
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn messages_survive_any_split(
            parcels in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..600), any::<u64>()), 1..6),
            step in 1_usize..97,
        ) {
            let parcels: Vec<_> = parcels.into_iter().map(|(bytes, n)| Parcel(bytes, n)).collect();
            let wire: Vec<u8> = parcels.iter().flat_map(|parcel| encoded(parcel).to_vec()).collect();
            let (mut decoder, mut input, mut seen) = (Decoder::default(), BytesMut::new(), Vec::new());
            for chunk in wire.chunks(step) {
                input.extend_from_slice(chunk);
                while let Some(parcel) = decoder.decode::<Parcel>(&mut input).unwrap() {
                    seen.push(parcel);
                }
            }
            prop_assert_eq!(seen, parcels);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), flip in 0_usize..300) {
            let mut input = BytesMut::from(&bytes[..]);
            let _ = Decoder::default().decode::<Parcel>(&mut input);
            let mut input = encoded(&Parcel(bytes, 7));
            let at = flip % input.len();
            input[at] ^= 0x41;
            let _ = Decoder::default().decode::<Parcel>(&mut input);
        }
    }

    #[test]
    fn large_messages_continue_over_frames() {
        let parcel = Parcel(vec![7; FRAME_BODY_BYTES_MAX + 5], 1);
        let mut input = encoded(&parcel);
        assert_eq!(
            Decoder::default().decode::<Parcel>(&mut input).unwrap(),
            Some(parcel)
        );
    }

    #[test]
    fn length_is_refused_before_the_body_arrives() {
        let mut input = encoded(&Parcel(vec![], 1));
        input[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
        let error = Decoder::default().decode::<Parcel>(&mut input).unwrap_err();
        assert!(matches!(error, Error::TooLong { .. }), "{error}");
    }

    #[test]
    fn total_is_bounded_over_frames() {
        let parcel = Parcel(vec![7; 3 * FRAME_BODY_BYTES_MAX], 1);
        let error = encode(&parcel, &mut BytesMut::new()).unwrap_err();
        assert!(matches!(error, Error::TooLong { .. }), "{error}");
    }

    #[test]
    fn frames_of_both_versions_are_read_and_no_others() {
        for version in [VERSION_MIN, VERSION] {
            let mut input = BytesMut::new();
            encode_in(version, &Parcel(vec![1], 2), &mut input).unwrap();
            let parcel = Decoder::default().decode::<Parcel>(&mut input).unwrap();
            assert_eq!(parcel, Some(Parcel(vec![1], 2)));
        }
        for version in [VERSION_MIN - 1, VERSION + 1] {
            let mut input = BytesMut::new();
            encode_in(version, &Parcel(vec![1], 2), &mut input).unwrap();
            let error = Decoder::default().decode::<Parcel>(&mut input).unwrap_err();
            assert_eq!(error, Error::Version(version));
            assert!(error.to_string().contains("speaks 2 to 4"), "{error}");
        }
    }

    /// A greeting, which the next build has made longer.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Greeting(u64);

    impl Message for Greeting {
        const KIND: Kind = Kind::Hello;
        const MAY_GROW: bool = true;
    }

    #[test]
    fn greetings_are_read_whatever_the_version_and_however_long() {
        let mut input = BytesMut::new();
        encode_in(VERSION + 40, &Greeting(7), &mut input).unwrap();
        let length = u32::try_from(input.len() - HEADER_BYTES + 3).unwrap();
        input[8..12].copy_from_slice(&length.to_be_bytes());
        input.put_slice(&[1, 2, 3]);
        let greeting = Decoder::default().decode::<Greeting>(&mut input).unwrap();
        assert_eq!(greeting, Some(Greeting(7)));
        // What the previous build reads.
        encode(&Greeting(7), &mut input).unwrap();
        assert_eq!(input[4..6], VERSION_MIN.to_be_bytes());
    }

    #[test]
    fn left_over_bytes_are_an_error() {
        let mut input = encoded(&Parcel(vec![], 1));
        let length = u32::try_from(input.len() - HEADER_BYTES + 1).unwrap();
        input[8..12].copy_from_slice(&length.to_be_bytes());
        input.put_u8(0);
        let error = Decoder::default().decode::<Parcel>(&mut input).unwrap_err();
        assert_eq!(
            error,
            Error::LeftOver {
                kind: Kind::FromWorker,
                left: 1
            }
        );
    }
}
