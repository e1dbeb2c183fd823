//! Tables and ages for people. Pure, but for the width of the terminal.

use std::time::{Duration, SystemTime};

use comfy_table::{
    Cell, CellAlignment, ColumnConstraint, ContentArrangement, Row, Table, Width, presets,
};
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
    /// Texts that may be cut to what the terminal leaves.
    Elastic(&'static str),
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Self::Text(title) | Self::Number(title) | Self::Elastic(title) => title,
        }
    }
}

/// Longest text in a column that is never cut; a longer one is cut all the same.
const TEXT_CHARS_MAX: usize = 40;

/// A table without lines. Rows are one line high.
pub(super) fn render(columns: &[Column], rows: Vec<Vec<String>>, width: Option<u16>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(width) = width {
        table.set_width(width);
    }
    table.set_header(columns.iter().map(|column| column.title()));
    for cells in rows {
        let cells = cells.into_iter().zip(columns).map(|(text, column)| {
            let text = one_line(&text);
            Cell::new(match column {
                Column::Elastic(_) => text,
                _ => cut(&text, TEXT_CHARS_MAX),
            })
        });
        let mut row = Row::from(cells.collect::<Vec<_>>());
        row.max_height(1);
        table.add_row(row);
    }
    for (column, kind) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, 2));
        match kind {
            Column::Elastic(title) => {
                let width = u16::try_from(title.len()).unwrap_or(u16::MAX);
                let lower = Width::Fixed(width.saturating_add(2));
                column.set_constraint(ColumnConstraint::LowerBoundary(lower));
            }
            Column::Text(_) => {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
            Column::Number(_) => {
                column.set_constraint(ColumnConstraint::ContentWidth);
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table.trim_fmt() + "\n"
}

/// White space of any kind becomes one space.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn cut(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    let kept: String = text.chars().take(chars_max.saturating_sub(1)).collect();
    kept + "…"
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
            Column::Text("NAME"),
            Column::Number("N"),
            Column::Elastic("SQL"),
        ];
        let rows = vec![
            vec![
                "a".into(),
                "5".into(),
                format!("SELECT\n  {}", "x, ".repeat(100)),
            ],
            vec!["processes".into(), "3600".into(), "SELECT 1".into()],
        ];
        let text = render(&columns, rows.clone(), Some(60));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            lines.iter().all(|line| line.chars().count() <= 60),
            "{text}"
        );
        assert!(lines[1].contains("SELECT x, x"), "{text}");
        assert_eq!(lines[2], "processes  3600  SELECT 1");
        assert!(render(&columns, rows, None).lines().count() >= 3);
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
