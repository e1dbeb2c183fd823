//! Supervisor ↔ child, over the socket pair that the child inherits as descriptor [`CHANNEL_FD`].
//!
//! The supervisor speaks first ([`ToChild::StartWorker`] or [`ToChild::StartControl`]); so configuration and secrets
//! never stand in arguments or environment. End of file on this socket means that the supervisor is gone: the child
//! drains and exits.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::address::AddressView;
use crate::config::Config;
use crate::frame::{Kind, Message};
use crate::ids::{BootNonce, Generation, SlotIndex};
use crate::limits::Allowed;
use crate::networks::Networks;
use crate::sandbox::{Confine, Sandbox, SandboxView};
use crate::secret::Secret;
use crate::stats::{ControlStats, WorkerStats};
use crate::tickets::TicketKeys;

/// Where a child finds its channel.
pub const CHANNEL_FD: i32 = 3;
/// Most descriptors that come with one [`ToChild::Listen`]; the kernel takes no more than 253.
pub const FDS_PER_MESSAGE_MAX: usize = 128;
/// Exit code of a child that must not be started again (bad configuration, lost descriptor).
pub const EXIT_FATAL: i32 = 70;

/// What the supervisor says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToChild {
    /// First message to a worker.
    StartWorker(Box<StartWorker>),
    /// First message to control.
    StartControl(Box<StartControl>),
    /// Finish what is open, take nothing new, exit 0 within the time.
    Drain {
        /// Milliseconds until the hard end.
        deadline_ms: u32,
    },
    /// To control only, each second: all slots, for `/metrics`.
    Gateway(Box<Gateway>),
    /// To a worker: accept on these, too. Their descriptors come with this message, in the same order; the numbers in it
    /// mean nothing.
    Listen(Vec<Listener>),
    /// To a worker: accept what waits on these addresses, then close their listeners.
    Withdraw(Vec<SocketAddr>),
    /// To a worker: the keys of session tickets have changed.
    Tickets(TicketKeys),
    /// To a worker: take what waits on these listeners of a slot that is given up, for
    /// [`SWEEP_TIME`](crate::limits::SWEEP_TIME), and let go of them. Their descriptors come as with [`Self::Listen`].
    Sweep(Vec<Listener>),
    /// A reload: what can be taken while serving is to be taken.
    Reload(Box<Reload>),
    /// To a worker: what may be taken in has changed, or over how many slots it is divided.
    Limits(Box<SlotLimits>),
}

impl Message for ToChild {
    const KIND: Kind = Kind::ToChild;
}

/// What a worker needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartWorker {
    /// Its place.
    pub slot: SlotIndex,
    /// The supervisor's life.
    pub generation: Generation,
    /// The core to pin itself to.
    pub cpu: Option<u16>,
    /// Listening sockets and their inherited descriptors.
    pub listeners: Vec<Listener>,
    /// `None` when TLS is ended elsewhere.
    pub tls: Option<StartTls>,
    /// Control's link socket.
    pub link_path: PathBuf,
    /// Control's socket for everything that is not an agent path.
    pub tunnel_path: PathBuf,
    /// The whole configuration.
    pub config: Config,
    /// What it does to itself before it serves.
    pub confine: Confine,
}

/// What a gateway may take in, and who shares it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotLimits {
    /// Of the whole gateway.
    pub allowed: Allowed,
    /// Slots that serve now, at least 1.
    pub slots: u16,
}

/// One inherited listening socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its number in the child.
    pub fd: i32,
    /// Who may connect, each time with a PROXY v2 header; none: anybody, without one.
    pub balancers: Option<Networks>,
}

/// What a worker needs for TLS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartTls {
    /// The first is shown to whoever asks for no name that another one covers; never empty.
    pub identities: Vec<TlsIdentity>,
    /// What clients are asked for; `None`: nothing.
    pub client_trust: Option<ClientTrust>,
    /// Of session tickets.
    pub tickets: TicketKeys,
}

/// Whose certificates clients may show: PEM texts, checked by the supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientTrust {
    /// Authorities, at least one.
    pub ca_pem: String,
    /// Their revocation lists; may be empty.
    pub crl_pem: String,
}

/// PEM texts, checked by the supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TlsIdentity {
    /// Leaf first.
    pub cert_chain_pem: String,
    /// PKCS#8, SEC1 or PKCS#1.
    pub key_pem: Secret,
    /// What it covers: names, wildcards such as `*.example.com`, addresses.
    pub names: Vec<String>,
}

/// What a running child is told anew.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reload {
    /// For new handshakes; `None`: stays as it is. Of no concern to control.
    pub tls: Option<StartTls>,
    /// As in its first message, with the options that have changed.
    pub config: Config,
}

/// A certificate that serves, or that clients' certificates are judged by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateView {
    /// Where it was read.
    pub file: String,
    /// The option that names the file; empty for the one that the server has made.
    pub option: String,
    /// When it expires, seconds since 1970; of several authorities in one file the first to do so.
    pub not_after_s: i64,
}

/// What control needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartControl {
    /// The supervisor's life.
    pub generation: Generation,
    /// Inherited Unix listener for workers' links.
    pub link_fd: i32,
    /// Inherited Unix listener for tunnels.
    pub tunnel_fd: i32,
    /// Inherited Unix listener for local operators.
    pub operator_fd: i32,
    /// Absolute.
    pub state_dir: PathBuf,
    /// Taken into the store when it has no enroll secret yet.
    pub first_enroll_secret: Secret,
    /// The whole configuration.
    pub config: Config,
    /// What it does to itself before it serves.
    pub confine: Confine,
    /// Whom workers are, when they are somebody else.
    pub worker_uid: Option<u32>,
}

/// What a child says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromChild {
    /// It serves.
    Ready {
        /// This process.
        boot: BootNonce,
        /// What it can still do.
        sandbox: Sandbox,
    },
    /// It cannot serve and a restart would not help; one line that says what to do. It exits with [`EXIT_FATAL`].
    Fatal {
        /// For the operator; no secrets.
        reason: String,
    },
    /// Each second, from a worker. Also the sign of life.
    Worker(Box<WorkerStats>),
    /// Each second, from control. Also the sign of life.
    Control(Box<ControlStats>),
}

impl Message for FromChild {
    const KIND: Kind = Kind::FromChild;
}

/// All slots and addresses, as the supervisor sees them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gateway {
    /// One for each slot, in order.
    pub slots: Vec<SlotView>,
    /// Restarts of control.
    pub control_restarts: u64,
    /// Control processes that stood still and were ended for it.
    pub control_hangs: u64,
    /// Whether the whole server is finishing.
    pub is_draining: bool,
    /// One for each address that agents may connect to, in the order of the configuration.
    pub addresses: Vec<AddressView>,
    /// Kernel settings that this configuration needs, as they were at start.
    pub settings: Vec<SettingView>,
    /// Certificates in use, those that serve first.
    pub certificates: Vec<CertificateView>,
    /// Why the certificates' files, as they are now, are not in use; empty when they are.
    pub certificate_trouble: String,
    /// How processes are confined, those that have said so.
    pub sandboxes: Vec<SandboxView>,
}

/// One kernel setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingView {
    /// Such as `net.core.somaxconn`.
    pub key: String,
    /// What it is.
    pub now: String,
    /// What this configuration needs, at least.
    pub wanted: String,
    /// Whether that is enough; `None` when it cannot be told here.
    pub holds: Option<bool>,
}

/// One slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlotView {
    /// Which.
    pub slot: SlotIndex,
    /// What it is doing.
    pub state: SlotState,
    /// The process, if there is one.
    pub pid: Option<u32>,
    /// Seconds since that process started.
    pub uptime_s: u64,
    /// Processes that followed the first.
    pub restarts: u64,
    /// Exchanges per second over the last few seconds.
    pub exchanges_per_s: f64,
    /// Last report.
    pub stats: WorkerStats,
    /// How the last process ended; empty when none has.
    pub last_end: String,
    /// Processes that stood still and were ended for it.
    pub hangs: u64,
    /// Why it is parked; empty when it is not.
    pub parked_for: String,
    /// Seconds until a process is started again; `None` when none is due.
    pub retry_in_s: Option<u64>,
    /// There are to be fewer workers, and this slot goes when its process has finished.
    pub is_leaving: bool,
}

/// States of a slot, and of control's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotState {
    /// Process started, not ready yet.
    Starting,
    /// Serving.
    Ready,
    /// Finishing.
    Draining,
    /// Waiting to be started again.
    Backoff,
    /// Given up after quick deaths or a fatal exit.
    Parked,
    /// Ended on purpose.
    Stopped,
}

impl SlotState {
    /// Every state, in the order of its discriminant.
    pub const ALL: [Self; 6] = [
        Self::Starting,
        Self::Ready,
        Self::Draining,
        Self::Backoff,
        Self::Parked,
        Self::Stopped,
    ];

    /// Lower-case word.
    pub fn label(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Backoff => "backoff",
            Self::Parked => "parked",
            Self::Stopped => "stopped",
        }
    }
}
