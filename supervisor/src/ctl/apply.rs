//! `ctl apply`

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::client::Client;
use super::document::Documents;
use super::{API, Failure, Output, diff, pack_file};

/// Standard input in place of a file.
const STDIN: &str = "-";
/// The label that every host is in.
pub(super) const ALL_HOSTS: &str = "All Hosts";

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Apply {
    /// File to apply, or - for standard input; may be repeated. All files are checked before anything is changed.
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Show what would change, as a diff, and change nothing.
    #[arg(long, visible_alias = "dry_run")]
    dry_run: bool,
    /// Label whose hosts get the packs of osquery pack files (*.conf); may be repeated.
    #[arg(long = "label", value_name = "NAME", default_value = ALL_HOSTS)]
    labels: Vec<String>,
}

impl Apply {
    pub(super) async fn run(self, client: &Client, has_colour: bool) -> Result<Output, Failure> {
        let documents = read(&self.files, &self.labels)?;
        if documents.is_empty() {
            return Err(Failure::Usage("the files hold no documents".into()));
        }
        let body =
            serde_json::to_value(&documents).map_err(|error| Failure::Usage(error.to_string()))?;
        let path = format!("{API}/spec?dry_run={}", self.dry_run);
        let outcome = client.post(&path, &body).await?;
        let list = |name: &str| {
            let items = outcome.get(name).and_then(Value::as_array);
            items.cloned().unwrap_or_default()
        };
        let changes = list("changes");
        let text = if self.dry_run {
            diff::render(&changes, has_colour).unwrap_or_else(|| "no changes\n".into())
        } else {
            summary(&changes)
        };
        let warnings = list("warnings").into_iter();
        Ok(Output {
            text,
            remarks: warnings
                .filter_map(|warning| warning.as_str().map(str::to_owned))
                .collect(),
            failure: None,
        })
    }
}

/// All files together.
pub(super) fn read(files: &[PathBuf], labels: &[String]) -> Result<Documents, Failure> {
    let mut documents = Documents::default();
    for file in files {
        let source = match file.display().to_string() {
            name if name == STDIN => "standard input".to_owned(),
            name => name,
        };
        let text = text_of(file).map_err(|error| Failure::Usage(format!("{source}: {error}")))?;
        if file.extension().is_some_and(|ending| ending == "conf") {
            let name = file.file_stem().unwrap_or_default().to_string_lossy();
            let packs = pack_file::read(&name, &text, labels)
                .map_err(|reason| Failure::Usage(format!("{source}: {reason}")))?;
            documents.packs.extend(packs);
        } else {
            documents.add(&source, &text)?;
        }
    }
    Ok(documents)
}

/// Files of osquery packs alone, whatever their names end in.
pub(super) fn packs(files: &[PathBuf], labels: &[String]) -> Result<Vec<Value>, Failure> {
    let mut packs = Vec::new();
    for file in files {
        let source = file.display();
        let failed = |reason: String| Failure::Usage(format!("{source}: {reason}"));
        let text = text_of(file).map_err(|error| failed(error.to_string()))?;
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        packs.extend(pack_file::read(&name, &text, labels).map_err(failed)?);
    }
    Ok(packs)
}

fn text_of(file: &Path) -> std::io::Result<String> {
    if file.as_os_str() != STDIN {
        return std::fs::read_to_string(file);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

/// One line a kind, as fleetctl prints them.
fn summary(changes: &[Value]) -> String {
    let mut text = String::new();
    for (kind, one, many) in [
        ("query", "query", "queries"),
        ("label", "label", "labels"),
        ("pack", "pack", "packs"),
        ("config", "config", "configs"),
        ("enroll_secret", "enroll secrets", "enroll secrets"),
    ] {
        let of_kind: Vec<_> = changes
            .iter()
            .filter(|change| change.get("kind").and_then(Value::as_str) == Some(kind))
            .collect();
        let same = of_kind
            .iter()
            .filter(|change| change.get("action").and_then(Value::as_str) == Some("none"))
            .count();
        let count = match (of_kind.len(), kind) {
            (0, _) => continue,
            (_, "config" | "enroll_secret") => one.to_owned(),
            (1, _) => format!("1 {one}"),
            (count, _) => format!("{count} {many}"),
        };
        let remark = match (same, of_kind.len()) {
            (0, _) => String::new(),
            (same, all) if same == all => " (unchanged)".into(),
            (same, _) => format!(" ({same} unchanged)"),
        };
        let _ = writeln!(text, "[+] applied {count}{remark}");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_summary_counts() {
        let change = |kind: &str, action: &str| json!({"kind": kind, "action": action});
        let changes = [
            change("query", "create"),
            change("query", "none"),
            change("query", "replace"),
            change("pack", "none"),
            change("config", "replace"),
            change("enroll_secret", "none"),
        ];
        assert_eq!(
            summary(&changes),
            "[+] applied 3 queries (1 unchanged)\n[+] applied 1 pack (unchanged)\n\
             [+] applied config\n[+] applied enroll secrets (unchanged)\n"
        );
    }

    #[test]
    fn conf_files_are_packs() {
        let directory = tempfile::tempdir().unwrap();
        let pack = directory.path().join("incident-response.conf");
        std::fs::write(&pack, r#"{"queries": {"a": {"query": "SELECT 1"}}}"#).unwrap();
        let document = directory.path().join("q.yml");
        std::fs::write(&document, "kind: query\nspec: {name: q, query: SELECT 1}\n").unwrap();
        let documents = read(&[pack, document], &["L".into()]).unwrap();
        assert_eq!(documents.packs[0]["name"], "incident-response");
        assert_eq!(documents.packs[0]["targets"]["labels"], json!(["L"]));
        assert_eq!(documents.queries.len(), 1);
        let missing = directory.path().join("none.yml");
        assert_eq!(read(&[missing], &[]).unwrap_err().code(), 64);
    }
}
