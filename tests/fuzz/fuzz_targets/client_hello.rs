//! Any first bytes of a TLS connection, whole and growing.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../worker/src/client_hello.rs"]
mod client_hello;

use client_hello::{Look, WAITING_BYTES_MAX, look};

fuzz_target!(|input: &[u8]| {
    check(input);
    // Most of what a fuzzer makes does not begin like a record.
    check(&[&[22, 3, 1], input].concat());
});

fn check(input: &[u8]) {
    let mut earlier = Look::Partial;
    for end in 0..=input.len() {
        let now = look(&input[..end]);
        // A verdict stands, whatever comes behind it; and one comes in time.
        assert!(earlier == Look::Partial || earlier == now);
        assert!(now != Look::Partial || end < WAITING_BYTES_MAX);
        earlier = now;
    }
}
