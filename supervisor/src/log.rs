//! Our own log, on standard error.

use std::io::{IsTerminal as _, stderr};

use fleet_child::log::{self, Style};
use fleet_protocol::config::Logging;

/// Sets it up for this process.
pub(crate) fn init(logging: &Logging) {
    let style = Style {
        is_coloured: stderr().is_terminal(),
        directives: "",
        takes_environment: false,
    };
    log::init(logging, style, stderr);
}
