//! Any request head, whole and growing, and what proxies may have put into it.

#![no_main]

use fleet_protocol::trusted_proxies::TrustedProxies;
use libfuzzer_sys::fuzz_target;

#[path = "../../../worker/src/http.rs"]
#[allow(dead_code, reason = "the worker uses the rest")]
mod http;

fuzz_target!(|input: &[u8]| {
    let whole = http::parse_head(input, "", &mut 0);
    // However it comes in, the same is understood.
    let (mut scanned, mut grown) = (0, Ok(None));
    for end in 0..=input.len() {
        grown = http::parse_head(&input[..end], "", &mut scanned);
        if !matches!(grown, Ok(None)) {
            break;
        }
    }
    if let Ok(Some(head)) = &whole {
        assert_eq!(grown.as_ref(), Ok(&Some(head.clone())));
        let text = &input[..head.head_bytes];
        for rule in ["2", "True-Client-IP", "10.0.0.0/8"] {
            let trusted: TrustedProxies = rule.parse().expect("a rule");
            let peer = [10, 0, 0, 1].into();
            http::client_address(text, &trusted, peer);
        }
    }
    // The rest as a chunked body.
    let mut body = input.to_vec();
    let mut chunked = http::Chunked::new(0);
    if chunked.decode(&mut body) == Ok(true) {
        assert!(chunked.end() <= body.len());
    }
});
