//! The bytes of a request as osquery writes them, and the answer as its parser reads it. Pure.

use std::fmt::Write as _;

use crate::verdict::Failure;

/// Largest answer head that the agent's parser takes.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
/// Largest answer body that the agent's parser takes; gzip counts before inflation.
pub const BODY_BYTES_MAX: usize = 8 << 20;

/// One request of an agent.
#[derive(Clone, Debug)]
pub struct Request {
    /// Path with query string.
    pub target: String,
    /// `User-Agent`.
    pub user_agent: &'static str,
    /// For `Authorization: NodeKey …`; `None` before 5.23.0, when enrolling, or without a key.
    pub node_key: Option<String>,
    /// The body is gzip.
    pub is_gzip: bool,
    /// `tls_accept_gzip`.
    pub accept_gzip: bool,
    /// Says `Connection: keep-alive`, which osquery never does.
    pub keep_alive: bool,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// The head, members in the order in which osquery sends them.
    pub fn head(&self, host: &str) -> String {
        let mut head = String::with_capacity(320);
        head.push_str("POST ");
        head.push_str(&self.target);
        head.push_str(
            " HTTP/1.1\r\nContent-Type: application/json\r\nAccept: application/json\r\n",
        );
        // Writing to a String cannot fail.
        let _ = write!(head, "User-Agent: {}\r\n", self.user_agent);
        if let Some(key) = &self.node_key {
            let _ = write!(head, "Authorization: NodeKey {key}\r\n");
        }
        if self.is_gzip {
            head.push_str("Content-Encoding: gzip\r\n");
        }
        let _ = write!(head, "Host: {host}\r\n");
        if self.accept_gzip {
            head.push_str("Accept-Encoding: gzip\r\n");
        }
        if self.keep_alive {
            head.push_str("Connection: keep-alive\r\n");
        }
        let _ = write!(head, "Content-Length: {}\r\n\r\n", self.body.len());
        head
    }
}

/// An answer, whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// Status code; an agent only looks for redirects.
    pub status: u16,
    /// Headers in their order, names as sent.
    pub headers: Vec<(String, String)>,
    /// The body, chunks joined, not inflated.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// osquery compares exactly: `Close` or `close, x` do not count.
    pub fn says_close(&self) -> bool {
        self.header("connection") == Some("close")
    }

    /// Codes on which the agent sends the same POST elsewhere; 304 is among them.
    pub fn is_redirect(&self) -> bool {
        matches!(self.status, 301 | 302 | 303 | 304 | 305 | 307 | 308)
    }

    /// The body with `Content-Encoding: gzip` undone.
    pub fn inflated(&self) -> Vec<u8> {
        use std::io::Read as _;
        let mut plain = Vec::new();
        let reader = flate2::read::GzDecoder::new(self.body.as_slice());
        let bound = u64::try_from(BODY_BYTES_MAX).unwrap_or(u64::MAX) * 8;
        match reader.take(bound).read_to_end(&mut plain) {
            Ok(_) if !plain.is_empty() => plain,
            _ => self.body.clone(),
        }
    }
}

/// How the end of the body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

/// Reads an answer out of the bytes that have arrived so far.
#[derive(Debug, Default)]
pub struct ResponseReader {
    head: Option<(Response, Framing, usize)>,
}

impl ResponseReader {
    /// The whole answer if `input` holds it. `is_end` says that the peer closed in the proper way.
    pub fn read(&mut self, input: &[u8], is_end: bool) -> Result<Option<Response>, Failure> {
        if self.head.is_none() {
            self.head = read_head(input)?;
        }
        let Some((response, framing, head_bytes)) = &mut self.head else {
            return if is_end {
                Err(Failure::Closed)
            } else {
                Ok(None)
            };
        };
        let rest = input.get(*head_bytes..).unwrap_or_default();
        let body = match framing {
            Framing::Length(length) => rest.get(..*length).map(<[u8]>::to_vec),
            Framing::Chunked => read_chunks(rest)?,
            Framing::UntilClose => is_end.then(|| rest.to_vec()),
        };
        match body {
            Some(body) if body.len() > BODY_BYTES_MAX => Err(Failure::Http("body over 8 MiB")),
            Some(body) => {
                let mut response = std::mem::take(response);
                response.body = body;
                Ok(Some(response))
            }
            None if is_end => Err(Failure::Closed),
            None if rest.len() > BODY_BYTES_MAX + HEAD_BYTES_MAX => {
                Err(Failure::Http("body over 8 MiB"))
            }
            None => Ok(None),
        }
    }
}

fn read_head(input: &[u8]) -> Result<Option<(Response, Framing, usize)>, Failure> {
    let Some(end) = find(input, b"\r\n\r\n") else {
        return if input.len() >= HEAD_BYTES_MAX {
            Err(Failure::Http("head over 8 KiB"))
        } else {
            Ok(None)
        };
    };
    if end + 4 > HEAD_BYTES_MAX {
        return Err(Failure::Http("head over 8 KiB"));
    }
    let text = String::from_utf8_lossy(input.get(..end).unwrap_or_default());
    let mut lines = text.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1."))
        .and_then(|line| line.get(2..5))
        .and_then(|code| code.parse().ok())
        .ok_or(Failure::Http("no status line"))?;
    let mut response = Response {
        status,
        ..Response::default()
    };
    for line in lines {
        let (name, value) = line
            .split_once(':')
            .ok_or(Failure::Http("malformed header"))?;
        response
            .headers
            .push((name.to_owned(), value.trim().to_owned()));
    }
    let framing = framing_of(&response)?;
    Ok(Some((response, framing, end + 4)))
}

fn framing_of(response: &Response) -> Result<Framing, Failure> {
    // A 1xx is taken as the final answer, without a body.
    if response.status < 200 || response.status == 204 || response.status == 304 {
        return Ok(Framing::Length(0));
    }
    if let Some(coding) = response.header("transfer-encoding") {
        return if coding.eq_ignore_ascii_case("chunked") {
            Ok(Framing::Chunked)
        } else {
            Err(Failure::Http("unknown transfer encoding"))
        };
    }
    match response.header("content-length") {
        None => Ok(Framing::UntilClose),
        Some(length) => match length.parse() {
            Ok(length) if length > BODY_BYTES_MAX => Err(Failure::Http("body over 8 MiB")),
            Ok(length) => Ok(Framing::Length(length)),
            Err(_) => Err(Failure::Http("malformed length")),
        },
    }
}

/// The joined chunks once the last has arrived.
fn read_chunks(mut rest: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
    const MALFORMED: Failure = Failure::Http("malformed chunk");
    let mut body = Vec::new();
    loop {
        let Some(end) = find(rest, b"\r\n") else {
            return Ok(None);
        };
        let line =
            std::str::from_utf8(rest.get(..end).unwrap_or_default()).map_err(|_| MALFORMED)?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let length = usize::from_str_radix(digits, 16).map_err(|_| MALFORMED)?;
        if length > BODY_BYTES_MAX || body.len() + length > BODY_BYTES_MAX {
            return Err(Failure::Http("body over 8 MiB"));
        }
        rest = rest.get(end + 2..).unwrap_or_default();
        if length == 0 {
            // Trailers end with an empty line.
            let is_done = rest.starts_with(b"\r\n") || find(rest, b"\r\n\r\n").is_some();
            return Ok(is_done.then_some(body));
        }
        let Some(chunk) = rest.get(..length) else {
            return Ok(None);
        };
        body.extend_from_slice(chunk);
        let Some(after) = rest.get(length..length + 2) else {
            return Ok(None);
        };
        if after != b"\r\n" {
            return Err(MALFORMED);
        }
        rest = rest.get(length + 2..).unwrap_or_default();
    }
}

fn find(input: &[u8], needle: &[u8]) -> Option<usize> {
    input
        .windows(needle.len())
        .position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            target: "/api/v1/osquery/log".into(),
            user_agent: "osquery/5.23.1",
            node_key: Some("abc".into()),
            is_gzip: true,
            accept_gzip: true,
            keep_alive: false,
            body: b"{}".to_vec(),
        }
    }

    #[test]
    fn heads_have_osquerys_order() {
        assert_eq!(
            request().head("fleet.example:8080"),
            "POST /api/v1/osquery/log HTTP/1.1\r\nContent-Type: application/json\r\n\
             Accept: application/json\r\nUser-Agent: osquery/5.23.1\r\nAuthorization: NodeKey abc\r\n\
             Content-Encoding: gzip\r\nHost: fleet.example:8080\r\nAccept-Encoding: gzip\r\n\
             Content-Length: 2\r\n\r\n"
        );
        let old = Request {
            node_key: None,
            is_gzip: false,
            accept_gzip: false,
            ..request()
        };
        assert_eq!(
            old.head("fleet.example"),
            "POST /api/v1/osquery/log HTTP/1.1\r\nContent-Type: application/json\r\n\
             Accept: application/json\r\nUser-Agent: osquery/5.23.1\r\nHost: fleet.example\r\n\
             Content-Length: 2\r\n\r\n"
        );
    }

    fn whole(input: &[u8], is_end: bool) -> Result<Option<Response>, Failure> {
        ResponseReader::default().read(input, is_end)
    }

    #[test]
    fn answers_arrive_byte_by_byte() {
        for bytes in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"[..],
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x\r\n}\r\n0\r\n\r\n",
        ] {
            let mut reader = ResponseReader::default();
            for end in 0..bytes.len() {
                assert_eq!(reader.read(&bytes[..end], false), Ok(None), "{end}");
            }
            let response = reader.read(bytes, false).unwrap().unwrap();
            assert_eq!(response.body, b"{}");
            assert!(response.says_close());
        }
    }

    #[test]
    fn close_must_be_lower_case_and_alone() {
        for (value, says_close) in [("close", true), ("Close", false), ("close, x", false)] {
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: {value}\r\n\r\n");
            let response = whole(head.as_bytes(), false).unwrap().unwrap();
            assert_eq!(response.says_close(), says_close, "{value}");
        }
    }

    #[test]
    fn a_body_cut_short_is_a_failure() {
        let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}";
        assert_eq!(whole(cut, true), Err(Failure::Closed));
        assert_eq!(whole(b"HTTP/1.1 20", true), Err(Failure::Closed));
        let until_close = b"HTTP/1.1 200 OK\r\n\r\n{}";
        assert_eq!(whole(until_close, false), Ok(None));
        assert_eq!(whole(until_close, true).unwrap().unwrap().body, b"{}");
    }

    #[test]
    fn informational_answers_are_final() {
        let response = whole(b"HTTP/1.1 100 Continue\r\n\r\n", false)
            .unwrap()
            .unwrap();
        assert_eq!((response.status, response.body.len()), (100, 0));
    }

    #[test]
    fn bounds_of_the_parser_hold() {
        let long = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'x'; 9000]].concat();
        assert!(matches!(whole(&long, false), Err(Failure::Http(_))));
        let big = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            BODY_BYTES_MAX + 1
        );
        assert!(matches!(
            whole(big.as_bytes(), false),
            Err(Failure::Http(_))
        ));
    }
}
