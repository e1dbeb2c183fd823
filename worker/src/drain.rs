//! The worker's life: ready, reports each second, and an end in which nothing that is open is lost.
//!
//! The end begins when the supervisor says so, or when its end of the channel closes because it is gone.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use fleet_protocol::limits::{DRAIN_DEADLINE, STATS_INTERVAL, SWEEP_TIME};
use fleet_protocol::sandbox::Sandbox;
use fleet_protocol::slot::{FromChild, Listener, Reload};
use fleet_protocol::tickets::TicketKeys;
use socket2::Socket;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::channel::{Channel, Ears, Mouth, Word};
use crate::listening::Listening;
use crate::terms::Terms;
use crate::{Worker, accept, link, stats};

/// Part of the drain's time that is kept for what still has to reach control.
const FINISH_SHARE: u32 = 8;

/// Whether the end has begun.
#[derive(Default)]
pub(crate) struct Drain {
    is_begun: Cell<bool>,
    begun: Notify,
}

impl Drain {
    fn begin(&self) {
        self.is_begun.set(true);
        self.begun.notify_waiters();
    }

    pub(crate) fn is_begun(&self) -> bool {
        self.is_begun.get()
    }

    /// Returns when the end has begun.
    pub(crate) async fn begun(&self) {
        while !self.is_begun.get() {
            self.begun.notified().await;
        }
    }
}

/// Serves until the end, and through it. Must be what the runtime blocks on.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    channel: Channel,
    listeners: Vec<(Listener, Socket)>,
    sandbox: Sandbox,
) -> anyhow::Result<()> {
    let state = Rc::clone(&worker.state);
    let is_link_lost = Notify::new();
    let life = live(worker, channel, listeners, sandbox, &is_link_lost);
    link::beside(state, &is_link_lost, life).await
}

async fn live(
    worker: Rc<Worker>,
    channel: Channel,
    listeners: Vec<(Listener, Socket)>,
    sandbox: Sandbox,
    is_link_lost: &Notify,
) -> anyhow::Result<()> {
    let (ears, mut mouth) = channel.split()?;
    let mut lasting = JoinSet::new();
    lasting.spawn_local(Rc::clone(&worker.clock).run());
    lasting.spawn_local(accept::call_laps(Rc::clone(&worker)));
    let mut accepts = JoinSet::new();
    listen(&worker, &mut accepts, listeners);
    let boot = worker.state.boot;
    mouth.say(&FromChild::Ready { boot, sandbox }).await?;
    tracing::info!(listeners = accepts.len(), "serving");
    // Not a task, which would wait for its turn behind every connection that is ready: to the supervisor a worker that does
    // not report stands still.
    tokio::select! {
        end = attend(&worker, ears, lasting, accepts, is_link_lost) => end,
        never = report(&worker, mouth) => match never {},
    }
}

/// Does what the supervisor says, until the end and through it.
async fn attend(
    worker: &Rc<Worker>,
    mut ears: Ears,
    mut lasting: JoinSet<()>,
    mut accepts: JoinSet<accept::End>,
    is_link_lost: &Notify,
) -> anyhow::Result<()> {
    // A task that ends before its time has panicked or lost its socket: what is open is finished, and another process
    // takes over.
    let (time, is_broken) = loop {
        tokio::select! {
            word = ears.next() => match word {
                Ok(Word::Drain(time)) => break (time, false),
                Ok(Word::Listen(listeners)) => listen(worker, &mut accepts, listeners),
                Ok(Word::Sweep(listeners)) => sweep(worker, &mut accepts, listeners),
                Ok(Word::Withdraw(addresses)) => withdraw(worker, &addresses),
                Ok(Word::Tickets(keys)) => turn_tickets(worker, &keys),
                Ok(Word::Reload(reload)) => take(worker, &reload),
                Ok(Word::Limits(limits)) => worker.set_limits(&limits),
                Err(error) => {
                    tracing::warn!(%error, "no word from the supervisor any more");
                    break (DRAIN_DEADLINE, false);
                }
            },
            Some(end) = accepts.join_next() => if !matches!(end, Ok(accept::End::AsTold)) {
                break (DRAIN_DEADLINE, true);
            },
            _ = lasting.join_next() => break (DRAIN_DEADLINE, true),
            () = is_link_lost.notified() => break (DRAIN_DEADLINE, true),
        }
    };
    let begun_at = Instant::now();
    tracing::info!(open = worker.door.open(), ?time, "draining");
    worker.policy.may_reuse.set(false);
    worker.drain.begin();
    worker.clock.wake_all();
    let exchanges = async {
        while accepts.join_next().await.is_some() {}
        worker.door.empty().await;
    };
    let exchanges_time = time - time / FINISH_SHARE;
    if tokio::time::timeout(exchanges_time, exchanges)
        .await
        .is_err()
    {
        tracing::warn!(
            open = worker.door.open(),
            "connections are cut at the end of the drain"
        );
    }
    let rest = time.saturating_sub(begun_at.elapsed());
    if tokio::time::timeout(rest, link::finish(&worker.state))
        .await
        .is_err()
    {
        tracing::warn!("control has not taken everything by the end of the drain");
    }
    tracing::info!(after = ?begun_at.elapsed(), "drained");
    anyhow::ensure!(!is_broken, "a task of this worker has broken");
    Ok(())
}

fn listen(
    worker: &Rc<Worker>,
    accepts: &mut JoinSet<accept::End>,
    listeners: Vec<(Listener, Socket)>,
) {
    for (listener, socket) in listeners {
        let listening = Listening::new(&listener);
        worker.listenings.borrow_mut().push(Rc::clone(&listening));
        accepts.spawn_local(accept::run(Rc::clone(worker), listening, socket));
    }
}

/// Takes what waits on listeners of a slot that is given up. They may stop to listen under it.
fn sweep(
    worker: &Rc<Worker>,
    accepts: &mut JoinSet<accept::End>,
    listeners: Vec<(Listener, Socket)>,
) {
    for (listener, socket) in listeners {
        let listening = Listening::new(&listener);
        worker.listenings.borrow_mut().push(Rc::clone(&listening));
        let worker = Rc::clone(worker);
        accepts.spawn_local(async move {
            let mut accept = std::pin::pin!(accept::run(worker, Rc::clone(&listening), socket));
            if tokio::time::timeout(SWEEP_TIME, &mut accept).await.is_err() {
                listening.withdraw();
                accept.await;
            }
            // A listener that ended before its time is not a fault of this worker; nobody accepts there any more.
            listening.withdraw();
            accept::End::AsTold
        });
    }
}

fn withdraw(worker: &Worker, addresses: &[SocketAddr]) {
    for listening in worker.listenings.borrow().iter() {
        if addresses.contains(&listening.address) {
            listening.withdraw();
        }
    }
    worker.state.holds.borrow().wake_all();
}

fn turn_tickets(worker: &Worker, keys: &TicketKeys) {
    let terms = worker.terms();
    if let Some(error) = terms.and_then(|terms| terms.tickets.turn(keys).err()) {
        tracing::error!(
            error = format!("{error:#}"),
            "ticket keys stay as they were"
        );
    }
}

/// New handshakes are spoken on new terms; those that have begun, and what is open, go on as they are.
fn take(worker: &Worker, reload: &Reload) {
    fleet_child::log::set(&reload.config.logging);
    let Some(tls) = &reload.tls else {
        return;
    };
    match Terms::new(tls, &reload.config) {
        Ok(terms) => *worker.tls.borrow_mut() = Some(Rc::new(terms)),
        // The supervisor has checked them, so this is a mistake of ours.
        Err(error) => tracing::error!(
            error = format!("{error:#}"),
            "certificates stay as they were"
        ),
    }
}

/// Sends the counters each second. A supervisor that does not read holds up nothing but this.
async fn report(worker: &Worker, mut mouth: Mouth) -> Infallible {
    let mut interval = tokio::time::interval(STATS_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        interval.tick().await;
        let mut stats = stats::report(&worker.state);
        worker.door.report(&mut stats);
        stats.deferred_turns = worker.turns.borrow().deferred();
        stats.listeners = worker.report_listenings();
        if let Err(error) = mouth.say(&FromChild::Worker(Box::new(stats))).await {
            // It is gone, which the other direction notices.
            tracing::debug!(%error, "no report");
            return std::future::pending().await;
        }
    }
}
