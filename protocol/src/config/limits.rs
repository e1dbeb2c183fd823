//! The options of what is taken in; what their zeros stand for is in [`crate::limits::Allowed`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::sections::section;
use crate::limits;

section! {
    /// How much is taken in before the server tells agents to come back.
    Limits {
        /// Hosts that the limits of this section are sized for where they are 0; 0: tune.hosts, or else as many as the workers may hold connections.
        hosts: u64 = 0;
        /// TLS handshakes in progress per worker; beyond it the worker accepts no more until a tenth of them is done. 0: half of server.connections_per_worker_max.
        handshakes_per_worker_max: u32 = 0;
        /// From accept to the end of the TLS handshake; who is slower is disconnected.
        #[serde(with = "super::keys::span")]
        handshake_deadline: Duration = limits::HANDSHAKE_DEADLINE;
        /// From there to the end of the request's head; who is slower is disconnected.
        #[serde(with = "super::keys::span")]
        head_deadline: Duration = limits::HEAD_DEADLINE;
        /// A connection that has waited longer for its accept is closed before TLS: its agent gives up 16s after it connected.
        #[serde(with = "super::keys::span")]
        queue_age_max: Duration = limits::QUEUE_AGE_MAX;
        /// When connections have had to wait for this long without a pause, more come than can be served, and from then on limits.queue_age_lasting holds. A herd that returns at once is served before; 0s: always.
        #[serde(with = "super::keys::span")]
        queue_burst_max: Duration = limits::QUEUE_BURST_MAX;
        /// Under lasting overload a connection that has waited longer for its accept is closed before TLS, so that those who are served need not wait.
        #[serde(with = "super::keys::span")]
        queue_age_lasting: Duration = limits::QUEUE_AGE_LASTING;
        /// New connections a second from one address (IPv6: from one /64); not from loopback and trusted proxies. 0: by number of hosts. Each of N workers takes 2/N of it (rounded up, at most all), and so of each further rate and burst here: together they let through one to two times the figure.
        address_rate: u32 = 0;
        /// New connections at once from an address that has been quiet; an office behind NAT is one address. 0: by number of hosts.
        address_burst: u32 = 0;
        /// Requests a second of one host. 0: 20.
        host_rate: u32 = 0;
        /// Requests at once of a host that has been quiet. 0: 200.
        host_burst: u32 = 0;
        /// Enrolments a second of all hosts, and twice as many at once; the others are told to come back. 0: 500.
        enroll_rate: u32 = 0;
        /// Config requests a second of all hosts, and twice as many at once. 0: by number of hosts.
        config_rate: u32 = 0;
        /// Distributed reads a second of all hosts, and twice as many at once. 0: by number of hosts.
        read_rate: u32 = 0;
        /// Distributed writes a second of all hosts, and twice as many at once. 0: by number of hosts.
        write_rate: u32 = 0;
        /// Log requests a second of all hosts, and twice as many at once. 0: by number of hosts.
        log_rate: u32 = 0;
        /// Carve requests a second of all hosts, begins and blocks each, and twice as many at once. 0: by number of hosts.
        carve_rate: u32 = 0;
    }
}
