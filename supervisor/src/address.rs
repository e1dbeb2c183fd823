//! One address that agents connect to: bound, in trouble, or leaving; and what came to it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use fleet_protocol::address::{AddressState, AddressView};
use fleet_protocol::stats::ListenerStats;

use crate::listener::{self, Group, Slots};
use crate::local_addresses::LocalAddresses;
use crate::port_owner;
use crate::rate::Rate;
use crate::wanted::Wanted;

/// Between two tries to bind or to claim.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Workers have taken what waited, and have reported it.
const CLOSE_TIME: Duration = Duration::from_secs(3);
/// What connections get to finish; an agent gives up after 16 s by itself.
const CLOSE_LIMIT: Duration = Duration::from_secs(20);

/// See the module.
#[derive(Debug)]
pub(crate) struct Address {
    /// What the configuration says.
    pub(crate) wanted: Wanted,
    /// Its sockets, once it is bound and until it is closed.
    pub(crate) group: Option<Group>,
    trouble: Option<Trouble>,
    /// It must be added to its interface first, or again.
    is_claim_due: bool,
    retry_at: Duration,
    leaving: Option<Leaving>,
    /// Some slots do not listen that shall.
    is_short: bool,
    foreign: Foreign,
    figures: Figures,
}

/// Sockets of others that listen where we do. Only programs of our own user can.
#[derive(Debug, Default)]
struct Foreign {
    inodes: Vec<u64>,
    /// Agents get there. They do not while the kernel keeps to our weights, unless it is bound to one of the addresses
    /// that we have as a whole.
    is_reached: bool,
    /// For people; empty when there are none.
    reason: String,
}

/// Why it does not serve.
#[derive(Debug)]
struct Trouble {
    kind: Option<io::ErrorKind>,
    reason: String,
}

#[derive(Clone, Copy, Debug)]
enum Leaving {
    /// Those who were told of it still come.
    Notice { until: Duration },
    /// It listens no more; what is open finishes.
    Closing { since: Duration },
}

#[derive(Debug, Default)]
struct Figures {
    /// Of workers that have ended.
    past: Counts,
    /// Of all workers, with those.
    all: Counts,
    accepts: Rate,
}

/// What came to an address.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    open: u64,
    accepted: u64,
    refused: u64,
}

impl Counts {
    /// Adds a worker's report.
    pub(crate) fn add(&mut self, of: &ListenerStats) {
        self.open += u64::from(of.open);
        self.accepted += of.accepted;
        self.refused += of.refused;
    }
}

impl Address {
    /// Neither bound nor claimed yet; both are due.
    pub(crate) fn new(wanted: Wanted, now: Duration) -> Self {
        Self {
            is_claim_due: wanted.claim.is_some(),
            wanted,
            group: None,
            trouble: None,
            retry_at: now,
            leaving: None,
            is_short: false,
            foreign: Foreign::default(),
            figures: Figures::default(),
        }
    }

    /// Bound by the supervisor before this one, and claimed if it is to be.
    pub(crate) fn adopt(wanted: Wanted, group: Group, now: Duration) -> Self {
        Self {
            is_claim_due: false,
            group: Some(group),
            ..Self::new(wanted, now)
        }
    }

    /// As bound, or as wanted until then.
    pub(crate) fn address(&self) -> SocketAddr {
        self.group
            .as_ref()
            .map_or(self.wanted.address, Group::address)
    }

    /// Binds and listens.
    pub(crate) fn bind(&mut self, slots: &Slots, now: Duration) {
        let bound = Group::bind(self.wanted.address, slots).and_then(|mut group| {
            group.listen(slots)?;
            Ok(group)
        });
        match bound {
            Ok(group) => {
                self.group = Some(group);
                self.trouble = None;
            }
            Err(error) => {
                self.retry_at = now + RETRY_INTERVAL;
                let kind = Some(error.kind());
                // To find who has the port takes time; once is enough.
                if self.trouble.as_ref().is_none_or(|old| old.kind != kind) {
                    let reason = listener::explain(self.wanted.address, &error);
                    self.trouble = Some(Trouble { kind, reason });
                }
            }
        }
    }

    /// Lets the slots listen that shall.
    pub(crate) fn listen(&mut self, slots: &Slots) {
        let Some(group) = &mut self.group else {
            return;
        };
        let listening = group.listen(slots);
        let address = group.address();
        // What a slot lacks it gets a second later, if it can.
        if let Err(error) = &listening
            && !self.is_short
        {
            tracing::warn!(%address, %error, "not every slot listens");
        }
        self.is_short = listening.is_err();
    }

    /// Whether other programs listen here.
    pub(crate) fn is_shared(&self) -> bool {
        !self.foreign.inodes.is_empty()
    }

    /// Hears which sockets of others listen on this machine. A sentence, when one that was not known is in our way.
    pub(crate) fn meet(&mut self, others: &[(SocketAddr, u64)], slots: &Slots) -> Option<String> {
        let group = self.group.as_mut()?;
        let own = group.address();
        let is_here = |(address, _): &&(SocketAddr, u64)| {
            *address == own
                || (address.port() == own.port()
                    && own.ip().is_unspecified()
                    && address.is_ipv4() == own.is_ipv4())
        };
        let here: Vec<_> = others.iter().filter(is_here).collect();
        let inside = here.iter().filter(|(address, _)| *address == own);
        group.meet(&inside.map(|(_, inode)| *inode).collect::<Vec<_>>());
        group.steer(&slots.weights);
        let is_outside = here.iter().any(|(address, _)| *address != own);
        let is_reached = !here.is_empty() && (is_outside || !group.is_steered());
        let inodes: Vec<u64> = here.iter().map(|(_, inode)| *inode).collect();
        if self.foreign.inodes == inodes && self.foreign.is_reached == is_reached {
            return None;
        }
        let reason = foreign_reason(&inodes, is_reached);
        let is_news = inodes
            .iter()
            .any(|inode| !self.foreign.inodes.contains(inode));
        self.foreign = Foreign {
            inodes,
            is_reached,
            reason,
        };
        is_news.then(|| format!("{own}: {}", self.foreign.reason))
    }

    /// Hears whether it could be added to its interface.
    pub(crate) fn hear_claim(&mut self, refusal: Option<&str>, now: Duration) {
        match refusal {
            None => {
                self.is_claim_due = false;
                self.retry_at = now;
            }
            Some(reason) => {
                self.is_claim_due = true;
                self.retry_at = now + RETRY_INTERVAL;
                self.set_trouble(reason);
            }
        }
    }

    fn set_trouble(&mut self, reason: &str) {
        if self
            .trouble
            .as_ref()
            .is_some_and(|old| old.reason == reason)
        {
            return;
        }
        tracing::warn!("{} is degraded: {reason}", self.address());
        let reason = reason.to_owned();
        self.trouble = Some(Trouble { kind: None, reason });
    }

    /// Stops being told of, and listens until `until`.
    pub(crate) fn leave(&mut self, until: Duration) {
        self.leaving.get_or_insert(Leaving::Notice { until });
    }

    /// Is to be served or claimed in another way.
    pub(crate) fn want(&mut self, wanted: Wanted, now: Duration) {
        if wanted.claim.is_some() && wanted.claim != self.wanted.claim {
            self.is_claim_due = true;
            self.retry_at = now;
        } else if wanted.claim.is_none() {
            self.is_claim_due = false;
        }
        self.wanted = wanted;
    }

    /// It waits until our own sockets on another address are closed.
    pub(crate) fn wait_for(&mut self, other: SocketAddr, now: Duration) {
        self.set_trouble(&format!(
            "waits for {other}, which is withdrawn, to be closed"
        ));
        self.retry_at = now;
    }

    /// Whether both cannot be bound at the same time.
    pub(crate) fn excludes(&self, other: SocketAddr) -> bool {
        let own = self.address();
        let is_any = |address: SocketAddr| address.ip().is_unspecified();
        own.port() == other.port()
            && own.is_ipv4() == other.is_ipv4()
            && (own.ip() == other.ip() || is_any(own) || is_any(other))
    }

    /// Whether it is wanted.
    pub(crate) fn is_wanted(&self) -> bool {
        self.leaving.is_none()
    }

    /// Takes it back if it still listens.
    pub(crate) fn stay(&mut self) -> bool {
        if matches!(self.leaving, Some(Leaving::Closing { .. })) {
            return false;
        }
        self.leaving = None;
        true
    }

    /// Does what is due. True when it must be added to its interface now.
    pub(crate) fn turn(&mut self, slots: &Slots, local: &LocalAddresses, now: Duration) -> bool {
        match self.leaving {
            Some(Leaving::Notice { until }) if now >= until => {
                self.wanted.address = self.address();
                self.group = None;
                self.leaving = Some(Leaving::Closing { since: now });
            }
            Some(_) => self.listen(slots),
            None => return self.turn_wanted(slots, local, now),
        }
        false
    }

    fn turn_wanted(&mut self, slots: &Slots, local: &LocalAddresses, now: Duration) -> bool {
        if self.group.is_none() {
            if self.is_claim_due || now < self.retry_at {
                return self.claim_again(now);
            }
            self.bind(slots, now);
            if self.group.is_some() {
                tracing::info!("{} serves", self.address());
            }
            return false;
        }
        self.listen(slots);
        match local.trouble(self.wanted.address.ip()) {
            Some(reason) => {
                self.set_trouble(&reason);
                self.is_claim_due = self.wanted.claim.is_some();
            }
            None if self.trouble.is_some() => {
                tracing::info!("{} serves again", self.address());
                self.trouble = None;
                self.is_claim_due = false;
            }
            None => {}
        }
        self.claim_again(now)
    }

    fn claim_again(&mut self, now: Duration) -> bool {
        let is_due = self.is_claim_due && now >= self.retry_at;
        if is_due {
            self.retry_at = now + RETRY_INTERVAL;
        }
        is_due
    }

    /// Whether it has left.
    pub(crate) fn is_over(&self, now: Duration) -> bool {
        let Some(Leaving::Closing { since }) = self.leaving else {
            return false;
        };
        let time = now.saturating_sub(since);
        time >= CLOSE_LIMIT || (time >= CLOSE_TIME && self.figures.all.open == 0)
    }

    /// Takes what all workers together report.
    pub(crate) fn count(&mut self, reported: Counts, now: Duration) {
        let past = self.figures.past;
        self.figures.all = Counts {
            open: reported.open,
            accepted: past.accepted + reported.accepted,
            refused: past.refused + reported.refused,
        };
        self.figures.accepts.record(now, self.figures.all.accepted);
    }

    /// Keeps the counts of a worker that has ended.
    pub(crate) fn keep(&mut self, of: &ListenerStats) {
        self.figures.past.add(of);
    }

    /// Accepted each second.
    pub(crate) fn accepts_per_s(&self) -> f64 {
        self.figures.accepts.per_second()
    }

    /// What operators see; `share` is its part of all accepts.
    pub(crate) fn view(&self, share: f64) -> AddressView {
        AddressView {
            address: self.address(),
            state: self.state(),
            reason: self.reason(),
            is_claimed: self.wanted.claim.is_some(),
            is_proxied: self.wanted.balancers.is_some(),
            open: self.figures.all.open,
            accepted: self.figures.all.accepted,
            accepts_per_s: self.accepts_per_s(),
            refused: self.figures.all.refused,
            share,
            foreign_listeners: u32::try_from(self.foreign.inodes.len()).unwrap_or(u32::MAX),
        }
    }

    fn state(&self) -> AddressState {
        match (&self.leaving, &self.trouble, &self.group) {
            (Some(_), _, _) => AddressState::Leaving,
            (None, None, Some(_)) if !self.foreign.is_reached => AddressState::Serving,
            _ => AddressState::Degraded,
        }
    }

    /// Why it is not serving.
    pub(crate) fn reason(&self) -> String {
        match (&self.leaving, &self.trouble) {
            (Some(Leaving::Notice { .. }), _) => "withdrawn; serves those who know it".into(),
            (Some(Leaving::Closing { .. }), _) => "withdrawn; open connections finish".into(),
            (None, Some(trouble)) => trouble.reason.clone(),
            (None, None) if self.group.is_none() => "not bound yet".into(),
            (None, None) => self.foreign.reason.clone(),
        }
    }
}

/// Looks through all processes for one that has such a socket.
fn foreign_reason(inodes: &[u64], is_reached: bool) -> String {
    if inodes.is_empty() {
        return String::new();
    }
    let owner = port_owner::owner(inodes).map_or("another program".into(), |owner| {
        format!("pid {} ({})", owner.pid, owner.program)
    });
    let effect = if is_reached {
        "takes agents away; stop it"
    } else {
        "gets no connections while it is there; stop it"
    };
    format!("shared by {owner}, which {effect}")
}
