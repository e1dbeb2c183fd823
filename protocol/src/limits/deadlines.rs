//! How long things may take. Deadlines are absolute: from the moment that each names.

use std::time::Duration;

/// An agent gives up after this time, from connect to the last byte; so do we, from accept.
pub const EXCHANGE_DEADLINE: Duration = Duration::from_secs(16);
/// When a worker stops waiting for an answer: early enough that the agent still hears the refusal.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(15);
/// From accept until a held read is answered at the latest: work that falls due at its end still has the time to come
/// from control within [`ANSWER_DEADLINE`].
pub const HELD_READ_DEADLINE: Duration = Duration::from_secs(12);
/// From accept to the end of the PROXY header, where one is due.
pub const PROXY_HEADER_DEADLINE: Duration = Duration::from_secs(3);
/// From accept to the end of the TLS handshake, unless an option makes it shorter.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// From the first byte of a head (or the end of the handshake) to its last, unless an option makes it shorter.
pub const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// From the ClientHello to accept, unless an option makes it shorter. What is left of the agent's time is enough for the
/// answer of a store that is slow.
pub const QUEUE_AGE_MAX: Duration = Duration::from_secs(10);
/// How long a worker's queue stands until its overload is said to last, by default: herds of 15,000 agents are served by
/// then.
pub const QUEUE_BURST_MAX: Duration = Duration::from_secs(5);
/// Longest wait for accept under lasting overload, by default.
pub const QUEUE_AGE_LASTING: Duration = Duration::from_millis(10);
/// The option for it is no shorter, since the kernel counts in ticks of 4 ms.
pub const QUEUE_AGE_LASTING_MIN: Duration = Duration::from_millis(8);
/// Options for these are no shorter: a busy machine needs as long, and the kernel counts in ticks of 4 ms.
pub const OPTION_DEADLINE_MIN: Duration = Duration::from_millis(50);
/// From the end of the answer to the peer's close.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// The keys of session tickets change this often. Clients are told to keep a ticket for as long; by when in its key's period
/// it was sealed, it is opened for one period to two.
pub const TICKET_PERIOD: Duration = Duration::from_secs(6 * 3600);

/// First message on a local socket.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// Time between pings on a link.
pub const PING_INTERVAL: Duration = Duration::from_secs(1);
/// A control process remembers the ids of answered batches this long.
pub const DEDUPE_WINDOW: Duration = Duration::from_secs(120);
/// Drain gives agents this long.
pub const DRAIN_DEADLINE: Duration = EXCHANGE_DEADLINE;
/// A key that the store does not know is not looked up again for this long.
pub const NEGATIVE_CACHE_TTL: Duration = Duration::from_secs(5);
/// A worker takes what waits for a slot that is given up, this long: the kernel holds a connection back for three seconds
/// when its first bytes do not come.
pub const SWEEP_TIME: Duration = Duration::from_secs(5);
/// Worker and control report their counters to the supervisor this often.
pub const STATS_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_fit_into_the_exchange() {
        assert!(PROXY_HEADER_DEADLINE < HANDSHAKE_DEADLINE);
        assert!(HANDSHAKE_DEADLINE + HEAD_DEADLINE < EXCHANGE_DEADLINE);
        assert!(ANSWER_DEADLINE < EXCHANGE_DEADLINE);
        assert!(HELD_READ_DEADLINE < ANSWER_DEADLINE);
    }
}
