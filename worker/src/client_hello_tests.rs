//! Tests of the first look, with ClientHellos of rustls' client and of our own making.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use super::*;

fn hello(version: &'static SupportedProtocolVersion, alpn: &[&str]) -> Vec<u8> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = "localhost".try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    wire
}

/// The same message in records of at most `size` bytes each.
fn cut(wire: &[u8], size: usize) -> Vec<u8> {
    let records = wire[RECORD_HEADER_BYTES..].chunks(size);
    records
        .flat_map(|part| {
            let [high, low] = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[RECORD_HANDSHAKE, 3, 1, high, low], part].concat()
        })
        .collect()
}

/// A hello with this body behind the message's header.
fn message(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let whole = [&[MESSAGE_CLIENT_HELLO], &length[1..], body].concat();
    cut(
        &[&[0; RECORD_HEADER_BYTES], &whole[..]].concat(),
        RECORD_BYTES_MAX,
    )
}

#[test]
fn alpn_is_found_however_the_message_is_cut() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (alpn, offers_alpn) in [(&[][..], false), (&["h2", "http/1.1"][..], true)] {
            let wire = hello(version, alpn);
            for size in [1, 2, 3, 7, 64, RECORD_BYTES_MAX] {
                let wire = cut(&wire, size);
                assert_eq!(look(&wire), Look::Whole { offers_alpn });
                for end in 0..wire.len() {
                    assert_eq!(look(&wire[..end]), Look::Partial, "{end} of {size}");
                }
                // Early data may follow.
                let more = [&wire[..], b"\x17\x03\x03"].concat();
                assert_eq!(look(&more), Look::Whole { offers_alpn });
            }
        }
    }
}

#[test]
fn a_hello_without_extensions_is_whole() {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    assert_eq!(look(&message(&body)), Look::Whole { offers_alpn: false });
}

#[test]
fn what_is_none_is_handed_on_at_once() {
    let wire = hello(&rustls::version::TLS13, &[]);
    for (at, byte) in [(0, 21), (0, b'g'), (1, 2), (5, 2)] {
        let mut other = wire.clone();
        other[at] = byte;
        assert_eq!(look(&other[..=at]), Look::Opaque, "{at}");
    }
    // An empty record, one that is too long, a message that is too long.
    for header in [
        &[22, 3, 1, 0, 0][..],
        &[22, 3, 1, 0x40, 1],
        &[22, 3, 1, 1, 0, 1, 0, 0x40, 1],
    ] {
        assert_eq!(look(header), Look::Opaque, "{header:?}");
    }
    // Another kind of record in the middle.
    let mut cut = cut(&wire, 100);
    cut[105] = 23;
    assert_eq!(look(&cut), Look::Opaque);
    // Lengths that lead out of the message.
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0xff, 0xff, 0xc0, 0x2b, 1, 0]);
    assert_eq!(look(&message(&body)), Look::Opaque);
}

#[test]
fn plain_http_is_known_by_its_first_letter() {
    for text in ["G", "POST /api/osquery/log HTTP/1.1\r\n"] {
        assert_eq!(look(text.as_bytes()), Look::PlainHttp);
    }
}

#[test]
fn waiting_has_an_end() {
    // A byte a record is the most that a message can be blown up.
    let body = vec![0; RECORD_BYTES_MAX];
    let wire = cut(&message(&body), 1);
    assert_eq!(look(&wire[..WAITING_BYTES_MAX - 1]), Look::Partial);
    assert_eq!(look(&wire[..WAITING_BYTES_MAX]), Look::Opaque);
}

proptest! {
    #[test]
    fn any_bytes_are_looked_at(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        look(&bytes);
        look(&[&[22, 3, 1][..], &bytes].concat());
        // A message of its length, with anything in it: never waits.
        prop_assert_ne!(look(&message(&bytes)), Look::Partial);
    }

    #[test]
    fn more_bytes_change_no_verdict(bytes in prop::collection::vec(any::<u8>(), 0..200), flip in 0..150usize) {
        let mut wire = hello(&rustls::version::TLS12, &["h2"]);
        if let (Some(at), Some(byte)) = (wire.get_mut(flip), bytes.first()) {
            *at = *byte;
        }
        wire.extend(&bytes);
        let mut earlier = Look::Partial;
        for end in 0..=wire.len() {
            let now = look(&wire[..end]);
            prop_assert!(earlier == Look::Partial || earlier == now, "{earlier:?} became {now:?} at {end}");
            earlier = now;
        }
    }
}
