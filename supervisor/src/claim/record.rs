//! What we added, on disk: written before an address is added and after it is removed, so that whatever moment a crash
//! chooses, the next start knows at least what to remove.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::exit::Failure;
use crate::state_dir::write_private;

/// Far above what the most addresses that are allowed take.
const RECORD_BYTES_MAX: u64 = 1 << 20;

/// One address of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// With the length of its prefix.
    pub(crate) address: IpNet,
    /// The interface, as it was called then.
    pub(crate) interface: String,
    /// The kernel's number of the interface, which survives a renaming.
    pub(crate) index: u32,
}

/// Addresses live as long as the kernel and its network namespace: what was noted in others is gone by itself, and the
/// same address in this one is somebody else's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Life {
    boot: String,
    namespace: String,
}

impl Life {
    fn present() -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = fs::read_link("/proc/thread-self/ns/net").unwrap_or_default();
        Self {
            boot: boot.trim().to_owned(),
            namespace: namespace.to_string_lossy().into_owned(),
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Contents {
    #[serde(flatten)]
    life: Life,
    addresses: Vec<Entry>,
}

/// The file `STATE/claimed.json`.
#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    contents: Contents,
}

impl Record {
    /// Reads it; none is an empty one, and so is one of before the last boot or of another network namespace.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, Failure> {
        let path = state_dir.join("claimed.json");
        let contents = read(&path).map_err(|error| {
            Failure::config(format!(
                "cannot use {}: {error}; it lists the addresses that this server added: look at ip addr, remove those \
                 that are left, then delete the file",
                path.display()
            ))
        })?;
        let life = Life::present();
        let addresses = if contents.life == life {
            contents.addresses
        } else {
            Vec::new()
        };
        Ok(Self {
            path,
            contents: Contents { life, addresses },
        })
    }

    /// In the order in which they were added.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.contents.addresses
    }

    /// Whether the address is noted.
    pub(crate) fn find(&self, ip: IpAddr) -> Option<&Entry> {
        self.entries()
            .iter()
            .find(|entry| entry.address.addr() == ip)
    }

    /// Notes addresses that are about to be added. When that fails, nothing is noted.
    pub(crate) fn add(&mut self, entries: impl IntoIterator<Item = Entry>) -> io::Result<()> {
        let old = self.contents.addresses.clone();
        for entry in entries {
            let ip = entry.address.addr();
            self.contents
                .addresses
                .retain(|other| other.address.addr() != ip);
            self.contents.addresses.push(entry);
        }
        let result = self.save();
        if result.is_err() {
            self.contents.addresses = old;
        }
        result
    }

    /// Forgets addresses that are not there any more. When that fails they are forgotten in memory alone, and the next
    /// start finds that they are gone.
    pub(crate) fn forget(&mut self, addresses: &[IpAddr]) -> io::Result<()> {
        let before = self.contents.addresses.len();
        self.contents
            .addresses
            .retain(|entry| !addresses.contains(&entry.address.addr()));
        if self.contents.addresses.len() == before {
            return Ok(());
        }
        self.save()
    }

    fn save(&self) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(&self.contents)?;
        text.push(b'\n');
        write_private(&self.path, &text)
    }
}

fn read(path: &Path) -> io::Result<Contents> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contents::default()),
        result => result?,
    };
    if metadata.len() > RECORD_BYTES_MAX {
        return Err(io::Error::other(format!(
            "it is longer than {RECORD_BYTES_MAX} bytes"
        )));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit;

    fn entry(address: &str) -> Entry {
        Entry {
            address: address.parse().unwrap(),
            interface: "eth0".into(),
            index: 2,
        }
    }

    #[test]
    fn it_survives_a_crash_after_every_step() {
        let state = tempfile::tempdir().unwrap();
        let mut record = Record::open(state.path()).unwrap();
        assert!(record.entries().is_empty());
        record.forget(&["192.0.2.1".parse().unwrap()]).unwrap();
        assert!(!state.path().join("claimed.json").exists());
        let (v4, v6) = (entry("192.0.2.1/24"), entry("2001:db8::1/64"));
        record.add([v4.clone(), v6.clone()]).unwrap();
        record.add([v4.clone()]).unwrap();
        let again = Record::open(state.path()).unwrap();
        assert_eq!(again.entries(), [v6.clone(), v4.clone()]);
        record.forget(&[v4.address.addr()]).unwrap();
        let again = Record::open(state.path()).unwrap();
        assert_eq!(again.entries(), [v6]);
        assert!(again.find(v4.address.addr()).is_none());
    }

    #[test]
    fn what_cannot_be_written_is_not_noted() {
        let state = tempfile::tempdir().unwrap();
        let mut record = Record::open(state.path()).unwrap();
        // Root may write anywhere, but not over a directory.
        fs::create_dir(state.path().join("claimed.json")).unwrap();
        record.add([entry("192.0.2.1/24")]).unwrap_err();
        assert!(record.entries().is_empty());
    }

    #[test]
    fn another_boot_or_namespace_is_another_life() {
        let state = tempfile::tempdir().unwrap();
        let mut record = Record::open(state.path()).unwrap();
        record.add([entry("192.0.2.1/24")]).unwrap();
        let path = state.path().join("claimed.json");
        let text = fs::read_to_string(&path).unwrap();
        for value in [&record.contents.life.boot, &record.contents.life.namespace] {
            assert!(!value.is_empty());
            fs::write(&path, text.replace(value.as_str(), "other")).unwrap();
            assert!(Record::open(state.path()).unwrap().entries().is_empty());
        }
        fs::write(&path, text).unwrap();
        assert_eq!(Record::open(state.path()).unwrap().entries().len(), 1);
    }

    #[test]
    fn a_damaged_one_is_refused() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("claimed.json");
        for text in ["", "{", "{\"boot\": 1}"] {
            fs::write(&path, text).unwrap();
            let failure = Record::open(state.path()).unwrap_err();
            assert_eq!(failure.code(), exit::CONFIG);
            assert!(failure.to_string().contains("delete the file"), "{failure}");
        }
        fs::write(&path, " ".repeat(1 << 21)).unwrap();
        let failure = Record::open(state.path()).unwrap_err();
        assert!(failure.to_string().contains("longer"), "{failure}");
    }
}
