//! The addresses that agents connect to, as the supervisor sees them.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// One address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddressView {
    /// Where agents connect.
    pub address: SocketAddr,
    /// Whether they can.
    pub state: AddressState,
    /// Why it is not serving, or what is wrong there all the same; empty when nothing is.
    pub reason: String,
    /// Whether we added it to an interface.
    pub is_claimed: bool,
    /// Whether connections begin with a PROXY v2 header.
    pub is_proxied: bool,
    /// Connections open now, over all workers.
    pub open: u64,
    /// Connections accepted since the supervisor started.
    pub accepted: u64,
    /// Connections accepted each second, over the last few seconds.
    pub accepts_per_s: f64,
    /// Requests and connections refused since the supervisor started.
    pub refused: u64,
    /// Its part of `accepts_per_s` of all addresses, 0 to 1; 0 when nobody connects.
    pub share: f64,
    /// Sockets of other programs that listen here, too.
    pub foreign_listeners: u32,
}

/// What an address is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressState {
    /// Listening.
    Serving,
    /// Wanted, but cannot be bound, or has left its interface; tried again.
    Degraded,
    /// Withdrawn: still listening for those who know it, told to nobody any more.
    Leaving,
}

impl AddressState {
    /// Every state, in the order of its discriminant.
    pub const ALL: [Self; 3] = [Self::Serving, Self::Degraded, Self::Leaving];

    /// Lower-case word.
    pub fn label(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Degraded => "degraded",
            Self::Leaving => "leaving",
        }
    }
}
