//! What an agent says and hears, after the worker has parsed the bytes and before control acts on them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::feed;
use crate::ids::{HostId, NodeKeyHash};
use crate::reject::Reject;
use crate::secret::Secret;

/// The agent paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Route {
    /// Ask for a node key.
    Enroll,
    /// Fetch the configuration.
    Config,
    /// Ask for distributed queries.
    Read,
    /// Deliver their results.
    Write,
    /// Deliver result or status lines.
    Log,
    /// Start a carve.
    CarveBegin,
    /// Deliver one block of a carve.
    CarveBlock,
}

impl Route {
    /// Every route, in the order of its discriminant.
    pub const ALL: [Self; 7] = [
        Self::Enroll,
        Self::Config,
        Self::Read,
        Self::Write,
        Self::Log,
        Self::CarveBegin,
        Self::CarveBlock,
    ];

    /// The route of a request path (without query string), under either of the two prefixes.
    pub fn of_path(path: &str) -> Option<Self> {
        let tail = path
            .strip_prefix("/api/v1/osquery/")
            .or_else(|| path.strip_prefix("/api/osquery/"))?;
        Self::ALL.into_iter().find(|route| route.tail() == tail)
    }

    /// What follows the prefix in the path.
    pub fn tail(self) -> &'static str {
        match self {
            Self::Enroll => "enroll",
            Self::Config => "config",
            Self::Read => "distributed/read",
            Self::Write => "distributed/write",
            Self::Log => "log",
            Self::CarveBegin => "carve/begin",
            Self::CarveBlock => "carve/block",
        }
    }

    /// Metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Enroll => "enroll",
            Self::Config => "config",
            Self::Read => "read",
            Self::Write => "write",
            Self::Log => "log",
            Self::CarveBegin => "carve_begin",
            Self::CarveBlock => "carve_block",
        }
    }

    /// Place in arrays with one element a route.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// One parsed request that control must act on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Whose key is this?
    Lookup(NodeKeyHash),
    /// New or returning host.
    Enroll(Box<Enroll>),
    /// A read with something due.
    Read(HostId),
    /// Distributed results.
    Write(Write),
    /// Log lines.
    Log(Log),
    /// A carve starts.
    CarveBegin(CarveBegin),
    /// A block of a carve.
    CarveBlock(CarveBlock),
    /// Hosts that were heard of since the last such request; ids sorted and unique.
    Seen(Vec<HostId>),
    /// The host of a verified client certificate: find it, or make it. Answered with [`Answer::Host`].
    Adopt(Box<Adopt>),
}

/// A host that is known by its certificate and has no node key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adopt {
    /// Made from `kind` and `identity` in a way in which none is made from a node key.
    pub key: NodeKeyHash,
    /// Whom the certificate names; not empty, no control characters.
    pub identity: String,
    /// Where the request came from.
    pub address: IpAddr,
    /// What names it.
    pub kind: IdentityKind,
}

/// Which part of a certificate names its host. The same text in two of them is two hosts: an authority that may sign some
/// DNS names only (RFC 5280, section 4.2.1.10) may still write any common name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum IdentityKind {
    /// `subjectAltName`, `dNSName`.
    DnsName,
    /// `subjectAltName`, `uniformResourceIdentifier`.
    Uri,
    /// The subject's common name.
    CommonName,
}

impl IdentityKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::DnsName, Self::Uri, Self::CommonName];

    /// Goes into keys and instance ids, so it never changes.
    pub fn label(self) -> &'static str {
        match self {
            Self::DnsName => "dns name",
            Self::Uri => "uri",
            Self::CommonName => "common name",
        }
    }
}

/// `POST …/enroll`. Values inside `details` are strings; unknown tables and columns are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Enroll {
    /// Compared with the store's enroll secrets in constant time.
    pub secret: Secret,
    /// `host_identifier` as sent; may be empty.
    pub identifier: String,
    /// Decimal bitmask as text (POSIX 1, WINDOWS 2, BSD 4, LINUX 8, OSX 16, FREEBSD 32); may be empty.
    pub platform_type: String,
    /// `host_details`: table → column → value.
    pub details: BTreeMap<String, BTreeMap<String, String>>,
    /// Where the request came from.
    pub address: IpAddr,
}

impl Enroll {
    /// One value of `host_details`, `""` when absent.
    pub fn detail(&self, table: &str, column: &str) -> &str {
        self.details
            .get(table)
            .and_then(|row| row.get(column))
            .map_or("", String::as_str)
    }
}

/// `POST …/distributed/write`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Write {
    /// Who answers.
    pub host: HostId,
    /// Where from.
    pub address: IpAddr,
    /// One per query name.
    pub results: Vec<QueryResult>,
}

/// The outcome of one distributed query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueryResult {
    /// The name under which the query was handed out.
    pub name: String,
    /// 0 is success; else an SQLite or osquery code.
    pub status: i64,
    /// `""` on success and from agents before 4.4.0.
    pub message: String,
    /// JSON array of row objects as text; `[]` when there are none. Valid UTF-8 (bad bytes were replaced).
    pub rows: String,
    /// JSON object as text; `""` from agents before 5.8.0.
    pub stats: String,
}

/// The two kinds of log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LogType {
    /// Results of scheduled queries.
    Result,
    /// The agent's own messages.
    Status,
}

impl LogType {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Result, Self::Status];

    /// The wire value of `log_type`, and metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Result => "result",
            Self::Status => "status",
        }
    }
}

/// `POST …/log`, cut into lines.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Log {
    /// Who logs.
    pub host: HostId,
    /// Which file.
    pub log_type: LogType,
    /// JSON objects, one a line, each ended by `\n`, without line breaks inside, valid UTF-8.
    pub lines: Bytes,
    /// Lines in `lines`.
    pub line_count: u32,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Log({}, {}, {} lines, {} bytes)",
            self.host,
            self.log_type.label(),
            self.line_count,
            self.lines.len()
        )
    }
}

/// `POST …/carve/begin`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CarveBegin {
    /// Who carves.
    pub host: HostId,
    /// Blocks that will follow.
    pub block_count: u64,
    /// Bytes of each block but the last, before base64.
    pub block_size: u64,
    /// Bytes in all.
    pub carve_size: u64,
    /// The agent's id of the carve.
    pub carve_id: String,
    /// The agent's id of the request; repeated in each block.
    pub request_id: String,
}

/// `POST …/carve/block`. Agents before 5.23.0 prove themselves by the session id alone.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct CarveBlock {
    /// Counts from 0, in order.
    pub block_id: u64,
    /// What the answer to the start said.
    pub session_id: Secret,
    /// As in the start.
    pub request_id: String,
    /// Decoded content.
    pub data: Bytes,
}

impl std::fmt::Debug for CarveBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "CarveBlock({}, {} bytes)",
            self.block_id,
            self.data.len()
        )
    }
}

/// Control's answer to one [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// To write, log, carve block and seen: it is stored.
    Accepted,
    /// To carve begin.
    CarveStarted {
        /// Unguessable; the only credential of the blocks that follow.
        session_id: Secret,
    },
    /// To enroll.
    Enrolled {
        /// What the agent keeps. URL-safe ASCII.
        node_key: Secret,
        /// The host that it stands for.
        host: feed::Host,
    },
    /// To adopt, and to lookup: `None` only when the store says that no host has this key.
    Host(Option<feed::Host>),
    /// Not now, or never; [`Reject`] knows which.
    Refused(Reject),
    /// To read.
    Work(Work),
}

/// What a read hands out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Names and SQL texts are never empty.
    pub queries: Vec<Query>,
    /// Seconds for which the agent polls faster.
    pub accelerate_s: Option<u32>,
}

/// One query to run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Query {
    /// Its id in the answer.
    pub name: String,
    /// The SQL.
    pub sql: String,
    /// Run only if this returns rows. Every query has one, because agents skip those without as soon as one has.
    pub discovery: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_map_to_routes() {
        for route in Route::ALL {
            for prefix in ["/api/osquery/", "/api/v1/osquery/"] {
                assert_eq!(
                    Route::of_path(&format!("{prefix}{}", route.tail())),
                    Some(route)
                );
            }
        }
        for other in [
            "/",
            "/api/latest/osquery/log",
            "/api/osquery/log/",
            "/api/osquery",
        ] {
            assert_eq!(Route::of_path(other), None, "{other}");
        }
    }

    #[test]
    fn indices_are_dense() {
        for (index, route) in Route::ALL.into_iter().enumerate() {
            assert_eq!(route.index(), index);
        }
    }
}
