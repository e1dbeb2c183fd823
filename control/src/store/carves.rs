//! Carves: what is known of them. Their blocks are files, which are not the store's.

use std::result::Result as StdResult;

use fleet_protocol::ids::UnixSeconds;

use super::Store;
use super::error::{Error, Fault, Result};
use super::host_list::PER_PAGE_MAX;
use super::pools::Purpose;
use super::session::transaction;
use super::value::{Arg, Row, clip, unexpected};
use crate::model::carve::{Carve, CarveFilter, CarveId, NewCarve};

const SELECT: &str = "SELECT id, host_id, session_hash, carve_id, request_id, block_count, \
    block_size, carve_size, next_block, bytes, error, created_at, updated_at FROM carves";
/// Carves that one call gives for deletion.
const EXPIRED_MAX: u32 = 512;

impl Store {
    /// Notes a carve that begins.
    pub(crate) async fn carve_begin(&self, carve: &NewCarve) -> Result<CarveId> {
        let sizes = [
            number(carve.block_count)?,
            number(carve.block_size)?,
            number(carve.carve_size)?,
        ];
        transaction!(self, session, async {
            let id = session.advance("carves", 1).await?;
            let sql = "INSERT INTO carves (id, host_id, session_hash, carve_id, request_id, \
                       block_count, block_size, carve_size, next_block, bytes, created_at, \
                       updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0, ?, ?)";
            let mut args: Vec<Arg<'_>> = vec![
                id.into(),
                carve.host.into(),
                (&carve.session_hash).into(),
                clip(&carve.carve_id).into(),
                clip(&carve.request_id).into(),
            ];
            args.extend(sizes.map(Arg::from));
            args.extend([Arg::from(carve.at), Arg::from(carve.at)]);
            session.execute("carve_insert", sql, &args).await?;
            u32::try_from(id).map(CarveId).map_err(|_| unexpected())
        })
    }

    pub(crate) async fn carve_by_session(&self, session_hash: &[u8; 32]) -> Result<Option<Carve>> {
        let sql = format!("{SELECT} WHERE session_hash = ?");
        let carves = self.carves_where(sql, &[session_hash.into()]).await?;
        Ok(carves.into_iter().next())
    }

    pub(crate) async fn carve(&self, id: CarveId) -> Result<Option<Carve>> {
        let sql = format!("{SELECT} WHERE id = ?");
        let carves = self.carves_where(sql, &[id.0.into()]).await?;
        Ok(carves.into_iter().next())
    }

    /// Notes how far a carve is, or why it failed. Never goes back, so that a repeated call is harmless.
    pub(crate) async fn carve_progress(
        &self,
        id: CarveId,
        next_block: u64,
        bytes: u64,
        error: Option<&str>,
        at: UnixSeconds,
    ) -> Result<()> {
        let sql = "UPDATE carves SET next_block = ?, bytes = ?, error = COALESCE(?, error), \
                   updated_at = ? WHERE id = ? AND next_block <= ?";
        let next_block = number(next_block)?;
        let args = [
            next_block.into(),
            number(bytes)?.into(),
            error.into(),
            at.into(),
            id.0.into(),
            next_block.into(),
        ];
        let mut session = self.session(Purpose::Write).await?;
        session.execute("carve_progress", sql, &args).await?;
        Ok(())
    }

    /// By id.
    pub(crate) async fn carves(&self, filter: &CarveFilter) -> Result<Vec<Carve>> {
        let limit = match filter.limit {
            0 => 100,
            limit => limit.min(PER_PAGE_MAX),
        };
        let after = filter.after.unwrap_or_default().0;
        match filter.host {
            Some(host) => {
                let sql = format!("{SELECT} WHERE id > ? AND host_id = ? ORDER BY id LIMIT ?");
                let args = [after.into(), host.into(), limit.into()];
                self.carves_where(sql, &args).await
            }
            None => {
                let sql = format!("{SELECT} WHERE id > ? ORDER BY id LIMIT ?");
                self.carves_where(sql, &[after.into(), limit.into()]).await
            }
        }
    }

    /// Some of those created before; call it again when they are deleted.
    pub(crate) async fn carves_expired(&self, before: UnixSeconds) -> Result<Vec<Carve>> {
        let sql = format!("{SELECT} WHERE created_at < ? ORDER BY created_at, id LIMIT ?");
        self.carves_where(sql, &[before.into(), EXPIRED_MAX.into()])
            .await
    }

    /// False when there was none.
    pub(crate) async fn carve_delete(&self, id: CarveId) -> Result<bool> {
        let sql = "DELETE FROM carves WHERE id = ?";
        let mut session = self.session(Purpose::Write).await?;
        let done = session.execute("carve_delete", sql, &[id.0.into()]).await?;
        Ok(done.rows > 0)
    }

    async fn carves_where(&self, sql: String, args: &[Arg<'_>]) -> Result<Vec<Carve>> {
        let mut session = self.session(Purpose::Read).await?;
        let rows = session.rows("carves_read", sql, args).await?;
        Ok(rows.iter().map(read).collect::<StdResult<_, Fault>>()?)
    }
}

fn number(value: u64) -> StdResult<i64, Error> {
    i64::try_from(value).map_err(|_| Error::Invalid("a carve's size is too large".into()))
}

fn read(row: &Row) -> StdResult<Carve, Fault> {
    Ok(Carve {
        id: CarveId(row.u32(0)?),
        host: row.host(1)?,
        session_hash: row.hash(2)?,
        carve_id: row.text(3)?,
        request_id: row.text(4)?,
        block_count: row.u64(5)?,
        block_size: row.u64(6)?,
        carve_size: row.u64(7)?,
        next_block: row.u64(8)?,
        bytes: row.u64(9)?,
        error: row.text_or_null(10)?,
        created_at: row.time(11)?,
        updated_at: row.time(12)?,
    })
}
