//! Tables and ages for people. Pure, but for the width of the terminal.

use std::time::{Duration, SystemTime};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;

/// What the server writes for "never".
const NEVER: &str = "2000-01-01T00:00:00Z";

/// How a column behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    /// Texts, never cut.
    Text(&'static str),
    /// Numbers, to the right.
    Number(&'static str),
    /// Texts that are cut to what the terminal leaves; in a pipe they stay whole.
    Elastic(&'static str),
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Self::Text(title) | Self::Number(title) | Self::Elastic(title) => title,
        }
    }
}

/// Spaces between two columns.
pub(super) const GAP: usize = 2;
/// An elastic column is not made smaller.
const ELASTIC_CHARS_MIN: usize = 8;

/// A table without lines, one line a row, as wide as the terminal at most.
pub(super) fn render(columns: &[Column], rows: Vec<Vec<String>>) -> String {
    let terminal = Table::new().width().map(usize::from);
    render_within(columns, rows, terminal)
}

fn render_within(columns: &[Column], rows: Vec<Vec<String>>, terminal: Option<usize>) -> String {
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|cells| cells.iter().map(|cell| one_line(cell)).collect())
        .collect();
    let widths = terminal.map(|chars| widths(columns, &rows, chars));
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(columns.iter().map(|column| column.title()));
    for cells in rows {
        table.add_row(cells.into_iter().enumerate().map(|(index, cell)| {
            let width = widths.as_ref().and_then(|widths| widths.get(index));
            cut(cell, width.copied().unwrap_or(usize::MAX))
        }));
    }
    let gap = u16::try_from(GAP).unwrap_or_default();
    for (column, kind) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, gap));
        if matches!(kind, Column::Number(_)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

/// Widths of the columns: as wide as their texts, and where that is too much, the widest elastic ones are cut first.
pub(super) fn widths(columns: &[Column], rows: &[Vec<String>], chars: usize) -> Vec<usize> {
    let natural = |(index, column): (usize, &Column)| {
        let cells = rows.iter().filter_map(|cells| cells.get(index));
        let texts = cells.map(|cell| cell.chars().count());
        texts.max().unwrap_or_default().max(column.title().len())
    };
    let mut widths: Vec<usize> = columns.iter().enumerate().map(natural).collect();
    let gaps = GAP * columns.len().saturating_sub(1);
    let mut excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(chars);
    while excess > 0 {
        let elastic = widths.iter_mut().zip(columns);
        let elastic = elastic.filter(|(_, column)| matches!(column, Column::Elastic(_)));
        match elastic.map(|(width, _)| width).max() {
            Some(widest) if *widest > ELASTIC_CHARS_MIN => *widest -= 1,
            _ => break,
        }
        excess -= 1;
    }
    widths
}

/// White space of any kind becomes one space, and what would steer the terminal is shown as unreadable: hosts choose
/// these texts.
pub(super) fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace(char::is_control, "\u{fffd}")
}

pub(super) fn cut(text: String, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text;
    }
    let kept: String = text.chars().take(chars_max.saturating_sub(1)).collect();
    kept.trim_end().to_owned() + "…"
}

/// `12 s`, `5 min`, `3 h`, `2 d`.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// How long ago a time of the server is; `never`.
pub(super) fn age(time: Option<&Value>, now: SystemTime) -> String {
    let Some(text) = time.and_then(Value::as_str) else {
        return String::new();
    };
    if text == NEVER {
        return "never".into();
    }
    match humantime::parse_rfc3339(text) {
        Ok(time) => {
            let elapsed = now.duration_since(time).unwrap_or(Duration::ZERO);
            format!("{} ago", span(elapsed.as_secs()))
        }
        Err(_) => text.to_owned(),
    }
}

/// Bytes as people read them.
pub(super) fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut whole = count;
    let mut rest = 0;
    let mut unit = "B";
    for next in units {
        if whole < 1024 {
            break;
        }
        rest = whole % 1024;
        whole /= 1024;
        unit = next;
    }
    if unit == "B" {
        return format!("{whole} B");
    }
    format!("{whole}.{} {unit}", rest * 10 / 1024)
}

/// A member of an object as a text; numbers too.
pub(super) fn text(value: &Value, name: &str) -> String {
    match value.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_fit_the_terminal() {
        let columns = [
            Column::Elastic("NAME"),
            Column::Number("N"),
            Column::Elastic("SQL"),
        ];
        let row = |name: &str, n: &str, sql: &str| [name, n, sql].map(str::to_owned).to_vec();
        let rows = vec![
            row("a", "5", "SELECT\n  x,\ty FROM something WHERE name = 'ö'"),
            row("processes", "3600", "SELECT 1"),
        ];
        assert_eq!(
            render_within(&columns, rows.clone(), Some(40)),
            "NAME          N  SQL\n\
             a             5  SELECT x, y FROM somet…\n\
             processes  3600  SELECT 1\n"
        );
        let whole = render_within(&columns, rows.clone(), None);
        assert!(whole.contains("name = 'ö'"), "{whole}");
        for chars in 0..80 {
            let text = render_within(&columns, rows.clone(), Some(chars));
            assert_eq!(text.lines().count(), 3, "{text}");
            let longest = text.lines().map(|line| line.chars().count()).max();
            assert!(longest <= Some(chars.max(24)), "{chars}: {text}");
        }
    }

    #[test]
    fn nothing_steers_the_terminal() {
        let rows = vec![vec!["a\u{1b}[2J\u{9b}b\u{7}".to_owned()]];
        let text = render_within(&[Column::Elastic("X")], rows, None);
        assert!(
            !text.trim_end().chars().any(|c| c.is_control() && c != '\n'),
            "{text:?}"
        );
    }

    #[test]
    fn ages_and_sizes_are_short() {
        assert_eq!(span(5), "5 s");
        assert_eq!(span(600), "10 min");
        assert_eq!(span(90_000), "25 h");
        assert_eq!(span(864_000), "10 d");
        let now = humantime::parse_rfc3339("2026-01-01T00:01:00Z").unwrap();
        assert_eq!(age(Some(&json!("2026-01-01T00:00:00Z")), now), "60 s ago");
        assert_eq!(age(Some(&json!(NEVER)), now), "never");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(67_260_948_480), "62.6 GiB");
    }
}
