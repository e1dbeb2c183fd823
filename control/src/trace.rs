//! Our own log: one line an event on standard error, marked with the process's role.
//!
//! Invariant: a line is written with one call, so that lines of several processes on one pipe do not mix.

use std::io::{self, Write};

use fleet_child::log;
use fleet_protocol::config::Logging;

const ROLE: &str = "control";

/// Starts logging. A second call changes nothing.
pub(crate) fn start(options: &Logging) {
    let style = log::Style {
        is_coloured: false,
        // sqlx tells of every statement at debug; that is for RUST_LOG to ask for.
        // The pool repeats at each attempt what `watch` says once an outage.
        directives: ",sqlx=error,hyper=info",
        takes_environment: true,
    };
    log::init(options, style, || RoleWriter);
}

/// A line from before the configuration is known.
pub(crate) fn plain(text: &str) {
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(io::stderr().lock(), "{ROLE}: {text}");
}

#[derive(Clone, Copy)]
struct RoleWriter;

impl Write for RoleWriter {
    /// The subscriber gives a whole line at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        io::stderr().lock().write_all(&marked(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line of text begins with its time, so that a brace is the beginning of an object.
fn marked(line: &[u8]) -> Vec<u8> {
    let mut marked = Vec::with_capacity(line.len() + 24);
    match line.strip_prefix(b"{") {
        Some(rest) => {
            marked.extend_from_slice(format!("{{\"role\":\"{ROLE}\",").as_bytes());
            marked.extend_from_slice(rest);
        }
        None => {
            marked.extend_from_slice(format!("{ROLE}: ").as_bytes());
            marked.extend_from_slice(line);
        }
    }
    marked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_carry_the_role() {
        assert_eq!(marked(b"text\n"), b"control: text\n");
        let line = marked(b"{\"level\":\"INFO\"}\n");
        let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(
            line,
            serde_json::json!({"role": "control", "level": "INFO"})
        );
    }
}
