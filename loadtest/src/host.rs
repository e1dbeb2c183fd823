//! The machine that an agent pretends to be on. Everything follows from seed and index, so nothing is stored per host.

use serde_json::{Map, Value, json};

use crate::verdict::Object;

/// Operating systems with templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// Ubuntu 22.04.
    Linux,
    /// macOS 14.
    MacOs,
    /// Windows 11.
    Windows,
}

impl Platform {
    /// `platform_type` as an agent sends it: a bitmask in decimal, as text.
    pub fn mask(self) -> &'static str {
        match self {
            Self::Linux => "9",
            Self::MacOs => "21",
            Self::Windows => "2",
        }
    }
}

/// A release of osquery, as far as the wire tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// Version text.
    pub version: &'static str,
    /// `User-Agent`.
    pub user_agent: &'static str,
    /// Sends `Authorization: NodeKey`; since 5.23.0.
    pub has_key_header: bool,
    /// `unixTime`, `severity` and `line` of status lines are numbers; since 5.10.0.
    pub has_numeric_status: bool,
    /// Sends `stats` with distributed results; since 5.8.0.
    pub has_stats: bool,
    /// The log forwarder backs off; since 5.12.0.
    pub has_log_backoff: bool,
    /// A carve request is tried three times and a failed carve stops; since 5.22.0.
    pub has_carve_retry: bool,
}

impl Release {
    /// 5.23.1.
    pub const NEWEST: Self = Self {
        version: "5.23.1",
        user_agent: "osquery/5.23.1",
        has_key_header: true,
        has_numeric_status: true,
        has_stats: true,
        has_log_backoff: true,
        has_carve_retry: true,
    };
    /// 5.12.1: no key header.
    pub const MIDDLE: Self = Self {
        version: "5.12.1",
        user_agent: "osquery/5.12.1",
        has_key_header: false,
        has_carve_retry: false,
        ..Self::NEWEST
    };
    /// 5.7.0: neither numbers in status lines, nor stats, nor backoff.
    pub const OLD: Self = Self {
        version: "5.7.0",
        user_agent: "osquery/5.7.0",
        has_numeric_status: false,
        has_stats: false,
        has_log_backoff: false,
        ..Self::MIDDLE
    };
}

/// One simulated machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Which of the run.
    pub index: u32,
    seed: u64,
    platform: Platform,
    release: Release,
    installation: u32,
}

impl Host {
    /// The host with that index in the run with that seed: 70 % Linux, 20 % Windows, 10 % macOS; 70 % of the agents
    /// are 5.23.1, 20 % 5.12.1, 10 % 5.7.0.
    pub fn new(seed: u64, index: u32) -> Self {
        let mixed = mix(seed ^ u64::from(index));
        let platform = match mixed % 10 {
            0..7 => Platform::Linux,
            7..9 => Platform::Windows,
            _ => Platform::MacOs,
        };
        let release = match (mixed / 10) % 10 {
            0..7 => Release::NEWEST,
            7..9 => Release::MIDDLE,
            _ => Release::OLD,
        };
        Self {
            index,
            seed,
            platform,
            release,
            installation: 0,
        }
    }

    /// The same machine after osquery was installed anew for the `installation`-th time: its database is empty.
    pub fn with_installation(self, installation: u32) -> Self {
        Self {
            installation,
            ..self
        }
    }

    /// The same host on another system.
    pub fn with_platform(self, platform: Platform) -> Self {
        Self { platform, ..self }
    }

    /// The same host with another agent.
    pub fn with_release(self, release: Release) -> Self {
        Self { release, ..self }
    }

    /// Operating system.
    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// Agent version.
    pub fn release(&self) -> Release {
        self.release
    }

    /// Hardware UUID; also the `host_identifier`.
    pub fn uuid(&self) -> String {
        self.identifier(1)
    }

    /// `osquery_info.instance_id`.
    pub fn instance_id(&self) -> String {
        // Kept in the agent's database, so it does not survive that.
        self.identifier(2 ^ (u64::from(self.installation) << 16))
            .to_lowercase()
    }

    /// Full host name.
    pub fn hostname(&self) -> String {
        format!("sim-{:016x}-{}.example.com", mix(self.seed), self.index)
    }

    /// A number that belongs to this host and `purpose`.
    pub fn number(&self, purpose: u64) -> u64 {
        mix(mix(self.seed ^ u64::from(self.index)) ^ purpose)
    }

    /// `10.x.y.z`
    pub fn address(&self) -> String {
        let [_, b, c, d] = self.index.to_be_bytes();
        format!("10.{b}.{c}.{d}")
    }

    /// A locally administered MAC address.
    pub fn mac(&self) -> String {
        let [a, b, c, d] = self.index.to_be_bytes();
        format!("02:51:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    }

    /// The rows of `host_details` in an enrolment.
    pub fn details(&self) -> Object {
        let mut details = Map::new();
        for (table, row) in [
            ("os_version", self.os_version()),
            ("osquery_info", self.osquery_info()),
            ("platform_info", self.platform_info()),
            ("system_info", self.system_info()),
        ] {
            details.insert(table.to_owned(), row);
        }
        details
    }

    /// The row of `os_version`.
    pub fn os_version(&self) -> Value {
        match self.platform {
            Platform::Linux => json!({
                "arch": "x86_64", "build": "", "codename": "jammy", "major": "22", "minor": "4",
                "name": "Ubuntu", "patch": "0", "pid_with_namespace": "0", "platform": "ubuntu",
                "platform_like": "debian", "version": "22.04.4 LTS (Jammy Jellyfish)",
                "extra": "", "install_date": ""
            }),
            Platform::MacOs => json!({
                "arch": "arm64", "build": "23F79", "major": "14", "minor": "5", "name": "macOS",
                "patch": "0", "platform": "darwin", "platform_like": "darwin", "version": "14.5",
                "extra": ""
            }),
            Platform::Windows => json!({
                "arch": "64-bit", "build": "22631", "codename": "Microsoft Windows 11 Pro",
                "install_date": "20240102030405.000000+000", "major": "10", "minor": "0",
                "name": "Microsoft Windows 11 Pro", "patch": "", "platform": "windows",
                "platform_like": "windows", "revision": "3593", "version": "10.0.22631"
            }),
        }
    }

    /// The row of `osquery_info`.
    pub fn osquery_info(&self) -> Value {
        let (distro, platform) = match self.platform {
            Platform::Linux => ("centos7", "linux"),
            Platform::MacOs => ("10.14", "darwin"),
            Platform::Windows => ("10", "windows"),
        };
        json!({
            "build_distro": distro, "build_platform": platform, "config_hash": "",
            "config_valid": "0", "extensions": "active", "instance_id": self.instance_id(),
            "pid": "3570", "platform_mask": self.platform.mask(), "start_time": "1696502961",
            "uuid": self.uuid(), "version": self.release.version, "watcher": "3568"
        })
    }

    /// The row of `platform_info`.
    pub fn platform_info(&self) -> Value {
        json!({
            "address": "0xf000", "date": "12/14/2022", "extra": "", "firmware_type": "uefi",
            "revision": "1.9", "size": "16777216", "vendor": "Dell Inc.", "version": "1.9.0",
            "volume_size": "0"
        })
    }

    /// The row of `system_info`.
    pub fn system_info(&self) -> Value {
        let hostname = self.hostname();
        let short = hostname.split('.').next().unwrap_or_default();
        let serial = format!("SN{:08X}", self.number(3) >> 32);
        let (vendor, model, brand, cpu) = match self.platform {
            Platform::Linux => (
                "Dell Inc.",
                "PowerEdge R650",
                "Intel(R) Xeon(R) Gold 6338",
                "x86_64",
            ),
            Platform::MacOs => ("Apple Inc.", "Mac14,2", "Apple M2", "arm64e"),
            Platform::Windows => (
                "LENOVO",
                "ThinkPad T14 Gen 3",
                "AMD Ryzen 7 PRO 6850U",
                "x86_64",
            ),
        };
        json!({
            "board_model": "0M7P8X", "board_serial": format!(".{serial}."),
            "board_vendor": vendor, "board_version": "A01", "computer_name": short,
            "cpu_brand": brand, "cpu_logical_cores": "16", "cpu_microcode": "0xd0003a5",
            "cpu_physical_cores": "8", "cpu_sockets": "1", "cpu_subtype": "106", "cpu_type": cpu,
            "hardware_model": model, "hardware_serial": serial, "hardware_vendor": vendor,
            "hardware_version": "", "hostname": hostname, "local_hostname": short,
            "physical_memory": "67260948480", "uuid": self.uuid()
        })
    }

    fn identifier(&self, purpose: u64) -> String {
        let (high, low) = (self.number(purpose), self.number(purpose ^ 0x5eed));
        format!(
            "{:08X}-{:04X}-4{:03X}-A{:03X}-{:012X}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xfff,
            low >> 52,
            low & 0xffff_ffff_ffff
        )
    }
}

/// splitmix64: neighbours become unrelated.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn hosts_differ_and_repeat() {
        let ids: BTreeSet<String> = (0..1000).map(|i| Host::new(7, i).uuid()).collect();
        assert_eq!(ids.len(), 1000);
        assert_eq!(Host::new(7, 3), Host::new(7, 3));
        assert_ne!(Host::new(7, 3).uuid(), Host::new(8, 3).uuid());
        assert_eq!(Host::new(7, 3).uuid().len(), 36);
    }

    #[test]
    fn a_new_installation_is_another_instance_of_the_same_machine() {
        let host = Host::new(7, 3);
        let again = host.with_installation(1);
        assert_eq!(host.uuid(), again.uuid());
        assert_ne!(host.instance_id(), again.instance_id());
        assert_eq!(host.instance_id().len(), 36);
    }

    #[test]
    fn all_values_are_strings_and_uuids_agree() {
        for index in 0..50 {
            let host = Host::new(1, index);
            let details = host.details();
            for row in details.values() {
                assert!(row.as_object().unwrap().values().all(Value::is_string));
            }
            assert_eq!(
                details["system_info"]["uuid"],
                details["osquery_info"]["uuid"]
            );
        }
    }

    #[test]
    fn a_run_has_every_platform_and_release() {
        let hosts: Vec<Host> = (0..200).map(|index| Host::new(1, index)).collect();
        for platform in [Platform::Linux, Platform::MacOs, Platform::Windows] {
            assert!(hosts.iter().any(|host| host.platform() == platform));
        }
        for release in [Release::NEWEST, Release::MIDDLE, Release::OLD] {
            assert!(hosts.iter().any(|host| host.release() == release));
        }
    }
}
