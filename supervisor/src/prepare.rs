//! `prepare db`: brings the database up to date. The embedded store does so by itself at each start, too.

use std::io::{BufRead as _, IsTerminal as _, Write as _, stdin, stdout};

use fleet_protocol::config::Config;

use crate::arguments::PrepareCommand;
use crate::exit::Failure;
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
    let count = fleet_control::prepare_db(&config, path).map_err(Failure::fatal)?;
    match count {
        0 => println!("Nothing to do: {place} is up to date."),
        1 => println!("Ran 1 migration on {place}."),
        count => println!("Ran {count} migrations on {place}."),
    }
    Ok(())
}

fn is_agreed(place: &str) -> bool {
    print!(
        "This changes the tables of {place}. Stop all servers that use it, and make a backup. Go on? [y/N] "
    );
    let _ = stdout().flush();
    let mut answer = String::new();
    let _ = stdin().lock().read_line(&mut answer);
    matches!(answer.trim(), "y" | "Y" | "yes")
}
