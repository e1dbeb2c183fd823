//! Adds and removes claimed addresses beside the supervisor's loop, which must not wait for the network.

use std::net::IpAddr;

use ipnet::IpNet;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::addresses::Effect;
use crate::claim::Claims;

/// More than there are addresses; an order that finds no room comes again.
const ORDERS_MAX: usize = 4096;

/// What became of one address: why it was refused, or nothing.
pub(crate) type News = (IpNet, Option<String>);

/// The running task.
#[derive(Debug)]
pub(crate) struct Claiming {
    orders: mpsc::Sender<Effect>,
    task: JoinHandle<()>,
}

impl Claiming {
    /// Takes orders from now on.
    pub(crate) fn start(claims: Claims, news: mpsc::Sender<News>) -> Self {
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        Self {
            task: tokio::spawn(obey(claims, orders, news)),
            orders: sender,
        }
    }

    /// Takes no orders: another supervisor holds the addresses.
    pub(crate) fn none() -> Self {
        let (orders, _) = mpsc::channel(1);
        Self {
            orders,
            task: tokio::spawn(async {}),
        }
    }

    /// Leaves everything as it is, noted on disk, to whoever opens the record.
    pub(crate) fn abandon(&mut self) {
        self.task.abort();
    }

    /// Has something done.
    pub(crate) fn order(&self, effect: Effect) {
        let _ = self.orders.try_send(effect);
    }

    /// Removes everything that was added.
    pub(crate) async fn end(self) {
        drop(self.orders);
        // A task that has panicked says so itself; the next start removes what is left.
        let _ = self.task.await;
    }
}

async fn obey(mut claims: Claims, mut orders: mpsc::Receiver<Effect>, news: mpsc::Sender<News>) {
    let mut effects = Vec::new();
    while orders.recv_many(&mut effects, ORDERS_MAX).await > 0 {
        let (mut wanted, mut over): (Vec<IpNet>, Vec<IpAddr>) = Default::default();
        for effect in effects.drain(..) {
            match effect {
                Effect::Claim(claim) => wanted.push(claim),
                Effect::Release(claim) => over.push(claim.addr()),
            }
        }
        if !over.is_empty() {
            claims.release(&over).await;
        }
        for result in take(&mut claims, &wanted).await {
            if news.send(result).await.is_err() {
                break;
            }
        }
    }
    claims.release_all().await;
}

/// Adds what is not there yet.
pub(crate) async fn take(claims: &mut Claims, wanted: &[IpNet]) -> Vec<News> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let taken = claims.take(wanted).await;
    let refusal = |result: Result<_, crate::claim::Refusal>| result.err().map(|r| r.to_string());
    taken
        .into_iter()
        .map(|(claim, result)| (claim, refusal(result)))
        .collect()
}
