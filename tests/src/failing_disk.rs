//! A file system whose disk answers EIO to every write while a test wants it to, and reads as ever.
//!
//! The disk is a loop device over a file of another ext4. That one refuses writes to a file that is marked immutable, open
//! or not, with an error that the block layer knows no name for but EIO. Nothing below is damaged, so mending is to take the
//! mark away. The file system has no journal of its own: one that fails to write its journal gives up for good.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::loop_disk::call;

const IMAGE_BYTES: u64 = 64 << 20;
const BELOW_BYTES: u64 = 96 << 20;

/// Mounted while it lives.
#[derive(Debug)]
pub struct FailingDisk {
    below: PathBuf,
    mounted: PathBuf,
    _dir: TempDir,
}

impl FailingDisk {
    /// Mounts it on `directory`, which is made. `None` where that is not allowed; the reason is printed.
    pub fn mount(directory: &Path) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("below");
        let below_image = dir.path().join("below.image");
        make(&below_image, BELOW_BYTES, &[])?;
        fs::create_dir_all(&below).unwrap();
        fs::create_dir_all(directory).unwrap();
        // From here on, dropping unmounts.
        let disk = Self {
            below,
            mounted: directory.to_owned(),
            _dir: dir,
        };
        mount(&below_image, &disk.below)?;
        make(&disk.image(), IMAGE_BYTES, &["-O", "^has_journal"])?;
        mount(&disk.image(), directory)?;
        Some(disk)
    }

    fn image(&self) -> PathBuf {
        self.below.join("image")
    }

    /// From now on no write reaches the disk. What was written and not yet synced is lost.
    pub fn break_writes(&self) {
        self.chattr("+i");
    }

    /// All is well again.
    pub fn mend_writes(&self) {
        self.chattr("-i");
    }

    fn chattr(&self, change: &str) {
        call(Command::new("chattr").arg(change).arg(self.image())).expect("root may mark files");
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        // In vain when it is not broken.
        let _ = Command::new("chattr").arg("-i").arg(self.image()).output();
        for path in [&self.mounted, &self.below] {
            let _ = Command::new("umount").arg("--lazy").arg(path).output();
        }
    }
}

fn make(image: &Path, bytes: u64, options: &[&str]) -> Option<()> {
    // In whole: a hole would want room of the file system below when it is written.
    let zeros = vec![0; usize::try_from(bytes).unwrap()];
    fs::write(image, zeros).unwrap();
    call(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m0", "-e", "continue"])
            .args(["-E", "nodiscard,lazy_itable_init=0"])
            .args(options)
            .arg(image),
    )
}

fn mount(image: &Path, directory: &Path) -> Option<()> {
    call(
        Command::new("mount")
            .args(["-n", "-o", "loop,nodiscard"])
            .args([image, directory]),
    )
}
