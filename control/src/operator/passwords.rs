//! Passwords: which are taken, and how they are kept.
//!
//! A hash costs tens of milliseconds and 19 MiB on purpose, so only a few are made at once, beside the runtime, and
//! only so many callers may wait for theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use argon2::{Algorithm, Argon2, Params, PasswordHasher as _, PasswordVerifier as _, Version};
use aws_lc_rs::rand;
use fleet_protocol::secret::Secret;
use tokio::sync::Semaphore;

use super::fault::Fault;

/// Hashes at once.
const PARALLEL_MAX: usize = 2;
/// Callers that hash or wait for it.
const CALLERS_MAX: usize = 32;
/// OWASP's first choice for argon2id: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
const SALT_BYTES: usize = 16;
/// Characters of a password, both included; Fleet's.
const CHARS_MIN: usize = 12;
const CHARS_MAX: usize = 48;
/// What the password of an unknown account is compared with, so that it takes as long. Nobody knows one for it.
const NOBODYS: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5J3Mgc2FsdA$\
    AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Why a password is not taken; `None` when it is. Fleet's rules.
pub(super) fn problem(password: &str) -> Option<&'static str> {
    let count = password.chars().count();
    if !(CHARS_MIN..=CHARS_MAX).contains(&count) {
        return Some("must have 12 to 48 characters");
    }
    if !password.chars().any(char::is_alphabetic) {
        return Some("must have a letter");
    }
    if !password.chars().any(char::is_numeric) {
        return Some("must have a number");
    }
    let is_symbol = |character: char| !character.is_alphanumeric() && !character.is_whitespace();
    if !password.chars().any(is_symbol) {
        return Some("must have a symbol");
    }
    None
}

/// Makes and compares hashes.
pub(super) struct Hasher {
    turns: Arc<Semaphore>,
    callers: AtomicUsize,
}

impl Hasher {
    pub(super) fn new() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(PARALLEL_MAX)),
            callers: AtomicUsize::new(0),
        }
    }

    /// A PHC string.
    pub(super) async fn hash(&self, password: &Secret) -> Result<Secret, Fault> {
        let password = password.clone();
        let hash = self.run(move || hash(&password)).await?;
        hash.ok_or_else(|| Fault::failed("a password cannot be hashed".into()))
    }

    /// Whether it is the password of that hash. Without a hash it is not, and that takes as long.
    pub(super) async fn is_right(
        &self,
        password: &Secret,
        hash: Option<&Secret>,
    ) -> Result<bool, Fault> {
        let password = password.clone();
        let hash = hash.filter(|hash| !hash.is_empty()).cloned();
        self.run(move || match hash {
            Some(hash) => is_right(&password, hash.reveal()),
            None => {
                is_right(&password, NOBODYS);
                false
            }
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let caller = Caller::new(&self.callers).ok_or_else(Fault::busy)?;
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let turn = turn.map_err(|_| Fault::busy())?;
        let done = tokio::task::spawn_blocking(move || {
            // Held until the hash is made, even when nobody waits for it any more.
            let _turn = turn;
            job()
        });
        let done = done.await.map_err(|_| Fault::busy());
        drop(caller);
        done
    }
}

/// One of those who hash or wait.
struct Caller<'c>(&'c AtomicUsize);

impl<'c> Caller<'c> {
    fn new(callers: &'c AtomicUsize) -> Option<Self> {
        let one = Self(callers);
        let before = callers.fetch_add(1, Relaxed);
        (before < CALLERS_MAX).then_some(one)
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn argon2() -> Option<Argon2<'static>> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).ok()?;
    Some(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash(password: &Secret) -> Option<Secret> {
    let mut salt = [0; SALT_BYTES];
    rand::fill(&mut salt).ok()?;
    let hash = argon2()?.hash_password_with_salt(password.reveal().as_bytes(), &salt);
    Some(Secret::new(hash.ok()?.to_string()))
}

/// The parameters are the hash's own. Compares in constant time.
fn is_right(password: &Secret, hash: &str) -> bool {
    argon2().is_some_and(|argon2| {
        argon2
            .verify_password(password.reveal().as_bytes(), hash)
            .is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_passwords_are_refused() {
        for (password, part) in [
            ("", "12 to 48"),
            ("Short-1", "12 to 48"),
            (&"a1-".repeat(17), "12 to 48"),
            ("123456789012-", "letter"),
            ("onlyletters-here", "number"),
            ("lettersand1234", "symbol"),
            ("letters and 1234", "symbol"),
        ] {
            assert!(problem(password).unwrap().contains(part), "{password}");
        }
        for password in ["correct-horse-1", "пароль-пароль-1", &"a1-".repeat(16)] {
            assert_eq!(problem(password), None, "{password}");
        }
    }

    #[tokio::test]
    async fn only_the_right_password_fits() {
        let hasher = Hasher::new();
        let right = Secret::new("correct-horse-1");
        let hash = hasher.hash(&right).await.unwrap();
        assert!(hash.reveal().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert_ne!(hash, hasher.hash(&right).await.unwrap(), "no salt");
        assert!(hasher.is_right(&right, Some(&hash)).await.unwrap());
        let wrong = Secret::new("correct-horse-2");
        assert!(!hasher.is_right(&wrong, Some(&hash)).await.unwrap());
        for nothing in [None, Some(Secret::default()), Some(Secret::new("x"))] {
            assert!(!hasher.is_right(&right, nothing.as_ref()).await.unwrap());
        }
    }

    #[test]
    fn an_unknown_account_costs_a_whole_hash() {
        let hash = argon2::password_hash::phc::PasswordHash::new(NOBODYS).unwrap();
        let params = Params::try_from(&hash).unwrap();
        assert_eq!(
            (params.m_cost(), params.t_cost(), params.p_cost()),
            (MEMORY_KIB, PASSES, LANES)
        );
    }

    #[test]
    fn callers_are_bounded() {
        let callers = AtomicUsize::new(0);
        let waiting: Vec<_> = (0..CALLERS_MAX).map(|_| Caller::new(&callers)).collect();
        assert!(waiting.iter().all(Option::is_some));
        assert!(Caller::new(&callers).is_none());
        drop(waiting);
        assert_eq!(callers.load(Relaxed), 0);
        assert!(Caller::new(&callers).is_some());
    }
}
