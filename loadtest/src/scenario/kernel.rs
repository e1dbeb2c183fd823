//! Memory of the kernel, as far as sockets are in it: `/proc/meminfo` and `/proc/net/sockstat`.

use std::fs;

/// One look. The socket counts are of this network namespace, the memory is of the whole machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KernelMemory {
    /// Kernel objects: sockets, inodes, directory entries.
    pub(super) slab_bytes: u64,
    /// Of them, what cannot be given back.
    pub(super) slab_unreclaimable_bytes: u64,
    /// What programs could still get.
    pub(super) available_bytes: u64,
    /// TCP sockets in use, both ends.
    pub(super) tcp_in_use: u64,
    /// Pages of socket buffers.
    pub(super) tcp_buffer_pages: u64,
}

impl KernelMemory {
    /// Now.
    pub(super) fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&read("/proc/meminfo"), &read("/proc/net/sockstat"))
    }

    fn parse(meminfo: &str, sockstat: &str) -> Self {
        let kib = |key: &str| number_after(meminfo, key, 0).saturating_mul(1024);
        Self {
            slab_bytes: kib("Slab:"),
            slab_unreclaimable_bytes: kib("SUnreclaim:"),
            available_bytes: kib("MemAvailable:"),
            tcp_in_use: number_after(sockstat, "TCP:", 1),
            // TCP: inuse N orphan N tw N alloc N mem N
            tcp_buffer_pages: number_after(sockstat, "TCP:", 9),
        }
    }
}

/// The word at `place` in the line that begins with `key`, as a number; 0 when it is not there.
fn number_after(text: &str, key: &str, place: usize) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.split_whitespace().nth(place))
        .and_then(|word| word.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read() {
        let memory = KernelMemory::parse(
            "MemTotal: 24 kB\nMemAvailable:   20 kB\nSlab:    3 kB\nSUnreclaim:  2 kB\n",
            "sockets: used 9\nTCP: inuse 5 orphan 0 tw 1 alloc 6 mem 7\nUDP: inuse 1 mem 0\n",
        );
        assert_eq!(
            memory,
            KernelMemory {
                slab_bytes: 3072,
                slab_unreclaimable_bytes: 2048,
                available_bytes: 20_480,
                tcp_in_use: 5,
                tcp_buffer_pages: 7,
            }
        );
        assert!(KernelMemory::now().slab_bytes > 0);
    }
}
