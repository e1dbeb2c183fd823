//! TLS as other programs speak it: tickets over workers and restarts, certificates by name, agents without node keys.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use fleet_protocol::stats::TlsFailure;
use fleet_tests::gateway::{Gateway, Options};
use fleet_tests::https::{Answer, TlsStream, read_to_close};
use fleet_tests::process::signal;
use fleet_tests::wait;
use nix::sys::signal::Signal;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, ClientConfig, ClientConnection, RootCertStore};
use serde_json::{Value, json};
use tempfile::TempDir;

/// `openssl s_client`, which says what it saw.
fn s_client(gateway: &Gateway, args: &[&str]) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &gateway.address.to_string()])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Tickets of TLS 1.3 come after the handshake: a request and its answer, then the end.
    let mut input = child.stdin.take().unwrap();
    let request = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let _ = input.write_all(request.as_bytes());
    let output = child.wait_with_output().unwrap();
    drop(input);
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Connections that each worker has taken.
fn accepted(gateway: &Gateway) -> Vec<u64> {
    let status = gateway.status().unwrap();
    let slots = status["gateway"]["slots"].as_array().unwrap().iter();
    slots
        .map(|slot| slot["stats"]["accepted"].as_u64().unwrap())
        .collect()
}

/// Visits until every worker has taken some visit, each of which must resume the session in `ticket`.
fn resume_everywhere(gateway: &Gateway, version: &str, ticket: &str) {
    let before = accepted(gateway);
    wait::until("every worker has resumed a session", || {
        for _ in 0..4 {
            let args = [version, "-alpn", "http/1.1", "-sess_in", ticket];
            let seen = s_client(gateway, &args);
            assert!(seen.contains("Reused, "), "{version}: {seen}");
        }
        let now = accepted(gateway);
        let has_moved = now.iter().zip(&before).all(|(now, before)| now > before);
        has_moved.then_some(())
    });
}

#[test]
fn sessions_resume_on_every_worker_and_after_its_death() {
    let gateway = Gateway::start();
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for version in ["-tls1_3", "-tls1_2"] {
        let ticket = path(version);
        let first = s_client(
            &gateway,
            &[version, "-alpn", "http/1.1", "-sess_out", &ticket],
        );
        assert!(first.contains("New, "), "{first}");
        resume_everywhere(&gateway, version, &ticket);
        // An agent offers no ALPN: no ticket to keep, and none that is taken.
        let agent = path("agent");
        s_client(&gateway, &[version, "-sess_out", &agent]);
        if Path::new(&agent).exists() {
            let again = s_client(&gateway, &[version, "-sess_in", &agent]);
            assert!(again.contains("New, "), "{again}");
        }
    }
    for slot in 0..2 {
        let pid = gateway.worker_pid(slot);
        signal(pid, Signal::SIGKILL);
        gateway.wait_for_successor(&format!("/gateway/slots/{slot}"), pid);
    }
    resume_everywhere(&gateway, "-tls1_3", &path("-tls1_3"));
}

/// An authority, and what it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    /// Certificate and key, PEM.
    fn sign(&self, names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

fn write(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn the_certificate_follows_the_name_and_an_address_is_no_name() {
    let dir = TempDir::new().unwrap();
    let authority = Authority::new("authority");
    let (cert, key) = authority.sign(&["*.example.com", "fleet.example.com"]);
    let cert = write(&dir, "cert.pem", &cert);
    let key = write(&dir, "key.pem", &key);
    let pair = format!("{}={}", cert.display(), key.display());
    let gateway = Gateway::options().set("tls.certificates", pair).start();
    for (name, is_further) in [
        ("fleet.example.com", true),
        ("Other.Example.com", true),
        ("localhost", false),
        ("127.0.0.1", false),
        ("unknown.example.org", false),
    ] {
        let seen = s_client(&gateway, &["-servername", name]);
        let issued = seen.contains("issuer=CN = authority") || seen.contains("issuer=CN=authority");
        assert_eq!(issued, is_further, "{name}: {seen}");
        assert!(seen.contains("HTTP/1.1 200"), "{name}: {seen}");
    }
}

/// An agent with a certificate.
struct CertifiedAgent<'a> {
    gateway: &'a Gateway,
    config: Arc<ClientConfig>,
}

impl<'a> CertifiedAgent<'a> {
    fn new(gateway: &'a Gateway, identity: Option<(String, String)>) -> Self {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(gateway.state("tls/cert.pem")).unwrap();
        roots.add(ca).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let config = Arc::new(config);
        Self { gateway, config }
    }

    fn try_post(&self, endpoint: &str, body: &Value) -> std::io::Result<Answer> {
        let name = self.gateway.address.ip().into();
        let client = ClientConnection::new(Arc::clone(&self.config), name).unwrap();
        let socket = TcpStream::connect(self.gateway.address)?;
        let mut stream = TlsStream::new(client, socket);
        let body = body.to_string();
        let length = body.len();
        write!(
            stream,
            "POST /api/v1/osquery/{endpoint} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        read_to_close(&mut stream)
    }

    fn post(&self, endpoint: &str, body: &Value) -> serde_json::Map<String, Value> {
        self.try_post(endpoint, body).unwrap().object()
    }
}

fn identifiers(gateway: &Gateway) -> Vec<String> {
    let text = gateway.ctl(&["get", "hosts", "--json"]);
    let mut found: Vec<String> = ["web-1.example.com", "web-2.example.com", "forged"]
        .into_iter()
        .filter(|name| text.contains(name))
        .map(str::to_owned)
        .collect();
    found.sort();
    found
}

fn serve_certified(authority: &Authority, dir: &TempDir, auth: &str) -> Options {
    let ca = write(dir, "ca.pem", &authority.pem);
    Gateway::options()
        .set("server.client_ca", ca.display())
        .set("server.client_auth", auth)
}

#[test]
fn agents_without_enrollment_are_known_by_their_certificates() {
    let (authority, dir) = (Authority::new("agents"), TempDir::new().unwrap());
    let gateway = serve_certified(&authority, &dir, "accept").start();
    let one = CertifiedAgent::new(&gateway, Some(authority.sign(&["web-1.example.com"])));
    let two = CertifiedAgent::new(&gateway, Some(authority.sign(&["web-2.example.com"])));
    let none = CertifiedAgent::new(&gateway, None);
    gateway.apply(
        "apiVersion: v1\nkind: config\nspec:\n  agent_options:\n    config: {options: {distributed_interval: 17}}\n",
    );

    // As osquery writes it, and as it might; what the body says of the sender is not believed.
    for body in [
        json!({"node_key": ""}),
        json!({}),
        json!({"node_key": "", "host_identifier": "forged"}),
    ] {
        let config = one.post("config", &body);
        assert!(
            !config.is_empty() && !config.contains_key("error"),
            "{config:?}"
        );
    }
    assert_eq!(identifiers(&gateway), ["web-1.example.com"]);
    // It is given work, and does it.
    let read = one.post("distributed/read", &json!({"node_key": ""}));
    let queries = read["queries"].as_object().unwrap();
    assert!(!queries.is_empty(), "{read:?}");
    let log = json!({"node_key": "", "log_type": "result", "data": [{"name": "q", "n": 7}]});
    assert!(!two.post("log", &log).contains_key("error"));
    assert_eq!(gateway.journal("result").len(), 1);
    assert_eq!(
        identifiers(&gateway),
        ["web-1.example.com", "web-2.example.com"]
    );

    // Others go on with node keys; without one they are nobody.
    let body = none.post("config", &json!({"node_key": ""}));
    assert_eq!(body["node_invalid"], true);
    let key = gateway.https.enroll(&gateway.secret(), "web-1.example.com");
    let config = none.post("config", &json!({"node_key": key}));
    assert!(!config.contains_key("error"), "{config:?}");

    // A certificate that names nobody makes no host, and is no reason to enroll.
    let nobody = CertifiedAgent::new(&gateway, Some(authority.sign(&["192.0.2.7"])));
    let body = nobody.post("config", &json!({"node_key": ""}));
    assert!(body.contains_key("error"), "{body:?}");
    assert!(!body.contains_key("node_invalid"), "{body:?}");

    // The certificate is the same host after a restart, on whichever worker.
    let gateway = gateway.restart();
    let one = CertifiedAgent::new(&gateway, Some(authority.sign(&["web-1.example.com"])));
    let config = one.post("config", &json!({"node_key": ""}));
    assert!(!config.contains_key("error"), "{config:?}");
}

#[test]
fn whoever_must_show_a_certificate_and_does_not_is_told_why() {
    let (authority, dir) = (Authority::new("agents"), TempDir::new().unwrap());
    let other = Authority::new("others");
    // Status and readiness go over the admin socket, so that the harness needs no certificate.
    let gateway = serve_certified(&authority, &dir, "require").start();
    let good = CertifiedAgent::new(&gateway, Some(authority.sign(&["web-1.example.com"])));
    let config = good.post("config", &json!({"node_key": ""}));
    assert!(!config.contains_key("error"), "{config:?}");
    for (identity, alert) in [
        (None, AlertDescription::CertificateRequired),
        (
            Some(other.sign(&["web-1.example.com"])),
            AlertDescription::UnknownCA,
        ),
    ] {
        let agent = CertifiedAgent::new(&gateway, identity);
        let error = agent
            .try_post("config", &json!({"node_key": ""}))
            .unwrap_err();
        let inner = error
            .get_ref()
            .and_then(|of| of.downcast_ref::<rustls::Error>());
        assert_eq!(inner, Some(&rustls::Error::AlertReceived(alert)), "{error}");
    }
    wait::until("the failures are counted", || {
        let counts = [
            TlsFailure::CertificateMissing,
            TlsFailure::CertificateUntrusted,
        ]
        .map(|kind| counted(&gateway, "tls_failures", kind as usize));
        (counts == [1, 1]).then_some(())
    });
}

/// A counter of all workers.
fn counted(gateway: &Gateway, name: &str, place: usize) -> u64 {
    let status = gateway.status().unwrap();
    let slots = status["gateway"]["slots"].as_array().unwrap().iter();
    slots
        .map(|slot| slot["stats"][name][place].as_u64().unwrap())
        .sum()
}

#[test]
fn plain_http_is_answered_with_an_error_object() {
    let gateway = Gateway::start();
    let mut socket = TcpStream::connect(gateway.address).unwrap();
    socket
        .write_all(b"POST /api/osquery/log HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        .unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut socket, &mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    let body: Value = serde_json::from_str(body).unwrap();
    assert!(body["error"].is_string());
    wait::until("it is counted", || {
        (counted(&gateway, "tls_failures", TlsFailure::PlainHttp as usize) == 1).then_some(())
    });
}
