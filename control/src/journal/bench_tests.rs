//! Figures, not verdicts: `cargo test -p fleet-control --release journal::bench -- --ignored --nocapture`.
//! `FLEET_BENCH_DIR` names a directory on the disk that is meant; the default is the temporary one.

use std::time::Instant;

use fleet_protocol::ids::HostId;
use tempfile::TempDir;

use super::tests::{active, directory, log, open};
use super::*;

const BENCH_TIME: Duration = Duration::from_secs(3);

fn state() -> TempDir {
    match std::env::var_os("FLEET_BENCH_DIR") {
        Some(directory) => TempDir::new_in(directory).unwrap(),
        None => TempDir::new().unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn group_commit() {
    println!("appends at once  lines/s  syncs/s  lines per sync  p50 and p99 of an append, µs");
    for callers in [1, 16, 256] {
        let state = state();
        let journal = open(state.path(), &Filesystem::default());
        let end = Instant::now() + BENCH_TIME;
        let tasks: Vec<_> = (0..callers)
            .map(|caller| {
                let journal = Arc::clone(&journal);
                tokio::spawn(async move {
                    let mut times = Vec::new();
                    for number in 0_u64.. {
                        let line = format!("{{\"n\":{number},\"x\":\"{}\"}}\n", "y".repeat(400));
                        let log = Log {
                            host: HostId(caller),
                            ..log(&line.repeat(4))
                        };
                        let begun = Instant::now();
                        let fates = journal.append(LogType::Result, vec![log]).await;
                        assert_eq!(fates, [Ok(())]);
                        times.push(begun.elapsed().as_micros());
                        if Instant::now() >= end {
                            break;
                        }
                    }
                    times
                })
            })
            .collect();
        let mut times = Vec::new();
        for task in tasks {
            times.extend(task.await.unwrap());
        }
        times.sort_unstable();
        let found = journal.statistics(LogType::Result);
        println!(
            "{callers:15}  {:7}  {:7}  {:14}  {} {}",
            found.lines / BENCH_TIME.as_secs(),
            found.syncs / BENCH_TIME.as_secs(),
            found.lines / found.syncs,
            times[times.len() / 2],
            times[times.len() * 99 / 100],
        );
        journal.finish().await;
    }
}

#[tokio::test]
#[ignore = "a measurement"]
async fn start_on_ten_gigabytes() {
    let state = state();
    let options = Filesystem {
        enable_log_rotation: false,
        ..Filesystem::default()
    };
    std::fs::create_dir_all(directory(state.path())).unwrap();
    let file = std::fs::File::create(active(state.path())).unwrap();
    file.set_len(10 << 30).unwrap();
    for what in ["without an index", "with an index", "with a torn end"] {
        if what == "with a torn end" {
            use std::io::Write as _;
            let mut file = std::fs::File::options()
                .append(true)
                .open(active(state.path()))
                .unwrap();
            file.write_all(&vec![b'x'; 60 << 20]).unwrap();
        }
        let begun = Instant::now();
        let journal = open(state.path(), &options);
        let fates = journal
            .append(LogType::Result, vec![log(&format!("{{\"{what}\":1}}\n"))])
            .await;
        println!(
            "{what}: first append acknowledged after {:?}",
            begun.elapsed()
        );
        assert_eq!(fates, [Ok(())]);
        journal.finish().await;
    }
}
