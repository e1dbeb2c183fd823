//! What surrounds a command: who called it how, the file of contexts, and the one server that it is for.

use std::cell::OnceCell;
use std::path::PathBuf;

use super::client::Client;
use super::contexts::{Context, Contexts, DEFAULT};
use super::door::{self, Clues, Door};
use super::{Ctl, Failure, SOCKET, context_file};

/// How the program was called.
pub(crate) struct Caller<'a> {
    /// Under fleetctl's name.
    pub(crate) is_fleetctl: bool,
    /// The command line, the environment or the configuration names a state directory.
    pub(crate) is_state_dir_told: bool,
    /// Finds the state directory; asked only when it matters.
    pub(crate) state_dir: &'a dyn Fn() -> Result<PathBuf, String>,
}

/// Made once for a command.
pub(super) struct World<'a> {
    caller: Caller<'a>,
    named: Option<String>,
    /// The file of contexts.
    pub(super) contexts: PathBuf,
    client: OnceCell<Client>,
}

impl<'a> World<'a> {
    pub(super) fn new(ctl: &Ctl, caller: Caller<'a>) -> Self {
        // As fleetctl does; under our own name these variables may well mean something else.
        let variable = |name: &str| {
            let value = std::env::var_os(name).filter(|_| caller.is_fleetctl);
            value.filter(|value| !value.is_empty())
        };
        let contexts = ctl.contexts.clone();
        let contexts = contexts.or_else(|| variable("CONFIG").map(PathBuf::from));
        let named = ctl.context.clone();
        Self {
            named: named.or_else(|| variable("CONTEXT")?.into_string().ok()),
            contexts: contexts.unwrap_or_else(context_file::default_path),
            caller,
            client: OnceCell::new(),
        }
    }

    /// The context that commands write to.
    pub(super) fn context_name(&self) -> &str {
        self.named.as_deref().unwrap_or(DEFAULT)
    }

    /// What the file says of that context; empty if it is not there.
    pub(super) fn context(&self) -> Result<Context, Failure> {
        let contexts = context_file::load(&self.contexts)?;
        Ok(contexts.get(self.context_name()).unwrap_or_default())
    }

    /// The same; it must be there.
    pub(super) fn known_context(&self) -> Result<Context, Failure> {
        let contexts = context_file::load(&self.contexts)?;
        let context = contexts.get(self.context_name());
        context.ok_or_else(|| self.unknown_context(&contexts))
    }

    /// The server that the command is for.
    pub(super) fn client(&self) -> Result<&Client, Failure> {
        let clues = Clues {
            is_fleetctl: self.caller.is_fleetctl,
            context: self.named.clone(),
            is_state_dir_told: self.caller.is_state_dir_told,
            has_socket: false,
            has_contexts: self.contexts.exists(),
        };
        // The state directory matters only if nothing said that the network is meant.
        let is_open = matches!(
            door::choose(&Clues {
                has_socket: true,
                ..clues.clone()
            }),
            Door::Socket
        );
        if !is_open {
            return self.remote();
        }
        let state_dir = (self.caller.state_dir)().map_err(Failure::Usage)?;
        let socket = state_dir.join(SOCKET);
        let has_socket = socket.exists();
        match door::choose(&Clues {
            has_socket,
            ..clues
        }) {
            Door::Network(_) => self.remote(),
            Door::Socket => Ok(self.client.get_or_init(|| Client::local(socket))),
        }
    }

    /// The server of the context, over the network.
    pub(super) fn remote(&self) -> Result<&Client, Failure> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let context = self.known_context()?;
        let name = self.context_name();
        let client = Client::remote(&context, self.command("login"));
        let client = client.map_err(|reason| {
            Failure::Usage(format!(
                "context {name:?} in {}: {reason}",
                self.contexts.display()
            ))
        })?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Why a context cannot be used that the file does not have.
    pub(super) fn unknown_context(&self, contexts: &Contexts) -> Failure {
        let (name, file) = (self.context_name(), self.contexts.display());
        let known = match contexts.names() {
            names if names.is_empty() => String::new(),
            names => format!(" (it has {})", names.join(", ")),
        };
        let set = self.command("config set --address https://…");
        Failure::Usage(format!(
            "{file} has no context {name:?}{known}; make it with `{set}`"
        ))
    }

    /// A command for messages, as the user would have to type it.
    pub(super) fn command(&self, words: &str) -> String {
        let program = if self.caller.is_fleetctl {
            "fleetctl"
        } else {
            "ctl"
        };
        match &self.named {
            Some(name) => format!("{program} {words} --context {name}"),
            None => format!("{program} {words}"),
        }
    }

    /// The whole command line, for who describes it.
    pub(super) fn command_line(&self) -> clap::Command {
        crate::arguments::described(self.caller.is_fleetctl)
    }

    /// What was used, when something was.
    pub(super) fn used(&self) -> Option<String> {
        let client = self.client.get()?;
        let place = client.place();
        Some(match client.network() {
            None => format!("asked over {place}"),
            Some(_) => format!(
                "asked {place}, context {:?} of {}",
                self.context_name(),
                self.contexts.display()
            ),
        })
    }
}
