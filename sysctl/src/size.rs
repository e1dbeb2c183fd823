//! What is sized for.

/// New connections that one host makes in a second at Fleet's intervals: each of its requests is a connection.
const CONNECTIONS_PER_HOST_S: f64 = 0.117;

/// A gateway and the machine under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Agents.
    pub hosts: u64,
    /// Worker processes; one per core. Never 0.
    pub cores: u64,
    /// Memory of the machine, bytes.
    pub memory_bytes: u64,
    /// A page of memory, bytes. Never 0.
    pub page_bytes: u64,
    /// Connections open at the same time, over all workers.
    pub connections: u64,
    /// Listening sockets: addresses times workers.
    pub listeners: u64,
}

impl Size {
    /// Connections of one worker.
    pub fn connections_per_worker(&self) -> u64 {
        self.connections.div_ceil(self.cores.max(1))
    }

    /// Hosts of one worker.
    pub fn hosts_per_worker(&self) -> u64 {
        self.hosts.div_ceil(self.cores.max(1))
    }

    /// New connections in a second at Fleet's intervals.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate; the cast saturates"
    )]
    pub fn connections_per_s(&self) -> u64 {
        (self.hosts as f64 * CONNECTIONS_PER_HOST_S).ceil() as u64
    }
}
