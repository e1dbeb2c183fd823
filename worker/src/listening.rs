//! One address that this worker accepts on: how it is listened to, and what came of it.
//!
//! Shared by the accepting task and the connections that came from there, which may outlive the listener.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fleet_protocol::limits::{Allowed, EXCHANGE_DEADLINE};
use fleet_protocol::networks::Networks;
use fleet_protocol::slot;
use fleet_protocol::stats::ListenerStats;
use tokio::sync::Notify;

use crate::queue::Queue;

/// See the module.
pub(crate) struct Listening {
    pub(crate) address: SocketAddr,
    /// Who may connect here, each time with a PROXY v2 header; anybody without one if none.
    pub(crate) balancers: Option<Networks>,
    open: Cell<u32>,
    accepted: Cell<u64>,
    refused: Cell<u64>,
    queue: RefCell<Queue>,
    is_withdrawn: Cell<bool>,
    /// Agents that connected while nobody accepted have given up by then; `None` when there are none.
    calm_from: Cell<Option<Instant>>,
    changed: Notify,
}

impl Listening {
    pub(crate) fn new(listener: &slot::Listener) -> Rc<Self> {
        Rc::new(Self {
            address: listener.address,
            balancers: listener.balancers.clone(),
            open: Cell::new(0),
            accepted: Cell::new(0),
            refused: Cell::new(0),
            queue: RefCell::default(),
            is_withdrawn: Cell::new(false),
            calm_from: Cell::new(None),
            changed: Notify::new(),
        })
    }

    pub(crate) fn enter(&self) {
        self.open.set(self.open.get() + 1);
        self.accepted.set(self.accepted.get() + 1);
    }

    pub(crate) fn leave(&self) {
        self.open.set(self.open.get().saturating_sub(1));
    }

    /// Counts a request or a connection that was refused.
    pub(crate) fn refuse(&self) {
        self.refused.set(self.refused.get() + 1);
    }

    /// Nobody waits to be accepted.
    pub(crate) fn emptied(&self) {
        self.queue.borrow_mut().emptied();
    }

    /// The longest wait with which somebody is served now; the next one has waited for `age`.
    pub(crate) fn longest_wait(&self, age: Duration, allowed: &Allowed) -> Duration {
        let mut queue = self.queue.borrow_mut();
        queue.longest_wait(age, allowed, Instant::now())
    }

    /// Some have waited to be accepted, and nobody knows for how long. A full queue also kept others out, who try again.
    pub(crate) fn disturb(&self, now: Instant) {
        self.calm_from.set(Some(now + EXCHANGE_DEADLINE));
    }

    /// Whether whoever is here connected when he was accepted, so that his time is known.
    pub(crate) fn is_calm(&self, now: Instant) -> bool {
        self.calm_from.get().is_none_or(|from| now >= from)
    }

    /// Tells the accepting task to take what waits and to end.
    pub(crate) fn withdraw(&self) {
        self.is_withdrawn.set(true);
        self.changed.notify_waiters();
    }

    pub(crate) fn is_withdrawn(&self) -> bool {
        self.is_withdrawn.get()
    }

    /// Whether nobody will accept here any more and nothing is open: it can be forgotten.
    pub(crate) fn is_over(&self) -> bool {
        self.is_withdrawn.get() && self.open.get() == 0
    }

    pub(crate) async fn withdrawn(&self) {
        while !self.is_withdrawn.get() {
            self.changed.notified().await;
        }
    }

    /// Takes over the counts of one that is over.
    pub(crate) fn inherit(&self, of: &Self) {
        self.accepted.set(self.accepted.get() + of.accepted.get());
        self.refused.set(self.refused.get() + of.refused.get());
    }

    pub(crate) fn stats(&self) -> ListenerStats {
        ListenerStats {
            address: self.address,
            open: self.open.get(),
            accepted: self.accepted.get(),
            refused: self.refused.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_calm_again_when_all_who_waited_have_given_up() {
        let listening = Listening::new(&slot::Listener {
            address: "192.0.2.1:8080".parse().unwrap(),
            fd: 0,
            balancers: None,
        });
        let now = Instant::now();
        assert!(listening.is_calm(now));
        listening.disturb(now);
        let again = now + EXCHANGE_DEADLINE;
        assert!(!listening.is_calm(now));
        assert!(!listening.is_calm(again - Duration::from_millis(1)));
        assert!(listening.is_calm(again));
        listening.disturb(again);
        assert!(!listening.is_calm(again));
    }
}
