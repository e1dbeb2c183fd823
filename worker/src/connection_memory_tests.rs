//! What an answered request costs the allocator: a server that allocates for each of a million requests an hour
//! fragments, and pays for it under load.

use std::io::{Read as _, Write as _};

use allocation_counter::{AllocationInfo, measure};
use fleet_protocol::config::Server;
use fleet_protocol::feed::{Change, Feed, Load};
use fleet_protocol::ids::{AnswerId, FeedSeq};

use super::super::*;
use super::bench::{TLS12, TLS13, client, identity, post};
use crate::exchange::{self, Early, Reply};
use crate::hosts::test_host;
use crate::state::{State, test_state};

/// Requests before the count begins, so that shared buffers have their size.
const WARM_UP: usize = 4;
const REQUESTS: usize = 64;

/// The server's half of a kept connection, over the tables that requests are really answered from.
struct Kept {
    state: Rc<State>,
    connection: Connection,
    scratch: Scratch,
    now: Instant,
    answered: usize,
}

impl Kept {
    fn new(with_tls: bool) -> Self {
        let state = test_state("/nowhere".into());
        let config = Bytes::from(vec![b' '; 40_000]);
        let id = AnswerId(1);
        let feed = Feed {
            load: Load::Whole,
            seq: FeedSeq(1),
            changes: vec![
                Change::Answer { id, config },
                Change::Host(test_host(1, "key-1")),
            ],
        };
        state.table.borrow_mut().apply(feed, |_| {}).unwrap();
        let policy =
            Rc::new(Policy::of(&Server::default(), &crate::admission::test_gate()).unwrap());
        let now = Instant::now();
        let peer = "192.0.2.1:5000".parse().unwrap();
        let tls = with_tls.then(|| Rc::new(identity().terms.clone()));
        Self {
            state,
            connection: Connection::new(tls.as_ref(), policy, peer, None, now),
            scratch: Scratch::default(),
            now,
            answered: 0,
        }
    }

    /// A session's turn; what would be written is appended to `wire`, which has room for it.
    fn turn(&mut self, bytes: &mut [u8], wire: &mut Vec<u8>) {
        let (connection, scratch, now) = (&mut self.connection, &mut self.scratch, self.now);
        connection.receive(bytes, scratch, now);
        loop {
            wire.extend_from_slice(&scratch.out);
            scratch.out.clear();
            connection.flushed(now);
            connection.produce(scratch, now);
            if !scratch.out.is_empty() {
                continue;
            }
            match connection.step(scratch, now) {
                Step::Head(head) => match exchange::begin(&self.state, &head, now) {
                    Early::ReadBody { bytes_max } => connection.admit(bytes_max, scratch),
                    Early::Refuse(reject) => panic!("refused: {}", reject.label()),
                },
                Step::Request(head, body) => {
                    match exchange::answer(&self.state, &head, body, now) {
                        Reply::Now(response) => connection.respond(response, scratch, now),
                        Reply::Idle(_) => connection.respond(exchange::nothing_due(), scratch, now),
                        Reply::Later(_) => panic!("not answered alone"),
                    }
                    self.answered += 1;
                }
                Step::Wait => break,
                _ => panic!("neither a request nor the wait for one"),
            }
        }
        connection.settle(scratch);
        scratch.trim();
    }
}

fn request(route: &str) -> String {
    let fields = "Connection: keep-alive\r\nAuthorization: NodeKey key-1\r\n";
    let body = r#"{"node_key":"key-1"}"#;
    post(&format!("/api/v1/osquery/{route}"), fields, body)
}

fn counted(requests: usize, mut each: impl FnMut()) -> AllocationInfo {
    for _ in 0..WARM_UP {
        each();
    }
    measure(|| {
        for _ in 0..requests {
            each();
        }
    })
}

#[test]
fn a_request_answered_alone_allocates_nothing() {
    for route in ["distributed/read", "config"] {
        let mut kept = Kept::new(false);
        let request = request(route).into_bytes();
        let (mut bytes, mut wire) = (Vec::with_capacity(4096), Vec::with_capacity(64 << 10));
        let info = counted(REQUESTS, || {
            bytes.clear();
            wire.clear();
            bytes.extend_from_slice(&request);
            kept.turn(&mut bytes, &mut wire);
        });
        assert_eq!(kept.answered, WARM_UP + REQUESTS);
        assert_eq!(info.count_total, 0, "{route}: {info:?}");
    }
}

/// rustls gives the content of each record that it reads, and the ciphertext of each that it writes, an allocation of its
/// own. Nothing of ours comes on top.
#[test]
fn tls_allocates_once_for_each_record() {
    for version in [TLS13, TLS12] {
        let mut kept = Kept::new(true);
        let mut client = client(version, "localhost");
        let request = request("distributed/read");
        let (mut bytes, mut wire) = (Vec::with_capacity(4096), Vec::with_capacity(64 << 10));
        let mut total = 0;
        while client.is_handshaking() || kept.answered < WARM_UP + REQUESTS {
            if !client.is_handshaking() {
                client.writer().write_all(request.as_bytes()).unwrap();
            }
            bytes.clear();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            wire.clear();
            let info = measure(|| kept.turn(&mut bytes, &mut wire));
            if kept.answered > WARM_UP {
                total += info.count_total;
            }
            let mut rest = &wire[..];
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets().unwrap();
            }
            let mut heard = [0; 4096];
            if !client.is_handshaking() && kept.answered > 0 {
                assert!(client.reader().read(&mut heard).unwrap() > 0);
            }
        }
        assert_eq!(total, 2 * REQUESTS as u64, "{version:?}");
    }
}
