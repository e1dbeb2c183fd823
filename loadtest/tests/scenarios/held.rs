//! `held`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fleet_loadtest::listener::{Received, Reply};

use crate::{accept_all, route, run, start};

/// Long enough to be no slow answer.
const HOLD: Duration = Duration::from_millis(7200);

/// Holds every read but a host's first, as a server does that has nothing to hand out.
fn hold_later_reads() -> impl Fn(&Received) -> Reply + Send + Sync + 'static {
    let reads = AtomicUsize::new(0);
    move |received| {
        let is_read = received.path.ends_with("/read");
        if is_read && reads.fetch_add(1, Ordering::SeqCst) >= 4 {
            return Reply::Held(HOLD, "{}".into());
        }
        accept_all(received)
    }
}

#[tokio::test]
async fn held_counts_what_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), hold_later_reads()).await;
    let args = ["held", "--hosts=4", "--seconds=8", "--ramp=1"];
    let (is_held, report) = run(dir.path(), &listener, &args).await;
    assert!(is_held, "{report}");
    let findings = &report["findings"];
    assert!(
        findings["reads_held_to_the_end"].as_u64() >= Some(4),
        "{report}"
    );
    assert_eq!(findings["reads_under_way_max"], 4);
    assert!(findings["hold_p50_ms"].as_f64() >= Some(7190.0), "{report}");
    let row = route(&report["phases"][2], "read (held)").unwrap();
    assert_eq!(row["late_over_16s"], 0);
    assert!(
        route(&report["phases"][2], "read").is_none(),
        "not as slow reads"
    );
}

#[tokio::test]
async fn held_fails_when_the_server_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let listener = start(dir.path(), accept_all).await;
    let args = [
        "held",
        "--hosts=4",
        "--seconds=3",
        "--ramp=1",
        "--interval=1",
    ];
    let (is_held, report) = run(dir.path(), &listener, &args).await;
    assert!(!is_held, "{report}");
    assert_eq!(report["findings"]["reads_held_to_the_end"], 0);
    assert_eq!(report["phases"][2]["failures"], serde_json::json!({}));
}
