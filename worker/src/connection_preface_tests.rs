//! Tests of connections behind balancers.

use fleet_protocol::proxy_header::{self, SIGNATURE};
use fleet_protocol::stats::ProxyHeader;

use super::*;

const CLIENT: &str = "203.0.113.9:40000";
const BALANCER: &str = "10.0.0.1:5000";

fn server() -> Server {
    Server {
        proxy_protocol_networks: vec!["10.0.0.0/8".into()],
        ..Server::default()
    }
}

fn proxied(client: Option<rustls::ClientConnection>) -> Bench {
    Bench::with(client, &server(), BALANCER, true)
}

fn header() -> Vec<u8> {
    let destination = "10.0.0.2:8080".parse().unwrap();
    proxy_header::encode(CLIENT.parse().unwrap(), destination)
}

fn local_header() -> Vec<u8> {
    [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat()
}

/// The client's first flight.
fn hello(bench: &mut Bench) -> Vec<u8> {
    let mut hello = Vec::new();
    let client = bench.client.as_mut().unwrap();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[test]
fn a_header_in_front_names_the_client_however_it_is_cut() {
    for version in [TLS12, TLS13] {
        for step in [1, 27, 28, 29, usize::MAX] {
            let mut bench = proxied(Some(client(version, "localhost")));
            let wire = [header(), hello(&mut bench)].concat();
            for piece in wire.chunks(step) {
                bench.receive(piece);
            }
            assert_eq!(
                bench.connection.take_proxy_header(),
                Some(ProxyHeader::Taken)
            );
            bench.say(&post(READ, "", BODY));
            assert!(bench.heard().ends_with("\r\n\r\n{}"));
            assert_eq!(bench.connection.peer(), CLIENT.parse().unwrap());
            assert_eq!(bench.connection.client().to_string(), "203.0.113.9");
            assert!(!bench.connection.is_forwarded());
            assert_eq!(bench.connection.take_handshake(), Some(Handshake::Done));
        }
    }
}

#[test]
fn a_connection_without_its_header_costs_nothing() {
    let mut bench = proxied(Some(client(TLS13, "localhost")));
    assert!(
        matches!(bench.connection.layer, Layer::Plain),
        "no keys yet"
    );
    let hello = hello(&mut bench);
    bench.receive(&hello);
    assert!(bench.is_closed && bench.writes.is_empty());
    assert_eq!(
        bench.connection.take_proxy_header(),
        Some(ProxyHeader::Missing)
    );
    assert_eq!(bench.connection.take_handshake(), None);

    let mut bench = proxied(None);
    bench.say(&post(READ, "", BODY));
    assert!(bench.is_closed && bench.requests.is_empty());
}

#[test]
fn strangers_are_refused_before_they_speak() {
    let mut bench = Bench::with(None, &server(), "192.0.2.1:5000", true);
    bench.drive();
    assert!(bench.is_closed);
    let outcome = bench.connection.take_proxy_header();
    assert_eq!(outcome, Some(ProxyHeader::Untrusted));
    bench.receive(&header());
    assert_eq!(bench.connection.take_proxy_header(), None);
}

#[test]
fn broken_headers_end_the_connection() {
    for (at, byte) in [(12, 0x2f), (13, 0x44), (14, 0xff), (15, 13)] {
        let mut bench = proxied(None);
        let mut header = header();
        header[at] = byte;
        header.extend_from_slice(post(READ, "", BODY).as_bytes());
        bench.receive(&header);
        assert!(bench.is_closed && bench.requests.is_empty(), "{at}");
        assert_eq!(
            bench.connection.take_proxy_header(),
            Some(ProxyHeader::Malformed)
        );
    }
}

#[test]
fn a_header_has_three_seconds_however_busy_its_sender_is() {
    let mut bench = proxied(Some(client(TLS13, "localhost")));
    for byte in &header()[..27] {
        bench.receive(&[*byte]);
        bench.pass(limits::PROXY_HEADER_DEADLINE / 28);
    }
    assert!(!bench.is_closed);
    bench.pass(limits::PROXY_HEADER_DEADLINE / 14);
    assert!(bench.is_closed);
    assert_eq!(
        bench.connection.take_proxy_header(),
        Some(ProxyHeader::Late)
    );

    // One that comes just in time does not lengthen the handshake.
    let mut bench = proxied(Some(client(TLS13, "localhost")));
    let nearly = limits::PROXY_HEADER_DEADLINE - Duration::from_millis(1);
    bench.pass(nearly);
    bench.receive(&header());
    bench.pass(limits::HANDSHAKE_DEADLINE - nearly - Duration::from_millis(1));
    assert!(!bench.is_closed);
    bench.pass(Duration::from_millis(1));
    assert!(bench.is_closed);
    assert_eq!(bench.connection.take_handshake(), Some(Handshake::Late));
}

#[test]
fn health_checks_speak_for_themselves() {
    let mut bench = proxied(Some(client(TLS13, "localhost")));
    let wire = [local_header(), hello(&mut bench)].concat();
    bench.receive(&wire);
    assert_eq!(
        bench.connection.take_proxy_header(),
        Some(ProxyHeader::Local)
    );
    bench.say(&post(READ, "", BODY));
    assert_eq!(bench.requests.len(), 1);
    assert_eq!(bench.connection.peer(), BALANCER.parse().unwrap());

    // One that only connects, and one that says so and leaves.
    for (wire, outcome) in [
        (Vec::new(), ProxyHeader::Abandoned),
        (local_header(), ProxyHeader::Local),
    ] {
        let mut bench = proxied(Some(client(TLS13, "localhost")));
        bench.receive(&wire);
        bench.connection.receive_end();
        bench.drive();
        assert!(bench.is_closed);
        assert_eq!(bench.connection.take_proxy_header(), Some(outcome));
    }
}

#[test]
fn a_header_that_is_not_due_is_refused() {
    let tls = || Some(client(TLS13, "localhost"));
    let benches = [
        Bench::with(tls(), &server(), BALANCER, false),
        Bench::with(None, &server(), BALANCER, false),
        proxied(tls()),
        proxied(None),
    ];
    for (index, mut bench) in benches.into_iter().enumerate() {
        // The last two have taken one already.
        if index >= 2 {
            bench.receive(&header());
            bench.connection.take_proxy_header();
        }
        let request = post(READ, "", BODY);
        bench.receive(&[&header()[..], request.as_bytes()].concat());
        assert!(bench.is_closed && bench.requests.is_empty(), "{index}");
        assert_eq!(
            bench.connection.take_proxy_header(),
            Some(ProxyHeader::Unexpected)
        );
    }
}

#[test]
fn trusted_proxies_tell_who_sent_each_request() {
    let server = Server {
        trusted_proxies: "10.0.0.0/8".into(),
        ..Server::default()
    };
    let mut bench = Bench::with(None, &server, BALANCER, false);
    for (fields, expected) in [
        ("X-Forwarded-For: 198.51.100.1, 192.0.2.7\r\n", "192.0.2.7"),
        ("x-real-ip: 2001:db8::7\r\n", "2001:db8::7"),
        ("", "10.0.0.1"),
    ] {
        // HTTP/1.1 reuses a connection unless somebody declines.
        bench.say(&post(READ, fields, BODY));
        assert!(bench.heard().contains("\r\nConnection: keep-alive\r\n"));
        assert_eq!(bench.connection.client().to_string(), expected);
        assert_eq!(bench.connection.is_forwarded(), !fields.is_empty());
    }
    bench.say(&post(READ, "Connection: close\r\n", BODY));
    assert!(bench.heard().contains("\r\nConnection: close\r\n"));
    assert_eq!(bench.requests.len(), 4);

    let mut bench = Bench::with(None, &server, "192.0.2.66:5000", false);
    bench.say(&post(READ, "True-Client-IP: 192.0.2.7\r\n", BODY));
    assert_eq!(bench.connection.client().to_string(), "192.0.2.66");
}

#[test]
fn only_proxies_are_reused_without_being_asked() {
    let server = Server {
        trusted_proxies: "10.0.0.0/8".into(),
        ..Server::default()
    };
    for (peer, connection) in [(BALANCER, "keep-alive"), ("192.0.2.66:5000", "close")] {
        let tls = client(TLS13, "localhost");
        let mut bench = Bench::with(Some(tls), &server, peer, false);
        bench.say(&post(READ, "", BODY));
        let heard = bench.heard();
        assert!(
            heard.contains(&format!("Connection: {connection}\r\n")),
            "{heard}"
        );
    }
}

#[test]
fn a_reused_connection_waits_as_long_as_is_configured() {
    let server = Server {
        keepalive_idle: Duration::from_secs(620),
        ..Server::default()
    };
    let mut bench = Bench::with(None, &server, BALANCER, false);
    bench.say(&post(READ, "", BODY));
    bench.pass(Duration::from_secs(619));
    bench.say(&post(READ, "", BODY));
    assert_eq!(bench.requests.len(), 2);
    bench.pass(Duration::from_secs(620));
    bench.pass(limits::CLOSE_DEADLINE);
    assert!(bench.is_closed);
}

proptest! {
    /// Whatever comes first on such a connection, it is refused or it waits, and holds no more than a header.
    #[test]
    fn noise_in_front_is_bounded(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6),
        is_signed: bool,
    ) {
        let mut bench = proxied(None);
        if is_signed {
            bench.receive(&SIGNATURE);
        }
        for piece in pieces {
            bench.receive(&piece);
            if matches!(bench.connection.phase, Phase::Preface { .. }) {
                prop_assert!(bench.connection.plain.len() < proxy_header::HEADER_BYTES_MAX);
            }
        }
    }
}
