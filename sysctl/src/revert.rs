//! Puts back what the record says.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::apply::{self, Change, Done, FileChange, Report};
use crate::record::{FormerFile, Record, RecordError};
use crate::roots::Roots;
use crate::{disk, probe};

/// Restores every value and file, the last change first; what fails stays in the record.
pub fn revert(roots: &Roots, record_path: &Path, is_dry: bool) -> Result<Report, RecordError> {
    let mut record = Record::load(record_path)?;
    let mut report = Report::default();
    let mut left = Record::default();
    for known in record.settings.drain(..).rev() {
        let now = match probe::read_text(&roots.sysctl(&known.key)) {
            Ok(now) => now,
            // Its module was unloaded, and the value with it.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(_) => String::new(),
        };
        if apply::words(&now) == apply::words(&known.former) {
            continue;
        }
        let done = match is_dry {
            true => Done::Would,
            false => match apply::set(roots, &known.key, &known.former) {
                Ok(()) => Done::Changed,
                Err(reason) => Done::Failed(reason),
            },
        };
        report.changes.push(Change {
            key: known.key.clone(),
            from: apply::words(&now).join(" "),
            to: known.former.clone(),
            done: done.clone(),
        });
        if matches!(done, Done::Failed(_)) {
            left.settings.insert(0, known);
        }
    }
    for known in record.files.drain(..).rev() {
        let done = restore(roots, &known, is_dry);
        let has_failed = matches!(done, Some(Done::Failed(_)));
        if let Some(done) = done {
            report.files.push(FileChange {
                path: roots.file(Path::new(&known.path)).display().to_string(),
                is_removed: known.former.is_none(),
                done,
            });
        }
        if has_failed {
            left.files.insert(0, known);
        }
    }
    if !is_dry {
        left.save(record_path)?;
    }
    Ok(report)
}

/// `None` when the file is as it was already.
fn restore(roots: &Roots, known: &FormerFile, is_dry: bool) -> Option<Done> {
    let place = roots.file(Path::new(&known.path));
    let current = apply::contents(roots, &known.path);
    let is_same = matches!(&current, Ok(current) if *current == known.former);
    if is_same && known.made.is_empty() {
        return None;
    }
    if is_dry {
        return Some(Done::Would);
    }
    let restored = match &known.former {
        _ if is_same => Ok(()),
        Some(former) => disk::make_parents(&place, 0o755)
            .and_then(|_| disk::replace(&place, former.text.as_bytes(), former.mode)),
        None => disk::remove(&place),
    };
    if let Err(error) = restored {
        return Some(Done::Failed(apply::reason(&error)));
    }
    for dir in &known.made {
        // One that somebody else uses meanwhile stays.
        let _ = fs::remove_dir(dir);
    }
    (!is_same).then_some(Done::Changed)
}
