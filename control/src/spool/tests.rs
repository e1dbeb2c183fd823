use fleet_protocol::ids::{HostId, UnixSeconds};

use super::*;
use crate::model::label::LabelResult;

fn record(host: u32) -> Record {
    Record {
        labels: vec![LabelResult {
            host: HostId(host),
            at: UnixSeconds(7),
            memberships: Vec::new(),
        }],
        ..Record::default()
    }
}

async fn drain(spool: &Spool) -> Vec<u32> {
    let mut hosts = Vec::new();
    while let Some(kept) = spool.oldest().await.unwrap() {
        hosts.extend(kept.record.labels.iter().map(|label| label.host.0));
        spool.done(&kept, 0).await.unwrap();
    }
    hosts
}

fn size(dir: &Path) -> u64 {
    std::fs::metadata(dir.join(FILE_NAME)).unwrap().len()
}

#[tokio::test]
async fn batches_come_back_in_order_and_leave_an_empty_file() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path());
    assert!(spool.oldest().await.unwrap().is_none());
    assert!(!dir.path().join(FILE_NAME).exists());
    for host in 1..=3 {
        spool.append(&record(host)).await.unwrap();
    }
    // One is written, then the process ends; replaying it again is harmless.
    let kept = spool.oldest().await.unwrap().unwrap();
    spool.done(&kept, 0).await.unwrap();
    assert_eq!(spool.statistics().waiting, 2);
    drop(spool);
    let spool = Spool::open(dir.path());
    assert_eq!(spool.statistics().waiting, 3);
    spool.append(&record(4)).await.unwrap();
    assert_eq!(drain(&spool).await, [1, 2, 3, 4]);
    assert_eq!(size(dir.path()), 0);
    spool.append(&record(5)).await.unwrap();
    assert_eq!(drain(&spool).await, [5]);
    assert_eq!(spool.statistics().waiting, 0);
}

#[tokio::test]
async fn a_full_spool_refuses_and_keeps_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let frame = record(1).encode().unwrap().len() as u64;
    let spool = Spool::open_bounded(dir.path(), 2 * frame);
    spool.append(&record(1)).await.unwrap();
    spool.append(&record(2)).await.unwrap();
    assert!(matches!(spool.append(&record(3)).await, Err(Error::Full)));
    assert_eq!(spool.statistics().refused, 1);
    assert_eq!(drain(&spool).await, [1, 2]);
    spool.append(&record(4)).await.unwrap();
    assert_eq!(drain(&spool).await, [4]);
}

#[tokio::test]
async fn torn_ends_are_cut_and_damaged_batches_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let frames: Vec<Vec<u8>> = (1..=3).map(|host| record(host).encode().unwrap()).collect();
    let mut bytes = frames.concat();
    let in_second = frames[0].len() + HEAD_BYTES + 3;
    bytes[in_second] ^= 1;
    for torn in [
        &frames[0][..HEAD_BYTES - 1],
        &frames[0][..HEAD_BYTES + 1],
        b"x",
    ] {
        std::fs::write(&path, [&bytes, torn].concat()).unwrap();
        let spool = Spool::open(dir.path());
        assert_eq!(size(dir.path()), bytes.len() as u64);
        assert_eq!(drain(&spool).await, [1, 3]);
        assert_eq!(spool.statistics().damaged, 2);
    }
}

#[tokio::test]
async fn one_process_at_a_time_has_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let first = Spool::open(dir.path());
    first.append(&record(1)).await.unwrap();
    let second = Spool::open(dir.path());
    let refused = second.append(&record(2)).await;
    assert!(matches!(refused, Err(Error::Storage(_))), "{refused:?}");
    assert!(second.oldest().await.is_err());
    first.append(&record(3)).await.unwrap();
    drop(first);
    assert_eq!(drain(&second).await, [1, 3]);
    second.append(&record(4)).await.unwrap();
    assert_eq!(drain(&second).await, [4]);
}

#[tokio::test]
async fn a_file_that_cannot_be_made_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(&dir.path().join("missing"));
    let outcome = spool.append(&record(1)).await;
    assert!(matches!(outcome, Err(Error::Storage(_))), "{outcome:?}");
    assert_eq!(spool.statistics().failed, 1);
}

/// Files put aside, with their bytes.
fn aside(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().contains(".damaged"))
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    files
}

fn write_at(dir: &Path, place: usize, bytes: &[u8]) {
    let file = OpenOptions::new()
        .write(true)
        .open(dir.join(FILE_NAME))
        .unwrap();
    file.write_all_at(bytes, place as u64).unwrap();
}

#[tokio::test]
async fn batches_behind_a_damaged_head_are_put_aside_not_cut_off() {
    let frames: Vec<Vec<u8>> = (1..=3).map(|host| record(host).encode().unwrap()).collect();
    let second = frames[0].len();
    // What of the second head is wrong: the word; the length, which then leads beyond the end.
    for (at, wrong) in [(second, &b"X"[..]), (second + 4, &[0, 0, 16, 0])] {
        // While it is served.
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path());
        for host in 1..=3 {
            spool.append(&record(host)).await.unwrap();
        }
        write_at(dir.path(), at, wrong);
        let whole = std::fs::read(dir.path().join(FILE_NAME)).unwrap();
        assert_eq!(drain(&spool).await, [1]);
        let files = aside(dir.path());
        assert_eq!(files, [("results.spool.damaged".to_owned(), whole.clone())]);
        assert_eq!(spool.statistics().damaged, 2);
        assert_eq!(
            (spool.statistics().waiting, spool.statistics().bytes),
            (0, 0)
        );
        spool.append(&record(4)).await.unwrap();
        assert_eq!(drain(&spool).await, [4]);
        drop(spool);

        // At a start: what comes before is still written to the store.
        std::fs::write(dir.path().join(FILE_NAME), &whole).unwrap();
        let spool = Spool::open(dir.path());
        assert_eq!(spool.statistics().damaged, 1);
        let files = aside(dir.path());
        assert_eq!(files.len(), 2);
        assert_eq!(files[1].0, "results.spool.damaged.1");
        assert_eq!(files[1].1, whole[second..]);
        spool.append(&record(5)).await.unwrap();
        assert_eq!(drain(&spool).await, [1, 5]);
    }
}

#[tokio::test]
async fn few_files_are_put_aside_and_none_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0_u8..7 {
        std::fs::write(dir.path().join(FILE_NAME), [number; 40]).unwrap();
        assert_eq!(Spool::open(dir.path()).statistics().damaged, 1);
        let files = aside(dir.path());
        assert!(files.len() <= aside::FILES_MAX);
        assert!(files.iter().any(|(_, bytes)| bytes == &[number; 40]));
    }
    let kept: Vec<u8> = aside(dir.path())
        .iter()
        .map(|(_, bytes)| bytes[0])
        .collect();
    assert_eq!(kept, [3, 4, 5, 6]);
}

#[tokio::test]
async fn a_file_that_cannot_be_read_does_not_block_what_comes() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path());
    spool.append(&record(1)).await.unwrap();
    spool.append(&record(2)).await.unwrap();
    // Reads fail, as of a broken disk.
    let unreadable = OpenOptions::new()
        .append(true)
        .open(dir.path().join(FILE_NAME))
        .unwrap();
    lock(&spool.0.state).file = Some(unreadable);
    for _ in 1..READ_TRIES_MAX {
        assert!(spool.oldest().await.is_err());
        assert_eq!(spool.statistics().waiting, 2);
    }
    assert!(spool.oldest().await.unwrap().is_none());
    assert_eq!(spool.statistics().damaged, 2);
    assert_eq!(aside(dir.path()).len(), 1);
    spool.append(&record(3)).await.unwrap();
    assert_eq!(drain(&spool).await, [3]);
}
