//! What a long command shows while it runs: on a terminal one line that is rewritten, elsewhere a line now and then.

use std::fmt::Display;
use std::io::{Result, Write};
use std::time::{Duration, Instant};

/// Between two lines about the same thing: on a terminal, where they replace each other, and elsewhere.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(200);
pub(crate) const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// What a line is to those around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// May be left out when the last one was a moment ago; what comes next may replace it.
    Passing,
    /// What comes next may replace it.
    Open,
    /// Stays.
    Whole,
}

/// See the module.
pub(crate) struct Screen<W> {
    out: W,
    is_terminal: bool,
    /// Of what may be left out.
    shown_at: Option<Instant>,
    /// Something stands in the last line, and what comes next may replace it.
    is_open: bool,
}

impl<W: Write> Screen<W> {
    pub(crate) fn new(out: W, is_terminal: bool) -> Self {
        Self {
            out,
            is_terminal,
            shown_at: None,
            is_open: false,
        }
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    pub(crate) fn write(&mut self, line: Line, text: &dyn Display, now: Instant) -> Result<()> {
        let interval = if self.is_terminal {
            TERMINAL_INTERVAL
        } else {
            LINE_INTERVAL
        };
        let is_early = self.shown_at.is_some_and(|at| now - at < interval);
        if line == Line::Passing {
            if is_early {
                return Ok(());
            }
            self.shown_at = Some(now);
        }
        if !self.is_terminal {
            return writeln!(self.out, "{text}").and_then(|()| self.out.flush());
        }
        // Back to the beginning of the line, and nothing of the former text stays.
        write!(self.out, "\r{text}\x1b[K")?;
        self.is_open = true;
        if line != Line::Whole {
            return self.out.flush();
        }
        self.finish_line()
    }

    pub(crate) fn finish_line(&mut self) -> Result<()> {
        if std::mem::take(&mut self.is_open) {
            writeln!(self.out)?;
        }
        self.out.flush()
    }

    #[cfg(test)]
    pub(crate) fn into_inner(self) -> W {
        self.out
    }
}
