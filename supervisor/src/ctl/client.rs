//! HTTP to one server, over whichever door: one connection for requests that follow each other.

use std::time::Duration;

use bytes::Bytes;
use fleet_protocol::secret::Secret;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{
    AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT,
};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::contexts::Context;
use super::dial::{Dialer, Network, Stream};
use super::door::{Endpoint, bearer};
use super::{API, Failure};

/// From connect to the last byte of the answer; longer than control needs to come back after a restart.
const DEADLINE: Duration = Duration::from_secs(60);
/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// What a server says to whoever must choose another password before anything else.
const RESET: &str = "password reset required";
/// What servers see of us in their logs.
const AGENT: &str = concat!("fleet-supervisor-ctl/", env!("CARGO_PKG_VERSION"));

/// Speaks to one server.
pub(super) struct Client {
    dialer: Dialer,
    /// Of every request.
    headers: HeaderMap,
    prefix: String,
    /// The command that signs in, for messages.
    login: String,
    /// For who must say it in a message.
    token: Secret,
    /// Open, and free for the next request.
    kept: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

/// What came back, whatever it says.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// Where it says to go instead.
    location: String,
    pub(super) body: Bytes,
}

impl Answer {
    /// Null if it is no JSON.
    pub(super) fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

impl Client {
    /// To the server of this machine, as a local administrator.
    pub(super) fn local(socket: std::path::PathBuf) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("localhost"));
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        Self {
            dialer: Dialer::Socket(socket),
            headers,
            prefix: String::new(),
            login: String::new(),
            token: Secret::default(),
            kept: Mutex::new(None),
        }
    }

    /// To the server of a context, as who signed in there; `login` is the command for that.
    pub(super) fn remote(context: &Context, login: String) -> Result<Self, String> {
        let endpoint = Endpoint::of(context)?;
        let mut headers = HeaderMap::new();
        let value = |text: &str| {
            HeaderValue::from_str(text)
                .map_err(|_| "holds bytes that no header can carry".to_owned())
        };
        headers.insert(HOST, value(&endpoint.authority())?);
        if let Some(bearer) = bearer(&context.token) {
            let mut bearer =
                value(&bearer).map_err(|reason| format!("has a token that {reason}"))?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        for (name, text) in &context.headers {
            let wrong = |_| format!("has a custom header {name:?}, which is no name of a header");
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(wrong)?;
            let mut text = value(text.reveal())?;
            text.set_sensitive(true);
            headers.insert(name, text);
        }
        let prefix = endpoint.prefix.clone();
        let network = Network::new(endpoint, context)?;
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        Ok(Self {
            dialer: Dialer::Network(Box::new(network)),
            headers,
            prefix,
            login,
            token: context.token.clone(),
            kept: Mutex::new(None),
        })
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

    /// The body of a good answer as it is.
    pub(super) async fn bytes(&self, path: &str, limit: Duration) -> Result<Bytes, Failure> {
        let answer = self.exchange(Method::GET, path, None, limit).await?;
        self.judge(&answer)?;
        Ok(answer.body)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let answer = self.exchange(method, path, body, DEADLINE).await?;
        self.judge(&answer)?;
        Ok(answer.value())
    }

    /// One request, whatever comes back.
    pub(super) async fn answer(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Failure> {
        self.exchange(method, path, body, DEADLINE).await
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let body = Bytes::from(body.map(Value::to_string).unwrap_or_default());
        timeout(limit, self.attempts(&method, path, &body))
            .await
            .unwrap_or_else(|_| {
                let seconds = limit.as_secs();
                Err(Failure::Unavailable(format!(
                    "the server did not answer within {seconds} s; see `fleet-supervisor status` and its log"
                )))
            })
    }

    /// A connection that was kept may have been closed in the meantime, which is no failure of a question.
    async fn attempts(&self, method: &Method, path: &str, body: &Bytes) -> Result<Answer, Failure> {
        let mut kept = self.kept.lock().await;
        if let Some(mut sender) = kept.take() {
            let is_ready = sender.ready().await.is_ok();
            if is_ready && *method == Method::GET {
                if let Ok(answer) = self.one(&mut sender, method, path, body).await {
                    *kept = Some(sender);
                    return Ok(answer);
                }
            } else if is_ready {
                let answer = self
                    .one(&mut sender, method, path, body)
                    .await
                    .map_err(broken)?;
                *kept = Some(sender);
                return Ok(answer);
            }
        }
        let stream = self.dialer.dial().await?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let answer = self
            .one(&mut sender, method, path, body)
            .await
            .map_err(broken)?;
        *kept = Some(sender);
        Ok(answer)
    }

    async fn one(
        &self,
        sender: &mut SendRequest<Full<Bytes>>,
        method: &Method,
        path: &str,
        body: &Bytes,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.prefix))
            .body(Full::new(body.clone()))?;
        request.headers_mut().clone_from(&self.headers);
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, json);
        let response = sender.send_request(request).await?;
        let location = response.headers().get(LOCATION);
        let location = location.and_then(|value| value.to_str().ok());
        Ok(Answer {
            status: response.status(),
            location: location.unwrap_or_default().to_owned(),
            body: Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await?
                .to_bytes(),
        })
    }

    /// Whether the answer is good, and why not.
    pub(super) fn judge(&self, answer: &Answer) -> Result<(), Failure> {
        let status = answer.status;
        if status.is_success() {
            return Ok(());
        }
        if status == StatusCode::UNAUTHORIZED && self.network().is_some() {
            let value = answer.value();
            let reason = value.get("error").and_then(Value::as_str);
            // Signing in again would not help.
            return Err(match reason {
                Some(RESET) => refusal(status, &value),
                _ => self.signed_out(),
            });
        }
        if status.is_redirection() {
            return Err(Failure::Refused(format!(
                "the server says to go to {:?}; if that is right, set it as address",
                answer.location
            )));
        }
        Err(refusal(status, &answer.value()))
    }

    /// What to do without a session.
    pub(super) fn signed_out(&self) -> Failure {
        Failure::Refused(format!(
            "you are not signed in, or the session is over: run `{}`",
            self.login
        ))
    }

    /// Whether requests carry a token; the socket of this machine wants none.
    pub(super) fn has_access(&self) -> bool {
        self.network().is_none() || self.headers.contains_key(AUTHORIZATION)
    }

    /// How the network is used, if it is.
    pub(super) fn network(&self) -> Option<&Network> {
        match &self.dialer {
            Dialer::Network(network) => Some(network),
            Dialer::Socket(_) => None,
        }
    }

    /// A connection for something other than plain requests, and what a request on it must say.
    pub(super) async fn dial(&self) -> Result<Stream, Failure> {
        timeout(DEADLINE, self.dialer.dial())
            .await
            .unwrap_or_else(|_| Err(Failure::Unavailable("the server cannot be reached".into())))
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    pub(super) fn token(&self) -> &Secret {
        &self.token
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A sentence when the server is of another version than this program.
    pub(super) async fn version_remark(&self) -> Result<Option<String>, Failure> {
        let own = env!("CARGO_PKG_VERSION");
        let body = self.get(&format!("{API}/version")).await?;
        let version = body
            .get("version")
            .and_then(Value::as_str)
            .unwrap_or("unknown");
        Ok((version != own).then(|| {
            format!(
                "the server is of version {version}, this client of {own}; some commands may differ"
            )
        }))
    }

    /// For people: where commands go.
    pub(super) fn place(&self) -> String {
        match &self.dialer {
            Dialer::Socket(path) => format!("the socket {}", path.display()),
            Dialer::Network(network) => {
                let url = network.endpoint().url();
                network
                    .peer()
                    .map_or(url.clone(), |peer| format!("{url} at {peer}"))
            }
        }
    }
}

fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::Unavailable(format!(
        "the server closed the connection ({error}); try again, and see `fleet-supervisor status`"
    ))
}

/// Fleet's error shape as lines.
pub(super) fn refusal(status: StatusCode, body: &Value) -> Failure {
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
        ([], _) => match text(body, "message") {
            message if message.is_empty() => format!("the server answered {status}"),
            message => message,
        },
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
        let client = Client::local(socket.clone());
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
