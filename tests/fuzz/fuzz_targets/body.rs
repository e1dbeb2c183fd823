//! Any request body, as every route reads it.

#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;

#[path = "../../../worker/src/body.rs"]
#[allow(dead_code, reason = "the worker uses the rest")]
mod body;
#[path = "../../../worker/src/escape.rs"]
#[allow(dead_code, reason = "the worker uses the rest")]
mod escape;
#[path = "../../../worker/src/log_body.rs"]
mod log_body;
#[path = "../../../worker/src/scan.rs"]
#[allow(dead_code, reason = "the worker uses the rest")]
mod scan;

const LINES_BYTES_MAX: usize = 4096;

fuzz_target!(|input: &[u8]| {
    let text = body::text(input);
    let address = IpAddr::from([192, 0, 2, 1]);
    let _ = body::node_key(&text);
    let _ = body::enroll(&text, address);
    let _ = body::write(&text);
    let _ = body::carve_begin(&text);
    let _ = body::carve_block(&text);
    check_lines(&text);
    // Most of what a fuzzer makes is no log body.
    check_lines(&format!(r#"{{"node_key":"k","log_type":"result","data":[{text}]}}"#));
});

/// Every element is one line of valid JSON, within the bound.
fn check_lines(text: &str) {
    let Ok(parsed) = log_body::parse(text, LINES_BYTES_MAX) else {
        return;
    };
    let bytes = &parsed.lines.bytes;
    assert!(bytes.len() <= LINES_BYTES_MAX);
    let lines: Vec<_> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    assert_eq!(lines.len(), parsed.lines.count as usize);
    for line in lines {
        assert_eq!(line.last(), Some(&b'\n'));
        assert!(std::str::from_utf8(line).is_ok());
        serde_json::from_slice::<serde::de::IgnoredAny>(line).expect("a line is JSON");
    }
}
