//! How many hosts get due work in a second, and which. Pure: `now` is an argument, and nothing of it is stored.
//!
//! A host that asks while too many do is put off: it counts as waiting, and is told a time at which its turn is near.
//! Turns go by how long a host has been due, which follows from times in the store, and among equals by its id. So every
//! process finds the same order, and one that starts anew goes on where the other was: those who had their turn are not
//! due any more. Nobody keeps the queue itself, only how many wait of each age.
//!
//! Invariants: never more than the rate in one second; a host that asks at its turn gets work in that second or is told
//! to come at its next poll; who waits and does not come is forgotten after a while ([`Pacer::is_lost`]), so that hosts
//! which are switched off hold nobody up.
//!
//! Hosts that poll every P seconds, at most M of them in the same second of the interval, are all served within
//! P × (⌈M ÷ rate⌉ + 3): evenly spread polls of N hosts make that N ÷ rate + 3 P. The rest is one P until the last has
//! asked for the first time, one until it asks again once its turn has come, one for a restart or for an odd second.

use std::collections::BTreeMap;

use fleet_protocol::ids::{HostId, UnixSeconds};

use crate::model::host::INTERVAL_UNKNOWN_S;
use crate::store::EngineName;
use crate::work::{Salt, Schedule, after, spread};

/// What a machine that keeps the embedded store beside the workers does without a slower answer to anybody.
const RATE_EMBEDDED: u32 = 500;
/// The same of a MySQL server.
const RATE_MYSQL: u32 = 1_000;
/// The automatic rate is this many times what the hosts make due in the long run, so that a backlog shrinks.
const RATE_ABOVE_NEED: u32 = 4;
/// Hosts that came due within this time are equals.
const AGE_STEP_S: u32 = 16;
/// What is older counts as this old; bounds how many ages there are.
const AGE_MAX_S: u32 = 7 * 24 * 3600;
/// A host begins to ask this many of its polls before its turn, so that every second finds enough of them.
const LEAD_POLLS: u32 = 2;
const LEAD_MIN_S: u32 = 10;
/// A host that waits comes by this often, since a turn that is far away is a guess.
const RENEW_S: u32 = 120;
/// Hosts that come by in a second to renew, at most.
const RENEWALS_PER_SECOND: u32 = 1_000;
/// Silence after the told time that a host which waits is allowed beyond its polls.
const LOST_AFTER_S: u32 = 120;

/// Due answers in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// As configured; 0: automatic.
    pub(crate) configured: u32,
    /// The shorter of the intervals at which hosts become due.
    pub(crate) interval_s: u32,
    /// What the store bears.
    pub(crate) engine: EngineName,
}

impl Rate {
    /// For a fleet of this size; never 0.
    pub(crate) fn per_second(&self, hosts: u32) -> u32 {
        if self.configured > 0 {
            return self.configured;
        }
        let bearable = match self.engine {
            EngineName::Sqlite => RATE_EMBEDDED,
            EngineName::Mysql => RATE_MYSQL,
        };
        bearable.max(self.need(hosts).saturating_mul(RATE_ABOVE_NEED))
    }

    /// What this many hosts make due in a second, in the long run.
    pub(crate) fn need(&self, hosts: u32) -> u32 {
        hosts.div_ceil(self.interval_s.max(1))
    }

    /// Seconds over which a herd of this many hosts is spread.
    pub(crate) fn herd_s(&self, hosts: u32) -> u32 {
        hosts / self.per_second(hosts)
    }
}

/// A host's age among those that wait; the default is of one that does not wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wait(u32);

impl Wait {
    /// Whether the host waits.
    pub(crate) fn is_waiting(self) -> bool {
        self.0 != 0
    }

    /// Whether a host that has been due since then still has this age.
    pub(crate) fn is_of(self, since: UnixSeconds) -> bool {
        self.0 == age(since)
    }
}

/// One step later than zero, which means none.
fn age(since: UnixSeconds) -> u32 {
    since.0 / AGE_STEP_S + 1
}

/// One host that asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) host: HostId,
    /// When its work became due.
    pub(crate) since: UnixSeconds,
    /// Seconds between its polls; 0: unknown.
    pub(crate) interval_s: u32,
    /// As it was left by the last call for this host.
    pub(crate) wait: Wait,
}

/// What becomes of one that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It gets its work; it waits no more.
    Now,
    /// It asks again at this time, and waits with this age.
    At(UnixSeconds, Wait),
}

/// For metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PacerStatistics {
    /// Due answers in a second, at most.
    pub(crate) rate: u32,
    /// Hosts that wait for their turn.
    pub(crate) waiting: u32,
    /// Due answers.
    pub(crate) served: u64,
    /// Reads that were put off.
    pub(crate) put_off: u64,
    /// Most due answers in one second.
    pub(crate) peak: u32,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pacer {
    rate: Rate,
    /// The current second.
    second: UnixSeconds,
    served_in_second: u32,
    /// How many wait, by age.
    waiting: BTreeMap<u32, u32>,
    /// Of each age, how many are older; as of the beginning of the second.
    older: Vec<(u32, u32)>,
    statistics: PacerStatistics,
}

impl Pacer {
    /// Nobody waits.
    pub(crate) fn new(rate: Rate) -> Self {
        Self {
            rate,
            second: UnixSeconds(0),
            served_in_second: 0,
            waiting: BTreeMap::new(),
            older: Vec::new(),
            statistics: PacerStatistics::default(),
        }
    }

    /// The rate.
    pub(crate) fn rate(&self) -> Rate {
        self.rate
    }

    /// For metrics.
    pub(crate) fn statistics(&self, hosts: u32) -> PacerStatistics {
        PacerStatistics {
            rate: self.rate.per_second(hosts),
            ..self.statistics
        }
    }

    /// Serves nobody in this second: an earlier process may have.
    pub(crate) fn skip_second(&mut self, now: UnixSeconds) {
        self.begin(now);
        self.served_in_second = u32::MAX;
    }

    /// A host with due work asks. `hosts` is the size of the fleet.
    pub(crate) fn ask(&mut self, asker: &Asker, hosts: u32, now: UnixSeconds) -> Turn {
        self.begin(now);
        let rate = self.rate.per_second(hosts);
        let polls_s = match asker.interval_s {
            0 => INTERVAL_UNKNOWN_S,
            seconds => seconds,
        };
        let lead_s = polls_s.saturating_mul(LEAD_POLLS).max(LEAD_MIN_S);
        let oldest = UnixSeconds(now.0.saturating_sub(AGE_MAX_S));
        let age = age(asker.since.max(oldest));
        let turn_s = self.rank(asker.host, age) / rate;
        if self.served_in_second < rate && turn_s <= lead_s {
            self.leave(asker.wait);
            self.served_in_second += 1;
            self.statistics.served += 1;
            self.statistics.peak = self.statistics.peak.max(self.served_in_second);
            return Turn::Now;
        }
        self.leave(asker.wait);
        *self.waiting.entry(age).or_default() += 1;
        self.statistics.waiting += 1;
        self.statistics.put_off += 1;
        let renew_s = RENEW_S.max(self.statistics.waiting / RENEWALS_PER_SECOND);
        let wait_s = turn_s.saturating_sub(lead_s).clamp(1, renew_s);
        Turn::At(after(now, wait_s), Wait(age))
    }

    /// A host waits no more: it is gone, or its work is not due any more.
    pub(crate) fn leave(&mut self, wait: Wait) {
        let Some(count) = self.waiting.get_mut(&wait.0) else {
            return;
        };
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.waiting.remove(&wait.0);
        }
        self.statistics.waiting = self.statistics.waiting.saturating_sub(1);
    }

    /// Whether a host that was told to ask at `told_at` has not for so long that it is no longer waited for.
    pub(crate) fn is_lost(told_at: UnixSeconds, interval_s: u32, now: UnixSeconds) -> bool {
        let allowed_s = interval_s
            .max(INTERVAL_UNKNOWN_S)
            .saturating_mul(LEAD_POLLS);
        after(told_at, allowed_s.saturating_add(LOST_AFTER_S)) < now
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> u32 {
        self.statistics.waiting
    }

    fn begin(&mut self, now: UnixSeconds) {
        if now == self.second {
            return;
        }
        self.second = now;
        self.served_in_second = 0;
        self.older.clear();
        let mut before = 0_u32;
        for (age, count) in &self.waiting {
            self.older.push((*age, before));
            before = before.saturating_add(*count);
        }
    }

    /// How many of those that wait come before a host.
    fn rank(&self, host: HostId, age: u32) -> u32 {
        let at = self.older.partition_point(|(other, _)| *other < age);
        match self.older.get(at) {
            // Beyond the oldest of them: the hosts of the last age are not in the sums.
            None => self.statistics.waiting,
            Some((other, before)) if *other == age => {
                let equals = self.waiting.get(&age).copied().unwrap_or_default();
                before.saturating_add(spread(host, equals.saturating_sub(1), Salt::Turn))
            }
            Some((_, before)) => *before,
        }
    }
}

/// The rate for these intervals and this store.
pub(crate) fn rate_of(schedule: &Schedule, configured: u32, engine: EngineName) -> Rate {
    Rate {
        configured,
        interval_s: schedule.detail_interval_s.min(schedule.label_interval_s),
        engine,
    }
}

#[cfg(test)]
#[path = "pacer_tests.rs"]
mod tests;
