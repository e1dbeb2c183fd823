//! Tests of PROXY headers: those of real senders, those that nobody may send, and noise.

use proptest::prelude::*;

use super::*;

fn v4() -> Vec<u8> {
    encode(
        "192.0.2.7:51000".parse().unwrap(),
        "198.51.100.1:8080".parse().unwrap(),
    )
}

/// The same header with these TLVs behind its addresses.
fn with_tlvs(mut header: Vec<u8>, tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    for (kind, value) in tlvs {
        header.push(*kind);
        header.extend_from_slice(&u16::try_from(value.len()).unwrap().to_be_bytes());
        header.extend_from_slice(value);
    }
    let length = u16::try_from(header.len() - PREFIX_BYTES).unwrap();
    header[14..16].copy_from_slice(&length.to_be_bytes());
    header
}

/// A header that ends with a right checksum.
fn with_checksum(header: Vec<u8>) -> Vec<u8> {
    let mut header = with_tlvs(header, &[(TLV_CRC32C, &[0; 4])]);
    let at = header.len() - 4;
    let sum = checksum(&header, at);
    header[at..].copy_from_slice(&sum.to_be_bytes());
    header
}

fn origin(header: &[u8]) -> Origin {
    let decoded = decode(header).unwrap().unwrap();
    assert_eq!(decoded.length, header.len());
    decoded.origin
}

#[test]
fn round_trips_and_waits_for_the_whole() {
    for (from, to) in [
        ("192.0.2.7:51000", "198.51.100.1:8080"),
        ("[2001:db8::7]:51000", "[2001:db8::1]:8080"),
        ("192.0.2.7:51000", "[2001:db8::1]:8080"),
    ] {
        let (source, destination) = (from.parse().unwrap(), to.parse().unwrap());
        let mut header = encode(source, destination);
        let client = Origin::Client {
            source,
            destination,
        };
        assert_eq!(origin(&header), client);
        for cut in 0..header.len() {
            assert_eq!(decode(&header[..cut]), Ok(None), "cut at {cut}");
        }
        let length = header.len();
        header.extend_from_slice(b"\x16\x03\x01");
        let decoded = decode(&header).unwrap().unwrap();
        assert_eq!((decoded.origin, decoded.length), (client, length));
    }
}

#[test]
fn health_checks_and_unknown_clients_keep_the_real_address() {
    // LOCAL, whatever else stands there: the family is ignored, the length is skipped.
    for (family, bytes) in [(0x00, 0), (0x11, 12), (0xff, 7)] {
        let mut header = SIGNATURE.to_vec();
        header.extend_from_slice(&[0x20, family, 0, bytes]);
        header.resize(PREFIX_BYTES + usize::from(bytes), 0xee);
        assert_eq!(origin(&header), Origin::Peer);
    }
    // PROXY without a TCP client's address.
    for family in [0x00, 0x01, 0x12, 0x22, 0x31, 0x32] {
        let mut header = SIGNATURE.to_vec();
        header.extend_from_slice(&[0x21, family, 0, 216]);
        header.resize(PREFIX_BYTES + 216, 0xee);
        assert_eq!(origin(&header), Origin::Peer);
    }
}

#[test]
fn what_no_sender_may_say_is_refused() {
    for (at, byte, error) in [
        (0, b'P', Error::Signature),
        (12, 0x11, Error::Version),
        (12, 0x31, Error::Version),
        (12, 0x22, Error::Command),
        (12, 0x2f, Error::Command),
        (13, 0x41, Error::Family),
        (13, 0x13, Error::Family),
        (14, 0xff, Error::Length),
        (15, 11, Error::Length),
    ] {
        let mut header = v4();
        header[at] = byte;
        assert_eq!(decode(&header), Err(error), "{at} {byte}");
    }
    assert_eq!(decode(b"PROXY TCP4 1.2.3.4"), Err(Error::Signature));
    let longest = with_tlvs(v4(), &[(4, &[0; HEADER_BYTES_MAX - 28 - 3])]);
    assert_eq!(longest.len(), HEADER_BYTES_MAX);
    assert!(matches!(origin(&longest), Origin::Client { .. }));
    let longer = with_tlvs(v4(), &[(4, &[0; HEADER_BYTES_MAX - 28 - 2])]);
    // Before its end has come.
    assert_eq!(decode(&longer[..PREFIX_BYTES]), Err(Error::Length));
}

#[test]
fn tlvs_fill_the_header_exactly() {
    let good = with_tlvs(
        v4(),
        &[(1, b"h2"), (4, b""), (0x20, &[7; 40]), (0xea, b"x")],
    );
    assert!(matches!(origin(&good), Origin::Client { .. }));
    for spare in 1..=2 {
        let mut header = good.clone();
        header.extend_from_slice(&[4, 0][..spare]);
        let header = with_tlvs(header, &[]);
        assert_eq!(decode(&header), Err(Error::Tlv), "{spare} bytes too many");
    }
    let mut header = good;
    header[PREFIX_BYTES + IPV4_BYTES + 2] += 200;
    assert_eq!(decode(&header), Err(Error::Tlv), "a length beyond the end");
}

#[test]
fn checksums_are_verified() {
    // The check value of CRC-32C.
    assert_eq!(checksum(b"123456789", usize::MAX), 0xe306_9283);
    let good = with_checksum(with_tlvs(v4(), &[(4, b"pad")]));
    assert!(matches!(origin(&good), Origin::Client { .. }));
    // Any byte but the one that says that a checksum follows.
    let kind_at = good.len() - 4 - TLV_PREFIX_BYTES;
    for at in (PREFIX_BYTES..good.len()).filter(|at| *at != kind_at) {
        let mut header = good.clone();
        header[at] ^= 0x40;
        let error = decode(&header).unwrap_err();
        assert!(
            matches!(error, Error::Checksum | Error::Tlv),
            "{at} {error}"
        );
    }
    assert_eq!(decode(&with_checksum(good)), Err(Error::Checksum));
    let short = with_tlvs(v4(), &[(TLV_CRC32C, &[0; 3])]);
    assert_eq!(decode(&short), Err(Error::Tlv));
    let mut twice = with_tlvs(v4(), &[(TLV_CRC32C, &[0; 4]), (TLV_CRC32C, &[0; 4])]);
    let at = PREFIX_BYTES + IPV4_BYTES + TLV_PREFIX_BYTES;
    let sum = checksum(&twice, at);
    twice[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(decode(&twice), Err(Error::Tlv));
}

proptest! {
    #[test]
    fn garbage_never_panics_and_never_waits_for_ever(
        prefix in prop::sample::select(vec![0_usize, 12, 13, 14]),
        bytes in prop::collection::vec(any::<u8>(), 0..700),
    ) {
        let mut input = [&SIGNATURE[..], &[0x21, 0x11]].concat();
        input.truncate(prefix);
        input.extend_from_slice(&bytes);
        match decode(&input) {
            Ok(None) => prop_assert!(input.len() < HEADER_BYTES_MAX),
            Ok(Some(header)) => prop_assert!(header.length <= input.len().min(HEADER_BYTES_MAX)),
            Err(_) => {}
        }
    }

    #[test]
    fn every_header_says_the_same_however_it_is_cut(
        source: SocketAddr,
        destination: SocketAddr,
        padding in prop::collection::vec(any::<u8>(), 0..400),
        has_checksum: bool,
        cut in 0_usize..460,
    ) {
        let mut header = with_tlvs(encode(source, destination), &[(4, &padding)]);
        if has_checksum {
            header = with_checksum(header);
        }
        let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        prop_assert_eq!(origin(&header), Origin::Client {
            source: plain(source),
            destination: plain(destination),
        });
        if cut < header.len() {
            prop_assert_eq!(decode(&header[..cut]), Ok(None));
        }
    }
}
