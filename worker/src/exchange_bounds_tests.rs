//! Tests of what is refused because it is too much.

use super::*;

#[test]
fn sizes_are_refused_by_the_head() {
    let state = state();
    for (route, bytes_max) in [
        (Route::Enroll, 512 << 10),
        (Route::Config, 64 << 10),
        (Route::Read, 64 << 10),
        (Route::Write, 5 << 20),
        (Route::Log, 10 << 20),
        (Route::CarveBegin, 64 << 10),
    ] {
        let mut head = head(route, None);
        head.content_length = bytes_max as u64;
        assert_eq!(
            begin(&state, &head, Instant::now()),
            Early::ReadBody { bytes_max }
        );
        for too_long in [bytes_max as u64 + 1, u64::MAX] {
            head.content_length = too_long;
            let early = begin(&state, &head, Instant::now());
            assert_eq!(early, Early::Refuse(Reject::BodyTooLarge), "{route:?}");
        }
    }
}

#[test]
fn full_queues_refuse_early() {
    let state = state();
    due(&state);
    let mut kept = Vec::new();
    let read = head(Route::Read, Some("one"));
    loop {
        match send(&state, &read, b"{}") {
            Reply::Later(pending) => kept.push(pending),
            Reply::Now(response) => {
                assert_eq!(response.body, Reject::Busy.answer(None).body);
                break;
            }
            Reply::Idle(_) => panic!("nothing due"),
        }
    }
    let limits = limits::BatchLimits::of(BatchKind::Read);
    assert_eq!(kept.len(), limits.waiting_requests_max);
    let enroll = head(Route::Enroll, None);
    kept.clear();
    for _ in 0..limits::BatchLimits::of(BatchKind::Enroll).waiting_requests_max {
        kept.push(later(send(&state, &enroll, b"{}")));
    }
    assert_eq!(
        begin(&state, &enroll, Instant::now()),
        Early::Refuse(Reject::Busy)
    );
}

#[test]
fn parked_bytes_are_bounded() {
    let state = state();
    let mut line = String::from(r#"{"log_type":"result","node_key":"unknown","data":[""#);
    line.push_str(&"x".repeat(9 << 20));
    line.push_str(r#""]}"#);
    let mut kept = Vec::new();
    while let Reply::Later(pending) = send(&state, &head(Route::Log, None), line.as_bytes()) {
        kept.push(pending);
        assert!(kept.len() < 10);
    }
    assert_eq!(state.stats.borrow().rejects[Reject::Busy.index()], 1);
    kept.pop();
    let reply = send(&state, &head(Route::Log, None), line.as_bytes());
    assert!(matches!(reply, Reply::Later(_)));
}
