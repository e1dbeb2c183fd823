//! The addresses that agents connect to: what is wanted, what serves, what leaves.
//!
//! Owner of all listening TCP sockets. Invariants: an address that cannot be bound, or is gone from its interface, is
//! tried again while the others serve; a withdrawn address goes on listening for as long as somebody may have been told
//! of it; workers are told of every change, and told again until they have taken it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use fleet_protocol::address::AddressView;
use fleet_protocol::config::Config;
use fleet_protocol::networks::Networks;
use fleet_protocol::slot;
use fleet_protocol::stats::WorkerStats;
use fleet_protocol::upgrade::{Item, ItemKind};
use ipnet::IpNet;

use crate::address::{Address, Counts};
use crate::exit::Failure;
use crate::listener::{Group, Slots};
use crate::local_addresses::LocalAddresses;
use crate::upgrade::Inheritance;
use crate::wanted::Wanted;

/// Added to the time that resolvers remember a name, before a withdrawn address stops to listen.
const NOTICE_MARGIN: Duration = Duration::from_secs(2);

/// What the loop has to do for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Add it to the interface.
    Claim(IpNet),
    /// It is over: remove it from the interface.
    Release(IpNet),
}

/// The listeners that a worker has, and who may connect to each.
pub(crate) type Given = HashMap<SocketAddr, Option<Networks>>;

/// What a new list has changed.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    /// Served from now on, too.
    pub(crate) added: Vec<SocketAddr>,
    /// Served on, in another way.
    pub(crate) changed: Vec<SocketAddr>,
    /// About to leave.
    pub(crate) withdrawn: Vec<SocketAddr>,
}

/// What a worker that runs already must be told.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// Listeners that it lacks.
    pub(crate) listen: Vec<(slot::Listener, OwnedFd)>,
    /// Listeners that it must give up.
    pub(crate) withdraw: Vec<SocketAddr>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Addresses {
    /// In the order of the configuration; those that leave at the end.
    list: Vec<Address>,
    /// To be removed from the interface while their addresses are still served otherwise, or not at all.
    unclaimed: Vec<IpNet>,
    slots: Slots,
    notice: Duration,
}

impl Addresses {
    /// Binds what is wanted, for `slots` slots. What cannot be bound is tried again later, unless nothing can: then the
    /// first reason is the failure. `claimed` says of each address that was to be claimed why it was not, if so.
    pub(crate) fn open(
        config: &Config,
        wanted: Vec<Wanted>,
        slots: u16,
        claimed: &[(IpNet, Option<String>)],
    ) -> Result<Self, Failure> {
        let now = Duration::ZERO;
        let slots = Slots {
            is_open: vec![true; usize::from(slots)],
            weights: Vec::new(),
            backlog: i32::try_from(config.server.backlog).unwrap_or(i32::MAX),
        };
        let mut list: Vec<_> = wanted
            .into_iter()
            .map(|wanted| Address::new(wanted, now))
            .collect();
        for address in &mut list {
            let claim = claimed
                .iter()
                .find(|(claim, _)| Some(*claim) == address.wanted.claim);
            let refusal = claim.and_then(|(_, refusal)| refusal.as_deref());
            address.hear_claim(refusal, now);
            if refusal.is_none() {
                address.bind(&slots, now);
            }
        }
        if list.iter().all(|address| address.group.is_none()) {
            let first = list.first().map(|of| (of.address(), of.reason()));
            let (address, reason) = first.ok_or_else(|| Failure::config("no server.address"))?;
            return Err(Failure::fatal(format!(
                "cannot listen on {address}: {reason}"
            )));
        }
        for of in list.iter().filter(|of| of.group.is_none()) {
            let (address, reason) = (of.address(), of.reason());
            tracing::warn!("{address} is degraded, tried again while others serve: {reason}");
        }
        Ok(Self {
            list,
            unclaimed: Vec::new(),
            slots,
            notice: notice(config),
        })
    }

    /// Takes over what the supervisor before this one listens on. What is wanted beside that is bound later; to want less
    /// is refused, because those who were told of an address need time to learn better.
    pub(crate) fn adopt(
        config: &Config,
        wanted: Vec<Wanted>,
        slots: u16,
        inherited: &mut Inheritance,
    ) -> Result<Self, Failure> {
        let now = Duration::ZERO;
        let mut list = Vec::new();
        let mut is_open = vec![false; usize::from(slots)];
        for wanted in wanted {
            let sockets = inherited.take_group(wanted.address);
            for (slot, _) in &sockets {
                if let Some(is_open) = is_open.get_mut(*slot) {
                    *is_open = true;
                }
            }
            let group = Group::adopt(sockets).map_err(|error| {
                Failure::fatal(format!(
                    "the socket of {} is of no use: {error}",
                    wanted.address
                ))
            })?;
            list.push(match group {
                Some(group) => Address::adopt(wanted, group, now),
                None => Address::new(wanted, now),
            });
        }
        if let Some(address) = inherited.left().first() {
            return Err(Failure::config(format!(
                "server.address lacks {address}, which is served now; withdraw it first: fleet-supervisor reload"
            )));
        }
        if list.iter().all(|address| address.group.is_none()) {
            return Err(Failure::fatal("no listener was handed over"));
        }
        Ok(Self {
            list,
            unclaimed: Vec::new(),
            slots: Slots {
                is_open,
                weights: Vec::new(),
                backlog: i32::try_from(config.server.backlog).unwrap_or(i32::MAX),
            },
            notice: notice(config),
        })
    }

    /// Every listener by its identity, those of an address in the kernel's order, to hand over.
    pub(crate) fn items(&self) -> io::Result<Vec<(Item, OwnedFd)>> {
        let mut items = Vec::new();
        for of in &self.list {
            let Some(group) = &of.group else {
                continue;
            };
            for slot in group.slots() {
                let Some(fd) = group.duplicate(slot)? else {
                    continue;
                };
                let item = Item {
                    kind: ItemKind::Agents,
                    address: Some(of.wanted.address),
                    slot: u16::try_from(slot).ok(),
                };
                items.push((item, fd));
            }
        }
        Ok(items)
    }

    /// How many slots there are, with those that do not listen.
    pub(crate) fn slots(&self) -> u16 {
        u16::try_from(self.slots.is_open.len()).unwrap_or(u16::MAX)
    }

    /// Whether a slot listens.
    pub(crate) fn is_open(&self, slot: u16) -> bool {
        let is_open = self.slots.is_open.get(usize::from(slot));
        is_open.is_some_and(|is_open| *is_open)
    }

    /// Whether an address is about to be closed.
    pub(crate) fn is_leaving(&self) -> bool {
        self.list.iter().any(|of| !of.is_wanted())
    }

    /// Addresses that are wanted, in order, as bound where they are.
    pub(crate) fn wanted(&self) -> Vec<SocketAddr> {
        let wanted = self.list.iter().filter(|of| of.is_wanted());
        wanted.map(Address::address).collect()
    }

    /// What the worker of a slot inherits. Descriptors keep their numbers.
    pub(crate) fn of_slot(&self, slot: usize) -> Vec<slot::Listener> {
        self.list
            .iter()
            .filter_map(|of| {
                let group = of.group.as_ref()?;
                Some(slot::Listener {
                    address: group.address(),
                    fd: group.fd(slot)?,
                    balancers: of.wanted.balancers.clone(),
                })
            })
            .collect()
    }

    /// What the worker of a slot must be told that has these listeners. One that is served in another way is given up and
    /// given again; its socket stays, so that no connection is refused.
    pub(crate) fn change(&self, slot: usize, given: &Given) -> io::Result<Change> {
        let mut change = Change::default();
        let mut kept = HashSet::new();
        for (of, group) in self
            .list
            .iter()
            .filter_map(|of| Some((of, of.group.as_ref()?)))
        {
            let address = group.address();
            if given.get(&address) == Some(&of.wanted.balancers) {
                kept.insert(address);
                continue;
            }
            if let Some(fd) = group.duplicate(slot)? {
                let listener = slot::Listener {
                    address,
                    fd: -1,
                    balancers: of.wanted.balancers.clone(),
                };
                change.listen.push((listener, fd));
            }
        }
        let is_over = |address: &&SocketAddr| !kept.contains(address);
        change.withdraw = given.keys().filter(is_over).copied().collect();
        Ok(change)
    }

    fn groups(&mut self) -> impl Iterator<Item = &mut Group> {
        self.list.iter_mut().filter_map(|of| of.group.as_mut())
    }

    /// Divides new connections by these weights, given by slot.
    pub(crate) fn steer(&mut self, weights: Vec<u32>) {
        if self.slots.weights == weights {
            return;
        }
        self.slots.weights.clone_from(&weights);
        self.groups().for_each(|group| group.steer(&weights));
    }

    /// Lets a slot listen everywhere, for the first time or again. Whether it gets connections is for [`Self::steer`].
    pub(crate) fn open_slot(&mut self, slot: usize) {
        let is_open = &mut self.slots.is_open;
        if is_open.len() <= slot {
            is_open.resize(slot + 1, false);
        }
        if let Some(is_open) = is_open.get_mut(slot) {
            *is_open = true;
        }
        for of in &mut self.list {
            of.listen(&self.slots);
        }
    }

    /// Takes a slot's sockets out of their groups. What waits there moves to the others where the kernel moves
    /// connections, and is reset elsewhere.
    pub(crate) fn shut_slot(&mut self, slot: usize) {
        if let Some(is_open) = self.slots.is_open.get_mut(slot) {
            *is_open = false;
        }
        let weights = self.slots.weights.clone();
        self.groups().for_each(|group| {
            group.shut(slot);
            group.steer(&weights);
        });
    }

    /// Ends the sockets of a slot that is no more.
    pub(crate) fn close_slot(&mut self, slot: usize) {
        self.shut_slot(slot);
        self.slots.is_open.truncate(slot);
        self.groups().for_each(|group| group.close(slot));
    }

    /// Whether other programs listen where we do.
    pub(crate) fn is_shared(&self) -> bool {
        self.list.iter().any(Address::is_shared)
    }

    /// Whether somebody waits for a slot.
    pub(crate) fn is_waiting(&self, slot: usize) -> bool {
        let mut groups = self.list.iter().filter_map(|of| of.group.as_ref());
        groups.any(|group| group.is_waiting(slot))
    }

    /// Hears of everybody who listens on this machine; gives sentences about those who share our ports and were not known.
    pub(crate) fn meet(&mut self, listeners: &[(SocketAddr, u64)]) -> Vec<String> {
        let ours: HashSet<u64> = self.groups().flat_map(|group| group.inodes()).collect();
        let others = listeners.iter().filter(|(_, inode)| !ours.contains(inode));
        let others: Vec<_> = others.copied().collect();
        let (slots, list) = (&self.slots, &mut self.list);
        let met = list.iter_mut().filter_map(|of| of.meet(&others, slots));
        met.collect()
    }

    /// Takes a new list.
    pub(crate) fn want(
        &mut self,
        config: &Config,
        wanted: Vec<Wanted>,
        now: Duration,
    ) -> Difference {
        self.notice = notice(config);
        let mut old = std::mem::take(&mut self.list);
        let mut difference = Difference::default();
        for wanted in wanted {
            let same = old
                .iter_mut()
                .position(|of| of.wanted.address == wanted.address && of.stay());
            let address = match same.map(|index| old.remove(index)) {
                Some(mut address) => {
                    if address.wanted != wanted {
                        difference.changed.push(address.address());
                        self.unclaimed.extend(address.wanted.claim);
                    }
                    address.want(wanted, now);
                    address
                }
                None => {
                    difference.added.push(wanted.address);
                    Address::new(wanted, now)
                }
            };
            self.list.push(address);
        }
        for mut address in old {
            if address.is_wanted() {
                difference.withdrawn.push(address.address());
            }
            address.leave(now + self.notice);
            self.list.push(address);
        }
        difference
    }

    /// Hears whether an address could be added to its interface.
    pub(crate) fn hear_claim(&mut self, claim: IpNet, refusal: Option<&str>, now: Duration) {
        let wanted = self.list.iter_mut().filter(|of| of.is_wanted());
        wanted
            .filter(|of| of.wanted.claim == Some(claim))
            .for_each(|of| of.hear_claim(refusal, now));
    }

    /// Does what is due: binds again, notices what has come and gone, lets go of what has left.
    pub(crate) fn turn(&mut self, local: &LocalAddresses, now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        // First what closes, so that what waits for that is bound at once.
        let (mut leaving, mut wanted): (Vec<_>, Vec<_>) =
            self.list.iter_mut().partition(|of| !of.is_wanted());
        for address in &mut leaving {
            address.turn(&self.slots, local, now);
        }
        leaving.retain(|of| of.group.is_some());
        for address in &mut wanted {
            let own = |of: &&mut Address| address.excludes(of.address());
            if address.group.is_none()
                && let Some(other) = leaving.iter().find(|of| own(of)).map(|of| of.address())
            {
                address.wait_for(other, now);
                continue;
            }
            let is_claim_due = address.turn(&self.slots, local, now);
            if is_claim_due && let Some(claim) = address.wanted.claim {
                effects.push(Effect::Claim(claim));
            }
        }
        let mut left = std::mem::take(&mut self.unclaimed);
        self.list.retain(|address| {
            let is_over = address.is_over(now);
            if is_over {
                tracing::info!("{} has left", address.address());
                left.extend(address.wanted.claim);
            }
            !is_over
        });
        // The same address may serve on another port, or be claimed with another prefix.
        let claims = self.list.iter().filter_map(|of| of.wanted.claim);
        let claimed: HashSet<_> = claims.map(|claim| claim.addr()).collect();
        left.retain(|claim| !claimed.contains(&claim.addr()));
        effects.extend(left.into_iter().map(Effect::Release));
        effects
    }

    /// Those that are bound now.
    pub(crate) fn bound(&self) -> Vec<SocketAddr> {
        let groups = self.list.iter().filter_map(|of| of.group.as_ref());
        groups.map(Group::address).collect()
    }

    /// Takes the reports of all workers that run.
    pub(crate) fn count<'a>(
        &mut self,
        reports: impl Iterator<Item = &'a WorkerStats>,
        now: Duration,
    ) {
        let mut counts: HashMap<SocketAddr, Counts> = HashMap::new();
        for of in reports.flat_map(|report| &report.listeners) {
            counts.entry(of.address).or_default().add(of);
        }
        for address in &mut self.list {
            let counts = counts.remove(&address.address()).unwrap_or_default();
            address.count(counts, now);
        }
    }

    /// Keeps the counts of a worker that has ended.
    pub(crate) fn keep(&mut self, report: &WorkerStats) {
        for of in &report.listeners {
            let address = self.list.iter_mut();
            if let Some(address) = address.into_iter().find(|a| a.address() == of.address) {
                address.keep(of);
            }
        }
    }

    /// What operators see.
    pub(crate) fn views(&self) -> Vec<AddressView> {
        let all: f64 = self.list.iter().map(Address::accepts_per_s).sum();
        let share = |rate: f64| if all > 0.0 { rate / all } else { 0.0 };
        let view = |of: &Address| of.view(share(of.accepts_per_s()));
        self.list.iter().map(view).collect()
    }
}

/// How long a withdrawn address goes on listening.
fn notice(config: &Config) -> Duration {
    let dns = &config.addresses.dns;
    if dns.name.is_empty() {
        NOTICE_MARGIN
    } else {
        dns.ttl + NOTICE_MARGIN
    }
}

#[cfg(test)]
#[path = "addresses_tests.rs"]
mod tests;
