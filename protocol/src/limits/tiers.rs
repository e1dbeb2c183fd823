//! The limits on what is taken in: each is an option, and 0 there means what this table says for the number of hosts.
//!
//! A tier must never get in the way of the hosts that it is for, not even when all of them return at once: each may then
//! connect and ask for everything within a second or two. It keeps a few clients from taking what is all hosts' together.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::agent::Route;
use crate::config::Config;

/// A token bucket: so many a second, and so many at once after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Tokens a second, at least 1.
    pub per_second: u32,
    /// Tokens that a full bucket holds, at least 1.
    pub burst: u32,
}

impl Rate {
    const fn new(per_second: u32, burst: u32) -> Self {
        Self { per_second, burst }
    }

    /// The part of one slot among `slots`. Connections hash unevenly, so it is twice the even part, rounded up: all slots
    /// together let through between one and two times the total.
    fn share(self, slots: u16) -> Self {
        let of = |total: u32| {
            let twice = (2 * u64::from(total)).div_ceil(u64::from(slots.max(1)));
            u32::try_from(twice).unwrap_or(u32::MAX).min(total).max(1)
        };
        Self::new(of(self.per_second), of(self.burst))
    }

    /// With what an option says in place of what is not 0 there.
    fn or(self, per_second: u32, burst: u32) -> Self {
        let pick = |option, tier| if option == 0 { tier } else { option };
        Self::new(pick(per_second, self.per_second), pick(burst, self.burst))
    }
}

/// What one address may open, and what all hosts together may ask for.
struct Tier {
    hosts_max: u64,
    /// Connections of one address. A whole small fleet, or an office, may sit behind one; more than some 1,070 a second its
    /// ports do not allow.
    address: Rate,
    /// Requests a second that all hosts ask for at the most; reads, the most frequent ones.
    reads: u32,
}

const TIERS: [Tier; 9] = [
    tier(500, Rate::new(500, 2_000), 500),
    tier(1_000, Rate::new(500, 4_000), 1_000),
    tier(2_500, Rate::new(1_000, 10_000), 2_500),
    tier(5_000, Rate::new(1_000, 20_000), 5_000),
    tier(10_000, Rate::new(2_000, 20_000), 10_000),
    tier(20_000, Rate::new(2_000, 20_000), 20_000),
    tier(40_000, Rate::new(2_000, 20_000), 40_000),
    tier(100_000, Rate::new(2_000, 20_000), 100_000),
    tier(u64::MAX, Rate::new(2_000, 20_000), 300_000),
];

const fn tier(hosts_max: u64, address: Rate, reads: u32) -> Tier {
    Tier {
        hosts_max,
        address,
        reads,
    }
}

/// Of one host: some twenty times what a busy agent asks for, since clones of one image share a key.
const HOST: Rate = Rate::new(20, 200);
/// What SQLite and MariaDB write at ease on two cores beside everything else. Who is told to come back does so after
/// seconds.
const ENROLLMENTS_PER_SECOND: u32 = 500;

impl Tier {
    fn of(hosts: u64) -> &'static Self {
        let [.., last] = &TIERS;
        let fitting = TIERS.iter().find(|tier| hosts <= tier.hosts_max);
        fitting.unwrap_or(last)
    }

    fn per_second(&self, route: Route) -> u32 {
        match route {
            Route::Enroll => ENROLLMENTS_PER_SECOND,
            Route::Read => self.reads,
            Route::Config | Route::Write | Route::Log => self.reads / 2,
            Route::CarveBegin | Route::CarveBlock => (self.reads / 10).max(100),
        }
    }
}

/// Every limit on what is taken in, of the whole gateway or of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// Connections open in one worker.
    pub connections_per_worker: u32,
    /// Of those, connections whose handshake goes on.
    pub handshakes_per_worker: u32,
    /// From accept to the end of the handshake.
    pub handshake_deadline: Duration,
    /// From there to the end of the request's head.
    pub head_deadline: Duration,
    /// Longest wait in the kernel's queue.
    pub queue_age: Duration,
    /// The same under overload that lasts.
    pub queue_age_lasting: Duration,
    /// How long the queue stands until overload is said to last.
    pub queue_burst: Duration,
    /// Connections of one client address.
    pub address: Rate,
    /// Requests of one host.
    pub host: Rate,
    /// Requests of all hosts, by [`Route`].
    pub routes: [Rate; Route::ALL.len()],
}

impl Allowed {
    /// Enrolments of one client address: a quarter of all, so that whoever asks again and again leaves the rest to others.
    pub fn enrolments_of_address(&self) -> Rate {
        let all = self.routes.get(Route::Enroll.index());
        let quarter = |total: u32| total.div_ceil(4);
        all.map_or(Rate::new(1, 1), |all| {
            Rate::new(quarter(all.per_second), quarter(all.burst))
        })
    }

    /// What a configuration allows a gateway with so many workers.
    pub fn of(config: &Config, workers: u16) -> Self {
        let limits = &config.limits;
        let connections_per_worker = config.server.connections_per_worker_max;
        let fitting = u64::from(workers) * u64::from(connections_per_worker);
        let named = [limits.hosts, config.tune.hosts, fitting];
        let hosts = named.into_iter().find(|hosts| *hosts > 0);
        let tier = Tier::of(hosts.unwrap_or_default());
        let handshakes = match limits.handshakes_per_worker_max {
            // Half is left for those who are past it, however many slow peers there are.
            0 => connections_per_worker.div_ceil(2),
            most => most.min(connections_per_worker),
        };
        Self {
            connections_per_worker,
            handshakes_per_worker: handshakes,
            handshake_deadline: limits.handshake_deadline,
            head_deadline: limits.head_deadline,
            queue_age: limits.queue_age_max,
            queue_age_lasting: limits.queue_age_lasting,
            queue_burst: limits.queue_burst_max,
            address: tier.address.or(limits.address_rate, limits.address_burst),
            host: HOST.or(limits.host_rate, limits.host_burst),
            routes: Route::ALL.map(|route| {
                let option = match route {
                    Route::Enroll => limits.enroll_rate,
                    Route::Config => limits.config_rate,
                    Route::Read => limits.read_rate,
                    Route::Write => limits.write_rate,
                    Route::Log => limits.log_rate,
                    Route::CarveBegin | Route::CarveBlock => limits.carve_rate,
                };
                let per_second = match option {
                    0 => tier.per_second(route),
                    per_second => per_second,
                };
                Rate::new(per_second, per_second.saturating_mul(2))
            }),
        }
    }

    /// The part of one slot, while `slots` of them serve.
    #[must_use]
    pub fn share(self, slots: u16) -> Self {
        Self {
            address: self.address.share(slots),
            host: self.host.share(slots),
            routes: self.routes.map(|rate| rate.share(slots)),
            ..self
        }
    }

    /// The rate of a route.
    pub fn route(&self, route: Route) -> Rate {
        let rate = self.routes.get(route.index()).copied();
        rate.unwrap_or(Rate::new(1, 1))
    }

    /// The configuration with what holds in place of every 0 that stands for a tier's value.
    #[must_use]
    pub fn shown_in(&self, config: &Config) -> Config {
        let mut config = config.clone();
        let limits = &mut config.limits;
        limits.handshakes_per_worker_max = self.handshakes_per_worker;
        limits.address_rate = self.address.per_second;
        limits.address_burst = self.address.burst;
        limits.host_rate = self.host.per_second;
        limits.host_burst = self.host.burst;
        limits.enroll_rate = self.route(Route::Enroll).per_second;
        limits.config_rate = self.route(Route::Config).per_second;
        limits.read_rate = self.route(Route::Read).per_second;
        limits.write_rate = self.route(Route::Write).per_second;
        limits.log_rate = self.route(Route::Log).per_second;
        limits.carve_rate = self.route(Route::CarveBlock).per_second;
        config
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tiers_grow_with_the_hosts() {
        for pair in TIERS.windows(2) {
            let [small, large] = pair else { unreachable!() };
            assert!(small.hosts_max < large.hosts_max);
            assert!(small.reads < large.reads);
            assert!(small.address.per_second <= large.address.per_second);
            assert!(small.address.burst <= large.address.burst);
        }
        let mut config = Config::default();
        let reads = |config: &Config, workers| Allowed::of(config, workers).route(Route::Read);
        // As many as the workers may hold connections.
        assert_eq!(reads(&config, 2).per_second, 40_000);
        config.tune.hosts = 700;
        assert_eq!(reads(&config, 2).per_second, 1_000);
        config.limits.hosts = 9_000_000;
        assert_eq!(reads(&config, 2).per_second, 300_000);
        config.limits.read_rate = 7;
        assert_eq!(reads(&config, 2), Rate::new(7, 14));
    }

    #[test]
    fn all_hosts_of_a_tier_may_return_at_once() {
        for tier in &TIERS[..TIERS.len() - 1] {
            let mut config = Config::default();
            config.limits.hosts = tier.hosts_max;
            let allowed = Allowed::of(&config, 1);
            for route in [Route::Config, Route::Read, Route::Write, Route::Log] {
                let burst = u64::from(allowed.route(route).burst);
                assert!(burst >= tier.hosts_max, "{route:?} of {}", tier.hosts_max);
            }
        }
    }

    #[test]
    fn what_is_shown_gives_the_same_limits_again() {
        let mut config = Config::default();
        config.server.connections_per_worker_max = 99;
        config.limits.host_rate = 3;
        let allowed = Allowed::of(&config, 3);
        let shown = allowed.shown_in(&config);
        assert_eq!(allowed.handshakes_per_worker, 50);
        assert_eq!(shown.limits.handshakes_per_worker_max, 50);
        assert_eq!(shown.limits.host_burst, 200);
        assert_eq!(Allowed::of(&shown, 3), allowed);
        assert_eq!(shown.validate(), []);
    }

    proptest! {
        #[test]
        fn shares_let_through_one_to_two_times_the_total(
            per_second in 1_u32..1_000_000,
            burst in 1_u32..1_000_000,
            slots in 1_u16..1024,
        ) {
            let total = Rate::new(per_second, burst);
            let share = total.share(slots);
            for (of, total) in [(share.per_second, per_second), (share.burst, burst)] {
                let all = u64::from(of) * u64::from(slots);
                prop_assert!(all >= u64::from(total));
                // Rounded up once in each slot.
                prop_assert!(all <= 2 * u64::from(total) + u64::from(slots));
                prop_assert!(of <= total);
            }
        }
    }
}
