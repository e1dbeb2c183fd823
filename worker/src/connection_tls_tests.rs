//! Tests of what TLS clients are given.

use std::sync::Arc;

use fleet_protocol::config::TlsCompatibility;
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
    let terms = Terms::new(start, TlsCompatibility::Intermediate).unwrap();
    let name = "localhost".try_into().unwrap();
    let client = ClientConnection::new(Arc::clone(config), name).unwrap();
    let server = Server::default();
    let mut bench = Bench::on(Some(terms), Some(client), &server, "192.0.2.1:5000", false);
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
