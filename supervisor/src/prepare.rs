//! `prepare db`: brings the database up to date, beside servers that use it. The embedded store does so by itself at each
//! start, too.

use std::io::{BufRead as _, IsTerminal as _, Write, stdin, stdout};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use fleet_control::{Prepared, Progress};
use fleet_protocol::config::Config;
use fleet_protocol::grouped::Grouped;

use crate::arguments::PrepareCommand;
use crate::exit::Failure;
use crate::screen::{LINE_INTERVAL, Line, Screen};
use crate::setup::with_password;
use crate::state_dir::{self, StateDir};

/// Asks first when somebody sits at a terminal, unless told not to.
pub(crate) fn prepare(
    what: PrepareCommand,
    config: &Config,
    no_prompt: bool,
) -> Result<(), Failure> {
    let PrepareCommand::Db = what;
    let config = with_password(config).map_err(|error| Failure::config(format!("{error:#}")))?;
    let state_dir = state_dir::for_start(&config);
    let is_embedded = config.mysql.address.is_empty();
    // The lock keeps a running server's store to that server.
    let lock = is_embedded
        .then(|| StateDir::open(&state_dir))
        .transpose()?;
    let place = match &lock {
        Some(lock) => format!("the embedded store in {}", lock.path().display()),
        None => format!(
            "the database {} at {}",
            config.mysql.database, config.mysql.address
        ),
    };
    if !no_prompt && !is_embedded && stdin().is_terminal() && !is_agreed(&place) {
        return Err(Failure::fatal("nothing was changed"));
    }
    let path = lock.as_ref().map_or(state_dir.as_path(), StateDir::path);
    let screen = Mutex::new(Screen::new(stdout(), stdout().is_terminal()));
    let tell = |progress: Progress| {
        let mut screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody reads it; the work goes on.
        let _ = screen.show(&progress, Instant::now());
    };
    let prepared = fleet_control::prepare_db(&config, path, &tell);
    let mut screen = screen.into_inner().unwrap_or_else(PoisonError::into_inner);
    let _ = screen.finish_line();
    println!("{}", summary(prepared.map_err(Failure::fatal)?, &place));
    Ok(())
}

fn is_agreed(place: &str) -> bool {
    print!(
        "This changes the tables of {place}. Servers that use it may go on running; a backup is wise all the same. \
         Go on? [y/N] "
    );
    let _ = stdout().flush();
    let mut answer = String::new();
    let _ = stdin().lock().read_line(&mut answer);
    matches!(answer.trim(), "y" | "Y" | "yes")
}

fn summary(prepared: Prepared, place: &str) -> String {
    let rows = Grouped(prepared.rows);
    match (prepared.migrations, prepared.rows) {
        (0, 0) => format!("Nothing to do: {place} is up to date."),
        (0, _) => format!("Filled in {rows} rows of {place}."),
        (1, 0) => format!("Ran 1 migration on {place}."),
        (1, _) => format!("Ran 1 migration on {place} and filled in {rows} rows."),
        (count, 0) => format!("Ran {count} migrations on {place}."),
        (count, _) => format!("Ran {count} migrations on {place} and filled in {rows} rows."),
    }
}

impl<W: Write> Screen<W> {
    fn show(&mut self, progress: &Progress, now: Instant) -> std::io::Result<()> {
        let place = match progress {
            // Most statements are over before anybody has read the line.
            Progress::Changing { elapsed, .. }
                if !self.is_terminal() && *elapsed < LINE_INTERVAL =>
            {
                return Ok(());
            }
            Progress::Changing { .. } | Progress::Filling(_) => Line::Passing,
            Progress::Queued { .. } => Line::Open,
            // An empty table is no news.
            Progress::Filled(filling) if filling.total == 0 => return Ok(()),
            Progress::Blocked { .. } | Progress::Changed { .. } | Progress::Filled(_) => {
                Line::Whole
            }
        };
        self.write(place, &progress, now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fleet_control::Filling;

    use super::*;

    fn filling(done: u64) -> Filling {
        Filling {
            migration: 4,
            rows: "hosts",
            done,
            total: 3_000,
            changed: done,
            elapsed: Duration::from_secs(1),
            left: None,
            is_elsewhere: false,
        }
    }

    /// What stands there after a chunk each second.
    fn shown(is_terminal: bool) -> String {
        let mut screen = Screen::new(Vec::new(), is_terminal);
        let began = Instant::now();
        for second in 0..7 {
            let now = began + Duration::from_secs(second);
            let progress = Progress::Filling(filling(second * 500));
            screen.show(&progress, now).unwrap();
            // Too soon for anybody to read.
            let progress = Progress::Filling(filling(second * 500 + 1));
            screen.show(&progress, now).unwrap();
        }
        let progress = Progress::Filled(filling(3_000));
        screen.show(&progress, began).unwrap();
        screen.finish_line().unwrap();
        String::from_utf8(screen.into_inner()).unwrap()
    }

    #[test]
    fn a_terminal_shows_one_line_that_changes() {
        let text = shown(true);
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        assert_eq!(text.matches("\x1b[K").count(), 8, "{text:?}");
        assert!(text.ends_with("filled in here, 1 s\x1b[K\n"), "{text:?}");
    }

    #[test]
    fn elsewhere_a_line_comes_now_and_then() {
        let text = shown(false);
        let lines: Vec<&str> = text.lines().collect();
        let expected = [
            "migration 4: 0 of 3,000 hosts, 1 s",
            "migration 4: 2,500 of 3,000 hosts, 1 s",
            "migration 4: all 3,000 hosts looked at, 3,000 filled in here, 1 s",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn the_end_says_what_was_done() {
        let text = |migrations, rows| summary(Prepared { migrations, rows }, "it");
        assert_eq!(text(0, 0), "Nothing to do: it is up to date.");
        assert_eq!(text(1, 0), "Ran 1 migration on it.");
        assert_eq!(text(0, 1_200), "Filled in 1,200 rows of it.");
        assert_eq!(text(3, 5), "Ran 3 migrations on it and filled in 5 rows.");
    }
}
