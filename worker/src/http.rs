//! HTTP/1.1 as far as agents need it: request heads, chunked bodies, answer heads. Pure.
//!
//! Invariants: nothing is allocated for what the peer only claims; framing that two readers could understand
//! differently is refused.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::LazyLock;

use fleet_protocol::agent::Route;
use fleet_protocol::limits::HEAD_BYTES_MAX;
use fleet_protocol::trusted_proxies::TrustedProxies;
use memchr::memmem::Finder;

/// Header fields in one head.
const FIELDS_MAX: usize = 96;
/// A chunk's size line, extensions included.
const CHUNK_LINE_BYTES_MAX: usize = 256;
/// Hex digits in a chunk size; 15 cannot overflow.
const CHUNK_DIGITS_MAX: usize = 15;
const HEAD_END: &[u8] = b"\r\n\r\n";
/// Making it anew for each head would cost as much as the search.
static HEAD_END_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(HEAD_END));

/// Not HTTP/1.1, or ambiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// What a request head says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestHead {
    /// With the empty line.
    pub(crate) head_bytes: usize,
    /// `None`: no agent path.
    pub(crate) route: Option<Route>,
    pub(crate) is_post: bool,
    pub(crate) framing: Framing,
    /// Where in the head the key stands that follows `Authorization: NodeKey`.
    pub(crate) node_key: Option<Range<usize>>,
    pub(crate) is_gzip: bool,
    /// The client takes a gzip answer.
    pub(crate) accepts_gzip: bool,
    /// The client asks for reuse in so many words.
    pub(crate) wants_keep_alive: bool,
    /// HTTP's own rule reuses the connection: 1.1, and nothing was said against it.
    pub(crate) is_persistent: bool,
    /// The client sends the body only after `100 Continue`.
    pub(crate) expects_continue: bool,
}

/// How the body's end is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
}

/// Reads a head off the front of `bytes`; `None` when more are needed. `scanned` remembers, between calls with a growing
/// buffer, where the search for the end goes on.
pub(crate) fn parse_head(
    bytes: &[u8],
    path_prefix: &str,
    scanned: &mut usize,
) -> Result<Option<RequestHead>, Malformed> {
    if bytes
        .first()
        .is_some_and(|first| !first.is_ascii_alphabetic())
    {
        return Err(Malformed);
    }
    let from = scanned.saturating_sub(HEAD_END.len() - 1);
    let tail = bytes.get(from..).unwrap_or_default();
    let Some(end) = HEAD_END_FINDER.find(tail) else {
        *scanned = bytes.len();
        return if bytes.len() < HEAD_BYTES_MAX {
            Ok(None)
        } else {
            Err(Malformed)
        };
    };
    let head_bytes = from + end + HEAD_END.len();
    let head = bytes
        .get(..head_bytes.min(HEAD_BYTES_MAX))
        .ok_or(Malformed)?;
    let mut fields = [const { std::mem::MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut fields) {
        Ok(httparse::Status::Complete(length)) if length == head_bytes => {}
        _ => return Err(Malformed),
    }
    read_fields(&request, head, path_prefix).map(Some)
}

fn read_fields(
    request: &httparse::Request<'_, '_>,
    head: &[u8],
    path_prefix: &str,
) -> Result<RequestHead, Malformed> {
    let path = path_of(request.path.unwrap_or_default());
    let mut found = RequestHead {
        head_bytes: head.len(),
        route: path.strip_prefix(path_prefix).and_then(Route::of_path),
        is_post: request.method == Some("POST"),
        framing: Framing::Length(0),
        node_key: None,
        is_gzip: false,
        accepts_gzip: false,
        wants_keep_alive: false,
        is_persistent: false,
        expects_continue: false,
    };
    let is_http_11 = request.version == Some(1);
    let (mut length, mut is_chunked, mut wants_close) = (None, false, false);
    for field in request.headers.iter() {
        let value = field.value.trim_ascii();
        if field.name.eq_ignore_ascii_case("content-length") {
            let number = parse_length(value)?;
            if length.replace(number).is_some_and(|other| other != number) {
                return Err(Malformed);
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            if is_chunked || !is_http_11 || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed);
            }
            is_chunked = true;
        } else if field.name.eq_ignore_ascii_case("authorization") {
            if let Some(key) = node_key(value) {
                found.node_key = range_in(head, key);
            }
        } else if field.name.eq_ignore_ascii_case("content-encoding") {
            found.is_gzip =
                value.eq_ignore_ascii_case(b"gzip") || value.eq_ignore_ascii_case(b"x-gzip");
        } else if field.name.eq_ignore_ascii_case("accept-encoding") {
            found.accepts_gzip = has_token(value, b"gzip");
        } else if field.name.eq_ignore_ascii_case("connection") {
            found.wants_keep_alive |= has_token(value, b"keep-alive");
            wants_close |= has_token(value, b"close");
        } else if field.name.eq_ignore_ascii_case("expect") {
            found.expects_continue = is_http_11 && value.eq_ignore_ascii_case(b"100-continue");
        }
    }
    found.wants_keep_alive &= !wants_close;
    found.is_persistent = is_http_11 && !wants_close;
    found.framing = match (length, is_chunked) {
        (Some(_), true) => return Err(Malformed),
        (None, true) => Framing::Chunked,
        (length, false) => Framing::Length(length.unwrap_or(0)),
    };
    Ok(found)
}

/// Whom a whole head, which was parsed before, says that the request is from.
pub(crate) fn client_address(head: &[u8], trusted: &TrustedProxies, peer: IpAddr) -> IpAddr {
    let mut fields = [const { std::mem::MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    if request
        .parse_with_uninit_headers(head, &mut fields)
        .is_err()
    {
        return peer;
    }
    let fields = &*request.headers;
    trusted.client_address(peer, |name| {
        let named = fields
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value)
    })
}

/// The path of a request target, without query; the target may be absolute (RFC 9112, 3.2.2).
fn path_of(target: &str) -> &str {
    let target = target
        .strip_prefix("https://")
        .or_else(|| target.strip_prefix("http://"))
        .map_or(target, |rest| {
            rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/")
        });
    target.split_once('?').map_or(target, |(path, _)| path)
}

fn parse_length(value: &[u8]) -> Result<u64, Malformed> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    Ok(value.iter().fold(0, |number, digit| {
        number * 10 + u64::from(digit.wrapping_sub(b'0'))
    }))
}

fn node_key(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(b"nodekey ".len())?;
    let key = key.trim_ascii();
    let is_key = scheme.eq_ignore_ascii_case(b"nodekey ")
        && !key.is_empty()
        && key.iter().all(u8::is_ascii_graphic);
    is_key.then_some(key)
}

/// Where `part`, a slice of `whole`, stands in it.
fn range_in(whole: &[u8], part: &[u8]) -> Option<Range<usize>> {
    let start = part.as_ptr().addr().checked_sub(whole.as_ptr().addr())?;
    let range = start..start + part.len();
    whole.get(range.clone()).map(|_| range)
}

fn has_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|byte| *byte == b',')
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

/// Takes the framing out of a chunked body, in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunked {
    state: ChunkState,
    /// Trailer bytes seen.
    trailer_bytes: usize,
    /// Where the content ends that is ready, and the raw bytes begin.
    end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    Size,
    Content(u64),
    ContentEnd,
    Trailer,
    Done,
}

impl Chunked {
    /// The body begins at `start` of the buffer that [`Chunked::decode`] will be given.
    pub(crate) fn new(start: usize) -> Self {
        Self {
            state: ChunkState::Size,
            trailer_bytes: 0,
            end: start,
        }
    }

    /// End of the content that is ready.
    pub(crate) fn end(&self) -> usize {
        self.end
    }

    /// The caller has removed content, which now ends at `end`.
    pub(crate) fn set_end(&mut self, end: usize) {
        self.end = end;
    }

    /// Decodes what has arrived; true when the body is whole. Then `buffer` goes on behind [`Chunked::end`] with what
    /// follows the request.
    pub(crate) fn decode(&mut self, buffer: &mut Vec<u8>) -> Result<bool, Malformed> {
        let mut at = self.end;
        if at > buffer.len() {
            return Err(Malformed);
        }
        let result = loop {
            match self.advance(buffer, &mut at) {
                Ok(true) if self.state == ChunkState::Done => break Ok(true),
                Ok(true) => {}
                Ok(false) => break Ok(false),
                Err(malformed) => break Err(malformed),
            }
        };
        buffer.drain(self.end..at.max(self.end));
        result
    }

    /// One step; false when more bytes are needed.
    fn advance(&mut self, buffer: &mut [u8], at: &mut usize) -> Result<bool, Malformed> {
        let raw = buffer.get(*at..).unwrap_or_default();
        match self.state {
            ChunkState::Size => {
                let Some(line) = line_of(raw, CHUNK_LINE_BYTES_MAX)? else {
                    return Ok(false);
                };
                *at += line.len() + 2;
                self.state = match parse_chunk_size(line)? {
                    0 => ChunkState::Trailer,
                    size => ChunkState::Content(size),
                };
            }
            ChunkState::Content(left) => {
                let here = usize::try_from(left).map_or(raw.len(), |left| left.min(raw.len()));
                if here == 0 {
                    return Ok(false);
                }
                buffer.copy_within(*at..*at + here, self.end);
                self.end += here;
                *at += here;
                self.state = match left - here as u64 {
                    0 => ChunkState::ContentEnd,
                    left => ChunkState::Content(left),
                };
            }
            ChunkState::ContentEnd => {
                let Some(ending) = raw.get(..2) else {
                    return Ok(false);
                };
                if ending != b"\r\n" {
                    return Err(Malformed);
                }
                *at += 2;
                self.state = ChunkState::Size;
            }
            ChunkState::Trailer => {
                let Some(line) = line_of(raw, HEAD_BYTES_MAX)? else {
                    return Ok(false);
                };
                *at += line.len() + 2;
                self.trailer_bytes += line.len() + 2;
                if line.is_empty() {
                    self.state = ChunkState::Done;
                } else if self.trailer_bytes > HEAD_BYTES_MAX {
                    return Err(Malformed);
                }
            }
            ChunkState::Done => {}
        }
        Ok(true)
    }
}

/// The line at the front of `raw`, without its end; `None` when that has not arrived.
fn line_of(raw: &[u8], bytes_max: usize) -> Result<Option<&[u8]>, Malformed> {
    match memchr::memmem::find(raw, b"\r\n") {
        Some(length) if length <= bytes_max => Ok(raw.get(..length)),
        None if raw.len() <= bytes_max => Ok(None),
        _ => Err(Malformed),
    }
}

fn parse_chunk_size(line: &[u8]) -> Result<u64, Malformed> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    let digits = digits.trim_ascii_end();
    if digits.is_empty() || digits.len() > CHUNK_DIGITS_MAX {
        return Err(Malformed);
    }
    digits.iter().try_fold(0, |size, digit| {
        let value = char::from(*digit).to_digit(16).ok_or(Malformed)?;
        Ok(size * 16 + u64::from(value))
    })
}

/// What a client hears that asked before it sends its body.
pub(crate) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Appends the head of an answer. osquery compares `close` exactly.
pub(crate) fn write_answer_head(
    out: &mut Vec<u8>,
    status: u16,
    body_bytes: usize,
    is_gzip: bool,
    is_kept_alive: bool,
) {
    let (reason, allow) = match status {
        200 => ("OK", ""),
        400 => ("Bad Request", ""),
        401 => ("Unauthorized", ""),
        404 => ("Not Found", ""),
        405 => ("Method Not Allowed", "Allow: POST\r\n"),
        413 => ("Content Too Large", ""),
        500 => ("Internal Server Error", ""),
        503 => ("Service Unavailable", ""),
        _ => ("Unknown", ""),
    };
    let end = if is_kept_alive {
        "\r\nConnection: keep-alive\r\n\r\n"
    } else {
        "\r\nConnection: close\r\n\r\n"
    };
    let (mut status_digits, mut length_digits) = (itoa::Buffer::new(), itoa::Buffer::new());
    // Formatting machinery would take a twentieth of a request's instructions.
    for part in [
        "HTTP/1.1 ",
        status_digits.format(status),
        " ",
        reason,
        "\r\nContent-Type: application/json\r\n",
        allow,
        if is_gzip {
            "Content-Encoding: gzip\r\n"
        } else {
            ""
        },
        "Content-Length: ",
        length_digits.format(body_bytes),
        end,
    ] {
        out.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
