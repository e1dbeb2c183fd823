//! `ctl debug`: what a server can tell of its own health.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::client::Client;
use super::{Failure, Output, archive, connection};

/// For one answer.
const LIMIT: Duration = Duration::from_secs(60);

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Debug {
    #[command(subcommand)]
    pub(super) what: What,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum What {
    /// Fetch profiles, errors, and the state of processes and stores of one server into one file.
    Archive(archive::Archive),
    /// Look at each step of a connection to a server: name, TCP, certificate, health, and what agents would get.
    Connection(connection::Connection),
    /// Print recent errors with their counts.
    Errors {
        /// Forget them after that.
        #[arg(long)]
        flush: bool,
        /// Write to this file in place of standard output.
        #[arg(long, short = 'o', value_name = "FILE")]
        outfile: Option<PathBuf>,
    },
    /// Print which transactions wait for which in the database.
    DbLocks,
    /// Print InnoDB's report of itself.
    DbInnodbStatus,
    /// Print what the database's connections do.
    DbProcessList,
    /// Print whether the database's tables are those that the server knows.
    Migrations,
}

impl Debug {
    pub(super) async fn run(self, client: &Client) -> Result<Output, Failure> {
        let path = match self.what {
            What::Archive(archive) => return archive.run(client, SystemTime::now()).await,
            What::Connection(connection) => return connection.look(client).await,
            What::Errors { flush, outfile } => {
                let path = if flush {
                    "/debug/errors?flush=true"
                } else {
                    "/debug/errors"
                };
                let text = fetch(client, path).await?;
                return match outfile {
                    None => Ok(Output::of(text)),
                    Some(file) => keep(&file, &text),
                };
            }
            What::DbLocks => "/debug/db/locks",
            What::DbInnodbStatus => "/debug/db/innodb-status",
            What::DbProcessList => "/debug/db/process-list",
            What::Migrations => "/debug/migrations",
        };
        Ok(Output::of(fetch(client, path).await?))
    }
}

/// JSON laid out for people; anything else as it is.
async fn fetch(client: &Client, path: &str) -> Result<String, Failure> {
    let body = client.bytes(path, LIMIT).await?;
    let mut text = match serde_json::from_slice::<Value>(&body) {
        Ok(Value::String(text)) => text,
        Ok(value) => serde_json::to_string_pretty(&value).unwrap_or_default(),
        Err(_) => String::from_utf8_lossy(&body).into_owned(),
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

fn keep(file: &std::path::Path, text: &str) -> Result<Output, Failure> {
    let shown = file.display();
    std::fs::write(file, text)
        .map_err(|error| Failure::Usage(format!("cannot write {shown}: {error}")))?;
    Ok(Output::of(format!("[+] written to {shown}\n")))
}
