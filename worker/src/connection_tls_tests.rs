//! Tests of what TLS clients are given.

use std::sync::Arc;

use fleet_protocol::config::{Config, PostQuantum};
use fleet_protocol::slot::StartTls;
use fleet_protocol::tickets::TicketKey;
use rustls::{ClientConfig, ClientConnection, HandshakeKind};

use super::bench::{client_config, start_tls};
use super::*;

fn browser(version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
    let mut config = client_config(version);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

/// One request to a worker that was started so; the connection afterwards.
fn visit(start: &StartTls, config: &Arc<ClientConfig>) -> ClientConnection {
    visit_with(start, &Config::default(), config)
}

fn visit_with(start: &StartTls, server: &Config, config: &Arc<ClientConfig>) -> ClientConnection {
    let terms = Terms::new(start, server).unwrap();
    let name = "localhost".try_into().unwrap();
    let client = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut bench = Bench::on(
        Some(terms),
        Some(client),
        &server.server,
        "192.0.2.1:5000",
        false,
    );
    bench.say(&post(READ, "", BODY));
    assert!(bench.heard().ends_with("{}"));
    bench.client.unwrap()
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
