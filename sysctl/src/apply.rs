//! Changes running values and writes the files that keep them.
//!
//! Every written value is read back. What fails is said for that setting; the others are changed all the same.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::unistd::Uid;
use serde::Serialize;

use crate::finding::{Finding, Verdict};
use crate::record::{Contents, Record, RecordError};
use crate::render::{self, DROP_IN_FILE, LIMITS_FILE, Line, SYSCTL_FILE};
use crate::roots::Roots;
use crate::settings::{self, LIMIT_NOFILE, NR_OPEN, Place, SETTINGS, TASKS_MAX};
use crate::{disk, probe, text, value};

const FILE_MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o755;

/// How much is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Only say what would be done.
    pub is_dry: bool,
    /// Write files of every setting, and leave running values alone.
    pub files_only: bool,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "done", content = "note")]
pub enum Done {
    /// It is so now.
    Changed,
    /// It is written down; from when it holds.
    Kept(String),
    /// It would be changed.
    Would,
    /// It could not be; why.
    Failed(String),
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Which.
    pub key: String,
    /// Old value.
    pub from: String,
    /// New value.
    pub to: String,
    /// What became of it.
    #[serde(flatten)]
    pub done: Done,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// Where.
    pub path: String,
    /// Whether it goes away.
    pub is_removed: bool,
    /// What became of it.
    #[serde(flatten)]
    pub done: Done,
}

/// Everything that was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Settings.
    pub changes: Vec<Change>,
    /// Files.
    pub files: Vec<FileChange>,
}

impl Report {
    /// Whether there was nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.files.is_empty()
    }

    /// Whether something could not be done.
    pub fn has_failed(&self) -> bool {
        let changes = self.changes.iter().map(|change| &change.done);
        let mut all = changes.chain(self.files.iter().map(|file| &file.done));
        all.any(|done| matches!(done, Done::Failed(_)))
    }
}

/// Changes what is too low in `findings`, and remembers in `record_path` what was there before.
pub fn apply(
    roots: &Roots,
    findings: &[Finding],
    record_path: &Path,
    extent: Extent,
) -> Result<Report, RecordError> {
    let mut work = Work {
        roots,
        record: Record::load(record_path)?,
        record_path,
        extent,
        report: Report::default(),
    };
    let todo: Vec<&Finding> = findings
        .iter()
        .filter(|finding| match finding.verdict {
            Verdict::Low => !(extent.files_only && finding.setting.place == Place::Cgroup),
            // For a machine that is not this one, what holds here may not hold there.
            _ => {
                extent.files_only
                    && !finding.setting.is_advice()
                    && finding.setting.place != Place::Cgroup
            }
        })
        .collect();
    if !extent.files_only {
        work.change_running(&todo)?;
    }
    work.keep_sysctls(&todo)?;
    work.keep_login_limits(&todo)?;
    work.keep_unit(&todo)?;
    for finding in todo
        .iter()
        .filter(|finding| finding.setting.place == Place::Cgroup)
    {
        let reason = "only who runs this control group can raise it";
        work.note(finding, Done::Failed(reason.into()));
    }
    Ok(work.report)
}

struct Work<'a> {
    roots: &'a Roots,
    record: Record,
    record_path: &'a Path,
    extent: Extent,
    report: Report,
}

impl Work<'_> {
    fn note(&mut self, finding: &Finding, done: Done) {
        self.report.changes.push(Change {
            key: finding.setting.key.into(),
            from: finding.now.clone(),
            to: finding.target.clone(),
            done,
        });
    }

    fn change_running(&mut self, todo: &[&Finding]) -> Result<(), RecordError> {
        let todo: Vec<&&Finding> = todo
            .iter()
            .filter(|finding| finding.setting.is_sysctl())
            .collect();
        if todo.is_empty() {
            return Ok(());
        }
        let before = self.record.clone();
        for finding in &todo {
            self.record
                .remember(finding.setting.key, &finding.now, &finding.target);
        }
        if !self.extent.is_dry {
            self.record.save(self.record_path)?;
        }
        for finding in &todo {
            let key = finding.setting.key;
            if self.extent.is_dry {
                self.note(finding, Done::Would);
                continue;
            }
            match set(self.roots, key, &finding.target) {
                Ok(()) => self.note(finding, Done::Changed),
                Err(reason) => {
                    self.record.put_back(key, &before);
                    self.note(finding, Done::Failed(reason));
                }
            }
        }
        if self.extent.is_dry {
            return Ok(());
        }
        self.record.save(self.record_path)
    }

    fn keep_sysctls(&mut self, todo: &[&Finding]) -> Result<(), RecordError> {
        let (current, former) = match self.texts(SYSCTL_FILE) {
            Ok(texts) => texts,
            Err(done) => return self.note_file(SYSCTL_FILE, done),
        };
        // What an earlier run of ours wrote stays, so that sizing for one part does not lose another.
        let ours = current
            .as_deref()
            .filter(|_| self.record.file(SYSCTL_FILE).is_some());
        let mut values: Vec<(String, String)> = ours.map(assignments).unwrap_or_default();
        let mut put = |key: &str, value: &str| {
            values.retain(|(known, _)| known != key);
            values.push((key.to_owned(), value.to_owned()));
        };
        for known in &self.record.settings {
            put(&known.key, &known.applied);
        }
        if self.extent.files_only {
            for finding in todo.iter().filter(|finding| finding.setting.is_sysctl()) {
                put(finding.setting.key, &finding.target);
            }
        }
        let lines: Vec<Line> = SETTINGS
            .iter()
            .filter_map(|setting| {
                let (key, value) = values.iter().find(|(key, _)| key == setting.key)?;
                Some(Line {
                    key: key.clone(),
                    value: value.clone(),
                    is_optional: matches!(setting.place, Place::Module(_))
                        || setting.since.is_some(),
                })
            })
            .collect();
        if lines.is_empty() {
            return Ok(());
        }
        let text = render::sysctl_file(&lines, former.as_deref());
        self.put_file(SYSCTL_FILE, current.as_deref(), &text)
            .map(|_| ())
    }

    fn keep_login_limits(&mut self, todo: &[&Finding]) -> Result<(), RecordError> {
        let Some(finding) = todo
            .iter()
            .find(|finding| finding.setting.place == Place::Rlimit)
        else {
            return Ok(());
        };
        let Some(&[soft, hard]) = value::parse(&finding.target).as_deref() else {
            return Ok(());
        };
        if let Some(reason) = self.obstacle_of_logins(finding, hard) {
            self.note(finding, Done::Failed(reason));
            return Ok(());
        }
        let current = match self.texts(LIMITS_FILE) {
            Ok((current, _)) => current,
            Err(done) => return self.note_file(LIMITS_FILE, done),
        };
        let text = render::limits_file(soft, hard);
        if self.put_file(LIMITS_FILE, current.as_deref(), &text)? {
            self.note_kept(finding, "holds from the next login");
        }
        Ok(())
    }

    /// A login whose limits cannot be set fails, so they are left alone where that would be so.
    fn obstacle_of_logins(&self, finding: &Finding, hard: u64) -> Option<String> {
        if !self.roots.is_system() {
            return None;
        }
        if !Path::new("/etc/security").is_dir() {
            return Some("no /etc/security here; raise the limit where the server is started, such as ulimit -n or docker run --ulimit".into());
        }
        let bound = probe::number(self.roots, NR_OPEN).unwrap_or(u64::MAX);
        if bound < hard {
            return Some(format!(
                "fs.nr_open is {bound}, and logins fail whose limit is above it"
            ));
        }
        let hard_now = value::parse(&finding.now).and_then(|now| now.last().copied());
        if probe::may_raise_limits() == Some(false) && hard_now.is_some_and(|now| now < hard) {
            return Some("nobody here has CAP_SYS_RESOURCE to raise a hard limit, and logins would fail; raise it where this machine or container is started".into());
        }
        None
    }

    fn keep_unit(&mut self, todo: &[&Finding]) -> Result<(), RecordError> {
        let todo: Vec<&&Finding> = todo
            .iter()
            .filter(|finding| finding.setting.place == Place::Unit)
            .collect();
        if todo.is_empty() {
            return Ok(());
        }
        let current = match self.texts(DROP_IN_FILE) {
            Ok((current, _)) => current,
            Err(done) => return self.note_file(DROP_IN_FILE, done),
        };
        let directives: Vec<(String, String)> = [LIMIT_NOFILE, TASKS_MAX]
            .into_iter()
            .filter_map(|name| {
                let wanted = todo.iter().find(|finding| finding.setting.key == name);
                let value = match wanted {
                    Some(finding) => finding.target.replace(' ', ":"),
                    None => text::directive(current.as_deref()?, name)??,
                };
                Some((name.to_owned(), value))
            })
            .collect();
        let text = render::drop_in_file(&directives);
        if self.put_file(DROP_IN_FILE, current.as_deref(), &text)? {
            for finding in todo {
                self.note_kept(
                    finding,
                    "holds after systemctl daemon-reload and a restart of the unit",
                );
            }
        }
        Ok(())
    }

    fn note_kept(&mut self, finding: &Finding, when: &str) {
        let done = if self.extent.is_dry {
            Done::Would
        } else {
            Done::Kept(when.into())
        };
        self.note(finding, done);
    }

    /// A file's text now, and before the first run.
    fn texts(&self, path: &str) -> Result<(Option<String>, Option<String>), Done> {
        let current = contents(self.roots, path).map_err(|error| Done::Failed(reason(&error)))?;
        let current = current.map(|contents| contents.text);
        let former = match self.record.file(path) {
            Some(known) => known.former.as_ref().map(|contents| contents.text.clone()),
            None => current.clone(),
        };
        Ok((current, former))
    }

    fn note_file(&mut self, path: &str, done: Done) -> Result<(), RecordError> {
        self.report.files.push(FileChange {
            path: self.roots.file(Path::new(path)).display().to_string(),
            is_removed: false,
            done,
        });
        Ok(())
    }

    /// Writes a file unless it is so already; whether it now is as it should be, by us.
    fn put_file(
        &mut self,
        path: &str,
        current: Option<&str>,
        text: &str,
    ) -> Result<bool, RecordError> {
        if current == Some(text) {
            return Ok(false);
        }
        if self.extent.is_dry {
            self.note_file(path, Done::Would)?;
            return Ok(true);
        }
        let is_first = self.record.file(path).is_none();
        let former = contents(self.roots, path).unwrap_or_default();
        let mode = former.as_ref().map_or(FILE_MODE, |contents| contents.mode);
        self.record.remember_file(path, former);
        self.record.save(self.record_path)?;
        let place = self.roots.file(Path::new(path));
        let written = disk::make_parents(&place, DIR_MODE).and_then(|made| {
            self.record.remember_dirs(path, made);
            disk::replace(&place, text.as_bytes(), mode)
        });
        let is_written = written.is_ok();
        if let Err(error) = written {
            if is_first {
                self.record.forget_file(path);
            }
            self.note_file(path, Done::Failed(reason(&error)))?;
        } else {
            self.note_file(path, Done::Changed)?;
        }
        self.record.save(self.record_path)?;
        Ok(is_written)
    }
}

/// The settings of the table that a file of sysctl.d sets.
fn assignments(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.trim().trim_start_matches('-').split_once('=')?;
            let setting = settings::find(key.trim())?;
            Some((setting.key.to_owned(), value.trim().to_owned()))
        })
        .collect()
}

/// A file with its mode; `None` when there is none.
pub(crate) fn contents(roots: &Roots, path: &str) -> io::Result<Option<Contents>> {
    let place = roots.file(Path::new(path));
    let metadata = match fs::symlink_metadata(&place) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !metadata.is_file() {
        let text = "it is no regular file; move it away first";
        return Err(io::Error::new(ErrorKind::InvalidInput, text));
    }
    Ok(Some(Contents {
        text: probe::read_text(&place)?,
        mode: metadata.permissions().mode() & 0o7777,
    }))
}

/// Writes a running value and reads it back.
pub(crate) fn set(roots: &Roots, key: &str, wanted: &str) -> Result<(), String> {
    let path = roots.sysctl(key);
    OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(&path)
        .and_then(|mut file| file.write_all(format!("{wanted}\n").as_bytes()))
        .map_err(|error| reason(&error))?;
    let found = probe::read_text(&path).map_err(|error| reason(&error))?;
    if words(&found) == words(wanted) {
        return Ok(());
    }
    Err(format!("the kernel took it and keeps {}", found.trim()))
}

pub(crate) fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// What to do about it, where that is known.
pub(crate) fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied if !Uid::effective().is_root() => {
            "not permitted; run it as root".into()
        }
        ErrorKind::PermissionDenied => {
            "not permitted in this namespace or container; change it on the host".into()
        }
        ErrorKind::ReadOnlyFilesystem => "read-only here; change it on the host".into(),
        ErrorKind::InvalidInput if error.raw_os_error().is_some() => {
            "the kernel refuses this value".into()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
