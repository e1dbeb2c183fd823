//! Which changes of the configuration a running server takes. Pure.

use fleet_protocol::config::Config;

/// What became of the options that differ, as `section.key`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// In effect.
    pub(crate) taken: Vec<String>,
    /// Left as they were.
    pub(crate) at_next_start: Vec<String>,
}

/// Takes the options of `new` into `config` that take effect at a reload: which addresses are served, how and by how
/// many workers, the certificates and whom they are shown to, how much is taken in, and what is logged.
pub(crate) fn take(config: &mut Config, new: &Config) -> Taken {
    let mut differing = differences(config, new);
    config.server.address.clone_from(&new.server.address);
    let proxied = &new.server.proxy_protocol;
    config.server.proxy_protocol.clone_from(proxied);
    let networks = &new.server.proxy_protocol_networks;
    config.server.proxy_protocol_networks.clone_from(networks);
    let claimed = &new.addresses.claim.addresses;
    config.addresses.claim.addresses.clone_from(claimed);
    config.workers.count = new.workers.count;
    take_tls(config, new);
    config.logging.debug = new.logging.debug;
    config.logging.json = new.logging.json;
    config.limits.clone_from(&new.limits);
    config.server.connections_per_worker_max = new.server.connections_per_worker_max;
    let at_next_start = differences(config, new);
    differing.retain(|key| !at_next_start.contains(key));
    Taken {
        taken: differing,
        at_next_start,
    }
}

/// Whether there is TLS at all decides what agents are told of this server; that takes a start.
fn take_tls(config: &mut Config, new: &Config) {
    let server = &mut config.server;
    server.cert.clone_from(&new.server.cert);
    server.key.clone_from(&new.server.key);
    server.client_ca.clone_from(&new.server.client_ca);
    server.client_crl.clone_from(&new.server.client_crl);
    server.client_auth = new.server.client_auth;
    server.tls_compatibility = new.server.tls_compatibility;
    config.tls.clone_from(&new.tls);
}

/// Options whose values differ.
fn differences(old: &Config, new: &Config) -> Vec<String> {
    let tree = |config: &Config| serde_json::to_value(config).unwrap_or_default();
    let (old, new) = (tree(old), tree(new));
    Config::keys()
        .iter()
        .filter(|key| {
            let pointer = format!("/{}", key.path.join("/"));
            old.pointer(&pointer) != new.pointer(&pointer)
        })
        .map(|key| key.dotted())
        .collect()
}

#[cfg(test)]
mod tests {
    use fleet_protocol::config::{ClientAuth, PostQuantum, TlsCompatibility};

    use super::*;

    #[test]
    fn live_options_are_taken_and_others_are_named() {
        let mut config = Config::default();
        let mut new = Config::default();
        new.server.address = vec!["127.0.0.1:1".into()];
        new.server.backlog = 7;
        new.mysql.password = fleet_protocol::secret::Secret::new("hunter2");
        let Taken {
            taken,
            at_next_start,
        } = take(&mut config, &new);
        assert_eq!(taken, ["server.address"]);
        assert_eq!(at_next_start, ["server.backlog", "mysql.password"]);
        assert_eq!(config.server.address, new.server.address);
        assert_eq!(config.server.backlog, Config::default().server.backlog);
    }

    #[test]
    fn every_live_option_is_taken() {
        let mut new = Config::default();
        new.server.address = vec!["127.0.0.1:1".into()];
        new.server.proxy_protocol = vec!["all".into()];
        new.server.proxy_protocol_networks = vec!["10.0.0.0/8".into()];
        new.addresses.claim.addresses = vec!["192.0.2.1".into()];
        new.workers.count = 3;
        new.server.cert = "cert".into();
        new.server.key = "key".into();
        new.server.client_ca = "ca".into();
        new.server.client_crl = "crl".into();
        new.server.client_auth = ClientAuth::Accept;
        new.server.tls_compatibility = TlsCompatibility::Modern;
        new.tls.certificates = vec!["cert=key".into()];
        new.tls.post_quantum = PostQuantum::Prefer;
        new.logging.debug = true;
        new.logging.json = true;
        new.server.connections_per_worker_max = 9;
        new.limits.host_rate = 3;
        let changed = differences(&Config::default(), &new);
        assert_eq!(changed.len(), 17);
        let Taken {
            taken,
            at_next_start,
        } = take(&mut Config::default(), &new);
        assert_eq!(taken, changed);
        assert_eq!(at_next_start, [""; 0]);
    }
}
