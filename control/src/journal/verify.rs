//! Reads every segment against its index. Changes nothing, and may run beside a server.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use fleet_protocol::config::{Filesystem, LogCompression};
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

use super::closed;
use super::place::Place;
use super::record::{Header, RECORD_BYTES, Record};

const CHUNK_BYTES: usize = 128 << 10;
/// Damaged ranges that are listed for one segment; all are counted.
const RANGES_MAX: usize = 100;

/// What was found in all segments.
#[derive(Clone, Debug, Default, Serialize)]
pub struct JournalReport {
    /// Oldest first, by log.
    pub segments: Vec<SegmentReport>,
    /// No segment is damaged.
    pub is_sound: bool,
}

/// What was found in one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SegmentReport {
    /// The log file.
    pub file: PathBuf,
    /// Its bytes, uncompressed.
    pub bytes: u64,
    /// Batches that match their checksums.
    pub batches: u64,
    /// Lines in them.
    pub lines: u64,
    /// Bytes without a checksum: written before there was an index, or their records were lost in a power cut.
    pub unchecked_bytes: u64,
    /// Bytes at the end that are just being written, or that a crash left; the server settles them at its start.
    pub unfinished_bytes: u64,
    /// Ranges that do not match their checksums.
    pub damaged_ranges: u64,
    /// The first hundred of them.
    pub damaged: Vec<DamagedRange>,
    /// Records that cannot be read.
    pub unreadable_records: u64,
    /// Why the segment could not be read to its end.
    pub error: Option<String>,
}

/// A batch that is not what was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DamagedRange {
    /// In the uncompressed segment.
    pub offset: u64,
    /// Bytes that were stored.
    pub length: u32,
    /// Lines that were stored.
    pub lines: u32,
    /// Whose.
    pub host_id: u32,
}

impl SegmentReport {
    /// Whether everything that has a checksum matches it.
    pub fn is_sound(&self) -> bool {
        self.damaged_ranges == 0 && self.unreadable_records == 0 && self.error.is_none()
    }
}

/// Reads everything. The error is that of a directory that cannot be listed.
pub(crate) fn verify(options: &Filesystem, state_dir: &Path) -> io::Result<JournalReport> {
    let mut report = JournalReport::default();
    for place in super::places(options, state_dir) {
        let closed = match closed::list(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        let active = closed::next_sequence(&place).unwrap_or(1);
        for closed in closed {
            let (sequence, packing) = (closed.name.sequence, closed.name.packing);
            report
                .segments
                .extend(segment(&place, closed.path, sequence, packing, false));
        }
        let path = place.active();
        report
            .segments
            .extend(segment(&place, path, active, LogCompression::None, true));
    }
    report.is_sound = report.segments.iter().all(SegmentReport::is_sound);
    Ok(report)
}

/// `None` when the file is not there any more: it was just closed, compressed or removed.
fn segment(
    place: &Place,
    file: PathBuf,
    sequence: u64,
    packing: LogCompression,
    is_active: bool,
) -> Option<SegmentReport> {
    let mut report = SegmentReport {
        file,
        ..SegmentReport::default()
    };
    // First, so that it knows of no group that is not in the log by then, but for the one that is being written.
    let index = File::open(place.index(sequence)).ok();
    let index = index.and_then(|file| Index::open(file, sequence).transpose());
    let read = open(&report.file, packing).and_then(|log| {
        let mut log = Log::new(log);
        if let Some(index) = index {
            compare(&mut log, index?, is_active, &mut report)?;
        }
        let checked = log.position;
        log.skip_to(u64::MAX)?;
        report.unchecked_bytes += log.position - checked;
        report.bytes = log.position;
        Ok(())
    });
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => report.error = Some(error.to_string()),
        Ok(()) => {}
    }
    Some(report)
}

fn compare(
    log: &mut Log,
    mut index: Index,
    is_active: bool,
    report: &mut SegmentReport,
) -> io::Result<()> {
    // Of the group that was read last: settled once another group follows.
    let mut doubtful: Vec<Record> = Vec::new();
    let mut group = None;
    while let Some(record) = index.next()? {
        let Some(record) = record.filter(|record| record.offset >= log.position) else {
            report.unreadable_records += 1;
            continue;
        };
        if group != Some(record.group) {
            damaged(report, doubtful.drain(..));
            group = Some(record.group);
        }
        report.unchecked_bytes += log.skip_to(record.offset)?;
        let (length, fingerprint) = log.hash(u64::from(record.length))?;
        if length == u64::from(record.length) && fingerprint == record.fingerprint {
            report.batches += 1;
            report.lines += u64::from(record.line_count);
        } else if is_active {
            doubtful.push(record);
            report.unfinished_bytes += length;
        } else {
            damaged(report, [record]);
        }
    }
    Ok(())
}

fn damaged(report: &mut SegmentReport, records: impl IntoIterator<Item = Record>) {
    for record in records {
        report.damaged_ranges += 1;
        report.unfinished_bytes = 0;
        if report.damaged.len() < RANGES_MAX {
            report.damaged.push(DamagedRange {
                offset: record.offset,
                length: record.length,
                lines: record.line_count,
                host_id: record.host.0,
            });
        }
    }
}

/// The lines of a segment, unpacked.
pub(super) fn open(file: &Path, packing: LogCompression) -> io::Result<Box<dyn Read>> {
    let file = BufReader::with_capacity(CHUNK_BYTES, File::open(file)?);
    Ok(match packing {
        LogCompression::None => Box::new(file),
        LogCompression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        LogCompression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
    })
}

/// A segment, read once from its beginning.
pub(super) struct Log {
    log: Box<dyn Read>,
    position: u64,
    is_over: bool,
}

impl Log {
    pub(super) fn new(log: Box<dyn Read>) -> Self {
        Self {
            log,
            position: 0,
            is_over: false,
        }
    }

    /// How many bytes were passed.
    pub(super) fn skip_to(&mut self, offset: u64) -> io::Result<u64> {
        self.each_chunk(offset.saturating_sub(self.position), |_| {})
    }

    /// As many bytes as there are, and their fingerprint.
    pub(super) fn hash(&mut self, length: u64) -> io::Result<(u64, u128)> {
        let mut hash = Xxh3::new();
        let length = self.each_chunk(length, |chunk| hash.update(chunk))?;
        Ok((length, hash.digest128()))
    }

    fn each_chunk(&mut self, length: u64, mut take: impl FnMut(&[u8])) -> io::Result<u64> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut left = length;
        while left > 0 && !self.is_over {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            let count = self.log.read(chunk.get_mut(..wanted).unwrap_or_default())?;
            self.is_over = count == 0;
            take(chunk.get(..count).unwrap_or_default());
            left -= count as u64;
            self.position += count as u64;
        }
        Ok(length - left)
    }
}

/// An index, read once from its beginning.
struct Index {
    file: io::Take<BufReader<File>>,
    sequence: u64,
}

impl Index {
    /// `None` when there is no header yet.
    fn open(file: File, sequence: u64) -> io::Result<Option<Self>> {
        // What is added from now on is not looked at.
        let length = file.metadata()?.len();
        let mut file = BufReader::with_capacity(CHUNK_BYTES, file).take(length);
        let mut header = [0; RECORD_BYTES];
        if length < RECORD_BYTES as u64 {
            return Ok(None);
        }
        file.read_exact(&mut header)?;
        Header::decode(&header, sequence).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "its index cannot be read")
        })?;
        Ok(Some(Self { file, sequence }))
    }

    /// The outer `None` is the end, the inner one bytes that are no record.
    #[expect(clippy::option_option, reason = "an end is no unreadable record")]
    fn next(&mut self) -> io::Result<Option<Option<Record>>> {
        let mut bytes = [0; RECORD_BYTES];
        match self.file.read_exact(&mut bytes) {
            Ok(()) => Ok(Some(Record::decode(&bytes, self.sequence))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}
