//! Tests of the client's address behind balancers.

use proptest::prelude::*;

use super::*;

const BALANCER: &str = "10.0.0.1";
const STRANGER: &str = "203.0.113.9";

fn rule(text: &str) -> TrustedProxies {
    text.parse().unwrap()
}

/// The client of a request with these fields, which came from `peer`.
fn client(rule: &TrustedProxies, peer: &str, fields: &[(&str, &str)]) -> String {
    let values_of = |name: &str| {
        let is_named = |field: &&(&str, &str)| field.0.eq_ignore_ascii_case(name);
        let values: Vec<&[u8]> = fields
            .iter()
            .filter(is_named)
            .map(|(_, value)| value.as_bytes())
            .collect();
        values.into_iter()
    };
    rule.client_address(peer.parse().unwrap(), values_of)
        .to_string()
}

#[test]
fn every_form_is_read() {
    for text in ["", " ", "none", "None"] {
        assert_eq!(rule(text), TrustedProxies::Nobody);
    }
    assert_eq!(rule("2"), TrustedProxies::Hops(2));
    assert_eq!(
        rule("CF-Connecting-IP"),
        TrustedProxies::Header("CF-Connecting-IP".into())
    );
    for text in ["10.0.0.0/8, 2001:db8::/32", "10.0.0.1", "::1"] {
        assert!(matches!(rule(text), TrustedProxies::Networks(_)), "{text}");
    }
    for text in [
        "0",
        "33",
        "99999999999",
        ",",
        "two words",
        "X-Real-IP\r\n: a",
    ] {
        let result = text.parse::<TrustedProxies>();
        assert!(
            matches!(result, Err(Error::Form(_) | Error::Networks(_))),
            "{text} {result:?}"
        );
    }
    for text in ["x-forwarded-for", "Forwarded"] {
        assert_eq!(
            text.parse::<TrustedProxies>(),
            Err(Error::ListHeader(text.into()))
        );
    }
    assert!(matches!(
        "10.0.0.0/8,lb.example.com".parse::<TrustedProxies>(),
        Err(Error::Networks(_))
    ));
}

#[test]
fn nobody_is_believed_by_default() {
    let fields = [
        ("True-Client-IP", "192.0.2.1"),
        ("X-Real-IP", "192.0.2.2"),
        ("X-Forwarded-For", "192.0.2.3"),
    ];
    let nobody = TrustedProxies::default();
    assert_eq!(client(&nobody, BALANCER, &fields), BALANCER);
    assert!(!nobody.believes(BALANCER.parse().unwrap()));
    let networks = rule("10.0.0.0/8");
    assert_eq!(client(&networks, STRANGER, &fields), STRANGER);
    assert!(!networks.believes(STRANGER.parse().unwrap()));
}

#[test]
fn a_trusted_peer_is_believed_in_fleets_order() {
    let networks = rule("10.0.0.0/8,2001:db8:1::/48");
    let mut fields = vec![
        ("x-forwarded-for", "192.0.2.3"),
        ("X-REAL-IP", "192.0.2.2"),
        ("true-client-ip", "192.0.2.1"),
    ];
    for expected in ["192.0.2.1", "192.0.2.2", "192.0.2.3", BALANCER] {
        assert_eq!(client(&networks, BALANCER, &fields), expected);
        fields.pop();
    }
    let odd = [("True-Client-IP", "unknown"), ("X-Real-IP", "192.0.2.2")];
    assert_eq!(client(&networks, BALANCER, &odd), "192.0.2.2");
    let v6 = [("X-Forwarded-For", "2001:db8:2::7, 2001:db8:1::9")];
    assert_eq!(client(&networks, "2001:db8:1::1", &v6), "2001:db8:2::7");
}

#[test]
fn the_list_is_read_from_the_right() {
    let networks = rule("10.0.0.0/8");
    for (list, expected) in [
        ("192.0.2.66, 192.0.2.1, 10.0.0.7, 10.0.0.8", "192.0.2.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("10.0.0.6,10.0.0.7", "10.0.0.6"),
        ("192.0.2.66, unknown, 10.0.0.7", "10.0.0.7"),
        ("192.0.2.66,,10.0.0.7", "10.0.0.7"),
        ("", BALANCER),
        ("_hidden", BALANCER),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("[2001:db8::5]:4711, 10.0.0.7", "2001:db8::5"),
        ("[2001:db8::5]", "2001:db8::5"),
        ("[2001:db8::5]x", BALANCER),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("0.0.0.0", BALANCER),
    ] {
        let fields = [("X-Forwarded-For", list)];
        assert_eq!(client(&networks, BALANCER, &fields), expected, "{list}");
    }
    let fields = [
        ("X-Forwarded-For", "192.0.2.66, 192.0.2.1"),
        ("Host", "f"),
        ("X-Forwarded-For", "10.0.0.7"),
    ];
    assert_eq!(client(&networks, BALANCER, &fields), "192.0.2.1");
}

#[test]
fn hops_count_from_the_right_whoever_sends_them() {
    let fields = [("X-Forwarded-For", "192.0.2.3, 192.0.2.2, 192.0.2.1")];
    for (hops, expected) in [
        ("1", "192.0.2.1"),
        ("2", "192.0.2.2"),
        ("3", "192.0.2.3"),
        ("4", STRANGER),
    ] {
        assert_eq!(client(&rule(hops), STRANGER, &fields), expected);
    }
    let odd = [("X-Forwarded-For", "192.0.2.3, unknown, 192.0.2.1")];
    assert_eq!(client(&rule("2"), STRANGER, &odd), STRANGER);
}

#[test]
fn a_named_header_is_believed_from_anyone() {
    let named = rule("CF-Connecting-IP");
    let fields = [
        ("cf-connecting-ip", "192.0.2.1"),
        ("True-Client-IP", "192.0.2.2"),
    ];
    assert_eq!(client(&named, STRANGER, &fields), "192.0.2.1");
    assert_eq!(client(&named, STRANGER, &fields[1..]), STRANGER);
    // The last one is that of the nearest proxy.
    let twice = [
        ("CF-Connecting-IP", "192.0.2.66"),
        ("CF-Connecting-IP", "192.0.2.1"),
    ];
    assert_eq!(client(&named, STRANGER, &twice), "192.0.2.1");
}

#[test]
fn long_lists_cost_no_more_than_their_end() {
    let networks = rule("10.0.0.0/8");
    let list = format!("192.0.2.1{}", ", 10.0.0.7".repeat(200));
    let fields = [("X-Forwarded-For", list.as_str())];
    assert_eq!(client(&networks, BALANCER, &fields), "10.0.0.7");
}

proptest! {
    #[test]
    fn noise_never_panics(
        text in "\\PC{0,40}",
        rule_text in "[0-9a-fA-F.:/,X-]{0,30}",
        lists in prop::collection::vec("[0-9a-f.:, \\[\\]]{0,60}", 0..4),
    ) {
        let _ = text.parse::<TrustedProxies>();
        let rule = rule_text.parse::<TrustedProxies>().unwrap_or(TrustedProxies::Hops(2));
        let fields: Vec<_> = lists.iter().map(|list| ("X-Forwarded-For", list.as_str())).collect();
        client(&rule, BALANCER, &fields);
    }

    /// What a client puts in front of what the proxies add changes nothing.
    #[test]
    fn a_client_cannot_choose_its_address(
        forged in "[0-9a-f.:, ]{0,60}",
        proxies in prop::collection::vec(1_u8..255, 0..20),
    ) {
        let mut list = format!("{forged}, {STRANGER}");
        for proxy in &proxies {
            list += &format!(", 10.0.0.{proxy}");
        }
        let fields = [("X-Forwarded-For", list.as_str())];
        prop_assert_eq!(client(&rule("10.0.0.0/8"), BALANCER, &fields), STRANGER);
        let hops = TrustedProxies::Hops(u8::try_from(proxies.len() + 1).unwrap());
        prop_assert_eq!(client(&hops, BALANCER, &fields), STRANGER);
    }
}
