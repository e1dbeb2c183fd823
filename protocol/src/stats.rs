//! Counters that workers and control report to the supervisor, which hands all of them to control for `/metrics`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::agent::Route;
use crate::link::BatchKind;
use crate::reject::Reject;
pub use crate::shed::{DoorCap, Shed};
pub use crate::tls_stats::{TlsFailure, TlsSession};

/// Upper bounds of the histogram buckets, in microseconds; the last bucket has none.
pub const BUCKET_BOUNDS_US: [u64; 14] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000, 2_500_000,
    10_000_000, 16_000_000,
];

/// Bounds of the buckets that count things instead of time, such as requests in a batch.
pub const BUCKET_BOUNDS_COUNT: [u64; 14] = [
    1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192,
];

/// A histogram with fixed buckets. Cumulative over the process's life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// Observations per bucket (not cumulative over buckets); one more than there are bounds.
    pub buckets: [u64; 15],
    /// Sum of all observations.
    pub sum: u64,
}

impl Histogram {
    /// Adds an observation to the bucket that `bounds` gives it.
    pub fn observe(&mut self, value: u64, bounds: &[u64; 14]) {
        let index = bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get_mut(index) {
            *bucket += 1;
        }
        self.sum += value;
    }

    /// Adds a duration in microseconds.
    pub fn observe_us(&mut self, value_us: u64) {
        self.observe(value_us, &BUCKET_BOUNDS_US);
    }

    /// Observations in all.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// How an exchange on an agent path ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Answered from the worker's memory.
    Alone,
    /// Answered through control.
    Control,
    /// Refused; the reasons are counted apart.
    Refused,
    /// The connection broke before the answer was written.
    Broken,
    /// The agent went away while its read was held with nothing due: it lost nothing.
    Abandoned,
}

impl Outcome {
    /// Every outcome, in the order of its discriminant.
    pub const ALL: [Self; 5] = [
        Self::Alone,
        Self::Control,
        Self::Refused,
        Self::Broken,
        Self::Abandoned,
    ];

    /// Metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Control => "control",
            Self::Refused => "refused",
            Self::Broken => "broken",
            Self::Abandoned => "abandoned",
        }
    }
}

/// What ended the holding of a distributed read with nothing due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HoldEnd {
    /// Its time was over.
    Expired,
    /// Work for its host fell due.
    Work,
    /// The agent went away.
    Gone,
    /// The worker drains, or its address was withdrawn.
    Drained,
    /// Its host sent another read.
    Superseded,
    /// The worker has no connections to spare; also counted when a read is not held at all for that.
    Crowded,
}

impl HoldEnd {
    /// Every end, in the order of its discriminant.
    pub const ALL: [Self; 6] = [
        Self::Expired,
        Self::Work,
        Self::Gone,
        Self::Drained,
        Self::Superseded,
        Self::Crowded,
    ];

    /// Metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Work => "work",
            Self::Gone => "gone",
            Self::Drained => "drained",
            Self::Superseded => "superseded",
            Self::Crowded => "crowded",
        }
    }
}

/// How a TLS handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handshake {
    /// Complete.
    Done,
    /// The peer went away first.
    Abandoned,
    /// Not within its deadline.
    Late,
    /// TLS error or alert.
    Failed,
}

impl Handshake {
    /// Every outcome, in the order of its discriminant.
    pub const ALL: [Self; 4] = [Self::Done, Self::Abandoned, Self::Late, Self::Failed];

    /// Metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Abandoned => "abandoned",
            Self::Late => "late",
            Self::Failed => "failed",
        }
    }
}

/// What came of the PROXY header that a connection began with, or should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProxyHeader {
    /// Taken, with a client's address.
    Taken,
    /// Taken; the connection speaks for its own peer, such as a health check.
    Local,
    /// Refused: the connection began with something else.
    Missing,
    /// Refused: the peer is in none of the networks that may send one.
    Untrusted,
    /// Refused: not a header that anybody may send, or its checksum is wrong.
    Malformed,
    /// Refused: not whole within its deadline.
    Late,
    /// The peer went away before it was whole.
    Abandoned,
    /// Refused: sent where none is due, or a second one.
    Unexpected,
}

impl ProxyHeader {
    /// Every outcome, in the order of its discriminant.
    pub const ALL: [Self; 8] = [
        Self::Taken,
        Self::Local,
        Self::Missing,
        Self::Untrusted,
        Self::Malformed,
        Self::Late,
        Self::Abandoned,
        Self::Unexpected,
    ];

    /// Whether the connection is refused for it.
    pub fn is_refused(self) -> bool {
        !matches!(self, Self::Taken | Self::Local | Self::Abandoned)
    }

    /// Metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Local => "local",
            Self::Missing => "missing",
            Self::Untrusted => "untrusted",
            Self::Malformed => "malformed",
            Self::Late => "late",
            Self::Abandoned => "abandoned",
            Self::Unexpected => "unexpected",
        }
    }
}

/// Counters of one batch kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchStats {
    /// Requests a batch, [`BUCKET_BOUNDS_COUNT`].
    pub requests: Histogram,
    /// Age of the oldest request when its batch was sent, microseconds.
    pub age_us: Histogram,
    /// From send to reply, microseconds.
    pub reply_us: Histogram,
    /// Requests waiting now.
    pub waiting: u32,
    /// Batches in flight now.
    pub in_flight: u32,
    /// Batches sent again after a reconnect.
    pub resent: u64,
}

/// One worker's counters since it started, and its gauges now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStats {
    /// Connections open now.
    pub open_connections: u32,
    /// Connections accepted.
    pub accepted: u64,
    /// Accepts that failed for want of descriptors.
    pub accept_errors: u64,
    /// Handshakes by [`Handshake`].
    pub handshakes: [u64; Handshake::ALL.len()],
    /// PROXY headers by [`ProxyHeader`].
    pub proxy_headers: [u64; ProxyHeader::ALL.len()],
    /// Requests on agent paths whose client's address came from a header of a trusted proxy.
    pub forwarded_requests: u64,
    /// Exchanges by [`Route`] and [`Outcome`].
    pub exchanges: [[u64; Outcome::ALL.len()]; Route::ALL.len()],
    /// From the end of the request, or of its hold, to the last byte of the answer, by [`Route`], microseconds.
    pub exchange_us: [Histogram; Route::ALL.len()],
    /// Refusals by [`Reject`].
    pub rejects: [u64; Reject::ALL.len()],
    /// Log and write requests dropped because they can never be accepted.
    pub lost_requests: u64,
    /// By [`BatchKind`].
    pub batches: [BatchStats; BatchKind::ALL.len()],
    /// Tunnels open now.
    pub tunnels: u32,
    /// Hosts in the table.
    pub hosts: u32,
    /// Answers in the table.
    pub answers: u32,
    /// Position in the feed.
    pub feed_seq: u64,
    /// Whether the link to control stands.
    pub is_linked: bool,
    /// Links established.
    pub links: u64,
    /// Messages on the link that made no sense, such as answers to unknown requests.
    pub link_oddities: u64,
    /// Resident memory, bytes.
    pub rss_bytes: u64,
    /// One for each listener that has been accepted from, or may be.
    pub listeners: Vec<ListenerStats>,
    /// Distributed reads held now.
    pub held_reads: u32,
    /// Held reads by [`HoldEnd`].
    pub hold_ends: [u64; HoldEnd::ALL.len()],
    /// Connections that failed in TLS, by [`TlsFailure`].
    pub tls_failures: [u64; TlsFailure::ALL.len()],
    /// Handshakes that were done, by [`TlsSession`].
    pub tls_sessions: [u64; TlsSession::ALL.len()],
    /// Whether it has as many connections as it may have, and lets others wait.
    pub is_full: bool,
    /// Connections and requests that were not admitted, by [`Shed`].
    pub shed: [u64; Shed::ALL.len()],
    /// Times that the door was shut, by [`DoorCap`].
    pub door_shut: [u64; DoorCap::ALL.len()],
    /// Connections that may be open.
    pub open_connections_max: u32,
    /// Handshakes in progress now.
    pub handshaking: u32,
    /// Turns of handshakes that had to wait for the next lap of the event loop.
    pub deferred_turns: u64,
}

/// One listener's counters since its worker got it, and its gauges now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStats {
    /// Where it listens.
    pub address: SocketAddr,
    /// Connections open now.
    pub open: u32,
    /// Connections accepted.
    pub accepted: u64,
    /// Requests and connections refused.
    pub refused: u64,
}

impl WorkerStats {
    /// Exchanges of every route and outcome.
    pub fn exchanges_total(&self) -> u64 {
        self.exchanges.iter().flatten().sum()
    }
}

/// State of something that control depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// `sqlite`, `mysql`, `redis`, `in-process bus`, `journal`.
    pub name: String,
    /// Whether it works now.
    pub is_healthy: bool,
    /// Where it is, or why it does not work; no secrets.
    pub detail: String,
}

/// Control's summary for `status`. Its full metrics it serves itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlStats {
    /// Store, bus, journal.
    pub dependencies: Vec<Dependency>,
    /// Hosts enrolled.
    pub hosts: u64,
    /// Links that stand.
    pub links: u32,
    /// Resident memory, bytes.
    pub rss_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_dense() {
        for (index, outcome) in ProxyHeader::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
        }
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
        }
        for (index, end) in HoldEnd::ALL.into_iter().enumerate() {
            assert_eq!(end as usize, index);
        }
    }

    #[test]
    fn histogram_buckets_are_upper_bounds() {
        let mut histogram = Histogram::default();
        for value in [0, 50, 51, 16_000_000, 16_000_001] {
            histogram.observe_us(value);
        }
        assert_eq!(histogram.count(), 5);
        assert_eq!(histogram.buckets[0], 2);
        assert_eq!(histogram.buckets[1], 1);
        assert_eq!(histogram.buckets[13], 1);
        assert_eq!(histogram.buckets[14], 1);
    }
}
