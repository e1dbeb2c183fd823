//! Which lines a server took, so that they can be looked for where it keeps them.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;

/// What a server took from one host: numbered lines, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acknowledged {
    /// `hostIdentifier` of the lines.
    pub(super) identifier: String,
    /// How many.
    pub(super) lines: u64,
}

/// `counter` of the first line of every host: no two runs have the same.
pub(super) fn first_number() -> u64 {
    /// Lines that a host of one run may number.
    const PER_RUN: u64 = 1_000_000;
    crate::unix_now().as_secs() * PER_RUN
}

/// Writes `IDENTIFIER COUNTER` for each line.
pub(super) fn write(path: &Path, first: u64, taken: &[Acknowledged]) -> anyhow::Result<()> {
    let file = std::fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut file = std::io::BufWriter::new(file);
    for host in taken {
        for number in first..first + host.lines {
            writeln!(file, "{} {number}", host.identifier)?;
        }
    }
    file.flush()
        .with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        let taken = [("A", 2), ("B", 0)].map(|(identifier, lines)| Acknowledged {
            identifier: identifier.to_owned(),
            lines,
        });
        write(&path, 7, &taken).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "A 7\nA 8\n");
    }
}
