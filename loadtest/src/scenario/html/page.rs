//! One self-contained page: style inline, no script, nothing loaded from anywhere. It is well-formed XML too.

use std::fmt::Write as _;

use super::super::machine::Machine;
use super::plot::Series;

/// The colours of lines and bars, in the order in which they are taken.
const COLOURS: [&str; 6] = ["c0", "c1", "c2", "c3", "c5", "c4"];

/// The colour of the `index`-th line or bar.
pub(in super::super) fn colour(index: usize) -> &'static str {
    COLOURS
        .get(index % COLOURS.len())
        .copied()
        .unwrap_or_default()
}

/// Text that stands between tags or in an attribute.
pub(in super::super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Not allowed in XML, and nothing to see in HTML.
            c if c.is_control() && !matches!(c, '\n' | '\t') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A drawing with what belongs to it.
pub(in super::super) struct Figure {
    /// Above it.
    pub(in super::super) title: String,
    /// How to read it.
    pub(in super::super) note: String,
    /// Colours with their names.
    pub(in super::super) legend: Vec<(&'static str, String)>,
    /// The drawing.
    pub(in super::super) svg: String,
}

impl Figure {
    /// A plot of lines, with a legend of their names.
    pub(super) fn of_lines(title: &str, note: &str, series: &[Series], svg: String) -> Self {
        let legend = series
            .iter()
            .map(|line| (line.colour, line.name.clone()))
            .collect();
        Self {
            title: title.to_owned(),
            note: note.to_owned(),
            legend,
            svg,
        }
    }
}

/// A number that stands out at the top.
pub(in super::super) struct Tile {
    /// The number with its unit.
    pub(in super::super) value: String,
    /// What it is.
    pub(in super::super) name: String,
    /// It is not as it should be.
    pub(in super::super) is_bad: bool,
}

/// A page that is being written.
pub(in super::super) struct Page {
    title: String,
    body: String,
}

impl Page {
    /// With its heading.
    pub(in super::super) fn new(title: &str, subtitle: &str) -> Self {
        let body = format!(
            "<h1>{}</h1><p class=\"soft\">{}</p>",
            escape(title),
            escape(subtitle)
        );
        Self {
            title: title.to_owned(),
            body,
        }
    }

    /// The numbers that matter most.
    pub(in super::super) fn tiles(&mut self, tiles: &[Tile]) {
        if tiles.is_empty() {
            return;
        }
        self.body.push_str("<div class=\"tiles\">");
        for tile in tiles {
            let class = if tile.is_bad { "tile bad" } else { "tile" };
            self.add(format_args!(
                "<div class=\"{class}\"><b>{}</b><span>{}</span></div>",
                escape(&tile.value),
                escape(&tile.name)
            ));
        }
        self.body.push_str("</div>");
    }

    /// Begins a section.
    pub(in super::super) fn section(&mut self, title: &str, lead: &str) {
        self.add(format_args!("<h2>{}</h2>", escape(title)));
        if !lead.is_empty() {
            self.add(format_args!("<p class=\"soft\">{}</p>", escape(lead)));
        }
    }

    /// Drawings beside each other where there is room.
    pub(in super::super) fn figures(&mut self, figures: &[Figure]) {
        self.body.push_str("<div class=\"grid\">");
        for figure in figures {
            self.add(format_args!(
                "<figure class=\"card\"><h3>{}</h3>",
                escape(&figure.title)
            ));
            if !figure.note.is_empty() {
                self.add(format_args!(
                    "<p class=\"note\">{}</p>",
                    escape(&figure.note)
                ));
            }
            if figure.legend.len() > 1 {
                self.body.push_str("<div class=\"legend\">");
                for (colour, name) in &figure.legend {
                    self.add(format_args!(
                        "<span class=\"{colour}\">{}</span>",
                        escape(name)
                    ));
                }
                self.body.push_str("</div>");
            }
            self.body.push_str(&figure.svg);
            self.body.push_str("</figure>");
        }
        self.body.push_str("</div>");
    }

    /// A table; the first column names the row, the others are numbers.
    pub(in super::super) fn table(&mut self, caption: &str, header: &[&str], rows: &[Vec<String>]) {
        self.add(format_args!(
            "<div class=\"card table\"><table><caption>{}</caption><thead><tr>",
            escape(caption)
        ));
        for name in header {
            self.add(format_args!("<th>{}</th>", escape(name)));
        }
        self.body.push_str("</tr></thead><tbody>");
        self.rows(rows);
        self.body.push_str("</tbody></table></div>");
    }

    /// Sentences.
    pub(in super::super) fn list(&mut self, sentences: &[String]) {
        self.body.push_str("<div class=\"card table\"><ul>");
        for sentence in sentences {
            self.add(format_args!("<li>{}</li>", escape(sentence)));
        }
        self.body.push_str("</ul></div>");
    }

    /// Where, when and how it was measured.
    pub(in super::super) fn machine(&mut self, machine: &Machine) {
        self.section("How it was measured", "");
        let mut facts = vec![
            ("Processor".to_owned(), machine.cpu.clone()),
            (
                "Size".to_owned(),
                format!("{} cores, {} GiB", machine.cores, machine.memory_gib),
            ),
            ("Kernel".to_owned(), format!("Linux {}", machine.kernel)),
            ("Date".to_owned(), machine.date.clone()),
            ("Generator".to_owned(), machine.generator.clone()),
        ];
        facts.extend(machine.versions.clone());
        let rows: Vec<Vec<String>> = facts
            .into_iter()
            .map(|(name, value)| vec![name, value])
            .collect();
        self.body
            .push_str("<div class=\"card table\"><table class=\"facts\"><tbody>");
        self.rows(&rows);
        self.add(format_args!(
            "<tr><td>Command</td><td><pre>{}</pre></td></tr></tbody></table></div>",
            escape(&machine.command)
        ));
    }

    fn rows(&mut self, rows: &[Vec<String>]) {
        for row in rows {
            self.body.push_str("<tr>");
            for cell in row {
                self.add(format_args!("<td>{}</td>", escape(cell)));
            }
            self.body.push_str("</tr>");
        }
    }

    /// Writing to a String cannot fail.
    fn add(&mut self, text: std::fmt::Arguments<'_>) {
        let _ = self.body.write_fmt(text);
    }

    /// The whole page.
    pub(in super::super) fn finish(self) -> String {
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
             <title>{}</title><style>\n{}</style></head>\n<body><main>{}</main></body></html>\n",
            escape(&self.title),
            include_str!("style.css"),
            self.body
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_cannot_become_markup() {
        let nasty = "<script>\"&'\u{1}";
        assert_eq!(escape(nasty), "&lt;script&gt;&quot;&amp;&#39;\u{fffd}");
        let mut page = Page::new(nasty, nasty);
        page.section(nasty, nasty);
        page.table(nasty, &[nasty], &[vec![nasty.to_owned()]]);
        page.list(&[nasty.to_owned()]);
        page.tiles(&[Tile {
            value: nasty.to_owned(),
            name: nasty.to_owned(),
            is_bad: true,
        }]);
        page.figures(&[Figure {
            title: nasty.to_owned(),
            note: nasty.to_owned(),
            legend: vec![(colour(0), nasty.to_owned()), (colour(7), nasty.to_owned())],
            svg: String::new(),
        }]);
        let text = page.finish();
        assert!(!text.contains("<script"), "{text}");
        assert_eq!(text.matches("&lt;script&gt;").count(), 15);
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        let text = Page::new("a", "b").finish();
        for word in ["http:", "https:", "url(", "@import", "src=", "href="] {
            assert!(!text.contains(word), "{word}");
        }
    }
}
