//! A connection under test, with rustls' own client as its peer and an exchange that answers as it is told.

use std::io::{Read as _, Write as _};
use std::sync::{Arc, OnceLock};

use fleet_protocol::agent::Route;
use fleet_protocol::config::{Config, Server};
use fleet_protocol::secret::Secret;
use fleet_protocol::slot::{StartTls, TlsIdentity};
use fleet_protocol::stats::Outcome;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use super::super::*;

pub(super) const TLS12: &SupportedProtocolVersion = &rustls::version::TLS12;
pub(super) const TLS13: &SupportedProtocolVersion = &rustls::version::TLS13;
pub(super) const BODY: &str = r#"{"node_key":"k"}"#;

pub(super) struct Identity {
    start: StartTls,
    pub(super) terms: Terms,
    roots: RootCertStore,
}

pub(super) fn identity() -> &'static Identity {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(pair.cert.der().clone()).unwrap();
        let identity = TlsIdentity {
            cert_chain_pem: pair.cert.pem(),
            key_pem: Secret::new(pair.signing_key.serialize_pem()),
            names: vec!["localhost".into()],
        };
        let start = StartTls {
            identities: vec![identity],
            client_trust: None,
            tickets: crate::ticketer::test_keys(),
        };
        Identity {
            terms: Terms::new(&start, &Config::default()).unwrap(),
            roots,
            start,
        }
    })
}

/// What workers of one server are given.
pub(super) fn start_tls() -> StartTls {
    identity().start.clone()
}

pub(super) fn client(
    version: &'static SupportedProtocolVersion,
    name: &'static str,
) -> ClientConnection {
    ClientConnection::new(Arc::new(client_config(version)), name.try_into().unwrap()).unwrap()
}

pub(super) fn client_config(version: &'static SupportedProtocolVersion) -> ClientConfig {
    client_config_of(aws_lc_rs::default_provider(), version)
}

pub(super) fn client_config_of(
    provider: CryptoProvider,
    version: &'static SupportedProtocolVersion,
) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(identity().roots.clone())
        .with_no_client_auth()
}

/// A connection under test with its peer.
pub(super) struct Bench {
    pub(super) connection: Connection,
    pub(super) client: Option<ClientConnection>,
    pub(super) scratch: Scratch,
    pub(super) now: Instant,
    /// What was handed out.
    pub(super) requests: Vec<(Route, Option<String>, String)>,
    /// Requests are answered at once with this; else they wait.
    pub(super) answer: Option<Response>,
    pub(super) bytes_max: usize,
    /// What the client has heard.
    pub(super) heard: Vec<u8>,
    pub(super) has_heard_end: bool,
    /// Why the client has given up.
    pub(super) client_error: Option<rustls::Error>,
    /// Outputs since the last look, each as long as one write would be.
    pub(super) writes: Vec<usize>,
    pub(super) is_tunnel: bool,
    pub(super) is_closed: bool,
}

pub(super) fn ok(body: &str) -> Response {
    Response {
        status: 200,
        body: Bytes::copy_from_slice(body.as_bytes()),
        is_gzip: false,
        must_cut: false,
        outcome: Outcome::Alone,
    }
}

fn refusal(route: Option<Route>, reject: Reject) -> Response {
    let answer = reject.answer(route);
    Response {
        status: answer.status,
        body: Bytes::from_static(answer.body.as_bytes()),
        is_gzip: false,
        must_cut: reject.must_cut(route),
        outcome: Outcome::Refused,
    }
}

pub(super) fn post(path: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: f\r\n{fields}Content-Length: {length}\r\n\r\n{body}")
}

impl Bench {
    pub(super) fn new(client: Option<ClientConnection>) -> Self {
        Self::with(client, &Server::default(), "192.0.2.1:5000", false)
    }

    /// A connection from `peer` to a server with these options.
    pub(super) fn with(
        client: Option<ClientConnection>,
        server: &Server,
        peer: &str,
        is_proxied: bool,
    ) -> Self {
        let terms = client.as_ref().map(|_| identity().terms.clone());
        Self::on(terms, client, server, peer, is_proxied)
    }

    /// The same on terms of the test's own.
    pub(super) fn on(
        terms: Option<Terms>,
        client: Option<ClientConnection>,
        server: &Server,
        peer: &str,
        is_proxied: bool,
    ) -> Self {
        let policy = Rc::new(Policy::of(server, &crate::admission::test_gate()).unwrap());
        let balancers = is_proxied.then(|| server.balancers().unwrap());
        let now = Instant::now();
        let tls = terms.map(Rc::new);
        let peer = peer.parse().unwrap();
        Self {
            connection: Connection::new(tls.as_ref(), policy, peer, balancers.as_ref(), now),
            client,
            scratch: Scratch::default(),
            now,
            requests: Vec::new(),
            answer: Some(ok("{}")),
            bytes_max: 1 << 20,
            heard: Vec::new(),
            has_heard_end: false,
            client_error: None,
            writes: Vec::new(),
            is_tunnel: false,
            is_closed: false,
        }
    }

    pub(super) fn tls(version: &'static SupportedProtocolVersion) -> Self {
        Self::new(Some(client(version, "localhost")))
    }

    /// Does what a session does until nothing more can be done.
    pub(super) fn drive(&mut self) {
        loop {
            let (scratch, now) = (&mut self.scratch, self.now);
            match self.connection.step(scratch, now) {
                Step::Wait => {}
                Step::Closed => self.is_closed = true,
                Step::Tunnel => self.is_tunnel = true,
                Step::Head(head) => {
                    let (route, length) = (head.route, head.content_length);
                    if length > self.bytes_max as u64 {
                        let response = refusal(Some(route), Reject::BodyTooLarge);
                        self.connection.refuse(response, scratch, now);
                    } else {
                        self.connection.admit(self.bytes_max, scratch);
                    }
                    continue;
                }
                Step::Request(head, body) => {
                    let key = head.node_key.map(str::to_owned);
                    let body = String::from_utf8_lossy(body).into_owned();
                    self.requests.push((head.route, key, body));
                    match self.answer.clone() {
                        Some(answer) => self.connection.respond(answer, scratch, now),
                        None => self.connection.hold(),
                    }
                    continue;
                }
                Step::Refuse(route, reject) => {
                    self.connection.refuse(refusal(route, reject), scratch, now);
                    continue;
                }
            }
            if !self.emit() {
                return;
            }
        }
    }

    /// Hands the output to the client; false when there is none.
    pub(super) fn emit(&mut self) -> bool {
        let bytes = std::mem::take(&mut self.scratch.out);
        let is_some = !bytes.is_empty();
        if is_some {
            self.writes.push(bytes.len());
        }
        match &mut self.client {
            None => self.heard.extend_from_slice(&bytes),
            Some(client) => {
                let mut bytes = &bytes[..];
                while !bytes.is_empty() {
                    client.read_tls(&mut bytes).unwrap();
                    let state = match client.process_new_packets() {
                        Ok(state) => state,
                        Err(error) => {
                            self.client_error.get_or_insert(error);
                            break;
                        }
                    };
                    self.has_heard_end |= state.peer_has_closed();
                    let mut chunk = vec![0; state.plaintext_bytes_to_read()];
                    client.reader().read_exact(&mut chunk).unwrap();
                    self.heard.extend_from_slice(&chunk);
                }
            }
        }
        let is_flushed = self.connection.flushed(self.now);
        self.connection.produce(&mut self.scratch, self.now);
        is_some || is_flushed || !self.scratch.out.is_empty()
    }

    pub(super) fn receive(&mut self, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        self.connection
            .receive(&mut bytes, &mut self.scratch, self.now);
        self.drive();
        self.connection.settle(&mut self.scratch);
    }

    /// Lets the client say what it has to say, `step` bytes at a time.
    pub(super) fn talk(&mut self, text: &[u8], step: usize) {
        let Some(client) = &mut self.client else {
            for piece in text.chunks(step) {
                self.receive(piece);
            }
            return;
        };
        client.set_buffer_limit(None);
        client.writer().write_all(text).unwrap();
        loop {
            let mut wire = Vec::new();
            let client = self.client.as_mut().unwrap();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            if wire.is_empty() {
                return;
            }
            for piece in wire.chunks(step) {
                self.receive(piece);
            }
        }
    }

    pub(super) fn say(&mut self, text: &str) {
        self.talk(text.as_bytes(), usize::MAX);
    }

    pub(super) fn heard(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.heard)).unwrap()
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.drive();
    }
}
