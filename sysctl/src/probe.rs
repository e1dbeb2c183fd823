//! Reads how each setting stands.

use std::fs;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use nix::unistd::{SysconfVar, sysconf};

use crate::finding::{Finding, Reading};
use crate::kernel::Kernel;
use crate::render::LIMITS_FILE;
use crate::roots::Roots;
use crate::settings::{self, Place, SETTINGS, Setting};
use crate::size::Size;
use crate::{text, value};

/// Longest file that is looked at, bytes.
pub(crate) const FILE_BYTES_MAX: u64 = 1 << 20;
/// Drop-in files of a unit that are read, at most.
const DROP_INS_MAX: usize = 64;
/// The unit.
pub const UNIT: &str = "fleet-supervisor.service";
/// Where units lie; the first that has a file hides its namesakes in the others.
const UNIT_DIRS: [&str; 5] = [
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];
/// What systemd gives a unit that says nothing.
const UNIT_NOFILE: &str = "1024:524288";
/// As [`UNIT_NOFILE`]; a part of the machine's.
const UNIT_TASKS: &str = "15%";
const CAP_SYS_RESOURCE: u32 = 24;

/// Looks at every setting whose key begins with one of `only`; with none, at all of them.
pub fn probe(roots: &Roots, size: &Size, only: &[String]) -> Vec<Finding> {
    let is_meant =
        |key: &str| only.is_empty() || only.iter().any(|prefix| key.starts_with(prefix.as_str()));
    SETTINGS
        .iter()
        .filter(|setting| is_meant(setting.key))
        .map(|setting| Finding::judge(setting, size, read(roots, setting)))
        .collect()
}

/// Looks again at one.
pub fn look(roots: &Roots, size: &Size, setting: &'static Setting) -> Finding {
    Finding::judge(setting, size, read(roots, setting))
}

/// Memory of the machine, bytes; 0 when it does not say.
pub fn memory_bytes(roots: &Roots) -> u64 {
    let text = read_text(&roots.running.join("proc/meminfo")).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kilobytes| kilobytes.saturating_mul(1024))
}

/// A page of memory, bytes.
pub fn page_bytes() -> u64 {
    let found = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    found
        .and_then(|bytes| u64::try_from(bytes).ok())
        .filter(|bytes| *bytes > 0)
        .unwrap_or(4096)
}

/// Whether this process may raise hard limits; `None` when it cannot be told.
pub(crate) fn may_raise_limits() -> Option<bool> {
    let status = read_text(Path::new("/proc/self/status")).ok()?;
    text::has_capability(&status, CAP_SYS_RESOURCE)
}

/// A number of /proc/sys, such as `fs.nr_open`.
pub fn number(roots: &Roots, key: &str) -> Option<u64> {
    let text = read_text(&roots.sysctl(key)).ok()?;
    value::parse(&text)?.first().copied()
}

/// A text of /proc/sys.
pub fn text(roots: &Roots, key: &str) -> Option<String> {
    read_text(&roots.sysctl(key)).ok()
}

/// Numbers of /proc/sys.
pub fn numbers(roots: &Roots, key: &str) -> Option<Vec<u64>> {
    value::parse(&read_text(&roots.sysctl(key)).ok()?)
}

fn read(roots: &Roots, setting: &Setting) -> Reading {
    match setting.place {
        Place::Sysctl | Place::Module(_) | Place::Advice => sysctl(roots, setting),
        Place::Rlimit => open_files(roots),
        Place::Unit => unit(roots, setting.key),
        Place::Cgroup => cgroup(roots),
        Place::AdviceFile(path) => match read_text(&roots.running.join(path)) {
            Ok(found) => Reading::Text(text::chosen(&found).to_owned()),
            Err(error) => missing(&error, || "this kernel has no such file".into()),
        },
    }
}

fn sysctl(roots: &Roots, setting: &Setting) -> Reading {
    match read_text(&roots.sysctl(setting.key)) {
        Ok(found) => Reading::Text(found.trim().to_owned()),
        Err(error) => missing(&error, || absence(roots, setting)),
    }
}

/// Why a key of /proc/sys is not there.
fn absence(roots: &Roots, setting: &Setting) -> String {
    if let Place::Module(module) = setting.place {
        return format!("the module {module} is not loaded");
    }
    let release = read_text(&roots.sysctl("kernel.osrelease")).unwrap_or_default();
    match (setting.since, Kernel::parse(&release)) {
        (Some(since), Some(kernel)) if kernel < since => {
            format!("this kernel is {kernel}; the setting came with {since}")
        }
        _ if setting.key.starts_with("net.") => {
            "not shown in this network namespace; look on the host".into()
        }
        _ => "this kernel does not have it".into(),
    }
}

fn open_files(roots: &Roots) -> Reading {
    let limits = match read_text(&roots.running.join("proc/self/limits")) {
        Ok(limits) => limits,
        Err(error) => return missing(&error, || "no /proc/self/limits here".into()),
    };
    let Some(now) = text::open_files(&limits) else {
        return Reading::Unreadable("/proc/self/limits is not of the known kind".into());
    };
    let now = value::text(&now);
    match read_text(&roots.file(Path::new(LIMITS_FILE))) {
        Ok(written) => Reading::Pending {
            now,
            written: text::login_limits(&written),
        },
        Err(_) => Reading::Text(now),
    }
}

fn unit(roots: &Roots, directive: &str) -> Reading {
    let (texts, has_unit) = unit_texts(roots);
    let has_systemd = || roots.files.join("run/systemd/system").is_dir();
    if texts.is_empty() && roots.is_system() && !has_unit && !has_systemd() {
        return Reading::Absent("systemd does not run here".into());
    }
    let mut found = None;
    for text in &texts {
        if let Some(value) = text::directive(text, directive) {
            found = value;
        }
    }
    if directive == settings::TASKS_MAX {
        let text = found.unwrap_or_else(|| UNIT_TASKS.into());
        let Some(percent) = text.strip_suffix('%') else {
            return Reading::Text(text);
        };
        let all = ["kernel.pid_max", "kernel.threads-max"].map(|key| number(roots, key));
        let [Some(pids), Some(threads)] = all else {
            return Reading::Unreadable(format!("it is {text} of what /proc/sys does not say"));
        };
        let percent: u64 = percent.trim().parse().unwrap_or(0);
        let tasks = pids.min(threads).saturating_mul(percent) / 100;
        return Reading::Text(tasks.to_string());
    }
    let text = found.unwrap_or_else(|| UNIT_NOFILE.into());
    match text::soft_and_hard(&text) {
        Some(numbers) => Reading::Text(value::text(&numbers)),
        None => Reading::Unreadable(format!("it is {text}")),
    }
}

/// The unit's text and those of its drop-ins, in the order in which they count; and whether there is a unit at all.
fn unit_texts(roots: &Roots) -> (Vec<String>, bool) {
    let dirs = UNIT_DIRS.map(|dir| roots.files.join(dir));
    let main = dirs.iter().find_map(|dir| read_text(&dir.join(UNIT)).ok());
    let has_unit = main.is_some();
    let mut drop_ins: Vec<PathBuf> = Vec::new();
    for dir in &dirs {
        let entries = fs::read_dir(dir.join(format!("{UNIT}.d")));
        let paths = entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        for path in paths.take(DROP_INS_MAX) {
            let is_hidden = drop_ins
                .iter()
                .any(|found| found.file_name() == path.file_name());
            if !is_hidden && path.extension().is_some_and(|end| end == "conf") {
                drop_ins.push(path);
            }
        }
    }
    drop_ins.sort_by(|left, right| left.file_name().cmp(&right.file_name()));
    let drop_ins = drop_ins.iter().filter_map(|path| read_text(path).ok());
    (main.into_iter().chain(drop_ins).collect(), has_unit)
}

/// The smallest bound of all groups above this process.
fn cgroup(roots: &Roots) -> Reading {
    let text = match read_text(&roots.running.join("proc/self/cgroup")) {
        Ok(text) => text,
        Err(error) => return missing(&error, || "this kernel has no control groups".into()),
    };
    let base = roots.running.join("sys/fs/cgroup");
    let bounds = text::groups(&text).into_iter().filter_map(|group| {
        let found = read_text(&base.join(group).join("pids.max")).ok()?;
        value::parse(&found)?.first().copied()
    });
    // A root group has no bound.
    Reading::Text(value::text(&[bounds.min().unwrap_or(u64::MAX)]))
}

fn missing(error: &io::Error, reason: impl Fn() -> String) -> Reading {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Reading::Absent(reason()),
        _ => Reading::Unreadable(error.to_string()),
    }
}

/// A file's text, bounded.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(
            ErrorKind::FileTooLarge,
            format!("larger than {FILE_BYTES_MAX} bytes"),
        ));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(ErrorKind::InvalidData, "not UTF-8"))
}
