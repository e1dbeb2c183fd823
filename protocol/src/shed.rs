//! What is counted of admission: what was not let in, and why.

use serde::{Deserialize, Serialize};

use crate::tls_stats::dense;

dense! {
    /// Why a connection or a request was not admitted, in the order in which that is decided.
    Shed[9] {
        /// Closed before TLS: it had waited too long for its accept.
        QueueAge "queue_age";
        /// Closed before TLS: its peer had gone while it waited.
        PeerGone "peer_gone";
        /// Closed before TLS: too many connections from its address. Behind an HTTP balancer: the request was refused.
        AddressRate "address_rate";
        /// Too many requests of the host.
        HostRate "host_rate";
        /// Too many enrolments of all hosts.
        EnrollRate "enroll_rate";
        /// Too many requests of all hosts on the route.
        RouteRate "route_rate";
        /// As many requests of its kind wait for control as may.
        QueueFull "queue_full";
        /// A request of its kind has waited for control too long.
        QueueLate "queue_late";
        /// It waits for a lookup of its key, and as many bytes do as may.
        LookupFull "lookup_full";
    }
}

dense! {
    /// What keeps a worker from accepting.
    DoorCap[2] {
        /// As many connections are open as may be.
        Connections "connections";
        /// As many handshakes are in progress as may be.
        Handshakes "handshakes";
    }
}
