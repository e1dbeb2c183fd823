//! Sessions of operators: who is signed in. The token itself is never stored.

use std::result::Result as StdResult;

use fleet_protocol::ids::UnixSeconds;

use super::Store;
use super::error::{Fault, Result};
use super::pools::Purpose;
use super::session::{Session, transaction};
use super::users;
use super::value::{Arg, Row, unexpected};
use crate::model::user::{SessionId, User, UserId, UserSession};

const COLUMNS: &str = "sessions.id, sessions.user_id, sessions.created_at, sessions.used_at";
/// Sessions of one account; a further one ends those that were used least lately.
const SESSIONS_PER_USER_MAX: u32 = 256;
/// Sessions that one statement ends.
const EXPIRED_MAX: u32 = 1000;

impl Store {
    /// Begins a session.
    pub(crate) async fn add_session(
        &self,
        user: UserId,
        token_hash: &[u8; 32],
        at: UnixSeconds,
    ) -> Result<SessionId> {
        transaction!(self, session, async {
            let id = session.advance("sessions", 1).await?;
            make_room(&mut session, user).await?;
            let sql = "INSERT INTO sessions (id, user_id, token_hash, created_at, used_at) \
                       VALUES (?, ?, ?, ?, ?)";
            let args = [
                id.into(),
                user.0.into(),
                token_hash.into(),
                at.into(),
                at.into(),
            ];
            session.execute("sessions_write", sql, &args).await?;
            u32::try_from(id).map(SessionId).map_err(|_| unexpected())
        })
    }

    /// The session of a token, with whose it is. It may have expired.
    pub(crate) async fn session_by_token(
        &self,
        token_hash: &[u8; 32],
    ) -> Result<Option<(UserSession, User)>> {
        let sql = format!(
            "SELECT {COLUMNS}, {} FROM sessions JOIN users ON users.id = sessions.user_id \
             WHERE sessions.token_hash = ?",
            users::COLUMNS
        );
        let mut session = self.session(Purpose::Read).await?;
        let row = session
            .row("session_by_token", sql, &[token_hash.into()])
            .await?;
        let found = row.map(|row| Ok((read(&row)?, users::read(&row, 4)?)));
        let found: StdResult<_, Fault> = found.transpose();
        Ok(found?)
    }

    pub(crate) async fn user_session(&self, id: SessionId) -> Result<Option<UserSession>> {
        let sessions = self.sessions_where("id", id.0.into()).await?;
        Ok(sessions.into_iter().next())
    }

    /// By id.
    pub(crate) async fn sessions_of(&self, user: UserId) -> Result<Vec<UserSession>> {
        self.sessions_where("user_id", user.0.into()).await
    }

    async fn sessions_where(&self, column: &str, wanted: Arg<'_>) -> Result<Vec<UserSession>> {
        let sql = format!("SELECT {COLUMNS} FROM sessions WHERE {column} = ? ORDER BY id");
        let mut session = self.session(Purpose::Read).await?;
        let rows = session.rows("sessions_read", sql, &[wanted]).await?;
        Ok(rows.iter().map(read).collect::<StdResult<_, Fault>>()?)
    }

    /// False when there was none.
    pub(crate) async fn end_session(&self, id: SessionId) -> Result<bool> {
        let sql = "DELETE FROM sessions WHERE id = ?";
        let mut session = self.session(Purpose::Write).await?;
        let args = [id.0.into()];
        let done = session.execute("sessions_delete", sql, &args).await?;
        Ok(done.rows > 0)
    }

    /// Ends all of an account's but `kept`.
    pub(crate) async fn end_sessions_of(
        &self,
        user: UserId,
        kept: Option<SessionId>,
    ) -> Result<u64> {
        let sql = "DELETE FROM sessions WHERE user_id = ? AND id <> ?";
        let mut session = self.session(Purpose::Write).await?;
        let args = [user.0.into(), kept.unwrap_or_default().0.into()];
        let done = session.execute("sessions_delete", sql, &args).await?;
        Ok(done.rows)
    }

    /// Notes that sessions were used; never goes back. Sorted by id.
    pub(crate) async fn mark_sessions(&self, used: &[(SessionId, UnixSeconds)]) -> Result<()> {
        let mut session = self.session(Purpose::Write).await?;
        for (id, at) in used {
            let sql = "UPDATE sessions SET used_at = ? WHERE id = ? AND used_at < ?";
            let args = [(*at).into(), id.0.into(), (*at).into()];
            session.execute("sessions_mark", sql, &args).await?;
        }
        Ok(())
    }

    /// Ends people's sessions that were last used before; some of them, so that it is to be called again until zero.
    pub(crate) async fn end_idle_sessions(&self, before: UnixSeconds) -> Result<u64> {
        let sql = "SELECT sessions.id FROM sessions LEFT JOIN users ON users.id = sessions.user_id \
                   WHERE sessions.used_at < ? AND COALESCE(users.is_api_only, 0) = 0 \
                   ORDER BY sessions.used_at LIMIT ?";
        let mut session = self.session(Purpose::Write).await?;
        let args = [before.into(), EXPIRED_MAX.into()];
        let rows = session.rows("sessions_expired", sql, &args).await?;
        delete(&mut session, &rows).await.map_err(Into::into)
    }
}

async fn make_room(session: &mut Session<'_>, user: UserId) -> StdResult<(), Fault> {
    let sql = "SELECT id FROM sessions WHERE user_id = ? ORDER BY used_at DESC, id DESC \
               LIMIT ? OFFSET ?";
    let args = [
        user.0.into(),
        EXPIRED_MAX.into(),
        (SESSIONS_PER_USER_MAX - 1).into(),
    ];
    let rows = session.rows("sessions_read", sql, &args).await?;
    delete(session, &rows).await?;
    Ok(())
}

async fn delete(session: &mut Session<'_>, rows: &[Row]) -> StdResult<u64, Fault> {
    let ids: StdResult<Vec<Arg<'_>>, Fault> =
        rows.iter().map(|row| row.int(0).map(Arg::Int)).collect();
    let sql = "DELETE FROM sessions WHERE id IN ({})";
    session.execute_in("sessions_delete", sql, &ids?).await
}

fn read(row: &Row) -> StdResult<UserSession, Fault> {
    Ok(UserSession {
        id: SessionId(row.u32(0)?),
        user: UserId(row.u32(1)?),
        created_at: row.time(2)?,
        used_at: row.time(3)?,
    })
}
