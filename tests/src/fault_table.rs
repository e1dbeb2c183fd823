//! Rows of the table of faults: kept as JSON lines while tests run, rendered as Markdown afterwards.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Where rows go, when it is set.
pub const DIRECTORY: &str = "FAULTS_DIR";
const FILE: &str = "rows.jsonl";

/// What one run with a fault came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub fault: String,
    /// Connections that nobody took.
    pub refused: u64,
    /// Connections that ended before their handshake.
    pub cut: u64,
    /// Lines that were acknowledged and are gone.
    pub lost: usize,
    /// Lines that stand in the journal twice.
    pub duplicates: usize,
    pub acknowledged: usize,
    pub exchanges: usize,
    /// Exchanges that failed; agents make them again.
    pub failed: usize,
    /// From the fault to the end of the last exchange that it disturbed.
    pub until_served_ms: Option<u64>,
}

impl Row {
    /// Prints it, and appends it to the file of the directory that the environment names.
    pub fn publish(&self) {
        println!("{}", line(self));
        let Some(directory) = std::env::var_os(DIRECTORY) else {
            return;
        };
        let directory = Path::new(&directory);
        std::fs::create_dir_all(directory).unwrap();
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(directory.join(FILE))
            .unwrap();
        // One write: tests of several processes append to the same file.
        let text = serde_json::to_string(self).unwrap() + "\n";
        file.write_all(text.as_bytes()).unwrap();
    }
}

/// The table of a directory's rows: by fault, the worst figure of all its runs.
pub fn render(directory: &Path) -> std::io::Result<String> {
    let text = std::fs::read_to_string(directory.join(FILE))?;
    let rows = text.lines().map(serde_json::from_str::<Row>);
    Ok(table(rows.collect::<Result<Vec<_>, _>>()?))
}

fn table(rows: Vec<Row>) -> String {
    let mut worst: BTreeMap<String, (usize, Row)> = BTreeMap::new();
    for row in rows {
        let (runs, kept) = worst
            .entry(row.fault.clone())
            .or_insert_with(|| (0, row.clone()));
        *runs += 1;
        kept.refused = kept.refused.max(row.refused);
        kept.cut = kept.cut.max(row.cut);
        kept.lost = kept.lost.max(row.lost);
        kept.duplicates = kept.duplicates.max(row.duplicates);
        kept.failed = kept.failed.max(row.failed);
        kept.until_served_ms = kept
            .until_served_ms
            .zip(row.until_served_ms)
            .map(|(one, other)| one.max(other));
    }
    let mut text = String::from(
        "| fault | refused | cut | lines lost | stored twice | failed of exchanges | served again after |\n\
         |---|---:|---:|---:|---:|---:|---:|\n",
    );
    for (_, row) in worst.values() {
        let _ = writeln!(text, "{}", line(row));
    }
    text
}

fn line(row: &Row) -> String {
    let until = match row.until_served_ms {
        None => "never".into(),
        Some(0) => "at once".into(),
        Some(ms) => format!("{}.{:02} s", ms / 1000, ms % 1000 / 10),
    };
    format!(
        "| {} | {} | {} | {} | {} | {} of {} | {until} |",
        row.fault, row.refused, row.cut, row.lost, row.duplicates, row.failed, row.exchanges
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_the_worst_run() {
        let row = Row {
            fault: "worker: kill".into(),
            refused: 0,
            cut: 1,
            lost: 0,
            duplicates: 0,
            acknowledged: 10,
            exchanges: 100,
            failed: 3,
            until_served_ms: Some(1234),
        };
        let better = Row {
            cut: 0,
            until_served_ms: Some(0),
            ..row.clone()
        };
        let text = table(vec![better.clone(), row.clone(), better.clone()]);
        assert_eq!(text.lines().count(), 3);
        assert!(text.ends_with("| worker: kill | 0 | 1 | 0 | 0 | 3 of 100 | 1.23 s |\n"));
        let never = Row {
            until_served_ms: None,
            ..better.clone()
        };
        assert!(table(vec![better, never]).ends_with("| never |\n"));
    }
}
