//! Our own log, on standard error.

use std::io::{IsTerminal as _, stderr};

use fleet_protocol::config::Logging;
use tracing_subscriber::filter::LevelFilter;

/// Sets it up for this process.
pub(crate) fn init(logging: &Logging) {
    let level = if logging.debug {
        LevelFilter::DEBUG
    } else {
        LevelFilter::INFO
    };
    let builder = tracing_subscriber::fmt()
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_target(false)
        .with_max_level(level);
    // It fails only when a log is set up already, and then that one serves.
    let _ = if logging.json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.try_init()
    };
}
