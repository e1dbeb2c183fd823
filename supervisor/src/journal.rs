//! `journal verify`: says which log segments are what was stored.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use fleet_control::{JournalReport, SegmentReport};
use fleet_protocol::config::Config;

use crate::exit::{self, Failure};

/// Damaged ranges that are printed for one segment.
const RANGES_SHOWN: usize = 10;

/// Prints what was found.
pub(crate) fn verify(config: &Config, state_dir: &Path, json: bool) -> Result<ExitCode, Failure> {
    let report = fleet_control::verify_journal(config, state_dir).map_err(Failure::fatal)?;
    if json {
        let text = serde_json::to_string_pretty(&report);
        println!(
            "{}",
            text.map_err(|error| Failure::fatal(error.to_string()))?
        );
    } else {
        print!("{}", text(&report));
    }
    Ok(if report.is_sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::DAMAGED)
    })
}

fn text(report: &JournalReport) -> String {
    let mut text = String::new();
    for segment in &report.segments {
        text.push_str(&line(segment));
    }
    let damaged = report
        .segments
        .iter()
        .filter(|segment| !segment.is_sound())
        .count();
    // Writing to a string does not fail, here and below.
    let _ = match (report.segments.len(), damaged) {
        (0, _) => writeln!(text, "No log segment is here."),
        (count, 0) => writeln!(text, "All {count} segments are sound."),
        (count, damaged) => writeln!(text, "{damaged} of {count} segments are damaged."),
    };
    text
}

fn line(segment: &SegmentReport) -> String {
    let mut text = format!(
        "{}  {}: {} bytes, {} batches and {} lines match their checksums",
        if segment.is_sound() {
            "sound  "
        } else {
            "DAMAGED"
        },
        segment.file.display(),
        segment.bytes,
        segment.batches,
        segment.lines,
    );
    for (count, what) in [
        (segment.unchecked_bytes, "bytes have none"),
        (
            segment.unfinished_bytes,
            "bytes at the end are not complete",
        ),
        (segment.unreadable_records, "records cannot be read"),
    ] {
        if count > 0 {
            let _ = write!(text, ", {count} {what}");
        }
    }
    text.push('\n');
    if let Some(error) = &segment.error {
        let _ = writeln!(text, "         {error}");
    }
    for range in segment.damaged.iter().take(RANGES_SHOWN) {
        let _ = writeln!(
            text,
            "         at {}: {} bytes, {} lines of host {}",
            range.offset, range.length, range.lines, range.host_id
        );
    }
    let more = segment.damaged_ranges.saturating_sub(RANGES_SHOWN as u64);
    if more > 0 {
        let _ = writeln!(text, "         and {more} more");
    }
    text
}

#[cfg(test)]
mod tests {
    use fleet_control::DamagedRange;

    use super::*;

    #[test]
    fn damage_is_named_and_bounded() {
        let sound = SegmentReport {
            file: "/logs/a.log".into(),
            bytes: 10,
            batches: 1,
            lines: 2,
            ..SegmentReport::default()
        };
        let range = DamagedRange {
            offset: 70,
            length: 30,
            lines: 3,
            host_id: 4,
        };
        let damaged = SegmentReport {
            file: "/logs/b.log".into(),
            damaged_ranges: 12,
            damaged: vec![range; 12],
            unchecked_bytes: 5,
            ..SegmentReport::default()
        };
        let report = JournalReport {
            segments: vec![sound, damaged],
            is_sound: false,
        };
        let text = text(&report);
        assert!(
            text.starts_with("sound    /logs/a.log: 10 bytes, 1 batches and 2 lines match"),
            "{text}"
        );
        assert!(text.contains("DAMAGED  /logs/b.log"), "{text}");
        assert!(
            text.contains("at 70: 30 bytes, 3 lines of host 4\n"),
            "{text}"
        );
        assert!(text.contains("and 2 more\n"), "{text}");
        assert!(text.ends_with("1 of 2 segments are damaged.\n"), "{text}");
    }
}
