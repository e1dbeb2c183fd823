//! `lb haproxy --install`: checked before it replaces anything, and never half written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::exit::Failure;

/// Where HAProxy's packages look for it.
const FILE: &str = "etc/haproxy/haproxy.cfg";
/// Beside it: what stood there before.
const FORMER: &str = "haproxy.cfg.former";
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
    let new = directory.join("haproxy.cfg.new");
    write_all(&new, text.as_bytes()).map_err(unwritable)?;
    let checked = check(&new);
    if checked.is_err() {
        let _ = fs::remove_file(&new);
    }
    checked?;
    let former = fs::read(&path).ok();
    if former.as_deref() == Some(text.as_bytes()) {
        fs::remove_file(&new).map_err(unwritable)?;
        println!("{} is as it should be.", path.display());
    } else {
        if let Some(former) = former {
            let kept = directory.join(FORMER);
            write_bytes(&kept, &former).map_err(unwritable)?;
            println!("The former file is kept as {}.", kept.display());
        }
        replace(&new, &path).map_err(unwritable)?;
        println!("{} is written.", path.display());
    }
    if root != Path::new("/") {
        println!("Nothing is started, since it is not this system's file.");
        return Ok(());
    }
    start(&path)
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
        io::ErrorKind::NotFound => Failure::fatal(format!(
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

/// Puts `text` in place of a file, whole or not at all, readable by all: there is nothing secret in it.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    write_bytes(path, text.as_bytes())
}

fn write_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    write_all(&new, bytes)?;
    replace(&new, path)
}

fn write_all(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn replace(new: &Path, path: &Path) -> io::Result<()> {
    fs::rename(new, path)?;
    match path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
