//! What hosts are called and which versions they run, small: what lists are searched and sorted by.
//!
//! Owner of one [`Names`] for each place of the directory. A million hosts take about 130 bytes each, nearly all of them
//! the texts themselves: a database would have to read its whole table for a text that may stand anywhere in one.

use memchr::memmem::Finder;

use crate::model::host::HostNames;
use crate::words::Words;

/// Between two texts of a host; stands in none of them.
const SEPARATOR: char = '\n';
/// Versions told apart; a host beyond sorts as if it had told none.
const VERSIONS_MAX: usize = 60_000;

/// One host's.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Host name first.
    texts: Box<str>,
    os_version: u16,
    osquery_version: u16,
    /// Nothing in it would change in lower case.
    is_lower: bool,
}

impl Names {
    /// Empty when it is not known.
    pub(crate) fn hostname(&self) -> &str {
        self.texts.split(SEPARATOR).next().unwrap_or_default()
    }
}

/// All hosts'.
#[derive(Debug)]
pub(crate) struct NameTable {
    rows: Vec<Names>,
    versions: Words,
    nobody: Names,
}

impl Default for NameTable {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            versions: Words::with_room(VERSIONS_MAX),
            nobody: Names::default(),
        }
    }
}

impl NameTable {
    /// What stands there; empty when nothing was told.
    pub(crate) fn get(&self, place: usize) -> &Names {
        self.rows.get(place).unwrap_or(&self.nobody)
    }

    /// Puts a host's names there.
    pub(crate) fn set(&mut self, place: usize, names: &HostNames) {
        if place >= self.rows.len() {
            let missing = place + 1 - self.rows.len();
            self.rows.reserve_exact(missing.max(self.rows.len() / 8));
            self.rows.resize_with(place + 1, Names::default);
        }
        let texts = joined(names);
        let is_lower = texts.is_ascii() && !texts.bytes().any(|byte| byte.is_ascii_uppercase());
        let row = Names {
            os_version: self.versions.index(&names.os_version),
            osquery_version: self.versions.index(&names.osquery_version),
            is_lower,
            texts,
        };
        if let Some(place) = self.rows.get_mut(place) {
            *place = row;
        }
    }

    /// Nobody stands there any more.
    pub(crate) fn clear(&mut self, place: usize) {
        if let Some(row) = self.rows.get_mut(place) {
            *row = Names::default();
        }
    }

    /// Such as `Ubuntu 22.04.4 LTS`.
    pub(crate) fn os_version(&self, names: &Names) -> &str {
        self.versions.text(names.os_version)
    }

    pub(crate) fn osquery_version(&self, names: &Names) -> &str {
        self.versions.text(names.osquery_version)
    }
}

fn joined(names: &HostNames) -> Box<str> {
    let mut texts = String::with_capacity(128);
    let all = names.searched();
    for (index, text) in all.iter().enumerate() {
        if index > 0 {
            // The hardware UUID is the identifier, as a rule: once is enough.
            let is_told = text.is_empty() || all.iter().take(index).any(|other| other == text);
            if is_told {
                continue;
            }
            texts.push(SEPARATOR);
        }
        texts.extend(text.chars().filter(|character| *character != SEPARATOR));
    }
    texts.into_boxed_str()
}

/// A text to look for, whatever its case.
pub(crate) struct Needle {
    finder: Finder<'static>,
    lowered: Vec<u8>,
}

impl Needle {
    pub(crate) fn new(text: &str) -> Self {
        Self {
            finder: Finder::new(&text.to_lowercase()).into_owned(),
            lowered: Vec::new(),
        }
    }

    /// Whether one of the host's texts has it.
    pub(crate) fn is_in(&mut self, names: &Names) -> bool {
        // Across two texts is in none.
        if self.finder.needle().contains(&b'\n') {
            return false;
        }
        if names.is_lower {
            return self.finder.find(names.texts.as_bytes()).is_some();
        }
        if !names.texts.is_ascii() {
            let lowered = names.texts.to_lowercase();
            return self.finder.find(lowered.as_bytes()).is_some();
        }
        self.lowered.clear();
        self.lowered.extend_from_slice(names.texts.as_bytes());
        self.lowered.make_ascii_lowercase();
        self.finder.find(&self.lowered).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(names: &HostNames) -> NameTable {
        let mut table = NameTable::default();
        table.set(3, names);
        table
    }

    #[test]
    fn any_part_of_any_text_is_found() {
        let table = table(&HostNames {
            hostname: "Web-1.Example.com".into(),
            computer_name: "Bürorechner".into(),
            identifier: "AAAA-BBBB".into(),
            hardware_uuid: "AAAA-BBBB".into(),
            primary_ip: "10.1.2.3".into(),
            ..HostNames::default()
        });
        let names = table.get(3);
        assert_eq!(names.hostname(), "Web-1.Example.com");
        assert_eq!(names.texts.matches("AAAA").count(), 1);
        for text in ["web", "EXAMPLE", "a-b", "0.1.2", "bürO"] {
            assert!(Needle::new(text).is_in(names), "{text}");
        }
        for text in ["webb", "com\naaaa", "comaaaa", "3\n"] {
            assert!(!Needle::new(text).is_in(names), "{text}");
        }
        assert!(!Needle::new("web").is_in(table.get(0)));
        assert!(!Needle::new("web").is_in(table.get(99)));
    }

    #[test]
    fn a_name_that_went_is_not_found() {
        let mut table = table(&HostNames {
            hostname: "db".into(),
            os_version: "Ubuntu 24.04".into(),
            ..HostNames::default()
        });
        assert_eq!(table.os_version(table.get(3)), "Ubuntu 24.04");
        table.clear(3);
        assert!(!Needle::new("db").is_in(table.get(3)));
        assert_eq!(table.os_version(table.get(3)), "");
        assert!(size_of::<Names>() <= 24);
    }
}
