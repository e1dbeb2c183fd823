//! Any bytes as a compressed body: never more than the bound, and what was compressed comes back.

#![no_main]

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;

#[path = "../../../worker/src/body.rs"]
#[allow(dead_code, reason = "the worker uses the rest")]
mod body;
#[path = "../../../worker/src/escape.rs"]
#[allow(dead_code, reason = "the worker uses the rest")]
mod escape;
#[path = "../../../worker/src/scan.rs"]
#[allow(dead_code, reason = "the worker uses the rest")]
mod scan;

const BYTES_MAX: usize = 4096;

fuzz_target!(|input: &[u8]| {
    // Most of what a fuzzer makes does not begin like gzip.
    for packed in [input, &[&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], input].concat()] {
        if let Ok(plain) = body::inflate(packed, BYTES_MAX) {
            assert!(plain.len() <= BYTES_MAX);
        }
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(input).expect("memory");
    let packed = encoder.finish().expect("memory");
    match body::inflate(&packed, BYTES_MAX) {
        Ok(plain) => assert_eq!(plain, input),
        Err(_) => assert!(input.len() > BYTES_MAX),
    }
});
