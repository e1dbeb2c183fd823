//! The detail queries: what a host is asked about itself when its details are due.
//!
//! Names are Fleet's, so that dashboards and agents' logs read the same. The SQL is written against osquery's public
//! table schema; columns that a platform or an old agent lacks must stay optional in `details.rs`.

use crate::labels::PlatformClass;

/// What a detail query's name begins with on the wire.
pub(crate) const DETAIL_PREFIX: &str = "fleet_detail_query_";

/// Passes on every agent. Agents skip queries without a discovery query as soon as one has one, so all have one.
pub(crate) const DISCOVERY_ALWAYS: &str = "SELECT 1";

/// One detail query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum DetailQuery {
    /// Operating system of everything but Windows.
    OsVersion,
    /// Operating system of Windows, with the marketing version from the registry.
    OsVersionWindows,
    /// The agent itself.
    OsqueryInfo,
    /// The agent's intervals.
    OsqueryFlags,
    /// Names, hardware, memory.
    SystemInfo,
    /// Seconds since boot.
    Uptime,
    /// Primary address and its MAC.
    NetworkInterfaceUnix,
    /// The same on Windows, where routes name interfaces by address.
    NetworkInterfaceWindows,
    /// Space on the root file system.
    DiskSpaceUnix,
    /// Space on the boot drive.
    DiskSpaceWindows,
}

impl DetailQuery {
    /// Every query, in the order in which they are handed out.
    pub(crate) const ALL: [Self; 10] = [
        Self::OsVersion,
        Self::OsVersionWindows,
        Self::OsqueryInfo,
        Self::OsqueryFlags,
        Self::SystemInfo,
        Self::Uptime,
        Self::NetworkInterfaceUnix,
        Self::NetworkInterfaceWindows,
        Self::DiskSpaceUnix,
        Self::DiskSpaceWindows,
    ];

    /// The name without its prefix.
    pub(crate) fn tail(self) -> &'static str {
        match self {
            Self::OsVersion => "os_version",
            Self::OsVersionWindows => "os_version_windows",
            Self::OsqueryInfo => "osquery_info",
            Self::OsqueryFlags => "osquery_flags",
            Self::SystemInfo => "system_info",
            Self::Uptime => "uptime",
            Self::NetworkInterfaceUnix => "network_interface_unix",
            Self::NetworkInterfaceWindows => "network_interface_windows",
            Self::DiskSpaceUnix => "disk_space_unix",
            Self::DiskSpaceWindows => "disk_space_windows",
        }
    }

    /// The name on the wire.
    pub(crate) fn name(self) -> String {
        format!("{DETAIL_PREFIX}{}", self.tail())
    }

    /// The query behind a name without its prefix.
    pub(crate) fn of_tail(tail: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|query| query.tail() == tail)
    }

    /// Whether a host of this class is asked. A host of unknown class is asked what works everywhere and tells by it
    /// what it is.
    pub(crate) fn is_for(self, class: PlatformClass) -> bool {
        match self {
            Self::OsVersion => class != PlatformClass::Windows,
            Self::OsqueryInfo | Self::OsqueryFlags | Self::SystemInfo | Self::Uptime => true,
            Self::OsVersionWindows | Self::NetworkInterfaceWindows | Self::DiskSpaceWindows => {
                class == PlatformClass::Windows
            }
            Self::NetworkInterfaceUnix | Self::DiskSpaceUnix => {
                matches!(class, PlatformClass::Darwin | PlatformClass::Linux)
            }
        }
    }

    /// Rows decide whether the agent runs the query. Tables that operators switch off are asked for, because a failing
    /// query makes noise on the host.
    pub(crate) fn discovery(self) -> &'static str {
        match self {
            Self::OsVersion
            | Self::OsqueryInfo
            | Self::OsqueryFlags
            | Self::SystemInfo
            | Self::Uptime => DISCOVERY_ALWAYS,
            Self::OsVersionWindows => {
                "SELECT 1 FROM osquery_registry \
                 WHERE registry = 'table' AND active = 1 AND name = 'registry'"
            }
            Self::NetworkInterfaceUnix | Self::NetworkInterfaceWindows => {
                "SELECT 1 FROM osquery_registry WHERE registry = 'table' AND active = 1 \
                 AND name IN ('interface_addresses', 'interface_details', 'routes') \
                 GROUP BY registry HAVING COUNT(DISTINCT name) = 3"
            }
            Self::DiskSpaceUnix => {
                "SELECT 1 FROM osquery_registry \
                 WHERE registry = 'table' AND active = 1 AND name = 'mounts'"
            }
            Self::DiskSpaceWindows => {
                "SELECT 1 FROM osquery_registry \
                 WHERE registry = 'table' AND active = 1 AND name = 'logical_drives'"
            }
        }
    }

    /// The query.
    pub(crate) fn sql(self) -> &'static str {
        match self {
            Self::OsVersion => "SELECT * FROM os_version LIMIT 1",
            Self::OsVersionWindows => OS_VERSION_WINDOWS,
            Self::OsqueryInfo => "SELECT * FROM osquery_info LIMIT 1",
            Self::OsqueryFlags => {
                "SELECT name, value FROM osquery_flags WHERE name IN \
                 ('config_refresh', 'config_tls_refresh', 'distributed_interval', 'logger_tls_period')"
            }
            Self::SystemInfo => "SELECT * FROM system_info LIMIT 1",
            Self::Uptime => "SELECT total_seconds FROM uptime LIMIT 1",
            Self::NetworkInterfaceUnix => NETWORK_INTERFACE_UNIX,
            Self::NetworkInterfaceWindows => NETWORK_INTERFACE_WINDOWS,
            Self::DiskSpaceUnix => {
                "SELECT blocks_available * blocks_size AS free_bytes, \
                 blocks * blocks_size AS total_bytes FROM mounts WHERE path = '/' LIMIT 1"
            }
            Self::DiskSpaceWindows => {
                "SELECT free_space AS free_bytes, size AS total_bytes FROM logical_drives \
                 WHERE size > 0 ORDER BY boot_partition DESC, device_id = 'C:' DESC, device_id LIMIT 1"
            }
        }
    }
}

const OS_VERSION_WINDOWS: &str = r"SELECT os.*,
  (SELECT data FROM registry WHERE path =
    'HKEY_LOCAL_MACHINE\SOFTWARE\Microsoft\Windows NT\CurrentVersion\DisplayVersion') AS display_version,
  (SELECT data FROM registry WHERE path =
    'HKEY_LOCAL_MACHINE\SOFTWARE\Microsoft\Windows NT\CurrentVersion\UBR') AS update_revision
FROM os_version AS os LIMIT 1";

/// The interface of the default route first; IPv4 before IPv6; else the first by name.
const NETWORK_INTERFACE_UNIX: &str =
    "SELECT a.interface AS interface, a.address AS address, d.mac AS mac
FROM interface_addresses AS a
JOIN interface_details AS d ON d.interface = a.interface
LEFT JOIN (
  SELECT interface, MIN(metric) AS metric FROM routes
  WHERE netmask = 0 AND destination IN ('0.0.0.0', '::', 'default') GROUP BY interface
) AS r ON r.interface = a.interface
WHERE a.address NOT LIKE '127.%' AND a.address NOT LIKE '169.254.%'
  AND a.address NOT LIKE 'fe80:%' AND a.address <> '::1' AND a.address <> ''
  AND d.mac <> '00:00:00:00:00:00'
ORDER BY r.metric IS NULL, r.metric, instr(a.address, ':') > 0, a.interface, a.address
LIMIT 1";

const NETWORK_INTERFACE_WINDOWS: &str =
    "SELECT a.interface AS interface, a.address AS address, d.mac AS mac
FROM interface_addresses AS a
JOIN interface_details AS d ON d.interface = a.interface
LEFT JOIN (
  SELECT interface, MIN(metric) AS metric FROM routes
  WHERE netmask = 0 AND destination IN ('0.0.0.0', '::') GROUP BY interface
) AS r ON r.interface IN (a.address, a.interface)
WHERE a.address NOT LIKE '127.%' AND a.address NOT LIKE '169.254.%'
  AND a.address NOT LIKE 'fe80:%' AND a.address <> '::1' AND a.address <> ''
  AND d.mac NOT IN ('', '00:00:00:00:00:00')
ORDER BY r.metric IS NULL, r.metric, instr(a.address, ':') > 0, a.interface, a.address
LIMIT 1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found_again() {
        for query in DetailQuery::ALL {
            let name = query.name();
            let tail = name.strip_prefix(DETAIL_PREFIX).unwrap();
            assert_eq!(DetailQuery::of_tail(tail), Some(query));
        }
        assert_eq!(DetailQuery::of_tail("users"), None);
        assert_eq!(DetailQuery::of_tail(""), None);
    }

    #[test]
    fn nothing_is_empty_and_every_query_reads() {
        for query in DetailQuery::ALL {
            assert!(query.sql().starts_with("SELECT "));
            assert!(query.discovery().starts_with("SELECT 1"));
            assert!(!query.sql().contains(';'));
        }
    }

    #[test]
    fn each_class_is_asked_for_os_network_and_disk() {
        for class in [
            PlatformClass::Darwin,
            PlatformClass::Linux,
            PlatformClass::Windows,
        ] {
            for part in ["os_version", "network_interface", "disk_space"] {
                let count = DetailQuery::ALL
                    .into_iter()
                    .filter(|query| query.is_for(class) && query.tail().starts_with(part))
                    .count();
                assert_eq!(count, 1, "{class:?} {part}");
            }
        }
        assert!(DetailQuery::OsVersion.is_for(PlatformClass::Other));
        assert!(!DetailQuery::DiskSpaceUnix.is_for(PlatformClass::Other));
    }
}
