//! How much memory this process holds, from a file that stays open: a confined process opens none.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::OnceLock;

/// More than the text has.
const STATUS_BYTES_MAX: usize = 8 << 10;

static STATUS: OnceLock<Option<File>> = OnceLock::new();

/// Resident bytes; 0 where the kernel does not tell. The first call opens the file.
pub fn resident_bytes() -> u64 {
    let file = STATUS.get_or_init(|| File::open("/proc/self/status").ok());
    let mut bytes = vec![0; STATUS_BYTES_MAX];
    let length = file
        .as_ref()
        .and_then(|file| file.read_at(&mut bytes, 0).ok());
    let text = bytes.get(..length.unwrap_or(0)).unwrap_or_default();
    String::from_utf8_lossy(text)
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_is_told_again_and_again() {
        let first = super::resident_bytes();
        assert!(first > 0);
        let held = vec![1_u8; 64 << 20];
        assert!(super::resident_bytes() > first + (32 << 20));
        drop(held);
    }
}
