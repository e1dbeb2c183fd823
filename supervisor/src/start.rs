//! `start`: everything that is checked, made and opened before the first child, in an order in which what can be wrong
//! is found before anything is changed.

use std::path::Path;

use fleet_protocol::config::Config;
use nix::sys::stat::{Mode, umask};

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
use crate::ticket_ring::{self, TicketRing};
use crate::users::Users;
use crate::{
    banner, claiming, enroll_secret, log, machine, ownership, preflight, sizing, spread, state_dir,
    supervisor, sys, tune, wanted,
};

/// Serves until told to stop.
pub(crate) fn start(reread: Reread) -> Result<(), Failure> {
    let Settings {
        config,
        warnings,
        file,
    } = reread()?;
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
    let _span = tracing::info_span!("supervisor").entered();
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let state = StateDir::open(&state_dir::for_start(&config))?;
    let tune_options = tune::options(file.as_deref(), &config);
    let preflight = preflight::check(&config, state.path(), &tune_options)?;
    let leftovers = [
        ADDRESSES_FILE,
        "control.sock",
        "tunnel.sock",
        "operator.sock",
        "admin.sock",
    ]
    .map(|name| state.run_path(name));
    // What stands there is of an earlier run.
    let _ = std::fs::remove_file(state.run_path(ADDRESSES_FILE));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::fatal(format!("cannot start: {error}")))?;
    let result = runtime.block_on(serve(config, state, reread, preflight));
    for path in leftovers {
        let _ = std::fs::remove_file(path);
    }
    result
}

/// Claims addresses before anything is bound, and removes them after everything is closed.
async fn serve(
    config: Config,
    state: StateDir,
    reread: Reread,
    preflight: Preflight,
) -> Result<(), Failure> {
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
        return Ok(());
    };
    match set_up(config, state, reread, preflight, &claimed) {
        Ok(setup) => supervisor::run(setup, claims, signals).await,
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
    let wanted = wanted::wanted(&config)?;
    let bound = wanted::ips(&wanted);
    let renewal = Renewal::open(&config, state.path(), &bound)?;
    let secret = enroll_secret::load(state.path())?;
    let workers = sizing::workers(&config);
    let addresses = Addresses::open(&config, wanted, workers, claimed)?;
    let local = LocalListeners::bind(&state)?;
    let users = Users::choose(&config, state.path())?;
    users.report();
    ownership::hand_over(&config, &state, &users)?;
    let spread = spread::open(
        &config,
        &addresses.bound(),
        preflight.connections_per_worker,
    )?;
    let tickets = TicketRing::new(ticket_ring::random_key)
        .ok_or_else(|| Failure::fatal("cannot start: no random numbers"))?;
    preflight.report();
    renewal.credentials.report(&bound);
    let mut setup = Setup {
        cpus: if config.workers.pin {
            machine::cpus()
        } else {
            Vec::new()
        },
        users,
        scheme: if config.server.tls { "https" } else { "http" },
        renewal,
        tickets,
        enroll_secret: secret,
        connections_per_worker: preflight.connections_per_worker,
        settings: preflight.settings,
        workers,
        banner: None,
        config,
        reread,
        state,
        addresses,
        local,
        spread: Some(spread),
    };
    let banner = introduce(&setup)?;
    setup.banner = (!setup.config.logging.disable_banner).then_some(banner);
    setup.write_addresses()?;
    Ok(setup)
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
