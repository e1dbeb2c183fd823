//! One connection's record layer over shared buffers.
//!
//! rustls' unbuffered API keeps no bytes of its own between calls, so an idle connection costs only its keys and state.

use std::sync::Arc;

use fleet_protocol::stats::TlsSession;
use rustls::server::{ServerConfig, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{HandshakeKind, ProtocolVersion};
use rustls_pki_types::CertificateDer;

/// A record's header, nonce, content type and tag, in either version; rounded up.
const RECORD_OVERHEAD_BYTES: usize = 64;
/// Plaintext in one record.
pub(crate) const RECORD_BYTES_MAX: usize = 16 << 10;
/// Undecrypted bytes that may wait for the rest of their record or handshake message.
const PARTIAL_BYTES_MAX: usize = 96 << 10;

/// Why a connection's bytes can no longer be understood, or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("record cannot be encoded: {0}")]
    Encode(String),
    #[error("record or handshake message too long")]
    TooLong,
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error("written outside of its phase")]
    Unwritable,
}

/// What came of incoming bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Opened {
    /// The peer has said, in TLS, that it sends nothing more.
    pub(crate) is_end: bool,
}

/// How bytes travel: as they are, or in TLS records.
pub(crate) enum Layer {
    Plain,
    Tls {
        session: Box<UnbufferedServerConnection>,
        /// Received, not whole yet; empty while idle.
        partial: Vec<u8>,
    },
}

impl Layer {
    /// TLS before its first byte.
    pub(crate) fn new(config: &Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self::Tls {
            session: Box::new(UnbufferedServerConnection::new(Arc::clone(config))?),
            partial: Vec::new(),
        })
    }

    pub(crate) fn is_tls13(&self) -> bool {
        let Self::Tls { session, .. } = self else {
            return false;
        };
        session.protocol_version() == Some(ProtocolVersion::TLSv1_3)
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        matches!(self, Self::Tls { session, .. } if session.is_handshaking())
    }

    /// What the client has shown and proved to own, once the handshake is over.
    pub(crate) fn client_certificate(&self) -> Option<&CertificateDer<'static>> {
        match self {
            Self::Plain => None,
            Self::Tls { session, .. } => session.peer_certificates()?.first(),
        }
    }

    /// How the handshake was done, once it is over.
    pub(crate) fn session(&self) -> Option<TlsSession> {
        let Self::Tls { session, .. } = self else {
            return None;
        };
        Some(
            match (session.protocol_version()?, session.handshake_kind()?) {
                (ProtocolVersion::TLSv1_2, HandshakeKind::Resumed) => TlsSession::Resumed12,
                (ProtocolVersion::TLSv1_2, _) => TlsSession::Full12,
                (_, HandshakeKind::Resumed) => TlsSession::Resumed13,
                (_, HandshakeKind::FullWithHelloRetryRequest) => TlsSession::Retried13,
                _ => TlsSession::Full13,
            },
        )
    }

    /// Decrypts `input` in place. Content is appended to `plain`; what TLS itself has to say goes to `out`, the alert of
    /// a failure too.
    pub(crate) fn open(
        &mut self,
        input: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<Opened, Error> {
        let Self::Tls { session, partial } = self else {
            plain.extend_from_slice(input);
            return Ok(Opened::default());
        };
        let result = if partial.is_empty() {
            let (used, result) = pump(session, input, plain, out);
            partial.extend_from_slice(input.get(used..).unwrap_or_default());
            result
        } else {
            partial.extend_from_slice(input);
            let (used, result) = pump(session, partial, plain, out);
            partial.drain(..used.min(partial.len()));
            result
        };
        if partial.is_empty() {
            *partial = Vec::new();
        }
        if let Err(error) = result {
            // One more call gives the alert, if there is one to send; further ones would read on behind the failure.
            let UnbufferedStatus { state, .. } = session.process_tls_records(partial);
            if let Ok(ConnectionState::EncodeTlsData(mut data)) = state {
                append(out, RECORD_OVERHEAD_BYTES, |room| data.encode(room))?;
            }
            return Err(error);
        }
        if partial.len() > PARTIAL_BYTES_MAX {
            return Err(Error::TooLong);
        }
        result
    }

    /// Encrypts `data` behind what is in `out`.
    pub(crate) fn seal(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let Self::Tls { session, partial } = self else {
            out.extend_from_slice(data);
            return Ok(());
        };
        let records = data.len().div_ceil(RECORD_BYTES_MAX);
        let bytes_max = data.len() + (records + 1) * RECORD_OVERHEAD_BYTES;
        with_writer(session, partial, out, |writer, out| {
            append(out, bytes_max, |room| writer.encrypt(data, room))
        })
    }

    /// Says that nothing more will follow.
    pub(crate) fn close(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        let Self::Tls { session, partial } = self else {
            return Ok(());
        };
        with_writer(session, partial, out, |writer, out| {
            append(out, 2 * RECORD_OVERHEAD_BYTES, |room| {
                writer.queue_close_notify(room)
            })
        })
    }

    /// Forgets keys and state; nothing can be opened or sealed any more.
    pub(crate) fn discard(&mut self) {
        *self = Self::Plain;
    }
}

/// Runs the state machine over `input` until it wants more; returns the bytes that are done with.
fn pump(
    session: &mut UnbufferedServerConnection,
    input: &mut [u8],
    plain: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> (usize, Result<Opened, Error>) {
    let (mut used, mut opened) = (0, Opened::default());
    loop {
        let rest = input.get_mut(used..).unwrap_or_default();
        let UnbufferedStatus { mut discard, state } = session.process_tls_records(rest);
        let step = match state {
            Err(error) => Err(error.into()),
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                read_records(&mut traffic, plain).map(|more| {
                    discard += more;
                    true
                })
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                append(out, 1024, |room| data.encode(room)).map(|()| true)
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Ok(true)
            }
            Ok(ConnectionState::PeerClosed) => {
                opened.is_end = true;
                Ok(true)
            }
            // Early data is off, so what is left are the states that wait: blocked, writable, closed.
            Ok(_) => Ok(false),
        };
        used += discard;
        match step {
            Ok(true) => {}
            Ok(false) => return (used, Ok(opened)),
            Err(error) => return (used, Err(error)),
        }
    }
}

fn read_records(
    traffic: &mut rustls::unbuffered::ReadTraffic<'_, '_, rustls::server::ServerConnectionData>,
    plain: &mut Vec<u8>,
) -> Result<usize, Error> {
    let mut discard = 0;
    while let Some(record) = traffic.next_record() {
        let record = record?;
        discard += record.discard;
        plain.extend_from_slice(record.payload);
    }
    Ok(discard)
}

/// Brings the session to the state in which it writes. It must see the partial record again, since its own marks point
/// into it.
fn with_writer(
    session: &mut UnbufferedServerConnection,
    partial: &mut Vec<u8>,
    out: &mut Vec<u8>,
    mut write: impl FnMut(
        &mut WriteTraffic<'_, rustls::server::ServerConnectionData>,
        &mut Vec<u8>,
    ) -> Result<(), Error>,
) -> Result<(), Error> {
    loop {
        let UnbufferedStatus { discard, state } = session.process_tls_records(partial);
        let is_written = match state? {
            ConnectionState::WriteTraffic(mut writer) => {
                write(&mut writer, out)?;
                true
            }
            ConnectionState::EncodeTlsData(mut data) => {
                append(out, 1024, |room| data.encode(room))?;
                false
            }
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                false
            }
            _ => return Err(Error::Unwritable),
        };
        partial.drain(..discard.min(partial.len()));
        if is_written {
            return Ok(());
        }
    }
}

/// What an encoder that is short of room says.
trait Shortage {
    /// Bytes that would have been enough.
    fn required_bytes(&self) -> Option<usize>;
    fn text(&self) -> String;
}

impl Shortage for EncodeError {
    fn required_bytes(&self) -> Option<usize> {
        match self {
            Self::InsufficientSize(size) => Some(size.required_size),
            Self::AlreadyEncoded => None,
        }
    }

    fn text(&self) -> String {
        self.to_string()
    }
}

impl Shortage for EncryptError {
    fn required_bytes(&self) -> Option<usize> {
        match self {
            Self::InsufficientSize(size) => Some(size.required_size),
            Self::EncryptExhausted => None,
        }
    }

    fn text(&self) -> String {
        self.to_string()
    }
}

/// Lets `write` fill room behind what is in `out`; more of it, once, if `bytes_max` was too little.
fn append<E: Shortage>(
    out: &mut Vec<u8>,
    bytes_max: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<(), Error> {
    let start = out.len();
    let mut room = bytes_max;
    loop {
        out.resize(start + room, 0);
        let result = write(out.get_mut(start..).unwrap_or_default());
        match result {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(());
            }
            Err(error) => {
                out.truncate(start);
                match error.required_bytes() {
                    Some(bytes) if bytes > room => room = bytes,
                    _ => return Err(Error::Encode(error.text())),
                }
            }
        }
    }
}
