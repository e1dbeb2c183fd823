//! The database that is copied from: one connection, on which the server itself refuses to write.
//!
//! Invariants: nothing is locked, since each statement is a consistent read of its own and no transaction stays open; no
//! row, key or password gets into an error's text.

use std::time::Duration;

use fleet_protocol::config;
use fleet_protocol::secret::Secret;
use serde_json::Value;
use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, MySqlConnection, Row as _};
use tokio::time::timeout;

use super::mapping::{
    self, HostRow, LabelRow, PackRow, QueryRow, ScheduledRow, Settings, TargetRow,
};
use super::shape::{COLUMNS, Reading, Shape};
use super::{Person, Trouble};
use crate::model::host::HostColumns;
use crate::store::mysql_options;

/// From the call to the server's greeting.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// A statement that reads one page, or counts a large table.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(120);
/// Rows of one page of anything but hosts.
const PAGE_ROWS: i64 = 500;
/// Most rows of a table that is read whole.
const ROWS_MAX: usize = 200_000;
/// The server refuses writes; times are told in UTC; a rule of the source's about values must not hide any.
const SESSION: &str = "SET SESSION TRANSACTION READ ONLY; \
    SET SESSION time_zone = '+00:00', sql_mode = ''";

/// See the module.
pub(super) struct Source {
    connection: MySqlConnection,
    pub(super) shape: Shape,
}

/// A page of hosts.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) hosts: Vec<HostRow>,
    /// `(host, label)` by the source's ids.
    pub(super) members: Vec<(i64, i64)>,
}

impl Source {
    pub(super) async fn open(options: &config::Mysql) -> Result<Self, Trouble> {
        let options =
            mysql_options(options).map_err(|error| Trouble::new(format!("the source: {error}")))?;
        let connected = timeout(CONNECT_DEADLINE, options.connect()).await;
        let connection = connected
            .map_err(|_| Trouble::new("the source: no answer in time"))?
            .map_err(|error| trouble("cannot connect", &error))?;
        let mut source = Self {
            connection,
            shape: Shape::default(),
        };
        sqlx::raw_sql(SESSION)
            .execute(&mut source.connection)
            .await
            .map_err(|error| trouble("cannot be made read-only", &error))?;
        let mut columns = Vec::new();
        for row in source.rows(COLUMNS, &[]).await? {
            columns.push((text(&row, 0)?, text(&row, 1)?));
        }
        source.shape = Shape::new(columns);
        if source.shape.is_known() {
            return Ok(source);
        }
        Err(Trouble::new(
            "the source has no table hosts with a column node_key; it is no database of Fleet's",
        ))
    }

    pub(super) async fn close(self) {
        let _ = timeout(CONNECT_DEADLINE, self.connection.close()).await;
    }

    /// Hosts in all, and those after this one.
    pub(super) async fn host_counts(&mut self, after: i64) -> Result<(u64, u64), Trouble> {
        let sql = self.shape.host_counts();
        let rows = self.rows(&sql, &[after]).await?;
        let row = rows.first().ok_or_else(odd)?;
        let number = |index| int(row, index).map(|count| u64::try_from(count).unwrap_or_default());
        Ok((number(0)?, number(1)?))
    }

    /// Hosts after this one, by id, with their labels.
    pub(super) async fn hosts(&mut self, after: i64, limit: i64) -> Result<Page, Trouble> {
        let sql = self.shape.hosts().sql;
        let mut page = Page::default();
        for row in self.rows(&sql, &[after, limit]).await? {
            page.hosts.push(host(&row)?);
        }
        if let (Some(last), Some(sql)) = (page.hosts.last(), self.shape.members()) {
            let args = [after, last.id];
            for row in self.rows(&sql, &args).await? {
                page.members.push((int(&row, 0)?, int(&row, 1)?));
            }
        }
        Ok(page)
    }

    /// Everything but the hosts.
    pub(super) async fn settings(&mut self) -> Result<Settings, Trouble> {
        Ok(Settings {
            labels: self.whole(self.shape.labels(), label).await?,
            queries: self.whole(self.shape.queries(), query).await?,
            packs: self.whole(self.shape.packs(), pack).await?,
            targets: self.whole(self.shape.pack_targets(), target).await?,
            scheduled: self.whole(self.shape.pack_queries(), scheduled).await?,
            has_query_schedule: self.shape.has_query_schedule(),
            agent_options: self.agent_options().await?,
        })
    }

    pub(super) async fn users(&mut self) -> Result<Vec<Person>, Trouble> {
        self.whole(self.shape.users(), person).await
    }

    pub(super) async fn secrets(&mut self) -> Result<Vec<Secret>, Trouble> {
        let Some(sql) = self.shape.secrets() else {
            return Ok(Vec::new());
        };
        let rows = self.rows(&sql, &[]).await?;
        let secrets = rows.iter().map(|row| text(row, 0).map(Secret::new));
        secrets.collect()
    }

    /// How many rows there are of what is not copied, by what they are.
    pub(super) async fn left_behind(&mut self) -> Result<Vec<(i64, &'static str)>, Trouble> {
        let mut counts = Vec::new();
        for (sql, what) in self.shape.left_behind() {
            let rows = self.rows(&sql, &[]).await?;
            let row = rows.first().ok_or_else(odd)?;
            counts.push((int(row, 0)?, what));
        }
        Ok(counts)
    }

    async fn agent_options(&mut self) -> Result<Option<Value>, Trouble> {
        if let Some(sql) = self.shape.app_config() {
            let settings = self.json(sql).await?;
            return Ok(settings.and_then(|settings| settings.get("agent_options").cloned()));
        }
        if let Some(sql) = self.shape.agent_options()
            && let Some(options) = self.json(sql).await?
        {
            return Ok(Some(options));
        }
        let Some(sql) = self.shape.osquery_options() else {
            return Ok(None);
        };
        let mut options = Vec::new();
        for row in self.rows(sql, &[]).await? {
            let value = parsed(&text(&row, 2)?)?;
            options.push((int(&row, 0)?, text(&row, 1)?, value));
        }
        Ok(mapping::kolide_options(&options))
    }

    /// The only value of the only row, if it is an object.
    async fn json(&mut self, sql: &str) -> Result<Option<Value>, Trouble> {
        let rows = self.rows(sql, &[]).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let text = text(row, 0)?;
        if text.is_empty() {
            return Ok(None);
        }
        Ok(Some(parsed(&text)?).filter(Value::is_object))
    }

    /// All rows of a table, page by page.
    async fn whole<T>(
        &mut self,
        reading: Option<Reading>,
        read: fn(&MySqlRow) -> Result<T, Trouble>,
    ) -> Result<Vec<T>, Trouble> {
        let mut all = Vec::new();
        let Some(reading) = reading else {
            return Ok(all);
        };
        let mut after = -1;
        loop {
            let rows = self.rows(&reading.sql, &[after, PAGE_ROWS]).await?;
            let Some(last) = rows.last() else {
                return Ok(all);
            };
            after = int(last, 0)?;
            for row in &rows {
                all.push(read(row)?);
            }
            if all.len() > ROWS_MAX {
                let text = format!("the source has a table of more than {ROWS_MAX} rows");
                return Err(Trouble::new(text));
            }
        }
    }

    async fn rows(&mut self, sql: &str, args: &[i64]) -> Result<Vec<MySqlRow>, Trouble> {
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for arg in args {
            query = query.bind(*arg);
        }
        let found = timeout(STATEMENT_DEADLINE, query.fetch_all(&mut self.connection)).await;
        found
            .map_err(|_| Trouble::new("the source: no answer in time"))?
            .map_err(|error| trouble("cannot be read", &error))
    }
}

/// Texts of the server that name users, tables, columns, but no values.
fn trouble(what: &str, error: &sqlx::Error) -> Trouble {
    let reason = match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) => error.to_string(),
        sqlx::Error::Tls(error) => format!("TLS: {error}"),
        _ => "the connection is out of step".to_owned(),
    };
    Trouble::new(format!("the source {what}: {reason}"))
}

fn odd() -> Trouble {
    Trouble::new("the source holds a value that makes no sense")
}

fn parsed(text: &str) -> Result<Value, Trouble> {
    serde_json::from_str(text).map_err(|_| odd())
}

// The type that a server declares for a value is not what matters.
fn text_or_null(row: &MySqlRow, index: usize) -> Result<Option<String>, Trouble> {
    row.try_get_unchecked(index).map_err(|_| odd())
}

fn int_or_null(row: &MySqlRow, index: usize) -> Result<Option<i64>, Trouble> {
    row.try_get_unchecked(index).map_err(|_| odd())
}

fn text(row: &MySqlRow, index: usize) -> Result<String, Trouble> {
    Ok(text_or_null(row, index)?.unwrap_or_default())
}

fn int(row: &MySqlRow, index: usize) -> Result<i64, Trouble> {
    Ok(int_or_null(row, index)?.unwrap_or_default())
}

fn host(row: &MySqlRow) -> Result<HostRow, Trouble> {
    let some = |index| text_or_null(row, index);
    let number = |index| int_or_null(row, index);
    Ok(HostRow {
        id: int(row, 0)?,
        node_key: text(row, 1)?,
        identifier: text(row, 2)?,
        public_ip: text(row, 3)?,
        enrolled_at: int(row, 4)?,
        seen_at: int(row, 5)?,
        detail_updated_at: int(row, 6)?,
        label_updated_at: int(row, 7)?,
        refetch_requested: int(row, 8)?,
        team: number(9)?,
        columns: HostColumns {
            platform: some(10)?,
            platform_like: some(11)?,
            os_version: some(12)?,
            osquery_version: some(13)?,
            hostname: some(14)?,
            computer_name: some(15)?,
            hardware_uuid: some(16)?,
            hardware_serial: some(17)?,
            hardware_model: some(18)?,
            hardware_vendor: some(19)?,
            cpu_brand: some(20)?,
            cpu_type: some(21)?,
            cpu_physical_cores: number(22)?,
            cpu_logical_cores: number(23)?,
            memory: number(24)?,
            primary_ip: some(25)?,
            primary_mac: some(26)?,
            disk_total: number(27)?,
            disk_free: number(28)?,
            distributed_interval: number(29)?,
            config_refresh: number(30)?,
            logger_tls_period: number(31)?,
            ..HostColumns::default()
        },
    })
}

fn label(row: &MySqlRow) -> Result<LabelRow, Trouble> {
    Ok(LabelRow {
        id: int(row, 0)?,
        name: text(row, 1)?,
        description: text(row, 2)?,
        query: text(row, 3)?,
        platform: text(row, 4)?,
        label_type: int(row, 5)?,
        membership_type: int(row, 6)?,
        team: int_or_null(row, 7)?,
    })
}

fn query(row: &MySqlRow) -> Result<QueryRow, Trouble> {
    Ok(QueryRow {
        id: int(row, 0)?,
        name: text(row, 1)?,
        description: text(row, 2)?,
        query: text(row, 3)?,
        saved: int_or_null(row, 4)?,
        team: int_or_null(row, 5)?,
        interval: int(row, 6)?,
        platform: text(row, 7)?,
        min_osquery_version: text(row, 8)?,
        automations_enabled: int(row, 9)?,
        logging: text(row, 10)?,
        observer_can_run: int(row, 11)?,
    })
}

fn pack(row: &MySqlRow) -> Result<PackRow, Trouble> {
    Ok(PackRow {
        id: int(row, 0)?,
        name: text(row, 1)?,
        description: text(row, 2)?,
        platform: text(row, 3)?,
        disabled: int(row, 4)?,
        pack_type: text(row, 5)?,
    })
}

fn target(row: &MySqlRow) -> Result<TargetRow, Trouble> {
    Ok(TargetRow {
        pack: int(row, 1)?,
        kind: int(row, 2)?,
        target: int(row, 3)?,
    })
}

fn scheduled(row: &MySqlRow) -> Result<ScheduledRow, Trouble> {
    Ok(ScheduledRow {
        pack: int(row, 1)?,
        query_id: int_or_null(row, 2)?,
        query_name: text(row, 3)?,
        name: text(row, 4)?,
        description: text(row, 5)?,
        interval: int(row, 6)?,
        snapshot: int_or_null(row, 7)?,
        removed: int_or_null(row, 8)?,
        shard: int_or_null(row, 9)?,
        platform: text(row, 10)?,
        version: text(row, 11)?,
        denylist: int_or_null(row, 12)?,
    })
}

fn person(row: &MySqlRow) -> Result<Person, Trouble> {
    let role = text_or_null(row, 3)?.unwrap_or_default();
    let is_disabled = int_or_null(row, 5)? == Some(0);
    Ok(Person {
        name: text(row, 1)?,
        email: text(row, 2)?,
        // Before there were roles, everybody could do everything but manage users.
        role: match (role.as_str(), int_or_null(row, 4)?) {
            ("", Some(0)) => "maintainer".to_owned(),
            ("", Some(_)) => "admin".to_owned(),
            (role, _) => role.to_owned(),
        },
        is_disabled,
        is_api_only: int(row, 6)? != 0,
    })
}
