//! A segment of the journal and its index as a start may find them: written by a process that was killed, damaged by a
//! power cut, or any bytes.

#![no_main]

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::rc::Rc;

use fleet_protocol::agent::LogType;
use fleet_protocol::ids::HostId;
use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::xxh3_64_with_seed;

#[path = "../../../control/src/journal/medium.rs"]
mod medium;
#[path = "../../../control/src/journal/paired.rs"]
#[allow(dead_code, reason = "the journal uses the rest")]
mod paired;
#[path = "../../../control/src/journal/record.rs"]
#[allow(dead_code, reason = "the journal uses the rest")]
mod record;
#[path = "../../../control/src/journal/recovery.rs"]
#[allow(dead_code, reason = "the journal uses the rest")]
mod recovery;

use medium::Medium;
use paired::Paired;
use record::{Kind, RECORD_BYTES, Record};
use recovery::{Findings, Trust, recent};

const SEQUENCE: u64 = 3;
const NOW_MS: u64 = 1_795_256_100_000;
/// What a disk writes whole.
const SECTOR: usize = 512;
/// Fewer changed bytes than a forged checksum takes.
const FLIPS_MAX: usize = 3;

/// A file in memory.
#[derive(Clone, Debug, Default)]
struct Tape(Rc<RefCell<Vec<u8>>>);

impl Tape {
    fn of(bytes: &[u8]) -> Self {
        Self(Rc::new(RefCell::new(bytes.to_vec())))
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.borrow().clone()
    }
}

impl Medium for Tape {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.borrow().len() as u64)
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let content = self.0.borrow();
        let offset = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = offset.checked_add(bytes.len());
        let found = end.and_then(|end| content.get(offset..end));
        bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn append(&self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        for slice in slices {
            self.0.borrow_mut().extend_from_slice(slice);
        }
        Ok(())
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.0.borrow_mut().truncate(length as usize);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes numbers off the input; zeros at its end.
struct Dice<'a>(&'a [u8]);

impl Dice<'_> {
    fn byte(&mut self) -> usize {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        usize::from(*first)
    }

    fn below(&mut self, bound: usize) -> usize {
        ((self.byte() << 8) | self.byte()) % bound.max(1)
    }
}

fuzz_target!(|input: &[u8]| {
    let mut dice = Dice(input);
    match dice.byte() % 4 {
        0 => any_bytes(&mut dice),
        _ => after_a_crash(&mut dice),
    }
});

/// Nothing panics, and nothing is made out of what is not there.
fn any_bytes(dice: &mut Dice<'_>) {
    let split = dice.below(dice.0.len());
    let (log, index) = dice.0.split_at(split.min(dice.0.len()));
    let mut index = index.to_vec();
    // Most of what a fuzzer makes has no good checksum.
    for record in index.chunks_exact_mut(RECORD_BYTES) {
        let sum = xxh3_64_with_seed(&record[..RECORD_BYTES - 4], SEQUENCE).to_le_bytes();
        record[RECORD_BYTES - 4..].copy_from_slice(&sum[..4]);
    }
    for trust in [Trust::Index, Trust::Nothing] {
        let (log, index) = (Tape::of(log), Tape::of(&index));
        let findings = examine(&log, &index, trust);
        Paired::adopt(log, index, SEQUENCE, &findings, NOW_MS).expect("memory has no errors");
    }
}

/// Groups are stored, the last one in part; then records that were not synced may be lost. All lines that were acknowledged
/// are there after the next start, nothing but whole lines is, and another start leaves them as they are.
fn after_a_crash(dice: &mut Dice<'_>) {
    let (log, index) = (Tape::default(), Tape::default());
    let findings = examine(&log, &index, Trust::Index);
    let mut pair = Paired::adopt(log.clone(), index.clone(), SEQUENCE, &findings, NOW_MS)
        .expect("memory has no errors");
    for _ in 0..dice.byte() % 5 {
        append(&mut pair, dice);
    }
    let acknowledged = log.bytes();
    append(&mut pair, dice);
    let all = log.bytes();
    let kept = acknowledged.len() + dice.below(all.len() - acknowledged.len() + 1);
    log.cut(kept as u64).expect("memory has no errors");
    if dice.byte() % 2 == 1 {
        // The length was on disk, the bytes were not.
        log.0.borrow_mut().resize(all.len(), 0);
    }
    damage(&mut index.0.borrow_mut(), dice);

    let findings = examine(&log, &index, Trust::Index);
    drop(
        Paired::adopt(log.clone(), index.clone(), SEQUENCE, &findings, NOW_MS)
            .expect("memory has no errors"),
    );
    let recovered = log.bytes();
    assert!(
        recovered.starts_with(&acknowledged),
        "an acknowledged line is lost: {findings:?}"
    );
    assert!(
        all.starts_with(&recovered),
        "lines that nobody sent: {findings:?}"
    );
    assert!(
        recovered.last().is_none_or(|byte| *byte == b'\n'),
        "a torn line stays: {findings:?}"
    );

    let again = examine(&log, &index, Trust::Index);
    assert!(
        again.keep == again.length && !again.is_endless,
        "{findings:?}, then {again:?}"
    );
}

/// One group of batches of lines.
fn append(pair: &mut Paired<Tape>, dice: &mut Dice<'_>) {
    let group = pair.length();
    let (mut lines, mut records) = (Vec::new(), Vec::new());
    for _ in 0..1 + dice.byte() % 4 {
        let begin = lines.len();
        let line_count = 1 + dice.byte() % 3;
        for _ in 0..line_count {
            lines.extend(std::iter::repeat_n(
                b'a' + dice.byte() as u8 % 3,
                dice.byte() * 4,
            ));
            lines.push(b'\n');
        }
        let bytes = &lines[begin..];
        records.push(Record {
            group,
            offset: group + begin as u64,
            length: bytes.len() as u32,
            line_count: line_count as u32,
            stored_ms: NOW_MS,
            host: HostId(1),
            fingerprint: record::fingerprint(bytes),
            kind: Kind::Batch(LogType::Result),
        });
    }
    pair.append(&mut [IoSlice::new(&lines)], &records)
        .expect("memory has no errors");
}

/// What a kill and a power cut may do to an index that was not synced.
fn damage(index: &mut Vec<u8>, dice: &mut Dice<'_>) {
    if dice.byte() % 2 == 1 {
        let length = dice.below(index.len() + 1);
        index.truncate(length);
    }
    for _ in 0..dice.byte() % (FLIPS_MAX + 1) {
        let at = dice.below(index.len());
        if dice.byte() % 2 == 1 {
            let begin = at - at % SECTOR;
            let end = (begin + SECTOR).min(index.len());
            index[begin..end].fill(0);
        } else if let Some(byte) = index.get_mut(at) {
            *byte ^= 1 << (dice.byte() % 8);
        }
    }
}

fn examine(log: &Tape, index: &Tape, trust: Trust) -> Findings {
    let findings = Paired::examine(log, index, SEQUENCE, trust).expect("memory has no errors");
    let (length, index_length) = (log.0.borrow().len() as u64, index.0.borrow().len() as u64);
    assert_eq!(findings.length, length);
    assert!(
        findings.keep <= length && findings.index_keep <= index_length,
        "{findings:?}"
    );
    if let Some(found) = findings.found {
        assert_eq!(
            found.offset + u64::from(found.length),
            findings.keep,
            "{findings:?}"
        );
    }
    let (records, _) =
        recent(index, index_length, SEQUENCE, None, u64::MAX, 1000).expect("memory has no errors");
    assert!(records.len() as u64 <= index_length / RECORD_BYTES as u64);
    findings
}
