//! Which files and ports control may reach once it is confined: its directory, its logs, its stores. Pure.

use std::path::{Path, PathBuf};

use fleet_child::Calls;
use fleet_child::confine::{Reach, Right};
use fleet_protocol::config::Config;

const REDIS_PORT: u16 = 6379;
const MYSQL_PORT: u16 = 3306;
/// Names by TCP, when an answer is too long for UDP.
const DNS_PORT: u16 = 53;
/// What the C library reads to look up a name. It reads them again when they change, and most are replaced then: with its
/// own user control sees the whole directory, of which its user may read what everybody may.
const NAME_FILES: [&str; 6] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
];
/// Where those files may lead, and libraries that look up names.
const NAME_DIRECTORIES: [&str; 7] = [
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/nscd",
    "/lib",
    "/lib64",
    "/usr/lib",
];
/// Authorities of the system, for a TLS connection to Redis without `redis.tls_ca`.
const AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs",
    "/etc/pki/tls",
    "/etc/pki/ca-trust",
    "/usr/share/ca-certificates",
];

/// For `config`, whose log directories are `logs`. `is_root`: as root it could read what is nobody else's business.
pub(crate) fn reach(config: &Config, state_dir: &Path, logs: Vec<PathBuf>, is_root: bool) -> Reach {
    let mut paths = vec![(state_dir.to_owned(), Right::Write)];
    paths.extend(logs.into_iter().map(|path| (path, Right::Write)));
    let read = |path: PathBuf| (path, Right::Read);
    for path in store_files(config) {
        // A file that is replaced is another one; so it is the directory that is opened, but not for root.
        let parent = path.parent().filter(|parent| parent.as_os_str().len() > 1);
        let seen = match parent {
            Some(parent) if !is_root => parent.to_owned(),
            _ => path.clone(),
        };
        paths.push(read(seen));
        paths.extend(path.canonicalize().ok().map(read));
    }
    let (mysql, redis) = (&config.mysql, &config.redis);
    let replicas = &config.mysql_read_replica;
    let redis_addresses: Vec<&str> = redis.address.split(',').map(str::trim).collect();
    if !redis.address.is_empty() && redis.tls_ca.as_os_str().is_empty() {
        paths.extend(AUTHORITIES.map(PathBuf::from).map(read));
    }
    let all = redis_addresses
        .iter()
        .map(|address| (*address, REDIS_PORT))
        .chain([(mysql.address.as_str(), MYSQL_PORT)])
        .chain(
            replicas
                .address
                .iter()
                .map(|address| (address.as_str(), MYSQL_PORT)),
        );
    let places: Vec<(&str, u16)> = all
        .filter_map(|(address, usual)| tcp(address, usual))
        .collect();
    let has_names = places.iter().any(|(host, _)| !is_address(host));
    let mut ports: Vec<u16> = places.iter().map(|(_, port)| *port).collect();
    if has_names {
        ports.push(DNS_PORT);
        paths.extend(NAME_FILES.map(PathBuf::from).map(read));
        paths.extend(NAME_DIRECTORIES.map(PathBuf::from).map(read));
        if !is_root {
            paths.push(read("/etc".into()));
        }
    }
    // A cluster names its nodes itself, with ports that no option knows.
    let is_cluster = redis_addresses.len() > 1;
    Reach {
        paths,
        ports: (!is_cluster).then_some(ports),
        sockets: None,
        calls: Calls::Control { has_names },
    }
}

/// Files that the options of the stores name, as they stand there.
pub(crate) fn store_files(config: &Config) -> Vec<PathBuf> {
    let (mysql, redis) = (&config.mysql, &config.redis);
    let replicas = &config.mysql_read_replica;
    let mut files = vec![
        mysql.tls_ca.clone(),
        mysql.tls_cert.clone(),
        mysql.tls_key.clone(),
        replicas.tls_ca.clone(),
        replicas.tls_cert.clone(),
        replicas.tls_key.clone(),
        redis.tls_ca.clone(),
    ];
    files.retain(|path| !path.as_os_str().is_empty());
    files
}

/// Host and port; `None` for none and for Unix sockets.
fn tcp(address: &str, usual_port: u16) -> Option<(&str, u16)> {
    let is_unix = address.starts_with('/') || address.contains("unix:");
    if address.is_empty() || is_unix {
        return None;
    }
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let rest = rest.split_once('/').map_or(rest, |(rest, _)| rest);
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let rest = rest.split_once('?').map_or(rest, |(rest, _)| rest);
    match rest.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            Some((host, port.parse().ok()?))
        }
        _ => Some((rest, usual_port)),
    }
}

fn is_address(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(change: impl FnOnce(&mut Config)) -> Reach {
        let mut config = Config::default();
        change(&mut config);
        let logs = ["/s/log/a", "/var/log/b"].map(PathBuf::from);
        reach(&config, Path::new("/s"), logs.to_vec(), false)
    }

    #[test]
    fn without_stores_it_reaches_its_directories_alone() {
        let found = of(|_| {});
        let paths = ["/s", "/s/log/a", "/var/log/b"];
        assert_eq!(found.paths, paths.map(|path| (path.into(), Right::Write)));
        assert_eq!(found.ports, Some(Vec::new()));
        assert_eq!(found.calls, Calls::Control { has_names: false });
    }

    #[test]
    fn replicas_are_reached_too() {
        let found = of(|config| {
            config.mysql.address = "192.0.2.1:3306".into();
            config.mysql_read_replica.address = vec!["192.0.2.2:3307".into(), "192.0.2.3".into()];
        });
        assert_eq!(found.ports, Some(vec![3306, 3307, 3306]));
    }

    #[test]
    fn stores_are_reached_by_their_ports() {
        for (mysql, redis, ports, has_names) in [
            ("192.0.2.1:3307", "", Some(vec![3307]), false),
            ("[2001:db8::1]:3306", "", Some(vec![3306]), false),
            (
                "/run/mysqld/mysqld.sock",
                "/run/redis.sock",
                Some(vec![]),
                false,
            ),
            ("", "rediss://u:p@192.0.2.1:7000/0", Some(vec![7000]), false),
            ("", "192.0.2.1", Some(vec![6379]), false),
            ("db.example:3306", "", Some(vec![3306, 53]), true),
            ("", "192.0.2.1:1,192.0.2.2:2", None, false),
        ] {
            let found = of(|config| {
                config.mysql.address = mysql.into();
                config.redis.address = redis.into();
            });
            assert_eq!(found.ports, ports, "{mysql} {redis}");
            assert_eq!(found.calls, Calls::Control { has_names }, "{mysql} {redis}");
            let sees_names = found.paths.contains(&("/etc".into(), Right::Read));
            assert_eq!(sees_names, has_names, "{mysql}");
        }
    }
}
