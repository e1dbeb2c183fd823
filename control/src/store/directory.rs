//! Hosts as the directory keeps them.

use std::collections::HashMap;
use std::result::Result as StdResult;

use fleet_protocol::ids::{HostId, NodeKeyHash, UnixSeconds};

use super::Store;
use super::changes::limit_of;
use super::error::{Fault, Result};
use super::pools::Purpose;
use super::session::Session;
use super::value::{Arg, Row};
#[cfg(test)]
use crate::model::host::HostFilter;
use crate::model::host::{HostNames, HostState, shortest_interval_s};
use crate::model::label::LabelId;

/// The columns of a [`HostState`].
pub(super) const HOST_STATE: &str = "SELECT h.id, h.node_key_hash, h.enrolled_at, d.platform, \
    d.detail_updated_at, d.label_updated_at, d.refetch_requested, \
    d.distributed_interval, d.config_refresh, h.identifier, d.hostname, d.computer_name, \
    d.hardware_uuid, d.hardware_serial, d.primary_ip, d.public_ip, d.os_version, d.osquery_version \
    FROM hosts h LEFT JOIN host_details d ON d.host_id = h.id";

/// Reads [`HOST_STATE`]; labels come apart.
pub(super) fn read_state(row: &Row) -> StdResult<HostState, Fault> {
    Ok(HostState {
        id: row.host(0)?,
        key: row.key(1)?,
        enrolled_at: row.time(2)?,
        platform: row.text(3)?.into(),
        detail_updated_at: row.time(4)?,
        label_updated_at: row.time(5)?,
        refetch_requested: row.bool(6)?,
        interval_s: shortest_interval_s([row.int_or_null(7)?, row.int_or_null(8)?]),
        labels: vec![LabelId::ALL_HOSTS],
        names: Some(Box::new(HostNames {
            identifier: row.text(9)?,
            hostname: row.text(10)?,
            computer_name: row.text(11)?,
            hardware_uuid: row.text(12)?,
            hardware_serial: row.text(13)?,
            primary_ip: row.text(14)?,
            public_ip: row.text(15)?,
            os_version: row.text(16)?,
            osquery_version: row.text(17)?,
        })),
    })
}

/// Adds the labels to hosts that are sorted by id.
pub(super) async fn add_labels(
    session: &mut Session<'_>,
    hosts: &mut [HostState],
) -> StdResult<(), Fault> {
    let ids: Vec<Arg<'_>> = hosts.iter().map(|host| host.id.into()).collect();
    let sql = "SELECT host_id, label_id FROM label_membership WHERE host_id IN ({})";
    let rows = session.rows_in("labels_of_hosts", sql, &ids).await?;
    assign_labels(&rows, hosts)
}

fn assign_labels(rows: &[Row], hosts: &mut [HostState]) -> StdResult<(), Fault> {
    let mut labels: HashMap<HostId, Vec<LabelId>> = HashMap::new();
    for row in rows {
        labels
            .entry(row.host(0)?)
            .or_default()
            .push(LabelId(row.u32(1)?));
    }
    for host in hosts {
        if let Some(more) = labels.remove(&host.id) {
            host.labels.extend(more);
            host.labels.sort_unstable();
            // Padded statements and a stray row for the built-in label may repeat one.
            host.labels.dedup();
        }
    }
    Ok(())
}

impl Store {
    /// Up to `limit` hosts with higher ids, by id.
    pub(crate) async fn hosts_after(&self, after: HostId, limit: usize) -> Result<Vec<HostState>> {
        let mut session = self.session(Purpose::Read).await?;
        let sql = format!("{HOST_STATE} WHERE h.id > ? ORDER BY h.id LIMIT ?");
        let args = [after.into(), limit_of(limit).into()];
        let mut hosts = Vec::new();
        for row in session.rows("hosts_after", sql, &args).await? {
            hosts.push(read_state(&row)?);
        }
        if let Some(last) = hosts.last() {
            let sql = "SELECT host_id, label_id FROM label_membership \
                       WHERE host_id > ? AND host_id <= ?";
            let args = [after.into(), last.id.into()];
            let rows = session.rows("labels_after", sql, &args).await?;
            assign_labels(&rows, &mut hosts)?;
        }
        Ok(hosts)
    }

    /// Those that exist, by id.
    pub(crate) async fn hosts_by_keys(&self, keys: &[NodeKeyHash]) -> Result<Vec<HostState>> {
        let keys: Vec<Arg<'_>> = keys.iter().map(Into::into).collect();
        let sql = format!("{HOST_STATE} WHERE h.node_key_hash IN ({{}})");
        self.hosts_in("hosts_by_keys", &sql, &keys).await
    }

    /// Those that exist, by id.
    pub(crate) async fn hosts_by_ids(&self, ids: &[HostId]) -> Result<Vec<HostState>> {
        let ids: Vec<Arg<'_>> = ids.iter().map(|id| (*id).into()).collect();
        let sql = format!("{HOST_STATE} WHERE h.id IN ({{}})");
        self.hosts_in("hosts_by_ids", &sql, &ids).await
    }

    async fn hosts_in(
        &self,
        name: &'static str,
        sql: &str,
        keys: &[Arg<'_>],
    ) -> Result<Vec<HostState>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut session = self.session(Purpose::Read).await?;
        let mut hosts = Vec::new();
        for row in session.rows_in(name, sql, keys).await? {
            hosts.push(read_state(&row)?);
        }
        hosts.sort_unstable_by_key(|host| host.id);
        hosts.dedup_by_key(|host| host.id);
        add_labels(&mut session, &mut hosts).await?;
        Ok(hosts)
    }

    /// Seen times as written, of hosts with higher ids, by id.
    pub(crate) async fn seen_after(
        &self,
        after: HostId,
        limit: usize,
    ) -> Result<Vec<(HostId, UnixSeconds)>> {
        let mut session = self.session(Purpose::Read).await?;
        let sql =
            "SELECT host_id, seen_at FROM host_seen WHERE host_id > ? ORDER BY host_id LIMIT ?";
        let args = [after.into(), limit_of(limit).into()];
        let mut seen = Vec::new();
        for row in session.rows("seen_after", sql, &args).await? {
            seen.push((row.host(0)?, row.time(1)?));
        }
        Ok(seen)
    }

    /// How many hosts are enrolled.
    #[cfg(test)]
    pub(crate) async fn host_count(&self) -> Result<u64> {
        self.host_count_of(Purpose::Read, &HostFilter::default())
            .await
    }
}
