//! The audit log: rows are added and, when they are old, deleted; never changed.

use std::result::Result as StdResult;

use fleet_protocol::ids::UnixSeconds;

use super::Store;
use super::dialect::{Rule, Upsert};
use super::error::{Error, Fault, Result};
use super::host_list::like_pattern;
use super::pools::Purpose;
use super::session::transaction;
use super::value::{Arg, Row, clip};
use crate::model::activity::{Activity, ActivityFilter, NewActivity};
use crate::model::user::UserId;

const SELECT: &str = "SELECT id, at, actor_id, actor_name, actor_email, address, kind, \
    subject_kind, subject_name, subject_id, details FROM activities";
/// Entries that one statement deletes.
const OLD_MAX: u32 = 1000;

const ACTIVITIES: Upsert<'_> = Upsert {
    table: "activities",
    key: &["id"],
    columns: &[
        ("id", Rule::Keep),
        ("at", Rule::Keep),
        ("actor_id", Rule::Keep),
        ("actor_name", Rule::Keep),
        ("actor_email", Rule::Keep),
        ("address", Rule::Keep),
        ("kind", Rule::Keep),
        ("subject_kind", Rule::Keep),
        ("subject_name", Rule::Keep),
        ("subject_id", Rule::Keep),
        ("details", Rule::Keep),
    ],
};

impl Store {
    /// Adds entries, all or none.
    pub(crate) async fn add_activities(&self, entries: &[NewActivity]) -> Result<()> {
        let count = u32::try_from(entries.len())
            .map_err(|_| Error::Invalid("too many activities at once".into()))?;
        let details: Vec<String> = entries
            .iter()
            .map(|entry| entry.details.to_string())
            .collect();
        transaction!(self, session, async {
            let newest = session.advance("activities", count).await?;
            let first = newest - i64::from(count) + 1;
            let rows: Vec<Vec<Arg<'_>>> = (first..)
                .zip(entries.iter().zip(&details))
                .map(|(id, (entry, details))| values(id, entry, details))
                .collect();
            session.upsert("activities_write", &ACTIVITIES, &rows).await
        })
    }

    /// A page of entries, and one more when there is a further page.
    pub(crate) async fn activities(&self, filter: &ActivityFilter) -> Result<Vec<Activity>> {
        let direction = if filter.is_ascending { "ASC" } else { "DESC" };
        let mut conditions = Vec::new();
        let mut args: Vec<Arg<'_>> = Vec::new();
        if let Some(kind) = &filter.kind {
            conditions.push("kind = ?");
            args.push(kind.as_str().into());
        }
        let text = filter.text.as_deref().unwrap_or_default();
        let pattern = like_pattern(text);
        if !text.is_empty() {
            conditions.push(
                "(LOWER(actor_name) LIKE ? ESCAPE '!' OR LOWER(actor_email) LIKE ? ESCAPE '!')",
            );
            args.extend([Arg::from(pattern.as_str()), Arg::from(pattern.as_str())]);
        }
        let skipped = i64::from(filter.per_page).saturating_mul(filter.page.into());
        let wanted = i64::from(filter.per_page) + 1;
        args.extend([Arg::from(wanted), Arg::from(skipped)]);
        let condition = if conditions.is_empty() {
            String::new()
        } else {
            format!("WHERE {}", conditions.join(" AND "))
        };
        let sql = format!("{SELECT} {condition} ORDER BY id {direction} LIMIT ? OFFSET ?");
        let mut session = self.session(Purpose::Report).await?;
        let rows = session.rows("activities_list", sql, &args).await?;
        Ok(rows.iter().map(read).collect::<StdResult<_, Fault>>()?)
    }

    /// Deletes entries from before, and those of the `noisy` kinds that are not among the newest `kept` of all; some of
    /// them, so that it is to be called again until zero.
    pub(crate) async fn prune_activities(
        &self,
        before: UnixSeconds,
        noisy: &[&str],
        kept: u32,
    ) -> Result<u64> {
        let mut session = self.session(Purpose::Write).await?;
        let sql = "SELECT value FROM counters WHERE name = 'activities'";
        let row = session.row("activities_newest", sql, &[]).await?;
        let newest = row.map_or(Ok(0), |row| row.int(0))?;
        let last = newest - i64::from(kept);
        // No kind is empty.
        let kinds = vec!["?"; noisy.len().max(1)].join(", ");
        let sql = format!(
            "SELECT id FROM activities WHERE at < ? OR (id <= ? AND kind IN ({kinds})) \
             ORDER BY id LIMIT ?"
        );
        let mut args: Vec<Arg<'_>> = vec![before.into(), last.into()];
        args.extend(noisy.iter().map(|kind| Arg::from(*kind)));
        if noisy.is_empty() {
            args.push("".into());
        }
        args.push(OLD_MAX.into());
        let rows = session.rows("activities_old", sql, &args).await?;
        let ids: StdResult<Vec<Arg<'_>>, Fault> =
            rows.iter().map(|row| row.int(0).map(Arg::Int)).collect();
        let sql = "DELETE FROM activities WHERE id IN ({})";
        Ok(session.execute_in("activities_delete", sql, &ids?).await?)
    }
}

fn values<'a>(id: i64, entry: &'a NewActivity, details: &'a str) -> Vec<Arg<'a>> {
    vec![
        id.into(),
        entry.at.into(),
        entry.actor.0.into(),
        clip(&entry.actor_name).into(),
        clip(&entry.actor_email).into(),
        clip(&entry.address).into(),
        entry.kind.into(),
        entry.subject_kind.into(),
        clip(&entry.subject_name).into(),
        entry.subject_id.into(),
        details.into(),
    ]
}

fn read(row: &Row) -> StdResult<Activity, Fault> {
    Ok(Activity {
        id: row.u64(0)?,
        at: row.time(1)?,
        actor: UserId(row.u32(2)?),
        actor_name: row.text(3)?,
        actor_email: row.text(4)?,
        address: row.text(5)?,
        kind: row.text(6)?,
        subject_kind: row.text(7)?,
        subject_name: row.text(8)?,
        subject_id: row.u32(9)?,
        details: serde_json::from_str(&row.text(10)?).unwrap_or_default(),
    })
}
