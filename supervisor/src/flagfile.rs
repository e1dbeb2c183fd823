//! A flagfile that makes an osquery agent use this server. Pure but for writing the file.
//!
//! Every flag that osquery takes only on its command line stands here; what `options` in a served configuration can
//! change later has Fleet's usual value.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::certificate::Identity;
use crate::exit::Failure;
use crate::machine;
use crate::state_dir::write_private;

/// What the file says.
#[derive(Clone, Debug)]
pub(crate) struct Flagfile<'a> {
    /// `host:port` that agents connect to.
    pub(crate) target: &'a str,
    /// In front of every path; empty or `/x`.
    pub(crate) prefix: &'a str,
    /// What agents must trust; `None`: what their system trusts.
    pub(crate) ca_file: Option<&'a Path>,
    /// File with the enroll secret.
    pub(crate) secret_file: &'a Path,
    /// TLS is ended in front of this server.
    pub(crate) is_plain: bool,
}

/// `STATE/osquery.flags`
pub(crate) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("osquery.flags")
}

impl Flagfile<'_> {
    /// Its text.
    pub(crate) fn text(&self) -> String {
        let mut lines =
            vec!["# Written at each start. Copy it elsewhere before you change it.".to_owned()];
        if self.is_plain {
            lines.push(
                "# osquery speaks only TLS: put the name of what ends TLS in front of this server."
                    .into(),
            );
        }
        lines.push(format!("--tls_hostname={}", self.target));
        match self.ca_file {
            Some(file) => lines.push(format!("--tls_server_certs={}", file.display())),
            None => lines.push(
                "# --tls_server_certs=FILE with the authority that signed the certificate".into(),
            ),
        }
        lines.push(format!(
            "--enroll_secret_path={}",
            self.secret_file.display()
        ));
        // A clone of a machine has the same hardware UUID; the instance is a database's own.
        lines.push("--host_identifier=instance".into());
        for (flag, endpoint) in [
            ("enroll_tls_endpoint", "enroll"),
            ("config_tls_endpoint", "config"),
            ("logger_tls_endpoint", "log"),
            ("distributed_tls_read_endpoint", "distributed/read"),
            ("distributed_tls_write_endpoint", "distributed/write"),
            ("carver_start_endpoint", "carve/begin"),
            ("carver_continue_endpoint", "carve/block"),
        ] {
            lines.push(format!(
                "--{flag}={}/api/v1/osquery/{endpoint}",
                self.prefix
            ));
        }
        let fixed = [
            "--config_plugin=tls",
            "--config_refresh=60",
            "--config_accelerated_refresh=60",
            "--logger_plugin=tls",
            "--logger_tls_period=10",
            "--logger_tls_compress=true",
            "--disable_distributed=false",
            "--distributed_plugin=tls",
            "--distributed_interval=10",
            "--distributed_tls_max_attempts=10",
            "--disable_carver=false",
            "--carver_block_size=2000000",
        ];
        lines.extend(fixed.map(str::to_owned));
        lines.join("\n") + "\n"
    }

    /// Writes the file when it would change.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = self.text();
        if fs::read_to_string(path).is_ok_and(|present| present == text) {
            return Ok(());
        }
        write_private(path, text.as_bytes())
            .map_err(|error| Failure::fatal(format!("cannot write {}: {error}", path.display())))
    }
}

/// The host and port that agents are told, for the first address that is served. A given certificate names the host;
/// else it is the bound address, or for a wildcard a name or address of this machine. osquery takes no IPv6 literals.
pub(crate) fn target(address: SocketAddr, identity: Option<&Identity>) -> String {
    let given = identity
        .filter(|identity| !identity.is_own)
        .into_iter()
        .flat_map(|identity| &identity.tls.names)
        .find(|name| name.parse::<IpAddr>().is_err() && !name.starts_with("*."));
    let host = match (given, address.ip()) {
        (Some(name), _) => name.clone(),
        (None, IpAddr::V4(ip)) if !ip.is_unspecified() => ip.to_string(),
        (None, IpAddr::V6(ip)) if ip.is_loopback() => "localhost".into(),
        (None, _) => own_host(),
    };
    format!("{host}:{}", address.port())
}

fn own_host() -> String {
    let name = machine::hostname();
    if machine::is_own_name(&name) {
        return name;
    }
    let addresses = machine::addresses();
    let v4 = addresses.iter().find(|address| address.is_ipv4());
    v4.map_or_else(|| "localhost".into(), IpAddr::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_all_that_an_agent_needs() {
        let flagfile = Flagfile {
            target: "gateway.example:8080",
            prefix: "/fleet",
            ca_file: Some(Path::new("/s/tls/cert.pem")),
            secret_file: Path::new("/s/enroll_secret"),
            is_plain: false,
        };
        let text = flagfile.text();
        for line in [
            "--tls_hostname=gateway.example:8080",
            "--tls_server_certs=/s/tls/cert.pem",
            "--enroll_secret_path=/s/enroll_secret",
            "--enroll_tls_endpoint=/fleet/api/v1/osquery/enroll",
            "--carver_continue_endpoint=/fleet/api/v1/osquery/carve/block",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}");
        }
        let good = |line: &str| line.starts_with("--") || line.starts_with("# ");
        assert!(text.lines().all(good), "{text}");
    }

    #[test]
    fn the_target_is_what_agents_can_verify() {
        let at = |text: &str| target(text.parse().unwrap(), None);
        assert_eq!(at("127.0.0.1:8080"), "127.0.0.1:8080");
        assert_eq!(at("[::1]:443"), "localhost:443");
        assert!(!at("0.0.0.0:8080").contains("0.0.0.0"));
    }
}
