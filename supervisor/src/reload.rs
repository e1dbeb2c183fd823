//! Which changes of the configuration a running server takes. Pure.

use fleet_protocol::config::Config;

/// Takes the options of `new` into `config` that take effect at a reload: which addresses are served, and how, and by
/// how many workers. Gives the
/// others that differ, as `section.key`; they are left as they are.
pub(crate) fn take(config: &mut Config, new: &Config) -> Vec<String> {
    config.server.address.clone_from(&new.server.address);
    let proxied = &new.server.proxy_protocol;
    config.server.proxy_protocol.clone_from(proxied);
    let networks = &new.server.proxy_protocol_networks;
    config.server.proxy_protocol_networks.clone_from(networks);
    let claimed = &new.addresses.claim.addresses;
    config.addresses.claim.addresses.clone_from(claimed);
    config.workers.count = new.workers.count;
    differences(config, new)
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
    use super::*;

    #[test]
    fn live_options_are_taken_and_others_are_named() {
        let mut config = Config::default();
        let mut new = Config::default();
        new.server.address = vec!["127.0.0.1:1".into()];
        new.server.backlog = 7;
        new.mysql.password = fleet_protocol::secret::Secret::new("hunter2");
        assert_eq!(
            take(&mut config, &new),
            ["server.backlog", "mysql.password"]
        );
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
        assert_eq!(differences(&Config::default(), &new).len(), 5);
        assert_eq!(take(&mut Config::default(), &new), [""; 0]);
    }
}
