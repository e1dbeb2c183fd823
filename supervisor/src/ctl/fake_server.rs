//! For tests: a server over TLS that answers from a list, and a file of contexts that knows it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use clap::Parser as _;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONNECTION, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;

#[derive(Debug, clap::Parser)]
struct Arguments {
    #[command(flatten)]
    ctl: Ctl,
}

pub(super) type Answers = BTreeMap<&'static str, (u16, Value)>;

/// What the server does, and what it heard.
#[derive(Default)]
pub(super) struct Script {
    answers: Answers,
    /// For each WebSocket in turn, what is said on it; it is cut after that.
    sockets: Mutex<Vec<Vec<Value>>>,
    /// `METHOD path token`, and the body.
    pub(super) heard: Mutex<Vec<(String, Value)>>,
    pub(super) connections: Mutex<u32>,
}

pub(super) struct Server {
    pub(super) home: TempDir,
    address: SocketAddr,
    pub(super) script: Arc<Script>,
}

#[derive(Clone, Copy)]
pub(super) enum Certificate {
    Good,
    Authority,
    Expired,
    OtherName,
}

impl Server {
    pub(super) async fn start(answers: Answers, sockets: Vec<Vec<Value>>) -> Self {
        Self::with(Certificate::Good, answers, sockets).await
    }

    pub(super) async fn with(
        certificate: Certificate,
        answers: Answers,
        sockets: Vec<Vec<Value>>,
    ) -> Self {
        let home = tempfile::tempdir().unwrap();
        let name = match certificate {
            Certificate::OtherName => "other.example.com",
            _ => "localhost",
        };
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        if matches!(certificate, Certificate::Authority | Certificate::Expired) {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        if matches!(certificate, Certificate::Expired) {
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let made = params.self_signed(&key).unwrap();
        std::fs::write(home.path().join("ca.pem"), made.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![made.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Script {
            answers,
            sockets: Mutex::new(sockets),
            ..Script::default()
        });
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(accept(listener, acceptor, Arc::clone(&script)));
        Self {
            home,
            address,
            script,
        }
    }

    pub(super) fn contexts(&self) -> PathBuf {
        self.home.path().join(".fleet/config")
    }

    /// Runs a command with our file of contexts, and no server on this machine.
    pub(super) async fn run(&self, words: &[&str]) -> Result<Output, Failure> {
        let contexts = self.contexts();
        let mut line = vec!["ctl", "--contexts", contexts.to_str().unwrap()];
        line.extend(words);
        let arguments = Arguments::try_parse_from(line).unwrap();
        let home = self.home.path().to_owned();
        let caller = Caller {
            is_fleetctl: false,
            is_state_dir_told: false,
            state_dir: &|| Ok(home.clone()),
        };
        let world = World::new(&arguments.ctl, caller);
        execute(arguments.ctl.command, &world).await
    }

    /// A context that trusts the server, with a token.
    pub(super) async fn signed_in(&self) {
        let address = format!("https://localhost:{}", self.address.port());
        let rootca = self.home.path().join("ca.pem");
        let set = ["config", "set", "--address", &address, "--token", "s3cret"];
        self.run(&[&set[..], &["--rootca", rootca.to_str().unwrap()]].concat())
            .await
            .unwrap();
    }

    pub(super) fn heard(&self) -> Vec<String> {
        let heard = self.script.heard.lock().unwrap();
        heard
            .iter()
            .map(|(what, _)| what.replace(API, ""))
            .collect()
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, script: Arc<Script>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, script) = (acceptor.clone(), Arc::clone(&script));
        *script.connections.lock().unwrap() += 1;
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let service =
                hyper::service::service_fn(move |request| serve(request, Arc::clone(&script)));
            let connection = hyper::server::conn::http1::Builder::new();
            let _ = connection
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
        });
    }
}

async fn serve(
    mut request: Request<Incoming>,
    script: Arc<Script>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let token = request.headers().get(AUTHORIZATION);
    let token = token.map_or("", |token| token.to_str().unwrap()).to_owned();
    let what = format!("{} {}", request.method(), request.uri());
    if let Some(key) = request.headers().get("sec-websocket-key") {
        let accept = derive_accept_key(key.as_bytes());
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move { talk(upgrade.await.unwrap(), &script).await });
        let response = Response::builder()
            .status(101)
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_ACCEPT, accept);
        return Ok(response.body(Full::default()).unwrap());
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let path = what.replace(API, "");
    let line = format!("{path} {token}");
    script
        .heard
        .lock()
        .unwrap()
        .push((line.trim_end().to_owned(), body));
    let missing = || {
        (
            404,
            json!({"message": "x", "errors": [{"name": "base", "reason": "nothing"}]}),
        )
    };
    let found = script.answers.get(path.as_str()).cloned();
    let (status, body) = found.unwrap_or_else(missing);
    let body = match body {
        Value::String(text) => text,
        other => other.to_string(),
    };
    Ok(Response::builder()
        .status(status)
        .body(Full::new(Bytes::from(body)))
        .unwrap())
}

/// Hears two messages, says what is in the script, and goes away without a goodbye.
async fn talk(upgraded: hyper::upgrade::Upgraded, script: &Script) {
    let mut socket =
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    for _ in 0..2 {
        let Some(Ok(Message::Text(text))) = socket.next().await else {
            return;
        };
        let message: Value = serde_json::from_str(text.as_str()).unwrap();
        script
            .heard
            .lock()
            .unwrap()
            .push((format!("WS {message}"), Value::Null));
    }
    let lines = {
        let mut sockets = script.sockets.lock().unwrap();
        if sockets.is_empty() {
            Vec::new()
        } else {
            sockets.remove(0)
        }
    };
    for line in lines {
        let _ = socket.send(Message::text(line.to_string())).await;
    }
}
