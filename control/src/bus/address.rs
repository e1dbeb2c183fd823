//! Reads `redis.address` and what belongs to it.

use fleet_protocol::config;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};

use super::Error;

/// One address is a single server, several are nodes of a cluster.
pub(super) struct Addresses {
    pub(super) nodes: Vec<ConnectionInfo>,
    /// PEM, when the connection is TLS and an authority is named.
    pub(super) tls_ca: Option<Vec<u8>>,
    pub(super) is_tls: bool,
}

impl Addresses {
    /// `None` when there is no address: the in-process bus.
    pub(super) fn read(redis: &config::Redis) -> Result<Option<Self>, Error> {
        let texts: Vec<&str> = redis
            .address
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .collect();
        if texts.is_empty() {
            return Ok(None);
        }
        if texts.len() > 1 && redis.database != 0 {
            let text = "redis.database: a cluster has only database 0";
            return Err(Error::Invalid(text.into()));
        }
        let mut nodes = Vec::new();
        for text in texts {
            nodes.push(node(text, redis)?);
        }
        let is_tls = nodes
            .iter()
            .any(|node| matches!(node.addr(), ConnectionAddr::TcpTls { .. }));
        let tls_ca = if redis.tls_ca.as_os_str().is_empty() {
            None
        } else {
            let path = &redis.tls_ca;
            let pem = std::fs::read(path);
            let shown = path.display();
            Some(pem.map_err(|error| Error::Invalid(format!("redis.tls_ca: {shown}: {error}")))?)
        };
        Ok(Some(Self {
            nodes,
            tls_ca,
            is_tls,
        }))
    }

    /// For people; user names and passwords left out.
    pub(super) fn shown(&self) -> String {
        let shown: Vec<String> = self
            .nodes
            .iter()
            .map(|node| node.addr().to_string())
            .collect();
        shown.join(",")
    }
}

fn node(text: &str, redis: &config::Redis) -> Result<ConnectionInfo, Error> {
    // The text is not repeated: it may hold a password.
    let bad = || Error::Invalid("redis.address: not host:port, redis:// or rediss://".into());
    let url = if text.starts_with('/') {
        format!("redis+unix://{text}")
    } else if text.contains("://") {
        text.to_owned()
    } else {
        format!("redis://{text}")
    };
    let url = match url.strip_prefix("redis://") {
        Some(rest) if redis.use_tls => format!("rediss://{rest}"),
        _ => url,
    };
    let info = url.into_connection_info().map_err(|_| bad())?;
    // RESP3: wakes arrive on the connection that commands go out on.
    let mut settings = info
        .redis_settings()
        .clone()
        .set_protocol(ProtocolVersion::RESP3);
    if !redis.username.is_empty() {
        settings = settings.set_username(&redis.username);
    }
    if !redis.password.is_empty() {
        settings = settings.set_password(redis.password.reveal());
    }
    if redis.database != 0 {
        settings = settings.set_db(i64::from(redis.database));
    }
    Ok(info.set_redis_settings(settings))
}

#[cfg(test)]
mod tests {
    use fleet_protocol::secret::Secret;

    use super::*;

    fn shown(address: &str, use_tls: bool) -> Option<String> {
        let redis = config::Redis {
            address: address.into(),
            use_tls,
            ..config::Redis::default()
        };
        Addresses::read(&redis)
            .unwrap()
            .map(|addresses| addresses.shown())
    }

    #[test]
    fn addresses_are_read() {
        assert_eq!(shown("", false), None);
        assert_eq!(shown("db:7000", false).unwrap(), "db:7000");
        assert_eq!(shown("db", false).unwrap(), "db:6379");
        assert_eq!(shown("redis://:hunter2@db:7000", false).unwrap(), "db:7000");
        assert_eq!(
            shown("a:1, b:2,rediss://c:3", false).unwrap(),
            "a:1,b:2,c:3"
        );
        assert_eq!(shown("/run/redis.sock", false).unwrap(), "/run/redis.sock");
    }

    #[test]
    fn tls_and_credentials_are_taken() {
        let redis = config::Redis {
            address: "redis://db".into(),
            use_tls: true,
            username: "u".into(),
            password: Secret::new("p"),
            database: 3,
            ..config::Redis::default()
        };
        let addresses = Addresses::read(&redis).unwrap().unwrap();
        assert!(addresses.is_tls);
        let settings = addresses.nodes[0].redis_settings();
        assert_eq!(settings.username(), Some("u"));
        assert_eq!(settings.password(), Some("p"));
        assert_eq!(settings.db(), 3);
    }

    #[test]
    fn bad_addresses_are_not_repeated() {
        let redis = config::Redis {
            address: "http://:hunter2@db".into(),
            ..config::Redis::default()
        };
        let error = Addresses::read(&redis).err().unwrap();
        assert!(!error.to_string().contains("hunter2"));
    }
}
