//! What operators see of hosts, and what they do to one.

use std::collections::HashMap;
use std::result::Result as StdResult;

use fleet_protocol::ids::HostId;
use serde_json::{Map, Value};

use super::Store;
use super::changes::{NewChange, limit_of, write_changes};
use super::columns;
use super::directory::{HOST_STATE, add_labels, read_state};
use super::enroll::identifier_text;
use super::error::{Fault, Result};
use super::pools::Purpose;
use super::session::{Session, transaction};
use super::value::{Arg, Row};
use crate::model::change::ChangeKind;
use crate::model::enrollment::{CERTIFIED_INSTANCE, is_certified_instance};
use crate::model::host::{
    CLONES_SHOWN_MAX, HostDetail, HostFilter, HostOrder, HostRow, HostState, HostStatus,
    INTERVAL_UNKNOWN_S, MIA_AFTER_S, NEW_FOR_S, ONLINE_BUFFER_S, SortValue,
};
use crate::model::label::LabelId;

const PER_PAGE: u32 = 100;
pub(super) const PER_PAGE_MAX: u32 = 10_000;

/// Columns of a [`HostRow`] before those of `host_details`.
const HOST_ROW: &str = "h.id, h.identifier, h.instance_id, h.address, h.enrolled_at, s.seen_at, \
    d.detail_updated_at, d.label_updated_at, d.refetch_requested";
const HOST_ROW_COLUMNS: usize = 9;

const FROM: &str = "FROM hosts h LEFT JOIN host_details d ON d.host_id = h.id \
    LEFT JOIN host_seen s ON s.host_id = h.id";

/// When a host was last heard of.
const HEARD_AT: &str =
    "(CASE WHEN COALESCE(s.seen_at, 0) > h.enrolled_at THEN s.seen_at ELSE h.enrolled_at END)";

/// Whether a host shares its identifier with another one. A certificate names its host alone.
fn is_clone() -> String {
    let enrolled = format!("instance_id NOT LIKE '{CERTIFIED_INSTANCE}%'");
    // Identifiers that stand twice are found in their index, and only their rows are read. As derived tables, because a
    // plain subquery is asked anew for each host by MariaDB.
    let twice = "SELECT identifier FROM hosts GROUP BY identifier HAVING COUNT(*) > 1";
    format!(
        "h.{enrolled} AND h.identifier IN (SELECT c.identifier FROM (SELECT i.identifier FROM hosts i \
         JOIN ({twice}) t ON t.identifier = i.identifier WHERE i.{enrolled} \
         GROUP BY i.identifier HAVING COUNT(*) > 1) c)"
    )
}

impl Store {
    /// Hosts that share their identifier with others.
    pub(crate) async fn clone_count(&self) -> Result<u64> {
        let mut session = self.session(Purpose::Read).await?;
        let sql = format!("SELECT COUNT(*) FROM hosts h WHERE {}", is_clone());
        let row = session.row("clone_count", sql, &[]).await?;
        Ok(row.map_or(Ok(0), |row| row.u64(0))?)
    }

    /// Hosts that the filter lets pass, on all pages.
    pub(super) async fn host_count_of(&self, purpose: Purpose, filter: &HostFilter) -> Result<u64> {
        let pattern = filter.text.as_deref().map(like_pattern);
        let (conditions, args) = self.conditions(filter, pattern.as_deref());
        let sql = format!("SELECT COUNT(*) {FROM} WHERE {conditions}");
        let mut session = self.session(purpose).await?;
        let row = session.row("host_count_of", sql, &args).await?;
        Ok(row.map_or(Ok(0), |row| row.u64(0))?)
    }

    /// These hosts, in this order; those that do not exist are left out.
    pub(super) async fn host_rows(&self, purpose: Purpose, ids: &[HostId]) -> Result<Vec<HostRow>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let args: Vec<Arg<'_>> = ids.iter().map(|id| (*id).into()).collect();
        let sql = format!(
            "SELECT {HOST_ROW}, {} {FROM} WHERE h.id IN ({{}})",
            columns::select_list(),
        );
        let mut session = self.session(purpose).await?;
        let mut found = HashMap::with_capacity(ids.len());
        for row in session.rows_in("host_rows", &sql, &args).await? {
            let row = read_row(&row)?;
            found.insert(row.id, row);
        }
        Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
    }

    /// One page of hosts.
    pub(crate) async fn host_list(&self, filter: &HostFilter) -> Result<Vec<HostRow>> {
        self.host_list_for(Purpose::Read, filter).await
    }

    pub(super) async fn host_list_for(
        &self,
        purpose: Purpose,
        filter: &HostFilter,
    ) -> Result<Vec<HostRow>> {
        let pattern = filter.text.as_deref().map(like_pattern);
        let (conditions, args) = self.conditions(filter, pattern.as_deref());
        let direction = if filter.is_descending { "DESC" } else { "ASC" };
        let order = order_column(filter.order);
        let per_page = match filter.per_page {
            0 => PER_PAGE,
            rows => rows.min(PER_PAGE_MAX),
        };
        let offset = i64::from(filter.page) * i64::from(per_page);
        let sql = format!(
            "SELECT {HOST_ROW}, {} {FROM} WHERE {conditions} \
             ORDER BY {order} {direction}, h.id {direction} LIMIT ? OFFSET ?",
            columns::select_list(),
        );
        let mut all = args;
        all.extend([Arg::from(per_page), Arg::from(offset)]);
        let mut session = self.session(purpose).await?;
        let rows = session.rows("host_list", sql, &all).await?;
        Ok(rows.iter().map(read_row).collect::<StdResult<_, _>>()?)
    }

    fn conditions<'a>(
        &self,
        filter: &'a HostFilter,
        pattern: Option<&'a str>,
    ) -> (String, Vec<Arg<'a>>) {
        let mut conditions = vec!["1 = 1".to_owned()];
        let mut args: Vec<Arg<'a>> = Vec::new();
        if let Some(after) = filter.after {
            conditions.push("h.id > ?".into());
            args.push(after.into());
        }
        if let Some(value) = &filter.beyond {
            let order = order_column(filter.order);
            conditions.push(if filter.is_descending {
                // What was never told comes last.
                format!("({order} < ? OR {order} IS NULL)")
            } else {
                format!("{order} > ?")
            });
            args.push(match value {
                SortValue::Number(number) => (*number).into(),
                SortValue::Text(text) => text.as_str().into(),
            });
        }
        if let Some(platform) = &filter.platform {
            conditions.push("d.platform = ?".into());
            args.push(platform.as_str().into());
        }
        if let Some(label) = filter.label
            && label != LabelId::ALL_HOSTS
        {
            conditions
                .push("h.id IN (SELECT host_id FROM label_membership WHERE label_id = ?)".into());
            args.push(label.0.into());
        }
        if let Some(pattern) = pattern {
            let columns = [
                "d.hostname",
                "d.computer_name",
                "h.identifier",
                "d.hardware_uuid",
                "d.hardware_serial",
                "d.primary_ip",
                "d.public_ip",
            ];
            let any = columns.map(|column| format!("LOWER({column}) LIKE ? ESCAPE '!'"));
            conditions.push(format!("({})", any.join(" OR ")));
            args.extend(columns.map(|_| Arg::from(pattern)));
        }
        if filter.is_clone {
            conditions.push(is_clone());
        }
        if let Some(status) = filter.status {
            self.push_status(status, filter, &mut conditions, &mut args);
        }
        (conditions.join(" AND "), args)
    }

    fn push_status(
        &self,
        status: HostStatus,
        filter: &HostFilter,
        conditions: &mut Vec<String>,
        args: &mut Vec<Arg<'_>>,
    ) {
        // The shorter of the two intervals that are known; marks that wait in memory make up for the slack.
        let slack = i64::from(ONLINE_BUFFER_S) + i64::from(self.seen_interval_s);
        let a = "COALESCE(d.distributed_interval, 0)";
        let b = "COALESCE(d.config_refresh, 0)";
        let interval = format!(
            "(CASE WHEN {a} <= 0 AND {b} <= 0 THEN {INTERVAL_UNKNOWN_S} \
             WHEN {a} <= 0 THEN {b} WHEN {b} <= 0 THEN {a} WHEN {a} < {b} THEN {a} ELSE {b} END)"
        );
        let online = format!("{HEARD_AT} + {interval} + {slack} >= ?");
        let mia = format!("{HEARD_AT} + {MIA_AFTER_S} <= ?");
        let now: Arg<'_> = filter.now.into();
        match status {
            HostStatus::Online => conditions.push(online),
            HostStatus::Mia => conditions.push(mia),
            HostStatus::Offline => {
                conditions.push(format!("NOT ({online}) AND NOT ({mia})"));
                args.push(now);
            }
            HostStatus::New => conditions.push(format!("h.enrolled_at + {NEW_FOR_S} > ?")),
        }
        args.push(now);
    }

    /// By id, identifier, host name or hardware UUID, in this order of preference; the youngest when several match.
    pub(crate) async fn host_detail(&self, name: &str) -> Result<Option<HostDetail>> {
        self.host_detail_for(Purpose::Read, name).await
    }

    pub(super) async fn host_detail_for(
        &self,
        purpose: Purpose,
        name: &str,
    ) -> Result<Option<HostDetail>> {
        let mut session = self.session(purpose).await?;
        let identifier = identifier_text(name);
        let mut keys: Vec<(&str, Arg<'_>)> = Vec::new();
        if let Ok(id) = name.parse::<u32>() {
            keys.push(("h.id", id.into()));
        }
        keys.push(("h.identifier", identifier.as_str().into()));
        keys.push(("d.hostname", name.into()));
        keys.push(("d.hardware_uuid", name.into()));
        for (column, key) in keys {
            let sql = format!(
                "SELECT {HOST_ROW}, {}, d.details {FROM} WHERE {column} = ? \
                 ORDER BY h.enrolled_at DESC, h.id DESC LIMIT 1",
                columns::select_list(),
            );
            if let Some(row) = session.row("host_detail", sql, &[key]).await? {
                return Ok(Some(read_detail(&mut session, &row).await?));
            }
        }
        Ok(None)
    }

    /// Its state before; `None` when there was none.
    #[cfg(test)]
    pub(crate) async fn delete_host(&self, host: HostId) -> Result<Option<HostState>> {
        Ok(self.delete_hosts(&[host]).await?.pop())
    }

    /// The state before of those that there were.
    pub(crate) async fn delete_hosts(&self, hosts: &[HostId]) -> Result<Vec<HostState>> {
        if hosts.is_empty() {
            return Ok(Vec::new());
        }
        transaction!(self, session, delete_once(&mut session, hosts))
    }

    /// Whether that is new; `None` when there is no such host.
    pub(crate) async fn request_refetch(&self, host: HostId) -> Result<Option<bool>> {
        transaction!(self, session, async {
            let sql = "SELECT refetch_requested FROM host_details WHERE host_id = ?";
            let row = session.row("refetch_read", sql, &[host.into()]).await?;
            let Some(row) = row else { return Ok(None) };
            let is_new = !row.bool(0)?;
            if is_new {
                let sql = "UPDATE host_details SET refetch_requested = 1 WHERE host_id = ?";
                session
                    .execute("refetch_request", sql, &[host.into()])
                    .await?;
                write_changes(&mut session, &[NewChange::host(host, None)]).await?;
            }
            Ok(Some(is_new))
        })
    }
}

async fn delete_once(
    session: &mut Session<'_>,
    hosts: &[HostId],
) -> StdResult<Vec<HostState>, Fault> {
    // Keeps an enrolment of the same host from slipping in between.
    session.advance("hosts", 0).await?;
    let mut hosts = hosts.to_vec();
    hosts.sort_unstable();
    hosts.dedup();
    let ids: Vec<Arg<'_>> = hosts.iter().map(|host| (*host).into()).collect();
    let sql = format!("{HOST_STATE} WHERE h.id IN ({{}})");
    let mut states = Vec::new();
    for row in session.rows_in("hosts_by_ids", &sql, &ids).await? {
        states.push(read_state(&row)?);
    }
    states.sort_unstable_by_key(|state: &HostState| state.id);
    states.dedup_by_key(|state| state.id);
    if states.is_empty() {
        return Ok(states);
    }
    add_labels(session, &mut states).await?;
    for sql in [
        "DELETE FROM hosts WHERE id IN ({})",
        "DELETE FROM host_details WHERE host_id IN ({})",
        "DELETE FROM host_seen WHERE host_id IN ({})",
        "DELETE FROM label_membership WHERE host_id IN ({})",
    ] {
        session.execute_in("host_delete", sql, &ids).await?;
    }
    let changes: Vec<NewChange> = states
        .iter()
        .map(|state| NewChange {
            kind: ChangeKind::HostDeleted,
            subject: i64::from(state.id.0),
            key: Some(state.key),
        })
        .collect();
    write_changes(session, &changes).await?;
    Ok(states)
}

fn order_column(order: HostOrder) -> &'static str {
    match order {
        HostOrder::Id => "h.id",
        HostOrder::Hostname => "d.hostname",
        HostOrder::SeenAt => HEARD_AT,
        HostOrder::EnrolledAt => "h.enrolled_at",
        HostOrder::OsVersion => "d.os_version",
        HostOrder::OsqueryVersion => "d.osquery_version",
    }
}

fn read_row(row: &Row) -> StdResult<HostRow, Fault> {
    let enrolled_at = row.time(4)?;
    Ok(HostRow {
        id: row.host(0)?,
        identifier: row.text(1)?,
        instance_id: row.text(2)?,
        address: row.text(3)?,
        enrolled_at,
        seen_at: row.time(5)?.max(enrolled_at),
        detail_updated_at: row.time(6)?,
        label_updated_at: row.time(7)?,
        refetch_requested: row.bool(8)?,
        columns: columns::read(row, HOST_ROW_COLUMNS)?,
    })
}

async fn read_detail(session: &mut Session<'_>, row: &Row) -> StdResult<HostDetail, Fault> {
    let details = row.text(HOST_ROW_COLUMNS + columns::COUNT)?;
    let details: Map<String, Value> = serde_json::from_str(&details).unwrap_or_default();
    let host = read_row(row)?;
    let sql = "SELECT id, name FROM labels WHERE id = 1 \
               OR id IN (SELECT label_id FROM label_membership WHERE host_id = ?) ORDER BY id";
    let mut labels = Vec::new();
    let args = [host.id.into()];
    for row in session.rows("labels_of_host", sql, &args).await? {
        labels.push((LabelId(row.u32(0)?), row.text(1)?));
    }
    let sql = format!(
        "SELECT h.id FROM hosts h WHERE h.identifier = ? AND h.id <> ? \
         AND h.instance_id NOT LIKE '{CERTIFIED_INSTANCE}%' ORDER BY h.id LIMIT ?"
    );
    let mut clones = Vec::new();
    if !is_certified_instance(&host.instance_id) {
        let limit = limit_of(CLONES_SHOWN_MAX);
        let args = [
            host.identifier.as_str().into(),
            host.id.into(),
            limit.into(),
        ];
        for row in session.rows("clones_of_host", sql, &args).await? {
            clones.push(row.host(0)?);
        }
    }
    Ok(HostDetail {
        row: host,
        details,
        labels,
        clones,
    })
}

/// `%text%` in lower case, with `!` before what has a meaning.
pub(super) fn like_pattern(text: &str) -> String {
    let mut pattern = String::from("%");
    for character in text.to_lowercase().chars() {
        if matches!(character, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(character);
    }
    pattern.push('%');
    pattern
}
