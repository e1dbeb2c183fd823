//! Exit codes (those of sysexits.h) and the failure that carries one to `main`.

use std::fmt;
use std::process::ExitCode;

/// Wrong command line.
pub(crate) const USAGE: u8 = 64;
/// Data on disk is not what was stored.
pub(crate) const DAMAGED: u8 = 65;
/// The server does not run, so it cannot be asked.
pub(crate) const UNAVAILABLE: u8 = 69;
/// It cannot go on; a restart may help once the cause is gone.
pub(crate) const FATAL: u8 = 70;
/// Wrong configuration, or a file that it names; a restart does not help.
pub(crate) const CONFIG: u8 = 78;

/// What `main` prints and exits with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// The command line is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            code: USAGE,
            message: message.into(),
        }
    }

    /// The configuration or one of its files is wrong.
    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self {
            code: CONFIG,
            message: message.into(),
        }
    }

    /// Something that the server needs is missing.
    pub(crate) fn fatal(message: impl Into<String>) -> Self {
        Self {
            code: FATAL,
            message: message.into(),
        }
    }

    /// No server answers.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self {
            code: UNAVAILABLE,
            message: message.into(),
        }
    }

    /// As the server said it.
    pub(crate) fn told(message: impl Into<String>, code: u8) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// Its exit code.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// Prints it to standard error and gives the code to exit with.
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("fleet-supervisor: {self}");
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
