//! Where a report goes: the terminal, a JSON file, a page.

use std::path::Path;

use anyhow::Context as _;

use super::html;
use super::options::Common;
use super::report::Report;
use super::versions;

impl Report {
    /// Prints it and writes the files that the command line asks for, with the versions of what was measured.
    pub(super) fn publish_all(&self, common: &Common) -> anyhow::Result<()> {
        let mut report = self.clone();
        let roots = common.server_tree.iter().chain(&common.server_pids);
        report.machine.versions.extend(versions::running(roots));
        report.publish(common.json.as_deref())?;
        match &common.html {
            Some(path) => write(path, &html::render(&report)),
            None => Ok(()),
        }
    }
}

/// Writes a file whole or not at all.
pub(super) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let failed = || format!("write {}", path.display());
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)
        .with_context(failed)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).with_context(failed)?;
    file.persist(path).with_context(failed)?;
    Ok(())
}
