//! Fleet's published reference architectures, to stand beside a plan.
//!
//! Source: Fleet's deployment documentation, "Reference architectures", AWS section, and its older edition. There TLS
//! ends at the load balancer, whose size is not in these figures, and the servers also do what ours leaves to others
//! (device management, software inventory, vulnerabilities): so the two are not equals, only the hosts are.

/// One size. A number in brackets is how many the newer edition has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ReferenceSize {
    /// Online hosts.
    pub hosts: u64,
    /// Fleet's servers; empty when none are published.
    pub servers: &'static str,
    /// Fleet's database.
    pub database: &'static str,
    /// Fleet's Redis.
    pub redis: &'static str,
}

/// The sizes of the table.
pub const REFERENCE_SIZES: [ReferenceSize; 5] = [
    ReferenceSize {
        hosts: 1_000,
        servers: "0.5 vCPU, 4 GB",
        database: "db.t3.small",
        redis: "t4g.small",
    },
    ReferenceSize {
        hosts: 25_000,
        servers: "10 x 1 vCPU, 4 GB",
        database: "db.r6g.large (2)",
        redis: "m6g.large (3)",
    },
    ReferenceSize {
        hosts: 150_000,
        servers: "20 tasks",
        database: "db.r6g.4xlarge (2)",
        redis: "3 nodes",
    },
    ReferenceSize {
        hosts: 300_000,
        servers: "20 tasks",
        database: "2 x db.r6g.16xlarge",
        redis: "3 nodes",
    },
    ReferenceSize {
        hosts: 1_000_000,
        servers: "",
        database: "",
        redis: "",
    },
];
