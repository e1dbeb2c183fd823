//! Who is let in: the ladder of decisions, cheapest first. Pure: no socket, no clock; hashing is keyed from outside.
//!
//! 1. [`Room`]: connections, and handshakes in progress. Without room the kernel's queue holds back whoever comes, which
//!    costs nothing and smooths.
//! 2. [`judge_wait`]: of those who waited there, who has gone or would not hear an answer in time is closed before TLS.
//! 3. [`Gate::admit_address`]: generous, since whole offices share an address; before TLS, unless only the request's head
//!    names the client.
//! 4. [`Gate::admit_request`] of a host that is known: its bucket, then the route's, so that a host which is refused takes
//!    nothing from the others, and strangers with made-up keys take nothing from hosts. [`Gate::admit_enrolment`]: a share
//!    for each address, then the rate of all.
//! 5. The queues toward control, in `waiting.rs`: their bounds and the age of the oldest request.
//!
//! The queue is served oldest first, and what is too old is dropped at its head; how old that is, `queue.rs` says.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use fleet_protocol::agent::Route;
use fleet_protocol::ids::NodeKeyHash;
use fleet_protocol::limits::Allowed;
use fleet_protocol::stats::Shed;

use crate::buckets::{Bucket, Buckets};

/// Addresses and hosts whose buckets are kept: 16 bytes each.
const ADDRESSES_MAX: usize = 16_384;
const HOSTS_MAX: usize = 65_536;

/// How many there are, and how many may be. Shut at the maximum, open again at nine tenths of it, so that a worker at its
/// bound does not flicker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    taken: u32,
    most: u32,
    is_shut: bool,
    /// Times that it was shut.
    shut_count: u64,
}

impl Room {
    pub(crate) fn new(most: u32) -> Self {
        Self {
            taken: 0,
            most,
            is_shut: false,
            shut_count: 0,
        }
    }

    pub(crate) fn taken(&self) -> u32 {
        self.taken
    }

    pub(crate) fn most(&self) -> u32 {
        self.most
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.is_shut
    }

    pub(crate) fn shut_count(&self) -> u64 {
        self.shut_count
    }

    /// Whether a tenth is left for those that come.
    pub(crate) fn has_spare(&self) -> bool {
        u64::from(self.taken) <= u64::from(self.most) * 9 / 10
    }

    /// True when that shuts it.
    pub(crate) fn enter(&mut self) -> bool {
        self.taken += 1;
        self.shut_if_full()
    }

    /// True when that opens it.
    pub(crate) fn leave(&mut self) -> bool {
        self.taken = self.taken.saturating_sub(1);
        self.open_if_spare()
    }

    /// Whoever is inside stays. True when that opens or shuts it.
    pub(crate) fn resize(&mut self, most: u32) -> bool {
        self.most = most.max(1);
        self.open_if_spare() || self.shut_if_full()
    }

    fn shut_if_full(&mut self) -> bool {
        if self.is_shut || self.taken < self.most {
            return false;
        }
        self.is_shut = true;
        self.shut_count += 1;
        true
    }

    fn open_if_spare(&mut self) -> bool {
        let opens = self.is_shut && self.has_spare();
        self.is_shut &= !opens;
        opens
    }
}

/// What the kernel tells of a connection that is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waited {
    /// Since the peer's latest bytes: the ClientHello, as a connection without any is not handed out for a while.
    pub(crate) age: Duration,
    /// The peer has closed its side.
    pub(crate) is_peer_gone: bool,
}

/// Whether somebody who waited for his accept is not worth a handshake.
pub(crate) fn judge_wait(waited: Waited, age_max: Duration) -> Option<Shed> {
    if waited.is_peer_gone {
        // It ends its side only to end all: a TLS client still has to send.
        return Some(Shed::PeerGone);
    }
    (waited.age > age_max).then_some(Shed::QueueAge)
}

/// The buckets, and what they and the queues behind them refused.
#[derive(Debug)]
pub(crate) struct Gate {
    allowed: Allowed,
    start: Instant,
    hasher: RandomState,
    /// Secret, odd: who does not know it cannot choose a key that shares another's bucket.
    multiplier: u64,
    addresses: Buckets,
    /// Of addresses too: one of them cannot take the enrolments of all.
    enrolments: Buckets,
    hosts: Buckets,
    routes: [Bucket; Route::ALL.len()],
    shed: [u64; Shed::ALL.len()],
}

impl Gate {
    /// `allowed` is this slot's share.
    pub(crate) fn new(allowed: Allowed, hasher: RandomState, now: Instant) -> Self {
        Self {
            allowed,
            start: now,
            multiplier: hasher.hash_one(0_u64) | 1,
            hasher,
            addresses: Buckets::new(allowed.address, ADDRESSES_MAX),
            enrolments: Buckets::new(allowed.enrolments_of_address(), ADDRESSES_MAX),
            hosts: Buckets::new(allowed.host, HOSTS_MAX),
            routes: allowed.routes.map(Bucket::new),
            shed: [0; Shed::ALL.len()],
        }
    }

    pub(crate) fn allowed(&self) -> &Allowed {
        &self.allowed
    }

    /// What each bucket holds stays as it is.
    pub(crate) fn set(&mut self, allowed: Allowed, now: Instant) {
        let at = self.at(now);
        self.allowed = allowed;
        self.addresses.set(allowed.address, at);
        self.enrolments.set(allowed.enrolments_of_address(), at);
        self.hosts.set(allowed.host, at);
        for (bucket, rate) in self.routes.iter_mut().zip(allowed.routes) {
            bucket.set(rate, at);
        }
    }

    /// Whether one more connection of a client's address is let in; of one that is local always.
    pub(crate) fn admit_address(&mut self, client: IpAddr, now: Instant) -> bool {
        let network = network(client);
        if network.is_loopback() {
            return true;
        }
        let client = self.hasher.hash_one(network);
        let is_in = self.addresses.take(client, self.at(now));
        self.count_unless(is_in, Shed::AddressRate)
    }

    /// Whether one more request of a host that is known is let in: by its own bucket first, so that a host which is refused
    /// takes nothing from the others. Strangers have no bucket but their address's. Blocks of a carve are not the host's: a
    /// carve's size is bounded, and one that is cut off fails as a whole.
    pub(crate) fn admit_request(&mut self, key: &NodeKeyHash, route: Route, now: Instant) -> bool {
        let is_in = route == Route::CarveBlock || {
            let client = self.fold(key);
            self.hosts.take(client, self.at(now))
        };
        self.count_unless(is_in, Shed::HostRate) && self.admit_route(route, now)
    }

    /// Whether one more enrolment is let in, from an address and at all.
    pub(crate) fn admit_enrolment(&mut self, client: IpAddr, now: Instant) -> bool {
        let network = network(client);
        let is_in = network.is_loopback() || {
            let client = self.hasher.hash_one(network);
            self.enrolments.take(client, self.at(now))
        };
        self.count_unless(is_in, Shed::EnrollRate) && self.admit_route(Route::Enroll, now)
    }

    /// Whether one more request of all hosts is let in.
    pub(crate) fn admit_route(&mut self, route: Route, now: Instant) -> bool {
        let at = self.at(now);
        let bucket = self.routes.get_mut(route.index());
        let is_in = bucket.is_none_or(|bucket| bucket.take(at));
        let shed = match route {
            Route::Enroll => Shed::EnrollRate,
            _ => Shed::RouteRate,
        };
        self.count_unless(is_in, shed)
    }

    /// A key's hash is spread well already; what it lacks is a secret.
    fn fold(&self, key: &NodeKeyHash) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = key.0;
        let number = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let product = u128::from(number) * u128::from(self.multiplier);
        let (high, low) = (product >> 64, product & u128::from(u64::MAX));
        u64::try_from(high ^ low).unwrap_or_default()
    }

    pub(crate) fn count(&mut self, shed: Shed) {
        if let Some(count) = self.shed.get_mut(shed as usize) {
            *count += 1;
        }
    }

    /// Counts by [`Shed`].
    pub(crate) fn shed(&self) -> [u64; Shed::ALL.len()] {
        self.shed
    }

    fn count_unless(&mut self, is_in: bool, shed: Shed) -> bool {
        if !is_in {
            self.count(shed);
        }
        is_in
    }

    fn at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start)
    }
}

/// A gate without a worker, for tests of other files.
#[cfg(test)]
pub(crate) fn test_gate() -> std::rc::Rc<std::cell::RefCell<Gate>> {
    let allowed = Allowed::of(&fleet_protocol::config::Config::default(), 1);
    let gate = Gate::new(allowed, RandomState::new(), Instant::now());
    std::rc::Rc::new(std::cell::RefCell::new(gate))
}

/// What shares a bucket: an IPv4 address, or the /64 that one IPv6 customer has.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            let mask = u128::MAX << 64;
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use fleet_protocol::config::Config;
    use fleet_protocol::limits::Rate;
    use proptest::prelude::*;

    use super::*;

    fn gate(change: impl FnOnce(&mut Allowed)) -> (Gate, Instant) {
        let mut allowed = Allowed::of(&Config::default(), 1);
        change(&mut allowed);
        let now = Instant::now();
        (Gate::new(allowed, RandomState::new(), now), now)
    }

    const ONE: Rate = Rate {
        per_second: 1,
        burst: 1,
    };

    #[test]
    fn an_ipv6_customer_is_one_client_and_local_programs_are_none() {
        let (mut gate, now) = gate(|allowed| allowed.address = ONE);
        let mut admit = |address: &str| gate.admit_address(address.parse().unwrap(), now);
        for (address, is_in) in [
            ("2001:db8:0:1::1", true),
            ("2001:db8:0:1::2", false),
            ("2001:db8:0:2::1", true),
            ("192.0.2.1", true),
            ("::ffff:192.0.2.1", false),
            ("192.0.2.2", true),
            ("127.0.0.1", true),
            ("127.0.0.1", true),
            ("::1", true),
            ("::1", true),
        ] {
            assert_eq!(admit(address), is_in, "{address}");
        }
        assert_eq!(gate.shed()[Shed::AddressRate as usize], 2);
    }

    #[test]
    fn a_host_that_is_refused_takes_nothing_from_others() {
        let two = Rate {
            per_second: 1,
            burst: 2,
        };
        let (mut gate, now) = gate(|allowed| {
            allowed.host = ONE;
            allowed.routes = [two; Route::ALL.len()];
        });
        let [noisy, quiet] = [NodeKeyHash([1; 32]), NodeKeyHash([2; 32])];
        let mut admit = |key, route| gate.admit_request(key, route, now);
        assert!(admit(&noisy, Route::Log));
        assert!(!admit(&noisy, Route::Log));
        assert!(!admit(&noisy, Route::Read), "one bucket for all routes");
        assert!(admit(&quiet, Route::Log));
        assert!(admit(&noisy, Route::CarveBlock));
        assert!(!gate.admit_route(Route::Log, now));
        assert!(gate.admit_route(Route::Enroll, now));
        let shed = gate.shed();
        assert_eq!(shed[Shed::HostRate as usize], 2);
        assert_eq!(shed[Shed::RouteRate as usize], 1);
        let mut more = *gate.allowed();
        more.routes = [Rate {
            per_second: 1000,
            burst: 3,
        }; Route::ALL.len()];
        gate.set(more, now);
        let later = now + Duration::from_millis(1);
        assert!(gate.admit_route(Route::Log, later));
    }

    #[test]
    fn an_address_cannot_take_all_enrolments() {
        let (mut gate, now) = gate(|allowed| {
            allowed.routes = [Rate {
                per_second: 1,
                burst: 8,
            }; Route::ALL.len()];
        });
        let mut admit = |address: &str| gate.admit_enrolment(address.parse().unwrap(), now);
        let loud = (0..20).filter(|_| admit("192.0.2.1")).count();
        assert_eq!(loud, 2);
        assert!(admit("192.0.2.2"));
        // Local programs are bound by the route alone.
        let local = (0..20).filter(|_| admit("127.0.0.1")).count();
        assert_eq!(local, 5);
        assert_eq!(gate.shed()[Shed::EnrollRate as usize], 18 + 15);
    }

    #[test]
    fn who_waited_too_long_or_has_gone_is_not_served() {
        let second = Duration::from_secs(1);
        let waited = |age, is_peer_gone| judge_wait(Waited { age, is_peer_gone }, 10 * second);
        assert_eq!(waited(10 * second, false), None);
        assert_eq!(waited(11 * second, false), Some(Shed::QueueAge));
        assert_eq!(waited(second, true), Some(Shed::PeerGone));
    }

    proptest! {
        /// Nobody enters while it is shut; then the maximum is never exceeded by those who enter, it opens in the end,
        /// and no place is lost.
        #[test]
        fn caps_hold_and_places_come_back(
            first in 1_u32..50,
            deeds in prop::collection::vec((0_u8..8, 1_u32..50), 0..300),
        ) {
            let mut room = Room::new(first);
            let mut inside = 0;
            for (deed, size) in deeds {
                match deed {
                    0 => {
                        room.resize(size);
                    }
                    1..=4 if !room.is_shut() => {
                        let shuts = room.enter();
                        inside += 1;
                        prop_assert!(inside <= room.most());
                        prop_assert_eq!(shuts, inside == room.most());
                    }
                    _ if inside > 0 => {
                        let was_shut = room.is_shut();
                        let opens = room.leave();
                        inside -= 1;
                        prop_assert_eq!(opens, was_shut && !room.is_shut());
                    }
                    _ => {}
                }
                prop_assert_eq!(room.taken(), inside);
                // Shut when full, open with a tenth free; in between as it was.
                prop_assert!(room.is_shut() || inside < room.most());
                prop_assert!(!room.is_shut() || !room.has_spare());
            }
            while inside > 0 {
                room.leave();
                inside -= 1;
            }
            prop_assert!(!room.is_shut() && room.taken() == 0);
        }
    }
}
