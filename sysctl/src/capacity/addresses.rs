//! The "65k connections" limit, and whom it binds.
//!
//! A TCP connection is known by four things: client address, client port, server address, server port. The last two and
//! the first being the same, only the client's port tells connections apart, and it has 16 bits. So between one client
//! address and one server address and port there are at most some 64,000 connections, those included whose port still
//! rests after the close. Agents with addresses of their own never come near it, whatever their number; a NAT gateway
//! or a load balancer is one client address for all of them, and does.

use super::ceil;
use super::fact::OPEN_S;
use super::load::Load;

/// Ports that Linux gives to outgoing connections by default: `ip_local_port_range` 32768–60999.
pub(super) const PORTS_DEFAULT: f64 = 28_232.0;
/// Ports from 1024 to 65535.
pub(super) const PORTS_ALL: f64 = 64_512.0;
/// How long a port rests after a close (`TIME_WAIT`) at the end that closed first. That is the agent's side: a balancer
/// that makes connections of its own closes them as the agent closed the one before it.
pub(super) const PORT_REST_S: f64 = 60.0;
/// How long a NAT gateway keeps a closed connection, and the port with it: it makes no connection of its own, but its
/// table remembers the agent's. Source: Linux conntrack, `nf_conntrack_tcp_timeout_time_wait`, 120 s by default
/// (kernel: networking/nf_conntrack-sysctl.rst).
pub(super) const NAT_PORT_REST_S: f64 = 120.0;
/// As [`PORT_REST_S`], with `net.ipv4.tcp_tw_reuse=1` at that end.
pub(super) const REUSED_PORT_REST_S: f64 = 1.0;

/// Ports of one client address that a whole load occupies, resting ones included.
pub(super) fn occupied(requests_per_s: f64, held: f64, rest_s: f64) -> f64 {
    requests_per_s * (OPEN_S + rest_s) + held
}

/// Server addresses that one client address needs for a whole load.
pub(super) fn needed(load: &Load, ports: f64, rest_s: f64) -> u64 {
    ceil(occupied(load.requests(), load.held, rest_s) / ports).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_from_rate_and_rest() {
        // 35,000 connections a second, each port taken for 60.4 s, or by a NAT for 120.4 s.
        assert_eq!(ceil(occupied(35_000.0, 0.0, PORT_REST_S)), 2_114_000);
        assert_eq!(ceil(occupied(35_000.0, 0.0, NAT_PORT_REST_S)), 4_214_000);
        assert_eq!(ceil(2_114_000.0 / PORTS_ALL), 33);
        assert_eq!(ceil(2_114_000.0 / PORTS_DEFAULT), 75);
        // 10 connections a second and 4 that are held.
        assert!((occupied(10.0, 4.0, REUSED_PORT_REST_S) - 18.0).abs() < 1e-9);
        assert_eq!(ceil(PORTS_ALL), 65_535 - 1024 + 1);
        assert_eq!(ceil(PORTS_DEFAULT), 60_999 - 32_768 + 1);
    }
}
