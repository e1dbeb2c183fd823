//! Rules that single values must keep, whatever document they stand in. Pure.

/// Longest name of a query, pack or label, bytes: what the store's columns hold.
const NAME_BYTES_MAX: usize = 255;
/// Longest SQL text, bytes.
const SQL_BYTES_MAX: usize = 256 << 10;
/// osquery drops a query with a longer interval.
pub(super) const INTERVAL_S_MAX: u32 = 604_800;

/// Words that a `platform` may hold. osquery itself knows the first line; the rest are platforms that hosts report.
const PLATFORMS: [&str; 31] = [
    "all",
    "any",
    "darwin",
    "freebsd",
    "linux",
    "posix",
    "windows", //
    "almalinux",
    "alpine",
    "amzn",
    "arch",
    "bsd",
    "centos",
    "chrome",
    "debian",
    "fedora",
    "gentoo",
    "kali",
    "linuxmint",
    "macos",
    "manjaro",
    "nixos",
    "ol",
    "opensuse",
    "opensuse-leap",
    "opensuse-tumbleweed",
    "pop",
    "raspbian",
    "rhel",
    "rocky",
    "ubuntu",
];

/// One problem with a value, as a sentence without its subject.
pub(super) type Check = Result<(), String>;

/// A name that people type, and that stands in URLs and log lines.
pub(super) fn name(text: &str) -> Check {
    if text.trim().is_empty() {
        return Err("name must not be empty".into());
    }
    if text.trim() != text {
        return Err("name must not begin or end with white space".into());
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(format!("name is longer than {NAME_BYTES_MAX} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err("name must not hold control characters".into());
    }
    Ok(())
}

/// SQL that does something. An empty text makes agents ask again at once, for ever.
pub(super) fn sql(text: &str) -> Check {
    if is_blank_sql(text) {
        return Err("query must not be empty".into());
    }
    if text.len() > SQL_BYTES_MAX {
        return Err(format!("query is longer than {} KiB", SQL_BYTES_MAX >> 10));
    }
    if text.contains('\0') {
        return Err("query must not hold the character 0".into());
    }
    Ok(())
}

/// Nothing but white space, semicolons and comments.
fn is_blank_sql(text: &str) -> bool {
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
        let after = if let Some(comment) = rest.strip_prefix("--") {
            comment.split_once('\n').map(|(_, after)| after)
        } else if let Some(comment) = rest.strip_prefix("/*") {
            comment.split_once("*/").map(|(_, after)| after)
        } else {
            return rest.is_empty();
        };
        match after {
            Some(after) => rest = after,
            None => return true,
        }
    }
}

/// Platform words, separated by commas; empty for every platform.
pub(super) fn platform(text: &str) -> Check {
    for word in text
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        if !PLATFORMS.contains(&word) {
            return Err(format!(
                "platform {word:?} is unknown; use darwin, linux, windows, or several separated by \
                 commas"
            ));
        }
    }
    Ok(())
}

/// Seconds between two runs.
pub(super) fn interval(seconds: u32) -> Check {
    if seconds > INTERVAL_S_MAX {
        return Err(format!(
            "interval must be between 0 and {INTERVAL_S_MAX} seconds, not {seconds}"
        ));
    }
    Ok(())
}

/// Part of the hosts that run a query, in percent.
pub(super) fn shard(percent: u32) -> Check {
    if percent > 100 {
        return Err(format!("shard must be between 0 and 100, not {percent}"));
    }
    Ok(())
}

/// An osquery version: numbers separated by points. Empty for every version.
pub(super) fn version(text: &str) -> Check {
    let is_version = text.len() <= 32
        && text
            .split('.')
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    if text.is_empty() || is_version {
        return Ok(());
    }
    Err(format!("version {text:?} is not a version such as 5.12.0"))
}

/// An enroll secret. The text itself never appears in the answer.
pub(super) fn enroll_secret(text: &str) -> Check {
    if text.is_empty() {
        return Err("secret must not be empty".into());
    }
    if text.trim() != text {
        return Err("secret begins or ends with white space, which agents cut off".into());
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(format!("secret is longer than {NAME_BYTES_MAX} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err("secret must not hold control characters".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sql_must_do_something() {
        for blank in [
            "",
            " \n",
            ";",
            "-- only a comment",
            "/* a */ ; -- b\n;",
            "/* open",
        ] {
            assert!(sql(blank).is_err(), "{blank:?}");
        }
        for good in ["SELECT 1", "-- why\nSELECT 1;", "/* why */SELECT 1", "-1"] {
            assert_eq!(sql(good), Ok(()), "{good:?}");
        }
    }

    #[test]
    fn names_are_plain() {
        for bad in ["", " ", " x", "x ", "a\nb", &"x".repeat(256)] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
        for good in ["x", "pack/query", "größe 1", "All Hosts"] {
            assert_eq!(name(good), Ok(()), "{good:?}");
        }
    }

    #[test]
    fn platforms_are_words() {
        for good in ["", "darwin", "linux,windows", "darwin, linux", "ubuntu"] {
            assert_eq!(platform(good), Ok(()), "{good:?}");
        }
        assert!(platform("darwin,lunix").unwrap_err().contains("lunix"));
    }

    #[test]
    fn numbers_have_bounds() {
        assert_eq!(interval(604_800), Ok(()));
        assert!(interval(604_801).is_err());
        assert_eq!(shard(100), Ok(()));
        assert!(shard(101).is_err());
    }

    #[test]
    fn versions_are_numbers() {
        for good in ["", "5", "5.12.0", "1.4.5"] {
            assert_eq!(version(good), Ok(()), "{good:?}");
        }
        for bad in ["v5", "5.", ".5", "5.x", "latest"] {
            assert!(version(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn secrets_are_never_repeated() {
        for bad in ["", " hunter2", "hunter2\n", &"hunter2".repeat(60)] {
            assert!(
                !enroll_secret(bad).unwrap_err().contains("hunter"),
                "{bad:?}"
            );
        }
        assert_eq!(enroll_secret("hunter2"), Ok(()));
    }
}
