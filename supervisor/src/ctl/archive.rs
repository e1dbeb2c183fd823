//! `ctl debug archive`: everything that helps to find what is wrong with one server, in one file of fleetctl's layout.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

use super::client::Client;
use super::{Failure, Output};

/// What every server of Fleet's kind has, in the order in which fleetctl asks; and the file's ending.
const ITEMS: [(&str, &str, &str); 13] = [
    ("allocs", "/debug/pprof/allocs", "prof"),
    ("block", "/debug/pprof/block", "prof"),
    ("cmdline", "/debug/pprof/cmdline", "prof"),
    ("errors", "/debug/errors", "json"),
    ("goroutine", "/debug/pprof/goroutine", "prof"),
    ("heap", "/debug/pprof/heap", "prof"),
    ("mutex", "/debug/pprof/mutex", "prof"),
    ("profile", "/debug/pprof/profile", "prof"),
    ("threadcreate", "/debug/pprof/threadcreate", "prof"),
    ("trace", "/debug/pprof/trace?seconds=1", "prof"),
    ("db-locks", "/debug/db/locks", "json"),
    ("db-innodb-status", "/debug/db/innodb-status", "json"),
    ("db-process-list", "/debug/db/process-list", "json"),
];
/// What else a server of ours has.
const FURTHER: &str = "/debug/gateway";
/// Of such a list.
const FURTHER_MAX: usize = 256;
/// For an item, beside the time that a profile takes.
const ITEM_LIMIT: Duration = Duration::from_secs(120);
const SENSITIVE: &str =
    "it can hold host names, SQL and addresses: look through it before you give it to others";

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example, for one of several servers behind a balancer:\n  \
                        ctl config set --context server-a --address https://192.0.2.10:8080\n  \
                        ctl debug archive --context server-a"
)]
pub(super) struct Archive {
    /// The file to write [default: fleet-profiles-archive-TIME.tar.gz]
    #[arg(long, short = 'o', value_name = "FILE")]
    outfile: Option<PathBuf>,
    /// Seconds for which the processor is profiled [default: the server's, 30]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=300))]
    seconds: Option<u64>,
}

/// One file of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    name: String,
    path: String,
    ending: String,
}

impl Archive {
    pub(super) async fn run(self, client: &Client, now: SystemTime) -> Result<Output, Failure> {
        let name = format!("fleet-profiles-archive-{}", stamp(now));
        let path = self.outfile.clone();
        let path = path.unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
        let file = create(&path).map_err(|error| unwritable(&path, &error))?;
        let outcome = self.write(client, &name, &path, file, now).await;
        // What was there before is not ours: then there was no file to get here with.
        if outcome.is_err() {
            let _ = fs::remove_file(&path);
        }
        outcome
    }

    async fn write(
        &self,
        client: &Client,
        name: &str,
        path: &Path,
        file: File,
        now: SystemTime,
    ) -> Result<Output, Failure> {
        let failed = |error: std::io::Error| unwritable(path, &error);
        let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        let mut written = 0_u32;
        let mut reason = None;
        for item in self.items(client).await {
            let limit = ITEM_LIMIT + Duration::from_secs(self.seconds.unwrap_or_default());
            let data = match client.bytes(&item.path, limit).await {
                Ok(data) => data,
                Err(failure) => {
                    eprintln!("Failed {}: {}", item.name, failure.text());
                    if reason.is_none() || matches!(failure, Failure::Refused(_)) {
                        reason = Some(failure);
                    }
                    continue;
                }
            };
            let mut header = tar::Header::new_gnu();
            header.set_size(u64::try_from(data.len()).unwrap_or_default());
            header.set_mode(0o600);
            let since = now.duration_since(SystemTime::UNIX_EPOCH);
            header.set_mtime(since.unwrap_or_default().as_secs());
            let inside = format!("{name}/{}.{}", item.name, item.ending);
            archive
                .append_data(&mut header, inside, &data[..])
                .map_err(failed)?;
            written += 1;
        }
        if let (0, Some(reason)) = (written, reason) {
            return Err(reason);
        }
        let packed = archive.into_inner().and_then(GzEncoder::finish);
        packed.and_then(|file| file.sync_all()).map_err(failed)?;
        let mut output = Output::of(format!(
            "[+] {written} files of {} in {}\n",
            client.place(),
            path.display()
        ));
        output.remarks.push(SENSITIVE.into());
        Ok(output)
    }

    /// Fleet's, then ours.
    async fn items(&self, client: &Client) -> Vec<Item> {
        let mut items: Vec<Item> = ITEMS
            .iter()
            .map(|(name, path, ending)| Item {
                name: (*name).to_owned(),
                path: match (self.seconds, *name) {
                    (Some(seconds), "profile") => format!("{path}?seconds={seconds}"),
                    _ => (*path).to_owned(),
                },
                ending: (*ending).to_owned(),
            })
            .collect();
        match client.get(FURTHER).await {
            Ok(list) => items.extend(further(&list)),
            Err(failure) => eprintln!("Failed gateway: {}", failure.text()),
        }
        items
    }
}

/// Items of a server's list that are names of files and lead to it, and to nothing else.
fn further(list: &Value) -> Vec<Item> {
    let is_name = |text: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        (1..=64).contains(&text.len()) && text.bytes().all(is_plain) && !text.starts_with('.')
    };
    let item = |entry: &Value| {
        let text = |name: &str| entry.get(name)?.as_str().map(str::to_owned);
        let item = Item {
            name: text("name")?,
            path: text("path")?,
            ending: text("extension")?.trim_start_matches('.').to_owned(),
        };
        let is_good =
            is_name(&item.name) && is_name(&item.ending) && item.path.starts_with("/debug/");
        is_good.then_some(item)
    };
    let entries = list.as_array().into_iter().flatten();
    let is_new = |item: &Item| ITEMS.iter().all(|(name, ..)| *name != item.name);
    entries
        .filter_map(item)
        .filter(is_new)
        .take(FURTHER_MAX)
        .collect()
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Usage(format!("cannot write {}: {error}", path.display()))
}

/// Fails when there is such a file.
fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// `20260102030405Z`
fn stamp(now: SystemTime) -> String {
    let time = humantime::format_rfc3339_seconds(now).to_string();
    let digits: String = time.chars().filter(char::is_ascii_digit).collect();
    digits + "Z"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_of_a_server_stay_inside_of_the_archive() {
        let list = json!([
            {"name": "workers-0.profile", "path": "/debug/gateway/profile?worker=0", "extension": "prof"},
            {"name": "../../etc/passwd", "path": "/debug/x", "extension": "json"},
            {"name": "/etc/passwd", "path": "/debug/x", "extension": "json"},
            {"name": ".hidden", "path": "/debug/x", "extension": "json"},
            {"name": "other", "path": "/api/latest/fleet/logout", "extension": "json"},
            {"name": "other", "path": "/debug/x", "extension": "../x"},
            {"name": "heap", "path": "/debug/x", "extension": "json"},
            {"name": "slots", "path": "/debug/gateway/slots", "extension": ".json"},
            7,
        ]);
        let items = further(&list);
        let names: Vec<_> = items.iter().map(|item| item.name.as_str()).collect();
        assert_eq!(names, ["workers-0.profile", "slots"]);
        assert_eq!(items[1].ending, "json");
        assert_eq!(further(&json!({"a": 1})), Vec::new());
    }

    #[test]
    fn the_time_is_in_the_name() {
        let now = humantime::parse_rfc3339("2026-01-02T03:04:05.678Z").unwrap();
        assert_eq!(stamp(now), "20260102030405Z");
    }
}
