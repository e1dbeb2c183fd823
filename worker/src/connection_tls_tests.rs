//! Tests of what TLS clients are given.

use std::sync::Arc;

use fleet_protocol::config::{Config, PostQuantum};
use fleet_protocol::slot::StartTls;
use fleet_protocol::stats::{TlsFailure, TlsSession, WorkerStats};
use fleet_protocol::tickets::TicketKey;
use rustls::{ClientConfig, ClientConnection, HandshakeKind};

use self::clients::Authority;
use super::bench::{client_config, start_tls};
use super::*;

#[path = "connection_client_tests.rs"]
mod clients;

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
