//! Ports for servers that cannot be told to choose one themselves.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;

/// Below the range from which the kernel gives ports to whoever asks for none (32,768 and up), so that no client and no
/// other server gets one of these between our look and the server's bind, or while the server is stopped.
const PORTS: RangeInclusive<u16> = 15_000..=31_999;

/// A port on which nobody on 127.0.0.1 listens, TCP or UDP.
pub fn free() -> u16 {
    loop {
        let port = fastrand::u16(PORTS);
        let address = (Ipv4Addr::LOCALHOST, port);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return port;
        }
    }
}
