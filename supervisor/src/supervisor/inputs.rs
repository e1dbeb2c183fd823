//! What the supervisor's loop listens to, and the loop.

use fleet_protocol::limits::STATS_INTERVAL;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep_until};

use super::Supervisor;
use crate::admin::Ask;
use crate::claiming;
use crate::process::Heard;
use crate::signals::Signals;

const HEARD_MAX: usize = 1024;
const ASKS_MAX: usize = 16;
const CLAIMS_MAX: usize = 1024;

/// The ends that tasks send to.
pub(super) struct Senders {
    pub(super) heard: mpsc::Sender<Heard>,
    pub(super) asks: mpsc::Sender<Ask>,
    pub(super) claims: mpsc::Sender<claiming::News>,
}

/// What the loop listens to.
pub(super) struct Inputs {
    heard: mpsc::Receiver<Heard>,
    asks: mpsc::Receiver<Ask>,
    claimed: mpsc::Receiver<claiming::News>,
    claims_heard: Vec<claiming::News>,
    signals: Signals,
    ticks: Interval,
}

impl Inputs {
    /// Nothing has come yet. Must be called within a runtime.
    pub(super) fn open(signals: Signals) -> (Self, Senders) {
        let (heard_sender, heard) = mpsc::channel(HEARD_MAX);
        let (asks_sender, asks) = mpsc::channel(ASKS_MAX);
        let (claims_sender, claimed) = mpsc::channel(CLAIMS_MAX);
        let mut ticks = interval(STATS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let inputs = Self {
            heard,
            asks,
            claimed,
            claims_heard: Vec::new(),
            signals,
            ticks,
        };
        let senders = Senders {
            heard: heard_sender,
            asks: asks_sender,
            claims: claims_sender,
        };
        (inputs, senders)
    }
}

impl Supervisor {
    /// The loop. Returns when everything is over.
    pub(super) async fn live(&mut self, inputs: &mut Inputs) {
        let Inputs {
            heard,
            asks,
            claimed,
            claims_heard,
            signals,
            ticks,
        } = inputs;
        let supervisor = self;
        loop {
            supervisor.turn();
            if supervisor.is_over() {
                return;
            }
            let due = supervisor.started + supervisor.due_at();
            tokio::select! {
                Some(heard) = heard.recv() => supervisor.hear(heard),
                Some(ask) = asks.recv() => supervisor.answer(ask),
                peer = supervisor.upgrade.hear() => supervisor.hear_peer(peer),
                _ = claimed.recv_many(claims_heard, CLAIMS_MAX), if !claimed.is_closed() => {
                    supervisor.hear_claims(claims_heard.drain(..));
                }
                _ = signals.terminate.recv() => supervisor.take_signal("SIGTERM"),
                _ = signals.interrupt.recv() => supervisor.take_signal("SIGINT"),
                _ = signals.hang_up.recv() => supervisor.take_hang_up(),
                _ = ticks.tick() => supervisor.tick(),
                () = sleep_until(due.into()) => {}
            }
        }
    }
}
