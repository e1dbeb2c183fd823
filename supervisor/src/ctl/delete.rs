//! `ctl delete`

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::Value;

use super::client::{Client, encoded};
use super::{API, Failure, Output, apply};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(super) struct Delete {
    /// File whose queries, packs and labels are deleted; may be repeated.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Delete a query that no pack uses.
    Query {
        /// Its name.
        name: String,
    },
    /// Delete a pack.
    Pack {
        /// Its name.
        name: String,
    },
    /// Delete a label that no pack targets.
    Label {
        /// Its name.
        name: String,
    },
    /// Delete a host; if its agent lives, it enrolls again.
    Host {
        /// Its identifier, host name, hardware UUID or number.
        name: String,
    },
}

impl Delete {
    pub(super) async fn run(self, client: &Client) -> Result<Output, Failure> {
        let mut targets = from_files(&self.files)?;
        match self.what {
            None => {}
            Some(What::Query { name }) => targets.push(("query", "queries", name)),
            Some(What::Pack { name }) => targets.push(("pack", "packs", name)),
            Some(What::Label { name }) => targets.push(("label", "labels", name)),
            Some(What::Host { name }) => {
                delete_host(client, &name).await?;
                return Ok(Output::of(format!("[-] deleted host {name:?}\n")));
            }
        }
        if targets.is_empty() {
            return Err(Failure::Usage("the files name nothing to delete".into()));
        }
        let mut output = Output::default();
        let mut refusals = Vec::new();
        for (kind, plural, name) in targets {
            match client
                .delete(&format!("{API}/{plural}/{}", encoded(&name)))
                .await
            {
                Ok(_) => {
                    let _ = writeln!(output.text, "[-] deleted {kind} {name:?}");
                }
                Err(Failure::Refused(reason)) => refusals.push(reason),
                Err(failure) => {
                    output.failure = Some(failure);
                    return Ok(output);
                }
            }
        }
        if !refusals.is_empty() {
            output.failure = Some(Failure::Refused(refusals.join("\n       ")));
        }
        Ok(output)
    }
}

type Target = (&'static str, &'static str, String);

/// What the files name: packs first, because they use the others.
fn from_files(files: &[PathBuf]) -> Result<Vec<Target>, Failure> {
    let documents = apply::read(files, &[])?;
    if documents.config.is_some() || documents.enroll_secret.is_some() {
        return Err(Failure::Usage(
            "config and enroll_secret cannot be deleted; apply others in their place".into(),
        ));
    }
    let mut targets = Vec::new();
    for (kind, plural, specs) in [
        ("pack", "packs", documents.packs),
        ("query", "queries", documents.queries),
        ("label", "labels", documents.labels),
    ] {
        for spec in specs {
            let name = spec.get("name").and_then(Value::as_str);
            let name = name.ok_or_else(|| Failure::Usage(format!("a {kind} lacks its name")))?;
            targets.push((kind, plural, name.to_owned()));
        }
    }
    Ok(targets)
}

async fn delete_host(client: &Client, name: &str) -> Result<(), Failure> {
    let path = format!("{API}/hosts/identifier/{}", encoded(name));
    let body = client.get(&path).await?;
    let id = body.pointer("/host/id").and_then(Value::as_u64);
    let id = id.ok_or_else(|| Failure::Unavailable("the server's answer has no host id".into()))?;
    client.delete(&format!("{API}/hosts/{id}")).await?;
    Ok(())
}
