//! Campaigns: who asks whom what, and how it ended.

use std::collections::BTreeSet;
use std::result::Result as StdResult;

use fleet_protocol::ids::UnixSeconds;
use roaring::RoaringBitmap;

use super::Store;
use super::changes::{NewChange, write_changes};
use super::error::{Error, Fault, Result};
use super::pools::Purpose;
use super::session::{Session, transaction};
use super::value::{Arg, Row, clip, unexpected};
use crate::model::campaign::{Campaign, CampaignId, NewCampaign, Status, Tally};
use crate::model::query::QueryId;

/// Everything but the targets, which are large.
const COLUMNS: &str = "id, name, query_id, query_text, user_id, user_name, created_at, expires_at, \
    ended_at, status, target_count, answered, failed, rows_taken, bytes_taken, hosts_cut, rows_cut, \
    bytes_cut";
const RUNNING: i64 = 1;
/// Campaigns that one call lists.
const LISTED_MAX: u32 = 1000;
/// Ended campaigns that one call deletes.
const PRUNED_MAX: u32 = 512;

fn number_of(status: Status) -> i64 {
    match status {
        Status::Running => RUNNING,
        Status::Finished => 2,
        Status::Expired => 3,
        Status::Stopped => 4,
    }
}

fn status_of(number: i64) -> StdResult<Status, Fault> {
    match number {
        RUNNING => Ok(Status::Running),
        2 => Ok(Status::Finished),
        3 => Ok(Status::Expired),
        4 => Ok(Status::Stopped),
        _ => Err(unexpected()),
    }
}

impl Store {
    /// Notes a campaign that runs from now on, until `expires_at` if nobody looks; `None` when `open_max` run already.
    pub(crate) async fn campaign_begin(
        &self,
        new: &NewCampaign,
        created_at: UnixSeconds,
        expires_at: UnixSeconds,
        open_max: u32,
    ) -> Result<Option<CampaignId>> {
        let mut targets = Vec::new();
        new.targets
            .serialize_into(&mut targets)
            .map_err(|_| Error::Invalid("targets cannot be encoded".into()))?;
        let target_count = number(new.targets.len())?;
        transaction!(self, session, async {
            // Takes the counter's lock, so that two nodes count one after the other.
            let id = session.advance("campaigns", 1).await?;
            let sql = "SELECT COUNT(*) FROM campaigns WHERE status = ?";
            let open = session
                .row("campaigns_open", sql, &[RUNNING.into()])
                .await?;
            if open.map_or(Ok(0), |row| row.int(0))? >= i64::from(open_max) {
                return Ok(None);
            }
            let sql = "INSERT INTO campaigns (id, name, query_id, query_text, user_id, user_name, \
                       created_at, expires_at, ended_at, status, targets, target_count, answered, \
                       failed, rows_taken, bytes_taken, hosts_cut, rows_cut, bytes_cut) \
                       VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, 0, 0, 0, 0, 0, 0, 0)";
            let args: [Arg<'_>; 11] = [
                id.into(),
                clip(&new.name).into(),
                new.query_id.map(|query| query.0).into(),
                new.sql.as_str().into(),
                new.user_id.into(),
                clip(&new.user_name).into(),
                created_at.into(),
                expires_at.into(),
                RUNNING.into(),
                Arg::Bytes(&targets),
                target_count.into(),
            ];
            session.execute("campaign_insert", sql, &args).await?;
            write_changes(&mut session, &[NewChange::campaign(id)]).await?;
            let id = u32::try_from(id).map_err(|_| unexpected())?;
            Ok(Some(CampaignId(id)))
        })
    }

    pub(crate) async fn campaign(&self, id: CampaignId) -> Result<Option<Campaign>> {
        Ok(self.campaigns_by_ids(&BTreeSet::from([id])).await?.pop())
    }

    pub(crate) async fn campaigns_by_ids(
        &self,
        ids: &BTreeSet<CampaignId>,
    ) -> Result<Vec<Campaign>> {
        let sql = format!("SELECT {COLUMNS} FROM campaigns WHERE id IN ({{}}) ORDER BY id");
        let keys: Vec<Arg<'_>> = ids.iter().map(|id| id.0.into()).collect();
        let mut session = self.session(Purpose::Read).await?;
        let rows = session.rows_in("campaigns_by_ids", &sql, &keys).await?;
        Ok(rows.iter().map(read).collect::<StdResult<_, Fault>>()?)
    }

    /// Those that run, by id.
    pub(crate) async fn campaigns_running(&self) -> Result<Vec<Campaign>> {
        let sql = format!("SELECT {COLUMNS} FROM campaigns WHERE status = ? ORDER BY id");
        self.campaigns_where(sql, &[RUNNING.into()]).await
    }

    /// The youngest, of any status.
    pub(crate) async fn campaigns(&self) -> Result<Vec<Campaign>> {
        let sql = format!("SELECT {COLUMNS} FROM campaigns ORDER BY id DESC LIMIT ?");
        self.campaigns_where(sql, &[LISTED_MAX.into()]).await
    }

    /// Those that run although their time is over.
    pub(crate) async fn campaigns_overdue(&self, now: UnixSeconds) -> Result<Vec<CampaignId>> {
        let sql = "SELECT id FROM campaigns WHERE status = ? AND expires_at <= ? ORDER BY id";
        let mut session = self.session(Purpose::Read).await?;
        let args = [RUNNING.into(), now.into()];
        let rows = session.rows("campaigns_overdue", sql, &args).await?;
        let ids: StdResult<Vec<_>, Fault> =
            rows.iter().map(|row| row.u32(0).map(CampaignId)).collect();
        Ok(ids?)
    }

    pub(crate) async fn campaign_targets(&self, id: CampaignId) -> Result<Option<RoaringBitmap>> {
        let sql = "SELECT targets FROM campaigns WHERE id = ?";
        let mut session = self.session(Purpose::Read).await?;
        let Some(row) = session.row("campaign_targets", sql, &[id.0.into()]).await? else {
            return Ok(None);
        };
        let bytes = row.bytes_or_null(0)?.unwrap_or_default();
        let targets = RoaringBitmap::deserialize_from(bytes.as_slice());
        Ok(Some(targets.map_err(|_| unexpected())?))
    }

    /// Somebody looks: they run until then at least, but no longer than `age_max_s` in all.
    pub(crate) async fn campaigns_extend(
        &self,
        ids: &BTreeSet<CampaignId>,
        until: UnixSeconds,
        age_max_s: u32,
    ) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let (until, running) = (until.0, RUNNING);
        // Of numbers only, because the keys are the statement's parameters.
        let sql = format!(
            "UPDATE campaigns SET expires_at = CASE WHEN created_at + {age_max_s} < {until} \
             THEN created_at + {age_max_s} ELSE {until} END \
             WHERE status = {running} AND expires_at < {until} AND id IN ({{}})"
        );
        let keys: Vec<Arg<'_>> = ids.iter().map(|id| id.0.into()).collect();
        let mut session = self.session(Purpose::Write).await?;
        session.execute_in("campaigns_extend", &sql, &keys).await?;
        Ok(())
    }

    /// Ends a campaign; false when it did not run. With `overdue_at`, only if its time is over by then.
    pub(crate) async fn campaign_end(
        &self,
        id: CampaignId,
        status: Status,
        tally: &Tally,
        ended_at: UnixSeconds,
        overdue_at: Option<UnixSeconds>,
    ) -> Result<bool> {
        let mut args: Vec<Arg<'_>> = vec![number_of(status).into(), ended_at.into()];
        for count in [
            tally.answered,
            tally.failed,
            tally.rows,
            tally.bytes,
            tally.hosts_cut,
            tally.rows_cut,
            tally.bytes_cut,
        ] {
            args.push(number(count)?.into());
        }
        let overdue_at = overdue_at.unwrap_or(UnixSeconds(u32::MAX));
        args.extend([Arg::from(id.0), Arg::from(RUNNING), Arg::from(overdue_at)]);
        let sql = "UPDATE campaigns SET status = ?, ended_at = ?, answered = ?, failed = ?, \
                   rows_taken = ?, bytes_taken = ?, hosts_cut = ?, rows_cut = ?, bytes_cut = ? \
                   WHERE id = ? AND status = ? AND expires_at <= ?";
        transaction!(self, session, async {
            let done = session.execute("campaign_end", sql, &args).await?;
            if done.rows == 0 {
                return Ok(false);
            }
            write_changes(&mut session, &[NewChange::campaign(i64::from(id.0))]).await?;
            Ok(true)
        })
    }

    /// Deletes some of those that ended before; how many.
    pub(crate) async fn campaigns_prune(&self, before: UnixSeconds) -> Result<u64> {
        let sql = "SELECT id FROM campaigns WHERE status <> ? AND ended_at < ? ORDER BY id LIMIT ?";
        let args = [RUNNING.into(), before.into(), PRUNED_MAX.into()];
        let mut session = self.session(Purpose::Write).await?;
        let mut ids = Vec::new();
        for row in session.rows("campaigns_old", sql, &args).await? {
            ids.push(row.int(0)?.into());
        }
        if ids.is_empty() {
            return Ok(0);
        }
        let sql = "DELETE FROM campaigns WHERE id IN ({})";
        Ok(session.execute_in("campaigns_prune", sql, &ids).await?)
    }

    async fn campaigns_where(&self, sql: String, args: &[Arg<'_>]) -> Result<Vec<Campaign>> {
        let mut session: Session<'_> = self.session(Purpose::Read).await?;
        let rows = session.rows("campaigns_read", sql, args).await?;
        Ok(rows.iter().map(read).collect::<StdResult<_, Fault>>()?)
    }
}

fn number(value: u64) -> StdResult<i64, Error> {
    i64::try_from(value).map_err(|_| Error::Invalid("a campaign's count is too large".into()))
}

fn read(row: &Row) -> StdResult<Campaign, Fault> {
    Ok(Campaign {
        id: CampaignId(row.u32(0)?),
        name: row.text(1)?,
        query_id: match row.int_or_null(2)? {
            Some(_) => Some(QueryId(row.u32(2)?)),
            None => None,
        },
        sql: row.text(3)?,
        user_id: row.u32(4)?,
        user_name: row.text(5)?,
        created_at: row.time(6)?,
        expires_at: row.time(7)?,
        ended_at: row.time(8)?,
        status: status_of(row.int(9)?)?,
        target_count: row.u64(10)?,
        tally: Tally {
            answered: row.u64(11)?,
            failed: row.u64(12)?,
            rows: row.u64(13)?,
            bytes: row.u64(14)?,
            hosts_cut: row.u64(15)?,
            rows_cut: row.u64(16)?,
            bytes_cut: row.u64(17)?,
        },
    })
}
