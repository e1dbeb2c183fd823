//! One slow connection: a byte a second of its part of an exchange, until the server has had enough of it.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::client::Dialer;
use crate::connection::{Connection, client_hello};
use crate::host::Release;
use crate::http::Request;
use crate::target::Target;
use crate::verdict::Failure;

/// Between two bytes.
const BYTE_INTERVAL: Duration = Duration::from_secs(1);
/// Body bytes that a slow body announces; more than it will ever send.
const BODY_BYTES: usize = 10_000;

/// The part of an exchange in which a connection is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The hello comes byte by byte.
    Handshake,
    /// The handshake is quick, the head is not.
    Head,
    /// Handshake and head are quick, the body is not.
    Body,
}

impl Part {
    pub(super) const ALL: [Self; 3] = [Self::Handshake, Self::Head, Self::Body];

    /// Of the connection with this number among so many: a third each, those that servers bear longest first.
    pub(super) fn of(number: u32, total: u32) -> Self {
        match u64::from(number) * 3 / u64::from(total.max(1)) {
            0 => Self::Body,
            1 => Self::Handshake,
            _ => Self::Head,
        }
    }

    /// In figures.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Head => "head",
            Self::Body => "body",
        }
    }
}

/// What became of a slow connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) part: Part,
    /// It came as far as its slow part.
    pub(super) is_opened: bool,
    /// When the first slow byte was due.
    pub(super) begun_at: Instant,
    /// From the first slow byte to the server's end of it; `None` when it was still open at the end of the run.
    pub(super) closed_after: Option<Duration>,
}

/// Opens a connection and sends its slow part until the server closes it, or the end.
pub(super) async fn run(
    part: Part,
    dialer: &Dialer,
    target: &Target,
    path: &str,
    end: Instant,
) -> Ending {
    let opened = timeout(dialer.deadline, open(part, dialer, target, path)).await;
    let Ok(Ok((connection, bytes))) = opened else {
        return Ending {
            part,
            is_opened: false,
            begun_at: Instant::now(),
            closed_after: None,
        };
    };
    Ending {
        part,
        is_opened: true,
        begun_at: Instant::now(),
        closed_after: send_slowly(connection, &bytes, end).await,
    }
}

/// The connection before its slow part, and the bytes of that.
async fn open(
    part: Part,
    dialer: &Dialer,
    target: &Target,
    path: &str,
) -> Result<(Connection, Vec<u8>), Failure> {
    let source = dialer.sources.next();
    if part == Part::Handshake && target.is_tls {
        let hello = client_hello(target, &dialer.tls)?;
        return Ok((Connection::open_bare(target, source).await?, hello));
    }
    let mut connection = Connection::open(target, source, &dialer.tls).await?;
    let request = Request {
        target: path.to_owned(),
        user_agent: Release::MIDDLE.user_agent,
        node_key: None,
        is_gzip: false,
        accept_gzip: false,
        keep_alive: false,
        body: vec![b' '; BODY_BYTES],
    };
    let head = request.head(&target.host).into_bytes();
    if part == Part::Head {
        return Ok((connection, head));
    }
    connection.send(&head).await?;
    Ok((connection, request.body))
}

/// One byte after the other; the time until the server closed the connection.
async fn send_slowly(mut connection: Connection, bytes: &[u8], end: Instant) -> Option<Duration> {
    let begin = Instant::now();
    let mut input = Vec::new();
    let mut bytes = bytes.iter();
    let mut next_at = begin;
    while next_at < end {
        if let Some(byte) = bytes.next()
            && connection.send(&[*byte]).await.is_err()
        {
            return Some(begin.elapsed());
        }
        next_at += BYTE_INTERVAL;
        // What the server says before it closes is of no interest here.
        while let Ok(read) = tokio::time::timeout_at(next_at, connection.fill(&mut input)).await {
            input.clear();
            if !matches!(read, Ok(true)) {
                return Some(begin.elapsed());
            }
        }
    }
    None
}
