//! What `tune` says, for people and as JSON. Pure.

use std::fmt::Write as _;

use comfy_table::{Cell, Color, ColumnConstraint, Width};
use fleet_sysctl::apply::{Done, Report};
use fleet_sysctl::finding::{Finding, Verdict};
use fleet_sysctl::size::Size;
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::table::table;

/// Narrower than this, the reasons would be a word a line; they stand below each setting that needs them then.
const WHY_WIDTH: u16 = 110;
/// Narrower than this, values of three numbers would be a number a line; each setting is a paragraph then.
const TABLE_WIDTH: u16 = 72;
/// Blanks at both sides of a cell.
const PADDING: usize = 2;

/// All findings, `width` columns wide at most unless a word alone is wider.
pub(super) fn text(findings: &[Finding], width: u16, is_coloured: bool) -> String {
    if usize::from(width) < least_width(findings).max(TABLE_WIDTH.into()) {
        findings
            .iter()
            .map(|finding| paragraph(finding, usize::from(width), is_coloured))
            .collect::<Vec<_>>()
            .join("\n")
    } else {
        rows(findings, width, is_coloured)
    }
}

/// Columns below which a table would break names or numbers, which can be read and copied only whole.
fn least_width(findings: &[Finding]) -> usize {
    let names = findings.iter().map(|finding| finding.setting.key);
    let verdicts = findings.iter().map(|finding| finding.verdict.label());
    [
        longest(names.chain(["SETTING"])),
        longest_word(findings, now).max("NOW".len()),
        longest_word(findings, wanted).max("WANTED".len()),
        longest(verdicts.chain(["VERDICT"])),
    ]
    .iter()
    .map(|columns| columns + PADDING)
    .sum()
}

fn now(finding: &Finding) -> &str {
    dash(&finding.now)
}

fn wanted(finding: &Finding) -> &str {
    &finding.wanted
}

fn longest_word(findings: &[Finding], value: fn(&Finding) -> &str) -> usize {
    longest(
        findings
            .iter()
            .flat_map(|finding| value(finding).split(' ')),
    )
}

fn longest<'a>(texts: impl Iterator<Item = &'a str>) -> usize {
    texts.map(|text| text.chars().count()).max().unwrap_or(0)
}

/// One setting where there is no room for a table.
fn paragraph(finding: &Finding, width: usize, is_coloured: bool) -> String {
    let label = finding.verdict.label();
    let verdict = if is_coloured {
        format!("{}{label}{RESET}", colour(finding.verdict).1)
    } else {
        label.to_owned()
    };
    // The verdict is one short word or two, so that it needs no wrapping, which would count its colour as columns.
    format!(
        "{}\n{}{}  verdict: {verdict}\n{}",
        finding.setting.key,
        wrapped(&format!("  now: {}", dash(&finding.now)), width),
        wrapped(&format!("  wanted: {}", finding.wanted), width),
        wrapped(&format!("  why: {}", why(finding)), width)
    )
}

fn rows(findings: &[Finding], width: u16, is_coloured: bool) -> String {
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
            Cell::new(now(finding)),
            Cell::new(wanted(finding)),
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
    // Nor can a number be read whose digits stand in two lines.
    let longest = [longest_word(findings, now), longest_word(findings, wanted)];
    for (index, longest) in (1..).zip(longest) {
        let least = u16::try_from(longest + PADDING).unwrap_or(u16::MAX);
        if let Some(column) = table.column_mut(index) {
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(least)));
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
    Cell::new(verdict.label()).fg(colour(verdict).0)
}

/// As a table takes it, and as text outside of one.
fn colour(verdict: Verdict) -> (Color, &'static str) {
    match verdict {
        Verdict::Holds => (Color::Green, "\x1b[38;5;10m"),
        Verdict::Low => (Color::Red, "\x1b[38;5;9m"),
        Verdict::Pending | Verdict::Advice | Verdict::Unknown => (Color::Yellow, "\x1b[38;5;11m"),
        Verdict::Absent => (Color::DarkGrey, "\x1b[38;5;8m"),
    }
}

/// Ends a colour.
const RESET: &str = "\x1b[39m";

/// One sentence below the table.
pub(super) fn summary(findings: &[Finding], size: &Size, command: &str, width: u16) -> String {
    let count = |wanted: Verdict| {
        findings
            .iter()
            .filter(|finding| finding.verdict == wanted)
            .count()
    };
    let (holds, low) = (count(Verdict::Holds), count(Verdict::Low));
    let mut text = format!(
        "For {} hosts and {} workers: {holds} hold, {low} should change",
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
    text.push('.');
    let mut text = format!("\n{}", wrapped(&text, usize::from(width)));
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

/// Lines of at most `width` columns, the following ones indented. Blanks in front stay.
pub(super) fn wrapped(text: &str, width: usize) -> String {
    let words = text.trim_start_matches(' ');
    let mut columns = text.len() - words.len();
    let mut out = " ".repeat(columns);
    let mut is_first = true;
    for word in words.split(' ') {
        let length = word.chars().count();
        if !is_first && columns + 1 + length > width {
            out.push_str("\n ");
            columns = 1;
        }
        if !is_first {
            out.push(' ');
            columns += 1;
        }
        is_first = false;
        out.push_str(word);
        columns += length;
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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
            // `fs.file-max` of a machine with nothing set.
            Reading::Text("9223372036854775807".into()),
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
        for width in [40, 60, 72, 80, 100, 160] {
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
        for width in [40, 160] {
            assert!(super::text(&findings(), width, true).contains('\x1b'));
        }
    }

    #[test]
    fn no_number_is_broken() {
        let findings = findings();
        let digits = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
        let said: Vec<String> = findings
            .iter()
            .map(|finding| format!("{} {} {}", finding.now, finding.wanted, why(finding)))
            .collect();
        let known: BTreeSet<&str> = said
            .iter()
            .flat_map(|text| text.split_whitespace())
            .filter(|word| digits(word))
            .collect();
        for width in [40, 60, 72, 80, 110, 160] {
            let text = text(&findings, width, false);
            let shown: BTreeSet<&str> = text
                .split_whitespace()
                .filter(|word| digits(word))
                .collect();
            // Parts of a broken number would be numbers that nobody said. What holds has no reason below a table.
            let strange: Vec<&&str> = shown.difference(&known).collect();
            assert!(strange.is_empty(), "{width}: {strange:?} in:\n{text}");
            for finding in &findings {
                for value in [&finding.now, &finding.wanted] {
                    let mut words = value.split_whitespace().filter(|word| digits(word));
                    assert!(
                        words.all(|word| shown.contains(word)),
                        "{width}: {value:?} not in:\n{text}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_sentence_fits() {
        for width in [40, 60, 72, 80] {
            let text = summary(&findings(), &SIZE, "tune", width);
            for line in text.lines() {
                assert!(line.chars().count() <= usize::from(width), "{line:?}");
            }
        }
    }

    #[test]
    fn a_narrow_terminal_gets_a_paragraph_for_each_setting() {
        let findings = findings();
        for width in [40, 60, 71] {
            let text = text(&findings, width, false);
            let paragraphs: Vec<&str> = text.split("\n\n").collect();
            assert_eq!(paragraphs.len(), findings.len(), "{text}");
            for (paragraph, finding) in paragraphs.iter().zip(&findings) {
                let words: Vec<&str> = paragraph.split_whitespace().collect();
                let values = format!(
                    "{} now: {} wanted: {} verdict: {} why: {}",
                    finding.setting.key,
                    dash(&finding.now),
                    finding.wanted,
                    finding.verdict.label(),
                    why(finding)
                );
                let wanted: Vec<&str> = values.split_whitespace().collect();
                assert_eq!(words, wanted, "{paragraph}");
                assert!(paragraph.contains("\n  wanted: "), "{paragraph}");
            }
        }
        let is_table = |findings: &[Finding], width| {
            let text = text(findings, width, false);
            text.trim_start().starts_with("SETTING")
        };
        assert!(is_table(&findings, 80));
        // A longer number needs more than names and shorter ones do.
        assert!(!is_table(&findings, 72));
        let (short, _) = findings.split_at(4);
        assert!(is_table(short, 72) && !is_table(short, 71));
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
        assert_eq!(wrapped("  a: b c", 6), "  a: b\n  c\n");
        assert_eq!(wrapped("", 8), "\n");
    }
}
