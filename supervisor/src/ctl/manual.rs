//! `ctl completion` and `ctl man`: what shells and `man` read, made from the command line itself.

use std::path::PathBuf;

use clap_complete::Shell;

use super::{Failure, Output};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ctl completion bash > /etc/bash_completion.d/fleet-supervisor\n  \
                        fleetctl completion zsh > ~/.zfunc/_fleetctl"
)]
pub(super) struct Completion {
    /// The shell.
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

impl Completion {
    pub(super) fn run(self, mut command: clap::Command) -> Result<Output, Failure> {
        let shell: Shell = self.shell.parse().map_err(Failure::Usage)?;
        let name = command.get_name().to_owned();
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command, name, &mut text);
        Ok(Output::of(String::from_utf8_lossy(&text).into_owned()))
    }
}

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ctl man --out-dir /usr/local/share/man/man1")]
pub(super) struct Man {
    /// Write a page for each command into this directory; else the first page goes to standard output.
    #[arg(long, value_name = "DIR")]
    out_dir: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(self, command: clap::Command) -> Result<Output, Failure> {
        let Some(directory) = self.out_dir else {
            let mut text = Vec::new();
            clap_mangen::Man::new(command)
                .render(&mut text)
                .map_err(|error| Failure::Usage(error.to_string()))?;
            return Ok(Output::of(String::from_utf8_lossy(&text).into_owned()));
        };
        let shown = directory.display();
        std::fs::create_dir_all(&directory)
            .and_then(|()| clap_mangen::generate_to(command, &directory))
            .map_err(|error| Failure::Usage(format!("cannot write to {shown}: {error}")))?;
        Ok(Output::of(format!("[+] written to {shown}\n")))
    }
}
