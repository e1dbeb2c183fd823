//! Answers of hosts as JSON lines, CSV or a table, as they come. Pure, but for what it writes to.

use std::io::{Result, Write};

use serde_json::{Map, Value, json};

use super::campaign::Answer;
use super::table::{Column, GAP, cut, one_line, widths};

/// Rows that a table waits for, to learn how wide its columns are.
const FIRST_ROWS: usize = 100;
/// The column of who answered.
const HOST: &str = "host";

/// How rows are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Columns for people; cut to the terminal's width, whole in a pipe
    Table,
    /// {"host": NAME, "rows": [{COLUMN: VALUE}]}, a line for each host
    Json,
    /// Comma-separated values, with a header
    Csv,
}

/// Writes answers; holds at most the first rows of a table.
pub(super) struct Printer<W: Write> {
    out: W,
    format: Format,
    terminal: Option<usize>,
    /// Of the table or file so far; empty before the first row.
    columns: Vec<String>,
    widths: Vec<usize>,
    waiting: Vec<Vec<String>>,
    /// Values of columns that the header does not have.
    dropped: u64,
}

impl<W: Write> Printer<W> {
    pub(super) fn new(out: W, format: Format, terminal: Option<usize>) -> Self {
        Self {
            out,
            format,
            terminal,
            columns: Vec::new(),
            widths: Vec::new(),
            waiting: Vec::new(),
            dropped: 0,
        }
    }

    /// One host's answer.
    pub(super) fn print(&mut self, answer: Answer) -> Result<()> {
        match self.format {
            Format::Json => self.json(answer)?,
            Format::Csv => self.csv(&answer)?,
            Format::Table => self.table(&answer)?,
        }
        self.out.flush()
    }

    /// Rows that still wait are printed: nothing more came for a while, or will.
    pub(super) fn settle(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.waiting);
        if rows.is_empty() {
            return Ok(());
        }
        if self.widths.is_empty() {
            let titles: Vec<String> = self.columns.iter().map(|name| one_line(name)).collect();
            let kinds = vec![Column::Elastic(""); titles.len()];
            let header = std::iter::once(titles.clone());
            let measured: Vec<_> = header.chain(rows.iter().cloned()).collect();
            self.widths = widths(&kinds, &measured, self.terminal.unwrap_or(usize::MAX));
            self.line(titles)?;
        }
        for cells in rows {
            self.line(cells)?;
        }
        self.out.flush()
    }

    /// Values that had no column in the header of the CSV.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    fn json(&mut self, answer: Answer) -> Result<()> {
        let rows: Vec<Value> = answer.rows.into_iter().map(Value::Object).collect();
        let line = match answer.error {
            Some(error) => json!({HOST: answer.host, "rows": rows, "error": error}),
            None => json!({HOST: answer.host, "rows": rows}),
        };
        writeln!(self.out, "{line}")
    }

    fn csv(&mut self, answer: &Answer) -> Result<()> {
        let mut writer = csv::Writer::from_writer(&mut self.out);
        for row in &answer.rows {
            if self.columns.is_empty() {
                self.columns = Answer::columns(row);
                let header = std::iter::once(HOST).chain(self.columns.iter().map(String::as_str));
                writer.write_record(header)?;
            }
            let unknown = |name: &&String| !self.columns.contains(name);
            let dropped = Answer::columns(row).iter().filter(unknown).count();
            self.dropped += u64::try_from(dropped).unwrap_or_default();
            let host = std::iter::once(answer.host.clone());
            writer.write_record(host.chain(cells(row, &self.columns)))?;
        }
        writer.flush()
    }

    fn table(&mut self, answer: &Answer) -> Result<()> {
        for row in &answer.rows {
            let mut columns = vec![HOST.to_owned()];
            columns.extend(Answer::columns(row));
            if columns != self.columns {
                self.settle()?;
                if !self.widths.is_empty() {
                    writeln!(self.out)?;
                }
                self.columns = columns;
                self.widths.clear();
            }
            let host = std::iter::once(answer.host.clone());
            let own = self.columns.get(1..).unwrap_or_default();
            let cells = host.chain(cells(row, own));
            self.waiting
                .push(cells.map(|cell| one_line(&cell)).collect());
        }
        if self.waiting.len() >= FIRST_ROWS || !self.widths.is_empty() {
            self.settle()?;
        }
        Ok(())
    }

    /// Cells under their columns; in a pipe a cell that is wider than those before stays whole.
    fn line(&mut self, cells: Vec<String>) -> Result<()> {
        let mut line = String::new();
        for (cell, width) in cells.into_iter().zip(&self.widths) {
            let cell = match self.terminal {
                Some(_) => cut(cell, *width),
                None => cell,
            };
            let gap = width.saturating_sub(cell.chars().count()) + GAP;
            line.push_str(&cell);
            line.extend(std::iter::repeat_n(' ', gap));
        }
        writeln!(self.out, "{}", line.trim_end())
    }
}

fn cells<'a>(
    row: &'a Map<String, Value>,
    columns: &'a [String],
) -> impl Iterator<Item = String> + 'a {
    columns.iter().map(|name| match row.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(host: &str, rows: Value) -> Answer {
        let rows = rows.as_array().unwrap().iter();
        Answer {
            host: host.into(),
            rows: rows.map(|row| row.as_object().unwrap().clone()).collect(),
            error: None,
        }
    }

    fn printed(format: Format, terminal: Option<usize>, answers: &[Answer]) -> (String, u64) {
        let mut text = Vec::new();
        let mut printer = Printer::new(&mut text, format, terminal);
        for answer in answers {
            printer.print(answer.clone()).unwrap();
        }
        printer.settle().unwrap();
        let dropped = printer.dropped();
        (String::from_utf8(text).unwrap(), dropped)
    }

    fn answers() -> Vec<Answer> {
        vec![
            answer(
                "web-1",
                json!([{"name": "osqueryd", "path": "/usr/bin/osqueryd", "host_hostname": "web-1"},
                       {"name": "a,\"b\"", "path": "x\ny", "host_hostname": "web-1"}]),
            ),
            answer("db", json!([])),
            answer("database-12", json!([{"name": "c", "path": null}])),
            answer("z", json!([{"name": "c", "pid": "7"}])),
        ]
    }

    #[test]
    fn json_has_a_line_for_each_host() {
        let mut answers = answers();
        answers.push(Answer {
            host: "bad".into(),
            error: Some("no such table".into()),
            ..Answer::default()
        });
        let (text, _) = printed(Format::Json, None, &answers);
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(
            lines[0]["rows"][0]["host_hostname"], "web-1",
            "as fleetctl prints them"
        );
        assert_eq!(lines[1], json!({"host": "db", "rows": []}));
        assert_eq!(
            lines[4],
            json!({"host": "bad", "rows": [], "error": "no such table"})
        );
    }

    #[test]
    fn csv_has_one_header_and_counts_what_does_not_fit_it() {
        let (text, dropped) = printed(Format::Csv, None, &answers());
        assert_eq!(
            text,
            "host,name,path\nweb-1,osqueryd,/usr/bin/osqueryd\nweb-1,\"a,\"\"b\"\"\",\"x\ny\"\ndatabase-12,c,\nz,c,\n"
        );
        assert_eq!(dropped, 1);
    }

    #[test]
    fn a_table_has_a_header_for_each_kind_of_row() {
        let (text, _) = printed(Format::Table, None, &answers());
        assert_eq!(
            text,
            "host         name      path\n\
             web-1        osqueryd  /usr/bin/osqueryd\n\
             web-1        a,\"b\"     x y\n\
             database-12  c\n\
             \n\
             host  name  pid\n\
             z     c     7\n"
        );
    }

    #[test]
    fn a_table_fits_its_terminal_and_later_rows_keep_its_columns() {
        let wide = |host: &str, text: &str| answer(host, json!([{"a": text, "b": "1"}]));
        let first: Vec<_> = (0..FIRST_ROWS)
            .map(|_| wide("h", &"x".repeat(90)))
            .collect();
        let later = [first, vec![wide("a-host-with-a-long-name", "y")]].concat();
        let (text, _) = printed(Format::Table, Some(40), &later);
        assert_eq!(text.lines().count(), 1 + FIRST_ROWS + 1);
        assert!(
            text.lines().all(|line| line.chars().count() <= 40),
            "{text}"
        );
        assert!(text.lines().last().unwrap().starts_with("a-h…"), "{text}");
    }
}
