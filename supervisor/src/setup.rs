//! Everything that is decided before the first child starts, and what each child is told first.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use anyhow::Context as _;
use aws_lc_rs::digest;
use fleet_protocol::config::Config;
use fleet_protocol::ids::Generation;
use fleet_protocol::limits::Allowed;
use fleet_protocol::secret::Secret;
use fleet_protocol::slot::{Reload, SettingView, StartControl, StartTls, StartWorker, ToChild};
use fleet_protocol::upgrade::{Item, ItemKind};

use crate::addresses::Addresses;
use crate::descriptors;
use crate::enroll_secret;
use crate::exit::Failure;
use crate::flagfile::{self, Flagfile};
use crate::local_listener::LocalListeners;
use crate::place::Role;
use crate::renewal::Renewal;
use crate::settings::Settings;
use crate::spread::Spread;
use crate::state_dir::{self, StateDir};
use crate::ticket_ring::TicketRing;
use crate::users::Users;

/// Reads the configuration again from where it came from.
pub(crate) type Reread = Box<dyn Fn() -> Result<Settings, Failure>>;

/// In `STATE/run`: a line for each address.
pub(crate) const ADDRESSES_FILE: &str = "addresses";

/// See the module. It owns every listening socket and the lock of the state directory.
pub(crate) struct Setup {
    /// As given, and as changed by reloads.
    pub(crate) config: Config,
    /// For a reload.
    pub(crate) reread: Reread,
    /// Locked.
    pub(crate) state: StateDir,
    /// Agents' sockets.
    pub(crate) addresses: Addresses,
    /// Local sockets.
    pub(crate) local: LocalListeners,
    /// What tells the world where agents may go; taken once it is at work.
    pub(crate) spread: Option<Spread>,
    /// Certificates and keys, and what becomes of them.
    pub(crate) renewal: Renewal,
    /// Whom children become.
    pub(crate) users: Users,
    /// Keys of session tickets.
    pub(crate) tickets: TicketRing,
    /// For a store that holds none.
    pub(crate) enroll_secret: Secret,
    /// As many as are wanted, or as a worker's descriptors allow.
    pub(crate) connections_per_worker: u32,
    /// Cores to pin to, in turn; empty when workers are not pinned.
    pub(crate) cpus: Vec<u16>,
    /// How many.
    pub(crate) workers: u16,
    /// Counts the supervisors of a chain of upgrades.
    pub(crate) generation: Generation,
    /// `https` or `http`.
    pub(crate) scheme: &'static str,
    /// How the kernel's settings stood at start.
    pub(crate) settings: Vec<SettingView>,
    /// Printed once everything serves.
    pub(crate) banner: Option<String>,
}

impl Setup {
    /// The first message to a child, and the descriptors that it inherits.
    pub(crate) fn first_message(&self, role: Role) -> anyhow::Result<(ToChild, Vec<RawFd>)> {
        // The lock stays with the children; see the state directory.
        let mut keep = vec![self.state.lock_fd()];
        let message = match role {
            Role::Worker(slot) => {
                let listeners = self.addresses.of_slot(usize::from(slot.0));
                keep.extend(listeners.iter().map(|listener| listener.fd));
                let turn = usize::from(slot.0).checked_rem(self.cpus.len());
                ToChild::StartWorker(Box::new(StartWorker {
                    slot,
                    generation: self.generation,
                    cpu: turn.and_then(|index| self.cpus.get(index)).copied(),
                    listeners,
                    tls: self.start_tls(),
                    link_path: self.users.worker_path(&self.state.run_path("control.sock")),
                    tunnel_path: self.users.worker_path(&self.state.run_path("tunnel.sock")),
                    config: self.worker_config(),
                    confine: self.users.worker.clone(),
                }))
            }
            Role::Control => {
                let fds = self.local.for_control();
                keep.extend(fds);
                let [link_fd, tunnel_fd, operator_fd] = fds;
                ToChild::StartControl(Box::new(StartControl {
                    generation: self.generation,
                    link_fd,
                    tunnel_fd,
                    operator_fd,
                    state_dir: self.state.path().to_owned(),
                    first_enroll_secret: self.enroll_secret.clone(),
                    config: self.control_config()?,
                    confine: self.users.control.clone(),
                    worker_uid: self.users.worker.user.map(|user| user.uid),
                }))
            }
        };
        Ok((message, keep))
    }

    /// What a running child is told after a reload.
    pub(crate) fn reload_message(&self, role: Role) -> anyhow::Result<ToChild> {
        let (tls, config) = match role {
            Role::Worker(_) => (self.start_tls(), self.worker_config()),
            Role::Control => (None, self.control_config()?),
        };
        Ok(ToChild::Reload(Box::new(Reload { tls, config })))
    }

    fn start_tls(&self) -> Option<StartTls> {
        let credentials = &self.renewal.credentials;
        credentials.usual().map(|_| StartTls {
            identities: credentials.tls(),
            client_trust: credentials.client_trust.clone(),
            tickets: self.tickets.keys().clone(),
        })
    }

    /// Follows a reload.
    pub(crate) fn fit_connections(&mut self) {
        let wanted = self.config.server.connections_per_worker_max;
        let addresses = self.addresses.wanted().len();
        // What holds now, and children inherit.
        let open_files = descriptors::raise();
        self.connections_per_worker = descriptors::connections(wanted, open_files, addresses);
    }

    /// What the workers together may take in.
    pub(crate) fn allowed(&self) -> Allowed {
        Allowed::of(&self.worker_config(), self.workers)
    }

    /// Every descriptor that another supervisor needs, by its identity; without those of [`Spread`].
    pub(crate) fn items(&self) -> io::Result<Vec<(Item, OwnedFd)>> {
        let plain = |kind| Item {
            kind,
            address: None,
            slot: None,
        };
        let mut items = vec![(plain(ItemKind::Lock), self.state.lock_duplicate()?)];
        for (kind, socket) in self.local.items() {
            items.push((plain(kind), socket.try_clone()?.into()));
        }
        items.extend(self.addresses.items()?);
        Ok(items)
    }

    /// Names what session tickets stand for: another digest, and the old keys must open nothing.
    pub(crate) fn tls_digest(&self) -> [u8; 32] {
        let credentials = &self.renewal.credentials;
        let parts = (
            credentials.tls(),
            &credentials.client_trust,
            &self.config.tls,
        );
        let text = serde_json::to_vec(&parts).unwrap_or_default();
        let mut digest = [0; 32];
        for (byte, of) in digest
            .iter_mut()
            .zip(digest::digest(&digest::SHA256, &text).as_ref())
        {
            *byte = *of;
        }
        digest
    }

    /// `https://IP:port`, one for each address that is wanted.
    pub(crate) fn urls(&self) -> Vec<String> {
        let wanted = self.addresses.wanted().into_iter();
        wanted
            .map(|address| format!("{}://{address}", self.scheme))
            .collect()
    }

    /// Writes the flagfile; gives the `host:port` in it.
    pub(crate) fn write_flagfile(&self) -> Result<String, Failure> {
        let identity = self.renewal.credentials.usual();
        let wanted = self.addresses.wanted();
        let first = wanted.first();
        let target = first.map(|address| flagfile::target(*address, identity));
        let target = target.unwrap_or_default();
        let state = self.state.path();
        Flagfile {
            target: &target,
            prefix: &self.config.server.path_prefix(),
            ca_file: identity.and_then(|identity| identity.ca_file.as_deref()),
            secret_file: &enroll_secret::path(state),
            is_plain: identity.is_none(),
        }
        .write(&flagfile::path(state))?;
        Ok(target)
    }

    /// Tells others on this machine where agents are served.
    pub(crate) fn write_addresses(&self) -> Result<(), Failure> {
        let path = self.state.run_path(ADDRESSES_FILE);
        let lines = self.urls().join("\n") + "\n";
        state_dir::write_private(&path, lines.as_bytes())
            .map_err(|error| Failure::fatal(format!("cannot write {}: {error}", path.display())))
    }

    /// With the password, and with what the workers really hold, from which the gateway's weight follows.
    fn control_config(&self) -> anyhow::Result<Config> {
        let mut config = with_password(&self.config)?;
        config.server.connections_per_worker_max = self.connections_per_worker;
        Ok(config)
    }

    /// Workers speak with strangers, so they get no password.
    fn worker_config(&self) -> Config {
        let mut config = self.config.clone();
        config.server.connections_per_worker_max = self.connections_per_worker;
        // Among so many its limits are divided until it is told how many serve.
        config.workers.count = self.workers;
        config.mysql.password = Secret::default();
        config.redis.password = Secret::default();
        config.prometheus.basic_auth.password = Secret::default();
        config
    }
}

/// The configuration with the password that `mysql.password_path` holds now.
pub(crate) fn with_password(config: &Config) -> anyhow::Result<Config> {
    let mut config = config.clone();
    let path = std::mem::take(&mut config.mysql.password_path);
    if !path.as_os_str().is_empty() {
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("mysql.password_path: cannot read {}", path.display()))?;
        config.mysql.password = Secret::new(text.trim_end_matches(['\r', '\n']));
    }
    Ok(config)
}
