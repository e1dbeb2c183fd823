//! Two network namespaces of our own for tests: the code under test runs in `here`, whose interface in0 is joined to
//! out0 in `there`. Nothing of the machine's own network is touched.

use std::fs::{self, File};
use std::future::Future;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::unistd::Uid;
use serde_json::Value;

use super::packet::Mac;

/// Of out0.
pub(super) const THERE_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xb]);
/// For anything that a test waits for.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// Two namespaces and the wire between them; removed at the end.
pub(super) struct Wire {
    pub(super) here: String,
    pub(super) there: String,
}

impl Wire {
    /// None, with the reason in the output, where namespaces cannot be made.
    pub(super) fn new() -> Option<Arc<Self>> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !Uid::effective().is_root() {
            eprintln!("skipped: network namespaces need root");
            return None;
        }
        let name = format!(
            "fleet-claim-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let wire = Self {
            here: format!("{name}-a"),
            there: format!("{name}-b"),
        };
        if let Err(reason) = try_ip(&["netns", "add", &wire.here]) {
            eprintln!("skipped: no network namespaces: {reason}");
            return None;
        }
        let (here, there) = (wire.here.as_str(), wire.there.as_str());
        ip(&["netns", "add", there]);
        let wire_options = ["link", "add", "in0", "netns", here, "type", "veth"];
        let mut line = wire_options.to_vec();
        line.extend(["peer", "name", "out0", "netns", there]);
        ip(&line);
        let mac = THERE_MAC.to_string();
        ip(&["-n", there, "link", "set", "out0", "address", &mac]);
        for (namespace, interface) in [(here, "in0"), (there, "out0"), (here, "lo")] {
            ip(&["-n", namespace, "link", "set", interface, "up"]);
        }
        wait_for("a carrier", || {
            wire.links().iter().any(|link| {
                link["ifname"] == "in0" && link["flags"].to_string().contains("LOWER_UP")
            })
        });
        Some(Arc::new(wire))
    }

    /// `ip` in the namespace of the code under test.
    pub(super) fn ip(&self, arguments: &[&str]) -> String {
        ip(&[&["-n", &self.here], arguments].concat())
    }

    /// `ip` in that of the neighbour.
    pub(super) fn ip_there(&self, arguments: &[&str]) -> String {
        ip(&[&["-n", &self.there], arguments].concat())
    }

    fn links(&self) -> Vec<Value> {
        serde_json::from_str(&self.ip(&["-j", "link"])).unwrap()
    }

    /// What `ip addr` shows of in0, without link-local addresses.
    pub(super) fn shown(&self) -> Vec<Value> {
        let text = self.ip(&["-j", "addr", "show", "dev", "in0"]);
        let links: Vec<Value> = serde_json::from_str(&text).unwrap();
        let all = links[0]["addr_info"].as_array().unwrap().clone();
        all.into_iter()
            .filter(|one| one["scope"] != "link")
            .collect()
    }

    pub(super) fn shown_addresses(&self) -> Vec<String> {
        let text = |one: &Value| {
            let address = one["local"].as_str().unwrap();
            format!("{address}/{}", one["prefixlen"])
        };
        let mut all: Vec<_> = self.shown().iter().map(text).collect();
        all.sort();
        all
    }

    pub(super) fn own_mac(&self) -> String {
        let links = self.links();
        let link = links.iter().find(|link| link["ifname"] == "in0").unwrap();
        link["address"].as_str().unwrap().to_owned()
    }

    /// The Ethernet address that the neighbour knows for an address.
    pub(super) fn known_there(&self, ip: &str) -> Option<String> {
        let all: Vec<Value> = serde_json::from_str(&self.ip_there(&["-j", "neigh"])).unwrap();
        let found = all.iter().find(|entry| entry["dst"] == ip)?;
        Some(found["lladdr"].as_str()?.to_owned())
    }

    /// Runs the code under test in its namespace, in a runtime of its own.
    pub(super) fn run<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let namespace = self.here.clone();
        thread::spawn(move || {
            enter(&namespace);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move { work().await })
        })
        .join()
        .unwrap()
    }

    /// Sets a kernel setting of a namespace.
    pub(super) fn set(namespace: &str, key: &str, value: &str) {
        let (namespace, value) = (namespace.to_owned(), value.to_owned());
        let path = format!("/proc/sys/net/{key}");
        thread::spawn(move || {
            enter(&namespace);
            fs::write(&path, value).unwrap();
        })
        .join()
        .unwrap();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for namespace in [&self.here, &self.there] {
            let _ = try_ip(&["netns", "del", namespace]);
        }
    }
}

/// Moves this thread alone into a namespace.
pub(super) fn enter(namespace: &str) {
    let file = File::open(Path::new("/run/netns").join(namespace)).unwrap();
    setns(file, CloneFlags::CLONE_NEWNET).unwrap();
}

fn try_ip(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("ip").args(arguments).output();
    let output = output.map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(String::from_utf8(output.stdout).unwrap())
}

fn ip(arguments: &[&str]) -> String {
    try_ip(arguments).unwrap_or_else(|error| panic!("ip {arguments:?}: {error}"))
}

pub(super) fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "no {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
