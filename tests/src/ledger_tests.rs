use super::*;

fn seen(begin: Instant, at_ms: u64, took_ms: u64, failure: Option<&'static str>) -> Seen {
    let started_at = begin + Duration::from_millis(at_ms);
    Seen {
        route: Route::Log,
        started_at,
        ended_at: started_at + Duration::from_millis(took_ms),
        status: 200,
        is_empty: false,
        failure: failure.map(|kind| (kind, String::new())),
    }
}

fn books(hosts: Vec<Logged>) -> Books {
    Books {
        fault: "test".into(),
        settled_at: Instant::now(),
        injected_at: vec![Instant::now()],
        refused: 0,
        cut: 0,
        seen: Vec::new(),
        hosts,
    }
}

fn host(sends: Vec<u32>, acknowledged: usize, held: usize) -> Logged {
    Logged {
        identifier: "A".into(),
        log_type: LogType::Result,
        first: 7,
        sends,
        acknowledged,
        held,
    }
}

fn journal(numbers: &[u64]) -> Journal {
    let mut journal = Journal::default();
    for number in numbers {
        let line = format!(r#"{{"hostIdentifier":"A","counter":{number}}}"#);
        journal.add(&line, LogType::Result);
    }
    journal
}

#[test]
fn every_line_is_accounted_for() {
    let judge =
        |numbers: &[u64]| books(vec![host(vec![1, 2, 1, 1], 2, 2)]).judge_with(&journal(numbers));
    let verdict = judge(&[7, 8, 8]);
    verdict.assert_nothing_lost();
    assert_eq!((verdict.duplicates, verdict.held), (1, 2));
    // Stored, but its answer was lost: neither lost nor a duplicate yet.
    assert_eq!(judge(&[7, 8, 9]).duplicates, 0);
    assert_eq!(judge(&[8]).lost, ["A result 7"]);
    assert_eq!(judge(&[7, 7, 8]).unexplained, ["A result 7"]);
    let verdict = books(vec![host(vec![1, 1], 1, 0)]).judge_with(&journal(&[7]));
    assert_eq!(verdict.vanished, ["A result 8"]);
}

#[test]
fn what_is_no_object_is_torn() {
    let mut journal = journal(&[7]);
    journal.add(r#"{"hostIdentifier":"A","cou"#, LogType::Result);
    let status = r#"{"hostIdentifier":"A","message":"it said: number 12"}"#;
    journal.add(status, LogType::Status);
    assert_eq!(journal.torn.len(), 1);
    assert_eq!(journal.copies("A", LogType::Status, 12), 1);
}

#[test]
fn the_disturbance_ends_before_the_first_streak() {
    let begin = Instant::now();
    let fault_at = begin + Duration::from_secs(1);
    let mut all: Vec<Seen> = (0..50).map(|n| seen(begin, n * 10, 80, None)).collect();
    let judge = |all: &[Seen]| until_served(all, begin, &[fault_at]);
    assert_eq!(judge(&all), None, "nothing was seen after the fault");
    let calm = (0..50).map(|n| seen(begin, 2000 + n * 10, 150, None));
    all.extend(calm.clone());
    assert_eq!(
        judge(&all),
        Some(Duration::ZERO),
        "twice the slowest is well"
    );
    all.truncate(50);
    all.push(seen(begin, 900, 800, None));
    all.push(seen(begin, 1001, 1, Some("reset")));
    all.extend(calm.clone());
    assert_eq!(judge(&all), Some(Duration::from_millis(700)));
    // What is slow after everything was well again has another reason.
    all.push(seen(begin, 2600, 5000, None));
    assert_eq!(judge(&all), Some(Duration::from_millis(700)));
}

#[test]
fn made_up_successes_are_broken() {
    let now = Instant::now();
    let good = seen(now, 0, 1, None);
    assert!(!good.is_broken());
    assert!(
        Seen {
            is_empty: true,
            ..good.clone()
        }
        .is_broken()
    );
    assert!(
        Seen {
            status: 503,
            ..good
        }
        .is_broken()
    );
    assert!(!seen(now, 0, 1, Some("error_object")).is_broken());
    assert!(seen(now, 0, 1, Some("not_json")).is_broken());
}
