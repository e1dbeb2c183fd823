//! Anything in front of a connection: never a panic, never an endless wait, never more than a header's bytes.

#![no_main]

use fleet_protocol::proxy_header::{HEADER_BYTES_MAX, Origin, SIGNATURE, decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    check(input);
    // Most of what a fuzzer makes does not begin like a header.
    check(&[&SIGNATURE, input].concat());
});

fn check(input: &[u8]) {
    match decode(input) {
        Err(_) => {}
        Ok(None) => assert!(input.len() < HEADER_BYTES_MAX),
        Ok(Some(header)) => {
            assert!(header.length <= input.len().min(HEADER_BYTES_MAX));
            // What comes behind changes nothing, and less is not enough.
            assert_eq!(decode(&input[..header.length]), Ok(Some(header)));
            assert_eq!(decode(&input[..header.length - 1]), Ok(None));
            if let Origin::Client { source, destination } = header.origin {
                let again = encode(source, destination);
                let decoded = decode(&again).expect("our own header").expect("whole");
                assert_eq!(decoded.origin, header.origin);
            }
        }
    }
}
