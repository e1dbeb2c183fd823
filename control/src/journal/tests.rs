use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::time::Instant;

use bytes::Bytes;
use fleet_protocol::config::LogCompression;
use fleet_protocol::ids::HostId;
use tempfile::TempDir;

use super::*;

const WAIT: Duration = Duration::from_secs(20);

pub(super) fn log(text: &str) -> Log {
    Log {
        host: HostId(1),
        log_type: LogType::Result,
        line_count: u32::try_from(text.lines().count()).unwrap(),
        lines: Bytes::copy_from_slice(text.as_bytes()),
    }
}

pub(super) fn directory(state: &Path) -> PathBuf {
    state.join("log/osquery_result")
}

pub(super) fn active(state: &Path) -> PathBuf {
    directory(state).join("osquery_result.log")
}

pub(super) fn open(state: &Path, options: &Filesystem) -> Arc<Journal> {
    Journal::open(options, state).unwrap()
}

pub(super) async fn append(journal: &Journal, text: &str) -> Result<(), Error> {
    append_as(journal, LogType::Result, text).await
}

pub(super) async fn append_as(
    journal: &Journal,
    log_type: LogType,
    text: &str,
) -> Result<(), Error> {
    let log = Log {
        log_type,
        ..log(text)
    };
    let mut fates = journal.append(log_type, vec![log]).await;
    assert_eq!(fates.len(), 1);
    fates.remove(0)
}

pub(super) async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !is_true() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(super) fn names(directory: &Path) -> BTreeSet<String> {
    std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.'))
        .collect()
}

/// Every line in the directory, unpacked.
pub(super) fn all_lines(directory: &Path) -> Vec<String> {
    let mut all = String::new();
    for name in names(directory) {
        let file = std::fs::File::open(directory.join(&name)).unwrap();
        match name.rsplit('.').next().unwrap() {
            "gz" => flate2::read::GzDecoder::new(file).read_to_string(&mut all),
            "zst" => zstd::stream::read::Decoder::new(file)
                .unwrap()
                .read_to_string(&mut all),
            _ => { file }.read_to_string(&mut all),
        }
        .unwrap();
    }
    all.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_appends_share_syncs_and_none_is_lost() {
    let state = TempDir::new().unwrap();
    let journal = open(state.path(), &Filesystem::default());
    let mut tasks = Vec::new();
    for task in 0..64 {
        let journal = Arc::clone(&journal);
        tasks.push(tokio::spawn(async move {
            for round in 0..20 {
                let text = format!("{{\"a\":\"{task}-{round}\"}}\n{{\"b\":\"{task}-{round}\"}}\n");
                append(&journal, &text).await.unwrap();
                // What is acknowledged can be read at once.
                let file = std::fs::read_to_string(active(state_of(&journal).as_path())).unwrap();
                assert!(file.contains(&text));
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let lines: BTreeSet<String> = all_lines(&directory(state.path())).into_iter().collect();
    assert_eq!(lines.len(), 64 * 20 * 2);
    let statistics = journal.statistics(LogType::Result);
    assert_eq!(statistics.appends, 64 * 20);
    assert_eq!(statistics.lines, 64 * 20 * 2);
    assert_eq!(statistics.append_us.count(), 64 * 20);
    assert!(statistics.syncs < statistics.appends, "{statistics:?}");
    assert_eq!(statistics.waiting_bytes, 0);
    assert!(statistics.is_healthy && journal.fault().is_none());
    journal.finish().await;
}

/// The state directory, from the active segment's name.
fn state_of(journal: &Journal) -> PathBuf {
    PathBuf::from(journal.statistics(LogType::Result).segment)
        .ancestors()
        .nth(3)
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn types_have_their_own_files_and_modes_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let state = TempDir::new().unwrap();
    let journal = open(state.path(), &Filesystem::default());
    append(&journal, "{\"r\":1}\n").await.unwrap();
    append_as(&journal, LogType::Status, "{\"s\":1}\n")
        .await
        .unwrap();
    let status = state.path().join("log/osquery_status/osquery_status.log");
    assert_eq!(std::fs::read_to_string(&status).unwrap(), "{\"s\":1}\n");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&status), 0o600);
    assert_eq!(mode(status.parent().unwrap()), 0o700);
    journal.finish().await;
}

#[tokio::test]
async fn both_types_may_share_one_file() {
    let state = TempDir::new().unwrap();
    let file = state.path().join("all.log");
    let options = Filesystem {
        result_log_file: file.clone(),
        status_log_file: file.clone(),
        ..Filesystem::default()
    };
    let journal = open(state.path(), &options);
    append(&journal, "{\"r\":1}\n").await.unwrap();
    append_as(&journal, LogType::Status, "{\"s\":1}\n")
        .await
        .unwrap();
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        "{\"r\":1}\n{\"s\":1}\n"
    );
    assert!(journal.fault().is_none());
    journal.finish().await;
}

#[tokio::test]
async fn a_torn_line_is_cut_off_and_counted() {
    for (content, kept) in [
        ("{\"a\":1}\n{\"b\":2}\n{\"torn", "{\"a\":1}\n{\"b\":2}\n"),
        ("{\"torn", ""),
        ("{\"a\":1}\n\0\0\0\0", "{\"a\":1}\n"),
    ] {
        let state = TempDir::new().unwrap();
        std::fs::create_dir_all(directory(state.path())).unwrap();
        std::fs::write(active(state.path()), content).unwrap();
        let journal = open(state.path(), &Filesystem::default());
        append(&journal, "{\"next\":1}\n").await.unwrap();
        let now = std::fs::read_to_string(active(state.path())).unwrap();
        assert_eq!(now, format!("{kept}{{\"next\":1}}\n"));
        assert_eq!(journal.statistics(LogType::Result).torn_lines, 1);
        journal.finish().await;
    }
}

#[tokio::test]
async fn a_long_torn_line_is_cut_off_over_chunks() {
    let state = TempDir::new().unwrap();
    std::fs::create_dir_all(directory(state.path())).unwrap();
    let torn = format!("{{\"a\":1}}\n{}", "x".repeat(300_000));
    std::fs::write(active(state.path()), torn).unwrap();
    let journal = open(state.path(), &Filesystem::default());
    append(&journal, "{}\n").await.unwrap();
    assert_eq!(
        std::fs::read_to_string(active(state.path())).unwrap(),
        "{\"a\":1}\n{}\n"
    );
    journal.finish().await;
}

#[tokio::test]
async fn a_missing_line_break_is_added() {
    let state = TempDir::new().unwrap();
    let journal = open(state.path(), &Filesystem::default());
    let logs = vec![log("{\"a\":1}"), log("{\"b\":1}\n")];
    let fates = journal.append(LogType::Result, logs).await;
    assert_eq!(fates, [Ok(()), Ok(())]);
    assert_eq!(
        std::fs::read_to_string(active(state.path())).unwrap(),
        "{\"a\":1}\n{\"b\":1}\n"
    );
    journal.finish().await;
}

#[tokio::test]
async fn segments_are_closed_by_size_packed_and_limited() {
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
        let mut expected = Vec::new();
        for number in 0..8 {
            let line = format!("{{\"n\":{number},\"x\":\"{}\"}}", "y".repeat(400_000));
            append(&journal, &format!("{line}\n")).await.unwrap();
            expected.push(line);
        }
        let suffix = match packing {
            LogCompression::None => ".log",
            LogCompression::Gzip => ".log.gz",
            LogCompression::Zstd => ".log.zst",
        };
        let closed = || {
            names(&directory(state.path()))
                .into_iter()
                .filter(|name| name.contains("-00000"))
                .collect::<Vec<_>>()
        };
        until("segments are packed", || {
            let closed = closed();
            closed.len() == 2 && closed.iter().all(|name| name.ends_with(suffix))
        })
        .await;
        let mut lines = all_lines(&directory(state.path()));
        lines.sort();
        assert_eq!(lines, expected);
        journal.finish().await;

        let options = Filesystem {
            max_backups: 1,
            ..options
        };
        let journal = open(state.path(), &options);
        until("surplus segments are removed", || closed().len() == 1).await;
        assert!(closed()[0].contains("-000002.log"));
        journal.finish().await;
    }
}

#[tokio::test]
async fn segments_are_closed_by_age_even_when_idle() {
    let state = TempDir::new().unwrap();
    let options = Filesystem {
        segment_age: Duration::from_millis(50),
        ..Filesystem::default()
    };
    let journal = open(state.path(), &options);
    append(&journal, "{\"a\":1}\n").await.unwrap();
    until("the segment is closed", || {
        names(&directory(state.path())).len() == 2
    })
    .await;
    // An empty segment is never closed.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(names(&directory(state.path())).len(), 2);
    assert_eq!(all_lines(&directory(state.path())), ["{\"a\":1}"]);
    journal.finish().await;
}

#[tokio::test]
async fn numbers_go_on_after_a_restart() {
    let state = TempDir::new().unwrap();
    let options = Filesystem {
        segment_age: Duration::from_millis(20),
        ..Filesystem::default()
    };
    for round in 1..=3 {
        let journal = open(state.path(), &options);
        append(&journal, &format!("{{\"n\":{round}}}\n"))
            .await
            .unwrap();
        until("the segment is closed", || {
            names(&directory(state.path())).len() == round + 1
        })
        .await;
        journal.finish().await;
    }
    let numbers: Vec<_> = names(&directory(state.path()))
        .into_iter()
        .filter_map(|name| Some(name.strip_suffix(".log")?.rsplit_once('-')?.1.to_owned()))
        .collect();
    assert_eq!(numbers, ["000001", "000002", "000003"]);
}

#[tokio::test]
async fn changes_from_outside_are_noticed() {
    let state = TempDir::new().unwrap();
    let journal = open(state.path(), &Filesystem::default());
    let file = active(state.path());
    append(&journal, "{\"a\":1}\n").await.unwrap();
    std::fs::rename(&file, directory(state.path()).join("osquery_result.log.1")).unwrap();
    append(&journal, "{\"b\":1}\n").await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "{\"b\":1}\n");
    std::fs::remove_file(&file).unwrap();
    append(&journal, "{\"c\":1}\n").await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "{\"c\":1}\n");
    // copytruncate
    std::fs::write(&file, "").unwrap();
    append(&journal, "{\"d\":1}\n").await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "{\"d\":1}\n");
    // The whole directory.
    std::fs::remove_dir_all(directory(state.path())).unwrap();
    append(&journal, "{\"e\":1}\n").await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "{\"e\":1}\n");
    assert_eq!(journal.statistics(LogType::Result).displaced, 4);
    journal.finish().await;
}

#[tokio::test]
async fn only_one_process_writes() {
    let state = TempDir::new().unwrap();
    let first = open(state.path(), &Filesystem::default());
    append(&first, "{\"a\":1}\n").await.unwrap();
    let second = open(state.path(), &Filesystem::default());
    let error = append(&second, "{\"b\":1}\n").await.unwrap_err();
    assert!(matches!(error, Error::Storage(_)), "{error}");
    assert!(second.fault().unwrap().contains("another process"));
    first.finish().await;
    until("the second takes over", || second.fault().is_none()).await;
    append(&second, "{\"c\":1}\n").await.unwrap();
    assert_eq!(
        all_lines(&directory(state.path())),
        ["{\"a\":1}", "{\"c\":1}"]
    );
    second.finish().await;
}

#[tokio::test]
async fn after_the_end_nothing_is_taken() {
    let state = TempDir::new().unwrap();
    let journal = open(state.path(), &Filesystem::default());
    Arc::clone(&journal).finish().await;
    assert_eq!(append(&journal, "{}\n").await, Err(Error::Closed));
}

/// A file system of one megabyte, unmounted at the end.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new() -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs"])
            .arg(directory.path())
            .stderr(std::process::Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        mounted.then_some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_cuts_back_and_recovers() {
    let Some(disk) = SmallDisk::new() else {
        eprintln!("SKIPPED a_full_disk_refuses_cuts_back_and_recovers: mounting needs root");
        return;
    };
    let state = disk.0.path();
    let journal = open(state, &Filesystem::default());
    append(&journal, "{\"first\":1}\n").await.unwrap();
    let mut ballast = std::fs::File::create(state.join("ballast")).unwrap();
    while ballast.write_all(&[0; 4096]).is_ok() {}
    let large = format!("{{\"x\":\"{}\"}}\n", "y".repeat(200_000));
    let error = append(&journal, &large).await.unwrap_err();
    assert!(matches!(error, Error::Storage(_)), "{error}");
    assert!(journal.fault().is_some());
    assert_eq!(
        std::fs::read_to_string(active(state)).unwrap(),
        "{\"first\":1}\n"
    );
    assert!(journal.statistics(LogType::Result).failures > 0);
    // Room again: health comes back without an append.
    drop(ballast);
    std::fs::remove_file(state.join("ballast")).unwrap();
    until("the journal recovers", || journal.fault().is_none()).await;
    append(&journal, &large).await.unwrap();
    assert_eq!(all_lines(&directory(state)).len(), 2);
    journal.finish().await;
}

/// Run by the next test in a process of its own: appends for ever and prints each acknowledged number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_until_killed() {
    let Ok(state) = std::env::var("FLEET_TEST_JOURNAL") else {
        return;
    };
    let options = Filesystem {
        max_size: 1,
        ..Filesystem::default()
    };
    let journal = open(Path::new(&state), &options);
    let tasks = (0..8).map(|task| {
        let journal = Arc::clone(&journal);
        tokio::spawn(async move {
            for number in 0_u64.. {
                let name = format!("{task}-{number}");
                let text = format!("{{\"n\":\"{name}\",\"x\":\"{}\"}}\n", "y".repeat(9000));
                append(&journal, &text).await.unwrap();
                let mut out = std::io::stdout().lock();
                writeln!(out, "acknowledged {name}").unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn every_acknowledged_line_survives_a_kill() {
    use std::io::BufRead as _;
    let state = TempDir::new().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 1..=3 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "journal::tests::appends_until_killed",
                "--nocapture",
            ])
            .env("FLEET_TEST_JOURNAL", state.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let mut count = 0;
        while out.read_line(&mut line).unwrap() > 0 {
            if let Some((_, name)) = line.trim_end().split_once("acknowledged ") {
                acknowledged.insert(name.to_owned());
                count += 1;
                if count == 300 {
                    child.kill().unwrap();
                }
            }
            line.clear();
        }
        child.wait().unwrap();
        assert!(count >= 300, "round {round}: {count}");
    }
    let journal = open(state.path(), &Filesystem::default());
    append(&journal, "{\"n\":\"end\"}\n").await.unwrap();
    let lines = all_lines(&directory(state.path()));
    let stored: BTreeSet<String> = lines
        .iter()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).expect("a whole line");
            line["n"].as_str().unwrap().to_owned()
        })
        .collect();
    assert!(acknowledged.is_subset(&stored));
    assert!(names(&directory(state.path())).len() > 3);
    journal.finish().await;
}
