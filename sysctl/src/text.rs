//! Small texts of the system, read without panics: limits, units, control groups. Pure.

use crate::value;

/// Soft and hard bound on open files, from `/proc/self/limits`.
pub(crate) fn open_files(limits: &str) -> Option<Vec<u64>> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    let mut words = line.split_whitespace();
    value::parse(&format!("{} {}", words.next()?, words.next()?))
}

/// Soft and hard bound on open files that a file of pam_limits gives to root; empty when it gives none.
pub(crate) fn login_limits(text: &str) -> String {
    let of = |kind: &str| {
        text.lines().rev().find_map(|line| {
            let mut words = line.split_whitespace();
            let is_meant = words.next() == Some("root")
                && words.next() == Some(kind)
                && words.next() == Some("nofile");
            is_meant.then(|| words.next()).flatten()
        })
    };
    match (of("soft"), of("hard")) {
        (Some(soft), Some(hard)) => format!("{soft} {hard}"),
        _ => String::new(),
    }
}

/// Whether effective capability `bit` is set, from `/proc/self/status`.
pub(crate) fn has_capability(status: &str, bit: u32) -> Option<bool> {
    let hex = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    let set = u64::from_str_radix(hex.trim(), 16).ok()?;
    Some(set >> bit & 1 == 1)
}

/// The last value that a unit's text gives to a directive of its `[Service]` section; an empty one takes it back.
pub(crate) fn directive(unit: &str, name: &str) -> Option<Option<String>> {
    let mut section = "";
    let mut found = None;
    for line in unit.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[Service]"
            && let Some((key, value)) = line.split_once('=')
            && key.trim() == name
        {
            let value = value.trim();
            found = Some((!value.is_empty()).then(|| value.to_owned()));
        }
    }
    found
}

/// `LimitNOFILE=`: one number for both or `soft:hard`.
pub(crate) fn soft_and_hard(text: &str) -> Option<Vec<u64>> {
    let (soft, hard) = text.split_once(':').unwrap_or((text, text));
    value::parse(&format!("{soft} {hard}"))
}

/// Directories of the control groups above a process, innermost first, relative to `/sys/fs/cgroup`, from
/// `/proc/self/cgroup`. The group of the old pids controller comes with its mount point.
pub(crate) fn groups(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let mount = match controllers {
            "" => "",
            named if named.split(',').any(|name| name == "pids") => "pids",
            _ => continue,
        };
        if path.split('/').any(|part| part == "..") {
            continue;
        }
        let mut path = path.trim_matches('/');
        loop {
            let joined = format!("{mount}/{path}");
            found.push(joined.trim_matches('/').to_owned());
            if path.is_empty() {
                break;
            }
            path = path.rsplit_once('/').map_or("", |(above, _)| above);
        }
    }
    found
}

/// The chosen word of `always [madvise] never`; a text without brackets is the word itself.
pub(crate) fn chosen(text: &str) -> &str {
    text.split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or(text.trim(), |(word, _)| word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits_are_found() {
        let text = "Limit  Soft Limit Hard Limit Units\nMax open files            1024                 unlimited            files\n";
        assert_eq!(open_files(text), Some(vec![1024, u64::MAX]));
        assert_eq!(open_files("Max open files"), None);
    }

    #[test]
    fn limits_of_a_login_are_read_back() {
        assert_eq!(
            login_limits(&crate::render::limits_file(5, u64::MAX)),
            "5 unlimited"
        );
        assert_eq!(login_limits("* soft nofile 5\nroot hard nofile 7\n"), "");
    }

    #[test]
    fn capabilities_are_bits() {
        let status = "Name:\tx\nCapEff:\t000001fffeffffff\n";
        assert_eq!(has_capability(status, 24), Some(false));
        assert_eq!(has_capability(status, 10), Some(true));
        assert_eq!(has_capability("", 24), None);
    }

    #[test]
    fn the_last_directive_of_the_right_section_counts() {
        let unit = "[Unit]\nLimitNOFILE=1\n[Service]\nLimitNOFILE=5\n LimitNOFILE = 7:9\n[Install]\nLimitNOFILE=3\n";
        assert_eq!(directive(unit, "LimitNOFILE"), Some(Some("7:9".into())));
        assert_eq!(directive("[Service]\nTasksMax=\n", "TasksMax"), Some(None));
        assert_eq!(directive(unit, "TasksMax"), None);
        assert_eq!(soft_and_hard("7:9"), Some(vec![7, 9]));
        assert_eq!(soft_and_hard("infinity"), Some(vec![u64::MAX; 2]));
        assert_eq!(soft_and_hard("many"), None);
    }

    #[test]
    fn groups_of_both_versions_are_found_up_to_the_root() {
        assert_eq!(groups("0::/a/b\n"), ["a/b", "a", ""]);
        assert_eq!(
            groups("9:name=systemd:/\n8:pids:/x\n1:cpu:/y\n"),
            ["pids/x", "pids"]
        );
        assert!(groups("0::/../../up\nnonsense\n").is_empty());
    }

    #[test]
    fn the_chosen_word_stands_in_brackets() {
        assert_eq!(chosen("always [madvise] never\n"), "madvise");
        assert_eq!(chosen("tsc\n"), "tsc");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "(?s).*") {
            let _ = (open_files(&text), has_capability(&text, 24), directive(&text, "x"), soft_and_hard(&text));
            let _ = (groups(&text), chosen(&text).len(), login_limits(&text));
        }
    }
}
