//! The one table of settings: what each is, what it should be, why, and what that costs.

use crate::kernel::Kernel;
use crate::size::Size;
use crate::value::Rule;

/// Where a setting lives, which decides how it is read, changed and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file of /proc/sys.
    Sysctl,
    /// A file of /proc/sys that is there while this module is loaded.
    Module(&'static str),
    /// The bound on open files of whoever logs in.
    Rlimit,
    /// A line in the unit's `[Service]` section.
    Unit,
    /// A file of the control group that this process is in; given from outside, so it is only looked at.
    Cgroup,
    /// Only looked at: it can be good elsewhere to have it otherwise. The file is below /proc/sys.
    Advice,
    /// As [`Place::Advice`], with this file.
    AdviceFile(&'static str),
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its name: dotted below /proc/sys, else as its files call it.
    pub key: &'static str,
    /// Where it lives.
    pub place: Place,
    /// How values compare.
    pub rule: Rule,
    /// From the size to the value.
    pub wanted: fn(&Size) -> Vec<u64>,
    /// The same in words.
    pub how: &'static str,
    /// The first kernel that has it.
    pub since: Option<Kernel>,
    /// What it is for, in a sentence.
    pub why: &'static str,
    /// What raising it costs.
    pub cost: &'static str,
    /// Where the facts are from.
    pub source: &'static str,
}

impl Setting {
    /// Whether it is only looked at and never counts.
    pub fn is_advice(&self) -> bool {
        matches!(self.place, Place::Advice | Place::AdviceFile(_))
    }

    /// Whether `tune --apply` can change it while the machine runs.
    pub fn is_sysctl(&self) -> bool {
        matches!(self.place, Place::Sysctl | Place::Module(_))
    }

    /// The place as people read it.
    pub fn place_name(&self) -> String {
        match self.place {
            Place::Sysctl | Place::Advice => "sysctl".into(),
            Place::Module(module) => format!("sysctl of the module {module}"),
            Place::Rlimit => "limit of a login".into(),
            Place::Unit => "systemd unit".into(),
            Place::Cgroup => "control group".into(),
            Place::AdviceFile(file) => format!("/{file}"),
        }
    }
}

/// The setting of that name.
pub fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// Key of [`Place::Rlimit`].
pub const NOFILE: &str = "nofile";
/// Bounds [`NOFILE`].
pub const NR_OPEN: &str = "fs.nr_open";
/// In the unit.
pub const LIMIT_NOFILE: &str = "LimitNOFILE";
/// In the unit.
pub const TASKS_MAX: &str = "TasksMax";
/// Bounds the backlog of a listener.
pub const SOMAXCONN: &str = "net.core.somaxconn";
/// Memory of all TCP sockets.
pub const TCP_MEM: &str = "net.ipv4.tcp_mem";
/// Ports of outgoing connections.
pub const PORT_RANGE: &str = "net.ipv4.ip_local_port_range";

const NOFILE_MIN: u64 = 1_024_000;
/// Kernel memory of one connection with little in its buffers, bytes; 3 kB were measured, bodies need more.
pub const TCP_BYTES_PER_CONNECTION: u64 = 8192;
/// One tracked connection, bytes, about.
const CONNTRACK_BYTES: u64 = 320;
/// Entries per host: its connections of the 120 s for which a closed one is remembered, and two open.
const CONNTRACK_PER_HOST: u64 = 16;

fn nofile(size: &Size) -> u64 {
    NOFILE_MIN.max(2 * size.connections_per_worker())
}

/// All hosts of a worker at once, as after an outage. Old kernels take no more than 16 bits.
fn queue(size: &Size) -> u64 {
    power_of_two(size.hosts_per_worker()).clamp(4096, 65_535)
}

fn tcp_mem(size: &Size) -> Vec<u64> {
    let bytes = size
        .connections
        .saturating_mul(TCP_BYTES_PER_CONNECTION)
        .min(size.memory_bytes / 2);
    let pages = bytes.div_ceil(size.page_bytes.max(1)).max(4);
    vec![pages / 2, pages / 4 * 3, pages]
}

fn conntrack(size: &Size) -> u64 {
    let affordable = size.memory_bytes / 16 / CONNTRACK_BYTES;
    size.hosts
        .saturating_mul(CONNTRACK_PER_HOST)
        .min(affordable)
        .max(65_536)
}

fn power_of_two(number: u64) -> u64 {
    number.checked_next_power_of_two().unwrap_or(u64::MAX)
}

const IP_SYSCTL: &str = "kernel: networking/ip-sysctl.rst";
const NET_SYSCTL: &str = "kernel: admin-guide/sysctl/net.rst";
const FS_SYSCTL: &str = "kernel: admin-guide/sysctl/fs.rst";
const KERNEL_SYSCTL: &str = "kernel: admin-guide/sysctl/kernel.rst";

/// Every setting. What bounds another stands before it, since they are changed in this order.
pub static SETTINGS: &[Setting] = &[
    Setting {
        key: NR_OPEN,
        place: Place::Sysctl,
        rule: Rule::AtLeast,
        wanted: |size| vec![power_of_two(nofile(size) + 1)],
        how: "the power of two above nofile",
        since: None,
        why: "No process can be allowed more open files than this, so nofile stays below it.",
        cost: "Programs that close every possible descriptor at their start take longer if their own limit follows it.",
        source: FS_SYSCTL,
    },
    Setting {
        key: "fs.file-max",
        place: Place::Sysctl,
        rule: Rule::AtLeast,
        wanted: |size| {
            vec![(2 * nofile(size)).max(2 * (size.connections + size.listeners) + 262_144)]
        },
        how: "twice nofile, or twice connections and listeners and 262,144 more",
        since: None,
        why: "Open files of the whole machine; beyond it nobody but root can open or accept anything.",
        cost: "Nothing until they are open; then about 256 bytes of kernel memory each.",
        source: FS_SYSCTL,
    },
    Setting {
        key: NOFILE,
        place: Place::Rlimit,
        rule: Rule::AtLeast,
        wanted: |size| vec![nofile(size); 2],
        how: "1,024,000 soft and hard, or twice the connections of a worker",
        since: None,
        why: "Every connection is an open file of its worker; a worker at its limit accepts no more agents.",
        cost: "Nothing until they are open. It holds from the next login; a login fails whose limit is above fs.nr_open.",
        source: "the note that this project grew from; getrlimit(2), pam_limits(8)",
    },
    Setting {
        key: LIMIT_NOFILE,
        place: Place::Unit,
        rule: Rule::AtLeast,
        wanted: |size| vec![nofile(size); 2],
        how: "as nofile",
        since: None,
        why: "The same limit for a server that systemd starts, which reads no login's limits.",
        cost: "Nothing until they are open. It holds after systemctl daemon-reload and a restart of the unit.",
        source: "systemd.exec(5)",
    },
    Setting {
        key: TASKS_MAX,
        place: Place::Unit,
        rule: Rule::AtLeast,
        wanted: |size| vec![1024 + 16 * size.cores],
        how: "1,024 and 16 per worker",
        since: None,
        why: "Processes and threads of the unit; at the limit a dead worker cannot be started again.",
        cost: "A runaway program in the unit is stopped later.",
        source: "systemd.resource-control(5)",
    },
    Setting {
        key: "pids.max",
        place: Place::Cgroup,
        rule: Rule::AtLeast,
        wanted: |size| vec![1024 + 16 * size.cores],
        how: "1,024 and 16 per worker",
        since: None,
        why: "Processes and threads of this control group; who runs it sets it (TasksMax= in a unit, --pids-limit in a container).",
        cost: "A runaway program in the group is stopped later.",
        source: "kernel: admin-guide/cgroup-v2.rst",
    },
    Setting {
        key: "kernel.pid_max",
        place: Place::Sysctl,
        rule: Rule::AtLeast,
        wanted: |size| vec![32_768.max(64 * size.cores)],
        how: "32,768, or 64 per worker",
        since: None,
        why: "Process numbers of the whole machine, threads included.",
        cost: "Longer numbers in ps.",
        source: KERNEL_SYSCTL,
    },
    Setting {
        key: "kernel.threads-max",
        place: Place::Sysctl,
        rule: Rule::AtLeast,
        wanted: |size| vec![16_384.max(64 * size.cores)],
        how: "16,384, or 64 per worker",
        since: None,
        why: "Threads of the whole machine.",
        cost: "Threads that nobody bounds may fill the memory first.",
        source: KERNEL_SYSCTL,
    },
    Setting {
        key: SOMAXCONN,
        place: Place::Sysctl,
        rule: Rule::AtLeast,
        wanted: |size| vec![queue(size)],
        how: "hosts of a worker, up to a power of two, 4,096 to 65,535",
        since: None,
        why: "The smaller of this and server.backlog is the queue of a listener; when it is full, agents wait for their repeated SYN.",
        cost: "About 2 kB of kernel memory per connection that really waits.",
        source: NET_SYSCTL,
    },
    Setting {
        key: "net.ipv4.tcp_max_syn_backlog",
        place: Place::Sysctl,
        rule: Rule::AtLeast,
        wanted: |size| vec![queue(size)],
        how: "as net.core.somaxconn",
        since: None,
        why: "Half-open connections of a listener; newer kernels look at it only while tcp_syncookies is 0.",
        cost: "About 300 bytes of kernel memory per half-open connection.",
        source: IP_SYSCTL,
    },
    Setting {
        key: "net.ipv4.tcp_syncookies",
        place: Place::Sysctl,
        rule: Rule::AtLeast,
        wanted: |_| vec![1],
        how: "1",
        since: None,
        why: "When a listener's queue of half-open connections is full, it answers with cookies and does not drop.",
        cost: "Connections made by a cookie lose some TCP options; cookies also hide that a queue is too short.",
        source: IP_SYSCTL,
    },
    Setting {
        key: "net.ipv4.tcp_migrate_req",
        place: Place::Sysctl,
        rule: Rule::AtLeast,
        wanted: |_| vec![1],
        how: "1",
        since: Some(Kernel(5, 14)),
        why: "Connections that wait at a listener which is closed move to another worker's and are not reset.",
        cost: "Nothing here: every listener of an address is set up alike, which the kernel asks for.",
        source: IP_SYSCTL,
    },
    Setting {
        key: "net.ipv4.tcp_tw_reuse",
        place: Place::Sysctl,
        rule: Rule::Exactly,
        wanted: |_| vec![1],
        how: "1",
        since: None,
        why: "Lets connections that this machine opens (to MySQL, Redis, or from a balancer on it) take a port that an older one has just left; it does nothing for agents' connections, which come in.",
        cost: "Needs TCP timestamps, which are on by default. 2, the default of newer kernels, does it on loopback only. Its dangerous relative tcp_tw_recycle is gone since 4.12.",
        source: IP_SYSCTL,
    },
    Setting {
        key: "net.ipv4.tcp_tw_reuse_delay",
        place: Place::Advice,
        rule: Rule::AtMost,
        wanted: |_| vec![1000],
        how: "1,000 ms, the kernel's default",
        since: Some(Kernel(6, 14)),
        why: "Milliseconds after which tcp_tw_reuse may take such a port again.",
        cost: "Below the tick of the other side's timestamps, late packets may reach the wrong connection.",
        source: IP_SYSCTL,
    },
    Setting {
        key: "net.ipv4.tcp_max_tw_buckets",
        place: Place::Sysctl,
        rule: Rule::AtLeast,
        wanted: |size| vec![power_of_two(size.hosts).clamp(131_072, 1_048_576)],
        how: "hosts, up to a power of two, 131,072 to 1,048,576",
        since: None,
        why: "Closed connections that are remembered for 60 s; only those that this side closes first count, and beyond it the kernel forgets at once.",
        cost: "About 250 bytes of kernel memory for each that is remembered.",
        source: IP_SYSCTL,
    },
    Setting {
        key: "net.ipv4.tcp_slow_start_after_idle",
        place: Place::Sysctl,
        rule: Rule::Exactly,
        wanted: |_| vec![0],
        how: "0",
        since: None,
        why: "A connection that was silent for a while, such as a held read, answers at its former speed.",
        cost: "Its first packets may be more than a network takes that has become slower meanwhile.",
        source: IP_SYSCTL,
    },
    Setting {
        key: PORT_RANGE,
        place: Place::Sysctl,
        rule: Rule::Widest,
        wanted: |_| vec![32_768, 60_999],
        how: "32,768 to 60,999; a load generator or balancer on this machine wants 1,024 to 65,535",
        since: None,
        why: "Ports of connections that this machine opens, one for each connection to the same address and port; agents' connections need none.",
        cost: "A port that a server listens on should lie outside, or a client may have taken it when the server starts.",
        source: IP_SYSCTL,
    },
    Setting {
        key: TCP_MEM,
        place: Place::Sysctl,
        rule: Rule::AtLeast,
        wanted: tcp_mem,
        how: "pages: the third is 8 KiB per connection, half of the memory at most; the others are 1/2 and 3/4 of it",
        since: None,
        why: "Pages that all TCP sockets may fill together: below the first none is saved, above the second they shrink, at the third packets are dropped.",
        cost: "Memory, when sockets really hold that much. For the whole machine: another network namespace does not show it.",
        source: IP_SYSCTL,
    },
    Setting {
        key: "net.ipv4.tcp_rmem",
        place: Place::Sysctl,
        rule: Rule::AtLeast,
        wanted: |_| vec![4096, 32_768, 1 << 20],
        how: "4,096, 32,768 and 1,048,576 bytes",
        since: None,
        why: "Receive buffer of a TCP socket: what it keeps under want of memory, begins with, and may grow to for large logs and carves.",
        cost: "Memory only for what is received and not read yet.",
        source: IP_SYSCTL,
    },
    Setting {
        key: "net.ipv4.tcp_wmem",
        place: Place::Sysctl,
        rule: Rule::AtLeast,
        wanted: |_| vec![4096, 16_384, 1 << 20],
        how: "4,096, 16,384 and 1,048,576 bytes",
        since: None,
        why: "Send buffer of a TCP socket: what it keeps under want of memory, begins with, and may grow to for large configurations.",
        cost: "Memory only for what is sent and not acknowledged yet.",
        source: IP_SYSCTL,
    },
    Setting {
        key: "net.core.rmem_max",
        place: Place::Sysctl,
        rule: Rule::AtLeast,
        wanted: |_| vec![8 << 20],
        how: "8 MiB",
        since: None,
        why: "The largest receive buffer that a UDP socket may ask for; datagrams wait in it while their process is busy.",
        cost: "Memory only while they wait. For the whole machine: another network namespace can only read it.",
        source: NET_SYSCTL,
    },
    Setting {
        key: "net.core.wmem_max",
        place: Place::Sysctl,
        rule: Rule::AtLeast,
        wanted: |_| vec![8 << 20],
        how: "8 MiB",
        since: None,
        why: "The largest send buffer that a UDP socket may ask for.",
        cost: "Memory only while datagrams wait. For the whole machine: another network namespace can only read it.",
        source: NET_SYSCTL,
    },
    Setting {
        key: "net.core.netdev_max_backlog",
        place: Place::Sysctl,
        rule: Rule::AtLeast,
        wanted: |_| vec![16_384],
        how: "16,384",
        since: None,
        why: "Packets of a core that wait between the network card and TCP; beyond it they are dropped.",
        cost: "Memory only while they wait. For the whole machine: another network namespace does not show it.",
        source: NET_SYSCTL,
    },
    Setting {
        key: "net.netfilter.nf_conntrack_max",
        place: Place::Module("nf_conntrack"),
        rule: Rule::AtLeast,
        wanted: |size| vec![conntrack(size)],
        how: "16 per host, 65,536 at least, a sixteenth of the memory at most",
        since: None,
        why: "The firewall remembers each connection for 120 s after its end; when the table is full, new ones are dropped. Better: no tracking for the server's port.",
        cost: "About 320 bytes of kernel memory per entry. For the whole machine: another network namespace can only read it.",
        source: "kernel: networking/nf_conntrack-sysctl.rst",
    },
    Setting {
        key: "transparent_hugepage",
        place: Place::AdviceFile("sys/kernel/mm/transparent_hugepage/enabled"),
        rule: Rule::Avoid(&["always"], "madvise"),
        wanted: |_| Vec::new(),
        how: "madvise or never",
        since: None,
        why: "With always, the kernel gives workers 2 MiB pages for small needs: more memory, and stalls while it makes them.",
        cost: "Other programs on the machine, such as a database, may want it otherwise.",
        source: "kernel: admin-guide/mm/transhuge.rst",
    },
    Setting {
        key: "clocksource",
        place: Place::AdviceFile("sys/devices/system/clocksource/clocksource0/current_clocksource"),
        rule: Rule::Avoid(&["hpet", "acpi_pm", "jiffies"], "tsc"),
        wanted: |_| Vec::new(),
        how: "tsc, or the virtual machine's own",
        since: None,
        why: "With hpet, acpi_pm or jiffies every look at the clock is a slow call into the kernel; workers look often.",
        cost: "The kernel has its reasons when it gives up tsc (see its log); force it only on hardware that is known to be good.",
        source: "kernel: admin-guide/kernel-parameters.txt, clocksource=",
    },
];

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
