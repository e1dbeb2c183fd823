//! Log lines as agents write them, the odd ones included. Pure: time and number come from the caller.

use std::io::Write as _;
use std::time::Duration;

use crate::host::Host;

/// Shapes that a server meets now and then and must take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oddity {
    /// A byte that is no UTF-8, as snapshot rows bring it.
    InvalidUtf8,
    /// `data: []`, when every line was dropped by the agent.
    NoLines,
    /// One line of just under 1 MiB.
    LongLine,
    /// 1,000 lines, about 0.5 MB, as after an outage.
    FullBatch,
    /// Status lines with numbers as text, as before 5.10.0.
    OldStatus,
}

impl Oddity {
    /// Every one.
    pub const ALL: [Self; 5] = [
        Self::InvalidUtf8,
        Self::NoLines,
        Self::LongLine,
        Self::FullBatch,
        Self::OldStatus,
    ];

    /// Result lines of this shape; `None` for [`Oddity::OldStatus`], which is a status line.
    pub fn result_lines(self, host: &Host, at: Duration, number: u64) -> Option<Vec<Vec<u8>>> {
        Some(match self {
            Self::InvalidUtf8 => vec![snapshot_line(host, at, b"caf\xe9 \xff")],
            Self::NoLines => Vec::new(),
            Self::LongLine => vec![snapshot_line(host, at, &vec![b'x'; (1 << 20) - 1024])],
            Self::FullBatch => (0..1000)
                .map(|line| result_line(host, at, number + line))
                .collect(),
            Self::OldStatus => return None,
        })
    }
}

/// One differential result of about 550 bytes. `number` makes it recognisable: it is the `counter`, and in `columns`.
pub fn result_line(host: &Host, at: Duration, number: u64) -> Vec<u8> {
    ResultLines::new(host, at).line(number)
}

/// The result lines of one host at one time, which differ in their numbers only: a generator that sends millions must
/// not write the same words each time.
#[derive(Clone, Debug)]
pub struct ResultLines {
    host: Host,
    /// What stands before, between and behind the two numbers and the process id.
    parts: [String; 4],
}

impl ResultLines {
    /// Prepares them.
    pub fn new(host: &Host, at: Duration) -> Self {
        let (id, name) = (host.uuid(), host.hostname());
        let head = format!(
            concat!(
                r#"{{"name":"pack/Global/processes","hostIdentifier":"{}","calendarTime":"{}","#,
                r#""unixTime":{},"epoch":0,"counter":"#
            ),
            id,
            calendar_time(at),
            at.as_secs()
        );
        let decorations = format!(
            concat!(
                r#","numerics":false,"decorations":{{"host_uuid":"{}","hostname":"{}"}},"columns":{{"#,
                r#""cmdline":"/usr/sbin/service --config /etc/service/service.conf --number "#
            ),
            id, name
        );
        let columns = concat!(
            r#"","cwd":"/","egid":"0","euid":"0","name":"service","parent":"1","path":"/usr/sbin/service","#,
            r#""pid":""#
        );
        let tail = concat!(
            r#"","resident_size":"12582912","start_time":"1759250000","uid":"0"},"#,
            r#""action":"added"}"#
        );
        Self {
            host: *host,
            parts: [head, decorations, columns.to_owned(), tail.to_owned()],
        }
    }

    /// Appends the line with this number.
    pub fn push(&self, number: u64, to: &mut Vec<u8>) {
        let [head, decorations, columns, tail] = &self.parts;
        let pid = self.host.number(number) % 100_000;
        // Writing to a Vec cannot fail.
        let _ = write!(
            to,
            "{head}{number}{decorations}{number}{columns}{pid}{tail}"
        );
    }

    /// The line with this number.
    pub fn line(&self, number: u64) -> Vec<u8> {
        let mut line = Vec::with_capacity(640);
        self.push(number, &mut line);
        line
    }
}

/// One snapshot with a value that may hold any bytes but quotes and controls.
pub fn snapshot_line(host: &Host, at: Duration, value: &[u8]) -> Vec<u8> {
    let mut line = br#"{"snapshot":[{"path":"/home/alex/file","value":""#.to_vec();
    line.extend_from_slice(value);
    line.extend_from_slice(
        format!(
            concat!(
                r#""}}],"action":"snapshot","name":"pack/Global/files","hostIdentifier":"{}","#,
                r#""calendarTime":"{}","unixTime":{},"epoch":0,"counter":0,"numerics":false}}"#
            ),
            host.uuid(),
            calendar_time(at),
            at.as_secs()
        )
        .as_bytes(),
    );
    line
}

/// One status line of about 390 bytes, with numbers as the host's release writes them.
pub fn status_line(host: &Host, at: Duration, number: u64) -> Vec<u8> {
    let quote = if host.release().has_numeric_status {
        ""
    } else {
        "\""
    };
    format!(
        concat!(
            r#"{{"hostIdentifier":"{id}","calendarTime":"{time}","unixTime":{q}{unix}{q},"#,
            r#""severity":{q}0{q},"filename":"scheduler.cpp","line":{q}112{q},"#,
            r#""message":"Executing scheduled query pack/Global/processes: number {number}","#,
            r#""version":"{version}","decorations":{{"host_uuid":"{id}","hostname":"{name}"}}}}"#
        ),
        id = host.uuid(),
        time = calendar_time(at),
        unix = at.as_secs(),
        q = quote,
        version = host.release().version,
        name = host.hostname(),
        number = number,
    )
    .into_bytes()
}

/// `Tue Sep 30 17:37:30 2025 UTC`, the day padded with a space.
pub fn calendar_time(at: Duration) -> String {
    const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let seconds = at.as_secs();
    let days = seconds / 86_400;
    // Civil date from the day count, eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    let year = year_of_era + era * 400 + u64::from(month < 2);
    let name = |names: &'static [&'static str], index: u64| {
        usize::try_from(index)
            .ok()
            .and_then(|index| names.get(index).copied())
            .unwrap_or_default()
    };
    format!(
        "{} {} {day:2} {:02}:{:02}:{:02} {year} UTC",
        name(&WEEKDAYS, days % 7),
        name(&MONTHS, month),
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Release;

    const AT: Duration = Duration::from_secs(1_759_253_850);

    #[test]
    fn times_read_as_osquery_writes_them() {
        for (seconds, text) in [
            (1_759_253_850, "Tue Sep 30 17:37:30 2025 UTC"),
            (0, "Thu Jan  1 00:00:00 1970 UTC"),
            (1_709_208_000, "Thu Feb 29 12:00:00 2024 UTC"),
            (1_735_689_599, "Tue Dec 31 23:59:59 2024 UTC"),
        ] {
            assert_eq!(calendar_time(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn lines_are_objects_of_the_known_size() {
        let host = Host::new(1, 1).with_release(Release::NEWEST);
        let result = result_line(&host, AT, 12);
        let object: serde_json::Value = serde_json::from_slice(&result).unwrap();
        assert_eq!(object["counter"], 12);
        assert!((500..700).contains(&result.len()), "{}", result.len());
        let status = status_line(&host, AT, 1);
        let object: serde_json::Value = serde_json::from_slice(&status).unwrap();
        assert!(object["severity"].is_number());
        assert!((330..450).contains(&status.len()), "{}", status.len());
        let old = status_line(&host.with_release(Release::OLD), AT, 1);
        let object: serde_json::Value = serde_json::from_slice(&old).unwrap();
        assert_eq!(object["severity"], "0");
    }

    #[test]
    fn oddities_are_odd() {
        let host = Host::new(1, 1);
        for oddity in Oddity::ALL {
            let Some(lines) = oddity.result_lines(&host, AT, 0) else {
                continue;
            };
            let bytes: usize = lines.iter().map(Vec::len).sum();
            match oddity {
                Oddity::InvalidUtf8 => assert!(std::str::from_utf8(&lines[0]).is_err()),
                Oddity::NoLines => assert!(lines.is_empty()),
                Oddity::LongLine => assert!((1_040_000..1 << 20).contains(&bytes)),
                Oddity::FullBatch => assert!((450_000..700_000).contains(&bytes)),
                Oddity::OldStatus => unreachable!(),
            }
        }
    }
}
