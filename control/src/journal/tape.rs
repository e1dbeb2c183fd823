//! A file in memory for tests, which fails as disks and processes do.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::rc::Rc;

use super::medium::Medium;

/// What a disk writes whole.
const SECTOR: usize = 512;

/// A file whose power can be cut and whose process can be killed in the middle of any call.
#[derive(Clone, Debug, Default)]
pub(super) struct Tape(Rc<RefCell<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// What the process sees.
    content: Vec<u8>,
    /// What a power cut leaves for sure.
    synced: Vec<u8>,
    is_sync_broken: bool,
    bytes_max: Option<usize>,
    life: Life,
}

/// Bytes that the process still writes before it is killed; shared by its files.
#[derive(Clone, Debug)]
pub(super) struct Life(Rc<Cell<usize>>);

impl Default for Life {
    fn default() -> Self {
        Self::of(usize::MAX)
    }
}

impl Life {
    pub(super) fn of(bytes: usize) -> Self {
        Self(Rc::new(Cell::new(bytes)))
    }

    /// It has so much left.
    pub(super) fn set(&self, bytes: usize) {
        self.0.set(bytes);
    }

    /// How many of these are done; fewer means that the process is dead from now on.
    fn spend(&self, wanted: usize) -> usize {
        let done = wanted.min(self.0.get());
        self.0.set(if done < wanted {
            0
        } else {
            self.0.get() - done
        });
        done
    }
}

fn dead() -> io::Error {
    io::Error::other("killed")
}

impl Medium for Tape {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.borrow().content.len() as u64)
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let inner = self.0.borrow();
        let found = inner.content.get(offset..offset + bytes.len());
        bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn append(&self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let inner = &mut *self.0.borrow_mut();
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        let room = inner
            .bytes_max
            .map_or(usize::MAX, |max| max.saturating_sub(inner.content.len()));
        let done = inner.life.spend(bytes.len().min(room));
        inner.content.extend(&bytes[..done]);
        match done {
            _ if done == bytes.len() => Ok(()),
            _ if done == room => Err(io::ErrorKind::StorageFull.into()),
            _ => Err(dead()),
        }
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        let inner = &mut *self.0.borrow_mut();
        if inner.life.spend(1) == 0 {
            return Err(dead());
        }
        inner.content.resize(usize::try_from(length).unwrap(), 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let inner = &mut *self.0.borrow_mut();
        if inner.life.spend(1) == 0 {
            return Err(dead());
        }
        if inner.is_sync_broken {
            return Err(io::Error::from_raw_os_error(5));
        }
        inner.synced.clone_from(&inner.content);
        Ok(())
    }
}

impl Tape {
    /// Each sector that was not synced is there, or is not, or was never written; so is the length.
    pub(super) fn cut_power(&self, mut pick: impl FnMut() -> u8) {
        let inner = &mut *self.0.borrow_mut();
        let (old, new) = (inner.synced.clone(), inner.content.clone());
        let (short, long) = (old.len().min(new.len()), old.len().max(new.len()));
        let length = short + (long - short) * usize::from(pick()) / 255;
        let mut left = vec![0; length];
        for (place, sector) in left.chunks_mut(SECTOR).enumerate() {
            let range = place * SECTOR..place * SECTOR + sector.len();
            let (old, new) = (old.get(range.clone()), new.get(range.clone()));
            let from = match pick() % 3 {
                _ if old == new => new,
                0 => new.or(old),
                1 => old,
                // A sector that was on disk in part keeps that part.
                _ => None,
            };
            match from {
                Some(from) => sector.copy_from_slice(from),
                None => {
                    for (byte, at) in sector.iter_mut().zip(range) {
                        *byte = inner.synced.get(at).copied().unwrap_or(0);
                    }
                }
            }
        }
        inner.content.clone_from(&left);
        inner.synced = left;
        inner.is_sync_broken = false;
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.borrow().content.clone()
    }

    pub(super) fn of(bytes: &[u8]) -> Self {
        let tape = Self::default();
        tape.0.borrow_mut().content = bytes.to_vec();
        tape.0.borrow_mut().synced = bytes.to_vec();
        tape
    }

    /// Whoever writes from now on lives as long as this.
    pub(super) fn set_life(&self, life: &Life) {
        self.0.borrow_mut().life = life.clone();
    }

    /// The disk is full at this length; `None`: never.
    pub(super) fn set_bytes_max(&self, bytes_max: Option<usize>) {
        self.0.borrow_mut().bytes_max = bytes_max;
    }

    /// Syncs fail until the power is cut.
    pub(super) fn break_sync(&self) {
        self.0.borrow_mut().is_sync_broken = true;
    }
}
