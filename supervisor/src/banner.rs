//! The lines that `start` prints once it serves. Pure.

use std::path::Path;

/// A line stays a line.
const ADDRESSES_SHOWN_MAX: usize = 4;

/// What they name.
#[derive(Clone, Debug)]
pub(crate) struct Banner<'a> {
    /// `https://…`, one for each address.
    pub(crate) addresses: &'a [String],
    /// Worker processes.
    pub(crate) workers: usize,
    /// `https://host:port/prefix` that agents are told.
    pub(crate) base: &'a str,
    /// What to trust; `None`: what the system trusts, or no TLS.
    pub(crate) ca_file: Option<&'a Path>,
    /// File with the enroll secret.
    pub(crate) secret_file: &'a Path,
    /// The flagfile.
    pub(crate) flagfile: &'a Path,
    /// This program, as the shell finds it.
    pub(crate) program: &'a str,
    /// What `status` needs in front to find this server: empty, or ` --state_dir …`.
    pub(crate) state_option: &'a str,
}

impl Banner<'_> {
    /// The text, with a line feed at the end.
    pub(crate) fn text(&self) -> String {
        let noun = if self.workers == 1 {
            "worker"
        } else {
            "workers"
        };
        let mut text = format!(
            "fleet-supervisor {} serves {} with {} {noun}.\n\n",
            env!("CARGO_PKG_VERSION"),
            self.places(),
            self.workers
        );
        if let Some(file) = self.ca_file {
            text += &format!("  CA file        {}\n", file.display());
        }
        text += &format!("  enroll secret  {}\n", self.secret_file.display());
        text += &format!("  osquery flags  {}\n\n", self.flagfile.display());
        text += &format!(
            "Start an agent here:\n  osqueryd --flagfile={}\n",
            quoted(self.flagfile)
        );
        let trust = self
            .ca_file
            .map_or(String::new(), |file| format!("--cacert {} ", quoted(file)));
        text += &format!(
            "Enroll a host by hand:\n  curl {trust}-d '{{\"enroll_secret\":\"'\"$(cat {})\"'\",\"host_identifier\":\"test\"}}' \
             {}/api/v1/osquery/enroll\n",
            quoted(self.secret_file),
            self.base
        );
        text += &format!(
            "Look at it:\n  {program} status{option}\n  {program} ctl get hosts{option}\n",
            program = self.program,
            option = self.state_option
        );
        text
    }

    /// The first addresses, and how many more there are.
    fn places(&self) -> String {
        let (shown, more) = self
            .addresses
            .split_at(self.addresses.len().min(ADDRESSES_SHOWN_MAX));
        let shown = shown.join(" and ");
        match more.len() {
            0 => shown,
            more => format!("{shown} and {more} more addresses"),
        }
    }
}

/// A path as a shell takes it.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if text.chars().all(is_plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_everything_that_is_needed_next() {
        let banner = Banner {
            addresses: &["https://127.0.0.1:8080".into()],
            workers: 1,
            base: "https://127.0.0.1:8080",
            ca_file: Some(Path::new("/a b/cert.pem")),
            secret_file: Path::new("/s/enroll_secret"),
            flagfile: Path::new("/s/osquery.flags"),
            program: "target/release/fleet-supervisor",
            state_option: "",
        };
        let text = banner.text();
        for part in [
            "https://127.0.0.1:8080 with 1 worker.",
            "curl --cacert '/a b/cert.pem' -d '{\"enroll_secret\":\"'\"$(cat /s/enroll_secret)\"'\"",
            "--flagfile=/s/osquery.flags",
            "  target/release/fleet-supervisor status\n",
        ] {
            assert!(text.contains(part), "{part} not in:\n{text}");
        }
    }

    #[test]
    fn many_addresses_are_counted() {
        let addresses: Vec<_> = (0..1000).map(|n| format!("https://a:{n}")).collect();
        let banner = Banner {
            addresses: &addresses,
            workers: 2,
            base: "",
            ca_file: None,
            secret_file: Path::new("/s"),
            flagfile: Path::new("/f"),
            program: "p",
            state_option: "",
        };
        let text = banner.text();
        assert!(
            text.contains("https://a:3 and 996 more addresses with"),
            "{text}"
        );
        assert!(!text.contains("https://a:4"), "{text}");
    }

    #[test]
    fn paths_are_quoted_for_shells() {
        assert_eq!(quoted(Path::new("/a/b-c.pem")), "/a/b-c.pem");
        assert_eq!(quoted(Path::new("/it's $x")), "'/it'\\''s $x'");
    }
}
