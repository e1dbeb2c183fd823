//! The progress line: on a terminal one line that changes, elsewhere a line every ten seconds. On standard error.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between two looks.
pub(super) const LOOK: Duration = Duration::from_millis(250);
/// Time between two lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// For work whose end is not known.
const SPINNER: &str = "{spinner} {elapsed} {msg}";
/// For work that can be counted.
const BAR: &str = "{spinner} {elapsed} {bar:28} {percent:>3} % {msg}";

/// Tells people what is going on.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    last_line: Instant,
    has_length: bool,
}

impl Progress {
    /// Begins.
    pub(super) fn start() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self {
            bar: is_terminal.then(|| styled(ProgressBar::new_spinner(), SPINNER)),
            last_line: Instant::now(),
            has_length: false,
        }
    }

    /// Shows a text.
    pub(super) fn show(&mut self, text: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_message(text());
            bar.tick();
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            eprintln!("{}", text());
        }
    }

    /// Shows how much of the whole is done, and a text, such as the rate now.
    pub(super) fn advance(&mut self, done: u64, whole: u64, text: impl FnOnce() -> String) {
        if let Some(bar) = self.bar.take() {
            let bar = if self.has_length {
                bar
            } else {
                styled(bar, BAR)
            };
            self.has_length = true;
            bar.set_length(whole);
            bar.set_position(done);
            self.bar = Some(bar);
            self.show(text);
        } else {
            self.show(|| format!("{done} of {whole}; {}", text()));
        }
    }

    /// Shows a text that stays.
    pub(super) fn note(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// Ends.
    pub(super) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
