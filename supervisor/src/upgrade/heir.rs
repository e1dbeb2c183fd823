//! The new supervisor until it runs: reads and checks everything, then takes what the old one hands over.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleet_protocol::config::Config;
use fleet_protocol::frame::{VERSION, VERSION_MIN};
use fleet_protocol::upgrade::{FromNew, FromOld, ItemKind, Prepared};
use tokio::time::timeout;

use super::Inheritance;
use super::channel::Channel;
use crate::addresses::Addresses;
use crate::exit::Failure;
use crate::local_listener::LocalListeners;
use crate::setup::{Reread, Setup};
use crate::signals::Signals;
use crate::start::{self, Checked};
use crate::state_dir::{self, StateDir};
use crate::supervisor::{self, Beginning, Ending, Heritage};
use crate::ticket_ring::TicketRing;
use crate::users::Users;
use crate::{ownership, preflight, sizing, sys};

/// Between two messages of the old side while it hands over.
const HAND_LIMIT: Duration = Duration::from_secs(10);

/// Takes over and serves until told to stop.
pub(crate) fn start(reread: Reread) -> Result<(), Failure> {
    let stream = sys::inherited_channel()
        .map_err(|error| Failure::fatal(format!("no channel to the old supervisor: {error}")))?;
    let runtime = start::runtime()?;
    let (ending, result, leftovers) = runtime.block_on(live(stream, reread));
    start::clean_up(ending, &leftovers);
    result
}

async fn live(stream: UnixStream, reread: Reread) -> (Ending, Result<(), Failure>, Vec<PathBuf>) {
    let mut channel = match Channel::new(stream) {
        Ok(channel) => channel,
        Err(error) => {
            let failure = Failure::fatal(format!("the channel is of no use: {error}"));
            return (Ending::NotOurs, Err(failure), Vec::new());
        }
    };
    let begun = reread().and_then(start::begin);
    let _span = tracing::info_span!("supervisor").entered();
    let taken = match begun {
        Ok(begun) => take(&mut channel, begun, reread).await,
        Err(failure) => Err(failure),
    };
    match taken {
        Ok((setup, signals, heritage)) => {
            let leftovers = start::leftovers(setup.state.path()).into();
            let beginning = Beginning::Upgrade(Box::new((channel, heritage)));
            let (ending, result) = supervisor::run(setup, signals, beginning).await;
            (ending, result, leftovers)
        }
        Err(failure) => {
            refuse(&channel, &failure);
            (Ending::NotOurs, Err(failure), Vec::new())
        }
    }
}

/// Tells the old side that nothing comes of it. If it does not hear that, it sees our end.
pub(crate) fn refuse(channel: &Channel, failure: &Failure) {
    let refusal = FromNew::Refused {
        reason: failure.to_string(),
        code: failure.code(),
    };
    let _ = channel.say(&refusal, &[]);
}

async fn take(
    channel: &mut Channel,
    (tune_options, config): (String, Config),
    reread: Reread,
) -> Result<(Setup, Signals, Heritage), Failure> {
    let state_dir = state_dir::for_start(&config);
    let state_dir = state_dir
        .canonicalize()
        .map_err(|error| Failure::config(format!("{}: {error}", state_dir.display())))?;
    let preflight = preflight::check(&config, &state_dir, &tune_options)?;
    let checked = Checked::read(config, &state_dir, reread, preflight)?;
    let signals =
        Signals::open().map_err(|error| Failure::fatal(format!("cannot take signals: {error}")))?;
    let prepared = Prepared {
        version_min: VERSION_MIN,
        version_max: VERSION,
        build: env!("CARGO_PKG_VERSION").into(),
        state_dir: state_dir.display().to_string(),
    };
    say(channel, &FromNew::Prepared(prepared))?;
    let mut inherited = receive(channel).await?;
    let count = inherited.count();
    let (setup, heritage) = set_up(checked, &state_dir, &mut inherited)?;
    say(channel, &FromNew::Holds { count })?;
    Ok((setup, signals, heritage))
}

fn say(channel: &Channel, message: &FromNew) -> Result<(), Failure> {
    channel
        .say(message, &[])
        .map_err(|error| Failure::fatal(format!("the old supervisor does not listen: {error}")))
}

/// Takes descriptors until the estate comes.
async fn receive(channel: &mut Channel) -> Result<Inheritance, Failure> {
    let mut inherited = Inheritance::default();
    let trouble = |what: String| Failure::fatal(format!("the old supervisor {what}"));
    loop {
        let heard = timeout(HAND_LIMIT, channel.hear())
            .await
            .map_err(|_| trouble("says nothing".into()))?
            .map_err(|error| trouble(format!("is not understood: {error}")))?;
        match heard {
            Some(FromOld::Hand(items)) => {
                let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
                for item in items {
                    let fd = channel
                        .take_fd()
                        .ok_or_else(|| trouble(format!("named {item:?} and did not send it")))?;
                    inherited.add(item, fd).map_err(trouble)?;
                }
                say(channel, &FromNew::Took { count })?;
            }
            Some(FromOld::Estate(estate)) => {
                if estate.count != inherited.count() || channel.take_fd().is_some() {
                    let came = inherited.count();
                    return Err(trouble(format!(
                        "sent {} descriptors, {came} came",
                        estate.count
                    )));
                }
                inherited.estate = Some(*estate);
                return Ok(inherited);
            }
            Some(other) => return Err(trouble(format!("said {other:?} too early"))),
            None => return Err(trouble("has ended".into())),
        }
    }
}

/// Those of the old side: it serves on with its files if nothing comes of us, so none of them is given to others here.
fn users(checked: &Checked, state_dir: &Path) -> Result<Users, Failure> {
    let (users, made) = checked.users(state_dir)?;
    if let Err(failure) = ownership::check_same(state_dir, &users) {
        for path in made.iter().rev() {
            // Empty, and nobody's; a start makes it anew for whom it chooses.
            let _ = std::fs::remove_dir(path);
        }
        return Err(failure);
    }
    ownership::give_log_directories(&made, &users)?;
    Ok(users)
}

fn set_up(
    checked: Checked,
    state_dir: &Path,
    inherited: &mut Inheritance,
) -> Result<(Setup, Heritage), Failure> {
    let users = users(&checked, state_dir)?;
    let missing = |what: &str| Failure::fatal(format!("the old supervisor sent no {what}"));
    let estate = inherited.estate.take().ok_or_else(|| missing("estate"))?;
    let lock = inherited
        .take(ItemKind::Lock)
        .ok_or_else(|| missing("lock"))?;
    let state = StateDir::adopt(state_dir.to_owned(), lock)
        .map_err(|error| Failure::fatal(format!("the lock is of no use: {error}")))?;
    let local = LocalListeners::adopt(inherited).ok_or_else(|| missing("sockets of its own"))?;
    let wanted_workers = sizing::workers(&checked.config);
    if wanted_workers != estate.slots {
        tracing::warn!(
            "{} workers serve as before; workers.count would have {wanted_workers}, from the next start on",
            estate.slots
        );
    }
    let wanted = checked.wanted.clone();
    let addresses = Addresses::adopt(&checked.config, wanted, estate.slots, inherited)?;
    let age = Duration::from_secs(estate.tickets_age_s);
    let tickets = TicketRing::adopt(estate.tickets, age);
    let mut setup = checked.assemble(state, addresses, local, tickets, inherited, users)?;
    setup.generation = estate.generation;
    if setup.tls_digest() != estate.tls_digest {
        tracing::info!("the configuration of TLS has changed: clients begin new sessions");
        setup.tickets = TicketRing::new(crate::ticket_ring::random_key)
            .ok_or_else(|| Failure::fatal("cannot start: no random numbers"))?;
    }
    let heritage = Heritage {
        control_pid: estate.control_pid,
    };
    Ok((setup, heritage))
}
