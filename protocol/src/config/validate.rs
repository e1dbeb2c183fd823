//! Says everything that is wrong with a configuration, at once.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::Config;
use crate::address_list;
use crate::limits;
use crate::proxied::Proxied;
use crate::trusted_proxies::TrustedProxies;

/// One thing that is wrong; a sentence that names the option and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem(pub String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Below the ten seconds that control gives a call of the store, milliseconds.
const STORE_WAIT_MS_MAX: u128 = 8000;
/// Each is asked how it stands once a second.
const REPLICAS_MAX: usize = 16;

impl Config {
    /// Every problem; none means that the values are usable together. Files are not looked at.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut check = |is_good: bool, text: &str| {
            if !is_good {
                problems.push(Problem(text.to_owned()));
            }
        };
        self.validate_gateway(&mut check);
        self.validate_balancers(&mut check);
        self.validate_spreading(&mut check);
        self.validate_stores(&mut check);
        self.validate_agents(&mut check);
        self.validate_limits(&mut check);
        problems
    }

    fn validate_gateway(&self, check: &mut impl FnMut(bool, &str)) {
        check(
            !self.server.address.is_empty(),
            "server.address: at least one address is needed",
        );
        match address_list::sockets(&self.server.address) {
            Ok(addresses) => self.validate_addresses(&addresses, check),
            Err(error) => check(false, &format!("server.address: {error}")),
        }
        let has_cert = !self.server.cert.as_os_str().is_empty();
        let has_key = !self.server.key.as_os_str().is_empty();
        check(
            has_cert == has_key,
            "server.cert and server.key: set both or neither",
        );
        if let Err(text) = self.tls.pairs() {
            let problem = format!("tls.certificates: {text:?} is not CERT.pem=KEY.pem");
            check(false, &problem);
        }
        let has_client_ca = !self.server.client_ca.as_os_str().is_empty();
        check(
            self.server.tls || !has_client_ca,
            "server.client_ca: of no use with server.tls: false",
        );
        check(
            has_client_ca || self.server.client_crl.as_os_str().is_empty(),
            "server.client_crl: of no use without server.client_ca",
        );
        check(
            self.server.tls || self.tls.certificates.is_empty(),
            "tls.certificates: of no use with server.tls: false",
        );
        check(
            self.server.connections_per_worker_max > 0,
            "server.connections_per_worker_max: must be at least 1",
        );
        check(
            self.server.backlog > 0,
            "server.backlog: must be at least 1",
        );
        check(self.workers.count <= 1024, "workers.count: at most 1024");
    }

    fn validate_addresses(&self, addresses: &[SocketAddr], check: &mut impl FnMut(bool, &str)) {
        let wildcards: Vec<_> = addresses
            .iter()
            .filter(|address| address.ip().is_unspecified())
            .collect();
        for address in addresses {
            let covers = |of: &&&SocketAddr| {
                of.is_ipv4() == address.is_ipv4()
                    && of.port() == address.port()
                    && of.ip() != address.ip()
            };
            if let Some(wildcard) = wildcards.iter().find(covers) {
                check(
                    false,
                    &format!(
                        "server.address: {wildcard} serves {address} already; name one of them"
                    ),
                );
            }
        }
        let claim = &self.addresses.claim;
        check(
            claim.addresses.is_empty() || !claim.interface.is_empty(),
            "addresses.claim.interface: needed to claim addresses, such as eth0",
        );
        match address_list::claims(&claim.addresses) {
            Ok(claims) => {
                let is_served = |ip: IpAddr| addresses.iter().any(|address| address.ip() == ip);
                if let Some(idle) = claims.iter().find(|claim| !is_served(claim.addr())) {
                    let ip = idle.addr();
                    let socket = SocketAddr::new(ip, 8080);
                    check(
                        false,
                        &format!(
                            "addresses.claim.addresses: {ip} is claimed but not served; name it in server.address, such as {socket}"
                        ),
                    );
                }
            }
            Err(error) => check(false, &format!("addresses.claim.addresses: {error}")),
        }
        check(
            self.addresses.dns.name.is_empty() || wildcards.len() < addresses.len(),
            "addresses.dns.name: agents cannot be sent to a wildcard; list the addresses themselves in server.address",
        );
    }

    fn validate_balancers(&self, check: &mut impl FnMut(bool, &str)) {
        let server = &self.server;
        // Addresses that are wrong themselves are told of above.
        let has_addresses = address_list::sockets(&server.address).is_ok();
        match Proxied::of(server) {
            Err(error) if has_addresses => check(false, &format!("server.proxy_protocol: {error}")),
            _ => {}
        }
        match server.balancers() {
            Ok(networks) => check(
                server.proxy_protocol.is_empty() || !networks.is_empty(),
                "server.proxy_protocol_networks: list the balancers' networks, such as 10.0.0.0/8; a PROXY header is \
                 taken from nobody else",
            ),
            Err(error) => check(false, &format!("server.proxy_protocol_networks: {error}")),
        }
        match server.trusted_proxies.parse::<TrustedProxies>() {
            Err(error) => check(false, &format!("server.trusted_proxies: {error}")),
            Ok(TrustedProxies::Header(_) | TrustedProxies::Hops(_)) => check(
                server.client_ca.as_os_str().is_empty(),
                "server.client_ca: with a header's name or a number of hops in server.trusted_proxies anybody may be a proxy, \
                 so no certificate is an agent's; list the proxies' networks there",
            ),
            Ok(TrustedProxies::Nobody | TrustedProxies::Networks(_)) => {}
        }
        check(
            (1..=3600).contains(&server.keepalive_idle.as_secs()),
            "server.keepalive_idle: must be 1s to 1h",
        );
    }

    fn validate_spreading(&self, check: &mut impl FnMut(bool, &str)) {
        let dns = &self.addresses.dns;
        check(
            dns.name.is_empty() || is_domain_name(&dns.name),
            &format!(
                "addresses.dns.name: {:?} is not a name such as fleet.example.com",
                dns.name
            ),
        );
        for name in dns.nameservers.iter().filter(|name| !is_domain_name(name)) {
            check(
                false,
                &format!(
                    "addresses.dns.nameservers: {name:?} is not a name such as gw1.example.com"
                ),
            );
        }
        let name = dns.name.trim_end_matches('.').to_ascii_lowercase();
        let below = format!(".{name}");
        let is_below = |other: &String| {
            let other = other.trim_end_matches('.').to_ascii_lowercase();
            !name.is_empty() && (other == name || other.ends_with(&below))
        };
        if let Some(name) = dns.nameservers.iter().find(|name| is_below(name)) {
            check(
                false,
                &format!(
                    "addresses.dns.nameservers: {name} must lie outside addresses.dns.name, whose records are made here"
                ),
            );
        }
        if let Err(error) = address_list::sockets(&dns.listen) {
            check(false, &format!("addresses.dns.listen: {error}"));
        }
        check(
            (1..=3600).contains(&dns.ttl.as_secs()),
            "addresses.dns.ttl: must be 1s to 1h",
        );
        let agent_check = &self.addresses.agent_check.listen;
        check(
            agent_check.is_empty() || agent_check.parse::<SocketAddr>().is_ok(),
            &format!(
                "addresses.agent_check.listen: {agent_check:?} is not IP:port, such as 0.0.0.0:9707"
            ),
        );
    }

    fn validate_stores(&self, check: &mut impl FnMut(bool, &str)) {
        check(
            self.mysql.address.is_empty() || self.mysql.max_open_conns >= 2,
            "mysql.max_open_conns: must be at least 2",
        );
        check(
            self.mysql.password.is_empty() || self.mysql.password_path.as_os_str().is_empty(),
            "mysql.password and mysql.password_path: set one of them",
        );
        check(
            (100..=STORE_WAIT_MS_MAX).contains(&self.mysql.acquire_timeout.as_millis()),
            "mysql.acquire_timeout: must be 100ms to 8s, so that a call still has time for its statements",
        );
        self.validate_replicas(check);
        check(
            self.filesystem.max_size > 0,
            "filesystem.max_size: must be at least 1",
        );
        check(
            (1..=32 << 20).contains(&self.carver.max_block_size),
            "carver.max_block_size: must be 1 byte to 32 MiB",
        );
        check(
            (32..=256).contains(&self.session.key_size),
            "session.key_size: must be 32 to 256",
        );
        let duration = self.session.duration.as_secs();
        check(
            self.session.duration.is_zero() || (300..=400 * 24 * 3600).contains(&duration),
            "session.duration: must be 5m to 400d, or 0 for sessions that do not end by themselves",
        );
    }

    fn validate_replicas(&self, check: &mut impl FnMut(bool, &str)) {
        let replicas = &self.mysql_read_replica;
        if replicas.address.is_empty() {
            return;
        }
        check(
            !self.mysql.address.is_empty(),
            "mysql_read_replica.address: mysql.address is not set",
        );
        check(
            replicas.address.len() <= REPLICAS_MAX,
            "mysql_read_replica.address: more than 16",
        );
        check(
            replicas.max_open_conns >= 1,
            "mysql_read_replica.max_open_conns: must be at least 1",
        );
        let has_password = !replicas.password.is_empty();
        let has_path = !replicas.password_path.as_os_str().is_empty();
        check(
            !(has_password && has_path),
            "mysql_read_replica.password and mysql_read_replica.password_path: set one of them",
        );
        check(
            !replicas.username.is_empty() || !(has_password || has_path),
            "mysql_read_replica.password: mysql_read_replica.username is not set",
        );
    }

    /// A bound on how many may wait is one only while each of them waits for a bounded time.
    fn validate_limits(&self, check: &mut impl FnMut(bool, &str)) {
        let of = &self.limits;
        let deadlines = [
            (
                "handshake_deadline",
                of.handshake_deadline,
                limits::HANDSHAKE_DEADLINE,
            ),
            ("head_deadline", of.head_deadline, limits::HEAD_DEADLINE),
            ("queue_age_max", of.queue_age_max, limits::QUEUE_AGE_MAX),
        ];
        for (name, deadline, most) in deadlines {
            check(
                !deadline.is_zero(),
                &format!(
                    "limits.{name}: must not be 0s; without it connections that never go on fill the worker for ever"
                ),
            );
            let is_within = deadline >= limits::OPTION_DEADLINE_MIN && deadline <= most;
            check(
                deadline.is_zero() || is_within,
                &format!(
                    "limits.{name}: must be {}ms to {}s; an agent gives up after {}s",
                    limits::OPTION_DEADLINE_MIN.as_millis(),
                    most.as_secs(),
                    limits::EXCHANGE_DEADLINE.as_secs()
                ),
            );
        }
        let shortest = limits::QUEUE_AGE_LASTING_MIN;
        let longest = of.queue_age_max.max(limits::OPTION_DEADLINE_MIN);
        check(
            (shortest..=longest).contains(&of.queue_age_lasting),
            &format!(
                "limits.queue_age_lasting: must be {}ms to limits.queue_age_max",
                shortest.as_millis()
            ),
        );
        check(
            of.queue_burst_max <= limits::QUEUE_AGE_MAX,
            &format!(
                "limits.queue_burst_max: at most {}s",
                limits::QUEUE_AGE_MAX.as_secs()
            ),
        );
        check(
            of.handshakes_per_worker_max <= self.server.connections_per_worker_max,
            "limits.handshakes_per_worker_max: at most server.connections_per_worker_max",
        );
    }

    fn validate_agents(&self, check: &mut impl FnMut(bool, &str)) {
        let osquery = &self.osquery;
        check(
            (12..=256).contains(&osquery.node_key_size),
            "osquery.node_key_size: must be 12 to 256",
        );
        check(
            osquery.max_jitter_percent <= 100,
            "osquery.max_jitter_percent: must be 0 to 100",
        );
        check(
            osquery.detail_update_interval.as_secs() >= 60
                && osquery.label_update_interval.as_secs() >= 60,
            "osquery.detail_update_interval and osquery.label_update_interval: at least 1m",
        );
        check(
            osquery.due_per_second <= limits::DUE_PER_SECOND_MAX,
            &format!(
                "osquery.due_per_second: at most {}; 0 is automatic",
                limits::DUE_PER_SECOND_MAX
            ),
        );
        check(
            (1..=600).contains(&osquery.seen_interval.as_secs()),
            "osquery.seen_interval: must be 1s to 10m",
        );
        check(
            osquery.distributed_hold <= limits::HELD_READ_DEADLINE,
            &format!(
                "osquery.distributed_hold: at most {}s; an agent gives up after {}s, and work must still reach it",
                limits::HELD_READ_DEADLINE.as_secs(),
                limits::EXCHANGE_DEADLINE.as_secs()
            ),
        );
        check(
            (1..=100_000_000).contains(&osquery.live_query_rows_max),
            "osquery.live_query_rows_max: must be 1 to 100000000",
        );
        check(
            (1 << 20..=1 << 30).contains(&osquery.live_query_bytes_max),
            "osquery.live_query_bytes_max: must be 1 MiB to 1 GiB",
        );
        check(
            (10..=3600).contains(&osquery.live_query_linger.as_secs()),
            "osquery.live_query_linger: must be 10s to 1h",
        );
        check(
            (1..=240).contains(&osquery.live_query_rest_period.as_secs()),
            "osquery.live_query_rest_period: must be 1s to 4m",
        );
        for (option, plugin) in [
            ("osquery.status_log_plugin", &osquery.status_log_plugin),
            ("osquery.result_log_plugin", &osquery.result_log_plugin),
        ] {
            check(
                plugin == "filesystem",
                &format!("{option}: {plugin:?} is not available; use filesystem"),
            );
        }
        check(
            osquery.log_body_bytes_max() <= 32 << 20 && osquery.write_body_bytes_max() <= 32 << 20,
            "osquery.max_log_write_body_size and max_distributed_write_body_size: at most 32 MiB",
        );
    }
}

/// Whether resolvers take it as a host's name, with or without the dot at its end.
fn is_domain_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
