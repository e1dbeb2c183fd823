use std::cell::RefCell;
use std::future::Future;

use bytes::Bytes;
use fleet_protocol::agent::{Log, LogType, Route};
use fleet_protocol::feed::{Change, Feed, Load};
use fleet_protocol::ids::{FeedSeq, HostId};
use tokio::task::{JoinHandle, LocalSet};

use super::*;
use crate::exchange::{self, Head, Reply, Response};
use crate::fake_control::{FakeControl, FakeLink, PATIENCE};
use crate::hosts::test_host;
use crate::state::{CONTROL_DEADLINE, hash_node_key, test_state};

/// Runs a test beside the link's task.
fn with_link<F: Future<Output = ()> + 'static>(test: impl FnOnce(FakeControl, Rc<State>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let control = FakeControl::listen();
        let state = test_state(control.path());
        tokio::task::spawn_local(run(state.clone()));
        timeout(3 * PATIENCE, test(control, state)).await.unwrap();
    });
}

async fn until(what: &str, is_true: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_true() {
        assert!(begin.elapsed() < PATIENCE, "never: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

fn is_linked(state: &State) -> bool {
    state.stats.borrow().is_linked
}

fn oddities(state: &State) -> u64 {
    state.stats.borrow().link_oddities
}

fn request(state: &State, route: Route, body: &str, now: Instant) -> Reply {
    let mut body = body.as_bytes().to_vec();
    let head = Head {
        route,
        node_key: None,
        content_length: body.len() as u64,
        is_gzip: false,
        accepts_gzip: false,
        client: [127, 0, 0, 1].into(),
        certificate: None,
    };
    exchange::answer(state, &head, &mut body, now)
}

/// Sends a request that must go through control, and waits for its answer in a task.
fn later(state: &State, route: Route, body: &str) -> JoinHandle<Response> {
    match request(state, route, body, Instant::now()) {
        Reply::Later(pending) => tokio::task::spawn_local(pending),
        Reply::Now(response) => panic!("answered alone: {response:?}"),
        Reply::Idle(_) => panic!("nothing due"),
    }
}

fn log(state: &State, number: usize) -> JoinHandle<Response> {
    let body = format!(r#"{{"data":[{{"n":{number}}}],"log_type":"result","node_key":"one"}}"#);
    later(state, Route::Log, &body)
}

fn knows(state: &State, key: &str) -> bool {
    state.table.borrow().host(&hash_node_key(key)).is_some()
}

async fn feed(link: &mut FakeLink, load: Load, seq: u64, changes: Vec<Change>) {
    let seq = FeedSeq(seq);
    link.write(&FromControl::Feed(Feed { load, seq, changes }))
        .await;
}

fn accept(_: &Request) -> Answer {
    Answer::Accepted
}

#[test]
fn a_refused_hello_is_tried_again() {
    with_link(|control, state| async move {
        let (mut link, hello) = control.accept().await;
        assert_eq!(hello.boot, state.boot);
        assert_eq!(hello.feed_after, None);
        let reason = "not now".to_owned();
        link.write(&HelloReply::Refused { reason }).await;
        let (mut link, hello) = control.accept().await;
        assert!(!is_linked(&state));
        assert_eq!(hello.boot, state.boot);
        link.greet(1).await;
        until("linked", || is_linked(&state)).await;
        assert_eq!(state.stats.borrow().links, 1);
        drop(link);
        until("unlinked", || !is_linked(&state)).await;
    });
}

#[test]
fn control_of_the_previous_build_hears_frames_of_its_version() {
    with_link(|control, _state| async move {
        let (mut link, hello) = control.accept().await;
        assert_eq!(
            (hello.version_min, hello.version_max),
            (VERSION_MIN, VERSION)
        );
        link.greet_in(VERSION_MIN, 1).await;
        assert_eq!(link.version().await, VERSION_MIN);
        drop(link);
        // A version that was never offered ends the link.
        let (mut link, _) = control.accept().await;
        link.greet_in(VERSION + 1, 1).await;
        assert_eq!(link.read::<FromWorker>().await, None);
    });
}

#[test]
fn unanswered_batches_are_sent_again_with_their_ids() {
    with_link(|control, state| async move {
        state.table.borrow_mut().insert_host(test_host(1, "one"));
        let mut link = control.link().await;
        let first = log(&state, 1);
        let sent = link.batch().await;
        let second = log(&state, 2);
        assert!(link.is_silent().await, "no credit for a second batch");
        drop(link);
        let mut link = control.link().await;
        let again = link.batch().await;
        assert_eq!(again, sent);
        link.reply(&again, accept).await;
        let next = link.batch().await;
        assert_ne!(next.id, sent.id);
        link.reply(&next, accept).await;
        for answer in [first, second] {
            let response = answer.await.unwrap();
            assert_eq!((response.status, &response.body[..]), (200, &b"{}"[..]));
        }
        let stats = crate::stats::report(&state);
        let batches = &stats.batches[BatchKind::Log.index()];
        assert_eq!((batches.resent, batches.requests.count()), (1, 2));
        assert_eq!(batches.reply_us.count(), 2);
        assert_eq!((batches.waiting, batches.in_flight), (0, 0));
        assert_eq!(oddities(&state), 0);
    });
}

#[test]
fn what_nobody_waits_for_is_not_sent_again() {
    with_link(|control, state| async move {
        state.table.borrow_mut().insert_host(test_host(1, "one"));
        let mut link = control.link().await;
        let given_up = log(&state, 1);
        link.batch().await;
        given_up.abort();
        assert!(given_up.await.is_err());
        drop(link);
        let mut link = control.link().await;
        let kept = log(&state, 2);
        let batch = link.batch().await;
        let [(_, Request::Log(lines))] = &batch.requests[..] else {
            panic!("{batch:?}");
        };
        assert_eq!(lines.lines, "{\"n\":2}\n");
        link.reply(&batch, accept).await;
        assert_eq!(kept.await.unwrap().body, "{}");
    });
}

#[test]
fn credit_bounds_what_is_in_flight() {
    with_link(|control, state| async move {
        state.table.borrow_mut().insert_host(test_host(1, "one"));
        let (mut link, _) = control.accept().await;
        link.greet(0).await;
        until("linked", || is_linked(&state)).await;
        let answers: Vec<_> = (0..3).map(|number| log(&state, number)).collect();
        assert!(link.is_silent().await, "no credit");
        let kind = BatchKind::Log;
        link.write(&FromControl::Credit(fleet_protocol::link::Credit {
            kind,
            batches: 1,
        }))
        .await;
        let batch = link.batch().await;
        assert_eq!(batch.requests.len(), 3, "what waited goes together");
        answers[0].abort();
        link.write(&FromControl::GoAway).await;
        link.reply(&batch, accept).await;
        for answer in answers.into_iter().skip(1) {
            assert_eq!(answer.await.unwrap().body, "{}");
        }
        assert_eq!(oddities(&state), 1, "one answer came too late");
        let _after = log(&state, 9);
        assert!(link.is_silent().await, "control is going away");
    });
}

#[test]
fn a_full_load_takes_the_place_of_the_table() {
    with_link(|control, state| async move {
        let mut link = control.link().await;
        let one = Change::Host(test_host(1, "one"));
        feed(&mut link, Load::Whole, 5, vec![one]).await;
        until("host one", || knows(&state, "one")).await;
        drop(link);
        let (mut link, hello) = control.accept().await;
        assert_eq!(hello.feed_after, Some(FeedSeq(5)));
        link.greet(1).await;
        feed(
            &mut link,
            Load::Begin,
            9,
            vec![Change::Host(test_host(2, "two"))],
        )
        .await;
        assert!(link.is_silent().await);
        assert!(knows(&state, "one") && !knows(&state, "two"));
        feed(
            &mut link,
            Load::End,
            9,
            vec![Change::Host(test_host(3, "three"))],
        )
        .await;
        until("the new table", || knows(&state, "three")).await;
        assert!(knows(&state, "two") && !knows(&state, "one"));
        feed(&mut link, Load::End, 9, Vec::new()).await;
        until("an oddity", || oddities(&state) == 1).await;
    });
}

#[test]
fn requests_with_one_unknown_key_wait_for_one_lookup() {
    with_link(|control, state| async move {
        let mut link = control.link().await;
        let config = Bytes::from_static(b"{\"options\":{}}");
        let answer = Change::Answer {
            id: test_host(1, "one").answer,
            config: config.clone(),
        };
        feed(&mut link, Load::Whole, 1, vec![answer]).await;
        let first = later(&state, Route::Config, r#"{"node_key":"one"}"#);
        let batch = link.batch().await;
        let second = later(&state, Route::Config, r#"{"node_key":"one"}"#);
        let stranger = later(&state, Route::Read, r#"{"node_key":"stranger"}"#);
        link.reply(&batch, |_| Answer::Host(Some(test_host(1, "one"))))
            .await;
        for answer in [first, second] {
            assert_eq!(answer.await.unwrap().body, config);
        }
        assert!(knows(&state, "one"));
        let batch = link.batch().await;
        let key = hash_node_key("stranger");
        assert_eq!(batch.requests.len(), 1);
        assert_eq!(batch.requests[0].1, Request::Lookup(key));
        link.reply(&batch, |_| Answer::Host(None)).await;
        let response = stranger.await.unwrap();
        assert!(response.body.starts_with(b"{\"error\":"));
        let again = request(
            &state,
            Route::Read,
            r#"{"node_key":"stranger"}"#,
            Instant::now(),
        );
        assert!(
            matches!(again, Reply::Now(again) if again == response),
            "remembered"
        );
        // The feed knows better.
        let host = Change::Host(test_host(2, "stranger"));
        feed(&mut link, Load::Changes, 2, vec![host]).await;
        until("no stranger", || knows(&state, "stranger")).await;
        assert!(!state.negative.borrow().contains(&key, Instant::now()));
    });
}

#[test]
fn without_control_requests_wait_until_their_deadline() {
    with_link(|control, state| async move {
        drop(control);
        state.table.borrow_mut().insert_host(test_host(1, "one"));
        let asked_at = Instant::now() - CONTROL_DEADLINE + Duration::from_millis(200);
        let body = r#"{"data":[{}],"log_type":"status","node_key":"one"}"#;
        for (route, body) in [
            (Route::Log, body),
            (Route::Read, r#"{"node_key":"unknown"}"#),
        ] {
            let Reply::Later(pending) = request(&state, route, body, asked_at) else {
                panic!("answered at once");
            };
            let response = pending.await;
            assert_eq!(response.status, 503);
            let expected = Reject::ControlUnavailable.answer(Some(route)).body;
            assert_eq!(response.body, expected);
            assert!(
                !response
                    .body
                    .windows(12)
                    .any(|part| part == b"node_invalid")
            );
        }
        assert!(state.waiting.borrow().is_idle(), "cancelled");
        let alone = request(&state, Route::Read, r#"{"node_key":"one"}"#, Instant::now());
        assert!(matches!(alone, Reply::Idle(_)));
    });
}

#[test]
fn a_link_that_takes_nothing_is_still_heard() {
    with_link(|control, state| async move {
        let (mut link, _) = control.accept().await;
        link.greet(16).await;
        until("linked", || is_linked(&state)).await;
        // More than socket and out buffer hold.
        let tickets = RefCell::new(Vec::new());
        for _ in 0..32 {
            let lines = Request::Log(Log {
                host: HostId(1),
                log_type: LogType::Result,
                lines: vec![b'x'; 1 << 20].into(),
                line_count: 1,
            });
            tickets
                .borrow_mut()
                .push(state.ask(lines, Instant::now()).ok().unwrap());
        }
        sleep(Duration::from_millis(50)).await;
        let one = Change::Host(test_host(1, "one"));
        feed(&mut link, Load::Whole, 1, vec![one]).await;
        until("host one", || knows(&state, "one")).await;
        let mut requests = 0;
        while requests < 32 {
            let batch = link.batch().await;
            requests += batch.requests.len();
            link.reply(&batch, accept).await;
        }
        for ticket in tickets.take() {
            assert_eq!(ticket.answer().await, Answer::Accepted);
        }
    });
}

#[test]
fn seen_marks_are_sent_at_the_end_and_come_back_when_refused() {
    with_link(|control, state| async move {
        let mut link = control.link().await;
        for id in [3, 1, 2, 3] {
            state.seen.borrow_mut().mark(HostId(id));
        }
        let finished = tokio::task::spawn_local({
            let state = state.clone();
            async move { finish(&state).await }
        });
        let expected = Request::Seen([1, 2, 3].map(HostId).into());
        let batch = link.batch().await;
        assert_eq!(batch.requests[0].1, expected);
        link.reply(&batch, |_| Answer::Refused(Reject::StoreUnavailable))
            .await;
        let batch = link.batch().await;
        assert_eq!(batch.requests[0].1, expected);
        link.reply(&batch, accept).await;
        finished.await.unwrap();
        assert_eq!(oddities(&state), 0);
    });
}

#[test]
fn a_silent_link_is_given_up() {
    with_link(|control, state| async move {
        let link = control.link().await;
        until("linked", || is_linked(&state)).await;
        let (mut second, _) = control.accept().await;
        assert!(!is_linked(&state));
        drop(link);
        second.greet(1).await;
        until("linked again", || state.stats.borrow().links == 2).await;
    });
}

#[test]
fn nonsense_ends_the_link() {
    with_link(|control, state| async move {
        let mut link = control.link().await;
        until("linked", || is_linked(&state)).await;
        link.write(&FromWorker::Ping(1)).await;
        assert!(link.read::<FromWorker>().await.is_none());
        let mut link = control.link().await;
        let reply = BatchReply {
            id: BatchId(99),
            kind: BatchKind::Log,
            answers: Vec::new(),
        };
        link.write(&FromControl::Reply(reply)).await;
        until("an oddity", || oddities(&state) == 1).await;
    });
}

#[test]
fn an_incomplete_reply_leaves_nobody_waiting() {
    with_link(|control, state| async move {
        state.table.borrow_mut().insert_host(test_host(1, "one"));
        let mut link = control.link().await;
        let answer = log(&state, 1);
        let batch = link.batch().await;
        let reply = BatchReply {
            id: batch.id,
            kind: batch.kind,
            answers: Vec::new(),
        };
        link.write(&FromControl::Reply(reply)).await;
        let response = answer.await.unwrap();
        assert_eq!(response.status, 500);
        assert!(response.body.starts_with(b"{\"error\":"));
        assert_eq!(oddities(&state), 1);
    });
}

#[test]
fn backoff_grows_to_its_bound() {
    let (first, longest) = BACKOFF;
    for seed in [0, 1, 12_345, u64::MAX] {
        for failures in 0..40 {
            let wait = backoff(failures, seed);
            assert!(wait >= first / 2 && wait <= longest, "{wait:?}");
        }
        assert!(backoff(30, seed) >= longest / 2);
    }
}

#[test]
fn silence_is_judged_only_after_looking() {
    with_link(|_control, state| async move {
        let session = |stream| Session {
            state: &state,
            version: VERSION,
            stream,
            decoder: Decoder::default(),
            input: BytesMut::new(),
            out: BytesMut::new(),
            // As after a stall: everything is due at once.
            ping_at: Instant::now(),
            pings: 9,
            pings_unanswered: PINGS_UNANSWERED_MAX,
            is_going_away: false,
        };
        // Which of several ready events is taken first is chance.
        for number in 0..32 {
            let (near, mut far) = UnixStream::pair().unwrap();
            let mut out = BytesMut::new();
            frame::encode(&FromControl::Ping(number), &mut out).unwrap();
            far.write_all(&out).await.unwrap();
            near.readable().await.unwrap();
            let mut session = session(near);
            session.turn().await.unwrap();
            assert_eq!(session.pings_unanswered, 1);
        }
        let (near, _far) = UnixStream::pair().unwrap();
        assert!(matches!(session(near).turn().await, Err(Error::Dead)));
    });
}
