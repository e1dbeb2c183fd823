//! A pseudo-terminal, for programs that ask people.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use nix::pty::openpty;

use crate::process::Process;

/// The other end of a terminal that a program runs on.
#[derive(Debug)]
pub struct Terminal {
    keyboard: fs::File,
    screen: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    /// Starts a command on a new terminal.
    pub fn start(command: &mut Command) -> (Self, Process) {
        let pair = openpty(None, None).unwrap();
        let slave = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        command
            .stdin(slave(&pair.slave))
            .stdout(slave(&pair.slave))
            .stderr(slave(&pair.slave));
        let process = Process::spawn(command);
        // The command holds copies; without them the end of the program is the end of the screen.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        drop(pair.slave);
        let mut output = fs::File::from(pair.master.try_clone().unwrap());
        let (sender, screen) = sync_channel(1024);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let terminal = Self {
            keyboard: pair.master.into(),
            screen,
            seen: String::new(),
        };
        (terminal, process)
    }

    /// Waits until `text` is shown, and takes everything up to its end off the screen.
    pub fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.seen += &String::from_utf8_lossy(&bytes),
                Err(error) => panic!("{text:?} is not shown ({error}):\n{}", self.seen),
            }
        }
    }

    /// Types a line.
    pub fn press(&mut self, keys: &str) {
        self.keyboard
            .write_all(format!("{keys}\n").as_bytes())
            .unwrap();
    }
}
