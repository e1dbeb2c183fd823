//! Which slot gets the next connection: weights of slots, and the classic BPF program that makes the kernel keep to them.
//!
//! Pure. The kernel runs the program once for each new connection to a port group; what it returns is the index of a
//! socket in the group. A random choice also means that a connection attempt which finds a full queue tries another slot
//! when it is sent again. Needs no privilege.

use nix::libc::{self, sock_filter};

/// A slot that serves and has room.
const WHOLE: u32 = 16;
/// One at its bound of connections: those who get there wait, but so they may with everybody else.
const FULL: u32 = 1;

/// What a slot can do for a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// It takes it at once.
    Ready,
    /// It serves, but holds as many connections as it may.
    Full,
    /// A process will take it from the queue before long: it is starting, about to, or does not report.
    ///
    /// It gets nobody while others serve. The wait would be short, as a killed worker is back in less than a second,
    /// but it may also be the start of a crash loop, and agents are given 16 s for everything.
    Waiting,
    /// Nobody will take it.
    #[default]
    Out,
}

/// How many parts of all new connections each slot gets. When none serves, those get all that will; when nobody will
/// ever, all are 0.
pub(crate) fn weights(slots: &[Readiness]) -> Vec<u32> {
    let serves = |slot: &Readiness| matches!(slot, Readiness::Ready | Readiness::Full);
    let is_served = slots.iter().any(serves);
    let weight = |slot: &Readiness| match slot {
        Readiness::Ready => WHOLE,
        Readiness::Full => FULL,
        Readiness::Waiting if !is_served => WHOLE,
        Readiness::Waiting | Readiness::Out => 0,
    };
    slots.iter().map(weight).collect()
}

/// Offset at which a program finds a random number instead of bytes of the packet.
const RANDOM: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM).cast_unsigned();
/// No index of a socket: the kernel chooses by the hash of the addresses, as without a program.
const BY_HASH: u32 = u32::MAX;

/// The program for a group in which the socket at each index has this weight. With no weight at all the kernel is told to
/// choose by itself.
pub(crate) fn program(weights: &[u32]) -> Vec<sock_filter> {
    let total = weights
        .iter()
        .fold(0_u32, |sum, weight| sum.saturating_add(*weight));
    if total == 0 {
        return vec![take(BY_HASH)];
    }
    let mut program = vec![
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, RANDOM),
        statement(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, total),
    ];
    let mut upper = 0_u32;
    for (index, weight) in (0..).zip(weights) {
        if *weight == 0 {
            continue;
        }
        upper = upper.saturating_add(*weight);
        if upper < total {
            program.push(skip_unless_below(upper));
        }
        program.push(take(index));
    }
    program
}

fn take(index: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, index)
}

/// Leaves the next statement out when the number is `bound` or more.
fn skip_unless_below(bound: u32) -> sock_filter {
    sock_filter {
        jt: 1,
        ..statement(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, bound)
    }
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter {
        // All codes are bits of the lower byte.
        code: u16::try_from(code).unwrap_or_default(),
        jt: 0,
        jf: 0,
        k,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the kernel does with a program of ours.
    fn run(program: &[sock_filter], random: u32) -> u32 {
        let (mut accumulator, mut at) = (0_u32, 0_usize);
        loop {
            let statement = &program[at];
            at += 1;
            match u32::from(statement.code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    assert_eq!(statement.k, 0xffff_f038, "SKF_AD_OFF + SKF_AD_RANDOM");
                    accumulator = random;
                }
                code if code == libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K => {
                    accumulator %= statement.k;
                }
                code if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => {
                    let is_far = accumulator >= statement.k;
                    at += usize::from(if is_far { statement.jt } else { statement.jf });
                }
                code if code == libc::BPF_RET | libc::BPF_K => return statement.k,
                code => panic!("code {code:#x}"),
            }
        }
    }

    #[test]
    fn whoever_serves_gets_all_and_the_full_get_little() {
        use Readiness::{Full, Out, Ready, Waiting};
        for (slots, expected) in [
            (vec![Ready, Ready], vec![WHOLE, WHOLE]),
            (vec![Ready, Waiting, Full, Out], vec![WHOLE, 0, FULL, 0]),
            (vec![Full, Waiting], vec![FULL, 0]),
            (vec![Waiting, Out, Waiting], vec![WHOLE, 0, WHOLE]),
            (vec![Out, Out], vec![0, 0]),
            (vec![], vec![]),
        ] {
            assert_eq!(weights(&slots), expected, "{slots:?}");
        }
    }

    #[test]
    fn without_any_weight_the_kernel_chooses() {
        for weights in [&[] as &[u32], &[0, 0, 0]] {
            assert_eq!(run(&program(weights), 77), BY_HASH);
        }
    }

    proptest! {
        #[test]
        fn each_gets_exactly_its_part(weights in prop::collection::vec(0_u32..5, 1..80), base in any::<u16>()) {
            let program = program(&weights);
            // The kernel takes no more than 4,096 statements.
            prop_assert!(program.len() <= 2 + 2 * weights.len());
            let total: u32 = weights.iter().sum();
            prop_assume!(total > 0);
            let mut got = vec![0; weights.len()];
            // Any run of numbers as long as the sum of weights meets each remainder once.
            for number in 0..total {
                let index = run(&program, u32::from(base) + number);
                got[usize::try_from(index).unwrap()] += 1;
            }
            prop_assert_eq!(got, weights);
        }
    }
}
