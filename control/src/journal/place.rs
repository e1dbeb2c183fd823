//! Names of one series' files: the active one, the closed ones, the lock. Pure, but for a look at whether an option
//! names a directory.
//!
//! Invariant: a name that [`Place::parse_closed`] accepts was made by [`Place::closed_name`], so nothing else in the
//! directory is ever compressed or removed.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleet_protocol::config::LogCompression;

const INDEX_SUFFIX: &str = ".idx";
const TORN_SUFFIX: &str = ".torn";

/// The number in a name inside [`Place::index_directory`].
pub(super) fn parse_index(name: &str) -> Option<u64> {
    number(name.strip_suffix(INDEX_SUFFIX)?)
}

/// As [`parse_index`], for what was cut off.
pub(super) fn parse_torn(name: &str) -> Option<u64> {
    let (sequence, offset) = name.strip_suffix(TORN_SUFFIX)?.split_once('-')?;
    offset.parse::<u64>().ok()?;
    number(sequence)
}

fn number(text: &str) -> Option<u64> {
    let is_ours = text.len() >= 6 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_ours.then(|| text.parse().ok()).flatten()
}

/// Where a series lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    directory: PathBuf,
    stem: String,
    /// With its dot; may be empty.
    extension: String,
}

/// What the name of a closed segment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClosedName {
    /// When it was closed.
    pub(super) at: SystemTime,
    /// Grows by one with each segment of the series.
    pub(super) sequence: u64,
    /// How it is packed.
    pub(super) packing: LogCompression,
}

impl Place {
    /// An existing directory, or a path with a slash at its end, holds the series under its usual name; any other path
    /// is the active file itself.
    pub(super) fn new(option: &Path, state_dir: &Path, usual_stem: &str) -> Self {
        let usual = |directory: PathBuf| Self {
            directory,
            stem: usual_stem.to_owned(),
            extension: ".log".to_owned(),
        };
        if option.as_os_str().is_empty() {
            return usual(state_dir.join("log").join(usual_stem));
        }
        if option.is_dir() || option.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return usual(option.to_owned());
        }
        let text = |part: Option<&std::ffi::OsStr>| {
            part.map(|part| part.to_string_lossy().into_owned())
                .unwrap_or_default()
        };
        let directory = match option.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let extension = text(option.extension());
        Self {
            directory,
            stem: text(option.file_stem()),
            extension: if extension.is_empty() {
                extension
            } else {
                format!(".{extension}")
            },
        }
    }

    /// Holds every file of the series.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// First part of every name.
    pub(super) fn stem(&self) -> &str {
        &self.stem
    }

    /// The file that is appended to.
    pub(super) fn active(&self) -> PathBuf {
        self.directory
            .join(format!("{}{}", self.stem, self.extension))
    }

    /// Locked by the process that writes the series.
    pub(super) fn lock(&self) -> PathBuf {
        self.directory.join(format!(".{}.lock", self.stem))
    }

    /// Written and removed to see whether there is room again.
    pub(super) fn trial(&self) -> PathBuf {
        self.directory.join(format!(".{}.trial", self.stem))
    }

    /// Holds the indexes and what was cut off; beside the logs, so that whoever collects those meets lines only.
    pub(super) fn index_directory(&self) -> PathBuf {
        self.directory.join(format!(".{}.index", self.stem))
    }

    /// The index of the segment that has this number, or will have it.
    pub(super) fn index(&self, sequence: u64) -> PathBuf {
        self.index_directory()
            .join(format!("{sequence:06}{INDEX_SUFFIX}"))
    }

    /// What was cut off a segment at this offset.
    pub(super) fn torn(&self, sequence: u64, offset: u64) -> PathBuf {
        self.index_directory()
            .join(format!("{sequence:06}-{offset}{TORN_SUFFIX}"))
    }

    /// Name of a segment that is closed now.
    pub(super) fn closed_name(&self, at: SystemTime, sequence: u64) -> String {
        format!(
            "{}-{}-{sequence:06}{}",
            self.stem,
            stamp(at),
            self.extension
        )
    }

    /// The reverse; `None` for names that are not ours.
    pub(super) fn parse_closed(&self, name: &str) -> Option<ClosedName> {
        let rest = name.strip_prefix(&self.stem)?.strip_prefix('-')?;
        let (rest, packing) = if let Some(rest) = rest.strip_suffix(".gz") {
            (rest, LogCompression::Gzip)
        } else if let Some(rest) = rest.strip_suffix(".zst") {
            (rest, LogCompression::Zstd)
        } else {
            (rest, LogCompression::None)
        };
        let (at, sequence) = rest
            .strip_suffix(self.extension.as_str())?
            .split_once('-')?;
        if sequence.len() < 6 || !sequence.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Some(ClosedName {
            at: parse_stamp(at)?,
            sequence: sequence.parse().ok()?,
            packing,
        })
    }
}

const DAY_S: u64 = 86_400;

/// `20261121T101500Z`.
fn stamp(at: SystemTime) -> String {
    let seconds = at
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (year, month, day) = civil(seconds / DAY_S);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

fn parse_stamp(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    if date.len() != 8 || time.len() != 6 {
        return None;
    }
    let part = |text: &str, from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (part(date, 0, 4)?, part(date, 4, 6)?, part(date, 6, 8)?);
    let (hour, minute, second) = (part(time, 0, 2)?, part(time, 2, 4)?, part(time, 4, 6)?);
    let is_valid = year >= 1970
        && (1..=12).contains(&month)
        && (1..=days_of_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !is_valid {
        return None;
    }
    let years = (1970..year).map(days_of_year).sum::<u64>();
    let months = (1..month)
        .map(|month| days_of_month(year, month))
        .sum::<u64>();
    let seconds = (years + months + day - 1) * DAY_S + hour * 3600 + minute * 60 + second;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Year, month and day, from days since 1970-01-01. Counts up: a name is made once a segment.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let mut year = 1970;
    while days >= days_of_year(year) {
        days -= days_of_year(year);
        year += 1;
    }
    let mut month = 1;
    while days >= days_of_month(year, month) {
        days -= days_of_month(year, month);
        month += 1;
    }
    (year, month, days + 1)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_of_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn stamps_are_utc() {
        // `date -u -d @… +%Y%m%dT%H%M%SZ`
        for (seconds, text) in [
            (0, "19700101T000000Z"),
            (951_782_400, "20000229T000000Z"),
            (1_795_256_100, "20261121T101500Z"),
            (4_107_542_399, "21000228T235959Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            assert_eq!(stamp(at(seconds)), text);
        }
    }

    proptest! {
        #[test]
        fn closed_names_are_read_back_and_sort(
            a in 0_u64..8_000_000_000, b in 0_u64..8_000_000_000, sequence in 1_u64..999_999,
        ) {
            let place = Place::new(Path::new(""), Path::new("/s"), "osquery_result");
            let name = place.closed_name(at(a), sequence);
            let parsed = place.parse_closed(&format!("{name}.zst")).unwrap();
            prop_assert_eq!(parsed, ClosedName { at: at(a), sequence, packing: LogCompression::Zstd });
            prop_assert_eq!(a < b, name < place.closed_name(at(b), sequence) && a != b);
        }
    }

    #[test]
    fn other_names_are_left_alone() {
        let place = Place::new(Path::new(""), Path::new("/s"), "osquery_result");
        for name in [
            "osquery_result.log",
            "osquery_result.log.1",
            "osquery_result-20261121.log",
            "osquery_result-20261121T101500Z-1.log",
            "osquery_result-20261321T101500Z-000001.log",
            "osquery_result-20261121T101500Z-000001.txt",
            "osquery_result-20261121T101500Z-000001.log.bz2",
            "osquery_status-20261121T101500Z-000001.log",
            "osquery_result-20261121é-000001.log",
        ] {
            assert_eq!(place.parse_closed(name), None, "{name}");
        }
    }

    #[test]
    fn names_beside_the_logs_are_read_back() {
        let place = Place::new(Path::new(""), Path::new("/s"), "osquery_result");
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        for sequence in [1, 999_999, 1_000_000] {
            let index = name(place.index(sequence));
            assert_eq!(parse_index(&index), Some(sequence));
            assert_eq!(parse_torn(&index), None);
            let torn = name(place.torn(sequence, 77));
            assert_eq!(parse_torn(&torn), Some(sequence));
            assert_eq!(parse_index(&torn), None);
        }
        for other in ["1.idx", "00000a.idx", "000001.idx.old", "000001-x.torn"] {
            assert_eq!((parse_index(other), parse_torn(other)), (None, None));
        }
    }

    #[test]
    fn options_name_a_directory_or_a_file() {
        let state = Path::new("/s");
        let usual = Place::new(Path::new(""), state, "osquery_result");
        assert_eq!(
            usual.active(),
            Path::new("/s/log/osquery_result/osquery_result.log")
        );
        let directory = Place::new(Path::new("/logs/"), state, "osquery_result");
        assert_eq!(directory.active(), Path::new("/logs/osquery_result.log"));
        let file = Place::new(Path::new("/logs/results.json"), state, "osquery_result");
        assert_eq!(file.active(), Path::new("/logs/results.json"));
        assert_eq!(
            file.closed_name(at(0), 7),
            "results-19700101T000000Z-000007.json"
        );
        let bare = Place::new(Path::new("/logs/osquery_result"), state, "x");
        assert_eq!(bare.active(), Path::new("/logs/osquery_result"));
        let name = bare.closed_name(at(0), 7);
        assert!(bare.parse_closed(&format!("{name}.gz")).is_some());
        assert_eq!(bare.parse_closed("osquery_result"), None);
    }
}
