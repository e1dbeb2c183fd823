//! What a plan rests on besides measurements.

/// Part of a core's time that a plan lets be used.
pub(super) const UTILISATION: f64 = 0.5;
/// From accept to close of one exchange, seconds.
pub(super) const OPEN_S: f64 = 0.4;
/// Room for connections over the mean.
pub(super) const BURST: f64 = 4.0;
/// One host in the table of a worker, and of control.
pub(super) const HOST_WORKER_BYTES: f64 = 77.0;
pub(super) const HOST_CONTROL_BYTES: f64 = 110.0;
/// Kernel memory of one connection.
pub(super) const KERNEL_CONNECTION_BYTES: f64 = 3784.0;
/// Ethernet, IPv4 and TCP with timestamps.
pub(super) const HEADER_BYTES: f64 = 66.0;
/// Rows of one statement of seen marks.
pub(super) const SEEN_ROWS: f64 = 2048.0;
/// Cores of the largest machine that a plan puts one gateway on.
pub(super) const MACHINE_CORES_MAX: u64 = 64;

/// Something known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fact {
    /// Options of the command line.
    Given,
    /// A connection and a handshake for each request.
    Handshake,
    /// How many log requests lines become.
    LogTurns,
    /// How often details are due.
    Hourly,
    /// Half of a core.
    Headroom,
    /// Many cores from one.
    Linear,
    /// Largest machine.
    Machine,
    /// Time that a connection is open.
    OpenTime,
    /// Room for bursts.
    Burst,
    /// As many connections as the advised configuration lets in.
    Permitted,
    /// Held reads.
    Hold,
    /// Descriptors besides connections.
    Reserve,
    /// What a known host takes.
    HostTables,
    /// A full load of the feed.
    TwoTables,
    /// What the kernel keeps.
    KernelSocket,
    /// Bound of what waits.
    Queues,
    /// Seen marks.
    Seen,
    /// A sum of lines above.
    Sum,
    /// What is around TCP's payload.
    Headers,
    /// The limit of ports.
    Ports,
    /// How long a port rests at this machine or at a balancer.
    Rest,
    /// How long a port rests at a NAT gateway.
    NatRest,
}

impl Fact {
    /// Every one.
    pub const ALL: [Self; 22] = [
        Self::Given,
        Self::Handshake,
        Self::LogTurns,
        Self::Hourly,
        Self::Headroom,
        Self::Linear,
        Self::Machine,
        Self::OpenTime,
        Self::Burst,
        Self::Permitted,
        Self::Hold,
        Self::Reserve,
        Self::HostTables,
        Self::TwoTables,
        Self::KernelSocket,
        Self::Queues,
        Self::Seen,
        Self::Sum,
        Self::Headers,
        Self::Ports,
        Self::Rest,
        Self::NatRest,
    ];

    /// As it stands in brackets.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::Handshake => "handshake",
            Self::LogTurns => "log-turns",
            Self::Hourly => "hourly",
            Self::Headroom => "headroom",
            Self::Linear => "linear",
            Self::Machine => "machine",
            Self::OpenTime => "open-time",
            Self::Burst => "burst",
            Self::Permitted => "permitted",
            Self::Hold => "hold",
            Self::Reserve => "reserve",
            Self::HostTables => "host-tables",
            Self::TwoTables => "two-tables",
            Self::KernelSocket => "kernel-socket",
            Self::Queues => "queues",
            Self::Seen => "seen",
            Self::Sum => "sum",
            Self::Headers => "headers",
            Self::Ports => "ports",
            Self::Rest => "rest",
            Self::NatRest => "nat-rest",
        }
    }

    /// A few words for the legend of a page; `deploy/capacity.md` says more.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Given => "options and profile",
            Self::Handshake => "each request is a connection and a handshake",
            Self::LogTurns => "a request a line, at most 2 a log turn",
            Self::Hourly => "details are due once an hour",
            Self::Headroom => "used to 50 %",
            Self::Linear => "extrapolated from 1 worker",
            Self::Machine => "at most 64 cores each",
            Self::OpenTime => "open 0.4 s: 4 round trips of 100 ms",
            Self::Burst => "4 x the mean, and no less than the default",
            Self::Permitted => "limit of each worker x all workers",
            Self::Hold => "held for 7.5 to 10 s",
            Self::Reserve => "256 besides connections",
            Self::HostTables => "110 B in control, 77 B in each worker",
            Self::TwoTables => "twice while the feed loads",
            Self::KernelSocket => "3,784 B of kernel objects each",
            Self::Queues => "bounds in the code",
            Self::Seen => "marks each 30 s, 2,048 a statement",
            Self::Sum => "sum of the lines above",
            Self::Headers => "66 B a segment, half each way",
            Self::Ports => "65k limit: deploy/capacity.md",
            Self::Rest => "a balancer's port rests 60 s (TIME_WAIT), tuned 1 s",
            Self::NatRest => "a NAT's port rests 120 s (conntrack)",
        }
    }
}
