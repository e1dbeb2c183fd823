//! Damage is found, in plain and in compressed segments.

use std::os::unix::fs::FileExt as _;

use fleet_protocol::config::LogCompression;
use tempfile::TempDir;

use super::tests::{active, append, directory, names, open, until};
use super::*;

fn line(number: usize) -> String {
    format!("{{\"n\":{number},\"x\":\"{}\"}}\n", "y".repeat(400_000))
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[tokio::test]
async fn flipped_and_missing_bytes_are_found() {
    for packing in [
        LogCompression::None,
        LogCompression::Gzip,
        LogCompression::Zstd,
    ] {
        let state = TempDir::new().unwrap();
        let options = Filesystem {
            max_size: 1,
            enable_log_compression: packing,
            ..Filesystem::default()
        };
        let journal = open(state.path(), &options);
        for number in 0..8 {
            append(&journal, &line(number)).await.unwrap();
        }
        let closed = || {
            let names = names(&directory(state.path())).into_iter();
            names
                .filter(|name| name.contains("-00000"))
                .collect::<Vec<_>>()
        };
        until("segments are packed", || {
            let is_packed =
                |name: &String| packing == LogCompression::None || !name.ends_with(".log");
            closed().len() == 2 && closed().iter().all(is_packed)
        })
        .await;
        // Beside the running journal.
        let report = verify(&options, state.path()).unwrap();
        assert!(report.is_sound, "{report:?}");
        let batches: u64 = report.segments.iter().map(|segment| segment.batches).sum();
        assert_eq!(
            (batches, report.segments.len()),
            (8, 4),
            "with the empty status log"
        );
        assert!(
            report
                .segments
                .iter()
                .all(|segment| segment.unchecked_bytes == 0)
        );
        journal.finish().await;

        let active = active(state.path());
        let kept = std::fs::metadata(&active).unwrap().len();
        // The first of two batches, and a part of the last.
        flip(&active, 100);
        std::fs::File::options()
            .write(true)
            .open(&active)
            .unwrap()
            .set_len(kept - 7)
            .unwrap();
        let oldest = directory(state.path()).join(&closed()[0]);
        flip(&oldest, 50);
        let report = verify(&options, state.path()).unwrap();
        assert!(!report.is_sound);
        let [first, second, third, _] = &report.segments[..] else {
            panic!("{report:?}");
        };
        assert!(!first.is_sound() && second.is_sound(), "{report:?}");
        if packing == LogCompression::None {
            assert_eq!((first.damaged_ranges, first.batches), (1, 2));
            assert_eq!(first.damaged[0].host_id, 1);
        }
        assert_eq!(third.damaged_ranges, 1, "{report:?}");
        assert_eq!(third.damaged[0].offset, 0);
        assert_eq!(third.unfinished_bytes, line(7).len() as u64 - 7);
    }
}

#[tokio::test]
async fn what_has_no_index_is_told_and_sound() {
    let state = TempDir::new().unwrap();
    let options = Filesystem::default();
    assert!(verify(&options, state.path()).unwrap().is_sound);
    std::fs::create_dir_all(directory(state.path())).unwrap();
    std::fs::write(active(state.path()), "{\"old\":1}\n").unwrap();
    let journal = open(state.path(), &options);
    append(&journal, "{\"new\":1}\n").await.unwrap();
    let report = verify(&options, state.path()).unwrap();
    let [segment, _] = &report.segments[..] else {
        panic!("{report:?}");
    };
    assert_eq!(
        (segment.unchecked_bytes, segment.batches, segment.lines),
        (10, 1, 1)
    );
    assert!(report.is_sound);
    journal.finish().await;
    std::fs::write(
        state
            .path()
            .join("log/osquery_result/.osquery_result.index/000001.idx"),
        [9; 640],
    )
    .unwrap();
    assert!(!verify(&options, state.path()).unwrap().is_sound);
}
