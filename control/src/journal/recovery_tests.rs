use std::cell::Cell;
use std::fs::File;
use std::io::{IoSlice, Write as _};

use fleet_protocol::agent::LogType;
use fleet_protocol::ids::HostId;
use proptest::prelude::*;

use super::super::paired::{Failure, Paired};
use super::super::record::{self, Kind};
use super::super::tape::{Life, Tape};
use super::*;

const SEQUENCE: u64 = 7;

/// A segment with what a test knows of it.
struct Bench {
    log: Tape,
    index: Tape,
    life: Life,
    paired: Option<Paired<Tape>>,
    /// Acknowledged, with their places.
    acknowledged: Vec<(usize, Vec<u8>)>,
    next: u32,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self {
            log: Tape::default(),
            index: Tape::default(),
            life: Life::default(),
            paired: None,
            acknowledged: Vec::new(),
            next: 0,
        };
        bench.open(usize::MAX).unwrap();
        bench
    }

    /// A process that dies after writing so much.
    fn open(&mut self, life: usize) -> io::Result<Findings> {
        self.life = Life::of(life);
        for tape in [&self.log, &self.index] {
            tape.set_life(&self.life);
        }
        let findings = examine(&self.log, &self.index, SEQUENCE, Trust::Index)?;
        let (log, index) = (self.log.clone(), self.index.clone());
        self.paired = None;
        self.paired = Some(Paired::adopt(log, index, SEQUENCE, &findings, 5000)?);
        Ok(findings)
    }

    fn group(&mut self, sizes: &[usize]) -> Vec<Vec<u8>> {
        let batch = |size: usize| {
            self.next += 1;
            let lines = (0..=size % 3).map(|line| {
                format!(
                    "{{\"n\":{},\"l\":{line},\"x\":\"{}\"}}\n",
                    self.next,
                    "y".repeat(size)
                )
            });
            lines.collect::<String>().into_bytes()
        };
        sizes.iter().copied().map(batch).collect()
    }

    fn append(&mut self, batches: &[Vec<u8>]) -> Result<(), Failure> {
        let paired = self.paired.as_mut().unwrap();
        let group = paired.length();
        let mut offset = group;
        let mut records = Vec::new();
        for batch in batches {
            records.push(Record {
                group,
                offset,
                length: u32::try_from(batch.len()).unwrap(),
                line_count: 1,
                stored_ms: 5000,
                host: HostId(1),
                fingerprint: record::fingerprint(batch),
                kind: Kind::Batch(LogType::Result),
            });
            offset += batch.len() as u64;
        }
        let mut slices: Vec<_> = batches.iter().map(|batch| IoSlice::new(batch)).collect();
        let result = paired.append(&mut slices, &records);
        match &result {
            Ok(()) => {
                for (record, batch) in records.iter().zip(batches) {
                    let offset = usize::try_from(record.offset).unwrap();
                    self.acknowledged.push((offset, batch.clone()));
                }
            }
            Err(_) => self.paired = None,
        }
        result
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let log = self.log.bytes();
        for (offset, batch) in &self.acknowledged {
            let found = log.get(*offset..offset + batch.len());
            prop_assert!(found == Some(&batch[..]), "acknowledged and lost: {offset}");
        }
        prop_assert!(matches!(log.last(), None | Some(b'\n')));
        for line in log.split_inclusive(|byte| *byte == b'\n') {
            prop_assert!(
                line.starts_with(b"{") && line.ends_with(b"\"}\n"),
                "{}",
                line.escape_ascii()
            );
        }
        Ok(())
    }

    fn remembered(&self) -> Vec<u128> {
        let index = self.index.bytes();
        let (records, _) = recent(
            &self.index,
            index.len() as u64,
            SEQUENCE,
            None,
            60_000,
            1 << 20,
        )
        .unwrap();
        records
            .iter()
            .rev()
            .map(|record| record.fingerprint)
            .collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<usize>),
    SyncIndex,
    /// The process dies after so many more bytes.
    Kill(usize, Vec<usize>),
    /// And so does its successor, while it opens the segment.
    KillTwice(usize),
    Full(usize, Vec<usize>),
    CutPower(Vec<u8>, Vec<usize>),
    BreakSync(Vec<usize>),
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0_usize..900, 1..5)
}

fn steps(cuts_power: bool) -> impl Strategy<Value = Vec<Step>> {
    let power = u32::from(cuts_power) * 2;
    let step = prop_oneof![
        6 => sizes().prop_map(Step::Append),
        2 => Just(Step::SyncIndex),
        2 => (0_usize..4000, sizes()).prop_map(|(bytes, sizes)| Step::Kill(bytes, sizes)),
        1 => (0_usize..200).prop_map(Step::KillTwice),
        1 => (0_usize..4000, sizes()).prop_map(|(bytes, sizes)| Step::Full(bytes, sizes)),
        power => (prop::collection::vec(any::<u8>(), 64), sizes()).prop_map(|(picks, sizes)| Step::CutPower(picks, sizes)),
        power => sizes().prop_map(Step::BreakSync),
    ];
    prop::collection::vec(step, 1..24)
}

fn run(bench: &mut Bench, step: Step) -> Result<(), TestCaseError> {
    match step {
        Step::Append(sizes) => {
            let batches = bench.group(&sizes);
            prop_assert!(bench.append(&batches).is_ok());
        }
        Step::SyncIndex => bench.paired.as_mut().unwrap().sync_index().unwrap(),
        Step::Kill(bytes, sizes) => {
            let batches = bench.group(&sizes);
            bench.life.set(bytes);
            let _ = bench.append(&batches);
            bench.open(usize::MAX).unwrap();
        }
        Step::KillTwice(bytes) => {
            let batches = bench.group(&[100, 200]);
            bench.life.set(300);
            let _ = bench.append(&batches);
            let _ = bench.open(bytes);
            bench.open(usize::MAX).unwrap();
        }
        Step::Full(bytes, sizes) => {
            let batches = bench.group(&sizes);
            let max = bench.log.bytes().len() + bytes;
            bench.log.set_bytes_max(Some(max));
            if let Err(failure) = bench.append(&batches) {
                prop_assert!(!failure.is_suspect);
            }
            bench.log.set_bytes_max(None);
            bench.open(usize::MAX).unwrap();
        }
        Step::CutPower(picks, sizes) => {
            // In the middle of a group: its bytes are written and not synced.
            let batches = bench.group(&sizes);
            let bytes: usize = batches.iter().map(Vec::len).sum();
            bench.life.set(bytes + batches.len() * RECORD_BYTES);
            let _ = bench.append(&batches);
            let mut picks = picks.into_iter().cycle();
            bench.log.cut_power(|| picks.next().unwrap());
            bench.index.cut_power(|| picks.next().unwrap());
            bench.open(usize::MAX).unwrap();
        }
        Step::BreakSync(sizes) => {
            bench.log.break_sync();
            let batches = bench.group(&sizes);
            prop_assert!(
                bench
                    .append(&batches)
                    .is_err_and(|failure| failure.is_suspect)
            );
            bench.log.cut_power(|| 0);
            bench.open(usize::MAX).unwrap();
        }
    }
    bench.check()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_acknowledged_batch_survives_power_cuts(steps in steps(true)) {
        let mut bench = Bench::new();
        for step in steps {
            run(&mut bench, step)?;
        }
    }

    /// A killed process leaves whole batches only, and its successor knows all of them: none is stored twice.
    #[test]
    fn after_kills_the_index_knows_every_batch(steps in steps(false)) {
        let mut bench = Bench::new();
        for step in steps {
            run(&mut bench, step)?;
            let log = bench.log.bytes();
            let remembered = bench.remembered();
            let index = bench.index.bytes();
            let mut at = 0;
            for bytes in index[RECORD_BYTES..].chunks(RECORD_BYTES) {
                let record = Record::decode(bytes, SEQUENCE).expect("only records");
                prop_assert_eq!(record.offset, at as u64);
                let end = usize::try_from(record.end()).unwrap();
                prop_assert_eq!(record::fingerprint(&log[at..end]), record.fingerprint);
                prop_assert!(matches!(record.kind, Kind::Batch(_)));
                at = end;
            }
            prop_assert_eq!(at, log.len());
            prop_assert_eq!(remembered.len(), index.len() / RECORD_BYTES - 1);
        }
    }
}

/// Three groups of three batches.
fn three_groups() -> (Bench, u64) {
    let mut bench = Bench::new();
    let mut last = 0;
    for _ in 0..3 {
        last = bench.log.length().unwrap();
        let batches = bench.group(&[40, 90, 10]);
        bench.append(&batches).unwrap();
    }
    (bench, last)
}

fn findings(log: &[u8], index: &[u8]) -> Findings {
    examine(&Tape::of(log), &Tape::of(index), SEQUENCE, Trust::Index).unwrap()
}

#[test]
fn a_log_cut_anywhere_keeps_whole_batches_and_tells_what_is_missing() {
    let (bench, last_group) = three_groups();
    let (log, index) = (bench.log.bytes(), bench.index.bytes());
    let ends: Vec<u64> = bench
        .acknowledged
        .iter()
        .map(|(at, batch)| (at + batch.len()) as u64)
        .collect();
    for length in 0..=log.len() {
        let found = findings(&log[..length], &index);
        let length = length as u64;
        if length < last_group {
            let missing = last_group - length;
            assert_eq!(found.index, IndexState::Short { missing });
            let lines = log[..usize::try_from(length).unwrap()]
                .iter()
                .rposition(|byte| *byte == b'\n');
            assert_eq!(found.keep, lines.map_or(0, |at| at as u64 + 1));
        } else {
            assert_eq!(found.index, IndexState::Good, "{length}");
            let whole = ends
                .iter()
                .copied()
                .filter(|end| *end <= length)
                .max()
                .unwrap();
            assert_eq!(found.keep, whole, "{length}");
        }
    }
}

#[test]
fn an_index_cut_anywhere_loses_no_line() {
    let (bench, _) = three_groups();
    let (log, index) = (bench.log.bytes(), bench.index.bytes());
    for length in 0..=index.len() {
        let found = findings(&log, &index[..length]);
        assert_eq!(found.keep, log.len() as u64, "{length}");
        let state = match length {
            0 => IndexState::Absent,
            1..RECORD_BYTES => IndexState::Unreadable,
            _ => IndexState::Good,
        };
        assert_eq!(found.index, state, "{length}");
        let covered = found.found.map_or(0, |found| u64::from(found.length));
        if state == IndexState::Good {
            let records = (length - RECORD_BYTES) / RECORD_BYTES;
            let before = bench
                .acknowledged
                .get(records)
                .map_or(log.len(), |(at, _)| *at);
            assert_eq!(covered, (log.len() - before) as u64, "{length}");
        }
    }
}

#[test]
fn flipped_bytes_of_the_last_group_are_found() {
    let (bench, last_group) = three_groups();
    let (log, index) = (bench.log.bytes(), bench.index.bytes());
    for at in 0..log.len() {
        let mut log = log.clone();
        log[at] ^= 1;
        let found = findings(&log, &index);
        assert_eq!(found.index, IndexState::Good);
        if (at as u64) < last_group {
            // Costs no time at a start; `journal verify` finds it.
            assert_eq!(found.keep, log.len() as u64);
        } else {
            let (batch, _) = bench
                .acknowledged
                .iter()
                .rev()
                .find(|(begin, _)| *begin <= at)
                .unwrap();
            assert_eq!(found.keep, *batch as u64, "{at}");
        }
    }
    for at in 0..index.len() {
        let mut index = index.clone();
        index[at] ^= 1;
        assert_eq!(findings(&log, &index).keep, log.len() as u64, "{at}");
    }
}

#[test]
fn garbage_for_an_index_is_told_and_costs_no_line() {
    let (bench, _) = three_groups();
    let log = bench.log.bytes();
    for garbage in [vec![7; 1000], vec![0; 100_000], bench.log.bytes()] {
        let found = findings(&log, &garbage);
        assert_eq!(
            (found.keep, found.index),
            (log.len() as u64, IndexState::Unreadable)
        );
        assert_eq!(found.index_keep, 0);
    }
    let (log, index) = (bench.log, bench.index);
    let found = examine(&log, &index, SEQUENCE + 1, Trust::Index).unwrap();
    assert_eq!(found.index, IndexState::Unreadable);
    let found = examine(&log, &index, SEQUENCE, Trust::Nothing).unwrap();
    assert_eq!(found.index, IndexState::Absent);
}

/// Counts what is read.
struct Counted(File, Cell<u64>);

impl Medium for Counted {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.1.set(self.1.get() + bytes.len() as u64);
        Medium::read_exact_at(&self.0, bytes, offset)
    }

    fn append(&self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        self.0.append(slices)
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.0.cut(length)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn counted() -> Counted {
    let file = tempfile::NamedTempFile::new().unwrap();
    let again = File::options()
        .read(true)
        .append(true)
        .open(file.path())
        .unwrap();
    Counted(again, Cell::new(0))
}

#[test]
fn a_start_reads_little_of_a_log_of_ten_gigabytes() {
    let log = counted();
    log.0.set_len(10 << 30).unwrap();
    let line = format!("{{\"x\":\"{}\"}}\n", "y".repeat(1000)).into_bytes();
    (&log.0).write_all(b"\n").unwrap();
    let begin = log.length().unwrap();
    let findings = examine(&log, &counted(), SEQUENCE, Trust::Index).unwrap();
    assert_eq!((findings.keep, findings.index), (begin, IndexState::Absent));
    assert!(log.1.get() <= 1 << 20, "{}", log.1.get());
    log.1.set(0);
    let mut paired = Paired::adopt(log, counted(), SEQUENCE, &findings, 1).unwrap();
    for group in 0..2000 {
        let offset = begin + group * line.len() as u64;
        let record = Record {
            group: offset,
            offset,
            length: u32::try_from(line.len()).unwrap(),
            line_count: 1,
            stored_ms: 1,
            host: HostId(1),
            fingerprint: record::fingerprint(&line),
            kind: Kind::Batch(LogType::Result),
        };
        paired
            .append(&mut [IoSlice::new(&line)], &[record])
            .unwrap();
    }
    let (log, index) = paired.into_parts();
    // What a power cut leaves: a torn line, and an index that ends early.
    (&log.0).write_all(&line[..500]).unwrap();
    index
        .0
        .set_len(index.length().unwrap() - 1000 * 64 - 10)
        .unwrap();
    let findings = examine(&log, &index, SEQUENCE, Trust::Index).unwrap();
    assert_eq!(findings.keep, begin + 2000 * line.len() as u64);
    assert_eq!(findings.found.unwrap().line_count, 1001);
    let read = log.1.get() + index.1.get();
    assert!(read <= 4 << 20, "{read}");
}
