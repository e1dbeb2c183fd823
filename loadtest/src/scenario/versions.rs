//! Which programs were measured: their own words about their version, and about the TLS library that they use.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// How a program is asked, and what of its words is kept.
struct Speech {
    program: &'static str,
    arguments: &'static [&'static str],
    /// What stands between these words and that letter, or the end of the line.
    keep: &'static [(&'static str, char)],
}

/// The programs that are known; no other is ever run.
const KNOWN: [Speech; 5] = [
    Speech {
        program: "fleet-supervisor",
        arguments: &["version"],
        keep: &[("fleet-supervisor ", '\n')],
    },
    Speech {
        program: "peer-hyper",
        arguments: &["--version"],
        keep: &[("peer-hyper ", '\n')],
    },
    Speech {
        program: "nginx",
        arguments: &["-V"],
        keep: &[("nginx version: nginx/", ' '), ("built with ", '\n')],
    },
    Speech {
        program: "haproxy",
        arguments: &["-vv"],
        keep: &[
            ("HAProxy version ", ' '),
            ("Running on OpenSSL version : ", '\n'),
        ],
    },
    Speech {
        program: "node",
        arguments: &[
            "-p",
            "`node ${process.version}, OpenSSL ${process.versions.openssl}`",
        ],
        keep: &[("node ", '\n')],
    },
];

/// Of running processes, by the program behind each pid; those that are not known are left out.
pub(super) fn running<'a>(pids: impl Iterator<Item = &'a u32>) -> BTreeMap<String, String> {
    let exe = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    pids.filter_map(exe).filter_map(|exe| of(&exe)).collect()
}

/// Of a program: its name, and its version in one line. `None` when it is not known or says nothing.
pub(super) fn of(program: &Path) -> Option<(String, String)> {
    let name = program.file_name().and_then(OsStr::to_str)?;
    let speech = KNOWN.iter().find(|speech| speech.program == name)?;
    let output = Command::new(program)
        .args(speech.arguments)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let mut words = String::from_utf8_lossy(&output.stdout).into_owned();
    words.push('\n');
    words.push_str(&String::from_utf8_lossy(&output.stderr));
    let version = pieces(&words, speech.keep);
    (!version.is_empty()).then(|| (name.to_owned(), version))
}

fn pieces(words: &str, keep: &[(&str, char)]) -> String {
    let piece = |(after, until): &(&str, char)| {
        let (_, rest) = words.split_once(after)?;
        rest.split([*until, '\n']).next().map(str::trim)
    };
    keep.iter().filter_map(piece).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_and_library_are_cut_out() {
        let haproxy = "HAProxy version 2.6.12-1 2026/10/17 - link\nOPTIONS = x\n\
                       Running on OpenSSL version : OpenSSL 3.0.19 27 Jan 2026\nmore";
        let keep = |program| {
            KNOWN
                .iter()
                .find(|known| known.program == program)
                .unwrap()
                .keep
        };
        assert_eq!(
            pieces(haproxy, keep("haproxy")),
            "2.6.12-1, OpenSSL 3.0.19 27 Jan 2026"
        );
        let nginx = "nginx version: nginx/1.22.1\nbuilt with OpenSSL 3.0.20\nTLS";
        assert_eq!(pieces(nginx, keep("nginx")), "1.22.1, OpenSSL 3.0.20");
        assert_eq!(pieces("nothing of the kind", keep("nginx")), "");
    }

    #[test]
    fn programs_that_are_not_known_are_not_run() {
        assert!(of(Path::new("/bin/cat")).is_none());
        assert!(running([std::process::id()].iter()).is_empty());
    }
}
