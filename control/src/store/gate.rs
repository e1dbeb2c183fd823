//! Stands before the pool: the breaker with its clock and dice, what is known of a demoted server, and which
//! connections are too old. Tells of each change once.
//!
//! Invariant: a probe ends with an outcome, also when its caller was dropped.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::{Breaker, Change, Entry, Sign};
use super::error::{Error, Fault};
use super::pools::{Knock, Purpose};
use super::{Store, read_only};

/// A wait for a connection after one broke.
const DOUBT_DEADLINE: Duration = Duration::from_secs(1);
/// Each step of a probe: making a connection beside the pool, waiting for one of the pool, the first statement.
pub(super) const PROBE_DEADLINE: Duration = Duration::from_secs(3);

/// Counters and states for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GateStatistics {
    /// Calls are refused at once.
    pub(crate) is_open: bool,
    /// The server takes no writes.
    pub(crate) is_read_only: bool,
    /// Times that the breaker opened.
    pub(crate) opened: u64,
    /// Calls that were refused at once.
    pub(crate) refused: u64,
    /// Times that the server turned out to be read-only.
    pub(crate) demoted: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Gate {
    /// For the log.
    of: String,
    /// The embedded store is never away.
    is_guarded: bool,
    /// A replica is read-only by trade.
    is_primary: bool,
    breaker: Mutex<Breaker>,
    demoted: Mutex<Option<Demoted>>,
    retirement: Mutex<Retirement>,
    in_use: AtomicU32,
    opened: AtomicU64,
    refused: AtomicU64,
    demotions: AtomicU64,
}

#[derive(Clone, Debug)]
struct Demoted {
    since: Instant,
    error: Error,
}

/// When connections go.
#[derive(Debug, Default)]
struct Retirement {
    /// Those that are older are closed when they are next looked at.
    recalled_at: Option<Instant>,
    /// The next one may go because of its age from then on.
    next_at: Option<Instant>,
}

/// A caller's right to ask, with the duty to tell what came of it.
#[derive(Debug)]
pub(super) struct Ticket<'g> {
    gate: &'g Gate,
    is_probe: bool,
}

/// Counts a connection as in use.
#[derive(Debug)]
pub(super) struct Lease<'g>(&'g AtomicU32);

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gate {
    pub(super) fn new(is_guarded: bool) -> Self {
        Self {
            is_primary: true,
            ..Self::named("primary".to_owned(), is_guarded)
        }
    }

    pub(super) fn of_replica(address: &str) -> Self {
        Self::named(format!("replica {address}"), true)
    }

    fn named(of: String, is_guarded: bool) -> Self {
        Self {
            of,
            is_guarded,
            is_primary: false,
            breaker: Mutex::default(),
            demoted: Mutex::default(),
            retirement: Mutex::default(),
            in_use: AtomicU32::new(0),
            opened: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            demotions: AtomicU64::new(0),
        }
    }

    /// Refuses at once while the server is away, and writes while it is read-only.
    pub(super) fn enter(&self, purpose: Purpose, now: Instant) -> Result<Ticket<'_>, Fault> {
        let mut is_probe = false;
        if self.is_guarded {
            if purpose == Purpose::Write
                && let Some(demoted) = lock(&self.demoted).as_ref()
            {
                self.refused.fetch_add(1, Relaxed);
                return Err(demoted.error.clone().into());
            }
            match lock(&self.breaker).enter(now) {
                Entry::Pass => {}
                Entry::Probe => is_probe = true,
                Entry::Refuse(error) => {
                    self.refused.fetch_add(1, Relaxed);
                    return Err(error.into());
                }
            }
        }
        Ok(Ticket {
            gate: self,
            is_probe,
        })
    }

    pub(super) fn lease(&self) -> Lease<'_> {
        self.in_use.fetch_add(1, Relaxed);
        Lease(&self.in_use)
    }

    /// Connections in use.
    pub(super) fn in_use(&self) -> u32 {
        self.in_use.load(Relaxed)
    }

    pub(super) fn note(&self, sign: Sign) {
        if self.is_guarded {
            let change = lock(&self.breaker).note(sign, Instant::now(), fastrand::u32(..));
            self.tell(change);
        }
    }

    fn tell(&self, change: Option<Change>) {
        match change {
            Some(Change::Opened(error)) => {
                self.opened.fetch_add(1, Relaxed);
                // Those that are idle may be dead, and nobody would hear of it before a statement's deadline.
                self.recall();
                tracing::warn!(of = self.of, %error, "the store's breaker opened: calls fail at once until a probe succeeds");
            }
            Some(Change::Closed { after }) => {
                tracing::info!(
                    of = self.of,
                    after_s = after.as_secs_f32(),
                    "the store's breaker closed: the store answers again"
                );
            }
            None => {}
        }
    }

    /// The server said that it is read-only: writes are refused until [`Gate::promote`], and no connection of now is
    /// used again, since the name may lead to another server by then.
    pub(super) fn demote(&self, error: &Error) {
        if !self.is_guarded || !self.is_primary {
            return;
        }
        let mut demoted = lock(&self.demoted);
        if demoted.is_none() {
            *demoted = Some(Demoted {
                since: Instant::now(),
                error: error.clone(),
            });
            self.recall();
            self.demotions.fetch_add(1, Relaxed);
            tracing::warn!(%error, "the store is read-only: connections are made anew, and writes refused until it takes them");
        }
    }

    /// A server that takes writes was found.
    pub(super) fn promote(&self) {
        if let Some(demoted) = lock(&self.demoted).take() {
            self.recall();
            tracing::info!(
                after_s = demoted.since.elapsed().as_secs_f32(),
                "the store takes writes again"
            );
        }
    }

    pub(super) fn is_demoted(&self) -> bool {
        lock(&self.demoted).is_some()
    }

    fn recall(&self) {
        lock(&self.retirement).recalled_at = Some(Instant::now());
    }

    /// Whether a connection of this age was made before the last recall.
    pub(super) fn is_recalled(&self, age: Duration, now: Instant) -> bool {
        let recalled_at = lock(&self.retirement).recalled_at;
        recalled_at.is_some_and(|at| age > now.saturating_duration_since(at))
    }

    /// Whether a connection of this age may go now. In the last quarter of `lifetime` they go one after the other, so
    /// that a pool that was filled in one moment is not emptied in one.
    pub(super) fn may_retire(&self, age: Duration, lifetime: Duration, most: u32) -> bool {
        let turn = (lifetime / 4 / most.max(1)).mul_f32(0.5 + fastrand::f32());
        lock(&self.retirement).may_retire(age, lifetime, turn, Instant::now())
    }

    /// How long to wait for a connection at most, because of what is known; `None` for the configured time.
    fn patience(&self) -> Option<Duration> {
        lock(&self.breaker).is_doubtful().then_some(DOUBT_DEADLINE)
    }

    /// How long calls have been refused at once.
    pub(super) fn open_for(&self) -> Option<Duration> {
        let since = lock(&self.breaker).open_since();
        since.map(|since| since.elapsed())
    }

    pub(super) fn statistics(&self) -> GateStatistics {
        GateStatistics {
            is_open: lock(&self.breaker).open_since().is_some(),
            is_read_only: self.is_demoted(),
            opened: self.opened.load(Relaxed),
            refused: self.refused.load(Relaxed),
            demoted: self.demotions.load(Relaxed),
        }
    }
}

impl Store {
    /// Whether the server was found to take no writes. What its name leads to may be a replica that lags behind: what
    /// is not found in it is not known to be gone.
    pub(crate) fn is_read_only(&self) -> bool {
        self.gate.is_demoted()
    }

    /// Asks, over a connection of its own, whether the name leads to a server that takes writes; what follows from rows
    /// that are missing may be done only then.
    pub(crate) async fn require_writable(&self) -> Result<(), Error> {
        if !self.is_read_only() {
            match self.pools.knock().await? {
                Knock::Writable => {}
                Knock::ReadOnly => self.gate.demote(&read_only()),
            }
        }
        if self.is_read_only() {
            return Err(read_only());
        }
        Ok(())
    }

    /// As if the server had been found so, on either engine.
    #[cfg(test)]
    pub(crate) fn set_read_only(&self, is_read_only: bool) {
        *lock(&self.gate.demoted) = is_read_only.then(|| Demoted {
            since: Instant::now(),
            error: read_only(),
        });
    }
}

impl Retirement {
    fn may_retire(
        &mut self,
        age: Duration,
        lifetime: Duration,
        turn: Duration,
        now: Instant,
    ) -> bool {
        let is_due = age >= lifetime / 4 * 3 && self.next_at.is_none_or(|at| now >= at);
        if is_due {
            self.next_at = Some(now + turn);
        }
        is_due
    }
}

impl Ticket<'_> {
    pub(super) fn is_probe(&self) -> bool {
        self.is_probe
    }

    /// The end of the wait for a connection. A probe has a time of its own for each step, or a server that is slow to
    /// connect to would never be found to be back.
    pub(super) fn deadline(&self, now: Instant, deadline: Instant) -> Instant {
        if self.is_probe {
            return now + PROBE_DEADLINE;
        }
        let patience = self.gate.patience();
        patience.map_or(deadline, |patience| deadline.min(now + patience))
    }

    /// The server answered.
    pub(super) fn answered(&mut self) {
        if self.is_probe {
            self.probed(Ok(()));
        } else {
            self.gate.note(Sign::Answered);
        }
    }

    /// It said that it is read-only.
    pub(super) fn demote(&self, error: &Error) {
        self.gate.demote(error);
    }

    /// It did not answer, or no connection was got.
    pub(super) fn failed(&mut self, sign: Sign) {
        if !self.is_probe {
            return self.gate.note(sign);
        }
        match sign {
            Sign::Crowded(error)
            | Sign::Failed(error)
            | Sign::Silent(error)
            | Sign::Unreachable(error) => self.probed(Err(error)),
            Sign::Waited(_) | Sign::Answered => {}
        }
    }

    fn probed(&mut self, outcome: Result<(), Error>) {
        self.is_probe = false;
        let mut breaker = lock(&self.gate.breaker);
        let change = breaker.probed(outcome, Instant::now(), fastrand::u32(..));
        drop(breaker);
        self.gate.tell(change);
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            self.probed(Err(Error::Unavailable("no answer in time".into())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone() -> Error {
        Error::Unavailable("gone".into())
    }

    #[test]
    fn a_dropped_probe_makes_room_for_the_next() {
        let gate = Gate::new(true);
        let enter = |after_s| {
            let now = Instant::now() + Duration::from_secs(after_s);
            gate.enter(Purpose::Read, now)
        };
        drop(enter(0).unwrap());
        gate.note(Sign::Unreachable(gone()));
        assert_eq!(enter(0).unwrap_err().error, gone());
        let probe = enter(60).unwrap();
        assert!(probe.is_probe());
        assert!(enter(60).is_err());
        drop(probe);
        assert!(gate.open_for().is_some());
        let mut probe = enter(60).unwrap();
        assert!(probe.is_probe());
        // Whatever the caller's time is, and however long the first step took.
        let knocked = Instant::now();
        assert_eq!(probe.deadline(knocked, knocked), knocked + PROBE_DEADLINE);
        probe.answered();
        assert!(!enter(0).unwrap().is_probe());
        let statistics = gate.statistics();
        assert_eq!((statistics.opened, statistics.refused), (1, 2));
        assert!(!statistics.is_open);
    }

    #[test]
    fn connections_of_before_an_outage_are_not_used_again() {
        let gate = Gate::new(true);
        let second = Duration::from_secs(1);
        assert!(!gate.is_recalled(second, Instant::now()));
        gate.note(Sign::Unreachable(gone()));
        assert!(gate.is_recalled(second, Instant::now()));
    }

    #[test]
    fn a_replica_is_not_demoted() {
        let gate = Gate::of_replica("db");
        gate.demote(&gone());
        assert_eq!((gate.is_demoted(), gate.statistics().demoted), (false, 0));
    }

    #[test]
    fn a_read_only_server_is_read_from_over_new_connections() {
        let gate = Gate::new(true);
        gate.demote(&gone());
        let now = Instant::now();
        assert!(gate.enter(Purpose::Write, now).is_err());
        assert!(gate.enter(Purpose::Read, now).is_ok());
        let second = Duration::from_secs(1);
        assert!(gate.is_recalled(second, now));
        assert!(!gate.is_recalled(second, now + second * 2));
        gate.promote();
        assert!(gate.is_recalled(second, Instant::now()));
        assert!(gate.enter(Purpose::Write, now).is_ok());
        assert_eq!(gate.statistics().demoted, 1);
    }

    #[test]
    fn old_connections_go_one_after_the_other() {
        let lifetime = Duration::from_secs(1600);
        let turn = Duration::from_secs(50);
        let start = Instant::now();
        let mut retirement = Retirement::default();
        let mut ends = Vec::new();
        for second in 0..1600 {
            let age = Duration::from_secs(second);
            // Each of the eight, all made in one moment, is released once a second.
            for _ in ends.len()..8 {
                if retirement.may_retire(age, lifetime, turn, start + age) {
                    ends.push(second);
                }
            }
        }
        assert_eq!(ends, [1200, 1250, 1300, 1350, 1400, 1450, 1500, 1550]);
    }
}
