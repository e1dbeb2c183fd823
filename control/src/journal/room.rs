//! Whether the disk has room for lines and for what else lives there.

use std::io;
use std::path::Path;

use nix::sys::statvfs::statvfs;

/// Kept free for the embedded store, the index and the supervisor's files, which lie on the same disk as a rule: logs
/// must not be what stops enrolment.
const RESERVE_BYTES: u64 = 32 << 20;
/// On a small disk, one part in so many is kept instead.
const RESERVE_PARTS: u64 = 20;

/// Refuses when less than the reserve would be left.
pub(super) fn ensure(directory: &Path, bytes: u64) -> io::Result<()> {
    let found = statvfs(directory)?;
    let fragment = found.fragment_size();
    let total = found.blocks().saturating_mul(fragment);
    let free = found.blocks_available().saturating_mul(fragment);
    let reserve = reserve(total);
    if free < bytes.saturating_add(reserve) {
        return Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!(
                "no room: {free} bytes are free on the disk, and {reserve} of them are kept for the store"
            ),
        ));
    }
    Ok(())
}

fn reserve(total: u64) -> u64 {
    RESERVE_BYTES.min(total / RESERVE_PARTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_disk_keeps_a_part() {
        assert_eq!(reserve(1 << 40), RESERVE_BYTES);
        assert_eq!(reserve(1 << 20), 52_428);
        assert_eq!(reserve(0), 0);
    }

    #[test]
    fn more_than_there_is_is_refused() {
        let directory = tempfile::TempDir::new().unwrap();
        ensure(directory.path(), 1).unwrap();
        let error = ensure(directory.path(), u64::MAX).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().starts_with("no room: "), "{error}");
    }
}
