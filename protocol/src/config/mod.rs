//! The one configuration type. Defaults and help stand beside each field; there is no second shape of it anywhere.
//!
//! A field `section.key` is also the flag `--section_key` (or with hyphens), the variable `FLEET_SECTION_KEY` and
//! `section: key:` in the YAML file. Names are Fleet's where Fleet has the option.

mod keys;
mod limits;
mod sections;
mod validate;

pub use keys::{Key, KeyKind, OverlayError, overlay};
pub use limits::Limits;
pub use sections::{
    Addresses, AgentCheck, BasicAuth, Carver, Claim, ClientAuth, Dns, Filesystem, HostIdentifier,
    LogCompression, Logging, Mysql, MysqlReadReplica, Osquery, PostQuantum, Prometheus, Redis,
    Server, Session, State, Tls, TlsCompatibility, Tune, Workers,
};
pub use validate::Problem;

use serde::{Deserialize, Serialize};

/// Everything that can be set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How agents are spread over addresses.
    pub addresses: Addresses,
    /// Carves: file uploads from hosts.
    pub carver: Carver,
    /// The filesystem log destination.
    pub filesystem: Filesystem,
    /// How much is taken in.
    pub limits: Limits,
    /// Our own log, on standard error.
    pub logging: Logging,
    /// The MySQL or MariaDB store.
    pub mysql: Mysql,
    /// Read replicas of the MySQL store.
    pub mysql_read_replica: MysqlReadReplica,
    /// What agents are told and how they are known.
    pub osquery: Osquery,
    /// Who may read `/metrics`.
    pub prometheus: Prometheus,
    /// The Redis bus.
    pub redis: Redis,
    /// The port that agents connect to.
    pub server: Server,
    /// Operators' sign-in over the network.
    pub session: Session,
    /// Where files are kept.
    pub state: State,
    /// How TLS is spoken on the agent port.
    pub tls: Tls,
    /// Kernel limits.
    pub tune: Tune,
    /// The worker processes.
    pub workers: Workers,
}
