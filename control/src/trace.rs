//! Our own log: one line an event on standard error, marked with the process's role.
//!
//! Invariant: a line is written with one call, so that lines of several processes on one pipe do not mix.

use std::io::{self, Write};

use fleet_protocol::config::Logging;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

const ROLE: &str = "control";

/// Starts logging. A second call changes nothing.
pub(crate) fn start(options: &Logging) {
    let level = if options.debug { "debug" } else { "info" };
    // sqlx tells of every statement at debug; that is for RUST_LOG to ask for.
    // The pool repeats at each attempt what `watch` says once an outage.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},sqlx=error,hyper=info")));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(RoleWriter {
            is_json: options.json,
        });
    // An error means that logging was started before.
    let _ = if options.json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_ansi(false).try_init()
    };
}

/// A line from before the configuration is known.
pub(crate) fn plain(text: &str) {
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(io::stderr().lock(), "{ROLE}: {text}");
}

#[derive(Clone, Copy)]
struct RoleWriter {
    is_json: bool,
}

impl<'a> MakeWriter<'a> for RoleWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

impl Write for RoleWriter {
    /// The subscriber gives a whole line at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        io::stderr().lock().write_all(&marked(line, self.is_json))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn marked(line: &[u8], is_json: bool) -> Vec<u8> {
    let mut marked = Vec::with_capacity(line.len() + 24);
    match line.strip_prefix(b"{") {
        Some(rest) if is_json => {
            marked.extend_from_slice(format!("{{\"role\":\"{ROLE}\",").as_bytes());
            marked.extend_from_slice(rest);
        }
        _ => {
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
        assert_eq!(marked(b"text\n", false), b"control: text\n");
        let line = marked(b"{\"level\":\"INFO\"}\n", true);
        let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(
            line,
            serde_json::json!({"role": "control", "level": "INFO"})
        );
    }
}
