//! `start`: everything that is checked, made and opened before the first child, in an order in which what can be wrong
//! is found before anything is changed.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleet_protocol::config::Config;
use nix::sys::stat::{Mode, umask};

use crate::addresses::Addresses;
use crate::banner::Banner;
use crate::certificate::{self, Identity};
use crate::claim::Claims;
use crate::exit::Failure;
use crate::flagfile::{self, Flagfile};
use crate::local_listener::LocalListeners;
use crate::preflight::Preflight;
use crate::settings::Settings;
use crate::setup::{ADDRESSES_FILE, Reread, Setup};
use crate::signals::Signals;
use crate::state_dir::StateDir;
use crate::ticket_ring::{self, TicketRing};
use crate::{
    banner, claiming, client_trust, enroll_secret, log, machine, preflight, sizing, spread,
    state_dir, supervisor, sys, tune, wanted,
};

/// Addresses in a certificate of ours: each handshake carries them all.
const CERTIFICATE_ADDRESSES_MAX: usize = 32;

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
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let wanted = wanted::wanted(&config)?;
    let bound: Vec<IpAddr> = wanted.iter().map(|of| of.address.ip()).collect();
    let identity = if config.server.tls {
        let names = certificate_names(&bound, &config.addresses.dns.name);
        Some(certificate::load(
            &config.server,
            state.path(),
            &names,
            now,
        )?)
    } else {
        None
    };
    let further = certificate::load_further(&config.tls, now)?;
    let client_trust = client_trust::load(&config.server)?;
    let secret = enroll_secret::load(state.path())?;
    let workers = sizing::workers(&config);
    let addresses = Addresses::open(&config, wanted, workers, claimed)?;
    let local = LocalListeners::bind(&state)?;
    let spread = spread::open(
        &config,
        &addresses.bound(),
        preflight.connections_per_worker,
    )?;
    let tickets = TicketRing::new(ticket_ring::random_key)
        .ok_or_else(|| Failure::fatal("cannot start: no random numbers"))?;
    preflight.report();
    report(identity.as_ref(), &further, &bound);
    let target = addresses
        .wanted()
        .first()
        .map(|address| flagfile::target(*address, identity.as_ref()))
        .unwrap_or_default();
    let mut setup = Setup {
        cpus: if config.workers.pin {
            machine::cpus()
        } else {
            Vec::new()
        },
        scheme: if identity.is_some() { "https" } else { "http" },
        identities: identity
            .iter()
            .chain(&further)
            .map(|identity| identity.tls.clone())
            .collect(),
        client_trust,
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
    let banner = introduce(&setup, identity.as_ref(), &target)?;
    setup.banner = (!setup.config.logging.disable_banner).then_some(banner);
    setup.write_addresses()?;
    Ok(setup)
}

/// What agents may call this server.
fn certificate_names(bound: &[IpAddr], dns_name: &str) -> Vec<String> {
    let mut names = vec![machine::hostname()];
    names.extend((!dns_name.is_empty()).then(|| dns_name.trim_end_matches('.').to_owned()));
    names.extend(["localhost", "127.0.0.1", "::1"].map(String::from));
    let specific = bound.iter().filter(|ip| !ip.is_unspecified());
    names.extend(
        specific
            .take(CERTIFICATE_ADDRESSES_MAX)
            .map(IpAddr::to_string),
    );
    if bound.iter().any(IpAddr::is_unspecified) {
        names.extend(machine::addresses().iter().map(IpAddr::to_string));
    }
    let mut unique = Vec::new();
    for name in names {
        // A host name with characters that no certificate takes is left out.
        let is_good = name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || ".-:".contains(c));
        if is_good && !unique.contains(&name) {
            unique.push(name);
        }
    }
    unique
}

fn report(identity: Option<&Identity>, further: &[Identity], bound: &[IpAddr]) {
    for identity in identity.into_iter().chain(further) {
        for note in &identity.notes {
            tracing::info!("{note}");
        }
        for warning in &identity.warnings {
            tracing::warn!("{warning}");
        }
    }
    let Some(identity) = identity.filter(|identity| identity.is_own) else {
        return;
    };
    let named = bound.iter().filter(|ip| !ip.is_unspecified());
    let named: Vec<String> = named.map(IpAddr::to_string).collect();
    let (fitting, others) = named.split_at(named.len().min(CERTIFICATE_ADDRESSES_MAX));
    if let Some(ip) = fitting.iter().find(|ip| !identity.covers(ip)) {
        tracing::warn!(
            "the self-signed certificate does not cover {ip}; to make it anew, delete tls/ in the state directory and \
             start again, then give agents the new file"
        );
    }
    if others.iter().any(|ip| !identity.covers(ip)) {
        tracing::warn!(
            "the self-signed certificate covers the first {CERTIFICATE_ADDRESSES_MAX} addresses alone; agents need a name \
             for the other {}, or a certificate of yours (server.cert)",
            others.len()
        );
    }
}

/// Writes the flagfile and composes the banner.
fn introduce(setup: &Setup, identity: Option<&Identity>, target: &str) -> Result<String, Failure> {
    let (config, state) = (&setup.config, setup.state.path());
    let prefix = config.server.path_prefix();
    let ca_file = identity.and_then(|identity| identity.ca_file.as_deref());
    let secret_file = enroll_secret::path(state);
    let flags_path = flagfile::path(state);
    Flagfile {
        target,
        prefix: &prefix,
        ca_file,
        secret_file: &secret_file,
        is_plain: identity.is_none(),
    }
    .write(&flags_path)?;
    let banner = Banner {
        addresses: &setup.urls(),
        workers: usize::from(setup.workers),
        base: &format!("{}://{target}{prefix}", setup.scheme),
        ca_file,
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
