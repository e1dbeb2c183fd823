//! What a server of MySQL's tells about itself, for somebody who looks for a fault. Values are taken out of statements,
//! since some are secrets.

use serde_json::{Value, json};

use super::dialect::Dialect;
use super::error::Result;
use super::pools::Purpose;
use super::{Filling, Store};
use crate::debug::scrub;

/// Rows of a list.
const ROWS_MAX: i64 = 1_000;

impl Store {
    /// Connections of the server that we may see; `None` for the embedded store.
    pub(crate) async fn process_list(&self) -> Result<Option<Value>> {
        let sql = "SELECT CAST(id AS SIGNED), user, host, COALESCE(db, ''), command, \
                   CAST(COALESCE(time, 0) AS SIGNED), COALESCE(state, ''), COALESCE(info, '') \
                   FROM information_schema.processlist ORDER BY id LIMIT ?";
        self.diagnose("process_list", sql, |row| {
            Ok(json!({
                "Id": row.int(0)?,
                "User": row.text(1)?,
                "Host": row.text(2)?,
                "Db": row.text(3)?,
                "Command": row.text(4)?,
                "Time": row.int(5)?,
                "State": row.text(6)?,
                "Info": scrub::statement(&row.text(7)?),
            }))
        })
        .await
    }

    /// Open transactions, those that wait for a lock first; `None` for the embedded store.
    pub(crate) async fn lock_list(&self) -> Result<Option<Value>> {
        let sql = "SELECT trx_id, trx_state, CAST(trx_started AS CHAR), \
                   COALESCE(CAST(trx_wait_started AS CHAR), ''), CAST(trx_mysql_thread_id AS SIGNED), \
                   CAST(trx_rows_locked AS SIGNED), CAST(trx_rows_modified AS SIGNED), \
                   COALESCE(trx_query, '') FROM information_schema.innodb_trx \
                   ORDER BY trx_wait_started IS NULL, trx_started LIMIT ?";
        self.diagnose("lock_list", sql, |row| {
            Ok(json!({
                "trx_id": row.text(0)?,
                "trx_state": row.text(1)?,
                "trx_started": row.text(2)?,
                "trx_wait_started": row.text(3)?,
                "thread": row.int(4)?,
                "rows_locked": row.int(5)?,
                "rows_modified": row.int(6)?,
                "query": scrub::statement(&row.text(7)?),
            }))
        })
        .await
    }

    /// The page of `SHOW ENGINE INNODB STATUS`; `None` for the embedded store.
    pub(crate) async fn innodb_status(&self) -> Result<Option<String>> {
        if self.dialect == Dialect::Sqlite {
            return Ok(None);
        }
        let mut session = self.session(Purpose::Read).await?;
        let row = session
            .row("innodb_status", "SHOW ENGINE INNODB STATUS", &[])
            .await?;
        let text = row.map_or(Ok(String::new()), |row| row.text(2))?;
        Ok(Some(scrub::innodb_status(&text)))
    }

    /// How the store is, as far as this process knows.
    pub(crate) fn condition(&self) -> Value {
        let statistics = self.statistics();
        let filling = |filling: &Filling| filling.to_string();
        json!({
            "engine": self.engine().label(),
            "location": self.location(),
            "is_read_only": self.is_read_only(),
            "refused_for_s": self.refused_for().map(|span| span.as_secs()),
            "connections": statistics.connections,
            "idle_connections": statistics.idle_connections,
            "newest_change": self.newest_change(),
            "backfills": self.fillings().iter().map(filling).collect::<Vec<_>>(),
        })
    }

    async fn diagnose(
        &self,
        name: &'static str,
        sql: &str,
        read: fn(&super::value::Row) -> std::result::Result<Value, super::error::Fault>,
    ) -> Result<Option<Value>> {
        if self.dialect == Dialect::Sqlite {
            return Ok(None);
        }
        let mut session = self.session(Purpose::Read).await?;
        let mut list = Vec::new();
        for row in session.rows(name, sql, &[ROWS_MAX.into()]).await? {
            list.push(read(&row)?);
        }
        Ok(Some(list.into()))
    }
}
