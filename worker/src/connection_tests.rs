//! Tests of the connection against rustls' own client, over byte arrays.

use std::io::Write as _;

use fleet_protocol::agent::Route;
use fleet_protocol::config::Server;
use proptest::prelude::*;

use super::*;

#[path = "connection_bench.rs"]
mod bench;
#[path = "connection_memory_tests.rs"]
mod memory;
#[path = "connection_preface_tests.rs"]
mod preface;
#[path = "connection_tls_tests.rs"]
mod tls_tests;

use bench::{BODY, Bench, TLS12, TLS13, client, ok, post};

const READ: &str = "/api/v1/osquery/distributed/read";
const REUSE: &str = "Connection: keep-alive\r\n";

#[test]
fn an_agent_is_served_in_both_versions_whole_and_byte_by_byte() {
    for version in [TLS12, TLS13] {
        for step in [1, 7, usize::MAX] {
            let mut bench = Bench::tls(version);
            let request = post(READ, "Authorization: NodeKey k-9\r\n", BODY);
            bench.talk(request.as_bytes(), step);
            assert_eq!(
                bench.requests,
                [(Route::Read, Some("k-9".to_owned()), BODY.to_owned())]
            );
            let heard = bench.heard();
            assert!(heard.starts_with("HTTP/1.1 200 OK\r\n"), "{heard}");
            assert!(heard.ends_with("Connection: close\r\n\r\n{}"), "{heard}");
            assert!(bench.has_heard_end, "close_notify");
            assert_eq!(bench.connection.take_handshake(), Some(Handshake::Done));
            assert!(!bench.is_closed, "the peer closes first");
            bench.connection.receive_end();
            bench.drive();
            assert!(bench.is_closed);
        }
    }
}

#[test]
fn tls_parameters_are_ours() {
    let mut bench = Bench::tls(TLS13);
    bench.say("");
    let client = bench.client.as_ref().unwrap();
    assert_eq!(
        client.negotiated_cipher_suite().unwrap().suite(),
        rustls::CipherSuite::TLS13_AES_128_GCM_SHA256
    );
    assert_eq!(
        client.negotiated_key_exchange_group().unwrap().name(),
        rustls::NamedGroup::X25519
    );
    assert_eq!(client.alpn_protocol(), None);
    assert_eq!(client.tls13_tickets_received(), 0);
}

#[test]
fn answer_and_goodbye_are_one_write() {
    let mut bench = Bench::tls(TLS13);
    bench.say("");
    bench.writes.clear();
    bench.say(&post(READ, "", BODY));
    assert_eq!(bench.writes.len(), 1, "{:?}", bench.writes);
    assert!(bench.has_heard_end);
}

#[test]
fn an_ip_literal_as_server_name_is_served() {
    // rustls' client never sends one, so the extension is put in by hand: a hello for a name of the same length.
    let mut client = client(TLS13, "aaa.aaa.aaa");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let at = memchr::memmem::find(&hello, b"aaa.aaa.aaa").unwrap();
    hello[at..at + 11].copy_from_slice(b"192.0.2.123");
    let mut bench = Bench::tls(TLS13);
    bench
        .connection
        .receive(&mut hello, &mut bench.scratch, bench.now);
    assert!(bench.scratch.out.len() > 200, "a server's whole flight");
    assert_eq!(bench.connection.take_handshake(), None);
}

#[test]
fn a_second_request_waits_for_its_turn() {
    for version in [TLS12, TLS13] {
        let mut bench = Bench::tls(version);
        bench.answer = None;
        let first = post("/api/osquery/log", REUSE, "{\"n\":1}");
        let second = post("/api/osquery/config", "", "{\"n\":2}");
        bench.say(&(first + &second));
        assert_eq!(bench.requests.len(), 1);
        assert_eq!(bench.heard(), "");
        bench
            .connection
            .respond(ok("{\"a\":1}"), &mut bench.scratch, bench.now);
        bench.drive();
        let heard = bench.heard();
        assert!(heard.contains("Connection: keep-alive\r\n"), "{heard}");
        assert!(heard.ends_with("{\"a\":1}"), "{heard}");
        assert!(!bench.has_heard_end);
        assert_eq!(bench.requests.len(), 2);
        assert_eq!(bench.requests[1].0, Route::Config);
        assert_eq!(bench.requests[1].2, "{\"n\":2}");
        bench
            .connection
            .respond(ok("{}"), &mut bench.scratch, bench.now);
        bench.drive();
        assert!(bench.heard().contains("Connection: close\r\n"));
        assert!(bench.has_heard_end);
    }
}

#[test]
fn reuse_goes_on_until_the_drain() {
    let mut bench = Bench::tls(TLS13);
    for _ in 0..3 {
        bench.say(&post(READ, REUSE, BODY));
        assert!(bench.heard().contains("Connection: keep-alive\r\n"));
        bench.pass(Server::default().keepalive_idle - Duration::from_secs(1));
    }
    assert_eq!(bench.connection.plain.capacity(), 0, "idle holds no buffer");
    bench.connection.policy.may_reuse.set(false);
    bench.drive();
    assert!(bench.has_heard_end);
}

#[test]
fn every_phase_has_its_deadline() {
    let second = Duration::from_secs(1);
    // Handshake.
    let mut bench = Bench::tls(TLS13);
    bench.pass(limits::HANDSHAKE_DEADLINE - second);
    assert!(!bench.is_closed);
    bench.pass(second);
    assert!(bench.is_closed);
    assert_eq!(bench.connection.take_handshake(), Some(Handshake::Late));
    // Head, dripping.
    let mut bench = Bench::tls(TLS13);
    bench.say("POST ");
    bench.pass(limits::HEAD_DEADLINE - second);
    bench.say("/api");
    assert!(!bench.is_closed);
    bench.pass(second);
    assert!(bench.is_closed);
    // Body, dripping: the whole exchange counts.
    let mut bench = Bench::tls(TLS13);
    let request = post(READ, "", BODY);
    bench.say(&request[..request.len() - 9]);
    for _ in 0..15 {
        bench.pass(second);
        bench.say(" ");
    }
    assert!(bench.requests.is_empty() || bench.is_closed);
    bench.pass(second);
    assert!(bench.is_closed);
    // Idle.
    let mut bench = Bench::tls(TLS13);
    bench.say(&post(READ, REUSE, BODY));
    bench.pass(Server::default().keepalive_idle);
    assert!(bench.has_heard_end);
    // Close.
    assert!(!bench.is_closed);
    bench.pass(limits::CLOSE_DEADLINE);
    assert!(bench.is_closed);
}

#[test]
fn a_late_answer_is_refused_in_time_or_cut() {
    let mut bench = Bench::tls(TLS13);
    bench.answer = None;
    bench.say(&post(READ, "", BODY));
    bench.pass(limits::ANSWER_DEADLINE - Duration::from_millis(1));
    assert_eq!(bench.heard(), "");
    bench.pass(Duration::from_millis(1));
    assert!(bench.heard().contains("took too long"));
    assert!(bench.has_heard_end);
    // Carving agents take any JSON for success.
    let mut bench = Bench::tls(TLS13);
    bench.answer = None;
    bench.say(&post("/api/osquery/carve/block", "", "{}"));
    bench.pass(limits::ANSWER_DEADLINE);
    assert_eq!(bench.heard(), "");
    assert!(bench.is_closed && !bench.has_heard_end);
}

#[test]
fn refused_bodies_are_read_to_their_end_first() {
    let mut bench = Bench::tls(TLS13);
    bench.bytes_max = 100_000;
    let body = "x".repeat(300_000);
    let request = post("/api/osquery/enroll", "", &body);
    let (start, end) = request.split_at(request.len() - 1);
    bench.say(start);
    assert_eq!(bench.heard(), "");
    assert!(bench.connection.plain.capacity() < 1000, "nothing is kept");
    bench.say(end);
    assert!(bench.heard().starts_with("HTTP/1.1 413 "));
    assert!(bench.requests.is_empty());
    // On routes where that is a loss, the agent must not send it again.
    let mut bench = Bench::tls(TLS13);
    bench.bytes_max = 10;
    bench.say(&post("/api/osquery/log", REUSE, "0123456789a"));
    let heard = bench.heard();
    assert!(heard.starts_with("HTTP/1.1 200 ") && heard.ends_with("{}"));
    assert!(heard.contains("keep-alive"));
    bench.say(&post("/api/osquery/log", REUSE, "0123456789"));
    assert_eq!(bench.requests.len(), 1, "the next one is whole");
    // Beyond all measure: cut.
    let mut bench = Bench::tls(TLS13);
    bench.say("POST /api/osquery/log HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n");
    assert!(bench.is_closed);
    assert_eq!(bench.heard(), "");
}

#[test]
fn chunked_bodies_are_taken_and_bounded() {
    let head = "POST /api/osquery/log HTTP/1.1\r\nTransfer-Encoding: chunked\r\n";
    for step in [1, 5, usize::MAX] {
        let mut bench = Bench::new(None);
        let text = format!("{head}{REUSE}\r\n4\r\n{{\"a\"\r\n3\r\n:1}}\r\n0\r\n\r\n");
        bench.talk(text.repeat(2).as_bytes(), step);
        assert_eq!(bench.requests.len(), 2, "step {step}");
        assert_eq!(bench.requests[1].2, "{\"a\":1}");
    }
    let mut bench = Bench::new(None);
    bench.bytes_max = 6;
    bench.say(&format!("{head}\r\n7\r\n1234567\r\n7\r\n12"));
    assert_eq!(bench.heard(), "");
    bench.say("34567\r\n0\r\n\r\n");
    assert!(bench.heard().ends_with("\r\n\r\n{}"), "a loss, as success");
    let mut bench = Bench::new(None);
    bench.say(&format!("{head}\r\nzz\r\n"));
    assert!(bench.heard().contains("Connection: close\r\n\r\n{}"));
}

#[test]
fn continue_is_only_said_when_asked_for() {
    let body = "x".repeat(20);
    let mut bench = Bench::tls(TLS13);
    let request = post("/api/osquery/log", "Expect: 100-continue\r\n", &body);
    let (head, body) = request.split_at(request.len() - body.len());
    bench.say(head);
    assert_eq!(bench.heard(), "HTTP/1.1 100 Continue\r\n\r\n");
    bench.say(body);
    assert!(bench.heard().starts_with("HTTP/1.1 200 "));
    let mut bench = Bench::tls(TLS13);
    bench.bytes_max = 19;
    bench.say(head);
    assert!(bench.heard().starts_with("HTTP/1.1 200 "), "a final answer");
    assert!(bench.has_heard_end);
}

#[test]
fn what_is_no_agents_request_is_a_tunnel_or_an_error() {
    let text = "GET /api/latest/fleet/hosts HTTP/1.1\r\nUpgrade: websocket\r\n\r\nmore";
    let mut bench = Bench::tls(TLS13);
    bench.connection.policy.may_reuse.set(true);
    let mut client = bench.client.take().unwrap();
    client.writer().write_all(text.as_bytes()).unwrap();
    bench.client = Some(client);
    bench.talk(b"", usize::MAX);
    assert!(bench.is_tunnel);
    assert_eq!(bench.connection.take_plain(), text.as_bytes());
    assert_eq!(bench.connection.deadline(), None);
    let out = &mut Vec::new();
    bench
        .connection
        .send(b"HTTP/1.1 101 X\r\n\r\n", out)
        .unwrap();
    bench.connection.end(out, bench.now);
    bench.scratch.out.append(out);
    bench.emit();
    assert_eq!(bench.heard(), "HTTP/1.1 101 X\r\n\r\n");
    assert!(bench.has_heard_end);

    for (text, status) in [
        ("GET /api/osquery/config HTTP/1.1\r\n\r\n".to_owned(), 405),
        (
            post("/api/osquery/config", "Content-Length: 1\r\n", "xx"),
            400,
        ),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 400),
    ] {
        let mut bench = Bench::tls(TLS13);
        bench.say(&text);
        let heard = bench.heard();
        assert!(heard.starts_with(&format!("HTTP/1.1 {status} ")), "{heard}");
        assert!(heard.contains("\r\n\r\n{\"error\":"), "{heard}");
        assert!(bench.has_heard_end);
    }
}

#[test]
fn long_answers_are_made_as_the_socket_takes_them() {
    for version in [TLS12, TLS13] {
        let body = format!("{{\"x\":\"{}\"}}", "y".repeat(1 << 20));
        let mut bench = Bench::tls(version);
        bench.answer = Some(ok(&body));
        bench.say(&post("/api/osquery/config", "", BODY));
        assert!(bench.heard().ends_with(&body));
        assert!(bench.has_heard_end);
        let longest = *bench.writes.iter().max().unwrap();
        assert!(longest < 80 << 10, "{longest}");
    }
}

#[test]
fn broken_tls_ends_with_an_alert_and_is_counted() {
    let mut bench = Bench::tls(TLS13);
    bench.connection.receive(
        &mut b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        &mut bench.scratch,
        bench.now,
    );
    assert_eq!(bench.connection.take_handshake(), Some(Handshake::Failed));
    let mut bench = Bench::tls(TLS13);
    bench.connection.receive_end();
    assert_eq!(
        bench.connection.take_handshake(),
        Some(Handshake::Abandoned)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_split_gives_the_same_exchange(steps in prop::collection::vec(1_usize..400, 1..40), tls12 in any::<bool>()) {
        let mut bench = Bench::tls(if tls12 { TLS12 } else { TLS13 });
        let request = post("/api/osquery/log", REUSE, &"z".repeat(900)).repeat(2);
        let mut rest = request.as_bytes();
        for step in steps.iter().cycle() {
            let (piece, later) = rest.split_at((*step).min(rest.len()));
            bench.talk(piece, *step);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(bench.requests.len(), 2);
        prop_assert_eq!(bench.heard().matches("HTTP/1.1 200 OK").count(), 2);
    }

    #[test]
    fn garbage_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        flip in 0_usize..4000,
        is_tls in any::<bool>(),
    ) {
        let mut bench = Bench::new(is_tls.then(|| client(TLS13, "localhost")));
        bench.client = None;
        bench.receive(&bytes);
        bench.receive(&bytes);
        // A real hello with one bit wrong, then garbage.
        let mut hello = Vec::new();
        client(TLS13, "localhost").write_tls(&mut hello).unwrap();
        let at = flip % hello.len();
        hello[at] ^= 1 << (flip % 8);
        let mut bench = Bench::tls(TLS13);
        bench.client = None;
        bench.receive(&hello);
        bench.receive(&bytes);
        bench.pass(Duration::from_secs(100));
    }
}

#[test]
fn tls_has_no_state_before_the_hello_is_whole() {
    let mut bench = Bench::tls(TLS13);
    let mut hello = Vec::new();
    let client = bench.client.as_mut().unwrap();
    client.write_tls(&mut hello).unwrap();
    let (last, most) = hello.split_last().unwrap();
    bench.receive(&most[..9]);
    bench.receive(&most[9..]);
    assert!(matches!(bench.connection.layer, Layer::Plain));
    assert_eq!(bench.connection.plain, most);
    assert!(bench.connection.is_handshaking());
    bench.receive(&[*last]);
    assert!(matches!(bench.connection.layer, Layer::Tls { .. }));
    assert_eq!(bench.connection.plain.capacity(), 0);
    bench.say(&post(READ, "", BODY));
    assert!(bench.heard().ends_with("{}"));

    // One that never becomes whole ends as any handshake does.
    for (goes, expected) in [(true, Handshake::Abandoned), (false, Handshake::Late)] {
        let mut bench = Bench::tls(TLS13);
        bench.receive(&most[..40]);
        if goes {
            bench.connection.receive_end();
        }
        bench.pass(limits::HANDSHAKE_DEADLINE);
        assert!(bench.is_closed && bench.writes.is_empty());
        assert_eq!(bench.connection.take_handshake(), Some(expected));
    }
}

#[test]
fn an_endless_hello_is_for_tls_to_refuse() {
    let mut bench = Bench::tls(TLS13);
    bench.client = None;
    // Records of one byte each; the message claims 16,384 bytes.
    let message = [&[1, 0, 0x40, 0][..], &[0; 4000]].concat();
    for byte in message {
        bench.receive(&[22, 3, 1, 0, 1, byte]);
        if !matches!(bench.connection.layer, Layer::Plain) {
            break;
        }
        assert!(bench.connection.plain.len() < crate::client_hello::WAITING_BYTES_MAX);
    }
    assert!(matches!(bench.connection.layer, Layer::Tls { .. }));
    assert_eq!(bench.connection.plain.capacity(), 0);
}

/// What each open connection costs besides TLS' own state. Printed, so that growth is seen where it is made.
#[test]
fn a_connection_stays_small() {
    use std::mem::size_of;
    let (layer, phase) = (size_of::<Layer>(), size_of::<Phase>());
    let (connection, session) = (
        size_of::<Connection>(),
        size_of::<crate::session::Session>(),
    );
    println!("layer {layer}, phase {phase}, connection {connection}, session {session} bytes");
    assert!(layer <= 32 && connection <= 344 && session <= 504);
}
