//! Sessions that were asked for a moment ago, so that a request costs no statement. Pure; `now` is an argument.
//!
//! Invariants: what was read from the store before something changed here is not kept after it; a session that another
//! node ended is forgotten within [`KEEP`]; both tables are bounded.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fleet_protocol::ids::UnixSeconds;

use crate::model::user::{SessionId, User, UserSession};

/// How long the store is believed.
pub(super) const KEEP: Duration = Duration::from_secs(5);
/// Sessions in memory.
const SESSIONS_MAX: usize = 10_000;

/// A session with whose it is.
#[derive(Clone, Debug)]
pub(super) struct SignedIn {
    pub(super) session: UserSession,
    pub(super) user: Arc<User>,
}

/// Says which changes were known when somebody asked the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch(u64);

/// The sessions, by the digest of their token.
#[derive(Debug)]
pub(super) struct SessionCache {
    /// Idle for longer, a person's session is over; zero: never.
    duration: Duration,
    epoch: u64,
    entries: HashMap<[u8; 32], (SignedIn, Instant)>,
    /// Uses that are not written yet.
    used: BTreeMap<SessionId, UnixSeconds>,
}

impl SessionCache {
    pub(super) fn new(duration: Duration) -> Self {
        Self {
            duration,
            epoch: 0,
            entries: HashMap::new(),
            used: BTreeMap::new(),
        }
    }

    /// The session, if it is known; notes that it is used. `Err` says when the question to the store begins.
    pub(super) fn find(
        &mut self,
        token: &[u8; 32],
        now: Instant,
        at: UnixSeconds,
    ) -> Result<SignedIn, Epoch> {
        match self.entries.get(token) {
            Some((found, until)) if *until > now => {
                let found = found.clone();
                // Idle for no longer than it was kept, so it is not over.
                self.note(found.session.id, at);
                Ok(found)
            }
            _ => Err(Epoch(self.epoch)),
        }
    }

    /// Takes what the store said, unless something changed since; `None` when the session is over.
    pub(super) fn keep(
        &mut self,
        asked: Epoch,
        token: [u8; 32],
        found: SignedIn,
        now: Instant,
        at: UnixSeconds,
    ) -> Option<SignedIn> {
        let id = found.session.id;
        let unwritten = self.used.get(&id).copied().unwrap_or_default();
        let used_at = found.session.used_at.max(unwritten);
        if self.is_over(&found.user, used_at, at) {
            return None;
        }
        self.note(id, at);
        if asked == Epoch(self.epoch) {
            self.make_room(now);
            self.entries.insert(token, (found.clone(), now + KEEP));
        }
        Some(found)
    }

    fn is_over(&self, user: &User, used_at: UnixSeconds, at: UnixSeconds) -> bool {
        let idle = Duration::from_secs(at.0.saturating_sub(used_at.0).into());
        !user.is_api_only && !self.duration.is_zero() && idle > self.duration
    }

    /// The time before which a person's session must have been used to be over; `None`: none is.
    pub(super) fn idle_since(&self, at: UnixSeconds) -> Option<UnixSeconds> {
        let seconds = u32::try_from(self.duration.as_secs()).unwrap_or(u32::MAX);
        (seconds > 0).then(|| UnixSeconds(at.0.saturating_sub(seconds)))
    }

    fn make_room(&mut self, now: Instant) {
        if self.entries.len() >= SESSIONS_MAX {
            self.entries.retain(|_, (_, until)| *until > now);
        }
        if self.entries.len() >= SESSIONS_MAX {
            self.entries.clear();
        }
    }

    fn note(&mut self, id: SessionId, at: UnixSeconds) {
        if self.used.len() < SESSIONS_MAX || self.used.contains_key(&id) {
            let used_at = self.used.entry(id).or_default();
            *used_at = at.max(*used_at);
        }
    }

    /// Something changed: a session, an account.
    pub(super) fn forget(&mut self) {
        self.epoch += 1;
        self.entries.clear();
    }

    /// The uses to be written, by id.
    pub(super) fn take_used(&mut self) -> Vec<(SessionId, UnixSeconds)> {
        std::mem::take(&mut self.used).into_iter().collect()
    }

    /// They could not be written.
    pub(super) fn give_back(&mut self, used: Vec<(SessionId, UnixSeconds)>) {
        for (id, at) in used {
            self.note(id, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::user::{Role, UserId};

    const DAY: u32 = 24 * 3600;

    fn signed_in(used_at: u32, is_api_only: bool) -> SignedIn {
        SignedIn {
            session: UserSession {
                id: SessionId(7),
                user: UserId(1),
                created_at: UnixSeconds(0),
                used_at: UnixSeconds(used_at),
            },
            user: Arc::new(User {
                id: UserId(1),
                name: "Ada".into(),
                email: "ada@example.com".into(),
                password_hash: Default::default(),
                role: Role::Admin,
                is_api_only,
                must_reset: false,
                created_at: UnixSeconds(0),
                updated_at: UnixSeconds(0),
            }),
        }
    }

    fn cache() -> SessionCache {
        SessionCache::new(Duration::from_secs(DAY.into()))
    }

    #[test]
    fn the_store_is_asked_once_in_a_while() {
        let (mut cache, now) = (cache(), Instant::now());
        let token = [1; 32];
        let asked = cache.find(&token, now, UnixSeconds(100)).unwrap_err();
        let found = signed_in(100, false);
        let kept = cache.keep(asked, token, found, now, UnixSeconds(100));
        assert!(kept.is_some());
        let soon = now + KEEP - Duration::from_millis(1);
        assert!(cache.find(&token, soon, UnixSeconds(104)).is_ok());
        assert!(cache.find(&[2; 32], soon, UnixSeconds(104)).is_err());
        assert!(cache.find(&token, now + KEEP, UnixSeconds(105)).is_err());
        assert_eq!(cache.take_used(), [(SessionId(7), UnixSeconds(104))]);
        assert_eq!(cache.take_used(), []);
    }

    #[test]
    fn what_was_read_before_a_change_is_not_kept() {
        let (mut cache, now, at) = (cache(), Instant::now(), UnixSeconds(100));
        let token = [1; 32];
        let asked = cache.find(&token, now, at).unwrap_err();
        cache.forget();
        assert!(
            cache
                .keep(asked, token, signed_in(100, false), now, at)
                .is_some()
        );
        assert!(cache.find(&token, now, at).is_err());
    }

    #[test]
    fn an_idle_session_is_over_unless_it_is_a_program_s() {
        let (mut cache, now) = (cache(), Instant::now());
        let asked = cache.find(&[1; 32], now, UnixSeconds(0)).unwrap_err();
        let late = UnixSeconds(100 + DAY + 1);
        let mut keep = |found, at| cache.keep(asked, [1; 32], found, now, at).is_some();
        assert!(keep(signed_in(100, true), late));
        assert_eq!(cache.take_used().len(), 1);
        let mut keep = |found, at| cache.keep(asked, [1; 32], found, now, at).is_some();
        assert!(!keep(signed_in(100, false), late));
        assert!(keep(signed_in(100, false), UnixSeconds(100 + DAY)));
        // Its use just now is not in the store yet, and counts.
        assert!(keep(signed_in(100, false), late));
    }

    #[test]
    fn uses_that_could_not_be_written_come_again() {
        let (mut cache, now) = (cache(), Instant::now());
        let asked = cache.find(&[1; 32], now, UnixSeconds(0)).unwrap_err();
        cache.keep(asked, [1; 32], signed_in(100, false), now, UnixSeconds(100));
        let used = cache.take_used();
        assert!(cache.find(&[1; 32], now, UnixSeconds(110)).is_ok());
        cache.give_back(used);
        assert_eq!(cache.take_used(), [(SessionId(7), UnixSeconds(110))]);
    }

    #[test]
    fn the_table_is_bounded() {
        let (mut cache, now, at) = (cache(), Instant::now(), UnixSeconds(100));
        let asked = cache.find(&[0; 32], now, at).unwrap_err();
        for number in 0..u64::try_from(SESSIONS_MAX).unwrap() + 10 {
            let mut token = [0; 32];
            token[..8].copy_from_slice(&number.to_le_bytes());
            let mut found = signed_in(100, false);
            found.session.id = SessionId(u32::try_from(number).unwrap());
            cache.keep(asked, token, found, now, at);
        }
        assert!(cache.entries.len() <= SESSIONS_MAX);
        assert!(cache.used.len() <= SESSIONS_MAX);
    }
}
