//! System calls: which a worker has, and which control has not. The tables are pure.
//!
//! What is refused fails with `EPERM` and nothing else happens: a library that tries something in vain must not cost the
//! process. A call that makes threads and cannot be looked into, `clone3`, is said not to exist, so that its predecessor
//! is taken, whose flags can be.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads, sock_filter,
};

/// Which calls a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Those of a worker: what it holds open, Unix sockets, memory, time. It opens no file, makes no other socket, and
    /// executes nothing.
    Worker,
    /// All but those that serve an intruder and not control.
    Control {
        /// Names are looked up, by UDP.
        has_names: bool,
    },
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
type Result<T> = std::result::Result<T, seccompiler::BackendError>;

/// Refuses everything else to all threads of this process, for good.
pub(crate) fn forbid(calls: &Calls) -> std::result::Result<(), String> {
    let programs = programs(calls)?;
    for program in programs {
        apply_filter_all_threads(&program).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// In the order in which they are to be installed, for the last one lets no other follow. Of two verdicts the stricter one
/// holds.
fn programs(calls: &Calls) -> std::result::Result<[BpfProgram; 2], String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
    let refuse = || SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let made = || -> Result<[BpfProgram; 2]> {
        let main = match calls {
            Calls::Worker => SeccompFilter::new(worker()?, refuse(), SeccompAction::Allow, arch)?,
            Calls::Control { has_names } => {
                SeccompFilter::new(control(*has_names)?, SeccompAction::Allow, refuse(), arch)?
            }
        };
        let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        let clone3 = SeccompFilter::new(clone3, SeccompAction::Allow, absent, arch)?;
        let mut program = first();
        let main: BpfProgram = main.try_into()?;
        program.extend(main);
        Ok([clone3.try_into()?, program])
    };
    made().map_err(|error| error.to_string())
}

/// x86-64 has each call a second time, with this bit in its number, for another layout of its arguments. The tables know
/// the first alone, so a table of what is refused would let all of these pass.
#[cfg(target_arch = "x86_64")]
const X32_BIT: u32 = 0x4000_0000;

/// What stands before a table: such calls are refused. Jumps count from where they stand, so a table works behind it.
#[cfg(target_arch = "x86_64")]
fn first() -> BpfProgram {
    let of = |code, k| sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    vec![
        // The number of the call, the first word of what a filter sees.
        of(0x20, 0),
        // Smaller: past the refusal.
        sock_filter {
            jf: 1,
            ..of(0x35, X32_BIT)
        },
        of(0x06, libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs()),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn first() -> BpfProgram {
    BpfProgram::new()
}

/// A rule that holds when all conditions do.
fn when(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<Vec<SeccompRule>> {
    let conditions = conditions
        .iter()
        .map(|(argument, operator, value)| {
            // Numbers and flags: what the kernel takes for an int.
            let length = SeccompCmpArgLen::Dword;
            SeccompCondition::new(*argument, length, operator.clone(), *value)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(vec![SeccompRule::new(conditions)?])
}

fn number(value: libc::c_int) -> u64 {
    u64::from(value.unsigned_abs())
}

/// Calls that a worker has whatever their arguments.
const WORKER: &[i64] = &[
    // What is open.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_dup,
    // Sockets.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_restart_syscall,
    // Memory, but for what could be executed.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Time and chance.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    // The process and its threads; the allocator has some. The other filter has the last word on `clone3`.
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// What x86-64 has from before there were better ones.
#[cfg(target_arch = "x86_64")]
const WORKER_OLD: &[i64] = &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const WORKER_OLD: &[i64] = &[];

fn worker() -> Result<Rules> {
    use SeccompCmpOp::{Eq, MaskedEq};
    let all = WORKER.iter().chain(WORKER_OLD);
    let mut rules: Rules = all.map(|call| (*call, Vec::new())).collect();
    let unix = when(&[(0, Eq, number(libc::AF_UNIX))])?;
    rules.insert(libc::SYS_socket, unix.clone());
    rules.insert(libc::SYS_socketpair, unix);
    // To whom the socket belongs, and nobody else: an address, or data before the connection, would be a way out.
    let fast = number(libc::MSG_FASTOPEN);
    rules.insert(
        libc::SYS_sendto,
        when(&[(4, Eq, 0), (3, MaskedEq(fast), 0)])?,
    );
    rules.insert(libc::SYS_sendmsg, when(&[(2, MaskedEq(fast), 0)])?);
    let no_code = when(&[(2, MaskedEq(number(libc::PROT_EXEC)), 0)])?;
    rules.insert(libc::SYS_mmap, no_code.clone());
    rules.insert(libc::SYS_mprotect, no_code);
    rules.insert(libc::SYS_clone, threads_only(true)?);
    rules.insert(
        libc::SYS_prctl,
        when(&[(0, Eq, number(libc::PR_SET_NAME))])?,
    );
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, when(&[(0, Eq, own)])?);
    rules.insert(
        libc::SYS_ioctl,
        when(&[(1, Eq, libc::FIONBIO & 0xffff_ffff)])?,
    );
    // Of what is open; a path would tell what there is.
    let empty_path = number(libc::AT_EMPTY_PATH);
    rules.insert(
        libc::SYS_newfstatat,
        when(&[(3, MaskedEq(empty_path), empty_path)])?,
    );
    rules.insert(
        libc::SYS_statx,
        when(&[(2, MaskedEq(empty_path), empty_path)])?,
    );
    // To ask; to set needs a pointer to new values.
    rules.insert(libc::SYS_prlimit64, when(&[(0, Eq, 0), (2, Eq, 0)])?);
    Ok(rules)
}

/// `clone` that makes a thread, or one that makes a process.
fn threads_only(is_thread: bool) -> Result<Vec<SeccompRule>> {
    let thread = number(libc::CLONE_THREAD);
    let wanted = if is_thread { thread } else { 0 };
    when(&[(0, SeccompCmpOp::MaskedEq(thread), wanted)])
}

/// Calls that control has not.
const NOT_CONTROL: &[i64] = &[
    // Other programs and processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Namespaces and mounts.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // Ways around what is watched elsewhere.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_mknodat,
    libc::SYS_personality,
    libc::SYS_userfaultfd,
    // The kernel and the machine.
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_perf_event_open,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_vhangup,
];

#[cfg(target_arch = "x86_64")]
const NOT_CONTROL_OLD: &[i64] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_mknod,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_kexec_file_load,
];
#[cfg(not(target_arch = "x86_64"))]
const NOT_CONTROL_OLD: &[i64] = &[];

fn control(has_names: bool) -> Result<Rules> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let all = NOT_CONTROL.iter().chain(NOT_CONTROL_OLD);
    let mut rules: Rules = all.map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_clone, threads_only(false)?);
    let [unix, v4, v6] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6].map(number);
    let netlink = number(libc::AF_NETLINK);
    let mut sockets = when(&[(0, Ne, unix), (0, Ne, v4), (0, Ne, v6), (0, Ne, netlink)])?;
    if !has_names {
        // TCP alone, whose ports are bounded elsewhere; and no look at the machine's addresses.
        let (kind, datagram) = (MaskedEq(0xf), number(libc::SOCK_DGRAM));
        for family in [v4, v6] {
            sockets.extend(when(&[(0, Eq, family), (1, kind.clone(), datagram)])?);
        }
        sockets.extend(when(&[(0, Eq, netlink)])?);
    }
    rules.insert(libc::SYS_socket, sockets);
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_makes_a_program() {
        for calls in [
            Calls::Worker,
            Calls::Control { has_names: true },
            Calls::Control { has_names: false },
        ] {
            let [clone3, main] = programs(&calls).unwrap();
            assert!(main.len() > 50 && main.len() < 4096, "{}", main.len());
            assert!(!clone3.is_empty());
            assert!(main.starts_with(&first()));
        }
    }

    #[test]
    fn a_worker_has_nothing_that_control_has_not() {
        for call in NOT_CONTROL.iter().chain(NOT_CONTROL_OLD) {
            assert!(!WORKER.contains(call), "{call}");
        }
    }
}
