//! Processes that a test starts, and the binaries that it starts them from.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// A built binary of the workspace: it lies beside the folder of the running test.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join(name);
    assert!(
        path.exists(),
        "{} is not built; run: cargo build --workspace",
        path.display()
    );
    path
}

/// A child that ends with the test.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts it.
    pub fn spawn(command: &mut Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { child, name }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// The exit code, once it has exited by itself.
    pub fn exit_code(&mut self) -> i32 {
        let name = self.name.clone();
        wait::until(&format!("{name} exits"), || self.child.try_wait().unwrap())
            .code()
            .unwrap_or(-1)
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Kills it and reaps it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            // A supervisor that is killed leaves children that drain; asking first ends the whole tree.
            let _ = kill(self.pid(), Signal::SIGTERM);
            let end = std::time::Instant::now() + Duration::from_secs(20);
            while self.is_running() && std::time::Instant::now() < end {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        self.kill();
    }
}

/// Sends a signal to a process that a test's child has started.
pub fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

/// The supervisor that an upgrade has left, which is no child of the test; ends with it.
#[derive(Debug)]
pub struct Successor(pub u32);

impl Drop for Successor {
    fn drop(&mut self) {
        if !is_alive(self.0) {
            return;
        }
        signal(self.0, Signal::SIGTERM);
        let ended = wait::until_or(Duration::from_secs(40), || {
            (!is_alive(self.0)).then_some(())
        });
        if ended.is_none() {
            signal(self.0, Signal::SIGKILL);
        }
    }
}

/// Whether a process exists and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('Z'))
    })
}

/// A program that a shell runs, in a directory of the test.
pub fn script(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("script");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path
}

/// Runs a command to its end; panics when it is not to be had.
pub fn run(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program()))
}
