//! `lb haproxy --install`: checked before it replaces anything, and never half written.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::{Command, Output};

use fleet_sysctl::disk;

use super::haproxy::HEAD;
use crate::exit::Failure;

/// Where HAProxy's packages look for it.
const FILE: &str = "etc/haproxy/haproxy.cfg";
/// Beside it: what stood there before, and was not ours.
const FORMER: &str = "haproxy.cfg.former";
/// Beside it: what HAProxy is asked about.
const NEW: &str = "haproxy.cfg.new";
/// Readable by all: in what we render there is nothing secret.
const MODE: u32 = 0o644;
/// It is there where systemd is at work.
const SYSTEMD: &str = "/run/systemd/system";

/// Checks the text with HAProxy itself, puts it in its place below `root`, and starts or reloads HAProxy if `root` is
/// this system's.
pub(super) fn install(text: &str, root: &Path) -> Result<(), Failure> {
    let path = root.join(FILE);
    let directory = path.parent().unwrap_or(root);
    let unwritable =
        |error: io::Error| Failure::fatal(format!("cannot write {}: {error}", path.display()));
    fs::create_dir_all(directory).map_err(unwritable)?;
    let new = directory.join(NEW);
    write(&new, text).map_err(unwritable)?;
    let checked = check(&new);
    let _ = fs::remove_file(&new);
    checked?;
    let former = read(&path)
        .map_err(|error| Failure::fatal(format!("cannot read {}: {error}", path.display())))?;
    if former.as_deref() == Some(text.as_bytes()) {
        println!("{} is as it should be.", path.display());
    } else {
        let kept = directory.join(FORMER);
        if former.is_some_and(|former| is_to_be_kept(&former, &kept)) {
            keep(&path, &kept).map_err(|error| {
                Failure::fatal(format!(
                    "cannot keep the former file as {}, so nothing is changed: {error}",
                    kept.display()
                ))
            })?;
            println!("The former file is kept as {}.", kept.display());
        }
        write(&path, text).map_err(unwritable)?;
        println!("{} is written.", path.display());
    }
    if root != Path::new("/") {
        println!("Nothing is started, since it is not this system's file.");
        return Ok(());
    }
    start(&path)
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A rendering of ours can be had again at any time; it must not take the place of what somebody wrote.
fn is_to_be_kept(former: &[u8], kept: &Path) -> bool {
    !former.starts_with(HEAD.as_bytes()) || fs::symlink_metadata(kept).is_err()
}

/// Gives the file at `path` the name `kept` as well, in place of what has that name. It is the same file and no copy: it
/// may hold passwords, so whoever could not read it still cannot.
fn keep(path: &Path, kept: &Path) -> io::Result<()> {
    let mut name = kept.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = Path::new(&name);
    // Ours of an interrupted run.
    let _ = fs::remove_file(temporary);
    fs::hard_link(path, temporary)?;
    let renamed = fs::rename(temporary, kept);
    // It is still there when that failed, and when both were names of one file already.
    let _ = fs::remove_file(temporary);
    renamed?;
    // The former file must be safe under its new name before the old name leads elsewhere.
    File::open(kept.parent().unwrap_or_else(|| Path::new("/")))?.sync_all()
}

/// `haproxy -c`; the failure repeats what it says.
fn check(path: &Path) -> Result<(), Failure> {
    let output = run(
        Command::new("haproxy").arg("-c").arg("-f").arg(path),
        "HAProxy",
    )?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::config(format!(
        "HAProxy does not take the new configuration, so nothing is changed:\n{}",
        said(&output)
    )))
}

fn start(path: &Path) -> Result<(), Failure> {
    if !Path::new(SYSTEMD).is_dir() {
        println!(
            "There is no systemd here. Start HAProxy with: haproxy -W -D -f {}",
            path.display()
        );
        return Ok(());
    }
    for arguments in [["enable", "haproxy"], ["reload-or-restart", "haproxy"]] {
        let output = run(Command::new("systemctl").args(arguments), "systemctl")?;
        if !output.status.success() {
            return Err(Failure::fatal(format!(
                "systemctl {} fails; see journalctl -u haproxy:\n{}",
                arguments.join(" "),
                said(&output)
            )));
        }
    }
    println!("HAProxy runs with it.");
    Ok(())
}

fn run(command: &mut Command, name: &str) -> Result<Output, Failure> {
    command.output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => Failure::fatal(format!(
            "{name} is not installed here; install its package (apt install haproxy) and do this again"
        )),
        _ => Failure::fatal(format!("cannot run {name}: {error}")),
    })
}

fn said(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stdout));
    text.trim_end().to_owned()
}

/// Puts `text` in place of a file, whole or not at all.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    disk::replace(path, text.as_bytes(), MODE)
}
