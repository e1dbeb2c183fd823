//! What a log and its index are written to: files, and in tests something that forgets what was not synced.

use std::fs::File;
use std::io::{self, IoSlice, Write as _};

/// A growing run of bytes.
pub(super) trait Medium {
    /// Bytes now.
    fn length(&self) -> io::Result<u64>;
    /// Fills the buffer.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Adds all slices at the end. After an error a part of them may be there.
    fn append(&self, slices: &mut [IoSlice<'_>]) -> io::Result<()>;
    /// Drops what is beyond.
    fn cut(&self, length: u64) -> io::Result<()>;
    /// Returns once content and length are on disk.
    fn sync(&self) -> io::Result<()>;
}

/// Must be open for appending.
impl Medium for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, bytes, offset)
    }

    fn append(&self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut file = self;
        while !slices.is_empty() {
            match file.write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut slices, count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
