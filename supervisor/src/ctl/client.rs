//! HTTP over the operator socket: one connection a request.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Failure;

/// From connect to the last byte of the answer; longer than control needs to come back after a restart.
const DEADLINE: Duration = Duration::from_secs(60);
/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Speaks to one server.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.ask(Method::GET, path, None).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.ask(Method::POST, path, Some(body)).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.ask(Method::DELETE, path, None).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        timeout(DEADLINE, self.exchange(method, path, body))
            .await
            .unwrap_or_else(|_| {
                let seconds = DEADLINE.as_secs();
                Err(Failure::Unavailable(format!(
                    "the server did not answer within {seconds} s; see `fleet-supervisor status` and its log"
                )))
            })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        tokio::spawn(connection);
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(broken)?
            .to_bytes();
        let value = serde_json::from_slice(&answer).unwrap_or_default();
        if status.is_success() {
            return Ok(value);
        }
        Err(refusal(status, &value))
    }

    fn unreachable(&self, error: &std::io::Error) -> Failure {
        let socket = self.socket.display();
        Failure::Unavailable(match error.kind() {
            ErrorKind::NotFound => format!(
                "no server has its state here: {socket} does not exist; start it with `fleet-supervisor start`, or \
                 name its state directory with --state_dir"
            ),
            ErrorKind::ConnectionRefused => format!(
                "the server is not running: nobody listens on {socket}; start it with `fleet-supervisor start`"
            ),
            ErrorKind::PermissionDenied => format!(
                "not allowed to open {socket}; run this as root or as the user that the server runs as"
            ),
            _ => format!("cannot connect to {socket}: {error}"),
        })
    }
}

fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::Unavailable(format!(
        "the server closed the connection ({error}); try again, and see `fleet-supervisor status`"
    ))
}

/// Fleet's error shape as lines.
fn refusal(status: StatusCode, body: &Value) -> Failure {
    let text = |value: &Value, name: &str| {
        let text = value.get(name).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let errors = body.get("errors").and_then(Value::as_array);
    let lines: Vec<String> = errors
        .into_iter()
        .flatten()
        .map(|error| match text(error, "name").as_str() {
            "" | "base" => text(error, "reason"),
            name => format!("{name}: {}", text(error, "reason")),
        })
        .collect();
    let message = match (lines.as_slice(), text(body, "error")) {
        ([], error) if !error.is_empty() => error,
        ([], _) => format!("the server answered {status}"),
        ([line], _) => line.clone(),
        (lines, _) => format!(
            "{} problems, nothing was changed:\n  {}",
            lines.len(),
            lines.join("\n  ")
        ),
    };
    if status.is_server_error() {
        Failure::Unavailable(message)
    } else {
        Failure::Refused(message)
    }
}

/// A name as one segment of a path, or as a value in a query.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_become_one_segment() {
        assert_eq!(encoded("pack/query 1?"), "pack%2Fquery%201%3F");
        assert_eq!(encoded("größe"), "gr%C3%B6%C3%9Fe");
    }

    #[test]
    fn refusals_read_as_lines() {
        let one = json!({"message": "x", "errors": [{"name": "query \"a\"", "reason": "wrong"}]});
        assert_eq!(
            refusal(StatusCode::UNPROCESSABLE_ENTITY, &one),
            Failure::Refused("query \"a\": wrong".into())
        );
        let base = json!({"message": "x", "errors": [{"name": "base", "reason": "down"}]});
        assert_eq!(
            refusal(StatusCode::SERVICE_UNAVAILABLE, &base),
            Failure::Unavailable("down".into())
        );
        assert_eq!(
            refusal(StatusCode::FORBIDDEN, &json!({"error": "only root"})),
            Failure::Refused("only root".into())
        );
        assert!(matches!(
            refusal(StatusCode::BAD_GATEWAY, &Value::Null),
            Failure::Unavailable(_)
        ));
    }

    #[tokio::test]
    async fn an_absent_server_is_explained() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("operator.sock");
        let client = Client::new(socket.clone());
        let failure = client.get("/").await.unwrap_err();
        assert_eq!(failure.code(), 69);
        assert!(
            failure.text().contains("does not exist"),
            "{}",
            failure.text()
        );
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let failure = client.get("/").await.unwrap_err();
        assert!(failure.text().contains("not running"), "{}", failure.text());
    }
}
