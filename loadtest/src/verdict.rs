//! What osquery concludes from an answer. Pure.
//!
//! The status code is not an input: an agent never looks at it. Success is an empty body, or a JSON object with
//! neither `node_invalid: true` nor an `error` member. Enroll and carve have rules of their own, and ignore `error`.

use std::io;

use serde_json::{Map, Value};

/// A JSON object, in the order of its members.
pub type Object = Map<String, Value>;

/// Why an agent takes a request for failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The 16 s of the logical request ran out.
    #[error("no answer in time")]
    Timeout,
    /// Nobody listens.
    #[error("connection refused")]
    Refused,
    /// The peer reset the connection.
    #[error("connection reset")]
    Reset,
    /// The connection ended before the answer did.
    #[error("connection closed before the end of the answer")]
    Closed,
    /// This machine has no descriptor, port or memory left: the load generator's fault, not the server's.
    #[error("no local resources: {0}")]
    Local(String),
    /// Another error of the socket.
    #[error("socket: {0}")]
    Socket(String),
    /// Handshake, certificate or record error.
    #[error("TLS: {0}")]
    Tls(String),
    /// The head is not HTTP/1.x, or a bound of the agent's parser is exceeded.
    #[error("HTTP: {0}")]
    Http(&'static str),
    /// A redirect without `Location`, to nowhere, or one too many.
    #[error("redirect: {0}")]
    Redirect(&'static str),
    /// The body is not JSON.
    #[error("body is not JSON")]
    NotJson,
    /// The body is JSON, but no object: undefined behaviour in release builds of osquery.
    #[error("body is not a JSON object")]
    NotObject,
    /// `node_invalid: true`: the agent forgets its key.
    #[error("node_invalid")]
    NodeInvalid,
    /// An `error` member, with its text.
    #[error("error object: {0}")]
    Error(String),
    /// The answer to an enrolment holds no node key.
    #[error("no node key in the answer")]
    NoNodeKey,
    /// The answer to the start of a carve holds no session id.
    #[error("no session id in the answer")]
    NoSession,
}

impl Failure {
    /// A short name to count by.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout_16s",
            Self::Refused => "connect_refused",
            Self::Reset => "reset",
            Self::Closed => "closed_early",
            Self::Local(_) => "local_resources",
            Self::Socket(_) => "socket",
            Self::Tls(_) => "tls",
            Self::Http(_) => "http",
            Self::Redirect(_) => "redirect",
            Self::NotJson => "not_json",
            Self::NotObject => "not_object",
            Self::NodeInvalid => "node_invalid",
            Self::Error(_) => "error_object",
            Self::NoNodeKey => "no_node_key",
            Self::NoSession => "no_session",
        }
    }

    /// What distinguishes two failures of a kind, for counting by text.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Error(text) | Self::Tls(text) | Self::Socket(text) | Self::Local(text) => {
                Some(text)
            }
            Self::Http(text) | Self::Redirect(text) => Some(text),
            _ => None,
        }
    }

    /// Whether the connection failed, as opposed to an answer that says no.
    pub fn is_transport(&self) -> bool {
        !matches!(
            self,
            Self::NotJson
                | Self::NotObject
                | Self::NodeInvalid
                | Self::Error(_)
                | Self::NoNodeKey
                | Self::NoSession
        )
    }

    /// Whether osquery's client resends at once: every transport failure but the timeout.
    pub fn is_resent(&self) -> bool {
        self.is_transport() && *self != Self::Timeout
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind;
        match error.kind() {
            ErrorKind::TimedOut => Self::Timeout,
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
                Self::Reset
            }
            ErrorKind::UnexpectedEof => Self::Closed,
            ErrorKind::AddrNotAvailable | ErrorKind::AddrInUse | ErrorKind::OutOfMemory => {
                Self::Local(error.to_string())
            }
            _ if is_descriptor_shortage(&error) => Self::Local(error.to_string()),
            _ => Self::Socket(error.to_string()),
        }
    }
}

fn is_descriptor_shortage(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(nix::errno::Errno::EMFILE as i32) || code == Some(nix::errno::Errno::ENFILE as i32)
}

/// What an agent concludes: the answer's object (empty for an empty body), or why it failed.
pub type Verdict = Result<Object, Failure>;

/// The rule for config, read, write and log.
pub fn judge(body: &[u8]) -> Verdict {
    let object = parse(body)?;
    // Only a real boolean counts, and it wins over `error`.
    if object.get("node_invalid") == Some(&Value::Bool(true)) {
        return Err(Failure::NodeInvalid);
    }
    match object.get("error") {
        None => Ok(object),
        Some(Value::String(text)) => Err(Failure::Error(text.clone())),
        Some(other) => Err(Failure::Error(other.to_string())),
    }
}

/// The rule for enroll: a non-empty key under `node_key`, else under `id`; everything else is ignored.
pub fn judge_enroll(body: &[u8]) -> Result<String, Failure> {
    let object = parse(body)?;
    let key = object.get("node_key").or_else(|| object.get("id"));
    match key.and_then(Value::as_str) {
        Some(key) if !key.is_empty() => Ok(key.to_owned()),
        _ => Err(Failure::NoNodeKey),
    }
}

/// The rule for the start of a carve: a non-empty string `session_id`.
pub fn judge_carve_begin(body: &[u8]) -> Result<String, Failure> {
    let object = parse(body)?;
    match object.get("session_id").and_then(Value::as_str) {
        Some(session) if !session.is_empty() => Ok(session.to_owned()),
        _ => Err(Failure::NoSession),
    }
}

/// The rule for a block of a carve: empty or any JSON object, `error` included.
pub fn judge_carve_block(body: &[u8]) -> Verdict {
    parse(body)
}

/// Strict JSON, but bytes that are no UTF-8 pass, as in osquery's parser.
fn parse(body: &[u8]) -> Verdict {
    if body.is_empty() || body == b"{}" {
        return Ok(Object::new());
    }
    let value: Value = match serde_json::from_slice(body) {
        Ok(value) => value,
        Err(_) if std::str::from_utf8(body).is_err() => {
            serde_json::from_str(&String::from_utf8_lossy(body)).map_err(|_| Failure::NotJson)?
        }
        Err(_) => return Err(Failure::NotJson),
    };
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(Failure::NotObject),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_and_plain_objects_are_success() {
        for body in [
            "",
            "{}",
            r#"{"message":"boom"}"#,
            r#"{"node_invalid":false}"#,
            r#"{"node_invalid":"true"}"#,
            r#"{"node_invalid":1}"#,
        ] {
            assert!(judge(body.as_bytes()).is_ok(), "{body}");
        }
        assert!(judge(b"{\"name\":\"caf\xe9\"}").is_ok());
    }

    #[test]
    fn failures_have_their_kind() {
        for (body, kind) in [
            (r#"{"error":"busy"}"#, "error_object"),
            (r#"{"error":null}"#, "error_object"),
            (r#"{"error":"x","node_invalid":true}"#, "node_invalid"),
            ("<html>", "not_json"),
            ("{} x", "not_json"),
            ("{\"a\":1,}", "not_json"),
            ("\u{feff}{}", "not_json"),
            ("[]", "not_object"),
            ("null", "not_object"),
        ] {
            assert_eq!(judge(body.as_bytes()).unwrap_err().kind(), kind, "{body}");
        }
    }

    #[test]
    fn enroll_wants_a_key_and_nothing_else() {
        assert_eq!(
            judge_enroll(br#"{"node_key":"x","node_invalid":true,"error":"e"}"#).unwrap(),
            "x"
        );
        assert_eq!(judge_enroll(br#"{"id":"y"}"#).unwrap(), "y");
        for body in ["", "{}", r#"{"node_key":""}"#, r#"{"node_key":7}"#] {
            assert_eq!(judge_enroll(body.as_bytes()), Err(Failure::NoNodeKey));
        }
    }

    #[test]
    fn carve_ignores_error() {
        assert!(judge_carve_block(br#"{"error":"no"}"#).is_ok());
        assert_eq!(judge_carve_block(b"no"), Err(Failure::NotJson));
        assert_eq!(
            judge_carve_begin(br#"{"error":"no"}"#),
            Err(Failure::NoSession)
        );
        assert_eq!(judge_carve_begin(br#"{"session_id":"s"}"#).unwrap(), "s");
    }
}
