//! Accounts of operators.
//!
//! Invariant: writers of accounts are serialised by the lock of the counter `users`, so that two changes at once cannot
//! leave a store without an admin, nor make two first accounts.

use std::result::Result as StdResult;

use super::error::{Error, Fault, Result};
use super::host_list::like_pattern;
use super::pools::Purpose;
use super::session::{Session, transaction};
use super::value::{Arg, NAME_CHARS_MAX, Row, unexpected};
use super::{Store, now};
use crate::model::user::{
    NewUser, Role, User, UserFilter, UserId, UserOrder, UserPatch, UserRefusal, email_key,
};

pub(super) const COLUMNS: &str = "users.id, users.name, users.email, users.password_hash, \
    users.role, users.is_api_only, users.must_reset, users.created_at, users.updated_at";
/// Accounts of one store.
const USERS_MAX: u64 = 10_000;

/// What came of a change: the outer error is the store's, the inner one the caller's.
type Answer<T> = Result<StdResult<T, UserRefusal>>;

impl Store {
    /// Whether anybody has an account.
    pub(crate) async fn has_users(&self) -> Result<bool> {
        let mut session = self.session(Purpose::Read).await?;
        Ok(count(&mut session).await? > 0)
    }

    pub(crate) async fn user(&self, id: UserId) -> Result<Option<User>> {
        let mut session = self.session(Purpose::Read).await?;
        Ok(one(&mut session, "users.id = ?", id.0.into()).await?)
    }

    /// By address, in any case.
    pub(crate) async fn user_by_email(&self, email: &str) -> Result<Option<User>> {
        let key = email_key(email);
        let mut session = self.session(Purpose::Read).await?;
        let wanted = key.as_str().into();
        Ok(one(&mut session, "users.email_key = ?", wanted).await?)
    }

    pub(crate) async fn users(&self, filter: &UserFilter) -> Result<Vec<User>> {
        let mut session = self.session(Purpose::Read).await?;
        let order = match filter.order {
            UserOrder::Id => "users.id",
            UserOrder::Name => "users.name",
            UserOrder::Email => "users.email_key",
            UserOrder::CreatedAt => "users.created_at",
        };
        let direction = if filter.is_descending { "DESC" } else { "ASC" };
        let limit = match filter.per_page {
            0 => i64::try_from(USERS_MAX).unwrap_or(i64::MAX),
            limit => limit.into(),
        };
        let skipped = limit.saturating_mul(filter.page.into());
        let text = filter.text.as_deref().unwrap_or_default();
        let pattern = like_pattern(text);
        let sql = format!(
            "SELECT {COLUMNS} FROM users WHERE LOWER(users.name) LIKE ? ESCAPE '!' \
             OR users.email_key LIKE ? ESCAPE '!' \
             ORDER BY {order} {direction}, users.id {direction} LIMIT ? OFFSET ?"
        );
        let pattern = pattern.as_str();
        let args = [pattern.into(), pattern.into(), limit.into(), skipped.into()];
        let rows = session.rows("users_list", sql, &args).await?;
        let users: StdResult<_, Fault> = rows.iter().map(|row| read(row, 0)).collect();
        Ok(users?)
    }

    /// Makes an account; with `must_be_first` only when there is none.
    pub(crate) async fn add_user(&self, new: &NewUser, must_be_first: bool) -> Answer<User> {
        check(&new.name)?;
        check(&new.email)?;
        let key = email_key(&new.email);
        transaction!(self, session, async {
            session.advance("users", 0).await?;
            let present = count(&mut session).await?;
            if must_be_first && present > 0 {
                return Ok(Err(UserRefusal::NotFirst));
            }
            if present >= USERS_MAX {
                return Ok(Err(UserRefusal::TooMany));
            }
            if owner(&mut session, &key).await?.is_some() {
                return Ok(Err(UserRefusal::EmailTaken));
            }
            let id = session.advance("users", 1).await?;
            let at = now();
            let sql = "INSERT INTO users (id, name, email, email_key, password_hash, role, \
                       is_api_only, must_reset, created_at, updated_at) \
                       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
            let args = [
                id.into(),
                new.name.as_str().into(),
                new.email.as_str().into(),
                key.as_str().into(),
                new.password_hash.reveal().into(),
                new.role.word().into(),
                new.is_api_only.into(),
                new.must_reset.into(),
                at.into(),
                at.into(),
            ];
            session.execute("users_write", sql, &args).await?;
            Ok(Ok(User {
                id: UserId(u32::try_from(id).map_err(|_| unexpected())?),
                name: new.name.clone(),
                email: new.email.clone(),
                password_hash: new.password_hash.clone(),
                role: new.role,
                is_api_only: new.is_api_only,
                must_reset: new.must_reset,
                created_at: at,
                updated_at: at,
            }))
        })
    }

    /// Changes an account; gives it as it was and as it is.
    pub(crate) async fn update_user(&self, id: UserId, patch: &UserPatch) -> Answer<(User, User)> {
        for text in [&patch.name, &patch.email].into_iter().flatten() {
            check(text)?;
        }
        transaction!(self, session, async {
            session.advance("users", 0).await?;
            let Some(before) = one(&mut session, "users.id = ?", id.0.into()).await? else {
                return Ok(Err(UserRefusal::Missing));
            };
            let after = patched(&before, patch);
            let key = email_key(&after.email);
            let taken = owner(&mut session, &key).await?;
            if taken.is_some_and(|owner| owner != id) {
                return Ok(Err(UserRefusal::EmailTaken));
            }
            if after.role != Role::Admin && is_last_admin(&mut session, &before).await? {
                return Ok(Err(UserRefusal::LastAdmin));
            }
            let sql = "UPDATE users SET name = ?, email = ?, email_key = ?, password_hash = ?, \
                       role = ?, must_reset = ?, updated_at = ? WHERE id = ?";
            let args = [
                after.name.as_str().into(),
                after.email.as_str().into(),
                key.as_str().into(),
                after.password_hash.reveal().into(),
                after.role.word().into(),
                after.must_reset.into(),
                after.updated_at.into(),
                id.0.into(),
            ];
            session.execute("users_write", sql, &args).await?;
            Ok(Ok((before, after)))
        })
    }

    /// Deletes an account and its sessions.
    pub(crate) async fn delete_user(&self, id: UserId) -> Answer<User> {
        transaction!(self, session, async {
            session.advance("users", 0).await?;
            let Some(user) = one(&mut session, "users.id = ?", id.0.into()).await? else {
                return Ok(Err(UserRefusal::Missing));
            };
            if is_last_admin(&mut session, &user).await? {
                return Ok(Err(UserRefusal::LastAdmin));
            }
            let args = [id.0.into()];
            let sql = "DELETE FROM sessions WHERE user_id = ?";
            session.execute("sessions_delete", sql, &args).await?;
            let sql = "DELETE FROM users WHERE id = ?";
            session.execute("users_write", sql, &args).await?;
            Ok(Ok(user))
        })
    }
}

fn patched(user: &User, patch: &UserPatch) -> User {
    let patch = patch.clone();
    User {
        name: patch.name.unwrap_or_else(|| user.name.clone()),
        email: patch.email.unwrap_or_else(|| user.email.clone()),
        password_hash: patch
            .password_hash
            .unwrap_or_else(|| user.password_hash.clone()),
        role: patch.role.unwrap_or(user.role),
        must_reset: patch.must_reset.unwrap_or(user.must_reset),
        updated_at: now(),
        ..user.clone()
    }
}

fn check(text: &str) -> StdResult<(), Error> {
    let problem = if text.trim().is_empty() {
        "is empty"
    } else if text.chars().count() > NAME_CHARS_MAX {
        "has more than 255 characters"
    } else {
        return Ok(());
    };
    Err(Error::Invalid(format!("a name or an email {problem}")))
}

async fn count(session: &mut Session<'_>) -> StdResult<u64, Fault> {
    let sql = "SELECT COUNT(*) FROM users";
    let row = session.row("users_count", sql, &[]).await?;
    row.map_or(Ok(0), |row| row.u64(0))
}

async fn owner(session: &mut Session<'_>, key: &str) -> StdResult<Option<UserId>, Fault> {
    let sql = "SELECT id FROM users WHERE email_key = ?";
    let row = session.row("users_read", sql, &[key.into()]).await?;
    row.map(|row| row.u32(0).map(UserId)).transpose()
}

async fn is_last_admin(session: &mut Session<'_>, user: &User) -> StdResult<bool, Fault> {
    if user.role != Role::Admin {
        return Ok(false);
    }
    let sql = "SELECT COUNT(*) FROM users WHERE role = ? AND id <> ?";
    let args = [Role::Admin.word().into(), user.id.0.into()];
    let row = session.row("users_count", sql, &args).await?;
    Ok(row.map_or(Ok(0), |row| row.u64(0))? == 0)
}

async fn one(
    session: &mut Session<'_>,
    condition: &str,
    wanted: Arg<'_>,
) -> StdResult<Option<User>, Fault> {
    let sql = format!("SELECT {COLUMNS} FROM users WHERE {condition}");
    let row = session.row("users_read", sql, &[wanted]).await?;
    row.map(|row| read(&row, 0)).transpose()
}

/// An account whose columns begin at `first`.
pub(super) fn read(row: &Row, first: usize) -> StdResult<User, Fault> {
    Ok(User {
        id: UserId(row.u32(first)?),
        name: row.text(first + 1)?,
        email: row.text(first + 2)?,
        password_hash: fleet_protocol::secret::Secret::new(row.text(first + 3)?),
        role: Role::named(&row.text(first + 4)?).ok_or_else(unexpected)?,
        is_api_only: row.bool(first + 5)?,
        must_reset: row.bool(first + 6)?,
        created_at: row.time(first + 7)?,
        updated_at: row.time(first + 8)?,
    })
}
