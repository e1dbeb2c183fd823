use std::net::Ipv4Addr;

use fleet_protocol::address::AddressState;
use hickory_server::proto::op::{Message, MessageType, OpCode, Query};
use proptest::prelude::*;

use super::super::order::tests::view;
use super::*;

const FROM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5353);

fn zone(configure: impl FnOnce(&mut Dns)) -> Zone {
    let mut dns = Dns {
        name: "Fleet.example.com".into(),
        ..Dns::default()
    };
    configure(&mut dns);
    Zone::new(&dns).unwrap()
}

fn gateway(v4: u8, v6: u16) -> Gateway {
    let v4 = (1..=v4).map(|last| view(([192, 0, 2, last], 8080).into(), 0));
    let v6 = (1..=v6).map(|last| view((([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]), 8080).into(), 0));
    Gateway {
        addresses: v4.chain(v6).collect(),
        ..Gateway::default()
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn ask_bytes(zone: &Zone, gateway: &Gateway, message: &Message, transport: Transport) -> Vec<u8> {
    let bytes = message.to_vec().unwrap();
    zone.answer(&bytes, FROM, transport, gateway).unwrap()
}

fn ask(zone: &Zone, gateway: &Gateway, message: &Message) -> Message {
    Message::from_vec(&ask_bytes(zone, gateway, message, Transport::Udp)).unwrap()
}

fn addresses(message: &Message) -> Vec<String> {
    let answers = message.answers.iter();
    answers.map(|record| record.data.to_string()).collect()
}

#[test]
fn addresses_are_told_in_turn() {
    let (zone, gateway) = (zone(|dns| dns.answers_max = 2), gateway(3, 1));
    let name = "fleet.example.com.";
    let first = ask(&zone, &gateway, &question(name, RecordType::A));
    assert_eq!(first.metadata.id, 4711);
    assert_eq!(first.metadata.response_code, ResponseCode::NoError);
    assert!(first.metadata.authoritative && !first.metadata.recursion_available);
    assert!(first.metadata.recursion_desired);
    assert!(first.edns.is_none());
    assert_eq!(addresses(&first), ["192.0.2.1", "192.0.2.2"]);
    assert!(first.answers.iter().all(|record| record.ttl == 10));
    // What others ask between does not disturb the turns.
    let sixth = ask(&zone, &gateway, &question(name, RecordType::AAAA));
    assert_eq!(addresses(&sixth), ["2001:db8::1"]);
    let second = ask(&zone, &gateway, &question(name, RecordType::A));
    assert_eq!(addresses(&second), ["192.0.2.2", "192.0.2.3"]);
}

#[test]
fn the_case_of_the_question_comes_back() {
    let mixed = "fLeEt.ExAmPlE.cOm.";
    let answer = ask(
        &zone(|_| {}),
        &gateway(1, 0),
        &question(mixed, RecordType::A),
    );
    assert_eq!(answer.queries[0].name().to_string(), mixed);
    assert_eq!(answer.answers[0].name.to_string(), mixed);
}

#[test]
fn every_kind_has_its_answer() {
    let named = zone(|dns| dns.nameservers = vec!["gw1.example.com".into()]);
    let gateway = gateway(1, 0);
    let of = |name: &str, kind| ask(&named, &gateway, &question(name, kind));
    let apex = "fleet.example.com.";
    for (name, kind, code, answers, authorities) in [
        (apex, RecordType::A, ResponseCode::NoError, 1, 0),
        (apex, RecordType::AAAA, ResponseCode::NoError, 0, 1),
        (apex, RecordType::MX, ResponseCode::NoError, 0, 1),
        (apex, RecordType::NS, ResponseCode::NoError, 1, 0),
        (apex, RecordType::SOA, ResponseCode::NoError, 1, 0),
        (apex, RecordType::ANY, ResponseCode::NoError, 1, 0),
        (apex, RecordType::AXFR, ResponseCode::Refused, 0, 0),
        (
            "a.fleet.example.com.",
            RecordType::A,
            ResponseCode::NXDomain,
            0,
            1,
        ),
        ("example.com.", RecordType::A, ResponseCode::Refused, 0, 0),
        (
            "xfleet.example.com.",
            RecordType::A,
            ResponseCode::Refused,
            0,
            0,
        ),
        (".", RecordType::NS, ResponseCode::Refused, 0, 0),
    ] {
        let answer = of(name, kind);
        assert_eq!(answer.metadata.response_code, code, "{name} {kind}");
        assert_eq!(answer.answers.len(), answers, "{name} {kind}");
        assert_eq!(answer.authorities.len(), authorities, "{name} {kind}");
        let is_ours = code != ResponseCode::Refused;
        assert_eq!(answer.metadata.authoritative, is_ours, "{name} {kind}");
        if authorities == 1 {
            assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
            assert!(
                answer.authorities[0]
                    .name
                    .to_string()
                    .eq_ignore_ascii_case(apex)
            );
        }
    }
    assert_eq!(addresses(&of(apex, RecordType::NS)), ["gw1.example.com."]);
    assert_eq!(
        of(apex, RecordType::ANY).answers[0].record_type(),
        RecordType::HINFO
    );
    let soa = &addresses(&of(apex, RecordType::SOA))[0];
    assert!(soa.starts_with("gw1.example.com. hostmaster."), "{soa}");
    // Without names to tell, NS is an absence: whoever asks has found us by the parent's.
    let unnamed = ask(&zone(|_| {}), &gateway, &question(apex, RecordType::NS));
    assert_eq!((unnamed.answers.len(), unnamed.authorities.len()), (0, 1));
    let mut chaos = question(apex, RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let answer = ask(&named, &gateway, &chaos);
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
}

#[test]
fn when_nothing_serves_resolvers_are_sent_on() {
    let zone = zone(|_| {});
    let question = question("fleet.example.com.", RecordType::A);
    let code = |gateway: &Gateway| ask(&zone, gateway, &question).metadata.response_code;
    let mut some = gateway(2, 0);
    assert_eq!(code(&some), ResponseCode::NoError);
    some.is_draining = true;
    assert_eq!(code(&some), ResponseCode::ServFail);
    assert_eq!(code(&gateway(0, 0)), ResponseCode::ServFail);
    // IPv6 serves, and no IPv4 is configured, so this is no failure but an absence.
    let absent = ask(&zone, &gateway(0, 1), &question);
    assert_eq!(absent.metadata.response_code, ResponseCode::NoError);
    assert_eq!((absent.answers.len(), absent.authorities.len()), (0, 1));
    // It is configured and does not serve: an absence would be remembered for the minimum of the SOA.
    let mut half = gateway(1, 1);
    half.addresses[0].state = AddressState::Degraded;
    let lost = ask(&zone, &half, &question);
    assert_eq!(lost.metadata.response_code, ResponseCode::ServFail);
    assert_eq!((lost.answers.len(), lost.authorities.len()), (0, 0));
    let sixth = self::question("fleet.example.com.", RecordType::AAAA);
    assert_eq!(addresses(&ask(&zone, &half, &sixth)), ["2001:db8::1"]);
    half.addresses[0].state = AddressState::Leaving;
    assert_eq!(code(&half), ResponseCode::NoError);
}

#[test]
fn answers_fit_what_the_client_takes() {
    let label = "a".repeat(60);
    let long = format!("{label}.{label}.example.com.");
    let zone = zone(|dns| {
        dns.name.clone_from(&long);
        dns.answers_max = 0;
    });
    let gateway = gateway(0, 250);
    let plain = question(&long, RecordType::AAAA);
    let with_edns = |bytes: u16, version: u8| {
        let mut message = plain.clone();
        let mut edns = Edns::new();
        edns.set_max_payload(bytes).set_version(version);
        message.edns = Some(edns);
        message
    };
    let bytes = ask_bytes(&zone, &gateway, &plain, Transport::Udp);
    let answer = Message::from_vec(&bytes).unwrap();
    assert!(answer.metadata.truncation && answer.answers.is_empty());
    assert!(bytes.len() < 200, "{}", bytes.len());
    for asked in [0, 512, 1232, 65_535] {
        let message = with_edns(asked, 0);
        let bytes = ask_bytes(&zone, &gateway, &message, Transport::Udp);
        assert!(bytes.len() <= 1232 && bytes.len() <= usize::from(asked.max(512)));
        let answer = Message::from_vec(&bytes).unwrap();
        // 16 addresses of 28 bytes behind a name of 135.
        assert_eq!(answer.metadata.truncation, asked <= 512, "{asked}");
        assert_eq!(answer.answers.len(), if asked <= 512 { 0 } else { 16 });
        assert_eq!(answer.edns.unwrap().max_payload(), 1232);
        let bytes = ask_bytes(&zone, &gateway, &message, Transport::Tcp);
        let answer = Message::from_vec(&bytes).unwrap();
        assert!(!answer.metadata.truncation);
        assert_eq!(answer.answers.len(), 250);
    }
    let answer = ask(&zone, &gateway, &with_edns(1232, 1));
    // One number has two names: 16 is BADSIG, too.
    let code = u16::from(answer.metadata.response_code);
    assert_eq!(code, u16::from(ResponseCode::BADVERS));
    assert!(answer.answers.is_empty());
}

#[test]
fn packets_hold_a_bounded_part_of_all() {
    let gateway = gateway(250, 250);
    let all = zone(|dns| dns.answers_max = 0);
    let usual = zone(|_| {});
    for (kind, record_bytes) in [(RecordType::A, 16), (RecordType::AAAA, 28)] {
        let question = question("fleet.example.com.", kind);
        let of = |zone: &Zone, transport| {
            let bytes = ask_bytes(zone, &gateway, &question, transport);
            (bytes.len(), Message::from_vec(&bytes).unwrap())
        };
        // All names but one (of 19 bytes) are compressed to 2. Nobody has to come again by TCP.
        let asked = question.to_vec().unwrap().len();
        let (bytes, answer) = of(&all, Transport::Udp);
        assert_eq!(bytes, asked + 17 + UDP_ADDRESSES_MAX * record_bytes);
        assert!(bytes <= UDP_BYTES_MIN.into() && !answer.metadata.truncation);
        let first = addresses(&answer);
        let (_, answer) = of(&all, Transport::Udp);
        // The turns pass by every address all the same.
        assert_eq!(addresses(&answer)[..15], first[1..]);
        assert_eq!(of(&all, Transport::Tcp).1.answers.len(), 250);
        assert_eq!(of(&usual, Transport::Udp).1.answers.len(), 8);
        assert_eq!(of(&usual, Transport::Tcp).1.answers.len(), 8);
    }
}

#[test]
fn what_is_no_question_is_refused_briefly_or_not_at_all() {
    let (zone, gateway) = (zone(|_| {}), gateway(1, 0));
    let answer = |bytes: &[u8]| zone.answer(bytes, FROM, Transport::Udp, &gateway);
    let good = question("fleet.example.com.", RecordType::A)
        .to_vec()
        .unwrap();
    assert_eq!(answer(&good[..11]), None);
    let mut reply = good.clone();
    reply[2] |= 0x80;
    assert_eq!(answer(&reply), None);
    let code_of = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        let refused = answer(&bytes).unwrap();
        assert_eq!(refused.len(), 12);
        assert_eq!(refused[..2], bytes[..2]);
        refused[3] & 0x0f
    };
    // NOTIFY; cut off; two questions announced; 65,535 answers announced; many additional records announced.
    assert_eq!(code_of(&|bytes| bytes[2] = 0x20), 4);
    assert_eq!(code_of(&|bytes| bytes.truncate(20)), 1);
    assert_eq!(code_of(&|bytes| bytes[5] = 2), 1);
    assert_eq!(code_of(&|bytes| bytes[6..8].fill(0xff)), 1);
    assert_eq!(code_of(&|bytes| bytes[10] = 0x40), 1);
}

proptest! {
    #[test]
    fn garbage_never_panics_and_is_never_answered_at_length(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let (zone, gateway) = (zone(|_| {}), gateway(8, 8));
        if let Some(answer) = zone.answer(&bytes, FROM, Transport::Udp, &gateway) {
            prop_assert!(answer.len() <= 512);
            prop_assert_eq!(&answer[..2], &bytes[..2]);
        }
    }

    #[test]
    fn a_damaged_question_never_panics(
        place in 0_usize..46,
        byte: u8,
        cut in 0_usize..50,
    ) {
        let (zone, gateway) = (zone(|dns| dns.answers_max = 0), gateway(200, 200));
        let mut message = question("fleet.example.com.", RecordType::AAAA);
        message.edns = Some(Edns::new());
        let mut bytes = message.to_vec().unwrap();
        if let Some(slot) = bytes.get_mut(place) {
            *slot = byte;
        }
        bytes.truncate(bytes.len().saturating_sub(cut.saturating_sub(25)));
        if let Some(answer) = zone.answer(&bytes, FROM, Transport::Udp, &gateway) {
            prop_assert!(answer.len() <= 1232);
        }
    }
}
