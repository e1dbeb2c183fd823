//! What `tune` says, for people and as JSON. Pure.

use std::fmt::Write as _;

use comfy_table::{Cell, Color, ColumnConstraint};
use fleet_sysctl::apply::{Done, Report};
use fleet_sysctl::finding::{Finding, Verdict};
use fleet_sysctl::size::Size;
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::table::table;

/// Narrower than this, the reasons would be a word a line; they stand below each setting that needs them then.
const WHY_WIDTH: u16 = 110;

/// The table, `width` columns wide at most.
pub(super) fn text(findings: &[Finding], width: u16, is_coloured: bool) -> String {
    let mut table = table(width, is_coloured);
    let is_wide = width >= WHY_WIDTH;
    let mut header = vec!["SETTING", "NOW", "WANTED", "VERDICT"];
    if is_wide {
        header.push("WHY");
    }
    table.set_header(header);
    for finding in findings {
        let mut row = vec![
            Cell::new(finding.setting.key),
            Cell::new(dash(&finding.now)),
            Cell::new(&finding.wanted),
            verdict(finding.verdict),
        ];
        if is_wide {
            row.push(Cell::new(why(finding)));
        }
        table.add_row(row);
    }
    // A name that is broken cannot be copied.
    for index in [0, 3] {
        if let Some(column) = table.column_mut(index) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    let mut out = format!("{}\n", table.trim_fmt());
    if !is_wide {
        out.push('\n');
        for finding in findings.iter().filter(|finding| is_told(finding)) {
            let text = format!("{}: {}", finding.setting.key, why(finding));
            out += &wrapped(&text, usize::from(width));
        }
    }
    out
}

/// Those of which a narrow table says why.
fn is_told(finding: &Finding) -> bool {
    !matches!(finding.verdict, Verdict::Holds | Verdict::Absent)
}

fn why(finding: &Finding) -> String {
    match finding.note.as_str() {
        "" => finding.setting.why.to_owned(),
        note if finding.verdict == Verdict::Low => format!("{} ({note})", finding.setting.why),
        note => note.to_owned(),
    }
}

fn verdict(verdict: Verdict) -> Cell {
    let cell = Cell::new(verdict.label());
    match verdict {
        Verdict::Holds => cell.fg(Color::Green),
        Verdict::Low => cell.fg(Color::Red),
        Verdict::Pending | Verdict::Advice | Verdict::Unknown => cell.fg(Color::Yellow),
        Verdict::Absent => cell.fg(Color::DarkGrey),
    }
}

/// One sentence below the table.
pub(super) fn summary(findings: &[Finding], size: &Size, command: &str) -> String {
    let count = |wanted: Verdict| {
        findings
            .iter()
            .filter(|finding| finding.verdict == wanted)
            .count()
    };
    let (holds, low) = (count(Verdict::Holds), count(Verdict::Low));
    let mut text = format!(
        "\nFor {} hosts and {} workers: {holds} hold, {low} should change",
        size.hosts, size.cores
    );
    for (verdict, words) in [
        (Verdict::Pending, "wait for the next login"),
        (Verdict::Absent, "are not here"),
        (Verdict::Unknown, "cannot be told"),
        (Verdict::Advice, "are only advice"),
    ] {
        if count(verdict) > 0 {
            let _ = write!(text, ", {} {words}", count(verdict));
        }
    }
    text.push_str(".\n");
    if low > 0 {
        let _ = writeln!(
            text,
            "Change them:   {command} --apply\nOne by one:    {command} --walk"
        );
    }
    text
}

/// What was done, a line for each change.
pub(super) fn report(report: &Report) -> String {
    let mut out = String::new();
    for change in &report.changes {
        let text = format!("{}: {} -> {}", change.key, dash(&change.from), change.to);
        let _ = match &change.done {
            Done::Changed => writeln!(out, "{text}"),
            Done::Kept(when) => writeln!(out, "{text} ({when})"),
            Done::Would => writeln!(out, "{text} (would be changed)"),
            Done::Failed(reason) => writeln!(out, "{text} not changed: {reason}"),
        };
    }
    for file in &report.files {
        let verb = if file.is_removed {
            "removed"
        } else {
            "written"
        };
        let _ = match &file.done {
            Done::Changed | Done::Kept(_) => writeln!(out, "{verb}: {}", file.path),
            Done::Would => writeln!(out, "would be {verb}: {}", file.path),
            Done::Failed(reason) => writeln!(out, "not {verb}: {}: {reason}", file.path),
        };
    }
    out
}

pub(super) fn json(findings: &[Finding], size: &Size) -> Result<String, Failure> {
    let settings: Vec<Value> = findings
        .iter()
        .map(|finding| {
            let setting = finding.setting;
            json!({
                "key": setting.key,
                "where": setting.place_name(),
                "now": (!finding.now.is_empty()).then_some(&finding.now),
                "wanted": finding.wanted,
                "would_be": finding.target,
                "verdict": finding.verdict,
                "note": finding.note,
                "since": setting.since.map(|kernel| kernel.to_string()),
                "why": setting.why,
                "cost": setting.cost,
                "source": setting.source,
            })
        })
        .collect();
    pretty(&json!({
        "holds": findings.iter().all(|finding| finding.verdict.is_good()),
        "hosts": size.hosts,
        "workers": size.cores,
        "memory_bytes": size.memory_bytes,
        "connections": size.connections,
        "listeners": size.listeners,
        "settings": settings,
    }))
}

pub(super) fn report_json(report: &Report) -> Result<String, Failure> {
    pretty(&json!({
        "changes": report.changes,
        "files": report.files,
        "failed": report.has_failed(),
    }))
}

fn pretty(value: &Value) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|error| Failure::fatal(error.to_string()))
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// Lines of at most `width` columns, the following ones indented.
pub(super) fn wrapped(text: &str, width: usize) -> String {
    let mut out = String::new();
    let mut columns = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if columns > 0 && columns + 1 + length > width {
            out.push_str("\n ");
            columns = 1;
        }
        if columns > 0 {
            out.push(' ');
            columns += 1;
        }
        out.push_str(word);
        columns += length;
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use fleet_sysctl::apply::{Change, FileChange};
    use fleet_sysctl::finding::Reading;
    use fleet_sysctl::settings::SETTINGS;

    use super::*;

    const SIZE: Size = Size {
        hosts: 300_000,
        cores: 16,
        memory_bytes: 64 << 30,
        page_bytes: 4096,
        connections: 300_000,
        listeners: 16,
    };

    fn findings() -> Vec<Finding> {
        let readings = [
            Reading::Text("1".into()),
            Reading::Absent("the module nf_conntrack is not loaded".into()),
            Reading::Unreadable("Permission denied".into()),
            Reading::Text("123456789 123456789 1234567890".into()),
        ];
        let cycle = readings.iter().cycle();
        SETTINGS
            .iter()
            .zip(cycle)
            .map(|(setting, reading)| Finding::judge(setting, &SIZE, reading.clone()))
            .collect()
    }

    #[test]
    fn it_fits_and_names_every_setting() {
        for width in [80, 100, 160] {
            let text = text(&findings(), width, false);
            for line in text.lines() {
                assert!(line.chars().count() <= usize::from(width), "{line:?}");
            }
            for setting in SETTINGS {
                assert!(
                    text.contains(setting.key),
                    "{} not in:\n{text}",
                    setting.key
                );
            }
            assert!(!text.contains('\x1b'));
        }
        assert!(super::text(&findings(), 160, true).contains('\x1b'));
    }

    #[test]
    fn what_was_done_is_said_from_old_to_new() {
        let change = |key: &str, done| Change {
            key: key.into(),
            from: "128".into(),
            to: "4096".into(),
            done,
        };
        let file = FileChange {
            path: "/etc/x".into(),
            is_removed: true,
            done: Done::Changed,
        };
        let text = report(&Report {
            changes: vec![
                change("a", Done::Changed),
                change("b", Done::Failed("read-only here".into())),
                change("c", Done::Kept("from tomorrow".into())),
            ],
            files: vec![file],
        });
        assert_eq!(
            text,
            "a: 128 -> 4096\nb: 128 -> 4096 not changed: read-only here\nc: 128 -> 4096 (from tomorrow)\nremoved: /etc/x\n"
        );
    }

    #[test]
    fn long_lines_are_broken_between_words() {
        assert_eq!(wrapped("one two three", 8), "one two\n  three\n");
        assert_eq!(wrapped("", 8), "\n");
    }
}
