//! The signals that the supervisor obeys, from the moment at which it has something to put back.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Streams of them. A signal that comes before it is waited for is not lost.
#[derive(Debug)]
pub(crate) struct Signals {
    /// Drain and end.
    pub(crate) terminate: Signal,
    /// The same, from a terminal.
    pub(crate) interrupt: Signal,
    /// Reload.
    pub(crate) hang_up: Signal,
}

impl Signals {
    /// From now on none of them ends the process by itself. Must be called within a runtime.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Returns when the server is to end.
    pub(crate) async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
