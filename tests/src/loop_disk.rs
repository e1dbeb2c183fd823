//! An ext4 file system in a file, which can run out of room, and whose writes can be made to fail below it.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::process::run;

const BLOCK_BYTES: u64 = 4096;

/// Mounted while it lives.
#[derive(Debug)]
pub struct LoopDisk {
    /// A tmpfs with the image, and with what takes the image's room.
    below: PathBuf,
    mounted: PathBuf,
    _dir: TempDir,
}

impl LoopDisk {
    /// `None` where mounting is not allowed; the reason is printed.
    pub fn mount(megabytes: usize) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (below, mounted) = (dir.path().join("below"), dir.path().join("disk"));
        fs::create_dir(&below).unwrap();
        fs::create_dir(&mounted).unwrap();
        let size = format!("size={}m", megabytes + 8);
        call(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
                .arg(&below),
        )?;
        // From here on, dropping unmounts.
        let disk = Self {
            below,
            mounted,
            _dir: dir,
        };
        let image = disk.image();
        fs::write(&image, vec![0; megabytes << 20]).unwrap();
        call(
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-b", "4096", "-e", "continue", "-E"])
                .arg("nodiscard,lazy_itable_init=0,lazy_journal_init=0")
                .arg(&image),
        )?;
        // mkfs leaves holes where it wants zeros; the file system's own tables must never want for room.
        let mut content = Vec::new();
        File::open(&image)
            .unwrap()
            .read_to_end(&mut content)
            .unwrap();
        File::options()
            .write(true)
            .open(&image)
            .unwrap()
            .write_all(&content)
            .unwrap();
        call(
            Command::new("mount")
                .args(["-o", "loop,nodiscard"])
                .args([&image, &disk.mounted]),
        )?;
        Some(disk)
    }

    /// The file system.
    pub fn path(&self) -> &Path {
        &self.mounted
    }

    fn image(&self) -> PathBuf {
        self.below.join("image")
    }

    fn ballast(&self) -> PathBuf {
        self.below.join("ballast")
    }

    /// Takes the room from under every free block: a write to one of them succeeds, and its sync fails.
    pub fn break_free_blocks(&self) {
        nix::unistd::sync();
        let output = run(Command::new("dumpe2fs").arg(self.image()));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lists = text
            .lines()
            .filter_map(|line| line.strip_prefix("  Free blocks: "));
        let mut count = 0;
        for range in lists
            .flat_map(|list| list.split(", "))
            .filter(|range| !range.is_empty())
        {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
            call(
                Command::new("fallocate")
                    .arg("--punch-hole")
                    .arg(format!("--offset={}", first * BLOCK_BYTES))
                    .arg(format!("--length={}", (last - first + 1) * BLOCK_BYTES))
                    .arg(self.image()),
            )
            .expect("holes can be made in a tmpfs");
            count += last - first + 1;
        }
        assert!(count > 100, "{count} free blocks: {text}");
        fill(&self.ballast());
    }

    /// The room is there again.
    pub fn repair_free_blocks(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        for path in [&self.mounted, &self.below] {
            let _ = Command::new("umount").arg("--lazy").arg(path).output();
        }
    }
}

/// Writes until there is no room; the bytes written.
pub fn fill(path: &Path) -> u64 {
    let mut file = File::create(path).unwrap();
    let mut bytes = 0;
    while let Ok(count) = file.write(&[7; BLOCK_BYTES as usize]) {
        bytes += count as u64;
    }
    let _ = file.sync_all();
    bytes
}

/// Runs it; `None` where that fails, for want of a right or a kernel's part; the reason is printed.
pub(crate) fn call(command: &mut Command) -> Option<()> {
    let output = run(command);
    if !output.status.success() {
        eprintln!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success().then_some(())
}
