//! `import`: copies a fleet from the database of Fleet or Kolide Fleet, which is only read.
//!
//! Invariant: the source's password gets into no text.

use std::fmt;
use std::io::{BufRead as _, IsTerminal as _, Write as _, stdin, stdout};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use clap::Args;
use fleet_control::{ImportOptions, ImportProgress, ImportReport, Person};
use fleet_protocol::config::{self, Config};
use fleet_protocol::grouped::Grouped;
use fleet_protocol::secret::Secret;
use percent_encoding::percent_decode_str;
use url::Url;

use crate::exit::Failure;
use crate::screen::{Line, Screen};
use crate::setup::with_password;
use crate::state_dir::{self, StateDir};
use crate::table::table;

/// Holds the password, for those who start programs with variables.
const PASSWORD_VARIABLE: &str = "FROM_MYSQL_PASSWORD";
/// Columns of the page.
const WIDTH: u16 = 100;

/// `import …`
#[derive(Args)]
#[command(
    after_help = "The source is only read; a user with SELECT on it is enough. The copy goes into the store that \
    the configuration names (mysql.address, or the embedded one, whose server must not run). It may be run again: what \
    was cut off goes on, and what is there already is not copied twice.\n\n\
    Examples:\n  \
    fleet-supervisor import --from-mysql mysql://fleet@db.example.com/fleet --from-mysql-password-path /run/fleet-password --dry-run\n  \
    fleet-supervisor import --from-mysql 'mysql://fleet@localhost/fleet?socket=/run/mysqld/mysqld.sock'"
)]
pub(crate) struct Import {
    /// The database to copy from: mysql://user@host[:port]/database[?socket=PATH]
    #[arg(long, alias = "from_mysql", value_name = "URL")]
    from_mysql: String,
    /// File with its password [env: FROM_MYSQL_PASSWORD holds the password itself]
    #[arg(long, alias = "from_mysql_password_path", value_name = "FILE")]
    from_mysql_password_path: Option<PathBuf>,
    /// File with the authority that its certificate must come from (PEM)
    #[arg(long, alias = "from_mysql_tls_ca", value_name = "FILE")]
    from_mysql_tls_ca: Option<PathBuf>,
    /// File with our certificate for it (PEM)
    #[arg(long, alias = "from_mysql_tls_cert", value_name = "FILE")]
    from_mysql_tls_cert: Option<PathBuf>,
    /// File with the key of that certificate (PEM)
    #[arg(long, alias = "from_mysql_tls_key", value_name = "FILE")]
    from_mysql_tls_key: Option<PathBuf>,
    /// Say what would be copied and what is here already, and change nothing
    #[arg(long, alias = "dry_run")]
    dry_run: bool,
    /// What is here by the same name or identifier gives way
    #[arg(long)]
    replace: bool,
    /// Do not ask first
    #[arg(long, alias = "no_prompt")]
    no_prompt: bool,
}

/// The URL may hold a password.
impl fmt::Debug for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Import").finish_non_exhaustive()
    }
}

/// Copies, or says what it would copy.
pub(crate) fn import(options: &Import, config: &Config) -> Result<(), Failure> {
    let from = options.source(std::env::var(PASSWORD_VARIABLE).ok())?;
    let config = with_password(config).map_err(|error| Failure::config(format!("{error:#}")))?;
    let state_dir = state_dir::for_start(&config);
    let is_embedded = config.mysql.address.is_empty();
    let origin = format!("the database {} at {}", from.database, from.address);
    if !is_embedded
        && (&config.mysql.address, &config.mysql.database) == (&from.address, &from.database)
    {
        return Err(Failure::usage(format!(
            "{origin} is the one that mysql.address names; nothing can be copied into itself"
        )));
    }
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
    if !options.no_prompt && !options.dry_run && !is_agreed(&origin, &place, options.replace) {
        return Err(Failure::fatal("nothing was changed"));
    }
    let path = lock.as_ref().map_or(state_dir.as_path(), StateDir::path);
    let screen = Mutex::new(Screen::new(stdout(), stdout().is_terminal()));
    let tell = |progress: ImportProgress| {
        let mut screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody reads it; the work goes on.
        let _ = screen.write(Line::Passing, &Pace(progress), Instant::now());
    };
    let how = ImportOptions {
        replaces: options.replace,
        is_dry_run: options.dry_run,
    };
    let report = fleet_control::import_fleet(&config, path, &from, how, &tell);
    let mut screen = screen.into_inner().unwrap_or_else(PoisonError::into_inner);
    let _ = screen.finish_line();
    let report = report.map_err(|reason| {
        Failure::fatal(format!(
            "{reason}; the same command goes on where this one ended"
        ))
    })?;
    let page = page(&report, &origin, &place, options.dry_run);
    // A reader that has gone, such as `head`, is no failure.
    let _ = stdout().lock().write_all(page.as_bytes());
    Ok(())
}

impl Import {
    /// The source as a configuration names a database.
    fn source(&self, variable: Option<String>) -> Result<config::Mysql, Failure> {
        let (mut from, in_url) = read_url(&self.from_mysql).map_err(|reason| {
            Failure::usage(format!(
                "--from-mysql: {reason}; it is mysql://user@host[:port]/database"
            ))
        })?;
        from.password = match (&self.from_mysql_password_path, variable) {
            (Some(path), _) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    let path = path.display();
                    Failure::config(format!("--from-mysql-password-path: {path}: {error}"))
                })?;
                Secret::new(text.trim_end_matches(['\r', '\n']))
            }
            (None, Some(text)) if !text.is_empty() => Secret::new(text),
            (None, _) => in_url,
        };
        for (path, given) in [
            (&mut from.tls_ca, &self.from_mysql_tls_ca),
            (&mut from.tls_cert, &self.from_mysql_tls_cert),
            (&mut from.tls_key, &self.from_mysql_tls_key),
        ] {
            *path = given.clone().unwrap_or_default();
        }
        Ok(from)
    }
}

/// Address, database and user; and the password, if there is one. Reasons repeat nothing of the text.
fn read_url(text: &str) -> Result<(config::Mysql, Secret), String> {
    let url = Url::parse(text).map_err(|error| format!("is no URL ({error})"))?;
    if url.scheme() != "mysql" {
        return Err("does not begin with mysql://".into());
    }
    let plain = |text: &str| {
        let decoded = percent_decode_str(text).decode_utf8();
        decoded
            .map(|text| text.into_owned())
            .map_err(|_| "is not UTF-8".to_owned())
    };
    let database = plain(url.path().trim_start_matches('/'))?;
    if database.is_empty() {
        return Err("names no database".into());
    }
    let mut socket = None;
    for (name, value) in url.query_pairs() {
        match name.as_ref() {
            "socket" if value.starts_with('/') => socket = Some(value.into_owned()),
            "socket" => return Err("names a socket that is no absolute path".into()),
            _ => return Err("has a parameter that is not known; known is socket".into()),
        }
    }
    let address = match (socket, url.host_str().filter(|host| !host.is_empty())) {
        (Some(socket), _) => socket,
        (None, Some(host)) => format!("{}:{}", plain(host)?, url.port().unwrap_or(3306)),
        (None, None) => return Err("names no host".into()),
    };
    let username = plain(url.username())?;
    if username.is_empty() {
        return Err("names no user".into());
    }
    let password = Secret::new(plain(url.password().unwrap_or_default())?);
    let from = config::Mysql {
        address,
        database,
        username,
        ..config::Mysql::default()
    };
    Ok((from, password))
}

fn is_agreed(origin: &str, place: &str, replaces: bool) -> bool {
    let conflicts = if replaces { "gives way" } else { "stays" };
    print!(
        "This copies the fleet of {origin}, which is only read, into {place}. What is there by the same name {conflicts}. \
         --dry-run tells first what would be done. Go on? [y/N] "
    );
    let _ = stdout().flush();
    let mut answer = String::new();
    let _ = stdin().lock().read_line(&mut answer);
    matches!(answer.trim(), "y" | "Y" | "yes")
}

/// How far it is, in one line.
struct Pace(ImportProgress);

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ImportProgress {
            done,
            total,
            here,
            elapsed,
        } = self.0;
        write!(f, "{} of {} hosts", Grouped(done), Grouped(total))?;
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        if let Some(rate) = here.saturating_mul(1000).checked_div(millis) {
            write!(f, ", {} a second", Grouped(rate))?;
        }
        if let Some(left) = total
            .saturating_sub(done)
            .saturating_mul(millis)
            .checked_div(here)
        {
            write!(f, ", {} s left", Grouped(left / 1000))?;
        }
        Ok(())
    }
}

/// What was done, or would be.
fn page(report: &ImportReport, origin: &str, place: &str, is_dry_run: bool) -> String {
    let mut text = format!(
        "{} from {origin} ({}) into {place}\n\n",
        if is_dry_run { "Would copy" } else { "Copied" },
        report.product
    );
    let mut tallies = table(WIDTH, false);
    tallies.set_header(["", "found", "added", "same", "replaced", "kept", "left out"]);
    for tally in &report.tallies {
        let numbers = [
            tally.found,
            tally.added,
            tally.same,
            tally.replaced,
            tally.kept,
            tally.left_out,
        ];
        let mut row = vec![tally.kind.to_owned()];
        row.extend(numbers.map(|number| Grouped(number).to_string()));
        tallies.add_row(row);
    }
    text.push_str(&format!("{tallies}\n"));
    if report.hosts_before > 0 {
        let before = Grouped(report.hosts_before);
        text.push_str(&format!(
            "\nAn earlier run that was cut off had copied {before} hosts.\n"
        ));
    }
    let mut lines: Vec<String> = report.notes.clone();
    if report.more_notes > 0 {
        lines.push(format!("and {} more", report.more_notes));
    }
    if !lines.is_empty() {
        text.push_str(&format!("\nTo know:\n  {}\n", lines.join("\n  ")));
    }
    if !report.people.is_empty() {
        let people: Vec<String> = report.people.iter().map(person).collect();
        text.push_str(&format!(
            "\nUsers of the source that get no account here:\n  {}\n",
            people.join("\n  ")
        ));
    }
    if report
        .tallies
        .iter()
        .any(|tally| tally.kind == "users" && tally.added > 0)
    {
        text.push_str("\nCopied users have no password until an admin gives them one; they must change it then.\n");
    }
    if !is_dry_run {
        text.push_str(
            "\nThe copied hosts are served with the keys that they have as soon as the name that they were given leads here.\n",
        );
    }
    text
}

fn person(person: &Person) -> String {
    let mut text = format!("{} <{}>", person.name, person.email);
    let role = match person.role.as_str() {
        "" => "no role outside of teams",
        role => role,
    };
    text.push_str(&format!(", {role}"));
    for (is_so, words) in [
        (person.is_api_only, ", for a program"),
        (person.is_disabled, ", disabled"),
    ] {
        if is_so {
            text.push_str(words);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fleet_control::ImportTally;

    use super::*;

    fn options(url: &str) -> Import {
        Import {
            from_mysql: url.into(),
            from_mysql_password_path: None,
            from_mysql_tls_ca: None,
            from_mysql_tls_cert: None,
            from_mysql_tls_key: None,
            dry_run: false,
            replace: false,
            no_prompt: false,
        }
    }

    #[test]
    fn urls_name_a_database() {
        let read = |url: &str| {
            let from = options(url).source(None).unwrap();
            let password = from.password.reveal().to_owned();
            (from.address, from.database, from.username, password)
        };
        let place = |address: &str, password: &str| {
            (
                address.into(),
                "fleet".into(),
                "ann".into(),
                password.into(),
            )
        };
        assert_eq!(read("mysql://ann@db/fleet"), place("db:3306", ""));
        assert_eq!(
            read("mysql://ann:p%40ss@db:3307/fleet"),
            place("db:3307", "p@ss")
        );
        assert_eq!(
            read("mysql://ann@[::1]:3307/fleet"),
            place("[::1]:3307", "")
        );
        assert_eq!(
            read("mysql://ann@localhost/fleet?socket=/run/my.sock"),
            place("/run/my.sock", "")
        );
    }

    #[test]
    fn the_password_comes_from_a_file_then_a_variable_then_the_url() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "of the file\n").unwrap();
        let mut given = options("mysql://ann:of-the-url@db/fleet");
        let password = |given: &Import, variable: Option<&str>| {
            let from = given.source(variable.map(str::to_owned)).unwrap();
            from.password.reveal().to_owned()
        };
        assert_eq!(password(&given, None), "of-the-url");
        assert_eq!(password(&given, Some("of the variable")), "of the variable");
        given.from_mysql_password_path = Some(path);
        assert_eq!(password(&given, Some("of the variable")), "of the file");
    }

    #[test]
    fn no_text_repeats_the_password() {
        for url in [
            "postgres://ann:hunter2@db/fleet",
            "mysql://ann:hunter2@db/",
            "mysql://ann:hunter2@db:99999/fleet",
            "mysql://:hunter2@db/fleet",
            "mysql://ann:hunter2@/fleet",
            "mysql://ann:hunter2@db/fleet?ssl=1",
            "hunter2",
        ] {
            let failure = options(url).source(None).unwrap_err().to_string();
            assert!(!failure.contains("hunter2"), "{failure}");
            assert!(!format!("{:?}", options(url)).contains("hunter2"));
        }
    }

    #[test]
    fn the_page_counts_and_names_what_is_left_out() {
        let report = ImportReport {
            product: "Fleet 4",
            tallies: vec![ImportTally {
                kind: "hosts",
                found: 1_200,
                added: 1_100,
                left_out: 100,
                ..ImportTally::default()
            }],
            notes: vec!["3 teams are not copied".into()],
            more_notes: 2,
            people: vec![Person {
                name: "Ann".into(),
                email: "ann@example.com".into(),
                role: "admin".into(),
                ..Person::default()
            }],
            hosts_before: 1_024,
            took: Duration::ZERO,
        };
        let text = page(&report, "there", "here", false);
        for part in [
            "Copied from there (Fleet 4) into here",
            "1,200",
            "An earlier run that was cut off had copied 1,024 hosts.",
            "  3 teams are not copied\n  and 2 more\n",
            "Ann <ann@example.com>, admin",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(page(&report, "there", "here", true).starts_with("Would copy from"));
    }

    #[test]
    fn the_pace_is_one_line() {
        let pace = Pace(ImportProgress {
            done: 30_000,
            total: 90_000,
            here: 20_000,
            elapsed: Duration::from_secs(2),
        });
        assert_eq!(
            pace.to_string(),
            "30,000 of 90,000 hosts, 10,000 a second, 6 s left"
        );
    }
}
