//! `start`: everything that is checked, made and opened before the first child, in an order in which what can be wrong
//! is found before anything is changed.

use std::path::{Path, PathBuf};

use fleet_protocol::config::Config;
use fleet_protocol::ids::Generation;
use fleet_protocol::secret::Secret;
use nix::sys::stat::{Mode, umask};
use tokio::runtime::Runtime;

use crate::addresses::Addresses;
use crate::banner::Banner;
use crate::claim::Claims;
use crate::exit::Failure;
use crate::flagfile;
use crate::local_listener::LocalListeners;
use crate::preflight::Preflight;
use crate::renewal::Renewal;
use crate::settings::Settings;
use crate::setup::{ADDRESSES_FILE, Reread, Setup};
use crate::signals::Signals;
use crate::state_dir::StateDir;
use crate::supervisor::{Beginning, Ending};
use crate::ticket_ring::{self, TicketRing};
use crate::upgrade::{Inheritance, heir};
use crate::users::Users;
use crate::wanted::Wanted;
use crate::{
    banner, claiming, enroll_secret, log, machine, ownership, preflight, sizing, spread, state_dir,
    supervisor, sys, tune, upgrade, wanted,
};

/// Serves until told to stop, or until another supervisor serves.
pub(crate) fn start(reread: Reread) -> Result<(), Failure> {
    if upgrade::is_wanted() {
        return heir::start(reread);
    }
    let settings = reread()?;
    let (tune_options, config) = begin(settings)?;
    let _span = tracing::info_span!("supervisor").entered();
    let state = StateDir::open(&state_dir::for_start(&config))?;
    let preflight = preflight::check(&config, state.path(), &tune_options)?;
    let leftovers = leftovers(state.path());
    // What stands there is of an earlier run.
    let _ = std::fs::remove_file(state.run_path(ADDRESSES_FILE));
    let (ending, result) = runtime()?.block_on(serve(config, state, reread, preflight));
    clean_up(ending, &leftovers);
    result
}

/// What stands in `STATE/run` while a server runs.
pub(crate) fn leftovers(state_dir: &Path) -> [PathBuf; 5] {
    [
        ADDRESSES_FILE,
        "control.sock",
        "tunnel.sock",
        "operator.sock",
        "admin.sock",
    ]
    .map(|name| state_dir::run_path(state_dir, name))
}

/// Removes what is ours.
pub(crate) fn clean_up(ending: Ending, leftovers: &[PathBuf]) {
    if ending == Ending::Over {
        for path in leftovers {
            let _ = std::fs::remove_file(path);
        }
    }
}

pub(crate) fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::fatal(format!("cannot start: {error}")))
}

/// What comes first in every supervisor. Gives how other commands find the same configuration, and that.
pub(crate) fn begin(settings: Settings) -> Result<(String, Config), Failure> {
    let Settings {
        config,
        warnings,
        file,
    } = settings;
    sys::prepare_descriptors()
        .map_err(|error| Failure::fatal(format!("cannot prepare descriptors: {error}")))?;
    // What children write is not for others; the group may read logs that are kept outside.
    umask(Mode::S_IWGRP | Mode::S_IRWXO);
    log::init(&config.logging);
    if !config.server.core_dumps {
        // Keys are read by this process first.
        if let Err(error) = fleet_child::confine::forbid_dumps() {
            tracing::warn!(%error, "core dumps are not off");
        }
    }
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok((tune::options(file.as_deref(), &config), config))
}

/// Claims addresses before anything is bound, and removes them after everything is closed.
async fn serve(
    config: Config,
    state: StateDir,
    reread: Reread,
    preflight: Preflight,
) -> (Ending, Result<(), Failure>) {
    match claim_and_set_up(config, state, reread, preflight).await {
        Ok(Some((setup, claims, signals))) => {
            supervisor::run(setup, signals, Beginning::Start(claims)).await
        }
        Ok(None) => (Ending::Over, Ok(())),
        Err(failure) => (Ending::Over, Err(failure)),
    }
}

/// `None` when it was asked to end meanwhile.
async fn claim_and_set_up(
    config: Config,
    state: StateDir,
    reread: Reread,
    preflight: Preflight,
) -> Result<Option<(Setup, Claims, Signals)>, Failure> {
    let mut claims = Claims::open(&config.addresses.claim, state.path()).await?;
    let mut signals =
        Signals::open().map_err(|error| Failure::fatal(format!("cannot take signals: {error}")))?;
    let wanted = wanted::claims(&config)?;
    let claimed = tokio::select! {
        claimed = claiming::take(&mut claims, &wanted) => Some(claimed),
        () = signals.end() => None,
    };
    let Some(claimed) = claimed else {
        tracing::info!("asked to end before anything is served");
        claims.release_all().await;
        return Ok(None);
    };
    match set_up(config, state, reread, preflight, &claimed) {
        Ok(setup) => Ok(Some((setup, claims, signals))),
        Err(failure) => {
            claims.release_all().await;
            Err(failure)
        }
    }
}

fn set_up(
    config: Config,
    state: StateDir,
    reread: Reread,
    preflight: Preflight,
    claimed: &[claiming::News],
) -> Result<Setup, Failure> {
    let checked = Checked::read(config, state.path(), reread, preflight)?;
    let workers = sizing::workers(&checked.config);
    let wanted = checked.wanted.clone();
    let addresses = Addresses::open(&checked.config, wanted, workers, claimed)?;
    let local = LocalListeners::bind(&state)?;
    let tickets = TicketRing::new(ticket_ring::random_key)
        .ok_or_else(|| Failure::fatal("cannot start: no random numbers"))?;
    let (users, made) = checked.users(state.path())?;
    ownership::give_log_directories(&made, &users)?;
    ownership::hand_over(&state, &users)?;
    let mut setup = checked.assemble(
        state,
        addresses,
        local,
        tickets,
        &mut Inheritance::default(),
        users,
    )?;
    let banner = introduce(&setup)?;
    setup.banner = (!setup.config.logging.disable_banner).then_some(banner);
    setup.write_addresses()?;
    Ok(setup)
}

/// Everything that can be wrong without a socket, found right.
pub(crate) struct Checked {
    pub(crate) config: Config,
    pub(crate) wanted: Vec<Wanted>,
    reread: Reread,
    renewal: Renewal,
    secret: Secret,
    preflight: Preflight,
}

impl Checked {
    pub(crate) fn read(
        config: Config,
        state_dir: &Path,
        reread: Reread,
        preflight: Preflight,
    ) -> Result<Self, Failure> {
        let wanted = wanted::wanted(&config)?;
        let renewal = Renewal::open(&config, state_dir, &wanted::ips(&wanted))?;
        let secret = enroll_secret::load(state_dir)?;
        Ok(Self {
            config,
            wanted,
            reread,
            renewal,
            secret,
            preflight,
        })
    }

    /// Whom children become, and the directories that were made for logs, which control is still to get.
    pub(crate) fn users(&self, state_dir: &Path) -> Result<(Users, Vec<PathBuf>), Failure> {
        let made = ownership::make_log_directories(&self.config, state_dir)?;
        let users = Users::choose(&self.config, state_dir, &made)?;
        Ok((users, made))
    }

    /// With the sockets. Those that nobody has handed over are bound.
    pub(crate) fn assemble(
        self,
        state: StateDir,
        addresses: Addresses,
        local: LocalListeners,
        tickets: TicketRing,
        inherited: &mut Inheritance,
        users: Users,
    ) -> Result<Setup, Failure> {
        let Self {
            config, preflight, ..
        } = self;
        let connections_per_worker = preflight.connections_per_worker;
        users.report();
        let bound = addresses.bound();
        let spread = spread::open(&config, &bound, connections_per_worker, inherited)?;
        preflight.report();
        self.renewal.credentials.report(&wanted::ips(&self.wanted));
        Ok(Setup {
            cpus: if config.workers.pin {
                machine::cpus()
            } else {
                Vec::new()
            },
            users,
            scheme: if config.server.tls { "https" } else { "http" },
            renewal: self.renewal,
            tickets,
            enroll_secret: self.secret,
            connections_per_worker,
            settings: preflight.settings,
            workers: addresses.slots(),
            generation: Generation(0),
            banner: None,
            config,
            reread: self.reread,
            state,
            addresses,
            local,
            spread: Some(spread),
        })
    }
}

/// Writes the flagfile and composes the banner.
fn introduce(setup: &Setup) -> Result<String, Failure> {
    let (config, state) = (&setup.config, setup.state.path());
    let target = setup.write_flagfile()?;
    let identity = setup.renewal.credentials.usual();
    let secret_file = enroll_secret::path(state);
    let flags_path = flagfile::path(state);
    let banner = Banner {
        addresses: &setup.urls(),
        workers: usize::from(setup.workers),
        base: &format!("{}://{target}{}", setup.scheme, config.server.path_prefix()),
        ca_file: identity.and_then(|identity| identity.ca_file.as_deref()),
        secret_file: &secret_file,
        flagfile: &flags_path,
        program: &program(),
        state_option: &state_option(config, state),
    };
    Ok(banner.text())
}

/// How this program was called.
fn program() -> String {
    let name = std::env::args_os().next().unwrap_or_default();
    if name.is_empty() {
        return "fleet-supervisor".into();
    }
    banner::quoted(Path::new(&name))
}

/// What finds this server from the same directory, when its state is not where the other commands look first.
fn state_option(config: &Config, state_dir: &Path) -> String {
    if config.state.dir.as_os_str().is_empty() {
        return String::new();
    }
    format!(" --state_dir={}", banner::quoted(state_dir))
}
