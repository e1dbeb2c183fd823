//! `ctl config`: the file of contexts.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::contexts::{Contexts, MEMBERS, header};
use super::door::Endpoint;
use super::{Failure, Output, World, context_file};

/// Standard input in place of a token.
const STDIN: &str = "-";
const SKIPS: &str =
    "with tls-skip-verify anybody between here and the server can read the token; prefer --rootca";
const SIGNED_OUT: &str = "the token was for the address before and is forgotten; run `ctl login`";
const EXPOSED: &str =
    "a token on the command line can be seen by other users of this machine; use --token -";

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Config {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Set what is given of a context, and make the context if it is new.
    #[command(after_help = "Examples:\n  \
        ctl config set --address https://fleet.example.com:8080 --rootca /etc/fleet/ca.pem\n  \
        ctl config set --context server-a --address https://192.0.2.10:8080 --tls-skip-verify")]
    Set(Set),
    /// Print one value of a context.
    Get {
        /// Which: address, email, token, tls-skip-verify, rootca, url-prefix or custom-headers.
        #[arg(value_parser = MEMBERS)]
        key: String,
    },
    /// Show all contexts, without tokens.
    List,
}

#[derive(clap::Args)]
#[group(required = true, multiple = true)]
struct Set {
    /// The server, such as https://fleet.example.com:8080.
    #[arg(long, value_name = "URL")]
    address: Option<String>,
    /// Who signs in.
    #[arg(long)]
    email: Option<String>,
    /// Token of an API-only user, or - to read it from standard input, where others cannot see it.
    #[arg(long)]
    token: Option<String>,
    /// File of certificates to trust in place of the system's; empty for the system's.
    #[arg(long, value_name = "FILE")]
    rootca: Option<String>,
    /// Believe whoever answers; only for tests.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    tls_skip_verify: Option<bool>,
    /// In front of every path, where a proxy serves the API below one.
    #[arg(long, value_name = "PATH")]
    url_prefix: Option<String>,
    /// NAME:VALUE to send with every request; may be repeated, and replaces all that were set.
    #[arg(long = "custom-header", value_name = "NAME:VALUE")]
    custom_headers: Vec<String>,
}

impl Config {
    pub(super) fn run(self, world: &World<'_>) -> Result<Output, Failure> {
        let mut contexts = context_file::load(&world.contexts)?;
        let name = world.context_name();
        match self.what {
            What::Get { key } => {
                let unknown = || world.unknown_context(&contexts);
                contexts.get(name).ok_or_else(unknown)?;
                let value = contexts.value(name, &key).unwrap_or_default();
                Ok(Output::of(format!("  {name}.{key} => {value}\n")))
            }
            What::Set(set) => {
                let mut remarks = set.remarks();
                let mut members = set.members()?;
                let before = contexts.get(name).unwrap_or_default();
                let address = members.get("address").and_then(Value::as_str);
                let has_moved = address.is_some_and(|address| address != before.address);
                if has_moved && !before.token.is_empty() && !members.contains_key("token") {
                    members.insert("token".into(), "".into());
                    remarks.push(SIGNED_OUT.into());
                }
                let names: Vec<_> = members.keys().cloned().collect();
                for (member, value) in members {
                    contexts.set(name, &member, value);
                }
                let context = contexts.get(name).unwrap_or_default();
                if !context.address.is_empty() {
                    Endpoint::of(&context)
                        .map_err(|reason| Failure::Usage(format!("context {name:?} {reason}")))?;
                }
                context_file::save(&world.contexts, &contexts)?;
                let text = format!(
                    "[+] set {} of context {name:?} in {}\n",
                    names.join(", "),
                    world.contexts.display()
                );
                Ok(Output {
                    remarks,
                    ..Output::of(text)
                })
            }
            What::List => Ok(Output::of(list(&contexts))),
        }
    }
}

impl std::fmt::Debug for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Set")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Set {
    fn members(self) -> Result<Map<String, Value>, Failure> {
        let mut members = Map::new();
        let texts = [
            ("address", self.address),
            ("email", self.email),
            ("token", self.token.map(token).transpose()?),
            ("url-prefix", self.url_prefix),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                members.insert(name.to_owned(), text.trim().into());
            }
        }
        if let Some(path) = self.rootca {
            members.insert("rootca".into(), certificates(PathBuf::from(path))?.into());
        }
        if let Some(skip) = self.tls_skip_verify {
            members.insert("tls-skip-verify".into(), skip.into());
        }
        if !self.custom_headers.is_empty() {
            let headers: Result<Map<String, Value>, String> = self
                .custom_headers
                .iter()
                .map(|text| header(text).map(|(name, value)| (name, Value::from(value))))
                .collect();
            let headers =
                headers.map_err(|reason| Failure::Usage(format!("--custom-header {reason}")))?;
            members.insert("custom-headers".into(), headers.into());
        }
        Ok(members)
    }

    fn remarks(&self) -> Vec<String> {
        let is_exposed = self.token.as_deref().is_some_and(|token| token != STDIN);
        [
            (self.tls_skip_verify == Some(true), SKIPS),
            (is_exposed, EXPOSED),
        ]
        .into_iter()
        .filter(|(holds, _)| *holds)
        .map(|(_, remark)| remark.to_owned())
        .collect()
    }
}

fn token(given: String) -> Result<String, Failure> {
    if given != STDIN {
        return Ok(given);
    }
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(|error| Failure::Usage(format!("cannot read the token: {error}")))?;
    Ok(line)
}

/// The whole path of a file that can be read, because commands run in other directories.
fn certificates(path: PathBuf) -> Result<String, Failure> {
    if path.as_os_str().is_empty() {
        return Ok(String::new());
    }
    let shown = path.display().to_string();
    super::trust::config(super::trust::Trust::File(&path)).map_err(Failure::Usage)?;
    let path = path
        .canonicalize()
        .map_err(|error| Failure::Usage(format!("{shown}: {error}")))?;
    path.into_os_string()
        .into_string()
        .map_err(|_| Failure::Usage(format!("{shown}: the path is no UTF-8")))
}

fn list(contexts: &Contexts) -> String {
    let mut text = String::new();
    for name in contexts.names() {
        let Some(context) = contexts.get(&name) else {
            continue;
        };
        let session = match (context.token.is_empty(), context.email.as_str()) {
            (true, _) => "signed out".to_owned(),
            (false, "") => "with a token".to_owned(),
            (false, email) => format!("as {email}"),
        };
        let _ = writeln!(text, "{name}  {}  {session}", context.address);
    }
    if text.is_empty() {
        text.push_str("no contexts\n");
    }
    text
}
