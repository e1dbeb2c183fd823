//! Network namespaces of a test's own: their interfaces, addresses and kernel settings are nobody else's.

use std::ffi::OsStr;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::process::run;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A namespace that ends with the test.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// `None`, and a line that says so, where namespaces are not to be had.
    pub fn new() -> Option<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("fleet-{}-{number}", std::process::id());
        let output = run(Command::new("ip").args(["netns", "add", &name]));
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            eprintln!("skipped: no network namespaces here: {error}");
            return None;
        }
        let namespace = Self { name };
        namespace.ip("link set lo up");
        Some(namespace)
    }

    /// A program inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// `ip` with these words, which must succeed.
    pub fn ip(&self, words: &str) -> String {
        let output = self.try_ip(words);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {words}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn try_ip(&self, words: &str) -> Output {
        run(Command::new("ip")
            .args(["-n", &self.name])
            .args(words.split_whitespace()))
    }

    /// The addresses of an interface, without their prefixes; not the ones of the link itself.
    pub fn addresses(&self, interface: &str) -> Vec<String> {
        let text = self.ip(&format!("-json addr show dev {interface}"));
        let links: Value = serde_json::from_str(&text).unwrap();
        let infos = links[0]["addr_info"].as_array().unwrap().iter();
        infos
            .filter(|info| info["scope"] != "link")
            .map(|info| info["local"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Joins it with another one: `(interface here, interface there)`, both up, with the addresses given.
    pub fn join(&self, here: (&str, &str), other: &Self, there: (&str, &str)) {
        self.ip(&format!(
            "link add {} type veth peer name {} netns {}",
            here.0, there.0, other.name
        ));
        for (namespace, (interface, address)) in [(self, here), (other, there)] {
            namespace.ip(&format!("addr add {address} dev {interface}"));
            namespace.ip(&format!("link set {interface} up"));
        }
    }

    /// What programs inside find in /etc/resolv.conf.
    pub fn set_resolver(&self, text: &str) {
        let directory = format!("/etc/netns/{}", self.name);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(format!("{directory}/resolv.conf"), text).unwrap();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(format!("/etc/netns/{}", self.name));
        let _ = run(Command::new("ip").args(["netns", "del", &self.name]));
    }
}
