//! What systemd is told (sd_notify(3)): one datagram for each change, to the socket that `NOTIFY_SOCKET` names. Without
//! that variable nothing is said.
//!
//! Failure is logged once and changes nothing: the server serves whether or not somebody watches it.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::sys;

/// Of systemd: the socket, how often it wants a sign of life, and from which process.
pub(crate) const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// The way to systemd.
#[derive(Debug, Default)]
pub(crate) struct Notify {
    target: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    fed_at: Option<Duration>,
    status: String,
}

impl Notify {
    /// As the environment says.
    pub(crate) fn open() -> Self {
        let [socket, interval, pid] = VARIABLES.map(std::env::var_os);
        let own = std::process::id().to_string();
        let is_ours = pid.is_none_or(|pid| *pid == *own);
        let watchdog = interval
            .filter(|_| is_ours)
            .and_then(|text| text.to_str()?.parse().ok())
            .filter(|micros| *micros > 0)
            .map(Duration::from_micros);
        let target = socket.and_then(|name| match target(&name) {
            Ok(target) => Some(target),
            Err(error) => {
                tracing::warn!(%error, "systemd cannot be told anything: NOTIFY_SOCKET is of no use");
                None
            }
        });
        Self {
            target,
            watchdog,
            ..Self::default()
        }
    }

    /// Every child is ready, or as ready as it gets.
    pub(crate) fn ready(&mut self) {
        self.say("READY=1");
    }

    /// A reload begins; [`Self::ready`] is its end.
    pub(crate) fn reloading(&mut self) {
        let now = sys::monotonic();
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
    }

    /// The end begins.
    pub(crate) fn stopping(&mut self) {
        self.say("STOPPING=1");
    }

    /// Another process is the server from now on.
    pub(crate) fn main_pid(&mut self, pid: u32) {
        self.say(&format!("MAINPID={pid}"));
    }

    /// One line for `systemctl status`, when it has changed.
    pub(crate) fn status(&mut self, line: String) {
        if self.target.is_some() && line != self.status {
            self.say(&format!("STATUS={line}"));
            self.status = line;
        }
    }

    /// A sign of life, where one is due: twice as often as systemd wants it. To be called by the loop that does the work,
    /// and by nobody else, since nothing else is known to be well.
    pub(crate) fn feed_watchdog(&mut self, now: Duration) {
        if self.watchdog_due_at().is_some_and(|due| now >= due) {
            self.fed_at = Some(now);
            self.say("WATCHDOG=1");
        }
    }

    /// When the next sign of life is due.
    pub(crate) fn watchdog_due_at(&self) -> Option<Duration> {
        let interval = self.watchdog? / 2;
        self.target.as_ref()?;
        Some(self.fed_at.map_or(Duration::ZERO, |at| at + interval))
    }

    fn say(&mut self, text: &str) {
        if let Some((socket, address)) = &self.target
            && let Err(error) = socket.send_to_addr(text.as_bytes(), address)
        {
            // A full queue is systemd's, which has enough to read.
            if error.kind() != io::ErrorKind::WouldBlock {
                tracing::warn!(%error, "systemd is not told any more");
                self.target = None;
            }
        }
    }
}

fn target(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::ErrorKind::Unsupported.into()),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notify(name: &OsStr, watchdog: Option<Duration>) -> Notify {
        Notify {
            target: Some(target(name).unwrap()),
            watchdog,
            ..Notify::default()
        }
    }

    fn heard(socket: &UnixDatagram) -> Vec<String> {
        socket.set_nonblocking(true).unwrap();
        let mut texts = Vec::new();
        let mut buffer = [0; 1024];
        while let Ok(length) = socket.recv(&mut buffer) {
            texts.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        texts
    }

    #[test]
    fn systemd_hears_each_change_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut notify = notify(path.as_os_str(), None);
        notify.ready();
        notify.status("2 of 2 workers serve".into());
        notify.status("2 of 2 workers serve".into());
        notify.reloading();
        notify.main_pid(7);
        notify.stopping();
        notify.feed_watchdog(Duration::MAX);
        let heard = heard(&socket);
        let micros = heard[2].strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        assert!(micros.unwrap().parse::<u64>().unwrap() > 0);
        assert_eq!(
            [&heard[..2], &heard[3..]].concat(),
            [
                "READY=1",
                "STATUS=2 of 2 workers serve",
                "MAINPID=7",
                "STOPPING=1"
            ]
        );
    }

    #[test]
    fn the_watchdog_is_fed_at_half_its_time() {
        let name = format!("@fleet-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let mut notify = notify(OsStr::new(&name), Some(Duration::from_secs(10)));
        for second in 0..=12 {
            notify.feed_watchdog(Duration::from_secs(second));
        }
        assert_eq!(heard(&socket), ["WATCHDOG=1"; 3]);
        assert_eq!(notify.watchdog_due_at(), Some(Duration::from_secs(15)));
    }

    #[test]
    fn a_reader_that_is_gone_is_not_told_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let mut notify = notify(dir.path().join("gone").as_os_str(), None);
        notify.ready();
        assert!(notify.target.is_none());
        target(OsStr::new("relative")).unwrap_err();
    }
}
