//! Tests of what TLS clients are given.

use std::sync::Arc;

use fleet_protocol::config::{ClientAuth, Config, PostQuantum};
use fleet_protocol::slot::{ClientTrust, StartTls};
use fleet_protocol::stats::{TlsFailure, TlsSession, WorkerStats};
use fleet_protocol::tickets::TicketKey;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::{ClientConfig, ClientConnection, HandshakeKind};

use super::bench::{client_config, start_tls};
use super::*;

fn browser(version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
    let mut config = client_config(version);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

/// One request to a worker that was started so; the client afterwards.
fn visit(start: &StartTls, config: &Arc<ClientConfig>) -> ClientConnection {
    visit_with(start, &Config::default(), config)
}

fn visit_with(start: &StartTls, server: &Config, config: &Arc<ClientConfig>) -> ClientConnection {
    let mut bench = bench_with(start, server, config);
    bench.say(&post(READ, "", BODY));
    assert!(bench.heard().ends_with("{}"));
    bench.client.unwrap()
}

fn bench_with(start: &StartTls, server: &Config, config: &Arc<ClientConfig>) -> Bench {
    let terms = Terms::new(start, server).unwrap();
    let name = "localhost".try_into().unwrap();
    let client = ClientConnection::new(Arc::clone(config), name).unwrap();
    let peer = "192.0.2.1:5000";
    Bench::on(Some(terms), Some(client), &server.server, peer, false)
}

#[test]
fn browsers_resume_on_every_worker_and_agents_get_no_ticket() {
    for version in [TLS12, TLS13] {
        let start = start_tls();
        let config = browser(version);
        let first = visit(&start, &config);
        assert_eq!(first.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(first.handshake_kind(), Some(HandshakeKind::Full));
        let tickets = usize::from(version == TLS13);
        assert_eq!(first.tls13_tickets_received() as usize, tickets);
        // Another worker, and again: each visit has its ticket from the one before.
        for _ in 0..2 {
            let next = visit(&start, &config);
            assert_eq!(next.handshake_kind(), Some(HandshakeKind::Resumed));
            assert_eq!(next.tls13_tickets_received() as usize, tickets);
        }

        let agent = Arc::new(client_config(version));
        for _ in 0..2 {
            let visit = visit(&start, &agent);
            assert_eq!(visit.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(visit.tls13_tickets_received(), 0);
        }
    }
}

#[test]
fn tickets_of_other_keys_lead_to_full_handshakes() {
    for version in [TLS12, TLS13] {
        let config = browser(version);
        let mut start = start_tls();
        visit(&start, &config);
        // The server has turned once, then twice more.
        let fresh = |number| TicketKey::new([number; 16], [number; 32]);
        start.tickets.rotate(fresh(4));
        let next = visit(&start, &config);
        assert_eq!(next.handshake_kind(), Some(HandshakeKind::Resumed));
        start.tickets.rotate(fresh(5));
        start.tickets.rotate(fresh(6));
        let next = visit(&start, &config);
        assert_eq!(next.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn the_key_exchange_is_the_one_that_was_configured() {
    use rustls::NamedGroup::{X25519, X25519MLKEM768, secp256r1};
    use rustls::crypto::aws_lc_rs::kx_group;
    let group = |post_quantum, skipped: usize| {
        let mut server = Config::default();
        server.tls.post_quantum = post_quantum;
        let offered = [
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
        ];
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.kx_groups = offered[skipped..].to_vec();
        let client = Arc::new(bench::client_config_of(provider, TLS13));
        let visit = visit_with(&start_tls(), &server, &client);
        visit.negotiated_key_exchange_group().unwrap().name()
    };
    // The hybrid comes first, as with OpenSSL since 3.5.
    assert_eq!(group(PostQuantum::Off, 0), X25519);
    assert_eq!(group(PostQuantum::Prefer, 0), X25519MLKEM768);
    for post_quantum in [PostQuantum::Off, PostQuantum::Prefer] {
        assert_eq!(group(post_quantum, 1), X25519);
        assert_eq!(group(post_quantum, 2), secp256r1);
    }
}

/// An authority of clients.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    fn roots(&self) -> rustls::RootCertStore {
        use rustls_pki_types::pem::PemObject as _;
        let certificate = rustls_pki_types::CertificateDer::from_pem_slice(self.pem.as_bytes());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.unwrap()).unwrap();
        roots
    }

    /// A client's configuration with a certificate of this authority.
    fn client(
        &self,
        name: &str,
        serial: u64,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> Arc<ClientConfig> {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = client_config(version);
        let chain = vec![certificate.der().clone()];
        let signer = rustls::sign::SingleCertAndKey::from(
            rustls::sign::CertifiedKey::from_der(chain, key, config.crypto_provider()).unwrap(),
        );
        config.client_auth_cert_resolver = Arc::new(signer);
        Arc::new(config)
    }

    fn revoke(&self, serial: u64) -> String {
        let now = rcgen::date_time_ymd(2026, 1, 1);
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: rcgen::date_time_ymd(2050, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

#[test]
fn certificates_of_clients_are_required_or_accepted() {
    use rustls::AlertDescription::{CertificateRequired, CertificateRevoked, UnknownCA};
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let mut start = start_tls();
    start.client_trust = Some(ClientTrust {
        ca_pem: ours.pem.clone(),
        crl_pem: ours.revoke(7),
    });
    for version in [TLS12, TLS13] {
        let none = Arc::new(client_config(version));
        for (auth, client, expected) in [
            (
                ClientAuth::Require,
                ours.client("a", 1, version),
                Ok(Some("a")),
            ),
            (
                ClientAuth::Require,
                ours.client("a", 7, version),
                Err(CertificateRevoked),
            ),
            (
                ClientAuth::Require,
                others.client("a", 1, version),
                Err(UnknownCA),
            ),
            (
                ClientAuth::Require,
                Arc::clone(&none),
                Err(CertificateRequired),
            ),
            (
                ClientAuth::Accept,
                ours.client("a", 1, version),
                Ok(Some("a")),
            ),
            (
                ClientAuth::Accept,
                others.client("a", 1, version),
                Err(UnknownCA),
            ),
            (ClientAuth::Accept, none, Ok(None)),
        ] {
            let mut server = Config::default();
            server.server.client_auth = auth;
            let mut bench = bench_with(&start, &server, &client);
            bench.say(&post(READ, "", BODY));
            match expected {
                Ok(identity) => {
                    assert!(bench.heard().ends_with("{}"));
                    let certified = bench.connection.certified.as_deref();
                    assert_eq!(certified.map(|of| of.identity.as_str()), identity);
                }
                Err(alert) => {
                    assert_eq!(bench.requests, []);
                    let error = bench.client_error.unwrap();
                    assert_eq!(error, rustls::Error::AlertReceived(alert), "{version:?}");
                }
            }
        }
    }
}

#[test]
fn a_proxys_certificate_is_no_agents() {
    let ours = Authority::new("ours");
    let mut start = start_tls();
    start.client_trust = Some(ClientTrust {
        ca_pem: ours.pem.clone(),
        crl_pem: String::new(),
    });
    let forwarded = "X-Forwarded-For: 198.51.100.7\r\n";
    for (trusted_proxies, fields, is_agent) in [
        ("", forwarded, true),
        ("10.0.0.0/8", forwarded, true),
        ("192.0.2.0/24", "", false),
        ("1", forwarded, false),
    ] {
        let mut server = Config::default();
        server.server.trusted_proxies = trusted_proxies.into();
        let client = ours.client("balancer", 1, TLS13);
        let mut bench = bench_with(&start, &server, &client);
        bench.say(&post(READ, fields, BODY));
        assert!(bench.heard().ends_with("{}"));
        let is_certified = bench.connection.certified.is_some();
        assert_eq!(is_certified, is_agent, "{trusted_proxies}");
    }
}

fn counted(bench: &mut Bench) -> (Vec<TlsFailure>, Vec<TlsSession>) {
    let stats = std::cell::RefCell::default();
    bench.connection.count_tls(&stats);
    bench.connection.count_tls(&stats);
    let stats: WorkerStats = stats.into_inner();
    let failures = TlsFailure::ALL.into_iter().zip(stats.tls_failures);
    let sessions = TlsSession::ALL.into_iter().zip(stats.tls_sessions);
    (
        failures
            .filter(|(_, count)| *count > 0)
            .map(|(of, _)| of)
            .collect(),
        sessions
            .filter(|(_, count)| *count > 0)
            .map(|(of, _)| of)
            .collect(),
    )
}

#[test]
fn handshakes_are_counted_by_version_and_kind() {
    use TlsSession::{Full12, Full13, Resumed12, Resumed13, Retried13};
    let server = Config::default();
    for (version, first, second) in [(TLS12, Full12, Resumed12), (TLS13, Full13, Resumed13)] {
        let config = browser(version);
        for expected in [first, second] {
            let mut bench = bench_with(&start_tls(), &server, &config);
            bench.say(&post(READ, "", BODY));
            assert_eq!(counted(&mut bench), (vec![], vec![expected]));
        }
    }
    // A client whose first share is for a group that is not taken.
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![
        rustls::crypto::aws_lc_rs::kx_group::SECP384R1,
        rustls::crypto::aws_lc_rs::kx_group::SECP256R1,
    ];
    let config = Arc::new(bench::client_config_of(provider, TLS13));
    let mut bench = bench_with(&start_tls(), &server, &config);
    bench.say(&post(READ, "", BODY));
    assert_eq!(counted(&mut bench), (vec![], vec![Retried13]));
}

#[test]
fn failures_are_counted_by_what_failed() {
    let modern = Config {
        server: Server {
            tls_compatibility: fleet_protocol::config::TlsCompatibility::Modern,
            ..Server::default()
        },
        ..Config::default()
    };
    let with = |change: fn(&mut rustls::crypto::CryptoProvider)| {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        change(&mut provider);
        Arc::new(bench::client_config_of(provider, TLS13))
    };
    let only_h2 = {
        let mut config = client_config(TLS13);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    };
    let usual = Config::default();
    for (start, server, client, expected) in [
        (
            start_tls(),
            &modern,
            Arc::new(client_config(TLS12)),
            TlsFailure::NoCommonVersion,
        ),
        (
            start_tls(),
            &usual,
            with(|provider| {
                provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::SECP384R1];
            }),
            TlsFailure::NoCommonGroup,
        ),
        (start_tls(), &usual, only_h2, TlsFailure::NoCommonProtocol),
        (
            start_tls(),
            &usual,
            stranger(),
            TlsFailure::AuthorityUnknown,
        ),
    ] {
        fails(&start, server, &client, expected);
    }
}

fn fails(start: &StartTls, server: &Config, client: &Arc<ClientConfig>, expected: TlsFailure) {
    let mut bench = bench_with(start, server, client);
    bench.say(&post(READ, "", BODY));
    // What the client has to say about it.
    bench.say("");
    assert_eq!(
        counted(&mut bench),
        (vec![expected], vec![]),
        "{expected:?}"
    );
    assert_eq!(bench.requests, []);
}

#[test]
fn certificates_of_clients_that_fail_are_counted() {
    let ours = Authority::new("ours");
    let mut asking = start_tls();
    asking.client_trust = Some(ClientTrust {
        ca_pem: ours.pem.clone(),
        crl_pem: ours.revoke(7),
    });
    let server = Config::default();
    for (client, expected) in [
        (
            Arc::new(client_config(TLS13)),
            TlsFailure::CertificateMissing,
        ),
        (ours.client("a", 7, TLS13), TlsFailure::CertificateRevoked),
        (
            Authority::new("others").client("a", 1, TLS13),
            TlsFailure::CertificateUntrusted,
        ),
    ] {
        fails(&asking, &server, &client, expected);
    }
}

/// Trusts nobody.
fn stranger() -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[TLS13])
        .unwrap()
        .with_root_certificates(Authority::new("other").roots())
        .with_no_client_auth();
    Arc::new(config)
}

#[test]
fn what_is_not_tls_is_counted_and_plain_http_is_answered() {
    // A hello of TLS 1.1: one cipher suite, two extensions, no word of signatures.
    let mut old = b"\x16\x03\x01\x00\x3a\x01\x00\x00\x36\x03\x02".to_vec();
    old.extend([7; 32]);
    old.extend(b"\x00\x00\x02\xc0\x09\x01\x00");
    old.extend(b"\x00\x0b\x00\x0b\x00\x02\x01\x00\xff\x01\x00\x01\x00");
    for (bytes, expected) in [
        (&old[..], TlsFailure::NoCommonVersion),
        (b"GET / HTTP/1.1\r\nHost: f\r\n\r\n", TlsFailure::PlainHttp),
        (b"\x05\x01\x00", TlsFailure::NotTls),
        (
            b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
            TlsFailure::Malformed,
        ),
    ] {
        let mut bench = Bench::tls(TLS13);
        bench.client = None;
        bench.receive(bytes);
        bench.receive(b"\r\n\r\n\r\n");
        assert_eq!(
            counted(&mut bench),
            (vec![expected], vec![]),
            "{expected:?}"
        );
        assert_eq!(bench.connection.take_handshake(), None, "counted above");
        if expected == TlsFailure::PlainHttp {
            let heard = bench.heard();
            assert!(heard.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{heard}");
            let (_, body) = heard.split_once("\r\n\r\n").unwrap();
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert!(body["error"].is_string());
            assert!(!bench.is_closed, "the peer closes first");
        }
    }
}

#[test]
fn peers_that_vanish_are_no_failures() {
    for version in [TLS12, TLS13] {
        let mut bench = Bench::tls(version);
        bench.say(&post(READ, REUSE, BODY));
        counted(&mut bench);
        // Neither close_notify nor anything else.
        bench.connection.receive_end();
        bench.drive();
        assert!(bench.is_closed);
        assert_eq!(counted(&mut bench), (vec![], vec![]));
        // One with close_notify.
        let mut bench = Bench::tls(version);
        bench.say(&post(READ, REUSE, BODY));
        counted(&mut bench);
        bench.client.as_mut().unwrap().send_close_notify();
        bench.say("");
        assert_eq!(counted(&mut bench), (vec![], vec![]));
    }
}
