//! Any configuration file: read, laid over the defaults, checked. No error may repeat what it holds: it may be a secret.

#![no_main]

use fleet_protocol::config::{Config, overlay};
use libfuzzer_sys::fuzz_target;

#[path = "../../../supervisor/src/config_file.rs"]
#[allow(dead_code, reason = "the supervisor uses the rest")]
mod config_file;
#[path = "../../../supervisor/src/fleet_keys.rs"]
#[allow(dead_code, reason = "the supervisor uses the rest")]
mod fleet_keys;

const SECRET: &str = "hunter2-0123456789";

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    check(text);
    // A secret in the midst of what is wrong.
    check(&format!("mysql:\n  password: {SECRET}\n{text}"));
    check(&format!("{text}{SECRET}\n"));
});

fn check(text: &str) {
    let contents = match config_file::parse(text) {
        Ok(contents) => contents,
        Err(error) => return assert!(!error.contains(SECRET), "{error}"),
    };
    let mut tree = serde_json::to_value(Config::default()).expect("defaults");
    for (key, text) in &contents.options {
        if let Err(error) = overlay(&mut tree, key, text) {
            let told = format!("{error:?} {error}");
            assert!(!told.contains(SECRET), "{told}");
            return;
        }
    }
    match Config::from_tree(tree) {
        Ok(config) => {
            let masked = config.masked().to_string();
            let is_secret = config.mysql.password.reveal().contains(SECRET);
            assert!(!is_secret || !masked.contains(SECRET), "{masked}");
            config.validate();
        }
        Err(problem) => assert!(!problem.to_string().contains(SECRET), "{problem}"),
    }
}
