//! `slow`.

use crate::{accept_all, route, run, start};

#[tokio::test]
async fn slow_tells_when_each_connection_was_closed() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), accept_all).await;
    // This listener waits for every byte, so what is slow stays open.
    let args = [
        "slow",
        "--hosts=4",
        "--connections=6",
        "--before=1",
        "--opening=1",
        "--seconds=2",
        "--rest=1",
        "--interval=1",
        "--threads=2",
    ];
    let (is_clean, report) = run(dir.path(), &listener, &args).await;
    assert!(is_clean, "{report}");
    for part in ["handshake", "head", "body"] {
        let count = |what: &str| report["findings"][format!("slow_{part}_{what}")].clone();
        assert_eq!(count("opened"), 2, "{report}");
        assert_eq!(count("open_at_end"), 2, "{report}");
        assert_eq!(count("closed"), 0, "{report}");
    }
    assert_eq!(report["findings"]["slow_open_at_once"], 6, "{report}");
    assert!(route(&report["phases"][3], "config").unwrap()["exchanges"].as_u64() >= Some(4));
}
