//! Hosts by what people call them, and what people call hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::result::Result as StdResult;

use fleet_protocol::ids::HostId;

use super::Store;
use super::enroll::identifier_text;
use super::error::{Fault, Result};
use super::pools::Purpose;
use super::value::{Arg, Row};
use crate::model::host_name::HostName;

impl Store {
    /// What hosts are called; those that do not exist are left out.
    pub(crate) async fn host_names(&self, hosts: &[HostId]) -> Result<Vec<(HostId, HostName)>> {
        let sql = "SELECT h.id, h.identifier, d.hostname, d.computer_name FROM hosts h \
                   LEFT JOIN host_details d ON d.host_id = h.id WHERE h.id IN ({})";
        let keys: Vec<Arg<'_>> = hosts.iter().map(|host| (*host).into()).collect();
        let mut session = self.session(Purpose::Read).await?;
        let rows = session.rows_in("host_names", sql, &keys).await?;
        let names: StdResult<Vec<_>, Fault> = rows
            .iter()
            .map(|row| {
                let hostname = row.text_or_null(2)?.unwrap_or_default();
                let computer = row.text_or_null(3)?.unwrap_or_default();
                let given = [computer, hostname.clone()];
                let display = given.into_iter().find(|name| !name.is_empty());
                let name = HostName {
                    display_name: display.map_or_else(|| row.text(1), Ok)?.into(),
                    hostname: hostname.into(),
                };
                Ok((row.host(0)?, name))
            })
            .collect();
        Ok(names?)
    }

    /// Hosts by identifier, host name, hardware UUID or serial number; names that match none are left out. A name may
    /// match several hosts.
    pub(crate) async fn hosts_named(
        &self,
        names: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, BTreeSet<HostId>>> {
        let texts: BTreeMap<String, &String> = names
            .iter()
            .map(|name| (identifier_text(name), name))
            .collect();
        let mut session = self.session(Purpose::Read).await?;
        let mut found: BTreeMap<String, BTreeSet<HostId>> = BTreeMap::new();
        let keys: Vec<Arg<'_>> = texts.keys().map(|text| text.as_str().into()).collect();
        let mut rows = Vec::new();
        for sql in [
            "SELECT id, identifier FROM hosts WHERE identifier IN ({})",
            "SELECT host_id, hostname FROM host_details WHERE hostname IN ({})",
            "SELECT host_id, hardware_uuid FROM host_details WHERE hardware_uuid IN ({})",
        ] {
            rows.extend(session.rows_in("hosts_by_names", sql, &keys).await?);
        }
        collect(&rows, &texts, &mut found)?;
        // No index has serial numbers, so they are looked at last.
        let missing = texts.iter().filter(|(_, name)| !found.contains_key(**name));
        let keys: Vec<Arg<'_>> = missing.map(|(text, _)| text.as_str().into()).collect();
        if !keys.is_empty() {
            let sql = "SELECT host_id, hardware_serial FROM host_details \
                       WHERE hardware_serial IN ({})";
            let rows = session.rows_in("hosts_by_serials", sql, &keys).await?;
            collect(&rows, &texts, &mut found)?;
        }
        Ok(found)
    }
}

fn collect(
    rows: &[Row],
    texts: &BTreeMap<String, &String>,
    found: &mut BTreeMap<String, BTreeSet<HostId>>,
) -> StdResult<(), Fault> {
    for row in rows {
        if let Some(name) = texts.get(&row.text(1)?) {
            let hosts = found.entry((*name).clone()).or_default();
            hosts.insert(row.host(0)?);
        }
    }
    Ok(())
}
