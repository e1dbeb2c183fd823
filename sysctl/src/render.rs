//! The files that keep settings over a restart of the machine, a login, a restart of the unit. Pure.

use std::fmt::Write as _;

/// Read by systemd-sysctl and `sysctl --system`.
pub const SYSCTL_FILE: &str = "/etc/sysctl.d/90-fleet.conf";
/// Read by pam_limits at each login.
pub const LIMITS_FILE: &str = "/etc/security/limits.d/90-fleet.conf";
/// Read by systemd with the unit.
pub const DROP_IN_FILE: &str = "/etc/systemd/system/fleet-supervisor.service.d/90-fleet.conf";
/// The only files that are ever written or restored.
pub const FILES: [&str; 3] = [SYSCTL_FILE, LIMITS_FILE, DROP_IN_FILE];

const HEAD: &str = "# Written by `fleet-supervisor tune --apply`; `fleet-supervisor tune --revert` takes it back.\n";

/// One line of [`SYSCTL_FILE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Such as `net.core.somaxconn`.
    pub key: String,
    /// Such as `16384`.
    pub value: String,
    /// It may be missing when the file is read, which is no failure then.
    pub is_optional: bool,
}

/// [`SYSCTL_FILE`], with what `former` set apart from these keys.
pub fn sysctl_file(lines: &[Line], former: Option<&str>) -> String {
    let mut out = HEAD.to_owned();
    for line in lines {
        let mark = if line.is_optional { "-" } else { "" };
        let _ = writeln!(out, "{mark}{} = {}", line.key, line.value);
    }
    let mut kept = former.unwrap_or_default().lines().filter(|text| {
        let text = text.trim();
        let key = text.split('=').next().unwrap_or_default();
        let key = key.trim().trim_start_matches('-').replace('/', ".");
        !text.is_empty()
            && !text.starts_with(['#', ';'])
            && !lines.iter().any(|line| line.key == key)
    });
    if let Some(first) = kept.next() {
        let _ = writeln!(out, "# From the file that stood here before:\n{first}");
        for text in kept {
            let _ = writeln!(out, "{text}");
        }
    }
    out
}

/// [`LIMITS_FILE`]. A star does not mean root.
pub fn limits_file(soft: u64, hard: u64) -> String {
    let mut out = HEAD.to_owned();
    for who in ["*", "root"] {
        let _ = writeln!(out, "{who} soft nofile {}", word(soft));
        let _ = writeln!(out, "{who} hard nofile {}", word(hard));
    }
    out
}

/// [`DROP_IN_FILE`], from directives and their values.
pub fn drop_in_file(directives: &[(String, String)]) -> String {
    let mut out = format!("{HEAD}[Service]\n");
    for (name, value) in directives {
        let _ = writeln!(out, "{name}={value}");
    }
    out
}

fn word(number: u64) -> String {
    match number {
        u64::MAX => "unlimited".into(),
        number => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(key: &str, value: &str, is_optional: bool) -> Line {
        Line {
            key: key.into(),
            value: value.into(),
            is_optional,
        }
    }

    #[test]
    fn sysctl_lines_replace_their_namesakes_and_keep_the_others() {
        let lines = [
            line("net.core.somaxconn", "16384", false),
            line("net.netfilter.nf_conntrack_max", "9", true),
        ];
        let former =
            "# mine\nnet.core.somaxconn=128\nnet/core/somaxconn = 1\n\n -vm.swappiness = 10\n";
        let text = sysctl_file(&lines, Some(former));
        let set: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            set,
            [
                "net.core.somaxconn = 16384",
                "-net.netfilter.nf_conntrack_max = 9",
                " -vm.swappiness = 10"
            ]
        );
        // Written from itself it stays the same but for the remark.
        assert_eq!(
            sysctl_file(&lines, Some(&sysctl_file(&lines, None))),
            sysctl_file(&lines, None)
        );
    }

    #[test]
    fn root_is_named_apart() {
        let text = limits_file(1_024_000, u64::MAX);
        for line in [
            "* soft nofile 1024000",
            "* hard nofile unlimited",
            "root soft nofile 1024000",
        ] {
            assert!(
                text.lines().any(|have| have == line),
                "{line} is not in\n{text}"
            );
        }
    }

    #[test]
    fn a_drop_in_has_its_section() {
        let text = drop_in_file(&[("LimitNOFILE".into(), "5:6".into())]);
        assert!(text.ends_with("[Service]\nLimitNOFILE=5:6\n"), "{text}");
    }
}
