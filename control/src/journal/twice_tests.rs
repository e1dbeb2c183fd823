//! Batches that come again, also after a restart; files that must not be written again.

use std::collections::BTreeSet;
use std::sync::mpsc::sync_channel;

use fleet_protocol::config::LogCompression;
use fleet_protocol::ids::HostId;
use tempfile::TempDir;

use super::series::Shared;
use super::tests::{active, all_lines, append, append_as, directory, log, names, open, until};
use super::writer::Writer;
use super::*;

fn statistics(journal: &Journal) -> LogStatistics {
    journal.statistics(LogType::Result)
}

#[tokio::test]
async fn equal_batches_of_a_host_are_stored_once() {
    let state = TempDir::new().unwrap();
    let journal = open(state.path(), &Filesystem::default());
    let text = "{\"a\":1}\n{\"b\":1}\n";
    for _ in 0..3 {
        append(&journal, text).await.unwrap();
    }
    let others = Log {
        host: HostId(2),
        ..log(text)
    };
    // Twice in one call, too.
    let fates = journal
        .append(LogType::Result, vec![others.clone(), others])
        .await;
    assert_eq!(fates, [Ok(()), Ok(())]);
    append_as(&journal, LogType::Status, text).await.unwrap();
    // Nothing is no batch.
    for _ in 0..3 {
        append(&journal, "").await.unwrap();
    }
    assert_eq!(all_lines(&directory(state.path())).len(), 4);
    let found = statistics(&journal);
    assert_eq!((found.duplicate_batches, found.duplicate_lines), (3, 6));
    assert_eq!((found.lines, found.remembered_batches), (4, 2));
    assert_eq!(journal.statistics(LogType::Status).duplicate_batches, 0);
    journal.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_batches_at_once_share_one_fate() {
    let state = TempDir::new().unwrap();
    let holder = open(state.path(), &Filesystem::default());
    append(&holder, "{\"first\":1}\n").await.unwrap();
    let journal = open(state.path(), &Filesystem::default());
    let many = || async {
        let tasks: Vec<_> = (0..16)
            .map(|_| {
                let journal = Arc::clone(&journal);
                tokio::spawn(async move { append(&journal, "{\"a\":1}\n").await })
            })
            .collect();
        let mut fates = Vec::new();
        for task in tasks {
            fates.push(task.await.unwrap());
        }
        fates
    };
    // The lock is another's: everybody hears it, and nothing is remembered.
    let fates = many().await;
    assert!(
        fates
            .iter()
            .all(|fate| matches!(fate, Err(Error::Storage(_)))),
        "{fates:?}"
    );
    assert_eq!(statistics(&journal).duplicate_batches, 0);
    holder.finish().await;
    until("the second takes over", || journal.fault().is_none()).await;
    assert!(many().await.iter().all(Result::is_ok));
    assert_eq!(
        all_lines(&directory(state.path())),
        ["{\"first\":1}", "{\"a\":1}"]
    );
    assert_eq!(statistics(&journal).duplicate_batches, 15);
    journal.finish().await;
}

/// Four lines, too large for one segment; and with which options they were stored.
async fn store_two_segments(state: &Path) -> (Filesystem, Vec<String>) {
    let options = Filesystem {
        max_size: 1,
        ..Filesystem::default()
    };
    let lines: Vec<String> = (0..4)
        .map(|n| format!("{{\"n\":{n},\"x\":\"{}\"}}\n", "y".repeat(400_000)))
        .collect();
    let journal = open(state, &options);
    for line in &lines {
        append(&journal, line).await.unwrap();
    }
    journal.finish().await;
    (options, lines)
}

#[tokio::test]
async fn a_restart_knows_what_was_stored_before_also_in_the_last_segment() {
    let state = TempDir::new().unwrap();
    let (options, lines) = store_two_segments(state.path()).await;
    assert_eq!(names(&directory(state.path())).len(), 2, "one is closed");
    let journal = open(state.path(), &options);
    for line in &lines {
        append(&journal, line).await.unwrap();
    }
    assert_eq!(all_lines(&directory(state.path())).len(), 4);
    assert_eq!(statistics(&journal).duplicate_batches, 4);
    journal.finish().await;
}

#[tokio::test]
async fn a_broken_index_costs_no_line_and_is_told() {
    let state = TempDir::new().unwrap();
    let options = Filesystem::default();
    let index = directory(state.path()).join(".osquery_result.index/000001.idx");
    for (round, garbage) in [None, Some(vec![7; 5000]), Some(Vec::new())]
        .into_iter()
        .enumerate()
    {
        match garbage {
            Some(garbage) => std::fs::write(&index, garbage).unwrap(),
            None => assert!(!index.exists()),
        }
        let journal = open(state.path(), &options);
        append(&journal, &format!("{{\"n\":{round}}}\n"))
            .await
            .unwrap();
        assert_eq!(statistics(&journal).index_faults, u64::from(round == 1));
        assert_eq!(all_lines(&directory(state.path())).len(), round + 1);
        journal.finish().await;
    }
    // Shorter than it was: a line that was acknowledged is gone, and this is said.
    std::fs::write(active(state.path()), "").unwrap();
    let journal = open(state.path(), &options);
    until("the loss is told", || {
        statistics(&journal).index_faults == 1
    })
    .await;
    journal.finish().await;
}

#[tokio::test]
async fn indexes_go_with_their_segments() {
    let state = TempDir::new().unwrap();
    let options = Filesystem {
        max_size: 1,
        max_backups: 1,
        ..Filesystem::default()
    };
    let journal = open(state.path(), &options);
    for number in 0..12 {
        let line = format!("{{\"n\":{number},\"x\":\"{}\"}}\n", "y".repeat(400_000));
        append(&journal, &line).await.unwrap();
    }
    let beside = directory(state.path()).join(".osquery_result.index");
    until("two are left", || {
        names(&beside).into_iter().eq(["000004.idx", "000005.idx"])
    })
    .await;
    journal.finish().await;
}

/// Kernels forget pages that they could not write, so a file is not written again after a sync that failed.
#[tokio::test]
async fn a_suspect_file_is_closed_and_the_lines_go_to_a_new_one() {
    let state = TempDir::new().unwrap();
    let options = Filesystem::default();
    let journal = open(state.path(), &options);
    append(&journal, "{\"before\":1}\n").await.unwrap();
    journal.finish().await;

    let place = places(&options, state.path()).remove(0);
    let shared = Arc::new(Shared::new(&place));
    let (wakes, _woken) = sync_channel(1);
    let mut writer = Writer::new(place, &options, Arc::clone(&shared), wakes);
    writer.ready_segment().unwrap();
    writer.segment = None;
    writer.is_suspect = true;
    writer.ready_segment().unwrap();
    assert_eq!(shared.statistics().retired, 1);
    assert_eq!(writer.sequence, Some(2));
    // An empty one is not kept.
    writer.segment = None;
    writer.is_suspect = true;
    writer.ready_segment().unwrap();
    assert_eq!((shared.statistics().retired, writer.sequence), (1, Some(3)));
    drop(writer);

    let journal = open(state.path(), &options);
    append(&journal, "{\"after\":1}\n").await.unwrap();
    let files = names(&directory(state.path()));
    assert_eq!(files.len(), 2, "{files:?}");
    assert_eq!(
        std::fs::read_to_string(active(state.path())).unwrap(),
        "{\"after\":1}\n"
    );
    assert!(verify(&options, state.path()).unwrap().is_sound);
    journal.finish().await;
}

/// The index of a file that was put away may name lines that were refused.
#[tokio::test]
async fn lines_that_only_the_last_index_knows_are_stored_when_they_come_again() {
    for packing in [LogCompression::None, LogCompression::Zstd] {
        let state = TempDir::new().unwrap();
        let (options, lines) = store_two_segments(state.path()).await;
        // The third is not in the first segment after all.
        let files = names(&directory(state.path()));
        let name = files.iter().find(|name| name.contains("-000001")).unwrap();
        let path = directory(state.path()).join(name);
        let closed = lines[..2].concat();
        if packing == LogCompression::Zstd {
            let packed = zstd::encode_all(closed.as_bytes(), 1).unwrap();
            std::fs::write(path.with_extension("log.zst"), packed).unwrap();
            std::fs::remove_file(path).unwrap();
        } else {
            std::fs::write(path, closed).unwrap();
        }
        let journal = open(state.path(), &options);
        for line in &lines {
            append(&journal, line).await.unwrap();
        }
        assert_eq!(statistics(&journal).duplicate_batches, 3, "{packing:?}");
        let stored: BTreeSet<String> = all_lines(&directory(state.path())).into_iter().collect();
        assert_eq!(stored.len(), 4, "{packing:?}");
        journal.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_panics_makes_the_journal_unhealthy_and_answers_who_waits() {
    let state = TempDir::new().unwrap();
    let place = places(&Filesystem::default(), state.path()).remove(0);
    let (go, wait) = sync_channel::<()>(1);
    let series = Series::spawn("panics", Arc::new(Shared::new(&place)), move |messages| {
        let _taken = messages.recv();
        wait.recv().unwrap();
        panic!("as a test asks");
    })
    .unwrap();
    let (archive_wakes, _woken) = sync_channel(1);
    let journal = Arc::new(Journal {
        series: vec![series],
        archive_wakes,
        archive_stop: Arc::default(),
        archive: Mutex::default(),
    });
    assert_eq!(journal.fault(), None);
    // One that the writer has, one that is equal to it, one in the queue.
    let texts = ["{\"a\":1}\n", "{\"a\":1}\n", "{\"b\":1}\n"];
    let tasks: Vec<_> = texts
        .into_iter()
        .map(|text| {
            let journal = Arc::clone(&journal);
            tokio::spawn(async move { append(&journal, text).await })
        })
        .collect();
    until("both wait", || statistics(&journal).waiting_bytes == 16).await;
    go.send(()).unwrap();
    for task in tasks {
        let fate = task.await.unwrap();
        assert!(matches!(fate, Err(Error::Storage(_))), "{fate:?}");
    }
    until("it is told", || journal.fault().is_some()).await;
    assert!(journal.fault().unwrap().contains("panicked"));
    let fate = append(&journal, texts[0]).await;
    assert!(matches!(fate, Err(Error::Storage(_))), "{fate:?}");
    assert_eq!(statistics(&journal).waiting_bytes, 0);
    journal.finish().await;
}
