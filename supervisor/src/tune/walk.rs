//! `tune --walk`: each setting that should change, with what it is for and what it costs, and a question.

use std::io::{BufRead, Write};

use fleet_sysctl::apply::Report;
use fleet_sysctl::finding::{Finding, Verdict};

use super::table;
use crate::exit::Failure;

/// Columns of the texts.
const WIDTH: usize = 80;
/// Longest answer that is read, bytes.
const ANSWER_BYTES_MAX: u64 = 64;

/// Asks about each of `findings` that should change, and gives it to `apply` at once when the answer is yes.
pub(super) fn walk(
    findings: &[Finding],
    input: &mut impl BufRead,
    output: &mut impl Write,
    mut apply: impl FnMut(&[Finding]) -> Result<Report, Failure>,
) -> Result<Report, Failure> {
    let todo: Vec<&Finding> = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Low)
        .collect();
    let mut total = Report::default();
    if todo.is_empty() {
        say(output, "Nothing to do: all of it is as it should be.\n");
    }
    for (index, finding) in todo.iter().enumerate() {
        say(output, &question(finding, index + 1, todo.len()));
        let chosen: Vec<Finding> = match answer(input, output) {
            Answer::Apply => vec![(*finding).clone()],
            Answer::ApplyAll => todo
                .iter()
                .skip(index)
                .map(|finding| (*finding).clone())
                .collect(),
            Answer::Skip => continue,
            Answer::Quit => break,
        };
        let report = apply(&chosen)?;
        say(output, &table::report(&report));
        total.changes.extend(report.changes);
        total.files.extend(report.files);
        if chosen.len() > 1 {
            break;
        }
    }
    Ok(total)
}

enum Answer {
    Apply,
    Skip,
    ApplyAll,
    Quit,
}

/// Asks until it is understood; the end of the input quits.
fn answer(input: &mut impl BufRead, output: &mut impl Write) -> Answer {
    loop {
        say(output, "[a]pply, [s]kip, apply [A]ll that follow, [q]uit? ");
        let mut line = String::new();
        let read = std::io::Read::take(&mut *input, ANSWER_BYTES_MAX).read_line(&mut line);
        if !matches!(read, Ok(bytes) if bytes > 0) {
            return Answer::Quit;
        }
        match line.trim() {
            "a" | "apply" => return Answer::Apply,
            "s" | "skip" => return Answer::Skip,
            "A" | "all" => return Answer::ApplyAll,
            "q" | "quit" => return Answer::Quit,
            _ => say(output, "Please answer a, s, A or q.\n"),
        }
    }
}

fn say(output: &mut impl Write, text: &str) {
    // A terminal that has gone shows itself when it is read.
    let _ = output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush());
}

fn question(finding: &Finding, number: usize, count: usize) -> String {
    let setting = finding.setting;
    let now = if finding.now.is_empty() {
        "-"
    } else {
        &finding.now
    };
    let mut text = format!(
        "\n({number}/{count}) {} ({})\n",
        setting.key,
        setting.place_name()
    );
    text += &table::wrapped(&format!("  why:    {}", setting.why), WIDTH);
    text += &table::wrapped(&format!("  cost:   {}", setting.cost), WIDTH);
    text += &format!("  now:    {now}\n  wanted: {}\n", finding.target);
    if !finding.note.is_empty() {
        text += &table::wrapped(&format!("  note:   {}", finding.note), WIDTH);
    }
    text
}

#[cfg(test)]
mod tests {
    use fleet_sysctl::apply::{Change, Done};
    use fleet_sysctl::finding::Reading;
    use fleet_sysctl::settings;
    use fleet_sysctl::size::Size;

    use super::*;

    fn findings() -> Vec<Finding> {
        let size = Size {
            hosts: 1000,
            cores: 1,
            memory_bytes: 1 << 30,
            page_bytes: 4096,
            connections: 1000,
            listeners: 1,
        };
        let judge = |key: &str, now: &str| {
            Finding::judge(
                settings::find(key).unwrap(),
                &size,
                Reading::Text(now.into()),
            )
        };
        vec![
            judge(settings::SOMAXCONN, "1"),
            judge("net.ipv4.tcp_syncookies", "1"),
            judge("net.ipv4.tcp_tw_reuse", "2"),
            judge("net.ipv4.tcp_migrate_req", "0"),
        ]
    }

    /// The keys that were applied in each call, and what was shown.
    fn walked(answers: &str) -> (Vec<Vec<&'static str>>, String) {
        let (mut calls, mut shown) = (Vec::new(), Vec::new());
        walk(&findings(), &mut answers.as_bytes(), &mut shown, |chosen| {
            calls.push(chosen.iter().map(|finding| finding.setting.key).collect());
            let changes = chosen.iter().map(|finding| Change {
                key: finding.setting.key.into(),
                from: finding.now.clone(),
                to: finding.target.clone(),
                done: Done::Changed,
            });
            Ok(Report {
                changes: changes.collect(),
                files: Vec::new(),
            })
        })
        .unwrap();
        (calls, String::from_utf8(shown).unwrap())
    }

    #[test]
    fn each_answer_does_what_it_says() {
        let (calls, shown) = walked("a\ns\nx\na\n");
        assert_eq!(
            calls,
            [["net.core.somaxconn"], ["net.ipv4.tcp_migrate_req"]]
        );
        for part in [
            "(1/3) net.core.somaxconn",
            "why:",
            "cost:",
            "now:    2",
            "wanted: 4096",
            "Please answer",
        ] {
            assert!(shown.contains(part), "{part} not in:\n{shown}");
        }
        assert!(!shown.contains("tcp_syncookies ("), "it holds:\n{shown}");
        assert!(shown.contains("net.core.somaxconn: 1 -> 4096"), "{shown}");
        assert_eq!(
            walked("s\nA\n").0,
            [["net.ipv4.tcp_tw_reuse", "net.ipv4.tcp_migrate_req"]]
        );
        assert_eq!(walked("q\na\n").0, [[""; 0]; 0]);
        // Nobody there any more.
        assert_eq!(walked("").0, [[""; 0]; 0]);
    }
}
