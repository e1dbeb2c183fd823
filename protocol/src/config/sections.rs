//! The sections of the configuration: each option's type, default and help, once.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::networks::{self, Networks};
use crate::secret::Secret;

/// Declares a section: struct, defaults and help from one list.
macro_rules! section {
    ($(#[doc = $section_doc:literal])+ $name:ident {
        $( $(#[doc = $doc:literal])+ $(#[serde($serde:meta)])? $field:ident: $type:ty = $default:expr; )+
    }) => {
        $(#[doc = $section_doc])+
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $( $(#[doc = $doc])+ $(#[serde($serde)])? pub $field: $type, )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )+ }
            }
        }

        impl $name {
            /// Each field's name and help.
            pub(super) const HELP: &'static [(&'static str, &'static str)] =
                &[ $( (stringify!($field), concat!($($doc),+)), )+ ];
        }
    };
}
pub(super) use section;

section! {
    /// The port that agents connect to.
    Server {
        /// Addresses to serve on, separated by commas: IP:port, a range such as 192.0.2.10-192.0.2.19:8080, or a network such as 192.0.2.0/28:8080.
        #[serde(alias = "addresses")]
        address: Vec<String> = vec!["0.0.0.0:8080".into()];
        /// Addresses of server.address (IP:port, ranges and networks too, or `all`) on which each connection must begin with a PROXY v2 header. Elsewhere such a header is refused.
        proxy_protocol: Vec<String> = Vec::new();
        /// Networks of the balancers that may send PROXY headers, such as 10.0.0.0/8; connections to server.proxy_protocol from elsewhere are refused.
        proxy_protocol_networks: Vec<String> = Vec::new();
        /// Whose headers are believed about a client's address: networks of balancers, separated by commas (True-Client-IP, X-Real-IP, X-Forwarded-For); or the name of one header, or the number of proxies that add to X-Forwarded-For, either of which is then believed from anyone who can connect; empty or `none`: nobody's.
        trusted_proxies: String = String::new();
        /// Certificate chain, PEM; empty: a self-signed ECDSA P-256 certificate is made in the state directory.
        cert: PathBuf = PathBuf::new();
        /// Private key of the certificate, PEM.
        key: PathBuf = PathBuf::new();
        /// User that workers and control run as when the server is started as root; empty: fleet or fleet-supervisor, whichever exists, else nobody. `root` keeps root, without its rights.
        user: String = String::new();
        /// Confine workers and control: no file, socket or system call that they have no use for.
        sandbox: bool = true;
        /// Let the kernel write core dumps of processes that hold keys; a dump holds them, too.
        core_dumps: bool = false;
        /// Serve TLS; false when TLS is ended in front of this server.
        tls: bool = true;
        /// TLS versions: `intermediate` takes 1.2 and 1.3, `modern` only 1.3.
        tls_compatibility: TlsCompatibility = TlsCompatibility::Intermediate;
        /// Authorities whose certificates clients may show, PEM; empty: clients are asked for none. Agents with --disable_enrollment are known by theirs.
        client_ca: PathBuf = PathBuf::new();
        /// Whether clients must show one: with `require` who has none is refused, browsers and curl too; with `accept` agents without one go on with node keys.
        client_auth: ClientAuth = ClientAuth::Require;
        /// Revocation lists of these authorities, PEM; empty: none.
        client_crl: PathBuf = PathBuf::new();
        /// Prefix in front of every path, such as /fleet; empty for none.
        url_prefix: String = String::new();
        /// Keep connections of clients that ask for reuse, and of balancers unless they decline it; osquery never asks.
        keepalive: bool = true;
        /// A connection kept for reuse is closed when it has been idle for this long; longer than the balancer keeps its own (60s is usual, Google Cloud's 600s), or requests get lost in between.
        #[serde(with = "super::keys::span")]
        keepalive_idle: Duration = Duration::from_secs(75);
        /// Let browsers show pages of other origins the results of live queries.
        websockets_allow_unsafe_origin: bool = false;
        /// Open connections per worker; beyond it the worker accepts no more until a tenth of them is closed.
        connections_per_worker_max: u32 = 15_000;
        /// Listen backlog of each socket.
        backlog: u32 = 4096;
    }
}

section! {
    /// How TLS is spoken on the agent port.
    Tls {
        /// Post-quantum key exchange: `off` takes X25519, or else P-256; `prefer` takes X25519MLKEM768 from those who offer it, for 16 to 27 µs and 1.1 KB more in each handshake.
        post_quantum: PostQuantum = PostQuantum::Off;
        /// Further certificates, chosen by the name that a client asks for: CERT.pem=KEY.pem, separated by commas. Who asks for no name, an address or another name is shown server.cert.
        certificates: Vec<String> = Vec::new();
    }
}

section! {
    /// Addresses that this server adds to an interface at start and removes at its end.
    Claim {
        /// Interface, such as eth0.
        interface: String = String::new();
        /// Addresses with their prefix length, separated by commas: 192.0.2.10/24, a range 192.0.2.10-192.0.2.19/24, IPv6 too; without a length it is one address alone.
        addresses: Vec<String> = Vec::new();
    }
}

section! {
    /// A small authoritative DNS responder for one name, which answers with the healthy addresses, least loaded first.
    Dns {
        /// The name that is delegated to this server, such as fleet.example.com; empty: no responder.
        name: String = String::new();
        /// Addresses to answer on, UDP and TCP; empty: port 53 of each address in server.address.
        listen: Vec<String> = Vec::new();
        /// Names to which the parent zone delegates that name, such as gw1.example.com, separated by commas; told to those who ask for NS records.
        nameservers: Vec<String> = Vec::new();
        /// How long resolvers may remember an answer.
        #[serde(with = "super::keys::span")]
        ttl: Duration = Duration::from_secs(10);
        /// Most addresses in one answer; 0 for all. By UDP at most 16, whatever is set.
        answers_max: u16 = 8;
    }
}

section! {
    /// The port that HAProxy's agent-check asks for this server's weight.
    AgentCheck {
        /// Address to answer on, such as 0.0.0.0:9707; empty: none.
        listen: String = String::new();
    }
}

section! {
    /// Kernel limits.
    Tune {
        /// Let start change kernel settings that are too low for this configuration; without it start only says so.
        apply: bool = false;
        /// Hosts to size for; 0: as many as the workers may hold connections.
        hosts: u64 = 0;
    }
}

/// How agents are spread over addresses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Addresses {
    /// Added to an interface by us.
    pub claim: Claim,
    /// The responder.
    pub dns: Dns,
    /// HAProxy's agent-check.
    pub agent_check: AgentCheck,
}

section! {
    /// Where files are kept.
    State {
        /// State directory; empty: /var/lib/fleet-supervisor as root under systemd, else ./fleet-state.
        dir: PathBuf = PathBuf::new();
    }
}

section! {
    /// The worker processes.
    Workers {
        /// Worker processes; 0 is one per core.
        count: u16 = 0;
        /// Pin each worker to a core.
        pin: bool = true;
    }
}

section! {
    /// The MySQL or MariaDB store. Without an address the embedded store is used.
    Mysql {
        /// host:port, or the path of a Unix socket; empty: the embedded store.
        address: String = String::new();
        /// User name.
        username: String = "fleet".into();
        /// Password.
        password: Secret = Secret::default();
        /// File that holds the password.
        password_path: PathBuf = PathBuf::new();
        /// Database.
        database: String = "fleet".into();
        /// Certificate authority of the server, PEM; set it to require a verified TLS connection.
        tls_ca: PathBuf = PathBuf::new();
        /// Client certificate, PEM.
        tls_cert: PathBuf = PathBuf::new();
        /// Client key, PEM.
        tls_key: PathBuf = PathBuf::new();
        /// Connections in the pool.
        max_open_conns: u32 = 8;
        /// A connection is replaced after this time; 0s for never.
        #[serde(with = "super::keys::span")]
        conn_max_lifetime: Duration = Duration::from_secs(30 * 60);
        /// Longest wait for a connection from the pool.
        #[serde(with = "super::keys::span")]
        acquire_timeout: Duration = Duration::from_secs(5);
    }
}

section! {
    /// Read replicas of the MySQL store, for operators' lists and counts. A read goes to a replica that knows every change which this gateway knows, else to the primary.
    MysqlReadReplica {
        /// host:port of each, separated by commas; empty: none.
        address: Vec<String> = Vec::new();
        /// User name; empty: that of mysql, with its password.
        username: String = String::new();
        /// Password of username.
        password: Secret = Secret::default();
        /// File that holds the password.
        password_path: PathBuf = PathBuf::new();
        /// Database; empty: that of mysql.
        database: String = String::new();
        /// Certificate authority of the replicas, PEM; empty: that of mysql.
        tls_ca: PathBuf = PathBuf::new();
        /// Client certificate, PEM; empty: that of mysql.
        tls_cert: PathBuf = PathBuf::new();
        /// Client key, PEM; empty: that of mysql.
        tls_key: PathBuf = PathBuf::new();
        /// Connections in the pool of each.
        max_open_conns: u32 = 4;
        /// A connection is replaced after this time; 0s for never.
        #[serde(with = "super::keys::span")]
        conn_max_lifetime: Duration = Duration::from_secs(30 * 60);
    }
}

section! {
    /// The Redis bus. Without an address an in-process bus is used, which serves one gateway.
    Redis {
        /// host:port, with or without redis:// in front; several cluster nodes are separated by commas.
        address: String = String::new();
        /// User name.
        username: String = String::new();
        /// Password.
        password: Secret = Secret::default();
        /// Database number.
        database: u16 = 0;
        /// Connect over TLS.
        use_tls: bool = false;
        /// Certificate authority of the server, PEM.
        tls_ca: PathBuf = PathBuf::new();
        /// Longest time to connect.
        #[serde(with = "super::keys::span")]
        connect_timeout: Duration = Duration::from_secs(5);
        /// Longest wait for an answer.
        #[serde(with = "super::keys::span")]
        read_timeout: Duration = Duration::from_secs(10);
    }
}

section! {
    /// What agents are told and how they are known.
    Osquery {
        /// Random bytes in a node key.
        node_key_size: u16 = 24;
        /// What names a host: `provided` (what it sends), `instance`, `uuid` or `hostname`.
        host_identifier: HostIdentifier = HostIdentifier::Provided;
        /// Time between two runs of the detail queries on a host.
        #[serde(with = "super::keys::span")]
        detail_update_interval: Duration = Duration::from_secs(3600);
        /// Time between two runs of the label queries on a host.
        #[serde(with = "super::keys::span")]
        label_update_interval: Duration = Duration::from_secs(3600);
        /// Part of these intervals over which hosts are spread, in percent.
        max_jitter_percent: u8 = 10;
        /// Hosts that get due work (details, labels) in a second, at most, from this gateway; the others are told to ask later, those that have been due longest come first. 0: automatic, 500 with the embedded store, 1000 with MySQL, and never less than four times what the hosts make due in the long run. Gateways that share a store share what it bears: give each its part.
        due_per_second: u32 = 0;
        /// Time between two writes of the hosts' seen times to the store.
        #[serde(with = "super::keys::span")]
        seen_interval: Duration = Duration::from_secs(30);
        /// Longest time that a distributed read with nothing due is held open for work to come, 0s to 12s; each host has its own part of it, three quarters and more. 0s: answered at once.
        #[serde(with = "super::keys::span")]
        distributed_hold: Duration = Duration::from_secs(10);
        /// Rows that one live query keeps; of hosts beyond, only their number is kept, and the results are marked as truncated.
        live_query_rows_max: u64 = 1_000_000;
        /// Bytes of results that one live query keeps, 1 MiB to 1 GiB.
        live_query_bytes_max: u64 = 64 << 20;
        /// A live query at whose results nobody looks ends after this time, 10s to 1h.
        #[serde(with = "super::keys::span")]
        live_query_linger: Duration = Duration::from_secs(60);
        /// Longest time that a live query over REST waits for the hosts that are online; also told by FLEET_LIVE_QUERY_REST_PERIOD.
        #[serde(with = "super::keys::span")]
        live_query_rest_period: Duration = Duration::from_secs(25);
        /// Largest log request in bytes; 0 is 10 MiB.
        max_log_write_body_size: u64 = 0;
        /// Largest distributed write request in bytes; 0 is 5 MiB.
        max_distributed_write_body_size: u64 = 0;
        /// Destination of status logs; only `filesystem`.
        status_log_plugin: String = "filesystem".into();
        /// Destination of result logs; only `filesystem`.
        result_log_plugin: String = "filesystem".into();
    }
}

section! {
    /// Our own log, on standard error.
    Logging {
        /// Log debug messages.
        debug: bool = false;
        /// Log JSON objects instead of text.
        json: bool = false;
        /// Do not print the lines that say what to do after start.
        disable_banner: bool = false;
    }
}

section! {
    /// The filesystem log destination.
    Filesystem {
        /// Segment directory or file name of status logs; empty: log/osquery_status in the state directory.
        status_log_file: PathBuf = PathBuf::new();
        /// Segment directory or file name of result logs; empty: log/osquery_result in the state directory.
        result_log_file: PathBuf = PathBuf::new();
        /// Close a segment and begin another by size and age.
        enable_log_rotation: bool = true;
        /// Compress closed segments: `none`, `gzip` or `zstd` (true is gzip).
        enable_log_compression: LogCompression = LogCompression::None;
        /// Size in megabytes at which a segment is closed.
        max_size: u64 = 500;
        /// Days that closed segments are kept; 0 for ever.
        max_age: u32 = 28;
        /// Closed segments that are kept; 0 for all.
        max_backups: u32 = 0;
        /// Age at which a segment is closed; 0s for never.
        #[serde(with = "super::keys::span")]
        segment_age: Duration = Duration::from_secs(24 * 3600);
    }
}

section! {
    /// Carves: file uploads from hosts.
    Carver {
        /// Largest carve in bytes.
        max_size: u64 = 8 << 30;
        /// Largest block in bytes, before base64.
        max_block_size: u64 = 16 << 20;
        /// Carves are deleted after this time.
        #[serde(with = "super::keys::span")]
        expiry: Duration = Duration::from_secs(24 * 3600);
    }
}

section! {
    /// Operators' sign-in over the network.
    Session {
        /// Random bytes of a token.
        key_size: u16 = 64;
        /// A session ends when it has not been used for this long, unless it is of an account for programs (API only); 0: never.
        #[serde(with = "super::keys::span")]
        duration: Duration = Duration::from_secs(5 * 24 * 3600);
    }
}

section! {
    /// HTTP basic authentication of `/metrics`. Without user name and password the path answers 404 to remote clients.
    BasicAuth {
        /// User name.
        username: String = String::new();
        /// Password.
        password: Secret = Secret::default();
        /// Serve `/metrics` to everybody.
        disable: bool = false;
    }
}

/// Who may read `/metrics`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prometheus {
    /// HTTP basic authentication.
    pub basic_auth: BasicAuth,
}

/// Which TLS versions are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsCompatibility {
    /// 1.2 and 1.3.
    Intermediate,
    /// Only 1.3.
    Modern,
}

/// What is expected of a client that is asked for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// It shows one.
    Require,
    /// It may show one.
    Accept,
}

/// Which key exchange comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PostQuantum {
    /// X25519.
    #[serde(alias = "false")]
    Off,
    /// X25519 together with ML-KEM-768.
    Prefer,
}

/// What names a host. A missing value falls back to what the host sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostIdentifier {
    /// `host_identifier` as sent.
    Provided,
    /// `osquery_info.instance_id`.
    Instance,
    /// `system_info.uuid`.
    Uuid,
    /// `system_info.hostname`.
    Hostname,
}

/// How closed segments are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogCompression {
    /// Not at all.
    #[serde(alias = "false")]
    None,
    /// `.gz`
    #[serde(alias = "true")]
    Gzip,
    /// `.zst`
    Zstd,
}

impl Server {
    /// The prefix as paths begin with it: empty, or `/x` without a slash at the end.
    pub fn path_prefix(&self) -> String {
        let prefix = self.url_prefix.trim_matches('/');
        if prefix.is_empty() {
            String::new()
        } else {
            format!("/{prefix}")
        }
    }

    /// Who may send PROXY headers.
    pub fn balancers(&self) -> Result<Networks, networks::Error> {
        Networks::parse(self.proxy_protocol_networks.iter().map(String::as_str))
    }
}

impl Tls {
    /// Certificate and key of each further pair. An error is a pair that is none.
    pub fn pairs(&self) -> Result<Vec<(PathBuf, PathBuf)>, String> {
        let pair = |text: &String| match text.split_once('=') {
            Some((cert, key)) if !cert.is_empty() && !key.is_empty() => {
                Ok((cert.into(), key.into()))
            }
            _ => Err(text.clone()),
        };
        self.certificates.iter().map(pair).collect()
    }
}

impl Osquery {
    /// Bound of a log body, bytes.
    pub fn log_body_bytes_max(&self) -> u64 {
        if self.max_log_write_body_size == 0 {
            10 << 20
        } else {
            self.max_log_write_body_size
        }
    }

    /// Bound of a distributed write body, bytes.
    pub fn write_body_bytes_max(&self) -> u64 {
        match self.max_distributed_write_body_size {
            0 => 5 << 20,
            bytes => bytes,
        }
    }
}

impl Carver {
    /// Bound of a carve block's body, bytes: base64 of a block and some members.
    pub fn block_body_bytes_max(&self) -> u64 {
        self.max_block_size.div_ceil(3) * 4 + 4096
    }
}
