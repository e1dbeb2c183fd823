//! `start`: everything that is checked, made and opened before the first child, in an order in which what can be wrong
//! is found before anything is changed.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleet_protocol::config::Config;
use nix::sys::stat::{Mode, umask};

use crate::banner::Banner;
use crate::certificate::{self, Identity};
use crate::exit::Failure;
use crate::flagfile::{self, Flagfile};
use crate::listener::{LocalListeners, TcpListeners};
use crate::settings::Settings;
use crate::setup::Setup;
use crate::state_dir::StateDir;
use crate::{banner, descriptors, enroll_secret, log, machine, state_dir, supervisor, sys};

/// Serves until told to stop.
pub(crate) fn start(settings: Settings) -> Result<(), Failure> {
    let Settings { config, warnings } = settings;
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
    let addresses_file = state.run_path("addresses");
    // What stands there is of an earlier run.
    let _ = std::fs::remove_file(&addresses_file);
    let setup = set_up(config, state)?;
    let lines = setup.addresses.join("\n") + "\n";
    state_dir::write_private(&addresses_file, lines.as_bytes()).map_err(|error| {
        Failure::fatal(format!(
            "cannot write {}: {error}",
            addresses_file.display()
        ))
    })?;
    let leftovers = [
        "addresses",
        "control.sock",
        "tunnel.sock",
        "operator.sock",
        "admin.sock",
    ]
    .map(|name| setup.state.run_path(name));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::fatal(format!("cannot start: {error}")))?;
    let result = runtime.block_on(supervisor::run(setup));
    for path in leftovers {
        let _ = std::fs::remove_file(path);
    }
    result
}

fn set_up(config: Config, state: StateDir) -> Result<Setup, Failure> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let bound: Vec<IpAddr> = config
        .server
        .address
        .iter()
        .filter_map(|text| text.parse::<SocketAddr>().ok())
        .map(|address| address.ip())
        .collect();
    let identity = if config.server.tls {
        let names = certificate_names(&bound);
        Some(certificate::load(
            &config.server,
            state.path(),
            &names,
            now,
        )?)
    } else {
        None
    };
    let secret = enroll_secret::load(state.path())?;
    let workers = match config.workers.count {
        0 => machine::parallelism().min(1024),
        count => count,
    };
    let tcp = TcpListeners::bind(&config.server, workers)?;
    let local = LocalListeners::bind(&state)?;
    let connections_per_worker = fitting_connections(&config);
    if let Some(identity) = &identity {
        report(identity, &config, &bound);
    }
    let scheme = if identity.is_some() { "https" } else { "http" };
    let served = tcp.addresses();
    let addresses: Vec<String> = served
        .iter()
        .map(|address| format!("{scheme}://{address}"))
        .collect();
    let target = served
        .first()
        .map(|address| flagfile::target(*address, identity.as_ref()))
        .unwrap_or_default();
    let banner = introduce(
        &config,
        &state,
        identity.as_ref(),
        &target,
        &addresses,
        workers,
    )?;
    Ok(Setup {
        cpus: if config.workers.pin {
            machine::cpus()
        } else {
            Vec::new()
        },
        tls: identity.map(|identity| identity.tls),
        enroll_secret: secret,
        connections_per_worker,
        workers,
        addresses,
        banner: (!config.logging.disable_banner).then_some(banner),
        config,
        state,
        tcp,
        local,
    })
}

/// Raises our bound on open files, and says when it is still too low for what is configured.
fn fitting_connections(config: &Config) -> u32 {
    let limit = descriptors::raise();
    let wanted = config.server.connections_per_worker_max;
    let fitting = descriptors::connections(wanted, limit, config.server.address.len());
    if fitting < wanted {
        tracing::warn!(
            "server.connections_per_worker_max is lowered from {wanted} to {fitting}: a process may have only {limit} \
             open files (LimitNOFILE= in a unit, ulimit -Hn in a shell)"
        );
    }
    fitting
}

/// What agents may call this server.
fn certificate_names(bound: &[IpAddr]) -> Vec<String> {
    let mut names = vec![machine::hostname()];
    names.extend(["localhost", "127.0.0.1", "::1"].map(String::from));
    let specific = bound.iter().filter(|ip| !ip.is_unspecified());
    names.extend(specific.map(IpAddr::to_string));
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

fn report(identity: &Identity, config: &Config, bound: &[IpAddr]) {
    for note in &identity.notes {
        tracing::info!("{note}");
    }
    for warning in &identity.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(exposure) = certificate::key_exposure(&config.server.key) {
        tracing::warn!("{exposure}");
    }
    for ip in bound.iter().filter(|ip| !ip.is_unspecified()) {
        if identity.is_own && !identity.covers(&ip.to_string()) {
            tracing::warn!(
                "the self-signed certificate does not cover {ip}; to make it anew, delete tls/ in the state directory \
                 and start again, then give agents the new file"
            );
        }
    }
}

/// Writes the flagfile and composes the banner.
fn introduce(
    config: &Config,
    state: &StateDir,
    identity: Option<&Identity>,
    target: &str,
    addresses: &[String],
    workers: u16,
) -> Result<String, Failure> {
    let prefix = config.server.path_prefix();
    let ca_file = identity.and_then(|identity| identity.ca_file.as_deref());
    let secret_file = enroll_secret::path(state.path());
    let flags_path = flagfile::path(state.path());
    Flagfile {
        target,
        prefix: &prefix,
        ca_file,
        secret_file: &secret_file,
        is_plain: identity.is_none(),
    }
    .write(&flags_path)?;
    let scheme = if identity.is_some() { "https" } else { "http" };
    let base = format!("{scheme}://{target}{prefix}");
    let banner = Banner {
        addresses,
        workers: usize::from(workers),
        base: &base,
        ca_file,
        secret_file: &secret_file,
        flagfile: &flags_path,
        program: &program(),
        state_option: &state_option(config, state.path()),
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
